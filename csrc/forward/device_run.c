/* device_run.c - copies values between the host and the device, and runs regions on their side. */
#include "forward/device_run.h"

#include "forward/attention.h"
#include "forward/ops.h"
#include "forward/recurrent.h"

#include <stdlib.h>
#include <string.h>

int device_begin(struct run *r) {
    struct device_run *d;
    r->device = NULL;
    if (r->p->device == NULL) return TL_OK;
    TL_TRY(tl_device_check(r->p->device->device, r->err));
    for (size_t i = 0; i < r->n_pieces; i++) {
        struct session_device *ignored;
        TL_TRY(session_device_of(r->pieces[i].session, &ignored, r->err));
    }
    d = calloc(1, sizeof(*d));
    if (d != NULL) d->places = calloc(r->p->n, sizeof(*d->places));
    if (d == NULL || d->places == NULL) {
        free(d);
        return tl_fail(r->err, TL_ENOMEM, "no memory for a call");
    }
    d->plan = r->p->device;
    d->work = r->pieces[0].session->device;
    d->q = d->work->q;
    tl_queue_poll(d->q, r->call->poll, r->call->poll_user);
    r->device = d;
    return TL_OK;
}

int device_end(struct run *r, int status) {
    struct tl_error later;
    if (r->device == NULL) return status;
    // the caller's arrays and the session's memory are free when this returns
    if (tl_queue_finish(r->device->q, status == TL_OK ? r->err : &later) != TL_OK &&
        status == TL_OK) {
        status = r->err->status;
    }
    tl_queue_poll(r->device->q, NULL, NULL);
    free(r->device->places);
    free(r->device);
    r->device = NULL;
    return status;
}

int device_chunk(struct run *r) {
    struct device_run *d = r->device;
    if (d == NULL) return TL_OK;
    memset(d->places, 0, r->p->n * sizeof(*d->places));
    for (size_t i = 0; i < r->p->n_ropes; i++) {
        const size_t bytes = r->n * r->p->ropes[i].rotated * sizeof(float);
        struct tl_room *room = &d->work->angles[i];
        TL_TRY(tl_device_room(d->plan->device, room, bytes, "activations", r->err));
        TL_TRY(tl_queue_write(d->q, room->buffer, 0, r->cos_sin[i], bytes, r->err));
    }
    return TL_OK;
}

void device_given(struct run *r, size_t step) {
    if (r->device != NULL) r->device->places[step] = (struct place){.on_host = true};
}

/* Waits for everything in the queue. */
static int wait_for(struct run *r) {
    TL_TRY(tl_queue_finish(r->device->q, r->err));
    r->device->reading = false;
    return TL_OK;
}

int device_to_host(struct run *r, size_t step) {
    struct device_run *d = r->device;
    const struct tl_step *s = &r->p->steps[step];
    struct place *place;
    if (d == NULL || s->value != TL_VALUE_ROWS) return TL_OK;
    place = &d->places[step];
    if (!place->on_host) {
        // r->values are const for the ops that read them
        float *to = (float *)(uintptr_t)r->values[step];
        TL_TRY(tl_queue_read(d->q, place->buffer, 0, to, r->n * s->width * sizeof(float), true,
                             r->err));
        place->on_host = true;
    }
    return d->reading ? wait_for(r) : TL_OK;
}

/* Makes sure that the value of a step is on the device. */
static int to_device(struct run *r, size_t step) {
    struct device_run *d = r->device;
    const struct tl_step *s = &r->p->steps[step];
    struct place *place = &d->places[step];
    const size_t bytes = r->n * s->width * sizeof(float);
    if (s->value != TL_VALUE_ROWS || place->on_device) return TL_OK;
    if (d->reading) TL_TRY(wait_for(r));
    TL_TRY(device_out(r, s, &place->buffer));
    TL_TRY(tl_queue_write(d->q, place->buffer, 0, r->values[step], bytes, r->err));
    place->on_device = true;
    return TL_OK;
}

int device_out(struct run *r, const struct tl_step *s, void **out) {
    struct session_device *work = r->device->work;
    const bool last = pass_index(r, s) + 1 == r->p->n;
    struct tl_room *room = last ? &work->last : &work->slots[s->slot];
    // a slot holds the values of several steps, one after another
    const size_t floats = last ? r->n * s->width : r->chunk * r->p->slots[s->slot];
    TL_TRY(tl_device_room(r->device->plan->device, room, floats * sizeof(float), "activations",
                          r->err));
    *out = room->buffer;
    return TL_OK;
}

int device_done(struct run *r, const struct tl_step *s) {
    struct device_run *d = r->device;
    const size_t i = pass_index(r, s), bytes = r->n * s->width * sizeof(float);
    struct place *place = &d->places[i];
    float *to = pass_out(r, s);
    place->on_device = true;
    place->on_host = false;
    if (!pass_edited(r, s) && !pass_captured(r, s) && i + 1 < r->p->n) return TL_OK;
    TL_TRY(tl_queue_read(d->q, place->buffer, 0, to, bytes, false, r->err));
    place->on_host = true;
    d->reading = true;
    if (!pass_edited(r, s)) return TL_OK;
    TL_TRY(wait_for(r));
    TL_TRY(pass_done(r, s, to));
    return tl_queue_write(d->q, place->buffer, 0, to, bytes, r->err);
}

int device_gather(struct run *r, size_t step, size_t i, const size_t *rows, size_t count,
                  bool *done) {
    struct device_run *d = r->device;
    const size_t bytes = r->p->steps[step].width * sizeof(float);
    struct place *place;
    struct tl_room *room;
    *done = false;
    if (d == NULL) return TL_OK;
    place = &d->places[step];
    if (!place->on_device) {
        if (d->reading) TL_TRY(wait_for(r));
        return TL_OK;
    }
    room = &d->work->gathered[i];
    TL_TRY(tl_device_room(d->plan->device, room, count * bytes, "activations", r->err));
    for (size_t row = 0, n; row < count; row += n) {
        for (n = 1; row + n < count && rows[row + n] == rows[row] + n; n++) continue;
        TL_TRY(tl_queue_copy(d->q, place->buffer, (rows[row] - r->row0) * bytes, room->buffer,
                             row * bytes, n * bytes, r->err));
    }
    *place = (struct place){.buffer = room->buffer, .on_device = true};
    *done = true;
    return TL_OK;
}

/* Copies the caches that a region on the CPU reads or writes to the host. */
static int caches_to_host(struct run *r, const struct tl_step *s) {
    const bool append = s->op == TL_OP_CACHE;
    const size_t cache = append ? s->number : r->p->steps[s->in[1]].number;
    TL_TRY(wait_for(r));
    for (size_t i = 0; i < r->n_spans; i++) {
        const struct span *span = &r->spans[i];
        TL_TRY(session_device_to_host(span->piece->session, cache,
                                      span->position + (append ? 0 : span->n), r->err));
        if (append) {
            session_device_wrote(span->piece->session, cache, false, span->position, span->n);
        }
    }
    return TL_OK;
}

/* Whether the region must run on the CPU, although its steps could run on the device: scores and
   probabilities are edited in the caller's arrays. */
static bool edited_on_host(const struct run *r, const struct tl_step *s) {
    return s->op == TL_OP_SCORES && (pass_edited(r, s) || pass_edited(r, s + 1));
}

int device_region(struct run *r, const struct tl_step *s) {
    struct device_run *d = r->device;
    const size_t first = pass_index(r, s), end = first + s->together;
    const bool on = d->plan->steps[first].on && !edited_on_host(r, s);
    for (size_t i = first; i < end; i++) {
        for (int j = 0; j < r->p->steps[i].n_in; j++) {
            const size_t in = r->p->steps[i].in[j];
            if (in < first) TL_TRY(on ? to_device(r, in) : device_to_host(r, in));
        }
    }
    if (on) return tl_ops[s->op].run_device(r, s);
    if (s->op == TL_OP_CACHE || s->op == TL_OP_SCORES) TL_TRY(caches_to_host(r, s));
    for (size_t i = 0; recurrent_op(s->op) && i < r->n_spans; i++) {
        TL_TRY(session_device_to_host(r->spans[i].piece->session, s->number, 0, r->err));
    }
    TL_TRY(tl_ops[s->op].run(r, s));
    for (size_t i = first; i < end; i++) device_given(r, i);
    return TL_OK;
}

/* ---- launches ---- */

int device_launch(struct run *r, enum tl_source source, const char *kernel,
                  const struct tl_argument *arguments, size_t n_arguments, const size_t global[3],
                  const size_t local[3], double work) {
    const struct tl_program program = {.files = TL_SOURCE_ARITHMETIC | TL_SOURCE_FUNCTIONS |
                                                (unsigned)source};
    struct tl_launch l = {.program = &program,
                          .kernel = kernel,
                          .arguments = arguments,
                          .n_arguments = n_arguments,
                          .work = work};
    memcpy(l.global, global, sizeof(l.global));
    memcpy(l.local, local, sizeof(l.local));
    return tl_queue_launch(r->device->q, &l, r->err);
}

int device_each(struct run *r, enum tl_source source, const char *kernel, size_t n,
                const struct tl_argument *arguments, size_t n_arguments) {
    const size_t group = tl_device_group(r->device->plan->device);
    const size_t global[3] = {(n + group - 1) / group * group, 1, 1}, local[3] = {group, 1, 1};
    const uint64_t count = n;
    struct tl_argument all[16] = {TL_ARGUMENT(count)};
    memcpy(all + 1, arguments, n_arguments * sizeof(*arguments));
    return device_launch(r, source, kernel, all, n_arguments + 1, global, local, TL_WORK_OF_VALUE);
}

int device_apply(struct run *r, enum tl_function f, float parameter, const void *x, const void *y,
                 size_t n) {
    const int32_t function = (int32_t)f;
    const float inverse = 1.0f / parameter;
    const struct tl_argument arguments[] = {TL_ARGUMENT(function), TL_ARGUMENT(parameter),
                                            TL_ARGUMENT(inverse), tl_buffer_argument(x),
                                            tl_buffer_argument(y)};
    return device_each(r, TL_SOURCE_OPS, "unary", n, arguments, TL_ARRAY_LEN(arguments));
}
