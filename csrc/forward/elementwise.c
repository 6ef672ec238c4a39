/* elementwise.c - ops that compute each value from values at the same place. */
#include "forward/elementwise.h"

#include "base/math64.h"
#include "forward/pass.h"

#include <math.h>

/* ---- add ---- */

/* reads: a, b of one shape; value a + b. */
int add_check(const struct tl_op_check *c, struct tl_step *s) {
    const struct tl_step *a = op_read(c, s, 0), *b = op_read(c, s, 1);
    if (!op_same_shape(a, b)) {
        return tl_op_wrong(c, "its reads differ in shape; expected the same shape");
    }
    op_shape(s, a, a->n_axes);
    return TL_OK;
}

struct add {
    const float *a, *b;
    float *y;
    size_t width;
};

static void add_rows(struct run *r, const void *arg, size_t first, size_t last) {
    const struct add *s = arg;
    const size_t at = first * s->width;
    r->k->add(s->a + at, s->b + at, s->y + at, (last - first) * s->width);
}

int add_run(struct run *r, const struct tl_step *s) {
    const struct add a = {pass_in(r, s, 0), pass_in(r, s, 1), pass_out(r, s), s->width};
    TL_TRY(pass_rows(r, r->n, s->width * 4, add_rows, &a));
    return pass_done(r, s, a.y);
}

/* ---- act and unary: functions of kernels.h ---- */

static int check_function(const struct tl_op_check *c, struct tl_step *s, int most) {
    TL_TRY(op_number(c, s, 0, 0, most));
    if (s->numbers[0] != (int)s->numbers[0]) {
        return tl_op_wrong(c, "its function is not a whole number");
    }
    return TL_OK;
}

/*
 * reads: gate, up; numbers: the function, and its alpha and limit; value f(gate) * up, as up. The
 * axes of the gate are those of up, or the first ones: then each of its values is a factor of all
 * values behind the other axes. A gate of one value is a factor of the whole row.
 */
int act_check(const struct tl_op_check *c, struct tl_step *s) {
    const struct tl_step *gate = op_read(c, s, 0), *up = op_read(c, s, 1);
    bool one;
    TL_TRY(check_function(c, s, TL_FN_COUNT - 1));
    TL_TRY(op_number(c, s, 1, -1e30, 1e30));
    TL_TRY(op_number(c, s, 2, 0, 1e30));
    one = up->value == TL_VALUE_ROWS && gate->value == TL_VALUE_ROWS && gate->width == 1;
    if (!one && !op_begins_with(up, gate)) {
        return tl_op_wrong(c, "its reads differ in shape; expected the same shape, the first axes "
                              "of the second read, or one value");
    }
    op_shape(s, up, up->n_axes);
    return TL_OK;
}

struct act {
    const float *gate, *up;
    float *y;
    size_t gates; // per row
    size_t each;  // values of up per gate
    const double *numbers;
};

static void act_rows(struct run *r, const void *arg, size_t first, size_t last) {
    const struct act *a = arg;
    const enum tl_function f = (enum tl_function)a->numbers[0];
    const float alpha = (float)a->numbers[1], limit = (float)a->numbers[2];
    if (a->each == 1) {
        const size_t at = first * a->gates, n = (last - first) * a->gates;
        r->k->gated(f, alpha, limit, a->gate + at, a->up + at, a->y + at, n);
        return;
    }
    for (size_t i = first * a->gates; i < last * a->gates; i++) {
        float factor;
        r->k->unary(f, alpha, a->gate + i, &factor, 1);
        r->k->unary(TL_FN_SCALE, factor, a->up + i * a->each, a->y + i * a->each, a->each);
    }
}

int act_run(struct run *r, const struct tl_step *s) {
    const size_t gates = r->p->steps[s->in[0]].width;
    const struct act a = {pass_in(r, s, 0), pass_in(r, s, 1), pass_out(r, s), gates,
                          s->width / gates, s->numbers};
    TL_TRY(pass_rows(r, r->n, s->width * 4, act_rows, &a));
    return pass_done(r, s, a.y);
}

/* reads: x; numbers: the function, its parameter; value f(x). */
int unary_check(const struct tl_op_check *c, struct tl_step *s) {
    const struct tl_step *x = op_read(c, s, 0);
    TL_TRY(op_rows(c, s, 0, 0));
    TL_TRY(check_function(c, s, TL_FN_OAI - 1));
    TL_TRY(op_number(c, s, 1, -1e30, 1e30));
    if (!(s->numbers[1] > 0) && (s->numbers[0] == TL_FN_SOFT_CAP || s->numbers[0] == TL_FN_CLAMP)) {
        return tl_op_wrong(c, "its limit is not positive");
    }
    op_shape(s, x, x->n_axes);
    return TL_OK;
}

struct unary {
    const float *x;
    float *y;
    size_t width;
    const double *numbers;
};

static void unary_rows(struct run *r, const void *arg, size_t first, size_t last) {
    const struct unary *a = arg;
    const size_t at = first * a->width;
    r->k->unary((enum tl_function)a->numbers[0], (float)a->numbers[1], a->x + at, a->y + at,
                (last - first) * a->width);
}

int unary_run(struct run *r, const struct tl_step *s) {
    const struct unary a = {pass_in(r, s, 0), pass_out(r, s), s->width, s->numbers};
    TL_TRY(pass_rows(r, r->n, s->width * 16, unary_rows, &a));
    return pass_done(r, s, a.y);
}

/* ---- scale: times a weight ---- */

/* reads: x; weights: one value, or as many as the last axis of x; numbers: how many; value x w. */
int scale_check(const struct tl_op_check *c, struct tl_step *s) {
    const struct tl_step *x = op_read(c, s, 0);
    const char *name;
    size_t n;
    TL_TRY(op_rows(c, s, 0, 1));
    TL_TRY(op_name(c, 0, &name));
    TL_TRY(op_size(c, s, 0, 1, &n));
    if (n != 1 && n != x->axes[x->n_axes - 1]) {
        return tl_op_wrong(c, "its weight does not match; expected 1 or the size of the last axis");
    }
    op_shape(s, x, x->n_axes);
    return op_vector(c, s, 0, n);
}

struct scale {
    const float *x, *weight;
    float *y;
    size_t width;
    size_t n; // of the weight
};

static void weight_rows(struct run *r, const void *arg, size_t first, size_t last) {
    const struct scale *a = arg;
    for (size_t i = first * a->width; i < last * a->width; i += a->n == 1 ? a->width : a->n) {
        if (a->n == 1) {
            r->k->unary(TL_FN_SCALE, a->weight[0], a->x + i, a->y + i, a->width);
        } else {
            r->k->gated(TL_FN_IDENTITY, 0, 0, a->x + i, a->weight, a->y + i, a->n);
        }
    }
}

int scale_run(struct run *r, const struct tl_step *s) {
    const struct scale a = {pass_in(r, s, 0), s->vectors[0], pass_out(r, s), s->width,
                            (size_t)s->numbers[0]};
    TL_TRY(pass_rows(r, r->n, s->width, weight_rows, &a));
    return pass_done(r, s, a.y);
}

/* ---- softplus, exp and xielu: in float64 until the end ---- */

/* reads: x; weights: bias (values of x) or None; value log(1 + exp(x + bias)). */
int softplus_check(const struct tl_op_check *c, struct tl_step *s) {
    const struct tl_step *x = op_read(c, s, 0);
    TL_TRY(op_rows(c, s, 0, 0));
    op_shape(s, x, x->n_axes);
    return op_vector(c, s, 0, x->width);
}

struct curve {
    const float *x, *bias;
    float *y;
    size_t width;
    const double *numbers;
};

static void softplus_rows(struct run *r, const void *arg, size_t first, size_t last) {
    const struct curve *a = arg;
    (void)r;
    for (size_t i = first * a->width; i < last * a->width; i++) {
        const double bias = a->bias != NULL ? (double)a->bias[i % a->width] : 0.0;
        a->y[i] = (float)tl_softplus((double)a->x[i] + bias);
    }
}

int softplus_run(struct run *r, const struct tl_step *s) {
    const struct curve a = {pass_in(r, s, 0), s->vectors[0], pass_out(r, s), s->width, NULL};
    TL_TRY(pass_rows(r, r->n, s->width * 64, softplus_rows, &a));
    return pass_done(r, s, a.y);
}

/* reads: x; numbers: the factor; value exp(factor x). */
int exp_check(const struct tl_op_check *c, struct tl_step *s) {
    const struct tl_step *x = op_read(c, s, 0);
    TL_TRY(op_rows(c, s, 0, 0));
    TL_TRY(op_number(c, s, 0, -1e30, 1e30));
    op_shape(s, x, x->n_axes);
    return TL_OK;
}

static void exp_rows(struct run *r, const void *arg, size_t first, size_t last) {
    const struct curve *a = arg;
    (void)r;
    for (size_t i = first * a->width; i < last * a->width; i++) {
        a->y[i] = (float)tl_exp(a->numbers[0] * (double)a->x[i]);
    }
}

int exp_run(struct run *r, const struct tl_step *s) {
    const struct curve a = {pass_in(r, s, 0), NULL, pass_out(r, s), s->width, s->numbers};
    TL_TRY(pass_rows(r, r->n, s->width * 64, exp_rows, &a));
    return pass_done(r, s, a.y);
}

/* The numbers of an xielu step. */
enum { ALPHA_POSITIVE, ALPHA_NEGATIVE, BETA, EPSILON };

/*
 * reads: x; numbers: see above; value (alpha_p x + beta) x where x is positive, elsewhere
 * alpha_n (exp(min(x, epsilon)) - 1 - x) + beta x.
 */
int xielu_check(const struct tl_op_check *c, struct tl_step *s) {
    const struct tl_step *x = op_read(c, s, 0);
    TL_TRY(op_rows(c, s, 0, 0));
    for (int i = ALPHA_POSITIVE; i <= EPSILON; i++) TL_TRY(op_number(c, s, i, -1e30, 1e30));
    op_shape(s, x, x->n_axes);
    return TL_OK;
}

static void xielu_rows(struct run *r, const void *arg, size_t first, size_t last) {
    const struct curve *a = arg;
    const double positive = (float)a->numbers[ALPHA_POSITIVE], beta = (float)a->numbers[BETA];
    const double negative = (float)a->numbers[ALPHA_NEGATIVE], top = (float)a->numbers[EPSILON];
    (void)r;
    for (size_t i = first * a->width; i < last * a->width; i++) {
        const double x = a->x[i];
        if (x > 0) {
            a->y[i] = (float)((positive * x + beta) * x);
        } else {
            a->y[i] = (float)((tl_exp(x > top ? top : x) - 1.0 - x) * negative + beta * x);
        }
    }
}

int xielu_run(struct run *r, const struct tl_step *s) {
    const struct curve a = {pass_in(r, s, 0), NULL, pass_out(r, s), s->width, s->numbers};
    TL_TRY(pass_rows(r, r->n, s->width * 64, xielu_rows, &a));
    return pass_done(r, s, a.y);
}

/* ---- temper: a factor that grows with the position ---- */

/*
 * reads: x; numbers: slope, length, offset; value x (1 + slope ln(1 + floor((p + offset) /
 * length))) at position p.
 */
int temper_check(const struct tl_op_check *c, struct tl_step *s) {
    const struct tl_step *x = op_read(c, s, 0);
    TL_TRY(op_rows(c, s, 0, 0));
    TL_TRY(op_number(c, s, 0, -1e6, 1e6));
    TL_TRY(op_number(c, s, 1, 1e-6, 1e12));
    TL_TRY(op_number(c, s, 2, 0, 1e12));
    op_shape(s, x, x->n_axes);
    return TL_OK;
}

float temper_factor(const double *numbers, size_t position) {
    const double steps = floor(((double)position + numbers[2]) / numbers[1]);
    return (float)(1.0 + numbers[0] * tl_log(1.0 + steps));
}

static void temper_rows(struct run *r, const void *arg, size_t first, size_t last) {
    const struct unary *a = arg;
    for (size_t i = 0; i < r->n_spans; i++) {
        const struct span *s = &r->spans[i];
        for (size_t row = TL_MAX(first, s->row); row < TL_MIN(last, s->row + s->n); row++) {
            const float factor = temper_factor(a->numbers, s->position + (row - s->row));
            r->k->unary(TL_FN_SCALE, factor, a->x + row * a->width, a->y + row * a->width,
                        a->width);
        }
    }
}

int temper_run(struct run *r, const struct tl_step *s) {
    const struct unary a = {pass_in(r, s, 0), pass_out(r, s), s->width, s->numbers};
    TL_TRY(pass_rows(r, r->n, s->width, temper_rows, &a));
    return pass_done(r, s, a.y);
}
