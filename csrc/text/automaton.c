/* automaton.c - matching a grammar. */
#include "base/os.h"
#include "text/automaton_state.h"

#include <stdlib.h>
#include <string.h>

enum {
    MAX_STACKS = 8192,  // stacks of one state; more means that the grammar is too ambiguous
    MAX_MERGE = 1000,   // how deep stacks are merged
    MAX_WORK = 1 << 20, // pairs merged for one byte
};

static const size_t max_sets = (size_t)1 << 22;
static const size_t max_pairs = (size_t)1 << 24; // of all sets together
static const size_t max_cache = (size_t)96 << 20;

// ---- sets ----

static uint32_t hash_pair(const struct tl_automaton *m, uint64_t hash, uint32_t x, uint32_t y) {
    return (uint32_t)tl_hash_word(&m->hash_key, hash, (uint64_t)x << 32 | y);
}

static int compare_pairs(const void *left, const void *right) {
    const struct pair *a = left, *b = right;
    if (a->at != b->at) return a->at < b->at ? -1 : 1;
    return a->below < b->below ? -1 : a->below > b->below;
}

int tl_automaton_no_memory(struct tl_error *err) {
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

int tl_automaton_intern(struct tl_automaton *m, const struct pair *pairs, size_t n, bool has_empty,
                        uint32_t *out, struct tl_error *err) {
    uint32_t hash = has_empty ? 7 : 3;
    size_t at;
    struct set *set;
    for (size_t i = 0; i < n; i++) hash = hash_pair(m, hash, pairs[i].at, pairs[i].below);
    if (2 * (m->n_sets + 1) > m->table_size && !grow_table(m)) return tl_automaton_no_memory(err);
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
        return tl_automaton_no_memory(err);
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
    if (both == NULL) return tl_automaton_no_memory(err);
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
        status = tl_automaton_intern(m, both, n, has_empty, out, err);
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
    return tl_automaton_intern(m, m->found, n, m->found_empty, out, err);
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
                const int status = tl_automaton_intern(m, &back, 1, false, &below, err);
                if (status < 0) return status;
            }
            ok = add_pair(m, (uint32_t)node->a, below);
        } else {
            ok = add_set(m, p.below);
        }
        if (!ok) return tl_automaton_no_memory(err);
    }
    return finish(m, out, err);
}

// ---- states ----

void tl_automaton_free_mask(struct mask *mask) {
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
        for (int tree = 0; tree < TREES; tree++) {
            tl_automaton_free_mask(s->local[tree]);
            s->local[tree] = NULL;
        }
    }
    m->cached = 0;
}

void tl_automaton_trim(struct tl_automaton *m) {
    if (m->cached > max_cache) drop_caches(m);
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
            return tl_automaton_no_memory(err);
        }
    }
    return follow(m, out, err);
}

/* Finds the groups of classes that the same nodes of a state match. */
static void find_groups(const struct tl_automaton *m, uint32_t state, uint8_t *group) {
    const struct pair *pairs = m->pairs + m->sets[state].first;
    uint32_t sizes[256] = {(uint32_t)m->n_classes}, split[256] = {0}; // split by which node
    uint8_t part[256], unused[256], n_unused = 0;
    memset(group, 0, m->n_classes);
    for (int id = 255; id > 0; id--) unused[n_unused++] = (uint8_t)id;
    for (uint32_t i = 0; i < m->sets[state].n; i++) {
        const struct tl_automaton_node *node = &m->nodes[pairs[i].at];
        if (node->op != TL_AUTOMATON_BYTE) continue;
        for (int c = m->class_of[node->low]; c <= m->class_of[node->high]; c++) {
            const uint8_t old = group[c];
            if (split[old] != i + 1) {
                if (sizes[old] == 1) continue; // else fewer than 256 groups have a class
                split[old] = i + 1;
                part[old] = unused[--n_unused];
            }
            group[c] = part[old];
            sizes[part[old]]++;
            if (--sizes[old] == 0) unused[n_unused++] = old;
        }
    }
}

int tl_automaton_find_next(struct tl_automaton *m, uint32_t state, uint8_t byte, uint32_t *out,
                           struct tl_error *err) {
    const uint8_t class = m->class_of[byte];
    uint32_t *onward = m->sets[state].onward;
    if (onward == NULL) {
        const size_t size = m->n_classes * (sizeof *onward + 1);
        onward = malloc(size);
        if (onward == NULL) return tl_automaton_no_memory(err);
        for (size_t i = 0; i < m->n_classes; i++) onward[i] = UNKNOWN;
        find_groups(m, state, (uint8_t *)(onward + m->n_classes));
        m->sets[state].onward = onward;
        m->cached += size;
    }
    if (onward[class] == UNKNOWN) {
        const uint8_t *group = (const uint8_t *)(onward + m->n_classes);
        const int status = compute_next(m, state, byte, out, err);
        if (status < 0) return status;
        for (size_t i = 0; i < m->n_classes; i++) {
            if (group[i] == group[class]) onward[i] = *out;
        }
    }
    *out = onward[class];
    return TL_OK;
}

int tl_automaton_popped(struct tl_automaton *m, uint32_t below, uint32_t *out,
                        struct tl_error *err) {
    int status;
    if (m->sets[below].popped != UNKNOWN) {
        *out = m->sets[below].popped;
        return TL_OK;
    }
    begin(m);
    if (!add_set(m, below)) return tl_automaton_no_memory(err);
    status = follow(m, out, err);
    if (status == TL_OK) m->sets[below].popped = *out;
    return status;
}

int tl_automaton_check_state(const struct tl_automaton *m, uint32_t state, struct tl_error *err) {
    if (state < m->n_sets) return TL_OK;
    return tl_fail(err, TL_EARG, "state is %u; expected a number below %zu", (unsigned)state,
                   m->n_sets);
}

uint32_t tl_automaton_start(const struct tl_automaton *m) {
    return m->start;
}

int tl_automaton_advance(struct tl_automaton *m, uint32_t state, const uint8_t *bytes, size_t n,
                         uint32_t *out, struct tl_error *err) {
    int status = tl_automaton_check_state(m, state, err);
    tl_automaton_trim(m);
    for (size_t i = 0; i < n && status == TL_OK && state != NOTHING; i++) {
        status = tl_automaton_next(m, state, bytes[i], &state, err);
    }
    *out = state;
    return status;
}

int tl_automaton_accept(struct tl_automaton *m, uint32_t state, uint32_t token,
                        const uint8_t *bytes, size_t n, uint32_t *out, struct tl_error *err) {
    uint32_t spelled = NOTHING, named;
    int status = tl_automaton_check_state(m, state, err);
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
        if (!add_pair(m, (uint32_t)node->a, p.below)) return tl_automaton_no_memory(err);
    }
    status = follow(m, &named, err);
    return status < 0 ? status : unite(m, spelled, named, 0, out, err);
}

int tl_automaton_look(struct tl_automaton *m, uint32_t state, struct tl_automaton_facts *out,
                      struct tl_error *err) {
    const int status = tl_automaton_check_state(m, state, err);
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
    if (m == NULL) return tl_automaton_no_memory(err);
    m->hash_key = tl_hash_new_key();
    m->n_nodes = n;
    m->trie = trie;
    m->nodes = malloc(n * sizeof *nodes);
    m->path = malloc((trie == NULL ? 1 : trie->longest + 1) * sizeof *m->path);
    if (m->nodes == NULL || m->path == NULL) {
        status = tl_automaton_no_memory(err);
        goto failed;
    }
    memcpy(m->nodes, nodes, n * sizeof *nodes);
    find_classes(m);
    find_text_steps(m);
    for (int i = 0; i < 256 * 8; i++) m->spread[i / 8][i % 8] = (uint8_t)(i / 8 >> i % 8 & 1);
    status = tl_automaton_intern(m, NULL, 0, false, &set, err);                     // NOTHING
    if (status == TL_OK) status = tl_automaton_intern(m, NULL, 0, true, &set, err); // EMPTY
    if (status == TL_OK) {
        begin(m);
        status = add_pair(m, (uint32_t)root, EMPTY) ? follow(m, &m->start, err)
                                                    : tl_automaton_no_memory(err);
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
