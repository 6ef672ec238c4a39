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
    bool fresh;                 // dx is set, not added to
    size_t vectors;             // per row
    size_t n;                   // values per vector
    size_t weights;             // values that the weight covers
    double divisor;
    float epsilon;
};

static void norm_scale_rows(struct back *b, const void *arg, size_t first, size_t last) {
    const struct norm *a = arg;
    for (size_t i = first * a->vectors; i < last * a->vectors; i++) {
        const float *x = a->x + i * a->n;
        const double s = (double)b->k->norm_scale(x, a->n, a->divisor, a->epsilon);
        const float factor = (float)(-s * s * s / a->divisor * (double)a->dy[i]);
        b->loops->shifted(x, a->n, 0, factor, a->fresh, a->dx + i * a->n);
    }
}

int norm_scale_back(struct back *b, const struct tl_step *s) {
    struct norm a = {.dy = back_dy(b, s), .vectors = s->width, .epsilon = (float)s->numbers[0]};
    a.n = back_step(b, s, 0)->width / s->width;
    a.divisor = s->numbers[1] != 0 ? 1.0 : (double)a.n;
    TL_TRY(back_value(b, s, 0, &a.x));
    TL_TRY(back_into(b, s, 0, &a.dx, &a.fresh));
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
            b->loops->shifted(x, a->n, mean, (float)factor, a->fresh, a->dx + i * a->n);
        }
        if (a->dmean != NULL) {
            double sums[2];
            b->loops->norm(x, NULL, x, a->n, mean, 0, false, NULL, sums);
            a->dmean[i] -= (float)(factor * (sums[1] - (double)a->n * (double)mean));
        }
    }
}

int layer_scale_back(struct back *b, const struct tl_step *s) {
    struct norm a = {.dy = back_dy(b, s), .vectors = s->width, .epsilon = (float)s->numbers[0]};
    a.n = back_step(b, s, 0)->width / s->width;
    TL_TRY(back_value(b, s, 0, &a.x));
    TL_TRY(back_value(b, s, 1, &a.means));
    TL_TRY(back_into(b, s, 0, &a.dx, &a.fresh));
    TL_TRY(back_into(b, s, 1, &a.dmean, NULL));
    return back_ranges(b, b->rows, a.vectors * a.n, layer_scale_rows, &a);
}

static void norm_rows(struct back *b, const void *arg, size_t first, size_t last) {
    const struct norm *a = arg;
    for (size_t i = first * a->vectors; i < last * a->vectors; i++) {
        const float *w = a->weight != NULL ? a->weight + i * a->n % a->weights : NULL;
        const float scale = a->scales[i], mean = a->means != NULL ? a->means[i] : 0;
        double sums[2];
        b->loops->norm(a->x + i * a->n, w, a->dy + i * a->n, a->n, mean, scale, a->fresh,
                       a->dx != NULL ? a->dx + i * a->n : NULL, sums);
        if (a->dscale != NULL) a->dscale[i] += (float)sums[0];
        if (a->dmean != NULL) a->dmean[i] -= (float)(sums[1] * (double)scale);
    }
}

struct norm_weight {
    const struct tl_loops *loops;
    const struct norm *norm;
    size_t rows;       // of a task's columns
    size_t parts;      // of the columns of a vector
    float *dw, *dbias; // NULL: not wanted
};

/* The derivatives by some columns of the weight and the bias, of one of the vectors they cover. */
static void weight_task(void *arg, size_t task, int thread) {
    const struct norm_weight *w = arg;
    const struct norm *a = w->norm;
    const size_t vector = task / w->parts, first = task % w->parts * BACK_COLUMNS;
    const size_t at = vector * a->n;
    const struct tl_norm_vectors v = {.x = a->x + at,
                                      .dy = a->dy + at,
                                      .means = a->means != NULL ? a->means + vector : NULL,
                                      .scales = a->scales + vector,
                                      .count = w->rows,
                                      .stride = a->weights,
                                      .step = a->weights / a->n};
    (void)thread;
    w->loops->norm_weight(&v, first, TL_MIN(first + BACK_COLUMNS, a->n),
                          w->dw != NULL ? w->dw + at : NULL,
                          w->dbias != NULL ? w->dbias + at : NULL);
}

/* norm and layer_norm; read `scale` is the scale, and the one before it the mean, if not the value.
 */
static int any_norm(struct back *b, const struct tl_step *s, int scale) {
    struct norm a = {.weight = s->vectors[0], .dy = back_dy(b, s), .weights = s->number};
    struct norm_weight weight;
    a.vectors = back_step(b, s, scale)->width;
    a.n = s->width / a.vectors;
    TL_TRY(back_value(b, s, 0, &a.x));
    TL_TRY(back_value(b, s, scale, &a.scales));
    if (scale == 2) TL_TRY(back_value(b, s, 1, &a.means));
    TL_TRY(back_into(b, s, 0, &a.dx, &a.fresh));
    TL_TRY(back_into(b, s, scale, &a.dscale, NULL));
    if (scale == 2) TL_TRY(back_into(b, s, 1, &a.dmean, NULL));
    TL_TRY(back_ranges(b, b->rows, s->width * 2, norm_rows, &a));
    weight = (struct norm_weight){.loops = b->loops,
                                  .norm = &a,
                                  .parts = (a.n + BACK_COLUMNS - 1) / BACK_COLUMNS,
                                  .dw = back_weight(b, s, 0),
                                  .dbias = back_weight(b, s, 1)};
    if (weight.dw == NULL && weight.dbias == NULL) return TL_OK;
    weight.rows = b->rows * s->width / a.weights;
    return back_tasks(b, a.weights / a.n * weight.parts, weight_task, &weight);
}

int norm_back(struct back *b, const struct tl_step *s) {
    return any_norm(b, s, 1);
}

int layer_norm_back(struct back *b, const struct tl_step *s) {
    return any_norm(b, s, 2);
}
