/* grammar_build.c - the program of a grammar. */
#include "text/grammar_state.h"

#include <stdlib.h>
#include <string.h>

enum {
    // Rules up to this size are inlined. The automaton caches the matches inside a rule for all its
    // callers, so larger rules are better called.
    INLINE = 64,
    INLINE_DEPTH = 20, // inlined rules may refer to others this deep
    COPIES = 60000,    // a repeated part is copied up to this size of all copies, or it is called
};

static const uint64_t huge = (uint64_t)1 << 40;

// ---- sizes ----

static uint64_t size_of(struct tl_grammar *g, uint32_t expr);

struct sum {
    struct tl_grammar *g;
    uint64_t size, each;
};

static void add_size(void *context, uint32_t expr) {
    struct sum *sum = context;
    sum->size = TL_MIN(huge, sum->size + size_of(sum->g, expr) + sum->each);
}

/* About how many nodes an expression becomes. */
static uint64_t size_of(struct tl_grammar *g, uint32_t expr) {
    const struct expr *e = &g->exprs[expr];
    const int32_t *parts = g->parts + e->first;
    struct sum sum = {g, 0, 0};
    if (e->size != UNKNOWN_SIZE) return e->size;
    switch ((enum tl_expr_kind)e->kind) {
    case TL_EXPR_TEXT:
        sum.size = e->n;
        break;
    case TL_EXPR_CHARS:
        for (uint32_t i = 1; i < e->n; i += 2) sum.size += parts[i] < 0x80 ? 1 : 6;
        break;
    case TL_EXPR_REPEAT:
        if (parts[2] == 0) break;
        sum.size =
            (size_of(g, (uint32_t)parts[0]) + 1) * (uint64_t)TL_MAX(TL_MAX(parts[1], parts[2]), 1);
        break;
    case TL_EXPR_RULE:
        sum.size = parts[1] != 0 || !g->rules[parts[0]].inlined
                       ? 1
                       : TL_MAX((uint64_t)1, g->rules[parts[0]].size);
        break;
    case TL_EXPR_MACHINE:
        sum.size = (uint64_t)parts[0];
        tl_grammar_each_inner(g, e, add_size, &sum);
        break;
    case TL_EXPR_SEQ:
    case TL_EXPR_ALT:
        sum.each = 1;
        tl_grammar_each_inner(g, e, add_size, &sum);
        break;
    default:
        sum.size = 1;
    }
    return g->exprs[expr].size = TL_MIN(huge, sum.size);
}

// ---- which rules are inlined ----

/* Decides which rules are inlined: small ones that reach no recursion. */
static int choose_inlined(struct tl_grammar *g, struct tl_error *err) {
    uint32_t *depth = calloc(g->n_rules + 1, sizeof *depth); // of inlined rules below
    struct order order = {0};
    const int status =
        depth == NULL ? tl_grammar_no_memory(err) : tl_grammar_order(g, NULL, &order, err);
    for (size_t i = 0; i < order.n && status == TL_OK; i++) {
        const uint32_t at = order.rules[i];
        struct rule *rule = &g->rules[at];
        rule->size = size_of(g, rule->expr); // the sizes of the rules in it are known
        depth[at]++;
        rule->inlined = rule->size <= INLINE && depth[at] <= INLINE_DEPTH;
        for (uint32_t j = order.first[at]; rule->inlined && j < order.first[at + 1]; j++) {
            uint32_t *above = &depth[order.references[j].user];
            *above = TL_MAX(*above, depth[at]);
        }
    }
    tl_grammar_free_order(&order);
    free(depth);
    return status;
}

// ---- nodes ----

static bool push(struct tl_grammar *g, uint32_t start) {
    if (!tl_reserve((void **)&g->stack, &g->stack_capacity, g->n_stack + 1, sizeof *g->stack)) {
        return false;
    }
    g->stack[g->n_stack++] = start;
    return true;
}

static uint64_t hash_node(const struct tl_grammar *g, const struct tl_automaton_node *p) {
    const uint64_t head = (uint64_t)p->op << 16 | (uint64_t)p->low << 8 | p->high;
    return tl_hash_word(&g->key, head, (uint64_t)(uint32_t)p->a << 32 | (uint32_t)p->b);
}

static bool grow_known(struct tl_grammar *g) {
    const size_t size = g->known_size == 0 ? 1024 : 2 * g->known_size;
    uint32_t *known = malloc(size * sizeof *known);
    size_t first = 0;
    if (known == NULL) return false;
    memset(known, 0xFF, size * sizeof *known);
    // from a free place on, so that equal nodes stay in the order in which they came
    while (first < g->known_size && g->known[first] != NONE) first++;
    for (size_t k = 0; k < g->known_size; k++) {
        const size_t i = (first + k) & (g->known_size - 1);
        if (g->known[i] == NONE) continue;
        size_t at = hash_node(g, &g->nodes[g->known[i]]) & (size - 1);
        while (known[at] != NONE) at = (at + 1) & (size - 1);
        known[at] = g->known[i];
    }
    free(g->known);
    g->known = known;
    g->known_size = size;
    return true;
}

static int make_room(struct tl_grammar *g, size_t more, struct tl_error *err) {
    const size_t n = g->n_nodes + more;
    if (n > g->max_nodes) {
        return tl_fail(err, TL_ENOSUP, "the grammar has more than %zu nodes", g->max_nodes);
    }
    if (!tl_reserve((void **)&g->nodes, &g->nodes_capacity, n, sizeof *g->nodes) ||
        !tl_reserve((void **)&g->owners, &g->owners_capacity, n, sizeof *g->owners)) {
        return tl_grammar_no_memory(err);
    }
    return TL_OK;
}

/* *out is a new node. */
static int new_node(struct tl_grammar *g, struct tl_automaton_node node, uint32_t *out,
                    struct tl_error *err) {
    const int status = make_room(g, 1, err);
    if (status < 0) return status;
    g->nodes[g->n_nodes] = node;
    g->owners[g->n_nodes] = g->owner;
    *out = (uint32_t)g->n_nodes++;
    return TL_OK;
}

/* *out is a node like this one, if there is one. */
static int shared_node(struct tl_grammar *g, struct tl_automaton_node node, uint32_t *out,
                       struct tl_error *err) {
    size_t at;
    int status;
    if (2 * (g->n_known + 1) > g->known_size && !grow_known(g)) return tl_grammar_no_memory(err);
    for (at = hash_node(g, &node) & (g->known_size - 1); g->known[at] != NONE;
         at = (at + 1) & (g->known_size - 1)) {
        const struct tl_automaton_node *p = &g->nodes[g->known[at]];
        if (p->op == node.op && p->low == node.low && p->high == node.high && p->a == node.a &&
            p->b == node.b && g->known[at] >= g->floor) {
            *out = g->known[at];
            return TL_OK;
        }
    }
    status = new_node(g, node, out, err);
    if (status < 0) return status;
    g->known[at] = *out;
    g->n_known++;
    return TL_OK;
}

static int byte_node(struct tl_grammar *g, uint32_t low, uint32_t high, uint32_t after,
                     uint32_t *out, struct tl_error *err) {
    const struct tl_automaton_node node = {TL_AUTOMATON_BYTE, (uint8_t)low, (uint8_t)high,
                                           (int32_t)after, 0};
    return shared_node(g, node, out, err);
}

static int split_node(struct tl_grammar *g, uint32_t a, uint32_t b, uint32_t *out,
                      struct tl_error *err) {
    const struct tl_automaton_node node = {TL_AUTOMATON_SPLIT, 0, 0, (int32_t)a, (int32_t)b};
    return shared_node(g, node, out, err);
}

/* A node that is filled in later. */
static int open_node(struct tl_grammar *g, uint32_t *out, struct tl_error *err) {
    const struct tl_automaton_node node = {TL_AUTOMATON_SPLIT, 0, 0, (int32_t)g->n_nodes,
                                           (int32_t)g->n_nodes};
    return new_node(g, node, out, err);
}

static void fill_node(struct tl_grammar *g, uint32_t node, uint32_t a, uint32_t b) {
    g->nodes[node] = (struct tl_automaton_node){TL_AUTOMATON_SPLIT, 0, 0, (int32_t)a, (int32_t)b};
}

/* Takes the starts from `base` on off the stack; *out leads to all of them. */
static int split(struct tl_grammar *g, size_t base, uint32_t *out, struct tl_error *err) {
    const size_t marked = g->marks_capacity;
    size_t n = base;
    int status = TL_OK;
    if (!tl_reserve((void **)&g->marks, &g->marks_capacity, g->nodes_capacity, sizeof *g->marks)) {
        return tl_grammar_no_memory(err);
    }
    memset(g->marks + marked, 0, (g->marks_capacity - marked) * sizeof *g->marks);
    g->round++;
    for (size_t i = base; i < g->n_stack; i++) {
        const uint32_t start = g->stack[i];
        if (g->marks[start] == g->round) continue;
        g->marks[start] = g->round;
        g->stack[n++] = start;
    }
    if (n == base) { // nothing leads on
        if (g->nowhere == NONE) status = open_node(g, &g->nowhere, err);
        *out = g->nowhere;
    } else {
        *out = g->stack[n - 1];
    }
    for (size_t i = n; status == TL_OK && i > base + 1; i--) {
        status = split_node(g, g->stack[i - 2], *out, out, err);
    }
    g->n_stack = base;
    return status;
}

// ---- building, from the end: each part is given the node that follows it ----

static int build(struct tl_grammar *g, uint32_t expr, uint32_t after, uint32_t *out,
                 struct tl_error *err);

/* Adds the start of the code points low to high, which are encoded in `count` bytes. */
static int add_sequence(struct tl_grammar *g, uint32_t low, uint32_t high, int count,
                        uint32_t after, struct tl_error *err) {
    const uint32_t lead = 0xF00u >> count & 0xFF;
    int status = TL_OK;
    for (int shift = 6; shift < 6 * count; shift += 6) {
        const uint32_t rest = (1u << shift) - 1;
        uint32_t last;
        if ((low & ~rest) == (high & ~rest)) break;
        if ((low & rest) != 0) {
            last = low | rest;
        } else if ((high & rest) != rest) {
            last = (high & ~rest) - 1;
        } else {
            continue;
        }
        status = add_sequence(g, low, last, count, after, err);
        return status < 0 ? status : add_sequence(g, last + 1, high, count, after, err);
    }
    for (int i = 0; i < count && status == TL_OK; i++) { // the last byte first
        const uint32_t mark = i < count - 1 ? 0x80 : lead;
        const uint32_t first = (low >> 6 * i & 0x3F) | mark, last = (high >> 6 * i & 0x3F) | mark;
        status = byte_node(g, first, last, after, &after, err);
    }
    if (status == TL_OK && !push(g, after)) return tl_grammar_no_memory(err);
    return status;
}

static int build_chars(struct tl_grammar *g, const struct expr *e, uint32_t after, uint32_t *out,
                       struct tl_error *err) {
    static const uint32_t ends[] = {0x7F, 0x7FF, 0xFFFF, 0x10FFFF};
    const size_t base = g->n_stack;
    for (uint32_t i = 0; i < e->n; i += 2) {
        const uint32_t *range = (const uint32_t *)(g->parts + e->first + i);
        for (int count = 1; count <= 4; count++) {
            const uint32_t low = TL_MAX(range[0], count == 1 ? 0 : ends[count - 2] + 1);
            const uint32_t high = TL_MIN(range[1], ends[count - 1]);
            uint32_t start;
            int status = TL_OK;
            if (low > high) continue;
            if (count > 1) {
                status = add_sequence(g, low, high, count, after, err);
            } else {
                status = byte_node(g, low, high, after, &start, err);
                if (status == TL_OK && !push(g, start)) status = tl_grammar_no_memory(err);
            }
            if (status < 0) return status;
        }
    }
    return split(g, base, out, err);
}

/* Texts of alternatives, as numbers of expressions. */
struct text {
    const int32_t *bytes;
    uint32_t n;
};

static int compare_texts(const void *left, const void *right) {
    const struct text *a = left, *b = right;
    for (uint32_t i = 0; i < a->n && i < b->n; i++) {
        if (a->bytes[i] != b->bytes[i]) return a->bytes[i] < b->bytes[i] ? -1 : 1;
    }
    return a->n < b->n ? -1 : a->n > b->n;
}

/*
 * Adds the starts of sorted texts; those with a common prefix share its nodes, as in a trie.
 *
 * bases[depth] is where the branches after `depth` bytes of the last text start on the stack. The
 * deepest ones are closed first.
 */
static int add_trie(struct tl_grammar *g, const struct text *texts, size_t n, uint32_t after,
                    struct tl_error *err) {
    struct text last = {NULL, 0};
    size_t *bases, longest = 0;
    int status = TL_OK;
    for (size_t i = 0; i < n; i++) longest = TL_MAX(longest, texts[i].n);
    bases = malloc((longest + 1) * sizeof *bases);
    if (bases == NULL) return tl_grammar_no_memory(err);
    bases[0] = g->n_stack;
    for (size_t i = 0; i <= n && status == TL_OK; i++) {
        const struct text text = i < n ? texts[i] : (struct text){NULL, 0};
        uint32_t same = 0;
        while (same < last.n && same < text.n && last.bytes[same] == text.bytes[same]) same++;
        for (uint32_t depth = last.n; status == TL_OK && depth > same; depth--) {
            const uint32_t byte = (uint32_t)last.bytes[depth - 1];
            uint32_t start;
            status = split(g, bases[depth], &start, err);
            if (status == TL_OK) status = byte_node(g, byte, byte, start, &start, err);
            if (status == TL_OK && !push(g, start)) status = tl_grammar_no_memory(err);
        }
        if (i == n || status < 0) break;
        for (uint32_t depth = same + 1; depth <= text.n; depth++) bases[depth] = g->n_stack;
        if (!push(g, after)) status = tl_grammar_no_memory(err);
        last = text;
    }
    free(bases);
    return status;
}

static int build_alternatives(struct tl_grammar *g, const struct expr *e, uint32_t after,
                              uint32_t *out, struct tl_error *err) {
    const size_t base = g->n_stack;
    const uint32_t first = e->first, n = e->n;
    struct text *texts = NULL;
    size_t n_texts = 0;
    int status = TL_OK;
    for (uint32_t i = 0; i < n && status == TL_OK; i++) {
        const uint32_t inner = (uint32_t)g->parts[first + i];
        uint32_t start;
        if (g->exprs[inner].kind == TL_EXPR_TEXT) {
            n_texts++;
            continue;
        }
        status = build(g, inner, after, &start, err);
        if (status == TL_OK && !push(g, start)) status = tl_grammar_no_memory(err);
    }
    if (status == TL_OK && n_texts > 0) {
        texts = malloc(n_texts * sizeof *texts);
        if (texts == NULL) return tl_grammar_no_memory(err);
        n_texts = 0;
        for (uint32_t i = 0; i < n; i++) {
            const struct expr *inner = &g->exprs[g->parts[first + i]];
            if (inner->kind != TL_EXPR_TEXT) continue;
            texts[n_texts++] = (struct text){g->parts + inner->first, inner->n};
        }
        if (n_texts > 1) qsort(texts, n_texts, sizeof *texts, compare_texts);
        status = add_trie(g, texts, n_texts, after, err);
        free(texts);
    }
    return status < 0 ? status : split(g, base, out, err);
}

static int call(struct tl_grammar *g, uint32_t rule, uint32_t after, uint32_t *out,
                struct tl_error *err) {
    const struct tl_automaton_node node = {TL_AUTOMATON_CALL, 0, 0, 0,
                                           after == g->end ? -1 : (int32_t)after};
    const int status = new_node(g, node, out, err);
    if (status < 0) return status;
    if (!tl_reserve((void **)&g->patches, &g->patches_capacity, g->n_patches + 1,
                    sizeof *g->patches)) {
        return tl_grammar_no_memory(err);
    }
    g->patches[g->n_patches++] = (struct patch){*out, rule};
    return TL_OK;
}

/* One copy of a repeated part before node `at`; with `stop`, that node may follow instead. */
static int build_copy(struct tl_grammar *g, uint32_t item, uint32_t stop, uint32_t at,
                      uint32_t *out, struct tl_error *err) {
    int status = build(g, item, at, out, err);
    if (status < 0 || stop == NONE || stop == *out) return status;
    return split_node(g, *out, stop, out, err);
}

/*
 * *out is the start of `count` copies of a part, one after another, before node `after`. From the
 * third on, the nodes of the second are moved.
 */
static int build_copies(struct tl_grammar *g, uint32_t item, uint32_t stop, uint32_t count,
                        uint32_t after, uint32_t *out, struct tl_error *err) {
    const uint32_t floor = g->floor;
    size_t first, patched, patches, step;
    uint32_t before, start;
    int status = TL_OK;
    if (count < 4) {
        for (; count > 0 && status == TL_OK; count--) {
            status = build_copy(g, item, stop, after, &after, err);
        }
        *out = after;
        return status;
    }
    status = build_copy(g, item, stop, after, &before, err);
    if (status < 0) return status;
    first = g->n_nodes;
    patched = g->n_patches;
    g->floor = (uint32_t)first; // so that all nodes of the second copy are new
    status = build_copy(g, item, stop, before, &start, err);
    g->floor = floor;
    step = g->n_nodes - first;
    patches = g->n_patches - patched;
    *out = start;
    if (status < 0 || step == 0) return status; // step 0: the part is empty
    if (step > g->max_nodes / (count - 2)) {
        return tl_fail(err, TL_ENOSUP, "the grammar has more than %zu nodes", g->max_nodes);
    }
    status = make_room(g, (count - 2) * step, err);
    if (status < 0) return status;
    if (!tl_reserve((void **)&g->patches, &g->patches_capacity,
                    g->n_patches + (count - 2) * patches, sizeof *g->patches)) {
        return tl_grammar_no_memory(err);
    }
    for (uint32_t copy = 1; copy <= count - 2; copy++) {
        const int32_t by = (int32_t)(copy * step), onward = (int32_t)(start + (copy - 1) * step);
        for (size_t i = first; i < first + step; i++) {
            struct tl_automaton_node p = g->nodes[i];
            if (p.a >= (int32_t)first) {
                p.a += by;
            } else if (p.a == (int32_t)before) {
                p.a = onward;
            }
            if (p.op == TL_AUTOMATON_SPLIT || p.op == TL_AUTOMATON_CALL) {
                if (p.b >= (int32_t)first) {
                    p.b += by;
                } else if (p.b == (int32_t)before) {
                    p.b = onward;
                }
            }
            g->owners[g->n_nodes] = g->owners[i];
            g->nodes[g->n_nodes++] = p;
        }
        for (size_t i = 0; i < patches; i++) {
            const struct patch p = g->patches[patched + i];
            g->patches[g->n_patches++] = (struct patch){p.node + (uint32_t)by, p.rule};
        }
    }
    *out = start + (uint32_t)((count - 2) * step);
    return TL_OK;
}

/* Makes a rule of a repeated part; *out is the expression that calls it. */
static int make_rule(struct tl_grammar *g, uint32_t item, uint32_t *out, struct tl_error *err) {
    int32_t parts[2] = {0, 1};
    if (g->exprs[item].rule == NONE) {
        if (!tl_reserve((void **)&g->rules, &g->rules_capacity, g->n_rules + 1, sizeof *g->rules)) {
            return tl_grammar_no_memory(err);
        }
        g->rules[g->n_rules] = (struct rule){.expr = item, .start = NONE, .owner = g->owner};
        g->exprs[item].rule = (uint32_t)g->n_rules++;
    }
    parts[0] = (int32_t)g->exprs[item].rule;
    return tl_grammar_add(g, TL_EXPR_RULE, parts, 2, out, err);
}

static int build_repeat(struct tl_grammar *g, const struct expr *e, uint32_t after, uint32_t *out,
                        struct tl_error *err) {
    const int32_t *parts = g->parts + e->first;
    uint32_t item = (uint32_t)parts[0], low = (uint32_t)parts[1], high = (uint32_t)parts[2];
    const bool endless = parts[2] == -1;
    const uint64_t copies = endless ? low : TL_MAX(low, high);
    int status = TL_OK;
    if (parts[2] == 0) {
        *out = after;
        return TL_OK;
    }
    if (copies > 1 && copies * size_of(g, item) > COPIES) {
        status = make_rule(g, item, &item, err);
        if (status < 0) return status;
    }
    if (endless) {
        uint32_t loop, body;
        status = open_node(g, &loop, err);
        if (status == TL_OK) status = build(g, item, loop, &body, err);
        if (status < 0) return status;
        fill_node(g, loop, body, after);
        after = low > 0 ? body : loop;
        low -= low > 0;
    } else {
        status = build_copies(g, item, after, high - low, after, &after, err);
    }
    return status < 0 ? status : build_copies(g, item, NONE, low, after, out, err);
}

/* Marks the states of an automaton that lead to an end. `at` has the place of each state. */
static bool find_live(const int32_t *parts, const uint32_t *at, bool *live) {
    const uint32_t n = (uint32_t)parts[0];
    uint32_t *first = calloc((size_t)n + 1, sizeof *first), *waiting = NULL, *sources = NULL;
    size_t n_edges = 0, n_waiting = 0;
    bool ok = false;
    if (first == NULL) return false;
    for (uint32_t i = 0; i < n; i++) {
        for (int32_t j = 0; j < parts[at[i] + 1]; j++, n_edges++) {
            first[parts[at[i] + 3 + 2 * (uint32_t)j]]++;
        }
    }
    waiting = malloc(((size_t)n + 1) * sizeof *waiting);
    sources = malloc((n_edges + 1) * sizeof *sources);
    if (waiting == NULL || sources == NULL) goto done;
    for (uint32_t i = 0, sum = 0; i <= n; i++) {
        sum += first[i];
        first[i] = sum; // now where the edges to state i end; filled from the end below
    }
    for (uint32_t i = 0; i < n; i++) {
        for (int32_t j = 0; j < parts[at[i] + 1]; j++) {
            sources[--first[parts[at[i] + 3 + 2 * (uint32_t)j]]] = i;
        }
        live[i] = parts[at[i]] != 0;
        if (live[i]) waiting[n_waiting++] = i;
    }
    while (n_waiting > 0) {
        const uint32_t to = waiting[--n_waiting];
        for (uint32_t j = first[to]; j < (to + 1 < n ? first[to + 1] : n_edges); j++) {
            if (live[sources[j]]) continue;
            live[sources[j]] = true;
            waiting[n_waiting++] = sources[j];
        }
    }
    ok = true;
done:
    free(first);
    free(waiting);
    free(sources);
    return ok;
}

static int build_machine(struct tl_grammar *g, const struct expr *e, uint32_t after, uint32_t *out,
                         struct tl_error *err) {
    // g->parts moves only when an expression is added, so places are kept, not pointers
    const uint32_t first = e->first, n = (uint32_t)g->parts[first];
    uint32_t *at = malloc((size_t)n * sizeof *at), states = 0, place = 1;
    bool *live = calloc(n, sizeof *live);
    int status = TL_OK;
    if (at == NULL || live == NULL) {
        status = tl_grammar_no_memory(err);
        goto done;
    }
    for (uint32_t i = 0; i < n; i++) {
        at[i] = place;
        place += 2 + 2 * (uint32_t)g->parts[first + place + 1];
    }
    if (!find_live(g->parts + first, at, live)) {
        status = tl_grammar_no_memory(err);
        goto done;
    }
    // a node for each state, filled in once the nodes of all states are there
    for (uint32_t i = 0; i < n && status == TL_OK; i++) {
        uint32_t state = 0;
        status = open_node(g, &state, err);
        if (i == 0) states = state;
    }
    for (uint32_t i = 0; i < n && status == TL_OK; i++) {
        const size_t base = g->n_stack;
        const uint32_t edges = (uint32_t)g->parts[first + at[i] + 1];
        uint32_t start, rest;
        if (!live[i]) continue; // no edge leads here
        for (uint32_t j = 0; j < edges && status == TL_OK; j++) {
            const int32_t label = g->parts[first + at[i] + 2 + 2 * j];
            const int32_t to = g->parts[first + at[i] + 3 + 2 * j];
            if (!live[to]) continue;
            status = build(g, (uint32_t)label, states + (uint32_t)to, &start, err);
            if (status == TL_OK && !push(g, start)) status = tl_grammar_no_memory(err);
        }
        if (status == TL_OK && g->parts[first + at[i]] != 0 && !push(g, after)) {
            status = tl_grammar_no_memory(err);
        }
        if (status < 0) break;
        start = g->stack[base];
        rest = start;
        if (g->n_stack > base + 1) status = split(g, base + 1, &rest, err);
        g->n_stack = base;
        if (status == TL_OK) fill_node(g, states + i, start, rest);
    }
    *out = states;
done:
    free(at);
    free(live);
    return status;
}

static int build_rule(struct tl_grammar *g, const struct expr *e, uint32_t after, uint32_t *out,
                      struct tl_error *err) {
    const uint32_t rule = (uint32_t)g->parts[e->first];
    const int32_t owner = g->owner;
    int status;
    if (g->parts[e->first + 1] != 0 || !g->rules[rule].inlined)
        return call(g, rule, after, out, err);
    g->owner = g->rules[rule].owner;
    status = build(g, g->rules[rule].expr, after, out, err);
    g->owner = owner;
    return status;
}

static int build_new(struct tl_grammar *g, const struct expr *e, uint32_t after, uint32_t *out,
                     struct tl_error *err) {
    struct tl_automaton_node token = {TL_AUTOMATON_TOKEN, 0, 0, (int32_t)after, 0};
    const uint32_t first = e->first;
    int status = TL_OK;
    switch ((enum tl_expr_kind)e->kind) {
    case TL_EXPR_TEXT:
        for (uint32_t i = e->n; i > 0 && status == TL_OK; i--) {
            const uint32_t byte = (uint32_t)g->parts[first + i - 1];
            status = byte_node(g, byte, byte, after, &after, err);
        }
        *out = after;
        return status;
    case TL_EXPR_CHARS:
        return build_chars(g, e, after, out, err);
    case TL_EXPR_SEQ:
        for (uint32_t i = e->n; i > 0 && status == TL_OK; i--) {
            status = build(g, (uint32_t)g->parts[first + i - 1], after, &after, err);
        }
        *out = after;
        return status;
    case TL_EXPR_ALT:
        return build_alternatives(g, e, after, out, err);
    case TL_EXPR_REPEAT:
        return build_repeat(g, e, after, out, err);
    case TL_EXPR_RULE:
        return build_rule(g, e, after, out, err);
    case TL_EXPR_MACHINE:
        return build_machine(g, e, after, out, err);
    default:
        token.b = g->parts[first];
        token.low = g->parts[first + 1] != 0;
        return shared_node(g, token, out, err);
    }
}

static uint64_t hash_start(const struct tl_grammar *g, uint32_t expr, uint32_t after) {
    return tl_hash_word(&g->key, 11, (uint64_t)expr << 32 | after);
}

static bool grow_built(struct tl_grammar *g) {
    const size_t size = g->built_size == 0 ? 1024 : 2 * g->built_size;
    struct start *built = malloc(size * sizeof *built);
    size_t first = 0;
    if (built == NULL) return false;
    memset(built, 0xFF, size * sizeof *built);
    while (first < g->built_size && g->built[first].node != NONE) first++; // as in grow_known()
    for (size_t k = 0; k < g->built_size; k++) {
        const struct start s = g->built[(first + k) & (g->built_size - 1)];
        size_t at;
        if (s.node == NONE) continue;
        at = hash_start(g, s.expr, s.after) & (size - 1);
        while (built[at].node != NONE) at = (at + 1) & (size - 1);
        built[at] = s;
    }
    free(g->built);
    g->built = built;
    g->built_size = size;
    return true;
}

/* *out is the node where an expression starts that is followed by node `after`. */
static int build(struct tl_grammar *g, uint32_t expr, uint32_t after, uint32_t *out,
                 struct tl_error *err) {
    const struct expr e = g->exprs[expr]; // a copy: g->exprs may move
    size_t at;
    int status;
    if (2 * (g->n_built + 1) > g->built_size && !grow_built(g)) return tl_grammar_no_memory(err);
    for (at = hash_start(g, expr, after) & (g->built_size - 1); g->built[at].node != NONE;
         at = (at + 1) & (g->built_size - 1)) {
        const struct start *s = &g->built[at];
        if (s->expr == expr && s->after == after && s->node >= g->floor) {
            *out = s->node;
            return TL_OK;
        }
    }
    if (g->depth >= TL_GRAMMAR_DEPTH)
        return tl_fail(err, TL_EARG, "the grammar is nested too deeply");
    g->depth++;
    status = build_new(g, &e, after, out, err);
    g->depth--;
    if (status < 0) return status;
    // building it may have moved the table
    if (2 * (g->n_built + 1) > g->built_size && !grow_built(g)) return tl_grammar_no_memory(err);
    at = hash_start(g, expr, after) & (g->built_size - 1);
    while (g->built[at].node != NONE) at = (at + 1) & (g->built_size - 1);
    g->built[at] = (struct start){expr, after, *out};
    g->n_built++;
    return TL_OK;
}

/* Builds a rule, unless it is there. */
static int enter(struct tl_grammar *g, uint32_t rule, struct tl_error *err) {
    uint32_t start;
    int status;
    if (g->rules[rule].start != NONE) return TL_OK;
    g->owner = g->rules[rule].owner;
    status = build(g, g->rules[rule].expr, g->end, &start, err);
    if (status == TL_OK) g->rules[rule].start = start;
    return status;
}

int tl_grammar_build(struct tl_grammar *g, size_t root, size_t max_nodes, struct tl_program *out,
                     size_t *failed, struct tl_error *err) {
    const struct tl_automaton_node end = {TL_AUTOMATON_END, 0, 0, 0, 0};
    int status = TL_OK;
    *failed = root;
    if (root >= g->n_rules || g->n_nodes > 0 || max_nodes > INT32_MAX) {
        return tl_fail(err, TL_EARG, "the grammar is built once, from one of its rules");
    }
    status = tl_grammar_rules_are_there(g, err);
    if (status < 0) return status;
    g->max_nodes = max_nodes;
    status = choose_inlined(g, err);
    if (status == TL_OK) status = shared_node(g, end, &g->end, err);
    if (status == TL_OK) status = enter(g, (uint32_t)root, err);
    for (size_t i = 0; i < g->n_patches && status == TL_OK; i++) { // grows
        const struct patch p = g->patches[i];
        status = enter(g, p.rule, err);
        g->nodes[p.node].a = (int32_t)g->rules[p.rule].start;
    }
    *failed = (size_t)g->owner;
    if (status < 0) return status;
    *out = (struct tl_program){g->nodes, g->owners, g->n_nodes, g->rules[root].start};
    return TL_OK;
}
