/*
 * ops.c - the table of ops, and the ops that work on each row alone.
 *
 * The comment of each check lists what a step of its op reads, its weights, its numbers and its
 * value. docs/numerics.md defines the arithmetic.
 */
#include "forward/ops.h"

#include "forward/attention.h"
#include "forward/linear.h"
#include "forward/pass.h"
#include "forward/recurrent.h"
#include "forward/rope.h"

#include <math.h>
#include <string.h>

#define MAX_DIMENSION (1 << 24)

static const struct tl_step *read_of(const struct tl_op_check *c, const struct tl_step *s, int i) {
    return &c->plan->steps[s->in[i]];
}

int tl_op_wrong(const struct tl_op_check *c, const char *what) {
    return tl_fail(c->err, TL_EARG, "step %zu (%s): %s", c->plan->n, c->spec->op, what);
}

/* Reads number i of the step as a size from `least` to MAX_DIMENSION. */
static int size_of(const struct tl_op_check *c, const struct tl_step *s, int i, size_t least,
                   size_t *out) {
    const double x = s->numbers[i];
    if (!(x >= (double)least && x <= MAX_DIMENSION) || x != floor(x)) {
        return tl_fail(c->err, TL_EARG, "step %zu (%s): number %d is %g; expected %zu to %d",
                       c->plan->n, c->spec->op, i, x, least, MAX_DIMENSION);
    }
    *out = (size_t)x;
    return TL_OK;
}

static int name_of(const struct tl_op_check *c, int i, const char **name) {
    *name = c->spec->weights[i];
    return *name != NULL ? TL_OK : tl_op_wrong(c, "its weight is None; expected a name");
}

static void take_shape(struct tl_step *s, const struct tl_step *from, int n_axes) {
    s->value = TL_VALUE_ROWS;
    s->n_axes = n_axes;
    memcpy(s->axes, from->axes, (size_t)n_axes * sizeof(*s->axes));
}

static bool same_shape(const struct tl_step *a, const struct tl_step *b) {
    return a->value == TL_VALUE_ROWS && b->value == TL_VALUE_ROWS && a->n_axes == b->n_axes &&
           memcmp(a->axes, b->axes, (size_t)a->n_axes * sizeof(*a->axes)) == 0;
}

/* ---- embed: the row of a table for each token ---- */

/* weights: (V, D); numbers: V, D; value (D). The first embed step sets V and D of the plan. */
static int embed_check(const struct tl_op_check *c, struct tl_step *s) {
    const char *name;
    size_t rows = 0, width = 0;
    TL_TRY(name_of(c, 0, &name));
    TL_TRY(size_of(c, s, 0, 1, &rows));
    TL_TRY(size_of(c, s, 1, 1, &width));
    TL_TRY(tl_weights_matrix(c->weights, name, rows, width, &s->matrix, c->err));
    if (c->plan->vocab_size == 0) {
        c->plan->vocab_size = rows;
        c->plan->width = width;
    }
    if (rows != c->plan->vocab_size) {
        return tl_fail(c->err, TL_EARG, "step %zu (embed): its table has %zu rows; expected %zu",
                       c->plan->n, rows, c->plan->vocab_size);
    }
    s->value = TL_VALUE_ROWS;
    s->axes[0] = width;
    s->n_axes = 1;
    return TL_OK;
}

struct embed {
    const struct tl_matrix *w;
    float *y;
};

static void embed_rows(struct run *r, const void *arg, size_t first, size_t last) {
    const struct embed *a = arg;
    for (size_t i = 0; i < r->n_spans; i++) {
        const struct span *s = &r->spans[i];
        for (size_t t = 0; t < s->n; t++) {
            const size_t row = s->row + t;
            if (row < first || row >= last) continue;
            tl_type_to_f32(a->w->type,
                           a->w->data + (size_t)s->piece->tokens[s->done + t] * a->w->row_bytes,
                           a->y + row * a->w->cols, a->w->cols);
        }
    }
}

static int embed_run(struct run *r, const struct tl_step *s) {
    const struct embed a = {&s->matrix, pass_out(r, s)};
    TL_TRY(pass_rows(r, r->n, s->width * 4, embed_rows, &a));
    return pass_done(r, s, a.y);
}

/* ---- same: another name for a value ---- */

/* reads: x; value as x. */
static int same_check(const struct tl_op_check *c, struct tl_step *s) {
    const struct tl_step *x = read_of(c, s, 0);
    if (x->value != TL_VALUE_ROWS) return tl_op_wrong(c, "its read has no rows; expected (T, ...)");
    take_shape(s, x, x->n_axes);
    return TL_OK;
}

/* Copies the value only if the step is captured, edited or the last one, which gives logits. */
static int same_run(struct run *r, const struct tl_step *s) {
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

/* ---- norm_scale and norm: RMS norm in two steps, over the last axis ---- */

/* reads: x; numbers: epsilon; value: the leading axes of x. */
static int norm_scale_check(const struct tl_op_check *c, struct tl_step *s) {
    const struct tl_step *x = read_of(c, s, 0);
    if (x->value != TL_VALUE_ROWS || x->n_axes == 0) {
        return tl_op_wrong(c, "its read has no vectors; expected (T, ..., n)");
    }
    if (!(s->numbers[0] >= 0 && s->numbers[0] < 1)) {
        return tl_fail(c->err, TL_EARG,
                       "step %zu (%s): epsilon is %g; expected a number from 0 to 1", c->plan->n,
                       c->spec->op, s->numbers[0]);
    }
    take_shape(s, x, x->n_axes - 1);
    return TL_OK;
}

/* reads: x, scale; weights: (last axis of x); value as x. */
static int norm_check(const struct tl_op_check *c, struct tl_step *s) {
    const struct tl_step *x = read_of(c, s, 0), *scale = read_of(c, s, 1);
    const char *name;
    if (x->value != TL_VALUE_ROWS || x->n_axes == 0 || scale->value != TL_VALUE_ROWS ||
        scale->n_axes != x->n_axes - 1 ||
        memcmp(scale->axes, x->axes, (size_t)scale->n_axes * sizeof(*x->axes)) != 0) {
        return tl_op_wrong(
            c, "its scale does not match its value; expected the shape without last axis");
    }
    TL_TRY(name_of(c, 0, &name));
    take_shape(s, x, x->n_axes);
    return tl_weights_vector(c->weights, name, x->axes[x->n_axes - 1], &s->vectors[0], c->err);
}

struct norm {
    const float *x, *scales, *weight;
    float *y;      // the scales, or the normalized vectors
    size_t groups; // vectors per row
    size_t n;      // values per vector
    float epsilon;
};

static void norm_scale_rows(struct run *r, const void *arg, size_t first, size_t last) {
    const struct norm *a = arg;
    for (size_t i = first * a->groups; i < last * a->groups; i++) {
        a->y[i] = r->k->norm_scale(a->x + i * a->n, a->n, a->epsilon);
    }
}

static int norm_scale_run(struct run *r, const struct tl_step *s) {
    const size_t n = r->p->steps[s->in[0]].width / s->width;
    const struct norm a = {.x = pass_in(r, s, 0),
                           .y = pass_out(r, s),
                           .groups = s->width,
                           .n = n,
                           .epsilon = (float)s->numbers[0]};
    TL_TRY(pass_rows(r, r->n, s->width * n, norm_scale_rows, &a));
    return pass_done(r, s, a.y);
}

static void norm_rows(struct run *r, const void *arg, size_t first, size_t last) {
    const struct norm *a = arg;
    for (size_t i = first * a->groups; i < last * a->groups; i++) {
        r->k->norm_apply(a->x + i * a->n, a->weight, a->n, a->scales[i], a->y + i * a->n);
    }
}

static int norm_run(struct run *r, const struct tl_step *s) {
    const size_t n = s->axes[s->n_axes - 1];
    const struct norm a = {.x = pass_in(r, s, 0),
                           .scales = pass_in(r, s, 1),
                           .weight = s->vectors[0],
                           .y = pass_out(r, s),
                           .groups = s->width / n,
                           .n = n};
    TL_TRY(pass_rows(r, r->n, s->width, norm_rows, &a));
    return pass_done(r, s, a.y);
}

/* ---- linear: x W^T + b ---- */

/*
 * reads: x; weights: (rows, values of x), bias (rows) or NULL; numbers: heads, size.
 * The matrix has heads * size rows and the value is (heads, size); with 0 heads it has `size` rows
 * and the value is (size).
 */
static int linear_check(const struct tl_op_check *c, struct tl_step *s) {
    const struct tl_step *x = read_of(c, s, 0);
    const char *name;
    size_t heads = 0, size = 0, rows;
    if (x->value != TL_VALUE_ROWS) return tl_op_wrong(c, "its read has no rows; expected (T, ...)");
    TL_TRY(name_of(c, 0, &name));
    TL_TRY(size_of(c, s, 0, 0, &heads));
    TL_TRY(size_of(c, s, 1, 1, &size));
    rows = TL_MAX(heads, 1) * size;
    TL_TRY(tl_weights_matrix(c->weights, name, rows, x->width, &s->matrix, c->err));
    s->value = TL_VALUE_ROWS;
    if (heads > 0) s->axes[s->n_axes++] = heads;
    s->axes[s->n_axes++] = size;
    if (c->spec->weights[1] == NULL) return TL_OK;
    return tl_weights_vector(c->weights, c->spec->weights[1], rows, &s->vectors[1], c->err);
}

/* ---- add, act: elementwise ---- */

/* reads: a, b of one shape; value a + b. */
static int add_check(const struct tl_op_check *c, struct tl_step *s) {
    const struct tl_step *a = read_of(c, s, 0), *b = read_of(c, s, 1);
    if (!same_shape(a, b))
        return tl_op_wrong(c, "its reads differ in shape; expected the same shape");
    take_shape(s, a, a->n_axes);
    return TL_OK;
}

/* reads: gate, up of one shape; numbers: 0 for silu; value silu(gate) * up. */
static int act_check(const struct tl_op_check *c, struct tl_step *s) {
    if (s->numbers[0] != 0) {
        return tl_fail(c->err, TL_EARG, "step %zu (act): its function is %g; expected 0 (silu)",
                       c->plan->n, s->numbers[0]);
    }
    return add_check(c, s);
}

/* y = fn(a, b), elementwise over rows of `width`. */
struct binary {
    const float *a, *b;
    float *y;
    size_t width;
    void (*fn)(const float *a, const float *b, float *y, size_t n);
};

static void binary_rows(struct run *r, const void *arg, size_t first, size_t last) {
    const struct binary *s = arg;
    const size_t at = first * s->width;
    (void)r;
    s->fn(s->a + at, s->b + at, s->y + at, (last - first) * s->width);
}

static int binary_run(struct run *r, const struct tl_step *s,
                      void (*fn)(const float *, const float *, float *, size_t)) {
    const struct binary a = {pass_in(r, s, 0), pass_in(r, s, 1), pass_out(r, s), s->width, fn};
    TL_TRY(pass_rows(r, r->n, s->width * 4, binary_rows, &a));
    return pass_done(r, s, a.y);
}

static int add_run(struct run *r, const struct tl_step *s) {
    return binary_run(r, s, r->k->add);
}

static int act_run(struct run *r, const struct tl_step *s) {
    return binary_run(r, s, r->k->silu_mul);
}

/* One row per op. No gradient is implemented yet. */
const struct tl_op_info tl_ops[TL_OP_COUNT] = {
    // name, reads, weights, numbers, scope, check, run, back
    [TL_OP_EMBED] = {"embed", 0, 1, 2, TL_SCOPE_CONTEXT, embed_check, embed_run, NULL},
    [TL_OP_SAME] = {"same", 1, 0, 0, TL_SCOPE_ROW, same_check, same_run, NULL},
    [TL_OP_NORM_SCALE] = {"norm_scale", 1, 0, 1, TL_SCOPE_ROW, norm_scale_check, norm_scale_run,
                          NULL},
    [TL_OP_NORM] = {"norm", 2, 1, 0, TL_SCOPE_ROW, norm_check, norm_run, NULL},
    [TL_OP_LINEAR] = {"linear", 1, 2, 2, TL_SCOPE_ROW, linear_check, linear_run, NULL},
    [TL_OP_ROPE] = {"rope", 1, 1, 10, TL_SCOPE_CONTEXT, rope_check, rope_run, NULL},
    [TL_OP_CACHE] = {"cache", 2, 0, 0, TL_SCOPE_CONTEXT, cache_check, cache_run, NULL},
    [TL_OP_SCORES] = {"scores", 2, 0, 1, TL_SCOPE_CONTEXT, scores_check, attention_run, NULL},
    [TL_OP_SOFTMAX] = {"softmax", 1, 0, 0, TL_SCOPE_CONTEXT, softmax_check, NULL, NULL},
    [TL_OP_MIX] = {"mix", 2, 0, 0, TL_SCOPE_CONTEXT, mix_check, NULL, NULL},
    [TL_OP_ADD] = {"add", 2, 0, 0, TL_SCOPE_ROW, add_check, add_run, NULL},
    [TL_OP_ACT] = {"act", 2, 0, 1, TL_SCOPE_ROW, act_check, act_run, NULL},
    [TL_OP_CONV] = {"conv", 1, 2, 1, TL_SCOPE_CONTEXT, conv_check, conv_run, NULL},
    [TL_OP_DECAY] = {"decay", 1, 2, 0, TL_SCOPE_ROW, decay_check, decay_run, NULL},
    [TL_OP_DELTA] = {"delta", 5, 0, 2, TL_SCOPE_CONTEXT, delta_check, delta_run, NULL},
};
