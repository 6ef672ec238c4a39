/*
 * recurrent.c - short convolution, token shift and the gated delta rule, with their states.
 *
 * A step reads the state of each session as the call began, and writes another one, which becomes
 * the session's when the call has succeeded. The later chunks of a call go on from that one.
 */
#include "forward/recurrent.h"

#include "base/math64.h"
#include "forward/pass.h"

#include <math.h>
#include <string.h>

#define MAX_TAPS 256

int recurrent_add_state(const struct tl_op_check *c, struct tl_step *s, const size_t *axes,
                        int n_axes) {
    struct tl_plan *p = c->plan;
    struct tl_cache *cache = &p->caches[p->n_caches];
    *cache = (struct tl_cache){.state = 1, .n_axes = n_axes};
    for (int i = 0; i < n_axes; i++) {
        cache->axes[i] = axes[i];
        if (!tl_mul_size(cache->state, axes[i], &cache->state)) {
            return tl_op_wrong(c, "its state is too large");
        }
    }
    if (!tl_mul_size(cache->state, sizeof(float), &cache->block_bytes)) {
        return tl_op_wrong(c, "its state is too large");
    }
    s->number = p->n_caches++;
    return TL_OK;
}

bool recurrent_op(enum tl_op op) {
    return op == TL_OP_CONV || op == TL_OP_DELTA || op == TL_OP_SCAN || op == TL_OP_SCAN_CHANNELS ||
           op == TL_OP_SHIFT || op == TL_OP_WKV;
}

const float *recurrent_before(const struct tl_step *s, const struct span *span) {
    const struct tl_session *session = span->piece->session;
    const float *state = tl_session_state(session, s->number);
    // without tokens, a session has no state, and the call has begun to write it with zeros
    return span->done > 0 || state == NULL ? tl_session_next_state(session, s->number) : state;
}

size_t recurrent_mark(const struct span *span) {
    const size_t mark = span->piece->session->mark;
    return mark > span->position && mark - span->position <= span->n ? mark - span->position : 0;
}

/* ---- conv: a causal convolution of each channel over the last tokens ---- */

/* Reads the convolution's weights, (channels, taps), as (taps, channels). */
static int read_taps(const struct tl_op_check *c, const char *name, size_t channels, size_t taps,
                     float **out) {
    struct tl_matrix m;
    float *rows, *turned;
    size_t count, bytes;
    TL_TRY(tl_weights_matrix(c->weights, name, channels, taps, &m, c->err));
    if (!tl_mul_size(channels, taps, &count) || !tl_mul_size(count, sizeof(float), &bytes)) {
        return tl_op_wrong(c, "its weights are too large");
    }
    rows = tl_alloc(bytes);
    turned = tl_alloc(bytes);
    for (size_t i = 0; rows != NULL && turned != NULL && i < channels; i++) {
        tl_type_to_f32(m.type, m.data + i * m.row_bytes, rows, taps);
        for (size_t j = 0; j < taps; j++) turned[j * channels + i] = rows[j];
    }
    tl_free(rows);
    *out = turned;
    if (rows != NULL && turned != NULL) return TL_OK;
    return tl_fail(c->err, TL_ENOMEM, "no memory for tensor '%s'", name);
}

/* reads: x; weights: (values of x, taps), bias (values of x) or NULL; numbers: taps; value as x. */
int conv_check(const struct tl_op_check *c, struct tl_step *s) {
    const struct tl_step *x = op_read(c, s, 0);
    const char *name;
    size_t taps, axes[2];
    TL_TRY(op_rows(c, s, 0, 0));
    TL_TRY(op_number(c, s, 0, 2, MAX_TAPS));
    TL_TRY(op_size(c, s, 0, 2, &taps));
    TL_TRY(op_name(c, 0, &name));
    TL_TRY(read_taps(c, name, x->width, taps, &s->vectors[0]));
    TL_TRY(op_vector(c, s, 1, x->width));
    op_shape(s, x, x->n_axes);
    axes[0] = taps - 1;
    axes[1] = x->width;
    return recurrent_add_state(c, s, axes, 2);
}

struct conv {
    const struct tl_step *step;
    const float *x;
    float *y;
    size_t channels, taps;
};

/* The values of the token `back` tokens before row `row` of a span. */
static const float *conv_row(const struct conv *a, const struct span *span, const float *state,
                             size_t row, size_t back) {
    if (back <= row) return a->x + (span->row + row - back) * a->channels;
    return state + (a->taps - 1 - (back - row)) * a->channels;
}

static void conv_rows(struct run *r, const void *arg, size_t first, size_t last) {
    const struct conv *a = arg;
    for (size_t i = 0; i < r->n_spans; i++) {
        const struct span *span = &r->spans[i];
        const float *state = recurrent_before(a->step, span);
        for (size_t t = TL_MAX(first, span->row); t < TL_MIN(last, span->row + span->n); t++) {
            const float *rows[MAX_TAPS];
            for (size_t j = 0; j < a->taps; j++) {
                rows[j] = conv_row(a, span, state, t - span->row, a->taps - 1 - j);
            }
            r->k->conv(rows, a->taps, a->step->vectors[0], a->step->vectors[1],
                       a->y + t * a->channels, a->channels);
        }
    }
}

/* Writes the state after the first n rows of a span, n >= 1. It may replace the one before. */
static void conv_state(const struct conv *a, const struct span *span, const float *before, size_t n,
                       float *to) {
    for (size_t j = 0; j + 1 < a->taps; j++) {
        // rows of a state move towards its beginning, so none is read after it was overwritten
        const float *from = conv_row(a, span, before, n - 1, a->taps - 2 - j);
        memcpy(to + j * a->channels, from, a->channels * sizeof(float));
    }
}

/* Writes the states after the chunk's rows. */
static void conv_states(const struct run *r, const struct conv *a) {
    const size_t number = a->step->number;
    for (size_t i = 0; i < r->n_spans; i++) {
        const struct span *span = &r->spans[i];
        const struct tl_session *session = span->piece->session;
        const float *before = recurrent_before(a->step, span);
        const size_t mark = recurrent_mark(span);
        if (mark > 0) conv_state(a, span, before, mark, tl_session_marked(session, number));
        conv_state(a, span, before, span->n, tl_session_next_state(session, number));
    }
}

int conv_run(struct run *r, const struct tl_step *s) {
    const struct conv a = {.step = s,
                           .x = pass_in(r, s, 0),
                           .y = pass_out(r, s),
                           .channels = s->width,
                           .taps = (size_t)s->numbers[0]};
    TL_TRY(pass_rows(r, r->n, s->width * a.taps, conv_rows, &a));
    conv_states(r, &a);
    return pass_done(r, s, a.y);
}

/* ---- shift: mixtures of each token with the one before it ---- */

/* Reads the shares of the token before: (parts, 1, 1, values of x), or without axes of 1. */
static int read_shares(const struct tl_op_check *c, const char *name, size_t parts, size_t width,
                       float **out) {
    const struct tl_tensor *t = tl_weights_find(c->weights, name);
    const int n = t != NULL && t->n_dims > 1 ? t->n_dims : 1 + (parts > 1);
    size_t axes[4] = {1, 1, 1, 1};
    axes[0] = parts;
    axes[n - 1] = width;
    return tl_weights_array(c->weights, name, axes, n, out, c->err);
}

/*
 * reads: x (n); weights: the shares (parts, n); numbers: parts; value (parts, n), or (n) for 0
 * parts, which is one: x + (the x of the token before - x) share. Before the first token x is 0.
 */
int shift_check(const struct tl_op_check *c, struct tl_step *s) {
    const struct tl_step *x = op_read(c, s, 0);
    const char *name;
    size_t parts;
    TL_TRY(op_rows(c, s, 0, 1));
    if (x->n_axes != 1) return tl_op_wrong(c, "its read has several axes; expected (n)");
    TL_TRY(op_size(c, s, 0, 0, &parts));
    TL_TRY(op_name(c, 0, &name));
    TL_TRY(read_shares(c, name, TL_MAX(parts, 1), x->width, &s->vectors[0]));
    s->value = TL_VALUE_ROWS;
    if (parts > 0) s->axes[s->n_axes++] = parts;
    s->axes[s->n_axes++] = x->width;
    return recurrent_add_state(c, s, &x->width, 1);
}

static void shift_rows(struct run *r, const void *arg, size_t first, size_t last) {
    const struct conv *a = arg;
    const size_t n = a->channels, parts = a->step->width / n;
    for (size_t i = 0; i < r->n_spans; i++) {
        const struct span *span = &r->spans[i];
        const float *state = recurrent_before(a->step, span);
        for (size_t t = TL_MAX(first, span->row); t < TL_MIN(last, span->row + span->n); t++) {
            const float *x = a->x + t * n, *before = conv_row(a, span, state, t - span->row, 1);
            for (size_t part = 0; part < parts; part++) {
                const float *share = a->step->vectors[0] + part * n;
                float *y = a->y + (t * parts + part) * n;
                for (size_t j = 0; j < n; j++) y[j] = x[j] + (before[j] - x[j]) * share[j];
            }
        }
    }
}

int shift_run(struct run *r, const struct tl_step *s) {
    const struct conv a = {.step = s,
                           .x = pass_in(r, s, 0),
                           .y = pass_out(r, s),
                           .channels = r->p->steps[s->in[0]].width,
                           .taps = 2};
    TL_TRY(pass_rows(r, r->n, s->width, shift_rows, &a));
    conv_states(r, &a);
    return pass_done(r, s, a.y);
}

/* ---- decay: how much of its state each head keeps ---- */

/* reads: alpha; weights: ssm_a, ssm_dt, both (values of alpha); value as alpha. */
int decay_check(const struct tl_op_check *c, struct tl_step *s) {
    const struct tl_step *x = op_read(c, s, 0);
    TL_TRY(op_rows(c, s, 0, 0));
    for (int i = 0; i < 2; i++) {
        const char *name;
        TL_TRY(op_name(c, i, &name));
        TL_TRY(op_vector(c, s, i, x->width));
    }
    op_shape(s, x, x->n_axes);
    return TL_OK;
}

struct decay {
    const struct tl_step *step;
    const float *x;
    float *y;
};

static void decay_rows(struct run *r, const void *arg, size_t first, size_t last) {
    const struct decay *d = arg;
    const size_t n = d->step->width;
    (void)r;
    for (size_t i = first * n; i < last * n; i++) {
        const double t = (double)d->x[i] + (double)d->step->vectors[1][i % n];
        d->y[i] = (float)tl_exp((double)d->step->vectors[0][i % n] * tl_softplus(t));
    }
}

int decay_run(struct run *r, const struct tl_step *s) {
    const struct decay d = {s, pass_in(r, s, 0), pass_out(r, s)};
    TL_TRY(pass_rows(r, r->n, s->width * 64, decay_rows, &d));
    return pass_done(r, s, d.y);
}

/* ---- delta: the gated delta rule ---- */

/* The reads of a delta step, and its numbers. */
enum { QUERIES, KEYS, VALUES, DECAY, BETA };
enum { TILED, FACTOR };

/*
 * reads: q, k (Hk, Dk), v (Hv, Dv), decay and beta (Hv values each); numbers: how a value head
 * finds its key head (0: head / (Hv / Hk), 1: head % Hk), the factor of the result; value (Hv, Dv).
 */
int delta_check(const struct tl_op_check *c, struct tl_step *s) {
    const struct tl_step *q = op_read(c, s, QUERIES), *k = op_read(c, s, KEYS);
    const struct tl_step *v = op_read(c, s, VALUES);
    size_t axes[3];
    for (int i = QUERIES; i <= BETA; i++) TL_TRY(op_rows(c, s, i, 0));
    if (k->n_axes != 2 || v->n_axes != 2 || !op_same_shape(q, k) || v->axes[0] % k->axes[0] != 0) {
        return tl_op_wrong(c, "its queries, keys and values do not match; expected (Hk, Dk) twice "
                              "and (Hv, Dv), Hv a multiple of Hk");
    }
    if (op_read(c, s, DECAY)->width != v->axes[0] || op_read(c, s, BETA)->width != v->axes[0]) {
        return tl_op_wrong(c, "its decay or beta does not match its values; expected one per head");
    }
    if (s->numbers[TILED] != 0 && s->numbers[TILED] != 1) {
        return tl_op_wrong(c, "the order of its heads is neither 0 nor 1");
    }
    TL_TRY(op_number(c, s, FACTOR, 1e-30, 1e30));
    op_shape(s, v, 2);
    axes[0] = v->axes[0];
    axes[1] = k->axes[1];
    axes[2] = v->axes[1];
    return recurrent_add_state(c, s, axes, 3);
}

#define COLUMNS 64 // of the state per task

/* What all tasks of a delta step share. */
struct delta {
    struct run *r;
    const struct tl_step *step;
    const float *in[5];
    float *y;
    size_t key_heads, heads, key_size, value_size;
    size_t slices; // tasks per head
};

/* Some columns of the state of one head, for all tokens of one span. */
static void delta_task(void *arg, size_t task, int thread) {
    const struct delta *a = arg;
    const size_t slice = task % a->slices, head = task / a->slices % a->heads;
    const struct span *span = &a->r->spans[task / a->slices / a->heads];
    const struct tl_session *session = span->piece->session;
    const size_t first = slice * COLUMNS, n = TL_MIN(a->value_size - first, (size_t)COLUMNS);
    const size_t key_head =
        a->step->numbers[TILED] != 0 ? head % a->key_heads : head / (a->heads / a->key_heads);
    const size_t at = head * a->key_size * a->value_size + first, mark = recurrent_mark(span);
    float *to = tl_session_next_state(session, a->step->number) + at;
    const float *from = recurrent_before(a->step, span) + at;
    struct tl_delta d = {.key_size = a->key_size,
                         .stride = a->value_size,
                         .factor = (float)a->step->numbers[FACTOR]};
    (void)thread;
    for (size_t t = 0; t < span->n; t++) {
        const size_t row = span->row + t, value = (row * a->heads + head) * a->value_size + first;
        const size_t key = (row * a->key_heads + key_head) * a->key_size;
        d.q = a->in[QUERIES] + key;
        d.k = a->in[KEYS] + key;
        d.decay = a->in[DECAY][row * a->heads + head];
        d.beta = a->in[BETA][row * a->heads + head];
        a->r->k->delta(&d, from, to, a->in[VALUES] + value, a->y + value, n);
        from = to;
        if (t + 1 != mark) continue;
        float *kept = tl_session_marked(session, a->step->number) + at;
        for (size_t i = 0; i < a->key_size; i++) {
            memcpy(kept + i * a->value_size, to + i * a->value_size, n * sizeof(float));
        }
    }
}

int delta_run(struct run *r, const struct tl_step *s) {
    const struct tl_cache *state = &r->p->caches[s->number];
    struct delta a = {.r = r,
                      .step = s,
                      .y = pass_out(r, s),
                      .key_heads = r->p->steps[s->in[KEYS]].axes[0],
                      .heads = state->axes[0],
                      .key_size = state->axes[1],
                      .value_size = state->axes[2],
                      .slices = (state->axes[2] + COLUMNS - 1) / COLUMNS};
    const size_t tasks = r->n_spans * a.heads * a.slices;
    for (int i = 0; i < 5; i++) a.in[i] = pass_in(r, s, i);
    if (r->n * state->state < PASS_PARALLEL_WORK) {
        for (size_t i = 0; i < tasks; i++) delta_task(&a, i, 0);
    } else {
        TL_TRY(pass_tasks(r, tasks, delta_task, &a));
    }
    return pass_done(r, s, a.y);
}
