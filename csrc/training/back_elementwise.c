/* back_elementwise.c - the gradients of ops that compute each value from values at the same place.
 */
#include "training/back_pass.h"

#include "base/math64.h"
#include "forward/elementwise.h"

/* Values that are computed together. */
#define PART 256

int add_back(struct back *b, const struct tl_step *s) {
    TL_TRY(back_copy(b, s, 1));
    return back_move(b, s, 0);
}

/* y = f(x) and d = its derivative, for n <= PART values. */
static void derive(const struct back *b, enum tl_function f, float p, const float *x, float *y,
                   float *d, size_t n) {
    float s[PART];
    b->k->unary(f, p, x, y, n);
    if (f == TL_FN_GELU_ERF) { // normal(x) + x times the normal density
        for (size_t i = 0; i < n; i++) {
            const double u = (double)x[i];
            const double density = 0.3989422804014327 * tl_exp(-0.5 * u * u);
            d[i] = (x[i] != 0 ? y[i] / x[i] : 0.5f) + (float)(u * density);
        }
        return;
    }
    if (f == TL_FN_SILU) b->k->unary(TL_FN_SIGMOID, 0, x, s, n);
    if (f == TL_FN_GELU_TANH) {
        b->loops->inner(x, n, s);
        b->k->unary(TL_FN_SIGMOID, 0, s, s, n);
    }
    b->loops->slope(f, p, x, y, s, n, d);
}

struct act {
    const float *gate, *up, *dy;
    float *dgate, *dup; // NULL: of no use
    bool fresh[2];      // dgate and dup are set, not added to
    size_t gates;       // per row
    size_t each;        // values of up per gate
    size_t width;
    const double *numbers;
};

/* g sigmoid(alpha g) (u + 1), where g is at most the limit, and u within plus and minus it. */
static void oai(const struct back *b, const struct act *a, size_t at, size_t n) {
    const float alpha = (float)a->numbers[1], limit = (float)a->numbers[2];
    float s[PART], g[PART];
    for (size_t i = 0; i < n; i++) {
        g[i] = TL_MIN(a->gate[at + i], limit);
        s[i] = alpha * g[i];
    }
    b->k->unary(TL_FN_SIGMOID, 0, s, s, n);
    for (size_t i = 0; i < n; i++) {
        const float up = TL_MAX(TL_MIN(a->up[at + i], limit), -limit), dy = a->dy[at + i];
        const bool inside = a->up[at + i] > -limit && a->up[at + i] < limit;
        if (a->dup != NULL && inside) a->dup[at + i] += dy * g[i] * s[i];
        if (a->dgate != NULL && a->gate[at + i] < limit) {
            a->dgate[at + i] += dy * (up + 1) * s[i] * (1 + alpha * g[i] * (1 - s[i]));
        }
    }
}

static void act_rows(struct back *b, const void *arg, size_t first, size_t last) {
    const struct act *a = arg;
    const enum tl_function f = (enum tl_function)a->numbers[0];
    const size_t end = last * a->gates;
    float y[PART], d[PART];
    for (size_t at = first * a->gates; at < end; at += PART) {
        const size_t n = TL_MIN(end - at, (size_t)PART);
        if (f == TL_FN_OAI) {
            oai(b, a, at, n);
            continue;
        }
        derive(b, f, (float)a->numbers[1], a->gate + at, y, d, n);
        if (a->each == 1) {
            if (a->dgate != NULL) {
                b->loops->product(a->dy + at, a->up + at, d, n, a->fresh[0], a->dgate + at);
            }
            if (a->dup != NULL) {
                b->loops->product(a->dy + at, y, NULL, n, a->fresh[1], a->dup + at);
            }
            continue;
        }
        for (size_t i = 0; i < n; i++) {
            const float *dy = a->dy + (at + i) * a->each, *up = a->up + (at + i) * a->each;
            double sum = 0;
            for (size_t j = 0; j < a->each; j++) sum += (double)dy[j] * (double)up[j];
            if (a->dgate != NULL) a->dgate[at + i] += (float)sum * d[i];
            for (size_t j = 0; a->dup != NULL && j < a->each; j++) {
                a->dup[(at + i) * a->each + j] += dy[j] * y[i];
            }
        }
    }
}

int act_back(struct back *b, const struct tl_step *s) {
    struct act a = {.dy = back_dy(b, s), .width = s->width, .numbers = s->numbers};
    a.gates = back_step(b, s, 0)->width;
    a.each = s->width / a.gates;
    TL_TRY(back_value(b, s, 0, &a.gate));
    TL_TRY(back_value(b, s, 1, &a.up));
    if (a.each == 1 && a.numbers[0] != TL_FN_OAI) { // these loops set all of the arrays
        TL_TRY(back_into(b, s, 0, &a.dgate, &a.fresh[0]));
        TL_TRY(back_into(b, s, 1, &a.dup, &a.fresh[1]));
    } else {
        TL_TRY(back_into(b, s, 0, &a.dgate, NULL));
        TL_TRY(back_into(b, s, 1, &a.dup, NULL));
    }
    return back_ranges(b, b->rows, s->width * 8, act_rows, &a);
}

struct unary {
    const float *x, *dy;
    float *dx;
    bool fresh; // dx is set, not added to
    size_t width;
    const double *numbers;
};

static void unary_rows(struct back *b, const void *arg, size_t first, size_t last) {
    const struct unary *a = arg;
    float y[PART], d[PART];
    for (size_t at = first * a->width; at < last * a->width; at += PART) {
        const size_t n = TL_MIN(last * a->width - at, (size_t)PART);
        derive(b, (enum tl_function)a->numbers[0], (float)a->numbers[1], a->x + at, y, d, n);
        b->loops->product(a->dy + at, d, NULL, n, a->fresh, a->dx + at);
    }
}

int unary_back(struct back *b, const struct tl_step *s) {
    struct unary a = {.dy = back_dy(b, s), .width = s->width, .numbers = s->numbers};
    TL_TRY(back_value(b, s, 0, &a.x));
    TL_TRY(back_into(b, s, 0, &a.dx, &a.fresh));
    return back_ranges(b, b->rows, s->width * 16, unary_rows, &a);
}

struct scale {
    const float *dy, *weight;
    float *dx;
    size_t width, n; // n: of the weight
};

static void scale_rows(struct back *b, const void *arg, size_t first, size_t last) {
    const struct scale *a = arg;
    (void)b;
    for (size_t i = first * a->width; i < last * a->width; i++) {
        a->dx[i] += a->dy[i] * a->weight[i % a->n];
    }
}

int scale_back(struct back *b, const struct tl_step *s) {
    struct scale a = {back_dy(b, s), s->vectors[0], NULL, s->width, (size_t)s->numbers[0]};
    if (back_weight(b, s, 0) != NULL) {
        return tl_fail(b->err, TL_ENOSUP,
                       "the gradient of the weight of a scale (step %zu) is not "
                       "implemented",
                       (size_t)(s - b->p->steps));
    }
    TL_TRY(back_into(b, s, 0, &a.dx, NULL));
    return back_ranges(b, b->rows, s->width, scale_rows, &a);
}

static void temper_rows(struct back *b, const void *arg, size_t first, size_t last) {
    const struct unary *a = arg;
    for (size_t row = first; row < last; row++) {
        size_t piece;
        const float factor = temper_factor(a->numbers, back_position(b, row, &piece));
        for (size_t i = row * a->width; i < (row + 1) * a->width; i++) {
            a->dx[i] += factor * a->dy[i];
        }
    }
}

int temper_back(struct back *b, const struct tl_step *s) {
    struct unary a = {.dy = back_dy(b, s), .width = s->width, .numbers = s->numbers};
    TL_TRY(back_into(b, s, 0, &a.dx, NULL));
    return back_ranges(b, b->rows, s->width, temper_rows, &a);
}

/* ---- softplus, xielu and exp, in float64 ---- */

struct curve {
    const float *x, *bias, *dy;
    float *dx;
    size_t width;
    const double *numbers; // of xielu and exp: see their checks
};

static void softplus_rows(struct back *b, const void *arg, size_t first, size_t last) {
    const struct curve *a = arg;
    (void)b;
    for (size_t i = first * a->width; i < last * a->width; i++) {
        const double bias = a->bias != NULL ? (double)a->bias[i % a->width] : 0.0;
        a->dx[i] += (float)((double)a->dy[i] / (1 + tl_exp(-((double)a->x[i] + bias))));
    }
}

static void xielu_rows(struct back *b, const void *arg, size_t first, size_t last) {
    const struct curve *a = arg;
    const double positive = a->numbers[0], negative = a->numbers[1], beta = a->numbers[2];
    (void)b;
    for (size_t i = first * a->width; i < last * a->width; i++) {
        const double x = (double)a->x[i], slope = x <= a->numbers[3] ? tl_exp(x) : 0;
        const double d = x > 0 ? 2 * positive * x : negative * (slope - 1);
        a->dx[i] += (float)((d + beta) * (double)a->dy[i]);
    }
}

static void exp_rows(struct back *b, const void *arg, size_t first, size_t last) {
    const struct curve *a = arg;
    const double factor = a->numbers[0];
    (void)b;
    for (size_t i = first * a->width; i < last * a->width; i++) {
        a->dx[i] += (float)(factor * tl_exp(factor * (double)a->x[i]) * (double)a->dy[i]);
    }
}

static int curve_back(struct back *b, const struct tl_step *s, back_range_fn *rows) {
    struct curve a = {
        .bias = s->vectors[0], .dy = back_dy(b, s), .width = s->width, .numbers = s->numbers};
    TL_TRY(back_value(b, s, 0, &a.x));
    TL_TRY(back_into(b, s, 0, &a.dx, NULL));
    return back_ranges(b, b->rows, s->width * 64, rows, &a);
}

int softplus_back(struct back *b, const struct tl_step *s) {
    return curve_back(b, s, softplus_rows);
}

int xielu_back(struct back *b, const struct tl_step *s) {
    return curve_back(b, s, xielu_rows);
}

int exp_back(struct back *b, const struct tl_step *s) {
    return curve_back(b, s, exp_rows);
}

/* ---- rope: the rotation by the opposite angle ---- */

/* The table of cos and -sin of each position. */
static int make_angles(struct back *b, size_t number) {
    const struct tl_rope *rope = &b->p->ropes[number];
    const size_t pairs = rope->rotated / 2;
    float *table = tl_alloc(b->longest * pairs * 2 * sizeof(float));
    if (table == NULL) return tl_fail(b->err, TL_ENOMEM, "no memory for RoPE angles");
    for (size_t i = 0; i < b->longest * pairs; i++) {
        double sin_, cos_;
        tl_sincos((double)(i / pairs) * rope->frequency[i % pairs], &sin_, &cos_);
        table[2 * i] = (float)(cos_ * rope->magnitude);
        table[2 * i + 1] = (float)(-sin_ * rope->magnitude);
    }
    b->cos_sin[number] = table;
    return TL_OK;
}

struct rotation {
    const struct tl_step *s;
    float *dy;
};

static void rotate_rows(struct back *b, const void *arg, size_t first, size_t last) {
    const struct rotation *a = arg;
    const size_t width = a->s->width, rotated = b->p->ropes[a->s->number].rotated;
    void (*rotate)(const float *, float *, size_t, size_t, size_t, const float *) =
        a->s->numbers[0] != 0 ? b->k->rope_halves : b->k->rope_pairs;
    for (size_t row = first; row < last; row++) {
        size_t piece;
        const size_t position = back_position(b, row, &piece);
        float *dy = a->dy + row * width;
        rotate(dy, dy, a->s->axes[0], a->s->axes[1], rotated,
               b->cos_sin[a->s->number] + position * rotated);
    }
}

int rope_back(struct back *b, const struct tl_step *s) {
    struct rotation a = {.s = s};
    TL_TRY(back_own(b, s)); // it is rotated in place
    a.dy = back_dy(b, s);
    if (b->cos_sin[s->number] == NULL) TL_TRY(make_angles(b, s->number));
    TL_TRY(back_ranges(b, b->rows, s->width * 2, rotate_rows, &a));
    return back_move(b, s, 0);
}
