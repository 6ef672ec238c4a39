/*
 * device_ops.c - runs ops on a device: all but attention, routers, experts and those with a state.
 *
 * Each function launches kernels of ops.cl or matmul.cl with the numbers that the function of the
 * same name gives to the kernels of the CPU.
 */
#include "forward/device_ops.h"

#include "forward/device_run.h"
#include "forward/elementwise.h"
#include "forward/rows.h"

#include <math.h>
#include <string.h>

/* The arguments after n of a kernel that device_each runs. */
#define EACH(r, s, kernel, ...)                                                                    \
    run_each((r), (s), (kernel), (const struct tl_argument[]){__VA_ARGS__},                        \
             sizeof((const struct tl_argument[]){__VA_ARGS__}) / sizeof(struct tl_argument))

/* Runs a kernel for each value of a step; the last argument is the step's value. */
static int run_each(struct run *r, const struct tl_step *s, const char *kernel,
                    const struct tl_argument *arguments, size_t n) {
    struct tl_argument all[16];
    void **y = &r->device->places[pass_index(r, s)].buffer;
    TL_TRY(device_out(r, s, y));
    memcpy(all, arguments, n * sizeof(*arguments));
    all[n] = tl_buffer_argument(*y);
    TL_TRY(device_each(r, TL_SOURCE_OPS, kernel, r->n * s->width, all, n + 1));
    return device_done(r, s);
}

static struct tl_argument in(const struct run *r, const struct tl_step *s, int i) {
    return tl_buffer_argument(device_in(r, s, i));
}

static struct tl_argument vector(const struct run *r, const struct tl_step *s, int i) {
    return tl_buffer_argument(device_step_of(r, s)->vectors[i]);
}

static const struct tl_step *read_of(const struct run *r, const struct tl_step *s, int i) {
    return &r->p->steps[s->in[i]];
}

/* ---- each value from values at the same place ---- */

int add_run_device(struct run *r, const struct tl_step *s) {
    return EACH(r, s, "add", in(r, s, 0), in(r, s, 1));
}

int unary_run_device(struct run *r, const struct tl_step *s) {
    void **y = &r->device->places[pass_index(r, s)].buffer;
    TL_TRY(device_out(r, s, y));
    TL_TRY(device_apply(r, (enum tl_function)s->numbers[0], (float)s->numbers[1],
                        device_in(r, s, 0), *y, r->n * s->width));
    return device_done(r, s);
}

int softplus_run_device(struct run *r, const struct tl_step *s) {
    const uint64_t width = s->width;
    return EACH(r, s, "softplus", TL_ARGUMENT(width), in(r, s, 0), vector(r, s, 0));
}

int exp_run_device(struct run *r, const struct tl_step *s) {
    return EACH(r, s, "exponential", TL_ARGUMENT(s->numbers[0]), in(r, s, 0));
}

int xielu_run_device(struct run *r, const struct tl_step *s) {
    const float positive = (float)s->numbers[0], negative = (float)s->numbers[1];
    const float beta = (float)s->numbers[2], top = (float)s->numbers[3];
    return EACH(r, s, "xielu", TL_ARGUMENT(positive), TL_ARGUMENT(negative), TL_ARGUMENT(beta),
                TL_ARGUMENT(top), in(r, s, 0));
}

int decay_run_device(struct run *r, const struct tl_step *s) {
    const uint64_t width = s->width;
    return EACH(r, s, "decay", TL_ARGUMENT(width), in(r, s, 0), vector(r, s, 0), vector(r, s, 1));
}

int act_run_device(struct run *r, const struct tl_step *s) {
    const uint64_t each = s->width / read_of(r, s, 0)->width;
    const int32_t function = (int32_t)s->numbers[0];
    const float alpha = (float)s->numbers[1], inverse = 1.0f / alpha, limit = (float)s->numbers[2];
    return EACH(r, s, "gated", TL_ARGUMENT(each), TL_ARGUMENT(function), TL_ARGUMENT(alpha),
                TL_ARGUMENT(inverse), TL_ARGUMENT(limit), in(r, s, 0), in(r, s, 1));
}

int scale_run_device(struct run *r, const struct tl_step *s) {
    const uint64_t period = (uint64_t)s->numbers[0];
    return EACH(r, s, "times_weight", TL_ARGUMENT(period), in(r, s, 0), vector(r, s, 0));
}

/* Copies 4 bytes for each row of the chunk to the device. */
static int copy_rows(struct run *r, struct tl_room *room, const void *values) {
    const size_t bytes = r->n * 4;
    TL_TRY(tl_device_room(r->device->plan->device, room, bytes, "activations", r->err));
    return tl_queue_write(r->device->q, room->buffer, 0, values, bytes, r->err);
}

int temper_run_device(struct run *r, const struct tl_step *s) {
    struct tl_room *room = &r->device->work->factors;
    const uint64_t width = s->width;
    float *factors = tl_alloc(r->n * sizeof(float));
    int status;
    if (factors == NULL) return tl_fail(r->err, TL_ENOMEM, "no memory for a call");
    for (size_t i = 0; i < r->n_spans; i++) {
        const struct span *span = &r->spans[i];
        for (size_t t = 0; t < span->n; t++) {
            factors[span->row + t] = temper_factor(s->numbers, span->position + t);
        }
    }
    status = copy_rows(r, room, factors);
    tl_free(factors);
    TL_TRY(status);
    return EACH(r, s, "times_rows", TL_ARGUMENT(width), in(r, s, 0),
                tl_buffer_argument(room->buffer));
}

/* ---- moving values ---- */

int embed_run_device(struct run *r, const struct tl_step *s) {
    struct tl_room *room = &r->device->work->chosen;
    void **y = &r->device->places[pass_index(r, s)].buffer;
    int32_t *chosen = tl_alloc(r->n * sizeof(int32_t));
    int status;
    if (chosen == NULL) return tl_fail(r->err, TL_ENOMEM, "no memory for a call");
    for (size_t i = 0; i < r->n_spans; i++) {
        const struct span *span = &r->spans[i];
        for (size_t t = 0; t < span->n; t++) {
            chosen[span->row + t] = (int32_t)embed_row(s, span, t);
        }
    }
    status = copy_rows(r, room, chosen);
    tl_free(chosen);
    TL_TRY(status);
    TL_TRY(device_out(r, s, y));
    TL_TRY(
        tl_device_rows(r->device->q, device_step_of(r, s)->matrix, room->buffer, r->n, *y, r->err));
    return device_done(r, s);
}

int same_run_device(struct run *r, const struct tl_step *s) {
    struct device_run *d = r->device;
    const size_t i = pass_index(r, s);
    const bool last = i + 1 == r->p->n;
    if (!last && !pass_captured(r, s) && !pass_edited(r, s)) {
        d->places[i] = d->places[s->in[0]];
        r->values[i] = r->values[s->in[0]];
        return TL_OK;
    }
    TL_TRY(device_out(r, s, &d->places[i].buffer));
    TL_TRY(tl_queue_copy(d->q, device_in(r, s, 0), 0, d->places[i].buffer, 0,
                         r->n * s->width * sizeof(float), r->err));
    return device_done(r, s);
}

int slice_run_device(struct run *r, const struct tl_step *s) {
    const struct tl_step *x = read_of(r, s, 0);
    const size_t axis = (size_t)s->numbers[0];
    uint64_t inner = 1, stride, first, run;
    for (size_t i = axis + 1; i < (size_t)x->n_axes; i++) inner *= x->axes[i];
    stride = x->axes[axis] * inner;
    first = (uint64_t)s->numbers[1] * inner;
    run = s->axes[axis] * inner;
    return EACH(r, s, "slice", TL_ARGUMENT(stride), TL_ARGUMENT(first), TL_ARGUMENT(run),
                in(r, s, 0));
}

int concat_run_device(struct run *r, const struct tl_step *s) {
    const struct tl_step *a = read_of(r, s, 0), *b = read_of(r, s, 1);
    const uint64_t a_size = a->axes[1], b_size = b->axes[1], heads = a->axes[0] / b->axes[0];
    return EACH(r, s, "concat", TL_ARGUMENT(a_size), TL_ARGUMENT(b_size), TL_ARGUMENT(heads),
                in(r, s, 0), in(r, s, 1));
}

/* ---- sums of vectors ---- */

int combine_run_device(struct run *r, const struct tl_step *s) {
    const uint64_t sums = s->axes[0], count = read_of(r, s, 0)->axes[0], size = s->axes[1];
    return EACH(r, s, "combine", TL_ARGUMENT(sums), TL_ARGUMENT(count), TL_ARGUMENT(size),
                in(r, s, 0), in(r, s, 1));
}

int weighted_sum_run_device(struct run *r, const struct tl_step *s) {
    const uint64_t sums = 1, count = read_of(r, s, 1)->width, size = s->width;
    return EACH(r, s, "combine", TL_ARGUMENT(sums), TL_ARGUMENT(count), TL_ARGUMENT(size),
                in(r, s, 0), in(r, s, 1));
}

int add_shared_run_device(struct run *r, const struct tl_step *s) {
    const uint64_t count = s->axes[0], size = s->axes[1];
    return EACH(r, s, "add_shared", TL_ARGUMENT(count), TL_ARGUMENT(size), in(r, s, 0),
                in(r, s, 1));
}

int match_rms_run_device(struct run *r, const struct tl_step *s) {
    const size_t rows = TL_MAX(tl_device_group(r->device->plan->device) / 16, (size_t)1);
    const uint64_t count = s->axes[0], n = s->axes[1], vectors = r->n * count;
    const float most = (float)(1.0 / sqrt((double)(float)s->numbers[0]));
    void **y = &r->device->places[pass_index(r, s)].buffer;
    TL_TRY(device_out(r, s, y));
    const struct tl_argument arguments[] = {
        TL_ARGUMENT(vectors),
        TL_ARGUMENT(count),
        TL_ARGUMENT(n),
        TL_ARGUMENT(most),
        in(r, s, 0),
        in(r, s, 1),
        tl_buffer_argument(*y),
        {rows * 16 * sizeof(uint64_t), NULL},
    };
    TL_TRY(device_launch(r, TL_SOURCE_OPS, "match_rms", arguments, TL_ARRAY_LEN(arguments),
                         (size_t[3]){16, (size_t)(vectors + rows - 1) / rows * rows, 1},
                         (size_t[3]){16, rows, 1}, (double)n / 4 + TL_WORK_OF_VALUE));
    return device_done(r, s);
}

int sparsify_run_device(struct run *r, const struct tl_step *s) {
    const uint64_t size = s->axes[s->n_axes - 1];
    const float factor = (float)s->numbers[0];
    return EACH(r, s, "sparsify", TL_ARGUMENT(size), TL_ARGUMENT(factor), in(r, s, 0), in(r, s, 1),
                in(r, s, 2));
}

/* ---- norms ---- */

/* The kinds of `statistic` in ops.cl. */
enum statistic { RMS_SCALE, LENGTH_SCALE, MEAN, DEVIATION_SCALE };

static int run_statistic(struct run *r, const struct tl_step *s, enum statistic which,
                         float epsilon) {
    const size_t rows = TL_MAX(tl_device_group(r->device->plan->device) / 16, (size_t)1);
    const uint64_t vectors = r->n * s->width, n = read_of(r, s, 0)->width / s->width;
    const size_t global[3] = {16, (size_t)(vectors + rows - 1) / rows * rows, 1};
    const size_t local[3] = {16, rows, 1};
    const int32_t kind = (int32_t)which;
    void **y = &r->device->places[pass_index(r, s)].buffer;
    TL_TRY(device_out(r, s, y));
    const struct tl_argument arguments[] = {
        TL_ARGUMENT(kind),
        TL_ARGUMENT(vectors),
        TL_ARGUMENT(n),
        TL_ARGUMENT(epsilon),
        in(r, s, 0),
        which == DEVIATION_SCALE ? in(r, s, 1) : tl_buffer_argument(NULL),
        tl_buffer_argument(*y),
        {rows * 16 * sizeof(uint64_t), NULL},
    };
    TL_TRY(device_launch(r, TL_SOURCE_OPS, "statistic", arguments, TL_ARRAY_LEN(arguments), global,
                         local, (double)n / 8 + TL_WORK_OF_VALUE));
    return device_done(r, s);
}

int norm_scale_run_device(struct run *r, const struct tl_step *s) {
    return run_statistic(r, s, s->numbers[1] != 0 ? LENGTH_SCALE : RMS_SCALE, (float)s->numbers[0]);
}

int norm_mean_run_device(struct run *r, const struct tl_step *s) {
    return run_statistic(r, s, MEAN, 0);
}

int layer_scale_run_device(struct run *r, const struct tl_step *s) {
    return run_statistic(r, s, DEVIATION_SCALE, (float)s->numbers[0]);
}

static int normalize(struct run *r, const struct tl_step *s, struct tl_argument means, int scale) {
    const uint64_t size = s->width / read_of(r, s, scale)->width, period = s->number;
    return EACH(r, s, "apply_norm", TL_ARGUMENT(size), TL_ARGUMENT(period), in(r, s, 0), means,
                in(r, s, scale), vector(r, s, 0), vector(r, s, 1));
}

int norm_run_device(struct run *r, const struct tl_step *s) {
    return normalize(r, s, tl_buffer_argument(NULL), 1);
}

int layer_norm_run_device(struct run *r, const struct tl_step *s) {
    return normalize(r, s, in(r, s, 1), 2);
}

/* ---- matmuls ---- */

int linear_run_device(struct run *r, const struct tl_step *s) {
    struct device_run *d = r->device;
    const void *x = device_in(r, s, 0);
    bool packed = false; // the steps of the region read the same activations
    for (const struct tl_step *end = s + s->together; s < end; s++) {
        const struct device_step *mine = device_step_of(r, s);
        void **y = &d->places[pass_index(r, s)].buffer;
        TL_TRY(device_out(r, s, y));
        if (s->matrix.type->kind != TL_KIND_FLOAT && !packed) {
            TL_TRY(tl_device_pack(d->q, x, s->matrix.cols, r->n, &d->work->packed, r->err));
            packed = true;
        }
        TL_TRY(tl_device_matmul(d->q, mine->matrix, x, &d->work->packed, r->n, *y, r->err));
        if (mine->vectors[1] != NULL || mine->vectors[2] != NULL) {
            const uint64_t width = s->width;
            const struct tl_argument arguments[] = {TL_ARGUMENT(width), vector(r, s, 2),
                                                    vector(r, s, 1), tl_buffer_argument(*y)};
            TL_TRY(device_each(r, TL_SOURCE_OPS, "finish_rows", r->n * s->width, arguments,
                               TL_ARRAY_LEN(arguments)));
        }
        TL_TRY(device_done(r, s));
    }
    return TL_OK;
}

/* ---- RoPE ---- */

int rope_run_device(struct run *r, const struct tl_step *s) {
    const uint64_t heads = s->axes[0], size = s->axes[1];
    const uint64_t rotated = r->p->ropes[s->number].rotated;
    const int32_t halves = s->numbers[0] != 0;
    return EACH(r, s, "rope", TL_ARGUMENT(heads), TL_ARGUMENT(size), TL_ARGUMENT(rotated),
                TL_ARGUMENT(halves), in(r, s, 0),
                tl_buffer_argument(r->device->work->angles[s->number].buffer));
}
