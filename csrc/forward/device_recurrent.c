/*
 * device_recurrent.c - runs the ops with a state on a device.
 *
 * The rows of a span run in parts: those before the position where the session keeps a copy of the
 * state, and the others. An item of a kernel takes one row after another, so many rows are cut too.
 */
#include "forward/device_ops.h"
#include "forward/device_run.h"
#include "forward/recurrent.h"

/* Some rows of a span, and the states before and after them; both may be the same buffer. */
struct part {
    size_t first, rows;
    const void *before, *after;
};

typedef int part_fn(struct run *r, const struct tl_step *s, const struct part *p);

/* `most`: rows of a part. */
static int run_span(struct run *r, const struct tl_step *s, const struct span *span, part_fn *run,
                    size_t most) {
    const struct tl_session *session = span->piece->session;
    const struct tl_states *states = &session->states[s->number];
    const size_t bytes = r->p->caches[s->number].block_bytes, mark = recurrent_mark(span);
    struct tl_block *from = span->done > 0 || states->now == NULL ? states->next : states->now;
    struct part p = {.first = span->row};
    void *before, *after, *kept;
    TL_TRY(session_device_state(session, from, bytes, true, &before, r->err));
    TL_TRY(session_device_state(session, states->next, bytes, false, &after, r->err));
    p.before = before;
    p.after = after;
    for (size_t done = 0; done < span->n; done += p.rows) {
        p.first = span->row + done;
        p.rows = TL_MIN(mark > done ? mark - done : span->n - done, most);
        TL_TRY(run(r, s, &p));
        session_device_state_written(states->next);
        p.before = after;
        if (done + p.rows != mark) continue;
        TL_TRY(session_device_state(session, states->marked, bytes, false, &kept, r->err));
        TL_TRY(tl_queue_copy(r->device->q, after, 0, kept, 0, bytes, r->err));
        session_device_state_written(states->marked);
    }
    return TL_OK;
}

static int run_spans(struct run *r, const struct tl_step *s, part_fn *run, size_t most) {
    TL_TRY(device_out(r, s, &r->device->places[pass_index(r, s)].buffer));
    for (size_t i = 0; i < r->n_spans; i++) TL_TRY(run_span(r, s, &r->spans[i], run, most));
    return device_done(r, s);
}

static struct tl_argument in(const struct run *r, const struct tl_step *s, int i) {
    return tl_buffer_argument(device_in(r, s, i));
}

static struct tl_argument vector(const struct run *r, const struct tl_step *s, int i) {
    return tl_buffer_argument(device_step_of(r, s)->vectors[i]);
}

static struct tl_argument out(const struct run *r, const struct tl_step *s) {
    return tl_buffer_argument(r->device->places[pass_index(r, s)].buffer);
}

/* ---- conv and shift ---- */

/* Puts the last values into the state. */
static int keep_values(struct run *r, const struct tl_step *s, const struct part *p, size_t taps) {
    const size_t channels = r->p->steps[s->in[0]].width;
    const uint64_t first = p->first;
    const int32_t n[2] = {(int32_t)p->rows, (int32_t)taps};
    const struct tl_argument arguments[] = {
        TL_ARGUMENT(first),
        TL_ARGUMENT(n[0]),
        TL_ARGUMENT(n[1]),
        in(r, s, 0),
        tl_buffer_argument(p->before),
        tl_buffer_argument(p->after),
    };
    return device_each(r, TL_SOURCE_RECURRENT, "last_values", channels, arguments,
                       TL_ARRAY_LEN(arguments));
}

static int conv_part(struct run *r, const struct tl_step *s, const struct part *p) {
    const uint64_t first = p->first, channels = s->width;
    const int32_t taps = (int32_t)s->numbers[0];
    const struct tl_argument arguments[] = {
        TL_ARGUMENT(first),
        TL_ARGUMENT(taps),
        TL_ARGUMENT(channels),
        in(r, s, 0),
        tl_buffer_argument(p->before),
        vector(r, s, 0),
        vector(r, s, 1),
        out(r, s),
    };
    TL_TRY(device_each(r, TL_SOURCE_RECURRENT, "conv", p->rows * s->width, arguments,
                       TL_ARRAY_LEN(arguments)));
    return keep_values(r, s, p, (size_t)s->numbers[0]);
}

int conv_run_device(struct run *r, const struct tl_step *s) {
    return run_spans(r, s, conv_part, SIZE_MAX);
}

static int shift_part(struct run *r, const struct tl_step *s, const struct part *p) {
    const uint64_t first = p->first, channels = r->p->steps[s->in[0]].width;
    const uint64_t parts = s->width / channels;
    const struct tl_argument arguments[] = {
        TL_ARGUMENT(first),
        TL_ARGUMENT(parts),
        TL_ARGUMENT(channels),
        in(r, s, 0),
        tl_buffer_argument(p->before),
        vector(r, s, 0),
        out(r, s),
    };
    TL_TRY(device_each(r, TL_SOURCE_RECURRENT, "shift", p->rows * s->width, arguments,
                       TL_ARRAY_LEN(arguments)));
    return keep_values(r, s, p, 2);
}

int shift_run_device(struct run *r, const struct tl_step *s) {
    return run_spans(r, s, shift_part, SIZE_MAX);
}

/* ---- ops with a matrix for each head ---- */

/* Multiplications of a row and value of the state, about. */
enum { DELTA_WORK = 4, SCAN_WORK = 4, WKV_WORK = 8, CHANNELS_WORK = 64 };

/* The struct of recurrent.cl. */
struct shape {
    uint64_t first, rows, heads, states, size;
};

static struct shape shape_of(const struct run *r, const struct tl_step *s, const struct part *p) {
    const struct tl_cache *c = &r->p->caches[s->number];
    const bool heads = c->n_axes == 3;
    return (struct shape){p->first, p->rows, heads ? c->axes[0] : 1, c->axes[heads],
                          c->axes[heads + 1]};
}

/* `work`: DELTA_WORK or another. */
static int run_states(struct run *r, const struct tl_step *s, part_fn *run, size_t work) {
    const size_t group = tl_device_group(r->device->plan->device);
    const struct shape shape = shape_of(r, s, &(struct part){.first = 0});
    const double most = tl_queue_most(r->device->q) / (double)(group * work * shape.states);
    return run_spans(r, s, run, (size_t)TL_MAX(TL_MIN(most, 1e9), 1.0));
}

/* Launches a kernel with an item for each column of the states; `work` as of run_states. */
static int launch(struct run *r, const struct shape *shape, const char *kernel,
                  const struct tl_argument *arguments, size_t n, size_t work) {
    const size_t group = tl_device_group(r->device->plan->device);
    return device_launch(
        r, TL_SOURCE_RECURRENT, kernel, arguments, n,
        (size_t[3]){(size_t)(shape->size + group - 1) / group * group, (size_t)shape->heads, 1},
        (size_t[3]){group, 1, 1}, (double)(shape->rows * shape->states * work));
}

static int delta_part(struct run *r, const struct tl_step *s, const struct part *p) {
    const struct shape shape = shape_of(r, s, p);
    const uint64_t key_heads = r->p->steps[s->in[1]].axes[0];
    const int32_t tiled = s->numbers[0] != 0;
    const float factor = (float)s->numbers[1];
    const struct tl_argument arguments[] = {
        TL_ARGUMENT(shape),
        TL_ARGUMENT(key_heads),
        TL_ARGUMENT(tiled),
        TL_ARGUMENT(factor),
        tl_buffer_argument(p->before),
        tl_buffer_argument(p->after),
        in(r, s, 0),
        in(r, s, 1),
        in(r, s, 2),
        in(r, s, 3),
        in(r, s, 4),
        out(r, s),
    };
    return launch(r, &shape, "delta", arguments, TL_ARRAY_LEN(arguments), DELTA_WORK);
}

int delta_run_device(struct run *r, const struct tl_step *s) {
    return run_states(r, s, delta_part, DELTA_WORK);
}

static int scan_part(struct run *r, const struct tl_step *s, const struct part *p) {
    const struct shape shape = shape_of(r, s, p);
    const uint64_t groups = r->p->steps[s->in[2]].axes[0];
    const struct tl_argument arguments[] = {
        TL_ARGUMENT(shape),
        TL_ARGUMENT(groups),
        tl_buffer_argument(p->before),
        tl_buffer_argument(p->after),
        in(r, s, 0),
        in(r, s, 1),
        in(r, s, 2),
        in(r, s, 3),
        in(r, s, 4),
        vector(r, s, 0),
        out(r, s),
    };
    return launch(r, &shape, "scan", arguments, TL_ARRAY_LEN(arguments), SCAN_WORK);
}

int scan_run_device(struct run *r, const struct tl_step *s) {
    return run_states(r, s, scan_part, SCAN_WORK);
}

static int channels_part(struct run *r, const struct tl_step *s, const struct part *p) {
    const struct shape shape = shape_of(r, s, p);
    const struct tl_argument arguments[] = {
        TL_ARGUMENT(shape),
        tl_buffer_argument(p->before),
        tl_buffer_argument(p->after),
        in(r, s, 0),
        in(r, s, 1),
        in(r, s, 2),
        in(r, s, 3),
        vector(r, s, 0),
        vector(r, s, 1),
        out(r, s),
    };
    return launch(r, &shape, "scan_channels", arguments, TL_ARRAY_LEN(arguments), CHANNELS_WORK);
}

int scan_channels_run_device(struct run *r, const struct tl_step *s) {
    return run_states(r, s, channels_part, CHANNELS_WORK);
}

static int wkv_part(struct run *r, const struct tl_step *s, const struct part *p) {
    const struct shape shape = shape_of(r, s, p);
    const struct tl_argument arguments[] = {
        TL_ARGUMENT(shape),
        tl_buffer_argument(p->before),
        tl_buffer_argument(p->after),
        in(r, s, 0),
        in(r, s, 1),
        in(r, s, 2),
        in(r, s, 3),
        in(r, s, 4),
        in(r, s, 5),
        out(r, s),
    };
    return launch(r, &shape, "wkv", arguments, TL_ARRAY_LEN(arguments), WKV_WORK);
}

int wkv_run_device(struct run *r, const struct tl_step *s) {
    return run_states(r, s, wkv_part, WKV_WORK);
}
