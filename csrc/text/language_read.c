/* language_read.c - the positions of the expressions of a language, and its classes. */
#include "text/language_state.h"

#include <stdlib.h>

int tl_language_no_memory(struct tl_error *err) {
    return tl_fail(err, TL_ENOMEM, "no memory for the conditions on a text");
}

// ---- rows ----

bool tl_rows_find(const struct tl_hash_key *key, struct rows *r, const uint32_t *row,
                  uint32_t *out) {
    const size_t bytes = r->width * sizeof *row;
    size_t at;
    if (2 * (r->n + 1) > r->table_size) {
        const size_t size = r->table_size == 0 ? 64 : 2 * r->table_size;
        uint32_t *table = malloc(size * sizeof *table);
        if (table == NULL) return false;
        memset(table, 0xFF, size * sizeof *table);
        for (size_t i = 0; i < r->n; i++) {
            at = tl_hash_bytes(key, tl_rows_at(r, i), bytes) & (size - 1);
            while (table[at] != NONE) at = (at + 1) & (size - 1);
            table[at] = (uint32_t)i;
        }
        free(r->table);
        r->table = table;
        r->table_size = size;
    }
    at = tl_hash_bytes(key, row, bytes) & (r->table_size - 1);
    for (; r->table[at] != NONE; at = (at + 1) & (r->table_size - 1)) {
        if (memcmp(tl_rows_at(r, r->table[at]), row, bytes) == 0) {
            *out = r->table[at];
            return true;
        }
    }
    if (!RESERVE(r->words, r->capacity, (r->n + 1) * r->width)) return false;
    memcpy(tl_rows_at(r, r->n), row, bytes);
    r->table[at] = *out = (uint32_t)r->n++;
    return true;
}

void tl_rows_free(struct rows *r) {
    tl_free(r->words);
    free(r->table);
}

// ---- the positions of an expression, from its end ----

static int add_position(struct tl_language *l, struct position position, uint32_t *out,
                        struct tl_error *err) {
    if (l->n_positions >= MAX_POSITIONS) {
        return tl_fail(err, TL_ENOSUP,
                       "the pattern is too large to be combined with other conditions: more than "
                       "%d characters",
                       MAX_POSITIONS);
    }
    if (!RESERVE(l->positions, l->positions_capacity, l->n_positions + 1))
        return tl_language_no_memory(err);
    l->positions[l->n_positions] = position;
    *out = (uint32_t)l->n_positions++;
    return TL_OK;
}

static bool push(struct tl_language *l, uint32_t start) {
    if (!RESERVE(l->stack, l->stack_capacity, l->n_stack + 1)) return false;
    l->stack[l->n_stack++] = start;
    return true;
}

/* Makes a position a list of the starts from `base` on, which are taken off the stack. */
static int close_list(struct tl_language *l, uint32_t position, size_t base, struct tl_error *err) {
    const size_t n = l->n_stack - base;
    if (!RESERVE(l->links, l->links_capacity, l->n_links + n + 1))
        return tl_language_no_memory(err);
    if (n > 0) memcpy(l->links + l->n_links, l->stack + base, n * sizeof *l->links);
    l->positions[position] = (struct position){LIST, (uint32_t)l->n_links, (uint32_t)n};
    l->n_links += n;
    l->n_stack = base;
    return TL_OK;
}

static int add_pair(struct tl_language *l, uint32_t position, uint32_t a, uint32_t b,
                    struct tl_error *err) {
    const size_t base = l->n_stack;
    if (!push(l, a) || !push(l, b)) return tl_language_no_memory(err);
    return close_list(l, position, base, err);
}

static int build(struct tl_language *l, uint32_t expr, uint32_t after, uint32_t *out,
                 struct tl_error *err);

int tl_language_add_point(struct tl_language *l, uint32_t point, struct tl_error *err) {
    if (!RESERVE(l->points, l->points_capacity, l->n_points + 1)) return tl_language_no_memory(err);
    l->points[l->n_points++] = point;
    return TL_OK;
}

/* A text holds code points in UTF-8; for now the set of each position is the code point itself. */
static int build_text(struct tl_language *l, const int32_t *bytes, uint32_t n, uint32_t after,
                      uint32_t *out, struct tl_error *err) {
    for (uint32_t end = n; end > 0;) {
        uint32_t first = end - 1, point;
        int status;
        while (first > 0 && (bytes[first] & 0xC0) == 0x80) first--;
        point = (uint32_t)bytes[first] & (end - first == 1 ? 0x7Fu : 0x7Fu >> (end - first));
        for (uint32_t i = first + 1; i < end; i++) point = point << 6 | (bytes[i] & 0x3F);
        status = tl_language_add_point(l, point, err);
        if (status < 0) return status;
        status = add_position(l, (struct position){point, after, 1}, &after, err);
        if (status < 0) return status;
        end = first;
    }
    *out = after;
    return TL_OK;
}

static int build_chars(struct tl_language *l, uint32_t expr, uint32_t after, uint32_t *out,
                       struct tl_error *err) {
    if (l->set_of[expr] == NONE) {
        if (!RESERVE(l->set_exprs, l->set_exprs_capacity, l->n_set_exprs + 1)) {
            return tl_language_no_memory(err);
        }
        l->set_exprs[l->n_set_exprs] = expr;
        l->set_of[expr] = (uint32_t)l->n_set_exprs++;
    }
    return add_position(l, (struct position){l->set_of[expr], after, 0}, out, err);
}

static int build_repeat(struct tl_language *l, const int32_t *parts, uint32_t after, uint32_t *out,
                        struct tl_error *err) {
    const uint32_t item = (uint32_t)parts[0], stop = after;
    uint32_t start, before = 0;
    int status = TL_OK;
    if (parts[2] == -1) {
        status = add_position(l, (struct position){LIST, 0, 0}, &before, err);
        if (status == TL_OK) status = build(l, item, before, &start, err);
        if (status == TL_OK) status = add_pair(l, before, after, start, err);
        after = before;
    }
    for (int32_t i = parts[1]; i < parts[2] && status == TL_OK; i++) {
        status = build(l, item, after, &start, err);
        if (status == TL_OK) status = add_position(l, (struct position){LIST, 0, 0}, &before, err);
        if (status == TL_OK) status = add_pair(l, before, start, stop, err);
        after = before;
    }
    for (int32_t i = 0; i < parts[1] && status == TL_OK; i++) {
        status = build(l, item, after, &after, err);
    }
    *out = after;
    return status;
}

static int build_machine(struct tl_language *l, const int32_t *parts, uint32_t after, uint32_t *out,
                         struct tl_error *err) {
    const uint32_t first = (uint32_t)l->n_positions;
    size_t at = 1;
    int status = TL_OK;
    for (int32_t i = 0; i < parts[0] && status == TL_OK; i++) {
        uint32_t state;
        status = add_position(l, (struct position){LIST, 0, 0}, &state, err);
    }
    for (int32_t i = 0; i < parts[0] && status == TL_OK; i++) {
        const size_t base = l->n_stack;
        for (int32_t j = 0; j < parts[at + 1] && status == TL_OK; j++) {
            const int32_t *edge = parts + at + 2 + 2 * (size_t)j;
            uint32_t start;
            status = build(l, (uint32_t)edge[0], first + (uint32_t)edge[1], &start, err);
            if (status == TL_OK && !push(l, start)) status = tl_language_no_memory(err);
        }
        if (status == TL_OK && parts[at] != 0 && !push(l, after))
            status = tl_language_no_memory(err);
        if (status == TL_OK) status = close_list(l, first + (uint32_t)i, base, err);
        at += 2 + 2 * (size_t)parts[at + 1];
    }
    *out = first;
    return status;
}

/* *out is the position where an expression starts that is followed by position `after`. */
static int build(struct tl_language *l, uint32_t expr, uint32_t after, uint32_t *out,
                 struct tl_error *err) {
    const struct expr *e = &l->g->exprs[expr];
    const int32_t *parts = l->g->parts + e->first;
    const size_t base = l->n_stack;
    int status = TL_OK;
    switch ((enum tl_expr_kind)e->kind) {
    case TL_EXPR_TEXT:
        return build_text(l, parts, e->n, after, out, err);
    case TL_EXPR_CHARS:
        return build_chars(l, expr, after, out, err);
    case TL_EXPR_SEQ:
        for (uint32_t i = e->n; i > 0 && status == TL_OK; i--) {
            status = build(l, (uint32_t)parts[i - 1], after, &after, err);
        }
        *out = after;
        return status;
    case TL_EXPR_ALT:
        for (uint32_t i = 0; i < e->n && status == TL_OK; i++) {
            uint32_t start;
            status = build(l, (uint32_t)parts[i], after, &start, err);
            if (status == TL_OK && !push(l, start)) status = tl_language_no_memory(err);
        }
        if (status == TL_OK) status = add_position(l, (struct position){LIST, 0, 0}, out, err);
        return status < 0 ? status : close_list(l, *out, base, err);
    case TL_EXPR_REPEAT:
        return build_repeat(l, parts, after, out, err);
    case TL_EXPR_MACHINE:
        return build_machine(l, parts, after, out, err);
    default:
        return tl_fail(err, TL_EARG, "a condition refers to a rule or a token: it is not regular");
    }
}

int tl_language_read(struct tl_language *l, uint32_t expr, uint32_t *out, struct tl_error *err) {
    uint32_t final;
    int status = TL_OK;
    if (expr >= l->g->n_exprs) return tl_fail(err, TL_EARG, "a condition has no expression");
    if (l->n_positions == 0) status = add_position(l, (struct position){LIST, 0, 0}, &final, err);
    return status < 0 ? status : build(l, expr, FINAL, out, err);
}

// ---- classes of characters ----

struct toggle {
    uint32_t point, set;
};

static int compare_toggles(const void *left, const void *right) {
    const struct toggle *a = left, *b = right;
    return a->point != b->point ? (a->point < b->point ? -1 : 1)
                                : (a->set > b->set) - (a->set < b->set);
}

int tl_compare_u32(const void *left, const void *right) {
    const uint32_t a = *(const uint32_t *)left, b = *(const uint32_t *)right;
    return (a > b) - (a < b);
}

/* The set of a single code point, which is in l->points. */
static uint32_t set_of_point(const struct tl_language *l, uint32_t point) {
    const uint32_t *found =
        bsearch(&point, l->points, l->n_points, sizeof *l->points, tl_compare_u32);
    return (uint32_t)(l->n_set_exprs + (size_t)(found - l->points));
}

/* Gives each set its number. */
static void number_sets(struct tl_language *l) {
    size_t n = 0;
    if (l->n_points > 1) qsort(l->points, l->n_points, sizeof *l->points, tl_compare_u32);
    for (size_t i = 0; i < l->n_points; i++) {
        if (n == 0 || l->points[n - 1] != l->points[i]) l->points[n++] = l->points[i];
    }
    l->n_points = n;
    l->n_sets = l->n_set_exprs + n + 1;
    l->set_words = l->n_sets / 32 + 1;
    for (size_t i = 0; i < l->n_positions; i++) {
        struct position *p = &l->positions[i];
        if (p->set != LIST && p->n == 1) p->set = set_of_point(l, p->set);
    }
}

static int add_piece(struct tl_language *l, uint32_t first, uint32_t last, const uint32_t *in,
                     struct tl_error *err) {
    uint32_t class;
    if (first > last || first > LAST_POINT || tl_bit(in, (uint32_t)l->n_sets - 1)) return TL_OK;
    if (!tl_rows_find(&l->key, &l->classes, in, &class) ||
        !RESERVE(l->pieces, l->pieces_capacity, 3 * (l->n_pieces + 1))) {
        return tl_language_no_memory(err);
    }
    l->pieces[3 * l->n_pieces] = first;
    l->pieces[3 * l->n_pieces + 1] = last;
    l->pieces[3 * l->n_pieces++ + 2] = class;
    return TL_OK;
}

int tl_language_find_classes(struct tl_language *l, struct tl_error *err) {
    struct toggle *toggles;
    uint32_t *in, at = 0;
    size_t n = 0, most;
    int status = TL_OK;
    number_sets(l);
    in = calloc(l->set_words, sizeof *in);
    most = 2 * l->n_points + 2;
    for (size_t i = 0; i < l->n_set_exprs; i++) most += l->g->exprs[l->set_exprs[i]].n;
    toggles = malloc(most * sizeof *toggles);
    if (in == NULL || toggles == NULL) {
        status = tl_language_no_memory(err);
        goto done;
    }
    for (uint32_t i = 0; i < l->n_set_exprs; i++) {
        const struct expr *e = &l->g->exprs[l->set_exprs[i]];
        const int32_t *ranges = l->g->parts + e->first;
        for (uint32_t j = 0; j < e->n; j++) {
            toggles[n++] = (struct toggle){(uint32_t)ranges[j] + j % 2, i};
        }
    }
    for (uint32_t i = 0; i < l->n_points; i++) {
        const uint32_t set = (uint32_t)l->n_set_exprs + i;
        toggles[n++] = (struct toggle){l->points[i], set};
        toggles[n++] = (struct toggle){l->points[i] + 1, set};
    }
    toggles[n++] = (struct toggle){0xD800, (uint32_t)l->n_sets - 1};
    toggles[n++] = (struct toggle){0xE000, (uint32_t)l->n_sets - 1};
    qsort(toggles, n, sizeof *toggles, compare_toggles);
    l->classes.width = l->set_words;
    for (size_t i = 0; i < n && status == TL_OK; i++) {
        if (toggles[i].point > at) {
            status = add_piece(l, at, toggles[i].point - 1, in, err);
            at = toggles[i].point;
        }
        in[toggles[i].set / 32] ^= 1u << toggles[i].set % 32;
    }
    if (status == TL_OK) status = add_piece(l, at, LAST_POINT, in, err);
done:
    free(toggles);
    free(in);
    return status;
}

/* The class of a single code point that is a set. */
uint32_t tl_language_class_of(const struct tl_language *l, uint32_t point) {
    const uint32_t set = set_of_point(l, point);
    uint32_t class = 0;
    while (!tl_bit(tl_rows_at(&l->classes, class), set)) class ++;
    return class;
}
