/*
 * back_experts.c - the gradients of routers and experts. Which experts run is a constant.
 */
#include "training/back_pass.h"

#include "base/block_cache.h"
#include "base/math64.h"

#include <math.h>
#include <string.h>

/* How a step route_weights makes its weights: the numbers of route_weights_check. */
enum { NORMALIZED, FROM_LOGITS, FACTOR };
enum { NOT_FROM_LOGITS, SOFTMAX_OF_CHOSEN };

/* Checks the ids of read i of a step, which come from the caller. */
static int check_ids(const struct back *b, const struct tl_step *s, int i, size_t experts,
                     const float **out) {
    const struct tl_step *ids = back_step(b, s, i);
    TL_TRY(back_value(b, s, i, out));
    for (size_t j = 0; j < b->rows * ids->width; j++) {
        const float id = (*out)[j];
        if (id >= 0 && id < (float)experts && id == floorf(id)) continue;
        return tl_fail(b->err, TL_EARG, "step %zu (route_ids) has the id %g; expected 0 to %zu",
                       s->in[i], (double)id, experts - 1);
    }
    return TL_OK;
}

/* ---- router ---- */

struct route {
    const float *x, *ids, *dy;
    float *dx;
    size_t experts, used;
    const struct tl_step *step;
};

static void probs_rows(struct back *b, const void *arg, size_t first, size_t last) {
    const struct route *a = arg;
    (void)b;
    for (size_t t = first; t < last; t++) {
        const float *x = a->x + t * a->experts, *dy = a->dy + t * a->experts;
        float *dx = a->dx + t * a->experts;
        double most = -INFINITY, total = 0, mean = 0;
        for (size_t i = 0; i < a->experts; i++) most = TL_MAX(most, (double)x[i]);
        for (size_t i = 0; i < a->experts; i++) total += tl_exp((double)x[i] - most);
        for (size_t i = 0; i < a->experts; i++) {
            mean += tl_exp((double)x[i] - most) / total * (double)dy[i];
        }
        for (size_t i = 0; i < a->experts; i++) {
            const double sigmoid = 1 / (1 + tl_exp(-(double)x[i]));
            const double p = tl_exp((double)x[i] - most) / total, g = (double)dy[i];
            dx[i] +=
                (float)(a->step->numbers[0] == 0 ? p * (g - mean) : sigmoid * (1 - sigmoid) * g);
        }
    }
}

int route_probs_back(struct back *b, const struct tl_step *s) {
    const size_t n = s->axes[s->n_axes - 1];
    struct route a = {.dy = back_dy(b, s), .experts = n, .step = s};
    TL_TRY(back_value(b, s, 0, &a.x));
    TL_TRY(back_into(b, s, 0, &a.dx, NULL));
    return back_ranges(b, b->rows * (s->width / n), n * 64, probs_rows, &a);
}

static void weights_rows(struct back *b, const void *arg, size_t first, size_t last) {
    const struct route *a = arg;
    const double factor = a->step->numbers[FACTOR];
    const bool softmax = a->step->numbers[FROM_LOGITS] == SOFTMAX_OF_CHOSEN;
    (void)b;
    for (size_t t = first; t < last; t++) {
        const float *x = a->x + t * a->experts, *ids = a->ids + t * a->used;
        const float *dy = a->dy + t * a->used;
        float *dx = a->dx + t * a->experts;
        double most = -INFINITY, total = softmax ? 0 : 1e-20, mean = 0;
        for (size_t i = 0; i < a->used; i++) most = TL_MAX(most, (double)x[(size_t)ids[i]]);
        for (size_t i = 0; i < a->used; i++) {
            const double c = (double)x[(size_t)ids[i]];
            total += softmax ? tl_exp(c - most) : c;
        }
        for (size_t i = 0; i < a->used; i++) {
            const double c = (double)x[(size_t)ids[i]];
            mean += (softmax ? tl_exp(c - most) : c) / total * (double)dy[i];
        }
        for (size_t i = 0; i < a->used; i++) {
            const double c = (double)x[(size_t)ids[i]], g = (double)dy[i];
            double d = g;
            if (softmax) d = tl_exp(c - most) / total * (g - mean);
            if (a->step->numbers[NORMALIZED] != 0) d = (g - mean) / total;
            dx[(size_t)ids[i]] += (float)(factor * d);
        }
    }
}

int route_weights_back(struct back *b, const struct tl_step *s) {
    struct route a = {.dy = back_dy(b, s), .used = s->width, .step = s};
    a.experts = back_step(b, s, 0)->width;
    if (s->numbers[FROM_LOGITS] > SOFTMAX_OF_CHOSEN) {
        return tl_fail(b->err, TL_ENOSUP,
                       "step %zu (route_weights): the gradient of the sparse "
                       "mixer is not implemented",
                       (size_t)(s - b->p->steps));
    }
    TL_TRY(back_value(b, s, 0, &a.x));
    TL_TRY(check_ids(b, s, 1, a.experts, &a.ids));
    TL_TRY(back_into(b, s, 0, &a.dx, NULL));
    return back_ranges(b, b->rows, s->width * 64, weights_rows, &a);
}

struct sum {
    const float *x, *weights, *dy;
    float *dx, *dweights; // NULL: of no use
    size_t used, width;
};

static void sum_rows(struct back *b, const void *arg, size_t first, size_t last) {
    const struct sum *a = arg;
    (void)b;
    for (size_t i = first * a->used; i < last * a->used; i++) {
        const float *x = a->x + i * a->width, *dy = a->dy + i / a->used * a->width;
        double sum = 0;
        for (size_t j = 0; j < a->width; j++) sum += (double)x[j] * (double)dy[j];
        if (a->dweights != NULL) a->dweights[i] += (float)sum;
        for (size_t j = 0; a->dx != NULL && j < a->width; j++) {
            a->dx[i * a->width + j] += a->weights[i] * dy[j];
        }
    }
}

int weighted_sum_back(struct back *b, const struct tl_step *s) {
    struct sum a = {.dy = back_dy(b, s), .width = s->width, .used = back_step(b, s, 1)->width};
    TL_TRY(back_value(b, s, 0, &a.x));
    TL_TRY(back_value(b, s, 1, &a.weights));
    TL_TRY(back_into(b, s, 0, &a.dx, NULL));
    TL_TRY(back_into(b, s, 1, &a.dweights, NULL));
    return back_ranges(b, b->rows, a.used * s->width * 2, sum_rows, &a);
}

/* ---- experts ---- */

/* The pairs of a token and an expert of a step; (rows, used). */
struct pairs {
    const struct tl_step *step;
    const float *ids; // NULL: each head has its own matrix
    size_t used, n;
    bool own;       // each pair has its own input
    size_t *list;   // (n) of one expert
    float *dy, *dx; // (n, rows), (n, cols) of one expert
};

/* Adds the gradients of the inputs of one expert. */
static int one_expert(struct back *b, const struct pairs *p, size_t expert, float *dx) {
    const struct tl_step *s = p->step;
    const float *dy = back_dy(b, s), *scale = s->vectors[2];
    const size_t rows = s->matrix.rows, cols = s->matrix.cols;
    struct tl_matrix w = s->matrix;
    size_t n = 0;
    w.data += expert * (size_t)s->numbers[2] * w.row_bytes;
    for (size_t i = 0; i < p->n; i++) {
        if ((p->ids != NULL ? (size_t)p->ids[i] : i % p->used) != expert) continue;
        memcpy(p->dy + n * rows, dy + i * rows, rows * sizeof(float));
        p->list[n++] = i;
    }
    if (n == 0) return TL_OK;
    if (scale != NULL) b->k->unary(TL_FN_SCALE, scale[expert], p->dy, p->dy, n * rows);
    TL_TRY(back_gemm(b, &(struct tl_gemm){.m = n,
                                          .n = cols,
                                          .k = rows,
                                          .a = p->dy,
                                          .a_row = rows,
                                          .a_col = 1,
                                          .weights = &w,
                                          .c = p->dx,
                                          .c_row = cols}));
    for (size_t i = 0; i < n; i++) {
        float *to = dx + (p->own ? p->list[i] : p->list[i] / p->used) * cols;
        b->k->add(to, p->dx + i * cols, to, cols);
    }
    return TL_OK;
}

int experts_back(struct back *b, const struct tl_step *s) {
    const bool heads = s->op == TL_OP_HEAD_LINEAR;
    struct pairs p = {.step = s, .used = s->axes[0], .n = b->rows * s->axes[0]};
    const size_t experts = heads ? p.used : b->p->steps[back_step(b, s, 1)->in[0]].width;
    const size_t bytes = p.n * ((s->matrix.rows + s->matrix.cols) * sizeof(float) + sizeof(size_t));
    float *dx;
    int status = TL_OK;
    p.own = back_step(b, s, 0)->n_axes == 2;
    if (!heads) TL_TRY(check_ids(b, s, 1, experts, &p.ids));
    TL_TRY(back_into(b, s, 0, &dx, NULL));
    if (dx == NULL) return TL_OK;
    p.list = tl_block_cache_take(bytes);
    if (p.list == NULL) return tl_fail(b->err, TL_ENOMEM, "no memory for %zu bytes", bytes);
    p.dy = (float *)(void *)(p.list + p.n);
    p.dx = p.dy + p.n * s->matrix.rows;
    for (size_t e = 0; e < experts && status == TL_OK; e++) status = one_expert(b, &p, e, dx);
    tl_block_cache_give(p.list, bytes);
    return status;
}
