/*
 * rows.c - ops that move values without computing: look-up in a table, copies and parts.
 *
 * The comment of each check, here and in the files of the other ops, lists what a step of its op
 * reads, its weights, its numbers and its value. docs/numerics.md defines the arithmetic.
 */
#include "forward/rows.h"

#include <string.h>

/* ---- embed: the row of a table for each token ---- */

/* What chooses the row. */
enum { BY_TOKEN, BY_POSITION, FIRST_ROW };

/*
 * weights: (rows, D); numbers: rows, D, what chooses the row (0: the token, 1: its position, 2: it
 * is the first one); value (D). The first step with index 0 sets V and D of the plan.
 */
int embed_check(const struct tl_op_check *c, struct tl_step *s) {
    const char *name;
    size_t rows = 0, width = 0, index = 0;
    TL_TRY(op_name(c, 0, &name));
    TL_TRY(op_size(c, s, 0, 1, &rows));
    TL_TRY(op_size(c, s, 1, 1, &width));
    TL_TRY(op_number(c, s, 2, BY_TOKEN, FIRST_ROW));
    TL_TRY(op_size(c, s, 2, 0, &index));
    TL_TRY(tl_weights_matrix(c->weights, name, rows, width, &s->matrix, c->err));
    if (s->numbers[2] == BY_POSITION && rows < c->plan->max_context) {
        return tl_fail(c->err, TL_EARG,
                       "step %zu (embed): tensor '%s' has %zu positions, and max_context is %zu; "
                       "expected at most %zu",
                       c->plan->n, name, rows, c->plan->max_context, rows);
    }
    if (s->numbers[2] == BY_TOKEN && c->plan->vocab_size == 0) {
        c->plan->vocab_size = rows;
        c->plan->width = width;
    }
    if (s->numbers[2] == BY_TOKEN && rows != c->plan->vocab_size) {
        return tl_fail(c->err, TL_EARG, "step %zu (embed): its table has %zu rows; expected %zu",
                       c->plan->n, rows, c->plan->vocab_size);
    }
    s->value = TL_VALUE_ROWS;
    s->axes[0] = width;
    s->n_axes = 1;
    return TL_OK;
}

size_t embed_row(const struct tl_step *s, const struct span *span, size_t t) {
    if (s->numbers[2] == BY_TOKEN) return (size_t)span->piece->tokens[span->done + t];
    return s->numbers[2] == BY_POSITION ? span->position + t : 0;
}

struct embed {
    const struct tl_step *step;
    float *y;
};

static void embed_rows(struct run *r, const void *arg, size_t first, size_t last) {
    const struct embed *a = arg;
    const struct tl_matrix *w = &a->step->matrix;
    for (size_t i = 0; i < r->n_spans; i++) {
        const struct span *s = &r->spans[i];
        for (size_t t = 0; t < s->n; t++) {
            const size_t row = s->row + t;
            if (row < first || row >= last) continue;
            tl_type_to_f32(w->type, w->data + embed_row(a->step, s, t) * w->row_bytes,
                           a->y + row * w->cols, w->cols);
        }
    }
}

int embed_run(struct run *r, const struct tl_step *s) {
    const struct embed a = {s, pass_out(r, s)};
    TL_TRY(pass_rows(r, r->n, s->width * 4, embed_rows, &a));
    return pass_done(r, s, a.y);
}

/* ---- same: another name for a value ---- */

/* reads: x; value as x. */
int same_check(const struct tl_op_check *c, struct tl_step *s) {
    const struct tl_step *x = op_read(c, s, 0);
    TL_TRY(op_rows(c, s, 0, 0));
    op_shape(s, x, x->n_axes);
    return TL_OK;
}

/* Copies the value only if the step is captured, edited or the last one, which gives logits. */
int same_run(struct run *r, const struct tl_step *s) {
    const float *x = pass_in(r, s, 0);
    const bool last = pass_index(r, s) + 1 == r->p->n;
    float *y;
    if (!last && !pass_captured(r, s) && !pass_edited(r, s)) {
        r->values[pass_index(r, s)] = x;
        return TL_OK;
    }
    y = pass_out(r, s);
    memcpy(y, x, r->n * s->width * sizeof(float));
    return pass_done(r, s, y);
}

/* ---- shape: the same values with other axes ---- */

/* reads: x; numbers: heads, size; value (heads, size), or (size) for 0 heads. Runs as `same`. */
int shape_check(const struct tl_op_check *c, struct tl_step *s) {
    size_t heads, size;
    TL_TRY(op_rows(c, s, 0, 0));
    TL_TRY(op_size(c, s, 0, 0, &heads));
    TL_TRY(op_size(c, s, 1, 1, &size));
    if (TL_MAX(heads, 1) * size != op_read(c, s, 0)->width) {
        return tl_fail(c->err, TL_EARG, "step %zu (shape): %zu x %zu values; expected %zu",
                       c->plan->n, TL_MAX(heads, 1), size, op_read(c, s, 0)->width);
    }
    s->value = TL_VALUE_ROWS;
    if (heads > 0) s->axes[s->n_axes++] = heads;
    s->axes[s->n_axes++] = size;
    return TL_OK;
}

/* ---- slice: part of an axis ---- */

/* reads: x; numbers: an axis of a row of x, the first index, how many; value as x with the axis
 * cut.
 */
int slice_check(const struct tl_op_check *c, struct tl_step *s) {
    const struct tl_step *x = op_read(c, s, 0);
    size_t axis, first, size;
    TL_TRY(op_rows(c, s, 0, 1));
    TL_TRY(op_number(c, s, 0, 0, x->n_axes - 1));
    TL_TRY(op_size(c, s, 0, 0, &axis));
    TL_TRY(op_size(c, s, 1, 0, &first));
    TL_TRY(op_size(c, s, 2, 1, &size));
    if (first + size > x->axes[axis]) {
        return tl_fail(c->err, TL_EARG,
                       "step %zu (slice): %zu values from %zu on; expected at most %zu in all",
                       c->plan->n, size, first, x->axes[axis]);
    }
    op_shape(s, x, x->n_axes);
    s->axes[axis] = size;
    return TL_OK;
}

/* A row is `outer` runs of `stride` values; `run` of them from `first` on are copied. */
struct slice {
    const float *x;
    float *y;
    size_t outer, stride, first, run;
};

static void slice_rows(struct run *r, const void *arg, size_t first, size_t last) {
    const struct slice *a = arg;
    (void)r;
    for (size_t i = first * a->outer; i < last * a->outer; i++) {
        memcpy(a->y + i * a->run, a->x + i * a->stride + a->first, a->run * sizeof(float));
    }
}

int slice_run(struct run *r, const struct tl_step *s) {
    const struct tl_step *x = &r->p->steps[s->in[0]];
    const size_t axis = (size_t)s->numbers[0];
    struct slice a = {.x = pass_in(r, s, 0), .y = pass_out(r, s), .outer = 1};
    size_t inner = 1;
    for (size_t i = 0; i < axis; i++) a.outer *= x->axes[i];
    for (size_t i = axis + 1; i < (size_t)x->n_axes; i++) inner *= x->axes[i];
    a.stride = x->axes[axis] * inner;
    a.first = (size_t)s->numbers[1] * inner;
    a.run = s->axes[axis] * inner;
    TL_TRY(pass_rows(r, r->n, s->width, slice_rows, &a));
    return pass_done(r, s, a.y);
}

/* ---- concat: two values, one behind the other in each head ---- */

/* reads: a (H, n), b (H, m) or (1, m), which all heads share; value (H, n + m). */
int concat_check(const struct tl_op_check *c, struct tl_step *s) {
    const struct tl_step *a = op_read(c, s, 0), *b = op_read(c, s, 1);
    TL_TRY(op_rows(c, s, 0, 2));
    TL_TRY(op_rows(c, s, 1, 2));
    if (a->n_axes != 2 || b->n_axes != 2 || (b->axes[0] != a->axes[0] && b->axes[0] != 1)) {
        return tl_op_wrong(c, "its reads do not match; expected (H, n), and (H, m) or (1, m)");
    }
    op_shape(s, a, 2);
    s->axes[1] = a->axes[1] + b->axes[1];
    return TL_OK;
}

struct concat {
    const float *a, *b;
    float *y;
    size_t heads, a_size, b_size;
    bool shared; // b has one head
};

static void concat_rows(struct run *r, const void *arg, size_t first, size_t last) {
    const struct concat *c = arg;
    const size_t size = c->a_size + c->b_size;
    (void)r;
    for (size_t i = first * c->heads; i < last * c->heads; i++) {
        const size_t at = c->shared ? i / c->heads : i;
        memcpy(c->y + i * size, c->a + i * c->a_size, c->a_size * sizeof(float));
        memcpy(c->y + i * size + c->a_size, c->b + at * c->b_size, c->b_size * sizeof(float));
    }
}

int concat_run(struct run *r, const struct tl_step *s) {
    const struct tl_step *a = &r->p->steps[s->in[0]], *b = &r->p->steps[s->in[1]];
    const struct concat c = {.a = pass_in(r, s, 0),
                             .b = pass_in(r, s, 1),
                             .y = pass_out(r, s),
                             .heads = a->axes[0],
                             .a_size = a->axes[1],
                             .b_size = b->axes[1],
                             .shared = b->axes[0] == 1};
    TL_TRY(pass_rows(r, r->n, s->width, concat_rows, &c));
    return pass_done(r, s, c.y);
}
