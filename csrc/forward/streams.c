/* streams.c - ops that combine vectors of one token, such as the streams of AltUp, and bounds. */
#include "forward/streams.h"

#include "forward/pass.h"

#include <math.h>

/* Vectors of n values: some per row in a, and as many or one in b. */
struct vectors {
    const struct tl_step *step;
    const float *a, *b, *c; // the reads
    float *y;
    size_t count, n;
};

/* ---- combine: weighted sums of vectors ---- */

/* reads: x (n, D), coefficients (m n values); value (m, D): y_i = sum of c_ij x_j. */
int combine_check(const struct tl_op_check *c, struct tl_step *s) {
    const struct tl_step *x = op_read(c, s, 0), *coefficients = op_read(c, s, 1);
    TL_TRY(op_rows(c, s, 0, 2));
    TL_TRY(op_rows(c, s, 1, 1));
    if (x->n_axes != 2 || coefficients->width % x->axes[0] != 0) {
        return tl_op_wrong(c, "its reads do not match; expected (n, D) and a multiple of n values");
    }
    op_shape(s, x, 2);
    s->axes[0] = coefficients->width / x->axes[0];
    return TL_OK;
}

static void combine_rows(struct run *r, const void *arg, size_t first, size_t last) {
    const struct vectors *a = arg;
    const size_t m = a->step->axes[0];
    for (size_t i = first * m; i < last * m; i++) {
        r->k->weighted_sum(a->a + i / m * a->count * a->n, a->b + i * a->count, a->count, a->n,
                           a->y + i * a->n);
    }
}

int combine_run(struct run *r, const struct tl_step *s) {
    const struct tl_step *x = &r->p->steps[s->in[0]];
    const struct vectors a = {.step = s,
                              .a = pass_in(r, s, 0),
                              .b = pass_in(r, s, 1),
                              .y = pass_out(r, s),
                              .count = x->axes[0],
                              .n = x->axes[1]};
    TL_TRY(pass_rows(r, r->n, s->width * a.count, combine_rows, &a));
    return pass_done(r, s, a.y);
}

/* ---- add_shared, match_rms: each vector of a token with one vector ---- */

/* reads: x (n, D), y (D values); value (n, D). */
static int check_shared(const struct tl_op_check *c, struct tl_step *s) {
    const struct tl_step *x = op_read(c, s, 0);
    TL_TRY(op_rows(c, s, 0, 2));
    TL_TRY(op_rows(c, s, 1, 1));
    if (x->n_axes != 2 || op_read(c, s, 1)->width != x->axes[1]) {
        return tl_op_wrong(c, "its reads do not match; expected (n, D) and (D)");
    }
    op_shape(s, x, 2);
    return TL_OK;
}

static int run_shared(struct run *r, const struct tl_step *s, pass_row_fn *rows) {
    const struct vectors a = {.step = s,
                              .a = pass_in(r, s, 0),
                              .b = pass_in(r, s, 1),
                              .y = pass_out(r, s),
                              .count = s->axes[0],
                              .n = s->axes[1]};
    TL_TRY(pass_rows(r, r->n, s->width * 2, rows, &a));
    return pass_done(r, s, a.y);
}

/* value: x_i + y */
int add_shared_check(const struct tl_op_check *c, struct tl_step *s) {
    return check_shared(c, s);
}

static void add_shared_rows(struct run *r, const void *arg, size_t first, size_t last) {
    const struct vectors *a = arg;
    for (size_t i = first * a->count; i < last * a->count; i++) {
        r->k->add(a->a + i * a->n, a->b + i / a->count * a->n, a->y + i * a->n, a->n);
    }
}

int add_shared_run(struct run *r, const struct tl_step *s) {
    return run_shared(r, s, add_shared_rows);
}

/* numbers: epsilon; value: x_i rms(y) / sqrt(max(mean of x_i^2, epsilon)) */
int match_rms_check(const struct tl_op_check *c, struct tl_step *s) {
    TL_TRY(op_number(c, s, 0, 1e-30, 0.99));
    return check_shared(c, s);
}

static void match_rms_rows(struct run *r, const void *arg, size_t first, size_t last) {
    const struct vectors *a = arg;
    const float most = (float)(1.0 / sqrt((double)(float)a->step->numbers[0]));
    for (size_t row = first; row < last; row++) {
        const float rms = 1 / r->k->norm_scale(a->b + row * a->n, a->n, (double)a->n, 0);
        for (size_t i = row * a->count; i < (row + 1) * a->count; i++) {
            const float *x = a->a + i * a->n;
            const float scale = r->k->norm_scale(x, a->n, (double)a->n, 0);
            float *y = a->y + i * a->n;
            r->k->unary(TL_FN_SCALE, scale > most ? most : scale, x, y, a->n);
            r->k->unary(TL_FN_SCALE, rms, y, y, a->n);
        }
    }
}

int match_rms_run(struct run *r, const struct tl_step *s) {
    return run_shared(r, s, match_rms_rows);
}

/* ---- sparsify: what is above a bound that depends on mean and deviation ---- */

/*
 * reads: x, its mean, 1 / its standard deviation; numbers: factor; value max(x - bound, 0), where
 * the bound is mean + factor * deviation.
 */
int sparsify_check(const struct tl_op_check *c, struct tl_step *s) {
    const struct tl_step *x = op_read(c, s, 0);
    TL_TRY(op_rows(c, s, 0, 1));
    TL_TRY(op_number(c, s, 0, -1e6, 1e6));
    for (int i = 1; i <= 2; i++) {
        TL_TRY(op_rows(c, s, i, 0));
        if (op_read(c, s, i)->width * x->axes[x->n_axes - 1] != x->width) {
            return tl_op_wrong(c, "its statistics do not match; expected one for each vector");
        }
    }
    op_shape(s, x, x->n_axes);
    return TL_OK;
}

static void sparsify_rows(struct run *r, const void *arg, size_t first, size_t last) {
    const struct vectors *a = arg;
    const double factor = (float)a->step->numbers[0];
    (void)r;
    for (size_t i = first * a->count; i < last * a->count; i++) {
        const float bound = (float)((double)a->b[i] + factor / (double)a->c[i]);
        for (size_t j = i * a->n; j < (i + 1) * a->n; j++) {
            const float above = a->a[j] - bound;
            a->y[j] = above < 0 ? 0 : above; // NaN stays
        }
    }
}

int sparsify_run(struct run *r, const struct tl_step *s) {
    const size_t n = s->axes[s->n_axes - 1];
    const struct vectors a = {.step = s,
                              .a = pass_in(r, s, 0),
                              .b = pass_in(r, s, 1),
                              .c = pass_in(r, s, 2),
                              .y = pass_out(r, s),
                              .count = s->width / n,
                              .n = n};
    TL_TRY(pass_rows(r, r->n, s->width, sparsify_rows, &a));
    return pass_done(r, s, a.y);
}
