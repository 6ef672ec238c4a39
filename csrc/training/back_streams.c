/* back_streams.c - the gradients of the ops that combine vectors of one token. */
#include "training/back_pass.h"

#include <math.h>

/* Vectors of n values: `count` per row in x, and as many, or one, in y. */
struct vectors {
    const struct tl_step *step;
    const float *x, *y, *z, *dout; // the reads, and the gradient of the value
    float *dx, *dy, *dz;           // NULL: of no use
    size_t count, n;
};

static double dot(const float *a, const float *b, size_t n) {
    double sum = 0;
    for (size_t i = 0; i < n; i++) sum += (double)a[i] * (double)b[i];
    return sum;
}

static void add_times(float *to, double factor, const float *x, size_t n) {
    for (size_t i = 0; to != NULL && i < n; i++) to[i] += (float)(factor * (double)x[i]);
}

/* Reads the value and the gradient of the first two reads of a step, of which x is (count, n). */
static int vectors_of(struct back *b, const struct tl_step *s, struct vectors *a) {
    const struct tl_step *x = back_step(b, s, 0);
    *a = (struct vectors){.step = s, .dout = back_dy(b, s), .n = x->axes[x->n_axes - 1]};
    a->count = x->width / a->n;
    TL_TRY(back_value(b, s, 0, &a->x));
    TL_TRY(back_value(b, s, 1, &a->y));
    TL_TRY(back_into(b, s, 0, &a->dx, NULL));
    return back_into(b, s, 1, &a->dy, NULL);
}

/* ---- combine: y_i = sum of c_ij x_j; here y holds the coefficients ---- */

static void combine_rows(struct back *b, const void *arg, size_t first, size_t last) {
    const struct vectors *a = arg;
    const size_t m = a->step->axes[0];
    (void)b;
    for (size_t i = first * m; i < last * m; i++) {
        const float *dout = a->dout + i * a->n;
        for (size_t j = 0; j < a->count; j++) {
            const size_t x = (i / m * a->count + j) * a->n, c = i * a->count + j;
            if (a->dx != NULL) add_times(a->dx + x, (double)a->y[c], dout, a->n);
            if (a->dy != NULL) a->dy[c] += (float)dot(dout, a->x + x, a->n);
        }
    }
}

int combine_back(struct back *b, const struct tl_step *s) {
    struct vectors a;
    TL_TRY(vectors_of(b, s, &a));
    return back_ranges(b, b->rows, s->width * a.count, combine_rows, &a);
}

/* ---- add_shared: x_i + y ---- */

static void add_shared_rows(struct back *b, const void *arg, size_t first, size_t last) {
    const struct vectors *a = arg;
    for (size_t i = first * a->count; i < last * a->count; i++) {
        const float *dout = a->dout + i * a->n;
        float *dx = a->dx + i * a->n, *dy = a->dy + i / a->count * a->n;
        if (a->dx != NULL) b->k->add(dx, dout, dx, a->n);
        if (a->dy != NULL) b->k->add(dy, dout, dy, a->n);
    }
}

int add_shared_back(struct back *b, const struct tl_step *s) {
    struct vectors a = {.step = s, .dout = back_dy(b, s), .count = s->axes[0], .n = s->axes[1]};
    TL_TRY(back_into(b, s, 0, &a.dx, NULL));
    TL_TRY(back_into(b, s, 1, &a.dy, NULL));
    return back_ranges(b, b->rows, s->width * 2, add_shared_rows, &a);
}

/* ---- match_rms: x_i m / max(rms of x_i, sqrt(epsilon)), where m is the rms of y ---- */

static void match_rms_rows(struct back *b, const void *arg, size_t first, size_t last) {
    const struct vectors *a = arg;
    const double least = sqrt((double)(float)a->step->numbers[0]), n = (double)a->n;
    (void)b;
    for (size_t i = first * a->count; i < last * a->count; i++) {
        const float *x = a->x + i * a->n, *dout = a->dout + i * a->n;
        const float *y = a->y + i / a->count * a->n;
        const double rms = sqrt(dot(x, x, a->n) / n), m = sqrt(dot(y, y, a->n) / n);
        const double scale = 1 / (rms > least ? rms : least), along = dot(x, dout, a->n);
        if (a->dx != NULL) {
            add_times(a->dx + i * a->n, scale * m, dout, a->n);
            if (rms > least) {
                add_times(a->dx + i * a->n, -scale * scale * scale * m * along / n, x, a->n);
            }
        }
        if (a->dy != NULL && m > 0) {
            add_times(a->dy + i / a->count * a->n, scale * along / (n * m), y, a->n);
        }
    }
}

int match_rms_back(struct back *b, const struct tl_step *s) {
    struct vectors a;
    TL_TRY(vectors_of(b, s, &a));
    return back_ranges(b, b->rows, s->width * 8, match_rms_rows, &a);
}

/* ---- sparsify: max(x - bound, 0), where the bound is y + factor / z, of each vector ---- */

static void sparsify_rows(struct back *b, const void *arg, size_t first, size_t last) {
    const struct vectors *a = arg;
    const double factor = (double)(float)a->step->numbers[0];
    (void)b;
    for (size_t i = first * a->count; i < last * a->count; i++) {
        const double z = (double)a->z[i];
        const float bound = (float)((double)a->y[i] + factor / z);
        double sum = 0;
        for (size_t j = i * a->n; j < (i + 1) * a->n; j++) {
            if (!(a->x[j] > bound)) continue;
            sum += (double)a->dout[j];
            if (a->dx != NULL) a->dx[j] += a->dout[j];
        }
        if (a->dy != NULL) a->dy[i] -= (float)sum;
        if (a->dz != NULL) a->dz[i] += (float)(sum * factor / (z * z));
    }
}

int sparsify_back(struct back *b, const struct tl_step *s) {
    struct vectors a;
    TL_TRY(vectors_of(b, s, &a));
    TL_TRY(back_value(b, s, 2, &a.z));
    TL_TRY(back_into(b, s, 2, &a.dz, NULL));
    return back_ranges(b, b->rows, s->width, sparsify_rows, &a);
}
