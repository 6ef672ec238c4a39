/*
 * scan.c - the state space models of Mamba-2 (scan) and Mamba-1 (scan_channels), and the recurrence
 * of RWKV-7 (wkv), token by token.
 *
 * docs/numerics.md section 3 defines what is computed. It needs no fma, so these loops are written
 * once, and every compiler and instruction set gives the same bits.
 */
#include "forward/scan.h"

#include "forward/pass.h"
#include "forward/recurrent.h"

#include <math.h>
#include <string.h>

#define COLUMNS 64 // of the state per task
#define LANES 16   // columns that are computed together

/* The reads of both scans; DECAY is that of scan only. Their last weight is D. */
enum { VALUES, STEPS, INPUTS, OUTPUTS, DECAY };

/* The reads of wkv. */
enum { RECEPTANCE, KEEP, KEYS, WKV_VALUES, REMOVED, RATE, MOST_READS };

/* What all tasks of a step share. */
struct scan {
    struct run *r;
    const struct tl_step *step;
    const float *in[MOST_READS];
    float *y;
    const float *skip;    // D, one per head or channel; or NULL
    size_t heads, groups; // of scan_channels: 1; wkv has no groups
    size_t states, size;  // N; columns of the state of a head
    size_t slices;        // tasks per head
};

/* Some columns of the state of one head in one span. */
struct slice {
    const struct span *span;
    size_t head, first, n;
    const float *from; // the state before the next token
    float *to;         // the state after it
    size_t at;         // where they lie in the state
    size_t mark;       // after this many rows a copy is kept; 0: never
};

static struct slice slice_of(const struct scan *a, size_t task) {
    const struct span *span = &a->r->spans[task / a->slices / a->heads];
    const struct tl_session *session = span->piece->session;
    const size_t first = task % a->slices * COLUMNS, head = task / a->slices % a->heads;
    const size_t at = head * a->states * a->size + first, number = a->step->number;
    return (struct slice){.span = span,
                          .head = head,
                          .first = first,
                          .n = TL_MIN(a->size - first, (size_t)COLUMNS),
                          .from = recurrent_before(a->step, span) + at,
                          .to = tl_session_next_state(session, number) + at,
                          .at = at,
                          .mark = recurrent_mark(span)};
}

/* Goes on to the next token, the one after `done` rows of the span. */
static void slice_next(const struct scan *a, struct slice *s, size_t done) {
    s->from = s->to;
    if (done != s->mark) return;
    float *kept = tl_session_marked(s->span->piece->session, a->step->number) + s->at;
    for (size_t i = 0; i < a->states; i++) {
        memcpy(kept + i * a->size, s->to + i * a->size, s->n * sizeof(float));
    }
}

static int run_tasks(struct scan *a, void (*task)(void *arg, size_t task, int thread)) {
    struct run *r = a->r;
    const size_t tasks = r->n_spans * a->heads * a->slices;
    if (r->n * a->heads * a->states * a->size < PASS_PARALLEL_WORK) {
        for (size_t i = 0; i < tasks; i++) task(a, i, 0);
    } else {
        TL_TRY(pass_tasks(r, tasks, task, a));
    }
    return pass_done(r, a->step, a->y);
}

/* ---- scan: a decay for each head ---- */

/*
 * reads: x (H, P), dt (H values), B and C (G, N), decay (H values); weights: D (H) or None;
 * value (H, P). H is a multiple of G; consecutive heads share a group.
 */
int scan_check(const struct tl_op_check *c, struct tl_step *s) {
    const struct tl_step *x = op_read(c, s, VALUES), *b = op_read(c, s, INPUTS);
    size_t axes[3];
    for (int i = VALUES; i <= DECAY; i++) TL_TRY(op_rows(c, s, i, 0));
    if (x->n_axes != 2 || b->n_axes != 2 || !op_same_shape(b, op_read(c, s, OUTPUTS)) ||
        x->axes[0] % b->axes[0] != 0) {
        return tl_op_wrong(c, "its reads do not match; expected x (H, P), and B and C (G, N), H a "
                              "multiple of G");
    }
    if (op_read(c, s, STEPS)->width != x->axes[0] || op_read(c, s, DECAY)->width != x->axes[0]) {
        return tl_op_wrong(c, "its dt or decay does not match x; expected one per head");
    }
    op_shape(s, x, 2);
    axes[0] = x->axes[0];
    axes[1] = b->axes[1];
    axes[2] = x->axes[1];
    TL_TRY(op_vector(c, s, 0, x->axes[0]));
    return recurrent_add_state(c, s, axes, 3);
}

/* One token for up to LANES columns; the state may be updated in place. */
static void scan_lanes(const struct scan *a, const float *from, float *to, float decay,
                       const float *b, const float *c, const float *u, float *y, size_t n) {
    float sum[LANES] = {0}, state[LANES] = {0}, in[LANES] = {0};
    memcpy(in, u, n * sizeof(float));
    for (size_t i = 0; i < a->states; i++) {
        if (n == LANES) {
            memcpy(state, from + i * a->size, sizeof(state));
        } else {
            memcpy(state, from + i * a->size, n * sizeof(float));
        }
        for (int l = 0; l < LANES; l++) {
            state[l] = decay * state[l] + b[i] * in[l];
            sum[l] = sum[l] + c[i] * state[l];
        }
        if (n == LANES) {
            memcpy(to + i * a->size, state, sizeof(state));
        } else {
            memcpy(to + i * a->size, state, n * sizeof(float));
        }
    }
    memcpy(y, sum, n * sizeof(float));
}

static void scan_task(void *arg, size_t task, int thread) {
    const struct scan *a = arg;
    struct slice s = slice_of(a, task);
    const size_t group = s.head / (a->heads / a->groups);
    (void)thread;
    for (size_t t = 0; t < s.span->n; t++) {
        const size_t row = s.span->row + t, one = row * a->heads + s.head;
        const float dt = a->in[STEPS][one], decay = a->in[DECAY][one];
        const float *x = a->in[VALUES] + one * a->size + s.first;
        const float *b = a->in[INPUTS] + (row * a->groups + group) * a->states;
        const float *c = a->in[OUTPUTS] + (row * a->groups + group) * a->states;
        float *y = a->y + one * a->size + s.first, u[COLUMNS];
        for (size_t j = 0; j < s.n; j++) u[j] = dt * x[j];
        for (size_t j = 0; j < s.n; j += LANES) {
            scan_lanes(a, s.from + j, s.to + j, decay, b, c, u + j, y + j,
                       TL_MIN(s.n - j, (size_t)LANES));
        }
        for (size_t j = 0; a->skip != NULL && j < s.n; j++) y[j] = y[j] + a->skip[s.head] * x[j];
        slice_next(a, &s, t + 1);
    }
}

int scan_run(struct run *r, const struct tl_step *s) {
    const struct tl_cache *state = &r->p->caches[s->number];
    struct scan a = {.r = r,
                     .step = s,
                     .y = pass_out(r, s),
                     .skip = s->vectors[0],
                     .heads = state->axes[0],
                     .groups = r->p->steps[s->in[INPUTS]].axes[0],
                     .states = state->axes[1],
                     .size = state->axes[2],
                     .slices = (state->axes[2] + COLUMNS - 1) / COLUMNS};
    for (int i = VALUES; i <= DECAY; i++) a.in[i] = pass_in(r, s, i);
    return run_tasks(&a, scan_task);
}

/* ---- scan_channels: a decay for each channel and state ---- */

/* Reads a tensor (channels, states) as (states, channels). */
static int read_turned(const struct tl_op_check *c, const char *name, size_t channels,
                       size_t states, float **out) {
    const size_t axes[2] = {channels, states};
    float *rows = NULL, *turned;
    TL_TRY(tl_weights_array(c->weights, name, axes, 2, &rows, c->err));
    turned = tl_alloc(channels * states * sizeof(float)); // as many as were just read
    for (size_t i = 0; turned != NULL && i < channels; i++) {
        for (size_t j = 0; j < states; j++) turned[j * channels + i] = rows[i * states + j];
    }
    tl_free(rows);
    *out = turned;
    if (turned != NULL) return TL_OK;
    return tl_fail(c->err, TL_ENOMEM, "no memory for tensor '%s'", name);
}

/* reads: x and dt (n), B and C (N); weights: A (n, N), D (n) or None; value (n). */
int scan_channels_check(const struct tl_op_check *c, struct tl_step *s) {
    const struct tl_step *x = op_read(c, s, VALUES), *b = op_read(c, s, INPUTS);
    const char *name;
    size_t axes[2];
    for (int i = VALUES; i <= OUTPUTS; i++) TL_TRY(op_rows(c, s, i, 1));
    if (x->n_axes != 1 || b->n_axes != 1 || !op_same_shape(x, op_read(c, s, STEPS)) ||
        !op_same_shape(b, op_read(c, s, OUTPUTS))) {
        return tl_op_wrong(c, "its reads do not match; expected x and dt (n), B and C (N)");
    }
    TL_TRY(op_name(c, 0, &name));
    TL_TRY(read_turned(c, name, x->width, b->width, &s->vectors[0]));
    TL_TRY(op_vector(c, s, 1, x->width));
    op_shape(s, x, 1);
    axes[0] = b->width;
    axes[1] = x->width;
    return recurrent_add_state(c, s, axes, 2);
}

/*
 * exp(x), rounded from float64. Error of the float64: below 1e-12. x is held within -110 and 110,
 * where the result is 0 or inf as float32.
 */
static float narrow_exp(double x) {
    const double magic = 6755399441055744.0; // adding it rounds to an integer
    double n, r, p, shifted, power;
    uint64_t bits;
    x = x < -110 ? -110 : x;
    x = x > 110 ? 110 : x;
    shifted = x * 1.4426950408889634 + magic;
    n = shifted - magic;
    r = x - n * 0.6931471805599453;
    p = 1.0 / 3628800;
    p = p * r + 1.0 / 362880;
    p = p * r + 1.0 / 40320;
    p = p * r + 1.0 / 5040;
    p = p * r + 1.0 / 720;
    p = p * r + 1.0 / 120;
    p = p * r + 1.0 / 24;
    p = p * r + 1.0 / 6;
    p = p * r + 0.5;
    p = p * r + 1.0;
    p = p * r + 1.0;
    memcpy(&bits, &shifted, sizeof(bits)); // its low bits are n
    bits = (bits + 1023) << 52;
    memcpy(&power, &bits, sizeof(power));
    return (float)(p * power);
}

/* One token for n channels. */
static void channels_token(const struct scan *a, const struct slice *s, const float *x,
                           const float *dt, const float *b, const float *c, float *y) {
    float u[COLUMNS], sum[COLUMNS] = {0};
    for (size_t j = 0; j < s->n; j++) u[j] = dt[j] * x[j];
    for (size_t i = 0; i < a->states; i++) {
        const float *rate = a->step->vectors[0] + i * a->size + s->first;
        float state[COLUMNS];
        memcpy(state, s->from + i * a->size, s->n * sizeof(float));
        for (size_t j = 0; j < s->n; j++) {
            const float decay = narrow_exp((double)dt[j] * (double)rate[j]);
            state[j] = decay * state[j] + b[i] * u[j];
            sum[j] = sum[j] + c[i] * state[j];
        }
        memcpy(s->to + i * a->size, state, s->n * sizeof(float));
    }
    for (size_t j = 0; j < s->n; j++) {
        y[j] = a->skip != NULL ? sum[j] + a->skip[s->first + j] * x[j] : sum[j];
    }
}

static void channels_task(void *arg, size_t task, int thread) {
    const struct scan *a = arg;
    struct slice s = slice_of(a, task);
    (void)thread;
    for (size_t t = 0; t < s.span->n; t++) {
        const size_t row = s.span->row + t, at = row * a->size + s.first;
        channels_token(a, &s, a->in[VALUES] + at, a->in[STEPS] + at,
                       a->in[INPUTS] + row * a->states, a->in[OUTPUTS] + row * a->states,
                       a->y + at);
        slice_next(a, &s, t + 1);
    }
}

int scan_channels_run(struct run *r, const struct tl_step *s) {
    const struct tl_cache *state = &r->p->caches[s->number];
    struct scan a = {.r = r,
                     .step = s,
                     .y = pass_out(r, s),
                     .skip = s->vectors[1],
                     .heads = 1,
                     .groups = 1,
                     .states = state->axes[0],
                     .size = state->axes[1],
                     .slices = (state->axes[1] + COLUMNS - 1) / COLUMNS};
    for (int i = VALUES; i <= OUTPUTS; i++) a.in[i] = pass_in(r, s, i);
    return run_tasks(&a, channels_task);
}

/* ---- wkv: a delta rule with a decay and a rate for each key channel ---- */

/*
 * reads: receptance, decay and keys (H, N), values (H, P), removed keys and rates (H, N);
 * value (H, P).
 */
int wkv_check(const struct tl_op_check *c, struct tl_step *s) {
    const struct tl_step *r = op_read(c, s, RECEPTANCE), *v = op_read(c, s, WKV_VALUES);
    size_t axes[3];
    for (int i = RECEPTANCE; i <= RATE; i++) {
        TL_TRY(op_rows(c, s, i, 2));
        if (i != WKV_VALUES && (r->n_axes != 2 || !op_same_shape(r, op_read(c, s, i)))) {
            return tl_op_wrong(c, "its reads do not match; expected (H, N) of all but the values");
        }
    }
    if (v->n_axes != 2 || v->axes[0] != r->axes[0]) {
        return tl_op_wrong(c, "its values do not match its receptance; expected (H, P)");
    }
    op_shape(s, v, 2);
    axes[0] = r->axes[0];
    axes[1] = r->axes[1];
    axes[2] = v->axes[1];
    return recurrent_add_state(c, s, axes, 3);
}

/* One token for n columns of the state of a head; the state may be updated in place. */
static void wkv_token(const struct scan *a, const struct slice *s, size_t at, const float *v,
                      float *y) {
    const float *const *in = a->in;
    float found[COLUMNS] = {0}, sum[COLUMNS] = {0};
    for (size_t i = 0; i < a->states; i++) {
        const float *state = s->from + i * a->size, removed = in[REMOVED][at + i];
        for (size_t j = 0; j < s->n; j++) found[j] = found[j] + removed * state[j];
    }
    for (size_t i = 0; i < a->states; i++) {
        const float keep = in[KEEP][at + i], key = in[KEYS][at + i], r = in[RECEPTANCE][at + i];
        const float rate = in[REMOVED][at + i] * in[RATE][at + i];
        float state[COLUMNS];
        memcpy(state, s->from + i * a->size, s->n * sizeof(float));
        for (size_t j = 0; j < s->n; j++) {
            state[j] = (keep * state[j] - rate * found[j]) + key * v[j];
            sum[j] = sum[j] + r * state[j];
        }
        memcpy(s->to + i * a->size, state, s->n * sizeof(float));
    }
    memcpy(y, sum, s->n * sizeof(float));
}

static void wkv_task(void *arg, size_t task, int thread) {
    const struct scan *a = arg;
    struct slice s = slice_of(a, task);
    (void)thread;
    for (size_t t = 0; t < s.span->n; t++) {
        const size_t one = (s.span->row + t) * a->heads + s.head, at = one * a->size + s.first;
        wkv_token(a, &s, one * a->states, a->in[WKV_VALUES] + at, a->y + at);
        slice_next(a, &s, t + 1);
    }
}

int wkv_run(struct run *r, const struct tl_step *s) {
    const struct tl_cache *state = &r->p->caches[s->number];
    struct scan a = {.r = r,
                     .step = s,
                     .y = pass_out(r, s),
                     .heads = state->axes[0],
                     .states = state->axes[1],
                     .size = state->axes[2],
                     .slices = (state->axes[2] + COLUMNS - 1) / COLUMNS};
    for (int i = RECEPTANCE; i <= RATE; i++) a.in[i] = pass_in(r, s, i);
    return run_tasks(&a, wkv_task);
}
