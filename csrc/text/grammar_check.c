/* grammar_check.c - which expressions of a grammar match a text, and the order of its rules. */
#include "text/grammar_state.h"

#include <stdlib.h>
#include <string.h>

// ---- what matches some text, and what matches an empty one ----

/* Whether an automaton leads to an end over edges that hold. */
static bool machine_holds(const struct tl_grammar *g, const struct expr *e, const uint8_t *holds,
                          uint32_t *work) {
    const int32_t *parts = g->parts + e->first;
    const uint32_t n = (uint32_t)parts[0];
    uint32_t *at = work, *waiting = work + n, n_waiting = 1, place = 1;
    bool end = false;
    for (uint32_t i = 0; i < n; i++) {
        at[i] = place;
        place += 2 + 2 * (uint32_t)parts[place + 1];
    }
    waiting[0] = 0;
    work[2 * n] = at[0];
    at[0] = 0; // a place of 0: the state was reached
    while (n_waiting > 0 && !end) {
        const uint32_t state = waiting[--n_waiting], from = work[2 * n + state];
        end = parts[from] != 0;
        for (uint32_t i = 0; i < (uint32_t)parts[from + 1]; i++) {
            const uint32_t to = (uint32_t)parts[from + 3 + 2 * i];
            if (at[to] == 0 || !holds[parts[from + 2 + 2 * i]]) continue;
            work[2 * n + to] = at[to];
            at[to] = 0;
            waiting[n_waiting++] = to;
        }
    }
    return end;
}

/* Whether an expression matches an empty text, or some text, given those that are known to. */
static bool holds_now(const struct tl_grammar *g, uint32_t expr, bool empty, const uint8_t *holds,
                      const uint8_t *rule_holds, uint32_t *work) {
    const struct expr *e = &g->exprs[expr];
    const int32_t *parts = g->parts + e->first;
    switch ((enum tl_expr_kind)e->kind) {
    case TL_EXPR_TEXT:
        return !empty || e->n == 0;
    case TL_EXPR_CHARS:
        return !empty && e->n > 0;
    case TL_EXPR_SEQ:
        for (uint32_t i = 0; i < e->n; i++) {
            if (!holds[parts[i]]) return false;
        }
        return true;
    case TL_EXPR_ALT:
        for (uint32_t i = 0; i < e->n; i++) {
            if (holds[parts[i]]) return true;
        }
        return false;
    case TL_EXPR_REPEAT:
        return parts[1] == 0 || holds[parts[0]];
    case TL_EXPR_RULE:
        return rule_holds[parts[0]];
    case TL_EXPR_MACHINE:
        return empty ? parts[1] != 0 : machine_holds(g, e, holds, work);
    default:
        return !empty;
    }
}

/*
 * Sets holds[i] for the expressions that match an empty text, or some text. An expression is looked
 * at after its parts, and again only while rules are found to hold.
 */
static int find_holding(const struct tl_grammar *g, bool empty, uint8_t *holds,
                        struct tl_error *err) {
    uint8_t *rule_holds = calloc(g->n_rules + 1, 1);
    uint32_t *left = malloc((g->n_exprs + 1) * sizeof *left), *work = NULL;
    size_t n_left = g->n_exprs, states = 0;
    bool changed = true;
    int status = TL_OK;
    for (size_t i = 0; i < g->n_exprs; i++) {
        const struct expr *e = &g->exprs[i];
        if (e->kind == TL_EXPR_MACHINE) states = TL_MAX(states, (size_t)g->parts[e->first]);
    }
    work = malloc((3 * states + 1) * sizeof *work);
    if (rule_holds == NULL || left == NULL || work == NULL) {
        status = tl_grammar_no_memory(err);
        goto done;
    }
    for (size_t i = 0; i < n_left; i++) left[i] = (uint32_t)i;
    while (changed) {
        size_t n = 0;
        for (size_t i = 0; i < n_left; i++) {
            holds[left[i]] = holds_now(g, left[i], empty, holds, rule_holds, work);
            if (!holds[left[i]]) left[n++] = left[i];
        }
        n_left = n;
        changed = false;
        for (size_t i = 0; i < g->n_rules; i++) {
            if (rule_holds[i] || !holds[g->rules[i].expr]) continue;
            rule_holds[i] = 1;
            changed = n_left > 0;
        }
    }
done:
    free(rule_holds);
    free(left);
    free(work);
    return status;
}

// ---- the order of the rules ----

/* What a walk over the references of the rules needs. */
struct walk {
    const struct tl_grammar *g;
    const uint8_t *empty; // only references that a text may start with; NULL: all
    uint32_t rule;        // whose expression is walked
    uint32_t *seen;       // (n_exprs) the last rule that has an expression
    uint32_t *seen_rules; // (n_rules) the last rule that refers to a rule
    struct order *order;
    bool failed;
};

static void find_references(void *context, uint32_t expr) {
    struct walk *w = context;
    struct order *o = w->order;
    const struct expr *e = &w->g->exprs[expr];
    const int32_t *parts = w->g->parts + e->first;
    if (!e->has_rules || w->seen[expr] == w->rule) return;
    w->seen[expr] = w->rule;
    if (e->kind == TL_EXPR_RULE) {
        if (w->seen_rules[parts[0]] == w->rule) return;
        w->seen_rules[parts[0]] = w->rule;
        if (!tl_reserve((void **)&o->references, &o->capacity, o->n_references + 1,
                        sizeof *o->references)) {
            w->failed = true;
            return;
        }
        o->references[o->n_references++] = (struct reference){w->rule, (uint32_t)parts[0]};
    } else if (w->empty == NULL) {
        tl_grammar_each_inner(w->g, e, find_references, w);
    } else if (e->kind == TL_EXPR_SEQ) {
        for (uint32_t i = 0; i < e->n; i++) {
            find_references(w, (uint32_t)parts[i]);
            if (!w->empty[parts[i]]) return;
        }
    } else if (e->kind == TL_EXPR_MACHINE) { // an edge matches at least one byte
        for (int32_t i = 0; i < parts[2]; i++) find_references(w, (uint32_t)parts[3 + 2 * i]);
    } else {
        tl_grammar_each_inner(w->g, e, find_references, w);
    }
}

static int by_used(const void *left, const void *right) {
    const struct reference *a = left, *b = right;
    if (a->used != b->used) return a->used < b->used ? -1 : 1;
    return a->user < b->user ? -1 : a->user > b->user;
}

void tl_grammar_free_order(struct order *o) {
    free(o->rules);
    free(o->first);
    tl_free(o->references);
}

int tl_grammar_order(const struct tl_grammar *g, const uint8_t *empty, struct order *o,
                     struct tl_error *err) {
    const size_t n = g->n_rules;
    struct walk w = {.g = g, .empty = empty, .order = o};
    uint32_t *waits = calloc(n + 1, sizeof *waits); // references to rules that are not done
    *o = (struct order){0};
    o->rules = calloc(n + 1, sizeof *o->rules);
    o->first = calloc(n + 1, sizeof *o->first);
    w.seen = malloc((g->n_exprs + 1) * sizeof *w.seen);
    w.seen_rules = malloc((n + 1) * sizeof *w.seen_rules);
    w.failed = waits == NULL || o->rules == NULL || o->first == NULL || w.seen == NULL ||
               w.seen_rules == NULL;
    if (w.failed) goto done;
    memset(w.seen, 0xFF, (g->n_exprs + 1) * sizeof *w.seen);
    memset(w.seen_rules, 0xFF, (n + 1) * sizeof *w.seen_rules);
    for (size_t i = 0; i < n; i++) {
        const size_t before = o->n_references;
        w.rule = (uint32_t)i;
        find_references(&w, g->rules[i].expr);
        waits[i] = (uint32_t)(o->n_references - before);
        if (waits[i] == 0) o->rules[o->n++] = (uint32_t)i;
    }
    if (w.failed) goto done;
    if (o->n_references > 1) qsort(o->references, o->n_references, sizeof *o->references, by_used);
    for (size_t i = 0, at = 0; i <= n; i++) {
        o->first[i] = (uint32_t)at;
        while (at < o->n_references && o->references[at].used == i) at++;
    }
    for (size_t i = 0; i < o->n; i++) { // grows
        for (uint32_t j = o->first[o->rules[i]]; j < o->first[o->rules[i] + 1]; j++) {
            const uint32_t user = o->references[j].user;
            if (--waits[user] == 0) o->rules[o->n++] = user;
        }
    }
done:
    free(waits);
    free(w.seen);
    free(w.seen_rules);
    return w.failed ? tl_grammar_no_memory(err) : TL_OK;
}

/* Leaves out the parts that match no text, of expressions that match some. */
static void leave_out(struct tl_grammar *g, const uint8_t *holds) {
    for (size_t i = 0; i < g->n_exprs; i++) {
        struct expr *e = &g->exprs[i];
        int32_t *parts = g->parts + e->first;
        uint32_t n = 0;
        if (!holds[i]) continue;
        if (e->kind == TL_EXPR_ALT) {
            for (uint32_t k = 0; k < e->n; k++) {
                if (holds[parts[k]]) parts[n++] = parts[k];
            }
            e->n = n;
        } else if (e->kind == TL_EXPR_REPEAT && !holds[parts[0]]) { // it may be left out
            e->kind = TL_EXPR_TEXT;
            e->n = 0;
        } else if (e->kind == TL_EXPR_MACHINE) {
            uint32_t at = 1;
            n = 1;
            for (int32_t state = 0; state < parts[0]; state++) {
                const uint32_t place = n, edges = (uint32_t)parts[at + 1];
                parts[n] = parts[at];
                n += 2;
                at += 2;
                for (uint32_t k = 0; k < edges; k++, at += 2) {
                    if (!holds[parts[at]]) continue;
                    parts[n++] = parts[at];
                    parts[n++] = parts[at + 1];
                }
                parts[place + 1] = (int32_t)(n - place - 2) / 2;
            }
            e->n = n;
        }
    }
}

int tl_grammar_check(struct tl_grammar *g, uint8_t *ends, bool *whole, bool *fine,
                     struct tl_error *err) {
    uint8_t *holds = calloc(g->n_exprs + 1, 1);
    struct order order = {0};
    int status = holds == NULL ? tl_grammar_no_memory(err) : tl_grammar_rules_are_there(g, err);
    if (status == TL_OK) status = find_holding(g, false, holds, err);
    if (status == TL_OK) {
        *whole = memchr(holds, 0, g->n_exprs) == NULL;
        for (size_t i = 0; i < g->n_rules; i++) ends[i] = holds[g->rules[i].expr];
        if (!*whole) leave_out(g, holds);
        memset(holds, 0, g->n_exprs);
        status = find_holding(g, true, holds, err);
    }
    if (status == TL_OK) status = tl_grammar_order(g, holds, &order, err);
    if (status == TL_OK) *fine = order.n == g->n_rules;
    tl_grammar_free_order(&order);
    free(holds);
    return status;
}
