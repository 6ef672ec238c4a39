/* device_plan.c - copies the weights of the steps that run on a device. */
#include "forward/device_plan.h"

#include "forward/attention.h"
#include "forward/ops.h"
#include "forward/recurrent.h"

#include <stdlib.h>
#include <string.h>

/* Whether a step can run on the device, whatever the rest of its region does. */
static int can_run(const struct tl_plan *p, const struct tl_step *s,
                   const struct tl_plan_options *options, bool *can, struct tl_error *err) {
    const size_t layers = options->device_layers;
    *can = tl_ops[s->op].run_device != NULL &&
           (layers == SIZE_MAX || s->layer < (int)TL_MIN(layers, p->layers)) &&
           (options->device_steps == NULL || options->device_steps[s - p->steps] != 0);
    if (!*can || s->matrix.type == NULL) return TL_OK;
    return tl_device_runs_type(options->device, s->matrix.type,
                               options->fast && s->matrix.type->kind != TL_KIND_FLOAT, can, err);
}

/* How many matrices a step of experts or head_linear has. */
static size_t experts_of(const struct tl_plan *p, const struct tl_step *s) {
    return s->op == TL_OP_EXPERTS ? p->steps[p->steps[s->in[1]].in[0]].width : s->axes[0];
}

/* The matrix that the device needs for a step: of experts, all rows of all of them. */
static struct tl_matrix matrix_of(const struct tl_plan *p, const struct tl_step *s) {
    struct tl_matrix m = s->matrix;
    if (s->op != TL_OP_EXPERTS && s->op != TL_OP_HEAD_LINEAR) return m;
    m.rows = experts_of(p, s) * (size_t)s->numbers[2];
    m.data -= (size_t)s->numbers[1] * m.row_bytes;
    return m;
}

/* Values of the vector i of a step, as its op has loaded them. */
static size_t vector_size(const struct tl_plan *p, const struct tl_step *s, int i) {
    switch (s->op) {
    case TL_OP_NORM:
    case TL_OP_LAYER_NORM:
        return s->number;
    case TL_OP_LINEAR:
        return i == 1 ? s->matrix.rows : 1;
    case TL_OP_SCALE:
        return (size_t)s->numbers[0];
    case TL_OP_SCORES:
        return s->axes[0] * ATTENTION_BIASES;
    case TL_OP_SOFTMAX:
        return s->axes[0];
    case TL_OP_SOFTPLUS:
    case TL_OP_DECAY:
    case TL_OP_SHIFT:
        return s->width;
    case TL_OP_CONV:
        return i == 0 ? (size_t)s->numbers[0] * s->width : s->width;
    case TL_OP_SCAN:
        return s->axes[0];
    case TL_OP_SCAN_CHANNELS:
        return i == 0 ? p->caches[s->number].state : s->width;
    case TL_OP_ROUTE_IDS:
        return p->steps[s->in[0]].width;
    case TL_OP_EXPERTS:
    case TL_OP_HEAD_LINEAR:
        return experts_of(p, s) * (i == 1 ? (size_t)s->numbers[2] : 1);
    default:
        return 0;
    }
}

static int copy_vector(struct tl_plan_device *d, const float *values, size_t n, void **out,
                       struct tl_error *err) {
    const size_t bytes = n * sizeof(float);
    int status = tl_device_alloc(d->device, bytes, "the weights", out, err);
    d->weight_bytes += bytes;
    if (status == TL_OK) status = tl_queue_write(d->queue, *out, 0, values, bytes, err);
    return status;
}

static int copy_matrix(struct tl_plan_device *d, const struct tl_matrix *m,
                       const struct tl_device_matrix **out, struct tl_error *err) {
    struct tl_device_matrix *mine = d->matrices;
    int status;
    for (; mine < d->matrices + d->n_matrices; mine++) {
        *out = mine;
        if (mine->shape.data == m->data && mine->shape.rows == m->rows) return TL_OK;
    }
    status = tl_device_matrix_new(d->queue, m, mine, err);
    if (status != TL_OK) return status;
    d->n_matrices++;
    d->weight_bytes += m->rows * m->row_bytes;
    *out = mine;
    return TL_OK;
}

/* Copies what a step reads; the slopes of ALiBi too, which a scores step keeps in its place 1. */
static int copy_weights(struct tl_plan_device *d, const struct tl_plan *p, const struct tl_step *s,
                        struct tl_error *err) {
    struct device_step *mine = &d->steps[s - p->steps];
    int status = TL_OK;
    const struct tl_matrix matrix = matrix_of(p, s);
    if (matrix.type != NULL) status = copy_matrix(d, &matrix, &mine->matrix, err);
    for (int i = 0; i < TL_STEP_WEIGHTS && status == TL_OK; i++) {
        if (s->vectors[i] == NULL) continue;
        status = copy_vector(d, s->vectors[i], vector_size(p, s, i), &mine->vectors[i], err);
    }
    if (s->op == TL_OP_SCORES && s->numbers[SCORES_BIAS] > 0 && status == TL_OK) {
        float *slopes = tl_alloc(s->axes[0] * sizeof(float));
        if (slopes == NULL) return tl_fail(err, TL_ENOMEM, "no memory for a plan");
        for (size_t h = 0; h < s->axes[0]; h++) slopes[h] = attention_slope(s, h);
        status = copy_vector(d, slopes, s->axes[0], &mine->vectors[1], err);
        tl_free(slopes);
    }
    return status;
}

int device_plan_new(const struct tl_plan *p, const struct tl_plan_options *options,
                    struct tl_plan_device **out, struct tl_error *err) {
    struct tl_plan_device *d = calloc(1, sizeof(*d));
    int status = TL_OK;
    *out = NULL;
    if (d == NULL) return tl_fail(err, TL_ENOMEM, "no memory for a plan");
    d->device = options->device;
    d->fast = options->fast;
    d->n_steps = p->n;
    d->steps = calloc(p->n, sizeof(*d->steps));
    d->matrices = calloc(p->n, sizeof(*d->matrices));
    if (d->steps == NULL || d->matrices == NULL) {
        status = tl_fail(err, TL_ENOMEM, "no memory for a plan of %zu steps", p->n);
    }
    if (status == TL_OK) status = tl_queue_new(d->device, &d->queue, err);
    // a region runs on one side
    for (size_t i = 0; i < p->n && status == TL_OK; i += p->steps[i].together) {
        const size_t end = i + p->steps[i].together;
        bool all = true;
        for (size_t j = i; j < end && all && status == TL_OK; j++) {
            status = can_run(p, &p->steps[j], options, &all, err);
        }
        for (size_t j = i; j < end && all && status == TL_OK; j++) {
            d->steps[j].on = true;
            status = copy_weights(d, p, &p->steps[j], err);
        }
    }
    if (status == TL_OK) status = tl_queue_finish(d->queue, err);
    if (status != TL_OK) {
        device_plan_free(d);
        return status;
    }
    *out = d;
    return TL_OK;
}

size_t device_plan_bytes(const struct tl_plan *p, size_t tokens) {
    const struct tl_plan_device *d = p->device;
    size_t bytes = 0;
    if (d == NULL) return 0;
    for (size_t i = 0; i < p->n; i++) {
        const struct tl_step *s = &p->steps[i];
        size_t count = (tokens + TL_BLOCK - 1) / TL_BLOCK;
        if (!d->steps[i].on || (s->op != TL_OP_CACHE && !recurrent_op(s->op))) continue;
        if (s->op != TL_OP_CACHE) count = tokens > TL_BLOCK && tokens % TL_BLOCK != 0 ? 2 : 1;
        bytes += count * p->caches[s->number].block_bytes;
    }
    return d->weight_bytes + bytes;
}

void device_plan_free(struct tl_plan_device *d) {
    if (d == NULL) return;
    tl_queue_free(d->queue);
    for (size_t i = 0; i < d->n_matrices; i++) tl_device_matrix_free(d->device, &d->matrices[i]);
    for (size_t i = 0; d->steps != NULL && i < d->n_steps; i++) {
        for (int j = 0; j < TL_STEP_WEIGHTS; j++) {
            tl_device_free(d->device, d->steps[i].vectors[j]);
        }
    }
    free(d->steps);
    free(d->matrices);
    free(d);
}
