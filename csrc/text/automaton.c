/* automaton.c - matching a grammar, and masks over a vocabulary. */
#include "text/automaton.h"

#include "base/hash.h"
#include "base/os.h"

#include <stdlib.h>
#include <string.h>

enum {
    NOTHING = 0,        // the set without a stack: the text does not match
    EMPTY = 1,          // the set of only the empty stack: the text is complete
    MAX_STACKS = 8192,  // stacks of one state; more means that the grammar is too ambiguous
    MAX_MERGE = 1000,   // how deep stacks are merged
    MAX_WORK = 1 << 20, // pairs merged for one byte
    MEMO = 4096,        // unions of two sets that are remembered
    FEW_NODES = 32,     // a state of more nodes computes each next state for itself
    MIN_SUBTREE = 8,    // nodes of a subtree that are worth a look ahead
    MAX_LOOKS = 20000,  // steps of all looks ahead of one mask
};

#define UNKNOWN UINT32_MAX

static const size_t max_sets = (size_t)1 << 22;
static const size_t max_pairs = (size_t)1 << 24; // of all sets together
static const size_t max_cache = (size_t)96 << 20;

/* The stacks that start with node `at` and go on with a stack of the set `below`. */
struct pair {
    uint32_t at, below;
};

/*
 * A set of stacks: pairs sorted by (at, below). The nodes of a state are BYTE and TOKEN nodes. The
 * nodes of a set that is `below` a pair are return addresses.
 */
struct set {
    uint32_t first, n; // in automaton.pairs
    uint32_t hash;
    bool has_empty;      // the empty stack is one of them
    uint32_t *onward;    // owns; the next state by byte class, UNKNOWN if not computed; or NULL
    struct ahead *ahead; // owns; or NULL
    uint32_t popped;     // the state after a return to this set; UNKNOWN if not computed
    // owns; or NULL: the mask over all pieces, and over those that are not short texts of each kind
    struct mask *local[1 + TL_TEXT_KINDS];
};

/* How far any plain text may go on from a state, by the unit of the text there. */
struct ahead {
    uint8_t good[TL_TEXT_UNITS]; // this many bytes may follow, whatever they are
    uint8_t bad[TL_TEXT_UNITS];  // not every text of this many bytes may
};

/* The result of a walk over the tree from a state. */
struct mask {
    const struct tl_trie *trie; // the tree that was walked
    uint32_t *out;              // owns; nodes of the tree where a stack became empty
    uint32_t n_out;
    uint64_t bits[]; // bit i % 64 of word i / 64: piece i may come next
};

struct tl_automaton {
    struct tl_automaton_node *nodes;
    size_t n_nodes;
    const struct tl_trie *trie;
    uint8_t class_of[256], member[256]; // of each byte its class; of each class a byte
    size_t n_classes;
    struct text_step {
        uint8_t class, unit; // a class of bytes that continue plain text, and the unit after it
    } text[TL_TEXT_UNITS][256];
    size_t n_text[TL_TEXT_UNITS];
    size_t looks; // steps of the looks ahead since the mask was begun
    uint32_t start;

    struct set *sets;
    size_t n_sets, sets_capacity;
    struct pair *pairs;
    size_t n_pairs, pairs_capacity;
    uint32_t *table; // hash table of set numbers, UNKNOWN where free
    size_t table_size;

    struct pair *work; // pairs still to follow; `seen` holds all that were added to it
    size_t n_work, work_capacity;
    struct pair *found; // the nodes of the state that is being made
    size_t n_found, found_capacity;
    bool found_empty;
    size_t merged; // pairs merged since begin()
    struct seen {
        struct pair pair;
        uint32_t round;
    } * seen;
    size_t seen_size, n_seen;
    uint32_t round;
    struct {
        uint32_t a, b, result;
    } memo[MEMO];

    uint32_t *path;         // states along a walk
    size_t cached;          // bytes of `onward` tables and masks
    uint8_t spread[256][8]; // the bits of a byte, the lowest first
    struct tl_hash_key hash_key;
};

// ---- sets ----

static uint32_t hash_pair(const struct tl_automaton *m, uint64_t hash, uint32_t x, uint32_t y) {
    return (uint32_t)tl_hash_word(&m->hash_key, hash, (uint64_t)x << 32 | y);
}

static int compare_pairs(const void *left, const void *right) {
    const struct pair *a = left, *b = right;
    if (a->at != b->at) return a->at < b->at ? -1 : 1;
    return a->below < b->below ? -1 : a->below > b->below;
}

static int no_memory(struct tl_error *err) {
    return tl_fail(err, TL_ENOMEM, "no memory to match the grammar");
}

static bool grow_table(struct tl_automaton *m) {
    const size_t size = m->table_size == 0 ? 1024 : 2 * m->table_size;
    uint32_t *table = malloc(size * sizeof *table);
    if (table == NULL) return false;
    for (size_t i = 0; i < size; i++) table[i] = UNKNOWN;
    for (size_t i = 0; i < m->n_sets; i++) {
        size_t at = m->sets[i].hash & (size - 1);
        while (table[at] != UNKNOWN) at = (at + 1) & (size - 1);
        table[at] = (uint32_t)i;
    }
    free(m->table);
    m->table = table;
    m->table_size = size;
    return true;
}

/* The number of the set of these sorted pairs. `pairs` does not point into the automaton. */
static int intern(struct tl_automaton *m, const struct pair *pairs, size_t n, bool has_empty,
                  uint32_t *out, struct tl_error *err) {
    uint32_t hash = has_empty ? 7 : 3;
    size_t at;
    struct set *set;
    for (size_t i = 0; i < n; i++) hash = hash_pair(m, hash, pairs[i].at, pairs[i].below);
    if (2 * (m->n_sets + 1) > m->table_size && !grow_table(m)) return no_memory(err);
    for (at = hash & (m->table_size - 1); m->table[at] != UNKNOWN;
         at = (at + 1) & (m->table_size - 1)) {
        const struct set *s = &m->sets[m->table[at]];
        if (s->hash == hash && s->n == n && s->has_empty == has_empty &&
            (n == 0 || memcmp(m->pairs + s->first, pairs, n * sizeof *pairs) == 0)) {
            *out = m->table[at];
            return TL_OK;
        }
    }
    if (m->n_pairs + n > max_pairs || m->n_sets >= max_sets) {
        return tl_fail(err, TL_ENOSUP, "the grammar is too complex: more than %zu states",
                       max_sets);
    }
    if (!tl_reserve((void **)&m->sets, &m->sets_capacity, m->n_sets + 1, sizeof *m->sets) ||
        !tl_reserve((void **)&m->pairs, &m->pairs_capacity, m->n_pairs + n, sizeof *m->pairs)) {
        return no_memory(err);
    }
    set = &m->sets[m->n_sets];
    *set = (struct set){
        .first = (uint32_t)m->n_pairs,
        .n = (uint32_t)n,
        .hash = hash,
        .has_empty = has_empty,
        .popped = UNKNOWN,
    };
    if (n > 0) memcpy(m->pairs + m->n_pairs, pairs, n * sizeof *pairs);
    m->n_pairs += n;
    m->table[at] = *out = (uint32_t)m->n_sets++;
    return TL_OK;
}

/*
 * The union of two sets. Pairs with the same node are merged, recursively, MAX_MERGE levels deep.
 * Deeper than that they stay separate, which is also correct, but larger.
 */
static int unite(struct tl_automaton *m, uint32_t a, uint32_t b, int depth, uint32_t *out,
                 struct tl_error *err) {
    const uint32_t slot = hash_pair(m, 1, TL_MIN(a, b), TL_MAX(a, b)) % MEMO;
    struct pair *both;
    size_t n = 0, i = 0, j = 0, total;
    const bool has_empty = m->sets[a].has_empty || m->sets[b].has_empty;
    int status = TL_OK;
    if (a == b || b == NOTHING) {
        *out = a;
        return TL_OK;
    }
    if (a == NOTHING) {
        *out = b;
        return TL_OK;
    }
    if (a > b) {
        const uint32_t swap = a;
        a = b;
        b = swap;
    }
    if (m->memo[slot].a == a && m->memo[slot].b == b) {
        *out = m->memo[slot].result;
        return TL_OK;
    }
    total = (size_t)m->sets[a].n + m->sets[b].n;
    m->merged += total;
    if (total > MAX_STACKS || m->merged > MAX_WORK) {
        return tl_fail(err, TL_ENOSUP,
                       "the grammar is too ambiguous: more than %d ways to read a text",
                       MAX_STACKS);
    }
    both = malloc(TL_MAX(total, (size_t)1) * sizeof *both);
    if (both == NULL) return no_memory(err);
    while (status == TL_OK && (i < m->sets[a].n || j < m->sets[b].n)) {
        // unite() may move m->pairs: read what is needed first
        const struct pair *p = i < m->sets[a].n ? &m->pairs[m->sets[a].first + i] : NULL;
        const struct pair *q = j < m->sets[b].n ? &m->pairs[m->sets[b].first + j] : NULL;
        const int order = p == NULL ? 1 : q == NULL ? -1 : compare_pairs(p, q);
        if (order == 0) {
            both[n++] = *p;
            i++, j++;
        } else if (p != NULL && q != NULL && p->at == q->at && depth < MAX_MERGE) {
            const struct pair left = *p, right = *q;
            uint32_t below;
            status = unite(m, left.below, right.below, depth + 1, &below, err);
            both[n++] = (struct pair){left.at, below};
            i++, j++;
        } else if (order < 0) {
            both[n++] = *p;
            i++;
        } else {
            both[n++] = *q;
            j++;
        }
    }
    if (status == TL_OK) {
        qsort(both, n, sizeof *both, compare_pairs);
        status = intern(m, both, n, has_empty, out, err);
    }
    free(both);
    if (status == TL_OK) {
        m->memo[slot].a = a;
        m->memo[slot].b = b;
        m->memo[slot].result = *out;
    }
    return status;
}

// ---- following transitions that consume no byte ----

static bool grow_seen(struct tl_automaton *m) {
    const size_t size = m->seen_size == 0 ? 256 : 2 * m->seen_size;
    struct seen *seen = calloc(size, sizeof *seen);
    if (seen == NULL) return false;
    for (size_t i = 0; i < m->seen_size; i++) {
        if (m->seen[i].round != m->round) continue;
        size_t at = hash_pair(m, 5, m->seen[i].pair.at, m->seen[i].pair.below) & (size - 1);
        while (seen[at].round == m->round) at = (at + 1) & (size - 1);
        seen[at] = m->seen[i];
    }
    free(m->seen);
    m->seen = seen;
    m->seen_size = size;
    return true;
}

static void begin(struct tl_automaton *m) {
    m->n_work = m->n_found = m->n_seen = 0;
    m->found_empty = false;
    m->merged = 0;
    if (++m->round == 0) { // the counter wrapped around: clear the old marks
        for (size_t i = 0; i < m->seen_size; i++) m->seen[i].round = 0;
        m->round = 1;
    }
}

/* Adds a pair to follow, unless it was added before. */
static bool add_pair(struct tl_automaton *m, uint32_t at, uint32_t below) {
    size_t slot;
    if (2 * (m->n_seen + 1) > m->seen_size && !grow_seen(m)) return false;
    for (slot = hash_pair(m, 5, at, below) & (m->seen_size - 1); m->seen[slot].round == m->round;
         slot = (slot + 1) & (m->seen_size - 1)) {
        if (m->seen[slot].pair.at == at && m->seen[slot].pair.below == below) return true;
    }
    m->seen[slot] = (struct seen){{at, below}, m->round};
    m->n_seen++;
    if (!tl_reserve((void **)&m->work, &m->work_capacity, m->n_work + 1, sizeof *m->work)) {
        return false;
    }
    m->work[m->n_work++] = (struct pair){at, below};
    return true;
}

/* Adds the return addresses of a set as pairs to follow. */
static bool add_set(struct tl_automaton *m, uint32_t set) {
    if (m->sets[set].has_empty) m->found_empty = true;
    for (uint32_t i = 0; i < m->sets[set].n; i++) {
        const struct pair p = m->pairs[m->sets[set].first + i];
        if (!add_pair(m, p.at, p.below)) return false;
    }
    return true;
}

/* Merges found pairs with the same node, and interns the set of what is left. */
static int finish(struct tl_automaton *m, uint32_t *out, struct tl_error *err) {
    size_t n = 0;
    int status;
    if (m->n_found > 1) qsort(m->found, m->n_found, sizeof *m->found, compare_pairs);
    for (size_t i = 0; i < m->n_found; i++) {
        if (n > 0 && m->found[n - 1].at == m->found[i].at) {
            status =
                unite(m, m->found[n - 1].below, m->found[i].below, 0, &m->found[n - 1].below, err);
            if (status < 0) return status;
        } else {
            m->found[n++] = m->found[i];
        }
    }
    return intern(m, m->found, n, m->found_empty, out, err);
}

/* Follows all pairs to the next byte, or to the end of the text; *out is the state. */
static int follow(struct tl_automaton *m, uint32_t *out, struct tl_error *err) {
    while (m->n_work > 0) {
        const struct pair p = m->work[--m->n_work];
        const struct tl_automaton_node *node = &m->nodes[p.at];
        bool ok = true;
        if (node->op == TL_AUTOMATON_BYTE || node->op == TL_AUTOMATON_TOKEN) {
            if (m->n_found >= MAX_STACKS) {
                return tl_fail(err, TL_ENOSUP,
                               "the grammar is too ambiguous: more than %d ways to read a text",
                               MAX_STACKS);
            }
            ok = tl_reserve((void **)&m->found, &m->found_capacity, m->n_found + 1,
                            sizeof *m->found);
            if (ok) m->found[m->n_found++] = p;
        } else if (node->op == TL_AUTOMATON_SPLIT) {
            ok = add_pair(m, (uint32_t)node->a, p.below) && add_pair(m, (uint32_t)node->b, p.below);
        } else if (node->op == TL_AUTOMATON_CALL) {
            uint32_t below = p.below;
            if (node->b >= 0) {
                const struct pair back = {(uint32_t)node->b, p.below};
                const int status = intern(m, &back, 1, false, &below, err);
                if (status < 0) return status;
            }
            ok = add_pair(m, (uint32_t)node->a, below);
        } else {
            ok = add_set(m, p.below);
        }
        if (!ok) return no_memory(err);
    }
    return finish(m, out, err);
}

// ---- states ----

static void free_mask(struct mask *mask) {
    if (mask == NULL) return;
    tl_free(mask->out);
    free(mask);
}

/* Frees what can be computed again. */
static void drop_caches(struct tl_automaton *m) {
    for (size_t i = 0; i < m->n_sets; i++) {
        struct set *s = &m->sets[i];
        free(s->onward);
        free(s->ahead);
        s->onward = NULL;
        s->ahead = NULL;
        for (int kind = 0; kind <= TL_TEXT_KINDS; kind++) {
            free_mask(s->local[kind]);
            s->local[kind] = NULL;
        }
    }
    m->cached = 0;
}

/* Whether a node matches a byte. */
static bool fits(const struct tl_automaton *m, uint32_t node, uint8_t byte) {
    const struct tl_automaton_node *p = &m->nodes[node];
    return p->op == TL_AUTOMATON_BYTE && p->low <= byte && byte <= p->high;
}

static int compute_next(struct tl_automaton *m, uint32_t state, uint8_t byte, uint32_t *out,
                        struct tl_error *err) {
    begin(m);
    for (uint32_t i = 0; i < m->sets[state].n; i++) {
        const struct pair p = m->pairs[m->sets[state].first + i];
        if (fits(m, p.at, byte) && !add_pair(m, (uint32_t)m->nodes[p.at].a, p.below)) {
            return no_memory(err);
        }
    }
    return follow(m, out, err);
}

/* Whether the same nodes of a state match two bytes. */
static bool same_next(const struct tl_automaton *m, uint32_t state, uint8_t a, uint8_t b) {
    const struct pair *pairs = m->pairs + m->sets[state].first;
    for (uint32_t i = 0; i < m->sets[state].n; i++) {
        if (fits(m, pairs[i].at, a) != fits(m, pairs[i].at, b)) return false;
    }
    return true;
}

static int next(struct tl_automaton *m, uint32_t state, uint8_t byte, uint32_t *out,
                struct tl_error *err) {
    const uint8_t class = m->class_of[byte];
    uint32_t *onward = m->sets[state].onward;
    int status;
    if (onward == NULL) {
        onward = malloc(m->n_classes * sizeof *onward);
        if (onward == NULL) return no_memory(err);
        for (size_t i = 0; i < m->n_classes; i++) onward[i] = UNKNOWN;
        m->sets[state].onward = onward;
        m->cached += m->n_classes * sizeof *onward;
    }
    if (onward[class] == UNKNOWN) {
        status = compute_next(m, state, byte, out, err);
        if (status < 0) return status;
        onward[class] = *out;
        if (m->sets[state].n > FEW_NODES) return TL_OK;
        for (size_t i = 0; i < m->n_classes; i++) { // a set of characters is many classes
            if (onward[i] == UNKNOWN && same_next(m, state, byte, m->member[i])) onward[i] = *out;
        }
    }
    *out = onward[class];
    return TL_OK;
}

/* The state after the rule above the set `below` has returned to it. */
static int popped(struct tl_automaton *m, uint32_t below, uint32_t *out, struct tl_error *err) {
    int status;
    if (m->sets[below].popped != UNKNOWN) {
        *out = m->sets[below].popped;
        return TL_OK;
    }
    begin(m);
    if (!add_set(m, below)) return no_memory(err);
    status = follow(m, out, err);
    if (status == TL_OK) m->sets[below].popped = *out;
    return status;
}

static int check_state(const struct tl_automaton *m, uint32_t state, struct tl_error *err) {
    if (state < m->n_sets) return TL_OK;
    return tl_fail(err, TL_EARG, "state is %u; expected a number below %zu", (unsigned)state,
                   m->n_sets);
}

uint32_t tl_automaton_start(const struct tl_automaton *m) {
    return m->start;
}

int tl_automaton_advance(struct tl_automaton *m, uint32_t state, const uint8_t *bytes, size_t n,
                         uint32_t *out, struct tl_error *err) {
    int status = check_state(m, state, err);
    if (m->cached > max_cache) drop_caches(m);
    for (size_t i = 0; i < n && status == TL_OK && state != NOTHING; i++) {
        status = next(m, state, bytes[i], &state, err);
    }
    *out = state;
    return status;
}

int tl_automaton_accept(struct tl_automaton *m, uint32_t state, uint32_t token,
                        const uint8_t *bytes, size_t n, uint32_t *out, struct tl_error *err) {
    uint32_t spelled = NOTHING, named;
    int status = check_state(m, state, err);
    if (status == TL_OK && n > 0) {
        status = tl_automaton_advance(m, state, bytes, n, &spelled, err);
    }
    if (status < 0) return status;
    begin(m);
    for (uint32_t i = 0; i < m->sets[state].n; i++) {
        const struct pair p = m->pairs[m->sets[state].first + i];
        const struct tl_automaton_node *node = &m->nodes[p.at];
        if (node->op != TL_AUTOMATON_TOKEN || (node->low == 1) == ((uint32_t)node->b == token)) {
            continue;
        }
        if (!add_pair(m, (uint32_t)node->a, p.below)) return no_memory(err);
    }
    status = follow(m, &named, err);
    return status < 0 ? status : unite(m, spelled, named, 0, out, err);
}

int tl_automaton_look(struct tl_automaton *m, uint32_t state, struct tl_automaton_facts *out,
                      struct tl_error *err) {
    const int status = check_state(m, state, err);
    if (status < 0) return status;
    *out = (struct tl_automaton_facts){
        .complete = m->sets[state].has_empty,
        .node = m->sets[state].n > 0 ? (int32_t)m->pairs[m->sets[state].first].at : -1,
    };
    for (uint32_t i = 0; i < m->sets[state].n; i++) {
        const struct tl_automaton_node *node = &m->nodes[m->pairs[m->sets[state].first + i].at];
        if (node->op != TL_AUTOMATON_BYTE) continue;
        for (unsigned b = node->low; b <= node->high; b++) out->bytes[b / 32] |= 1u << b % 32;
    }
    return TL_OK;
}

// ---- masks ----

static void set_bits(const struct tl_trie *t, uint32_t node, uint64_t *bits) {
    for (uint32_t i = 0; i < t->n_ids[node]; i++) {
        const uint32_t id = t->ids[t->first_id[node] + i];
        bits[id / 64] |= (uint64_t)1 << id % 64;
    }
}

static void set_subtree_bits(const struct tl_trie *t, uint32_t node, uint64_t *bits) {
    uint32_t first, last;
    tl_trie_subtree_ids(t, node, &first, &last);
    for (uint32_t i = first; i < last; i++) bits[t->ids[i] / 64] |= (uint64_t)1 << t->ids[i] % 64;
}

/*
 * Whether all plain texts of n bytes may follow a state. Says no where the answer is not known
 * within MAX_LOOKS steps.
 */
static bool takes_text(struct tl_automaton *m, uint32_t state, uint8_t unit, uint8_t n) {
    struct tl_error ignored;
    struct ahead *ahead = m->sets[state].ahead;
    if (n == 0) return true;
    if (ahead == NULL) {
        ahead = malloc(sizeof *ahead);
        if (ahead == NULL) return false;
        memset(ahead->good, 0, sizeof ahead->good);
        memset(ahead->bad, UINT8_MAX, sizeof ahead->bad);
        m->sets[state].ahead = ahead;
        m->cached += sizeof *ahead;
    }
    if (n <= ahead->good[unit]) return true;
    if (n >= ahead->bad[unit]) return false;
    for (size_t i = 0; i < m->n_text[unit]; i++) {
        const struct text_step *step = &m->text[unit][i];
        uint32_t after;
        if (++m->looks > MAX_LOOKS) return false;
        if (next(m, state, m->member[step->class], &after, &ignored) < 0 || after == NOTHING ||
            !takes_text(m, after, step->unit, (uint8_t)(n - 1))) {
            if (m->looks <= MAX_LOOKS) ahead->bad[unit] = n;
            return false;
        }
    }
    ahead->good[unit] = n;
    return true;
}

/*
 * Walks over the subtree of node `from`, starting in `state`. Sets the bits of the pieces that
 * still match. If `mask` is not NULL, adds to it the nodes where a stack became empty.
 */
static int walk(struct tl_automaton *m, const struct tl_trie *t, uint32_t from, uint32_t state,
                uint64_t *bits, struct mask *mask, struct tl_error *err) {
    const uint32_t top = t->depth[from];
    uint32_t *path = m->path;
    size_t capacity = mask != NULL ? mask->n_out : 0;
    uint32_t node = from + 1;
    path[top] = state;
    while (node < t->end[from]) {
        const uint32_t depth = t->depth[node], before = path[depth - 1];
        const uint32_t *onward = m->sets[before].onward;
        uint32_t after = onward == NULL ? UNKNOWN : onward[m->class_of[t->byte[node]]];
        if (after == UNKNOWN) {
            const int status = next(m, before, t->byte[node], &after, err);
            if (status < 0) return status;
        }
        if (after == NOTHING) {
            node = t->end[node];
            continue;
        }
        if (mask != NULL && m->sets[after].has_empty) {
            if (!tl_reserve((void **)&mask->out, &capacity, (size_t)mask->n_out + 1,
                            sizeof *mask->out)) {
                return no_memory(err);
            }
            mask->out[mask->n_out++] = node;
        }
        if (t->height[node] <= TL_TEXT_SHORT && t->end[node] - node >= MIN_SUBTREE &&
            takes_text(m, after, t->unit[node], t->height[node])) {
            set_subtree_bits(t, node, bits);
            node = t->end[node];
            continue;
        }
        set_bits(t, node, bits);
        path[depth] = after;
        node = m->sets[after].n == 0 ? t->end[node] : node + 1;
    }
    return TL_OK;
}

/* Sets the bits of the tokens that the TOKEN nodes of a state name. */
static void set_tokens(const struct tl_automaton *m, uint32_t state, uint64_t *bits) {
    const size_t n = m->trie->n_pieces;
    for (uint32_t i = 0; i < m->sets[state].n; i++) {
        const struct tl_automaton_node *node = &m->nodes[m->pairs[m->sets[state].first + i].at];
        const size_t token = (size_t)node->b;
        if (node->op != TL_AUTOMATON_TOKEN) continue;
        if (node->low == 0) {
            if (token < n) bits[token / 64] |= (uint64_t)1 << token % 64;
            continue;
        }
        for (size_t id = 0; id < n; id++) {
            if (id != token) bits[id / 64] |= (uint64_t)1 << id % 64;
        }
    }
}

/* The first kind of short texts of which a state takes all; NULL if there is none. */
static const struct tl_short_text *taken_text(struct tl_automaton *m, uint32_t state) {
    for (int kind = 0; kind < TL_TEXT_KINDS; kind++) {
        const struct tl_short_text *text = &m->trie->texts[kind];
        if (takes_text(m, state, text->unit, TL_TEXT_SHORT)) return text;
    }
    return NULL;
}

/*
 * The mask of a state whose stacks end below their first node: computed once. `without`, if not
 * NULL, are short texts that are left out.
 */
static int local_mask(struct tl_automaton *m, uint32_t state, const struct tl_short_text *without,
                      const struct mask **out, struct tl_error *err) {
    const size_t words = (m->trie->n_pieces + 63) / 64;
    const size_t place = without == NULL ? 0 : 1 + (size_t)(without - m->trie->texts);
    const struct tl_short_text *text = without;
    struct mask *mask = m->sets[state].local[place];
    int status;
    if (mask == NULL) {
        mask = calloc(1, sizeof *mask + words * sizeof *mask->bits);
        if (mask == NULL) return no_memory(err);
        if (without == NULL) { // most pieces are plain text, and a JSON string takes all of it
            text = taken_text(m, state);
            if (text != NULL) memcpy(mask->bits, text->bits, words * sizeof *mask->bits);
        }
        mask->trie = text == NULL ? m->trie : text->rest;
        set_tokens(m, state, mask->bits);
        status = walk(m, mask->trie, 0, state, mask->bits, mask, err);
        if (status < 0) {
            free_mask(mask);
            return status;
        }
        m->sets[state].local[place] = mask;
        m->cached += sizeof *mask + words * sizeof *mask->bits + mask->n_out * sizeof *mask->out;
    }
    *out = mask;
    return TL_OK;
}

/*
 * Adds the mask of the stacks of a state that have the set `below` below their first node.
 *
 * The walk from these nodes alone does not depend on what is below them, so all callers of a rule
 * share it. Only where the rule ends in the middle of a piece, the rest of the piece is walked with
 * what is below. The short texts `without` are left out.
 */
static int add_group(struct tl_automaton *m, uint32_t state, uint32_t below,
                     const struct tl_short_text *without, uint64_t *bits, struct tl_error *err) {
    const size_t words = (m->trie->n_pieces + 63) / 64;
    const struct mask *mask = NULL;
    struct pair *group = malloc(m->sets[state].n * sizeof *group);
    uint32_t local, after;
    size_t n = 0;
    int status;
    if (group == NULL) return no_memory(err);
    for (uint32_t i = 0; i < m->sets[state].n; i++) {
        const struct pair p = m->pairs[m->sets[state].first + i];
        if (p.below == below) group[n++] = (struct pair){p.at, EMPTY};
    }
    status = intern(m, group, n, false, &local, err);
    free(group);
    if (status == TL_OK) status = local_mask(m, local, without, &mask, err);
    if (status < 0) return status;
    for (size_t w = 0; w < words; w++) bits[w] |= mask->bits[w];
    if (below == EMPTY || mask->n_out == 0) return TL_OK;
    status = popped(m, below, &after, err);
    for (uint32_t i = 0; i < mask->n_out && status == TL_OK; i++) {
        if (m->sets[after].n > 0) {
            status = walk(m, mask->trie, mask->out[i], after, bits, NULL, err);
        }
    }
    return status;
}

/* One byte of the mask per bit. */
static void spread_bits(const struct tl_automaton *m, const uint64_t *bits, uint8_t *mask,
                        size_t n) {
    size_t i = 0;
    for (; i + 8 <= n; i += 8) memcpy(mask + i, m->spread[bits[i / 64] >> i % 64 & 0xFF], 8);
    for (; i < n; i++) mask[i] = bits[i / 64] >> i % 64 & 1;
}

int tl_automaton_mask(struct tl_automaton *m, uint32_t state, uint8_t *mask, size_t n,
                      struct tl_error *err) {
    int status = check_state(m, state, err);
    const struct tl_short_text *text = NULL;
    uint64_t *bits;
    if (status < 0) return status;
    if (m->trie == NULL || n != m->trie->n_pieces) {
        return tl_fail(err, TL_EARG, "the mask has %zu entries; expected %zu, as many as pieces", n,
                       m->trie == NULL ? (size_t)0 : m->trie->n_pieces);
    }
    if (m->cached > max_cache) drop_caches(m);
    m->looks = 0;
    bits = calloc((n + 63) / 64 + 1, sizeof *bits);
    if (bits == NULL) return no_memory(err);
    // all groups together may take all plain text, and none alone: as where some characters of a
    // string are a rule of their own
    for (uint32_t i = 1; i < m->sets[state].n; i++) {
        const struct pair *pairs = m->pairs + m->sets[state].first;
        if (pairs[i].below == pairs[0].below) continue;
        text = taken_text(m, state);
        if (text != NULL) memcpy(bits, text->bits, (n + 63) / 64 * sizeof *bits);
        break;
    }
    for (uint32_t i = 0; i < m->sets[state].n && status == TL_OK; i++) {
        const struct pair *pairs = m->pairs + m->sets[state].first;
        bool new = true;
        for (uint32_t j = 0; j < i && new; j++) new = pairs[j].below != pairs[i].below;
        if (new) status = add_group(m, state, pairs[i].below, text, bits, err);
    }
    if (status == TL_OK) spread_bits(m, bits, mask, n);
    free(bits);
    return status;
}

// ---- making and freeing ----

static int check_nodes(const struct tl_automaton_node *nodes, size_t n, size_t root,
                       struct tl_error *err) {
    if (n == 0 || n > INT32_MAX || root >= n) {
        return tl_fail(err, TL_EARG, "root is %zu; expected a node below %zu", root, n);
    }
    for (size_t i = 0; i < n; i++) {
        const struct tl_automaton_node *p = &nodes[i];
        const bool a_ok = p->a >= 0 && (size_t)p->a < n, b_ok = p->b >= 0 && (size_t)p->b < n;
        const bool ok = p->op == TL_AUTOMATON_END || (p->op == TL_AUTOMATON_BYTE && a_ok) ||
                        (p->op == TL_AUTOMATON_SPLIT && a_ok && b_ok) ||
                        (p->op == TL_AUTOMATON_CALL && a_ok && (b_ok || p->b == -1)) ||
                        (p->op == TL_AUTOMATON_TOKEN && a_ok && p->b >= 0);
        if (!ok) {
            return tl_fail(err, TL_EARG, "node %zu is (%d, a %d, b %d); expected nodes below %zu",
                           i, p->op, (int)p->a, (int)p->b, n);
        }
    }
    return TL_OK;
}

/* Two bytes are in one class if every BYTE node accepts both or neither. */
static void find_classes(struct tl_automaton *m) {
    bool starts[257] = {false};
    starts[0] = true;
    for (size_t i = 0; i < m->n_nodes; i++) {
        if (m->nodes[i].op != TL_AUTOMATON_BYTE) continue;
        starts[m->nodes[i].low] = true;
        starts[m->nodes[i].high + 1] = true;
    }
    for (int b = 0; b < 256; b++) {
        if (starts[b]) m->member[m->n_classes++] = (uint8_t)b;
        m->class_of[b] = (uint8_t)(m->n_classes - 1);
    }
}

/* The steps of plain text, each class of bytes and unit once. */
static void find_text_steps(struct tl_automaton *m) {
    for (int unit = 0; unit < TL_TEXT_UNITS; unit++) {
        struct text_step last = {0, TL_TEXT_NONE};
        for (int b = 0; b < 256; b++) {
            const struct text_step step = {m->class_of[b], tl_text_next((uint8_t)unit, (uint8_t)b)};
            if (step.unit == TL_TEXT_NONE) continue;
            if (last.unit == step.unit && last.class == step.class) continue;
            m->text[unit][m->n_text[unit]++] = last = step;
        }
    }
}

int tl_automaton_new(const struct tl_automaton_node *nodes, size_t n, size_t root,
                     const struct tl_trie *trie, struct tl_automaton **out, struct tl_error *err) {
    struct tl_automaton *m;
    uint32_t set;
    int status = check_nodes(nodes, n, root, err);
    if (status < 0) return status;
    m = calloc(1, sizeof *m);
    if (m == NULL) return no_memory(err);
    m->hash_key = tl_hash_new_key();
    m->n_nodes = n;
    m->trie = trie;
    m->nodes = malloc(n * sizeof *nodes);
    m->path = malloc((trie == NULL ? 1 : trie->longest + 1) * sizeof *m->path);
    if (m->nodes == NULL || m->path == NULL) {
        status = no_memory(err);
        goto failed;
    }
    memcpy(m->nodes, nodes, n * sizeof *nodes);
    find_classes(m);
    find_text_steps(m);
    for (int i = 0; i < 256 * 8; i++) m->spread[i / 8][i % 8] = (uint8_t)(i / 8 >> i % 8 & 1);
    status = intern(m, NULL, 0, false, &set, err);                     // NOTHING
    if (status == TL_OK) status = intern(m, NULL, 0, true, &set, err); // EMPTY
    if (status == TL_OK) {
        begin(m);
        status = add_pair(m, (uint32_t)root, EMPTY) ? follow(m, &m->start, err) : no_memory(err);
    }
    if (status < 0) goto failed;
    *out = m;
    return TL_OK;
failed:
    tl_automaton_free(m);
    return status;
}

void tl_automaton_free(struct tl_automaton *m) {
    if (m == NULL) return;
    drop_caches(m);
    free(m->nodes);
    free(m->path);
    tl_free(m->sets);
    tl_free(m->pairs);
    tl_free(m->work);
    tl_free(m->found);
    free(m->table);
    free(m->seen);
    free(m);
}

size_t tl_automaton_nbytes(const struct tl_automaton *m) {
    return m->cached + m->sets_capacity * sizeof *m->sets + m->pairs_capacity * sizeof *m->pairs +
           m->table_size * sizeof *m->table + m->n_nodes * sizeof *m->nodes;
}

size_t tl_automaton_n_states(const struct tl_automaton *m) {
    return m->n_sets;
}
