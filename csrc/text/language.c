/* language.c - all conditions on a text at once, as one automaton. */
#include "base/os.h"
#include "text/language_state.h"

#include <stdlib.h>

static const size_t max_row_items = (size_t)1 << 26; // of all rows of the conditions
static const size_t max_members = (size_t)1 << 26;   // of all states of the conditions

// ---- the states of one condition ----

/* The positions that read, or end the text, and are reached from some positions without reading. */
static size_t close_over(struct tl_language *l, const uint32_t *starts, size_t n) {
    size_t n_waiting = 0, n_found = 0;
    l->round++;
    for (size_t i = 0; i < n; i++) {
        if (l->marks[starts[i]] == l->round) continue;
        l->marks[starts[i]] = l->round;
        l->waiting[n_waiting++] = starts[i];
    }
    while (n_waiting > 0) {
        const uint32_t at = l->waiting[--n_waiting];
        const struct position *p = &l->positions[at];
        if (at == FINAL || p->set != LIST) {
            l->found[n_found++] = at;
            continue;
        }
        for (uint32_t i = 0; i < p->n; i++) {
            const uint32_t to = l->links[p->after + i];
            if (l->marks[to] == l->round) continue;
            l->marks[to] = l->round;
            l->waiting[n_waiting++] = to;
        }
    }
    if (n_found > 1) qsort(l->found, n_found, sizeof *l->found, tl_compare_u32);
    return n_found;
}

/* *out is the state of n positions in l->found. */
static int find_subset(struct tl_language *l, struct subsets *s, size_t n, uint32_t *out,
                       struct tl_error *err) {
    const uint32_t hash = n == 0 ? 0 : (uint32_t)tl_hash_bytes(&l->key, l->found, 4 * n);
    size_t at;
    if (2 * (s->n + 1) > s->table_size) {
        const size_t size = s->table_size == 0 ? 64 : 2 * s->table_size;
        uint32_t *table = malloc(size * sizeof *table);
        if (table == NULL) return tl_language_no_memory(err);
        memset(table, 0xFF, size * sizeof *table);
        for (size_t i = 0; i < s->n; i++) {
            at = s->sets[i].hash & (size - 1);
            while (table[at] != NONE) at = (at + 1) & (size - 1);
            table[at] = (uint32_t)i;
        }
        free(s->table);
        s->table = table;
        s->table_size = size;
    }
    for (at = hash & (s->table_size - 1); s->table[at] != NONE;
         at = (at + 1) & (s->table_size - 1)) {
        const struct subset *old = &s->sets[s->table[at]];
        if (old->hash == hash && old->n == n &&
            (n == 0 || memcmp(s->members + old->first, l->found, 4 * n) == 0)) {
            *out = s->table[at];
            return TL_OK;
        }
    }
    if (s->n_members + n > max_members) {
        return tl_fail(err, TL_ENOSUP, "the conditions on a text need too much memory");
    }
    if (!RESERVE(s->sets, s->capacity, s->n + 1) ||
        !RESERVE(s->members, s->members_capacity, s->n_members + n + 1)) {
        return tl_language_no_memory(err);
    }
    if (n > 0) memcpy(s->members + s->n_members, l->found, 4 * n);
    s->sets[s->n] = (struct subset){(uint32_t)s->n_members, (uint32_t)n, hash};
    s->n_members += n;
    s->table[at] = *out = (uint32_t)s->n++;
    return TL_OK;
}

/* Whether the same positions of a state read two classes. */
static bool same_moves(const struct tl_language *l, const uint32_t *members, uint32_t n, size_t a,
                       size_t b) {
    const uint32_t *in_a = tl_rows_at(&l->classes, a), *in_b = tl_rows_at(&l->classes, b);
    for (uint32_t i = 0; i < n; i++) {
        const uint32_t set = l->positions[members[i]].set;
        if (members[i] != FINAL && tl_bit(in_a, set) != tl_bit(in_b, set)) return false;
    }
    return true;
}

static int follow_matches(struct tl_language *l, struct part *part, uint32_t state, uint32_t *row,
                          struct tl_error *err) {
    const size_t n_classes = l->classes.n;
    const uint32_t n = part->states.sets[state].n;
    uint64_t *hashes = malloc((n_classes + 1) * sizeof *hashes);
    uint32_t *afters = malloc(((size_t)n + 1) * sizeof *afters), *distinct = NULL;
    size_t n_distinct = 0;
    int status = TL_OK;
    distinct = malloc((n_classes + 1) * sizeof *distinct);
    if (hashes == NULL || afters == NULL || distinct == NULL) {
        status = tl_language_no_memory(err);
        goto done;
    }
    for (uint32_t c = 0; c < n_classes && status == TL_OK; c++) {
        // find_subset() moves the members
        const uint32_t *members = part->states.members + part->states.sets[state].first;
        const uint32_t *in = tl_rows_at(&l->classes, c);
        size_t n_afters = 0, same = 0;
        hashes[c] = 0;
        for (uint32_t i = 0; i < n; i++) {
            const struct position *p = &l->positions[members[i]];
            if (members[i] == FINAL || !tl_bit(in, p->set)) continue;
            afters[n_afters++] = p->after;
            hashes[c] = tl_hash_word(&l->key, hashes[c], i);
        }
        while (same < n_distinct && (hashes[distinct[same]] != hashes[c] ||
                                     !same_moves(l, members, n, distinct[same], c))) {
            same++;
        }
        if (same < n_distinct) {
            row[c] = row[distinct[same]];
            continue;
        }
        distinct[n_distinct++] = c;
        if (n_afters == 0 && part->of.positive) {
            row[c] = DEAD;
        } else {
            status = find_subset(l, &part->states, close_over(l, afters, n_afters), &row[c], err);
        }
    }
done:
    free(hashes);
    free(afters);
    free(distinct);
    return status;
}

/*
 * The state of a multiple is the remainder (-1: never a multiple) and the digits after the point
 * (-1: before it).
 */
static uint32_t multiple_state(const struct tl_condition *of, int64_t remainder, int64_t after) {
    return (uint32_t)((remainder + 1) * (of->places + 2) + after + 1);
}

static void follow_multiple(const struct tl_language *l, const struct part *part, uint32_t state,
                            uint32_t *row) {
    const struct tl_condition *of = &part->of;
    const int64_t remainder = (int64_t)(state / (of->places + 2)) - 1;
    const int64_t after = (int64_t)(state % (of->places + 2)) - 1;
    for (size_t c = 0; c < l->classes.n; c++) row[c] = DEAD;
    for (uint32_t digit = 0; digit < 10; digit++) {
        uint32_t *to = &row[tl_language_class_of(l, '0' + digit)];
        *to = state;
        if (remainder >= 0 && after < (int64_t)of->places) {
            *to = multiple_state(of, (remainder * 10 + digit) % of->modulus, after + (after >= 0));
        } else if (digit != 0) {
            *to = multiple_state(of, -1, after);
        }
    }
    if (after < 0) {
        row[tl_language_class_of(l, '.')] = multiple_state(of, remainder, 0);
        row[tl_language_class_of(l, '-')] = state;
    }
}

/* *out is the states after each class, for a condition that is not about the length. */
static int follow(struct tl_language *l, struct part *part, uint32_t state, const uint32_t **out,
                  struct tl_error *err) {
    int status = TL_OK;
    uint32_t *row;
    if (state >= part->n_onward) {
        const size_t n = TL_MAX((size_t)state + 1, 2 * part->n_onward);
        if (!RESERVE(part->onward, part->onward_capacity, n)) return tl_language_no_memory(err);
        for (size_t i = part->n_onward; i < n; i++) part->onward[i] = NULL;
        part->n_onward = n;
    }
    if (part->onward[state] == NULL) {
        l->row_items += l->classes.n;
        if (l->row_items > max_row_items) {
            return tl_fail(err, TL_ENOSUP, "the conditions on a text need too much memory");
        }
        row = malloc((l->classes.n + 1) * sizeof *row);
        if (row == NULL) return tl_language_no_memory(err);
        part->onward[state] = row;
        if (part->of.kind == TL_CONDITION_MATCHES) {
            status = follow_matches(l, part, state, row, err);
        } else {
            follow_multiple(l, part, state, row);
        }
    }
    *out = part->onward[state];
    return status;
}

static bool part_holds(const struct part *part, uint32_t state) {
    const struct tl_condition *of = &part->of;
    if (state == DEAD) return false;
    if (of->kind == TL_CONDITION_LENGTH) return state >= of->low;
    if (of->kind == TL_CONDITION_MATCHES) {
        const struct subset *set = &part->states.sets[state];
        const bool ends = set->n > 0 && part->states.members[set->first] == FINAL;
        return ends == of->positive;
    }
    uint64_t rest = state / (of->places + 2); // the remainder and 1
    const uint32_t after = state % (of->places + 2);
    if (rest == 0) return !of->positive;
    rest--;
    for (uint32_t i = after == 0 ? 0 : after - 1; i < of->places; i++) {
        rest = rest * 10 % of->modulus;
    }
    return (rest % of->modulus == 0) == of->positive;
}

// ---- all conditions at once ----

/* The states after one class where a length was `count`. */
static uint32_t after_length(const struct tl_condition *of, uint32_t count) {
    if (of->high == UINT32_MAX) return TL_MIN(count + 1, of->low);
    return count < of->high ? count + 1 : (uint32_t)DEAD;
}

/* Adds the edges of a state. `scratch` has room for the states of all parts. */
static int follow_all(struct tl_language *l, size_t state, size_t max_states, uint32_t *scratch,
                      const uint32_t **onward, struct rows *seen, struct tl_error *err) {
    const size_t first = l->n_edges, words = l->labels.width;
    uint32_t *edge_of = seen->words; // by class of this state's edges: their classes, as bits
    for (size_t k = 0; k < l->n_parts; k++) {
        const uint32_t at = tl_rows_at(&l->states, state)[k];
        int status = TL_OK;
        onward[k] = NULL;
        if (at != DEAD && l->parts[k].of.kind != TL_CONDITION_LENGTH) {
            status = follow(l, &l->parts[k], at, &onward[k], err);
        }
        if (status < 0) return status;
    }
    seen->n = 0;
    for (uint32_t c = 0; c < l->classes.n; c++) {
        bool dead = false;
        uint32_t to;
        size_t edge = first;
        for (size_t k = 0; k < l->n_parts && !dead; k++) {
            const uint32_t at = tl_rows_at(&l->states, state)[k];
            scratch[k] = onward[k] != NULL ? onward[k][c]
                         : at == DEAD      ? (uint32_t)DEAD
                                           : after_length(&l->parts[k].of, at);
            dead = scratch[k] == DEAD && k < l->needed;
        }
        if (dead) continue;
        if (!tl_rows_find(&l->key, &l->states, scratch, &to)) return tl_language_no_memory(err);
        if (l->states.n > max_states) {
            return tl_fail(err, TL_ENOSUP, "the conditions on a text need more than %zu states",
                           max_states);
        }
        while (edge < l->n_edges && l->edges[edge].to != to) edge++;
        if (edge == l->n_edges) {
            if (!RESERVE(l->edges, l->edges_capacity, l->n_edges + 1) ||
                !RESERVE(seen->words, seen->capacity, (seen->n + 1) * words)) {
                return tl_language_no_memory(err);
            }
            edge_of = seen->words;
            memset(edge_of + seen->n++ * words, 0, words * sizeof *edge_of);
            l->edges[l->n_edges++] = (struct edge){0, to};
        }
        edge_of[(edge - first) * words + c / 32] |= 1u << c % 32;
    }
    for (size_t i = first; i < l->n_edges; i++) {
        if (!tl_rows_find(&l->key, &l->labels, edge_of + (i - first) * words, &l->edges[i].label)) {
            return tl_language_no_memory(err);
        }
    }
    return TL_OK;
}

static int find_states(struct tl_language *l, size_t max_states, struct tl_error *err) {
    uint32_t *scratch = malloc((l->n_parts + 1) * sizeof *scratch), start;
    const uint32_t **onward = malloc((l->n_parts + 1) * sizeof *onward);
    struct rows seen = {0};
    int status = TL_OK;
    if (scratch == NULL || onward == NULL) {
        status = tl_language_no_memory(err);
        goto done;
    }
    l->states.width = l->n_parts;
    l->labels.width = l->classes.n / 32 + 1;
    for (size_t k = 0; k < l->n_parts && status == TL_OK; k++) {
        struct part *part = &l->parts[k];
        scratch[k] = part->first;
        if (part->of.kind == TL_CONDITION_MATCHES) {
            const size_t n = close_over(l, &part->first, 1);
            status = find_subset(l, &part->states, n, &scratch[k], err);
        }
    }
    if (status == TL_OK && !tl_rows_find(&l->key, &l->states, scratch, &start))
        status = tl_language_no_memory(err);
    for (size_t i = 0; status == TL_OK && i < l->states.n; i++) { // grows
        if (!RESERVE(l->first_edge, l->first_edge_capacity, i + 2)) {
            status = tl_language_no_memory(err);
            break;
        }
        l->first_edge[i] = (uint32_t)l->n_edges;
        status = follow_all(l, i, max_states, scratch, onward, &seen, err);
        l->first_edge[i + 1] = (uint32_t)l->n_edges;
    }
done:
    free(scratch);
    free(onward);
    tl_rows_free(&seen);
    return status;
}

int tl_language_new(const struct tl_grammar *g, const struct tl_condition *conditions,
                    size_t needed, size_t n, size_t max_states, struct tl_language **out,
                    struct tl_error *err) {
    static const char number[] = "0123456789.-";
    struct tl_language *l = calloc(1, sizeof *l);
    int status = TL_OK;
    if (l == NULL) return tl_language_no_memory(err);
    l->g = g;
    l->key = tl_hash_new_key();
    l->needed = needed;
    l->n_parts = n;
    l->parts = calloc(n + 1, sizeof *l->parts);
    l->set_of = malloc((g->n_exprs + 1) * sizeof *l->set_of);
    if (l->parts == NULL || l->set_of == NULL) status = tl_language_no_memory(err);
    if (status == TL_OK && (n - needed > TL_LANGUAGE_FREE || n == 0 || needed > n)) {
        status = tl_fail(err, TL_ENOSUP,
                         "there are %zu conditions, %zu of them free; expected at most "
                         "%d free ones",
                         n, n - needed, TL_LANGUAGE_FREE);
    }
    if (status == TL_OK) memset(l->set_of, 0xFF, (g->n_exprs + 1) * sizeof *l->set_of);
    for (size_t k = 0; k < n && status == TL_OK; k++) {
        struct part *part = &l->parts[k];
        part->of = conditions[k];
        if (part->of.kind == TL_CONDITION_MATCHES) {
            status = tl_language_read(l, part->of.expr, &part->first, err);
        } else if (part->of.kind == TL_CONDITION_MULTIPLE) {
            part->first = multiple_state(&part->of, 0, -1);
            if (part->of.modulus == 0 ||
                (uint64_t)part->of.modulus * (part->of.places + 1) > max_states) {
                status = tl_fail(err, TL_EARG, "a multiple of %u / 10^%u needs too many states",
                                 (unsigned)part->of.modulus, (unsigned)part->of.places);
            }
            for (size_t i = 0; i < 12 && status == TL_OK; i++) {
                status = tl_language_add_point(l, (uint8_t)number[i], err);
            }
        }
    }
    if (status == TL_OK) {
        l->marks = calloc(l->n_positions + 1, sizeof *l->marks);
        l->found = malloc((l->n_positions + 1) * sizeof *l->found);
        l->waiting = malloc((l->n_positions + 1) * sizeof *l->waiting);
        if (l->marks == NULL || l->found == NULL || l->waiting == NULL)
            status = tl_language_no_memory(err);
    }
    if (status == TL_OK) status = tl_language_find_classes(l, err);
    if (status == TL_OK) status = find_states(l, max_states, err);
    if (status < 0) {
        tl_language_free(l);
        return status;
    }
    *out = l;
    return TL_OK;
}

void tl_language_free(struct tl_language *l) {
    if (l == NULL) return;
    for (size_t k = 0; l->parts != NULL && k < l->n_parts; k++) {
        struct part *part = &l->parts[k];
        for (size_t i = 0; i < part->n_onward; i++) free(part->onward[i]);
        tl_free(part->onward);
        tl_free(part->states.members);
        tl_free(part->states.sets);
        free(part->states.table);
    }
    free(l->parts);
    tl_free(l->positions);
    tl_free(l->links);
    tl_free(l->stack);
    free(l->set_of);
    tl_free(l->set_exprs);
    tl_free(l->points);
    tl_free(l->pieces);
    tl_rows_free(&l->classes);
    tl_rows_free(&l->states);
    tl_rows_free(&l->labels);
    tl_free(l->edges);
    tl_free(l->first_edge);
    free(l->marks);
    free(l->found);
    free(l->waiting);
    tl_free(l->ranges);
    free(l);
}

// ---- what was found ----

size_t tl_language_n_labels(const struct tl_language *l) {
    return l->labels.n;
}

int tl_language_label(struct tl_language *l, size_t label, const int32_t **ranges, size_t *n,
                      struct tl_error *err) {
    const uint32_t *classes = tl_rows_at(&l->labels, label);
    size_t count = 0;
    if (!RESERVE(l->ranges, l->ranges_capacity, 2 * l->n_pieces + 1))
        return tl_language_no_memory(err);
    for (size_t i = 0; i < l->n_pieces; i++) {
        const uint32_t *piece = l->pieces + 3 * i;
        if (!tl_bit(classes, piece[2])) continue;
        if (count > 0 && (uint32_t)l->ranges[2 * count - 1] + 1 == piece[0]) {
            l->ranges[2 * count - 1] = (int32_t)piece[1];
        } else {
            l->ranges[2 * count] = (int32_t)piece[0];
            l->ranges[2 * count++ + 1] = (int32_t)piece[1];
        }
    }
    *ranges = l->ranges;
    *n = count;
    return TL_OK;
}

/* Which free conditions hold in a state; DEAD if another one does not. */
static uint32_t holding(const struct tl_language *l, size_t state) {
    uint32_t found = 0;
    for (size_t k = 0; k < l->n_parts; k++) {
        const bool holds = part_holds(&l->parts[k], tl_rows_at(&l->states, state)[k]);
        if (k < l->needed && !holds) return DEAD;
        if (k >= l->needed && holds) found |= 1u << (k - l->needed);
    }
    return found;
}

/* The edges that lead to each state. */
struct reverse {
    uint32_t *first, *from;
};

static bool turn_around(const struct tl_language *l, struct reverse *r) {
    const size_t n = l->states.n;
    r->first = calloc(n + 2, sizeof *r->first);
    r->from = malloc((l->n_edges + 1) * sizeof *r->from);
    if (r->first == NULL || r->from == NULL) return false;
    for (size_t i = 0; i < l->n_edges; i++) r->first[l->edges[i].to + 1]++;
    for (size_t i = 0; i < n; i++) r->first[i + 1] += r->first[i];
    for (size_t i = 0; i < n; i++) {
        for (uint32_t j = l->first_edge[i]; j < l->first_edge[i + 1]; j++) {
            r->from[r->first[l->edges[j].to]++] = (uint32_t)i;
        }
    }
    for (size_t i = n; i > 0; i--) r->first[i] = r->first[i - 1];
    r->first[0] = 0;
    return true;
}

/* Fills in the automaton of the states that lead to an end. No edges: the start does not. */
static int find_machine(const struct tl_language *l, const uint32_t *holds, const struct reverse *r,
                        struct tl_language_machine *out, struct tl_error *err) {
    const size_t n = l->states.n;
    uint8_t *live = calloc(n + 1, 1);
    uint32_t *number = malloc((n + 1) * sizeof *number), *order = malloc((n + 1) * sizeof *order);
    size_t n_order = 0;
    int status =
        live == NULL || number == NULL || order == NULL ? tl_language_no_memory(err) : TL_OK;
    for (size_t i = 0; i < n && status == TL_OK; i++) {
        number[i] = NONE;
        if (holds[i] != out->holds) continue;
        live[i] = 1;
        order[n_order++] = (uint32_t)i;
    }
    while (n_order > 0 && status == TL_OK) {
        const uint32_t at = order[--n_order];
        for (uint32_t i = r->first[at]; i < r->first[at + 1]; i++) {
            if (live[r->from[i]]) continue;
            live[r->from[i]] = 1;
            order[n_order++] = r->from[i];
        }
    }
    if (status < 0 || !live[0]) goto done;
    number[0] = 0;
    order[n_order++] = 0;
    for (size_t i = 0; i < n_order; i++) { // grows
        for (uint32_t j = l->first_edge[order[i]]; j < l->first_edge[order[i] + 1]; j++) {
            const uint32_t to = l->edges[j].to;
            if (!live[to]) continue;
            out->n_edges++;
            if (number[to] != NONE) continue;
            number[to] = (uint32_t)n_order;
            order[n_order++] = to;
        }
    }
    out->n_states = n_order;
    out->edges = malloc((out->n_edges + 1) * sizeof *out->edges);
    out->ends = malloc(n_order * sizeof *out->ends);
    if (out->edges == NULL || out->ends == NULL) {
        status = tl_language_no_memory(err);
        goto done;
    }
    out->n_edges = 0;
    for (size_t i = 0; i < n_order; i++) {
        if (holds[order[i]] == out->holds) out->ends[out->n_ends++] = (int32_t)i;
        for (uint32_t j = l->first_edge[order[i]]; j < l->first_edge[order[i] + 1]; j++) {
            int32_t *edge = out->edges[out->n_edges];
            if (!live[l->edges[j].to]) continue;
            edge[0] = (int32_t)i;
            edge[1] = (int32_t)l->edges[j].label;
            edge[2] = (int32_t)number[l->edges[j].to];
            out->n_edges++;
        }
    }
done:
    free(live);
    free(number);
    free(order);
    return status;
}

int tl_language_machines(const struct tl_language *l, struct tl_language_machine **out, size_t *n,
                         struct tl_error *err) {
    const size_t n_states = l->states.n;
    uint32_t *holds = malloc((n_states + 1) * sizeof *holds);
    struct tl_language_machine *machines = NULL;
    struct reverse reverse = {0};
    size_t count = 0, capacity = 0;
    int status = holds == NULL || !turn_around(l, &reverse) ? tl_language_no_memory(err) : TL_OK;
    for (size_t i = 0; i < n_states && status == TL_OK; i++) holds[i] = holding(l, i);
    for (size_t i = 0; i < n_states && status == TL_OK; i++) {
        bool known = holds[i] == DEAD;
        for (size_t j = 0; j < count && !known; j++) known = machines[j].holds == holds[i];
        if (known) continue;
        if (!RESERVE(machines, capacity, count + 1)) {
            status = tl_language_no_memory(err);
            break;
        }
        machines[count] = (struct tl_language_machine){.holds = holds[i]};
        status = find_machine(l, holds, &reverse, &machines[count++], err);
    }
    free(holds);
    free(reverse.first);
    free(reverse.from);
    if (status < 0) {
        tl_language_free_machines(machines, count);
        return status;
    }
    *out = machines;
    *n = count;
    return TL_OK;
}

void tl_language_free_machines(struct tl_language_machine *machines, size_t n) {
    for (size_t i = 0; i < n; i++) {
        free(machines[i].edges);
        free(machines[i].ends);
    }
    tl_free(machines);
}
