/*
 * back_scan.c - the gradients of the state space models of Mamba-2 (scan) and Mamba-1
 * (scan_channels), and of RWKV-7's recurrence (wkv).
 *
 * The states after every token are computed again, because the forward pass keeps only the last
 * one. With S the state after a token and dS its gradient, which gets c dy of this token first:
 *
 *     dc = S dy, db = dS u, du = dS' b, dx = dt du + D dy, d decay = sum of dS (S before),
 *
 * and decay dS goes on to the token before. u = dt x.
 */
#include "training/back_pass.h"

#include "base/block_cache.h"
#include "base/math64.h"

#include <stdatomic.h>
#include <string.h>

#define COLUMNS 64 // channels per task

/* The reads of both scans: see scan_check. DECAY is that of scan only. */
enum { VALUES, STEPS, INPUTS, OUTPUTS, DECAY };

/* The reads of wkv: see wkv_check. */
enum { RECEPTANCE, KEEP, KEYS, WKV_VALUES, REMOVED, RATE, MOST_READS };

/* What all tasks of a step share. */
struct scan {
    struct back *b;
    const float *in[MOST_READS], *dy;
    float *to[MOST_READS];     // NULL: of no use
    const float *rates, *skip; // A turned (N, channels), of scan_channels; D, or NULL
    size_t heads, groups, states, size;
    size_t slices;      // of the channels
    float *inputs;      // (slices, rows, N) parts of the gradients of B,
    float *outputs;     // and of C
    atomic_bool failed; // a task had no memory
};

static int read_all(struct scan *a, const struct tl_step *s, int last) {
    for (int i = VALUES; i <= last; i++) {
        TL_TRY(back_value(a->b, s, i, &a->in[i]));
        TL_TRY(back_into(a->b, s, i, &a->to[i], NULL));
    }
    return TL_OK;
}

static int finish(const struct scan *a, int status) {
    if (status != TL_OK || !atomic_load(&a->failed)) return status;
    return tl_fail(a->b->err, TL_ENOMEM, "no memory for the states of %zu tokens", a->b->longest);
}

static void add_to(float *to, size_t at, double x) {
    if (to != NULL) to[at] += (float)x;
}

/* ---- scan: a task is one group of one piece, with all heads that share its B and C ---- */

/* The states (n + 1, N, P) of one head; `row` is the first row of the piece. */
static void run_head(const struct scan *a, size_t row, size_t n, size_t head, size_t group,
                     float *states) {
    const size_t cells = a->states * a->size;
    memset(states, 0, cells * sizeof(float));
    for (size_t t = 0; t < n; t++, states += cells) {
        const size_t one = (row + t) * a->heads + head;
        const float *x = a->in[VALUES] + one * a->size;
        const float *b = a->in[INPUTS] + ((row + t) * a->groups + group) * a->states;
        const float dt = a->in[STEPS][one], decay = a->in[DECAY][one];
        for (size_t i = 0; i < a->states; i++) {
            const float *before = states + i * a->size;
            float *after = states + cells + i * a->size;
            for (size_t j = 0; j < a->size; j++) after[j] = decay * before[j] + b[i] * (dt * x[j]);
        }
    }
}

/* One token: ds becomes the gradient of the state before it. du (P) is scratch. */
static void head_token(const struct scan *a, size_t row, size_t head, size_t group,
                       const float *before, float *ds, float *du) {
    const size_t one = row * a->heads + head, at = (row * a->groups + group) * a->states;
    const float *x = a->in[VALUES] + one * a->size, *dy = a->dy + one * a->size;
    const float *b = a->in[INPUTS] + at, *c = a->in[OUTPUTS] + at;
    const float *after = before + a->states * a->size;
    const float dt = a->in[STEPS][one], decay = a->in[DECAY][one];
    double ddecay = 0, ddt = 0;
    memset(du, 0, a->size * sizeof(float));
    for (size_t i = 0; i < a->states; i++) {
        float *row_ds = ds + i * a->size;
        double db = 0, dc = 0;
        for (size_t j = 0; j < a->size; j++) {
            dc += (double)after[i * a->size + j] * (double)dy[j];
            row_ds[j] += c[i] * dy[j];
            db += (double)row_ds[j] * (double)(dt * x[j]);
            du[j] += row_ds[j] * b[i];
            ddecay += (double)row_ds[j] * (double)before[i * a->size + j];
            row_ds[j] *= decay;
        }
        add_to(a->to[INPUTS], at + i, db);
        add_to(a->to[OUTPUTS], at + i, dc);
    }
    for (size_t j = 0; j < a->size; j++) {
        const float skip = a->skip != NULL ? a->skip[head] : 0;
        ddt += (double)du[j] * (double)x[j];
        if (a->to[VALUES] != NULL) a->to[VALUES][one * a->size + j] += dt * du[j] + skip * dy[j];
    }
    add_to(a->to[STEPS], one, ddt);
    add_to(a->to[DECAY], one, ddecay);
}

static void scan_task(void *arg, size_t task, int thread) {
    struct scan *a = arg;
    const size_t piece = task / a->groups, group = task % a->groups, share = a->heads / a->groups;
    const size_t row = a->b->starts[piece], n = a->b->call->pieces[piece].n;
    const size_t cells = a->states * a->size, bytes = ((n + 2) * cells + a->size) * sizeof(float);
    float *states = tl_block_cache_take(bytes), *ds;
    (void)thread;
    if (states == NULL) {
        atomic_store(&a->failed, true);
        return;
    }
    ds = states + (n + 1) * cells;
    for (size_t head = group * share; head < (group + 1) * share; head++) {
        run_head(a, row, n, head, group, states);
        memset(ds, 0, cells * sizeof(float));
        for (size_t t = n; t-- > 0;) {
            head_token(a, row + t, head, group, states + t * cells, ds, ds + cells);
        }
    }
    tl_block_cache_give(states, bytes);
}

int scan_back(struct back *b, const struct tl_step *s) {
    const struct tl_step *in = back_step(b, s, INPUTS);
    struct scan a = {.b = b,
                     .dy = back_dy(b, s),
                     .skip = s->vectors[0],
                     .heads = s->axes[0],
                     .groups = in->axes[0],
                     .states = in->axes[1],
                     .size = s->axes[1]};
    TL_TRY(read_all(&a, s, DECAY));
    return finish(&a, back_tasks(b, b->call->n_pieces * a.groups, scan_task, &a));
}

/* ---- scan_channels: a task is some channels of one piece ---- */

/* One token of n channels, the ones from `first` on; states and ds are (N, COLUMNS). */
static void channels_token(const struct scan *a, size_t slice, size_t row, const float *before,
                           float *ds) {
    const size_t first = slice * COLUMNS, n = TL_MIN(a->size - first, (size_t)COLUMNS);
    const size_t at = row * a->size + first, part = (slice * a->b->rows + row) * a->states;
    const float *x = a->in[VALUES] + at, *dt = a->in[STEPS] + at, *dy = a->dy + at;
    const float *b = a->in[INPUTS] + row * a->states, *c = a->in[OUTPUTS] + row * a->states;
    const float *after = before + a->states * COLUMNS;
    double du[COLUMNS] = {0}, ddt[COLUMNS] = {0};
    for (size_t i = 0; i < a->states; i++) {
        const float *rates = a->rates + i * a->size + first;
        double db = 0, dc = 0;
        for (size_t j = 0; j < n; j++) {
            const size_t cell = i * COLUMNS + j;
            const double decay = tl_exp((double)dt[j] * (double)rates[j]);
            dc += (double)after[cell] * (double)dy[j];
            ds[cell] += c[i] * dy[j];
            db += (double)ds[cell] * (double)(dt[j] * x[j]);
            du[j] += (double)ds[cell] * (double)b[i];
            ddt[j] += (double)ds[cell] * (double)before[cell] * decay * (double)rates[j];
            ds[cell] = (float)(decay * (double)ds[cell]);
        }
        a->inputs[part + i] = (float)db;
        a->outputs[part + i] = (float)dc;
    }
    for (size_t j = 0; j < n; j++) {
        const float skip = a->skip != NULL ? a->skip[first + j] : 0;
        add_to(a->to[VALUES], at + j, (double)dt[j] * du[j] + (double)(skip * dy[j]));
        add_to(a->to[STEPS], at + j, ddt[j] + du[j] * (double)x[j]);
    }
}

/* The states (n + 1, N, COLUMNS) of a slice. */
static void run_channels(const struct scan *a, size_t slice, size_t row, size_t n, float *states) {
    const size_t first = slice * COLUMNS, count = TL_MIN(a->size - first, (size_t)COLUMNS);
    const size_t cells = a->states * COLUMNS;
    memset(states, 0, cells * sizeof(float));
    for (size_t t = 0; t < n; t++, states += cells) {
        const size_t at = (row + t) * a->size + first;
        for (size_t i = 0; i < a->states; i++) {
            const float b = a->in[INPUTS][(row + t) * a->states + i];
            for (size_t j = 0; j < count; j++) {
                const float dt = a->in[STEPS][at + j];
                const double rate = (double)a->rates[i * a->size + first + j];
                states[cells + i * COLUMNS + j] =
                    (float)tl_exp((double)dt * rate) * states[i * COLUMNS + j] +
                    b * (dt * a->in[VALUES][at + j]);
            }
        }
    }
}

static void channels_task(void *arg, size_t task, int thread) {
    struct scan *a = arg;
    const size_t piece = task / a->slices, slice = task % a->slices;
    const size_t row = a->b->starts[piece], n = a->b->call->pieces[piece].n;
    const size_t cells = a->states * COLUMNS, bytes = (n + 2) * cells * sizeof(float);
    float *states = tl_block_cache_take(bytes), *ds;
    (void)thread;
    if (states == NULL) {
        atomic_store(&a->failed, true);
        return;
    }
    ds = states + (n + 1) * cells;
    run_channels(a, slice, row, n, states);
    memset(ds, 0, cells * sizeof(float));
    for (size_t t = n; t-- > 0;) channels_token(a, slice, row + t, states + t * cells, ds);
    tl_block_cache_give(states, bytes);
}

/* Adds the parts of the gradients of B and C, in the order of the slices. */
static void add_parts(const struct scan *a) {
    const size_t n = a->b->rows * a->states;
    for (size_t i = 0; i < a->slices; i++) {
        const float *in = a->inputs + i * n, *out = a->outputs + i * n;
        if (a->to[INPUTS] != NULL) a->b->k->add(a->to[INPUTS], in, a->to[INPUTS], n);
        if (a->to[OUTPUTS] != NULL) a->b->k->add(a->to[OUTPUTS], out, a->to[OUTPUTS], n);
    }
}

int scan_channels_back(struct back *b, const struct tl_step *s) {
    struct scan a = {.b = b,
                     .dy = back_dy(b, s),
                     .rates = s->vectors[0],
                     .skip = s->vectors[1],
                     .states = back_step(b, s, INPUTS)->axes[0],
                     .size = s->axes[0],
                     .slices = (s->axes[0] + COLUMNS - 1) / COLUMNS};
    const size_t bytes = 2 * a.slices * b->rows * a.states * sizeof(float);
    int status;
    TL_TRY(read_all(&a, s, OUTPUTS));
    a.inputs = tl_block_cache_take(bytes);
    if (a.inputs == NULL) return tl_fail(b->err, TL_ENOMEM, "no memory for a gradient");
    a.outputs = a.inputs + bytes / 2 / sizeof(float);
    status = finish(&a, back_tasks(b, b->call->n_pieces * a.slices, channels_task, &a));
    if (status == TL_OK) add_parts(&a);
    tl_block_cache_give(a.inputs, bytes);
    return status;
}

/*
 * ---- wkv: a task is one head of one piece ----
 *
 * With S the state before a token, S+ the one after it, and G the gradient of S+:
 *
 *     f = removed S, S+ = keep S - (rate removed) f + key v, y = r S+
 *     dr = S+ dy, dkey = G v, dv = key G, dkeep = sum of G S, df = -(rate removed) G,
 *     d removed = S df - rate (G f), d rate = -removed (G f), dS = keep G + removed df.
 */

/* The sums removed S of one token. */
static void find_removed(const struct scan *a, size_t at, const float *state, float *found) {
    memset(found, 0, a->size * sizeof(float));
    for (size_t i = 0; i < a->states; i++) {
        const float removed = a->in[REMOVED][at + i];
        for (size_t j = 0; j < a->size; j++) found[j] += removed * state[i * a->size + j];
    }
}

/* The states (n + 1, N, P) of one head. */
static void run_wkv(const struct scan *a, size_t row, size_t n, size_t head, float *states,
                    float *found) {
    const size_t cells = a->states * a->size;
    memset(states, 0, cells * sizeof(float));
    for (size_t t = 0; t < n; t++, states += cells) {
        const size_t one = (row + t) * a->heads + head, at = one * a->states;
        const float *v = a->in[WKV_VALUES] + one * a->size;
        find_removed(a, at, states, found);
        for (size_t i = 0; i < a->states; i++) {
            const float keep = a->in[KEEP][at + i], key = a->in[KEYS][at + i];
            const float rate = a->in[REMOVED][at + i] * a->in[RATE][at + i];
            const float *before = states + i * a->size;
            float *after = states + cells + i * a->size;
            for (size_t j = 0; j < a->size; j++) {
                after[j] = (keep * before[j] - rate * found[j]) + key * v[j];
            }
        }
    }
}

/* One token: ds becomes the gradient of the state before it. `scratch` has 3 P values. */
static void wkv_token(const struct scan *a, size_t one, const float *before, float *ds,
                      float *scratch) {
    const size_t at = one * a->states, n = a->size;
    const float *const *in = a->in, *v = in[WKV_VALUES] + one * n, *dy = a->dy + one * n;
    const float *after = before + a->states * n;
    float *found = scratch, *dfound = scratch + n, *dv = scratch + 2 * n;
    find_removed(a, at, before, found);
    memset(dfound, 0, 2 * n * sizeof(float));
    for (size_t i = 0; i < a->states; i++) {
        const float r = in[RECEPTANCE][at + i], removed = in[REMOVED][at + i];
        const float key = in[KEYS][at + i], rate = in[RATE][at + i];
        double dr = 0, dkey = 0, dkeep = 0, part = 0;
        for (size_t j = 0; j < n; j++) {
            float *g = ds + i * n + j;
            *g += r * dy[j];
            dr += (double)after[i * n + j] * (double)dy[j];
            dkey += (double)*g * (double)v[j];
            dkeep += (double)*g * (double)before[i * n + j];
            part -= (double)*g * (double)found[j];
            dv[j] += *g * key;
            dfound[j] -= rate * removed * *g;
        }
        add_to(a->to[RECEPTANCE], at + i, dr);
        add_to(a->to[KEYS], at + i, dkey);
        add_to(a->to[KEEP], at + i, dkeep);
        add_to(a->to[REMOVED], at + i, part * (double)rate);
        add_to(a->to[RATE], at + i, part * (double)removed);
    }
    for (size_t i = 0; i < a->states; i++) {
        const float removed = in[REMOVED][at + i], keep = in[KEEP][at + i];
        double dremoved = 0;
        for (size_t j = 0; j < n; j++) {
            dremoved += (double)before[i * n + j] * (double)dfound[j];
            ds[i * n + j] = keep * ds[i * n + j] + removed * dfound[j];
        }
        add_to(a->to[REMOVED], at + i, dremoved);
    }
    for (size_t j = 0; j < n; j++) add_to(a->to[WKV_VALUES], one * n + j, (double)dv[j]);
}

static void wkv_task(void *arg, size_t task, int thread) {
    struct scan *a = arg;
    const size_t piece = task / a->heads, head = task % a->heads;
    const size_t row = a->b->starts[piece], n = a->b->call->pieces[piece].n;
    const size_t cells = a->states * a->size;
    const size_t bytes = ((n + 2) * cells + 3 * a->size) * sizeof(float);
    float *states = tl_block_cache_take(bytes), *ds;
    (void)thread;
    if (states == NULL) {
        atomic_store(&a->failed, true);
        return;
    }
    ds = states + (n + 1) * cells;
    run_wkv(a, row, n, head, states, ds);
    memset(ds, 0, cells * sizeof(float));
    for (size_t t = n; t-- > 0;) {
        wkv_token(a, (row + t) * a->heads + head, states + t * cells, ds, ds + cells);
    }
    tl_block_cache_give(states, bytes);
}

int wkv_back(struct back *b, const struct tl_step *s) {
    struct scan a = {.b = b,
                     .dy = back_dy(b, s),
                     .heads = s->axes[0],
                     .states = back_step(b, s, KEYS)->axes[1],
                     .size = s->axes[1]};
    TL_TRY(read_all(&a, s, RATE));
    return finish(&a, back_tasks(b, b->call->n_pieces * a.heads, wkv_task, &a));
}
