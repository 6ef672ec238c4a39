/* grammar.c - the expressions of a grammar: each is stored once. */
#include "text/grammar.h"

#include "base/os.h"
#include "text/grammar_state.h"

#include <stdlib.h>
#include <string.h>

static const size_t max_parts = INT32_MAX / 2;

int tl_grammar_no_memory(struct tl_error *err) {
    return tl_fail(err, TL_ENOMEM, "no memory for the grammar");
}

int tl_grammar_new(size_t n_rules, struct tl_grammar **out, struct tl_error *err) {
    struct tl_grammar *g = calloc(1, sizeof *g);
    if (g == NULL) return tl_grammar_no_memory(err);
    g->key = tl_hash_new_key();
    g->nowhere = NONE;
    if (!tl_reserve((void **)&g->rules, &g->rules_capacity, n_rules + 1, sizeof *g->rules)) {
        tl_grammar_free(g);
        return tl_grammar_no_memory(err);
    }
    g->n_rules = n_rules;
    for (size_t i = 0; i < n_rules; i++) {
        g->rules[i] = (struct rule){.expr = NONE, .start = NONE, .owner = (int32_t)i};
    }
    *out = g;
    return TL_OK;
}

void tl_grammar_free(struct tl_grammar *g) {
    if (g == NULL) return;
    tl_free(g->exprs);
    tl_free(g->parts);
    free(g->table);
    tl_free(g->rules);
    tl_free(g->nodes);
    tl_free(g->owners);
    tl_free(g->marks);
    free(g->known);
    free(g->built);
    tl_free(g->patches);
    tl_free(g->stack);
    free(g);
}

// ---- expressions ----

void tl_grammar_each_inner(const struct tl_grammar *g, const struct expr *e,
                           void (*visit)(void *context, uint32_t expr), void *context) {
    const int32_t *parts = g->parts + e->first;
    if (e->kind == TL_EXPR_SEQ || e->kind == TL_EXPR_ALT) {
        for (uint32_t i = 0; i < e->n; i++) visit(context, (uint32_t)parts[i]);
    } else if (e->kind == TL_EXPR_REPEAT) {
        visit(context, (uint32_t)parts[0]);
    } else if (e->kind == TL_EXPR_MACHINE) {
        uint32_t at = 1;
        for (int32_t state = 0; state < parts[0]; state++) {
            const uint32_t edges = (uint32_t)parts[at + 1];
            for (uint32_t i = 0; i < edges; i++) visit(context, (uint32_t)parts[at + 2 + 2 * i]);
            at += 2 + 2 * edges;
        }
    }
}

static bool is_expr(const struct tl_grammar *g, int32_t part) {
    return part >= 0 && (size_t)part < g->n_exprs;
}

static bool machine_fits(const struct tl_grammar *g, const int32_t *parts, size_t n) {
    size_t at = 1;
    if (n < 3 || parts[0] < 1) return false;
    for (int32_t state = 0; state < parts[0]; state++) {
        if (n - at < 2 || parts[at + 1] < 0 || (n - at - 2) / 2 < (size_t)parts[at + 1]) {
            return false;
        }
        for (int32_t i = 0; i < parts[at + 1]; i++) {
            const int32_t *edge = parts + at + 2 + 2 * (size_t)i;
            if (!is_expr(g, edge[0]) || edge[1] < 0 || edge[1] >= parts[0]) return false;
        }
        at += 2 + 2 * (size_t)parts[at + 1];
    }
    return at == n;
}

static bool parts_fit(const struct tl_grammar *g, enum tl_expr_kind kind, const int32_t *parts,
                      size_t n) {
    bool fits = true;
    switch (kind) {
    case TL_EXPR_TEXT:
        for (size_t i = 0; i < n; i++) fits = fits && parts[i] >= 0 && parts[i] <= 0xFF;
        return fits;
    case TL_EXPR_CHARS:
        for (size_t i = 0; i + 1 < n; i += 2) {
            fits = fits && parts[i] >= 0 && parts[i] <= parts[i + 1] && parts[i + 1] <= 0x10FFFF;
        }
        return fits && n % 2 == 0;
    case TL_EXPR_SEQ:
    case TL_EXPR_ALT:
        for (size_t i = 0; i < n; i++) fits = fits && is_expr(g, parts[i]);
        return fits;
    case TL_EXPR_REPEAT:
        return n == 3 && is_expr(g, parts[0]) && parts[1] >= 0 &&
               (parts[2] == -1 || parts[2] >= parts[1]);
    case TL_EXPR_RULE:
        return n == 2 && parts[0] >= 0 && (size_t)parts[0] < g->n_rules;
    case TL_EXPR_MACHINE:
        return machine_fits(g, parts, n);
    case TL_EXPR_TOKEN:
        return n == 2 && parts[0] >= 0;
    default:
        return false;
    }
}

static bool grow_table(struct tl_grammar *g) {
    const size_t size = g->table_size == 0 ? 1024 : 2 * g->table_size;
    uint32_t *table = malloc(size * sizeof *table);
    if (table == NULL) return false;
    memset(table, 0xFF, size * sizeof *table);
    for (size_t i = 0; i < g->n_exprs; i++) {
        size_t at = g->exprs[i].hash & (size - 1);
        while (table[at] != NONE) at = (at + 1) & (size - 1);
        table[at] = (uint32_t)i;
    }
    free(g->table);
    g->table = table;
    g->table_size = size;
    return true;
}

struct inner {
    const struct tl_grammar *g;
    struct expr *of;
};

static void add_inner(void *context, uint32_t expr) {
    struct inner *inner = context;
    const struct expr *e = &inner->g->exprs[expr];
    inner->of->depth = TL_MAX(inner->of->depth, (uint16_t)(e->depth + 1));
    inner->of->has_rules = inner->of->has_rules || e->has_rules;
}

int tl_grammar_add(struct tl_grammar *g, enum tl_expr_kind kind, const int32_t *parts, size_t n,
                   uint32_t *out, struct tl_error *err) {
    struct expr e = {
        .kind = (uint8_t)kind,
        .has_rules = kind == TL_EXPR_RULE,
        .n = (uint32_t)n,
        .rule = NONE,
        .size = UNKNOWN_SIZE,
    };
    struct inner inner = {g, &e};
    size_t at;
    if (!parts_fit(g, kind, parts, n)) {
        return tl_fail(err, TL_EARG, "an expression of kind %d has parts that do not fit it",
                       (int)kind);
    }
    if (n > max_parts - g->n_parts) return tl_grammar_no_memory(err);
    e.hash = (uint32_t)tl_hash_word(&g->key, kind,
                                    n == 0 ? 0 : tl_hash_bytes(&g->key, parts, n * sizeof *parts));
    if (2 * (g->n_exprs + 1) > g->table_size && !grow_table(g)) return tl_grammar_no_memory(err);
    for (at = e.hash & (g->table_size - 1); g->table[at] != NONE;
         at = (at + 1) & (g->table_size - 1)) {
        const struct expr *old = &g->exprs[g->table[at]];
        if (old->hash == e.hash && old->kind == e.kind && old->n == n &&
            (n == 0 || memcmp(g->parts + old->first, parts, n * sizeof *parts) == 0)) {
            *out = g->table[at];
            return TL_OK;
        }
    }
    if (!tl_reserve((void **)&g->exprs, &g->exprs_capacity, g->n_exprs + 1, sizeof *g->exprs) ||
        !tl_reserve((void **)&g->parts, &g->parts_capacity, g->n_parts + n + 1, sizeof *g->parts)) {
        return tl_grammar_no_memory(err);
    }
    e.first = (uint32_t)g->n_parts;
    if (n > 0) memcpy(g->parts + g->n_parts, parts, n * sizeof *parts);
    g->n_parts += n;
    tl_grammar_each_inner(g, &e, add_inner, &inner);
    if (e.depth > TL_GRAMMAR_DEPTH)
        return tl_fail(err, TL_EARG, "the grammar is nested too deeply");
    g->exprs[g->n_exprs] = e;
    g->table[at] = *out = (uint32_t)g->n_exprs++;
    return TL_OK;
}

int tl_grammar_set_rule(struct tl_grammar *g, size_t rule, uint32_t expr, struct tl_error *err) {
    if (rule >= g->n_rules || expr >= g->n_exprs) {
        return tl_fail(err, TL_EARG, "there is no rule %zu or no expression %u", rule,
                       (unsigned)expr);
    }
    g->rules[rule].expr = expr;
    return TL_OK;
}

int tl_grammar_rules_are_there(const struct tl_grammar *g, struct tl_error *err) {
    for (size_t i = 0; i < g->n_rules; i++) {
        if (g->rules[i].expr == NONE) {
            return tl_fail(err, TL_EARG, "rule %zu has no expression", i);
        }
    }
    return TL_OK;
}
