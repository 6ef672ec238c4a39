/*
 * back_norm.c - the gradients of norms, step by step: that of the statistic of a vector flows back
 * through the step that computed it.
 *
 * A statistic is computed again from its vector, because an edit may have changed its value.
 */
#include "training/back_pass.h"

struct norm {
    const float *x, *means, *scales, *weight, *dy;
    float *dx, *dmean, *dscale; // NULL: of no use
    size_t vectors;             // per row
    size_t n;                   // values per vector
    size_t weights;             // values that the weight covers
    double divisor;
    float epsilon;
};

/* Eight partial sums keep a long sum exact enough and let it overlap with itself. */
#define SUM(name, expression)                                                                      \
    double name = 0;                                                                               \
    do {                                                                                           \
        double parts_[8] = {0};                                                                    \
        for (size_t j = 0; j < a->n; j++) parts_[j % 8] += (double)(expression);                   \
        for (size_t j = 0; j < 8; j++) name += parts_[j];                                          \
    } while (0)

static void norm_scale_rows(struct back *b, const void *arg, size_t first, size_t last) {
    const struct norm *a = arg;
    for (size_t i = first * a->vectors; i < last * a->vectors; i++) {
        const float *x = a->x + i * a->n;
        const double s = (double)b->k->norm_scale(x, a->n, a->divisor, a->epsilon);
        const float factor = (float)(-s * s * s / a->divisor * (double)a->dy[i]);
        for (size_t j = 0; j < a->n; j++) a->dx[i * a->n + j] += factor * x[j];
    }
}

int norm_scale_back(struct back *b, const struct tl_step *s) {
    struct norm a = {.dy = back_dy(b, s), .vectors = s->width, .epsilon = (float)s->numbers[0]};
    a.n = back_step(b, s, 0)->width / s->width;
    a.divisor = s->numbers[1] != 0 ? 1.0 : (double)a.n;
    TL_TRY(back_value(b, s, 0, &a.x));
    TL_TRY(back_into(b, s, 0, &a.dx, NULL));
    return back_ranges(b, b->rows, a.vectors * a.n, norm_scale_rows, &a);
}

static void mean_rows(struct back *b, const void *arg, size_t first, size_t last) {
    const struct norm *a = arg;
    (void)b;
    for (size_t i = first * a->vectors; i < last * a->vectors; i++) {
        const float part = a->dy[i] / (float)a->n;
        for (size_t j = 0; j < a->n; j++) a->dx[i * a->n + j] += part;
    }
}

int norm_mean_back(struct back *b, const struct tl_step *s) {
    struct norm a = {.dy = back_dy(b, s), .vectors = s->width};
    a.n = back_step(b, s, 0)->width / s->width;
    TL_TRY(back_into(b, s, 0, &a.dx, NULL));
    return back_ranges(b, b->rows, a.vectors * a.n, mean_rows, &a);
}

static void layer_scale_rows(struct back *b, const void *arg, size_t first, size_t last) {
    const struct norm *a = arg;
    for (size_t i = first * a->vectors; i < last * a->vectors; i++) {
        const float *x = a->x + i * a->n, mean = a->means[i];
        const double s = (double)b->k->layer_scale(x, a->n, mean, a->epsilon);
        const double factor = -s * s * s / (double)a->n * (double)a->dy[i];
        if (a->dx != NULL) {
            for (size_t j = 0; j < a->n; j++) a->dx[i * a->n + j] += (float)factor * (x[j] - mean);
        }
        if (a->dmean != NULL) {
            SUM(sum, x[j] - mean);
            a->dmean[i] -= (float)(factor * sum);
        }
    }
}

int layer_scale_back(struct back *b, const struct tl_step *s) {
    struct norm a = {.dy = back_dy(b, s), .vectors = s->width, .epsilon = (float)s->numbers[0]};
    a.n = back_step(b, s, 0)->width / s->width;
    TL_TRY(back_value(b, s, 0, &a.x));
    TL_TRY(back_value(b, s, 1, &a.means));
    TL_TRY(back_into(b, s, 0, &a.dx, NULL));
    TL_TRY(back_into(b, s, 1, &a.dmean, NULL));
    return back_ranges(b, b->rows, a.vectors * a.n, layer_scale_rows, &a);
}

static void norm_rows(struct back *b, const void *arg, size_t first, size_t last) {
    const struct norm *a = arg;
    (void)b;
    for (size_t i = first * a->vectors; i < last * a->vectors; i++) {
        const float *w = a->weight != NULL ? a->weight + i * a->n % a->weights : NULL;
        const float *x = a->x + i * a->n, *dy = a->dy + i * a->n, scale = a->scales[i];
        const float mean = a->means != NULL ? a->means[i] : 0;
        float *dx = a->dx != NULL ? a->dx + i * a->n : NULL;
        for (size_t j = 0; dx != NULL && j < a->n; j++) {
            dx[j] += (w != NULL ? dy[j] * w[j] : dy[j]) * scale;
        }
        if (a->dscale != NULL) {
            SUM(sum, (double)(w != NULL ? dy[j] * w[j] : dy[j]) * (double)(x[j] - mean));
            a->dscale[i] += (float)sum;
        }
        if (a->dmean != NULL) {
            SUM(sum, w != NULL ? dy[j] * w[j] : dy[j]);
            a->dmean[i] -= (float)(sum * (double)scale);
        }
    }
}

/* The derivative by the weight: columns [first, last) of it. */
static void weight_columns(struct back *b, const void *arg, size_t first, size_t last) {
    const struct norm *a = arg;
    for (size_t i = 0; i < b->rows * a->vectors * a->n / a->weights; i++) {
        const float *dy = a->dy + i * a->weights, *x = a->x + i * a->weights;
        for (size_t j = first, end; j < last; j = end) { // the columns of one vector
            const size_t vector = (i * a->weights + j) / a->n;
            const float mean = a->means != NULL ? a->means[vector] : 0, scale = a->scales[vector];
            end = TL_MIN(last, (vector + 1) * a->n - i * a->weights);
            for (size_t k = j; k < end; k++) a->dx[k] += dy[k] * ((x[k] - mean) * scale);
        }
    }
}

static void bias_columns(struct back *b, const void *arg, size_t first, size_t last) {
    const struct norm *a = arg;
    for (size_t i = 0; i < b->rows * a->vectors * a->n / a->weights; i++) {
        b->k->add(a->dx + first, a->dy + i * a->weights + first, a->dx + first, last - first);
    }
}

/* norm and layer_norm; read `scale` is the scale, and the one before it the mean, if not the value.
 */
static int any_norm(struct back *b, const struct tl_step *s, int scale) {
    struct norm a = {.weight = s->vectors[0], .dy = back_dy(b, s), .weights = s->number};
    struct norm weight;
    a.vectors = back_step(b, s, scale)->width;
    a.n = s->width / a.vectors;
    TL_TRY(back_value(b, s, 0, &a.x));
    TL_TRY(back_value(b, s, scale, &a.scales));
    if (scale == 2) TL_TRY(back_value(b, s, 1, &a.means));
    TL_TRY(back_into(b, s, 0, &a.dx, NULL));
    TL_TRY(back_into(b, s, scale, &a.dscale, NULL));
    if (scale == 2) TL_TRY(back_into(b, s, 1, &a.dmean, NULL));
    TL_TRY(back_ranges(b, b->rows, s->width * 2, norm_rows, &a));
    weight = a;
    weight.dx = back_weight(b, s, 0);
    if (weight.dx != NULL) TL_TRY(back_ranges(b, a.weights, b->rows * 4, weight_columns, &weight));
    weight.dx = back_weight(b, s, 1);
    if (weight.dx == NULL) return TL_OK;
    return back_ranges(b, a.weights, b->rows * 4, bias_columns, &weight);
}

int norm_back(struct back *b, const struct tl_step *s) {
    return any_norm(b, s, 1);
}

int layer_norm_back(struct back *b, const struct tl_step *s) {
    return any_norm(b, s, 2);
}
