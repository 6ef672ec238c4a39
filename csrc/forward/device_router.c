/* device_router.c - runs the ops that choose experts, and the matmuls of experts, on a device. */
#include "forward/device_ops.h"
#include "forward/device_run.h"
#include "forward/router.h"

static const struct tl_step *read_of(const struct run *r, const struct tl_step *s, int i) {
    return &r->p->steps[s->in[i]];
}

static void **place_of(struct run *r, const struct tl_step *s) {
    return &r->device->places[pass_index(r, s)].buffer;
}

int route_probs_run_device(struct run *r, const struct tl_step *s) {
    const size_t n = s->axes[s->n_axes - 1];
    void **y = place_of(r, s);
    const size_t count = r->n * s->width;
    TL_TRY(device_out(r, s, y));
    if (s->numbers[0] == ROUTE_SOFTMAX) {
        TL_TRY(tl_queue_copy(r->device->q, device_in(r, s, 0), 0, *y, 0, count * sizeof(float),
                             r->err));
        TL_TRY(device_softmax(r, *y, count / n, n));
    } else {
        TL_TRY(device_apply(r, TL_FN_SIGMOID, 0, device_in(r, s, 0), *y, count));
    }
    return device_done(r, s);
}

int route_ids_run_device(struct run *r, const struct tl_step *s) {
    const size_t group = tl_device_group(r->device->plan->device);
    const size_t experts = read_of(r, s, 0)->width;
    const int32_t n[5] = {(int32_t)experts, (int32_t)s->width, (int32_t)s->numbers[1],
                          (int32_t)s->numbers[2], (int32_t)s->numbers[3]};
    void **y = place_of(r, s);
    TL_TRY(device_out(r, s, y));
    const struct tl_argument arguments[] = {
        TL_ARGUMENT(n[0]),
        TL_ARGUMENT(n[1]),
        TL_ARGUMENT(n[2]),
        TL_ARGUMENT(n[3]),
        TL_ARGUMENT(n[4]),
        tl_buffer_argument(device_in(r, s, 0)),
        tl_buffer_argument(device_step_of(r, s)->vectors[0]),
        tl_buffer_argument(*y),
    };
    TL_TRY(device_launch(r, TL_SOURCE_ROUTER, "route_ids", arguments, TL_ARRAY_LEN(arguments),
                         (size_t[3]){(experts + group - 1) / group * group, r->n, 1},
                         (size_t[3]){group, 1, 1}, 4 * (double)experts));
    return device_done(r, s);
}

/* Ids that an edit may have changed are checked on the host. */
static int check_ids(struct run *r, const struct tl_step *s) {
    if (!pass_edited(r, read_of(r, s, 1))) return TL_OK;
    TL_TRY(device_to_host(r, s->in[1]));
    return router_ids(r, s, 1);
}

int route_weights_run_device(struct run *r, const struct tl_step *s) {
    const size_t group = tl_device_group(r->device->plan->device);
    const int32_t n[4] = {(int32_t)read_of(r, s, 0)->width, (int32_t)s->width, s->numbers[0] != 0,
                          (int32_t)s->numbers[1]};
    const uint64_t tokens = r->n;
    const float factor = (float)s->numbers[2];
    void **y = place_of(r, s);
    TL_TRY(check_ids(r, s));
    TL_TRY(device_out(r, s, y));
    const struct tl_argument arguments[] = {
        TL_ARGUMENT(tokens),
        TL_ARGUMENT(n[0]),
        TL_ARGUMENT(n[1]),
        TL_ARGUMENT(n[2]),
        TL_ARGUMENT(n[3]),
        tl_buffer_argument(device_in(r, s, 0)),
        tl_buffer_argument(device_in(r, s, 1)),
        tl_buffer_argument(*y),
    };
    TL_TRY(device_launch(
        r, TL_SOURCE_ROUTER, "route_weights", arguments, TL_ARRAY_LEN(arguments),
        (size_t[3]){(r->n + group - 1) / group * group, 1, 1}, (size_t[3]){group, 1, 1},
        TL_WORK_OF_VALUE * (double)s->width * (n[3] == ROUTE_MIXER ? (double)n[0] : 1)));
    if (n[3] == ROUTE_SOFTMAX_OF_CHOSEN) TL_TRY(device_softmax(r, *y, r->n, s->width));
    if (factor != 1) TL_TRY(device_apply(r, TL_FN_SCALE, factor, *y, *y, r->n * s->width));
    return device_done(r, s);
}

int experts_run_device(struct run *r, const struct tl_step *s) {
    struct device_run *d = r->device;
    struct tl_device_pairs *pairs = &d->work->pairs;
    const bool heads = s->op == TL_OP_HEAD_LINEAR;
    const void *x = device_in(r, s, 0), *ids = heads ? NULL : device_in(r, s, 1);
    if (!heads) TL_TRY(check_ids(r, s));
    pairs->used = s->axes[0];
    pairs->pairs = r->n * pairs->used;
    pairs->experts = heads ? pairs->used : read_of(r, read_of(r, s, 1), 0)->width;
    pairs->own = read_of(r, s, 0)->n_axes == 2;
    TL_TRY(tl_device_sort_pairs(d->q, ids, pairs, r->err));
    if (s->matrix.type->kind != TL_KIND_FLOAT) {
        TL_TRY(tl_device_pack(d->q, x, s->matrix.cols, pairs->own ? pairs->pairs : r->n,
                              &d->work->packed, r->err));
    }
    for (const struct tl_step *end = s + s->together; s < end; s++) {
        const struct device_step *mine = device_step_of(r, s);
        const uint64_t size = s->matrix.rows, first = (uint64_t)s->numbers[1];
        const uint64_t all = (uint64_t)s->numbers[2];
        void **y = place_of(r, s);
        TL_TRY(device_out(r, s, y));
        TL_TRY(tl_device_matmul_experts(d->q, mine->matrix, x, &d->work->packed, pairs, first, size,
                                        all, *y, r->err));
        if (mine->vectors[1] != NULL || mine->vectors[2] != NULL) {
            const struct tl_argument arguments[] = {
                TL_ARGUMENT(size),
                TL_ARGUMENT(first),
                TL_ARGUMENT(all),
                tl_buffer_argument(pairs->sorted.buffer),
                tl_buffer_argument(mine->vectors[2]),
                tl_buffer_argument(mine->vectors[1]),
                tl_buffer_argument(*y),
            };
            TL_TRY(device_each(r, TL_SOURCE_ROUTER, "finish_experts", r->n * s->width, arguments,
                               TL_ARRAY_LEN(arguments)));
        }
        TL_TRY(device_done(r, s));
    }
    return TL_OK;
}
