/* back_recurrent.c - the gradient of the gated delta rule, and of the decay that it reads. */
#include "training/back_pass.h"

#include "base/block_cache.h"
#include "base/math64.h"

#include <stdatomic.h>
#include <string.h>

/* ---- decay: exp(a softplus(alpha + dt)) ---- */

struct decay {
    const float *x, *a, *dt, *dy;
    float *dx;
    size_t width;
};

static void decay_rows(struct back *b, const void *arg, size_t first, size_t last) {
    const struct decay *d = arg;
    (void)b;
    for (size_t i = first * d->width; i < last * d->width; i++) {
        const double a = (double)d->a[i % d->width];
        const double x = (double)d->x[i] + (double)d->dt[i % d->width];
        const double softplus = x > 0 ? x + tl_log(1 + tl_exp(-x)) : tl_log(1 + tl_exp(x));
        d->dx[i] += (float)(tl_exp(a * softplus) * a / (1 + tl_exp(-x)) * (double)d->dy[i]);
    }
}

int decay_back(struct back *b, const struct tl_step *s) {
    struct decay d = {
        .a = s->vectors[0], .dt = s->vectors[1], .dy = back_dy(b, s), .width = s->width};
    TL_TRY(back_value(b, s, 0, &d.x));
    TL_TRY(back_into(b, s, 0, &d.dx, NULL));
    return back_ranges(b, b->rows, s->width * 64, decay_rows, &d);
}

/* ---- delta ---- */

/* The reads and numbers of a delta step: see delta_check. */
enum { QUERIES, KEYS, VALUES, DECAY, BETA };
enum { TILED, FACTOR };

/*
 * A task is one key head of one piece, with all value heads that use it. The states after every
 * token are computed again, because the forward pass keeps only the last one.
 */
struct delta {
    struct back *b;
    const float *in[BETA + 1], *dy;
    float *to[BETA + 1]; // NULL: of no use
    size_t key_heads, heads, key_size, size;
    bool tiled;
    float factor;
    atomic_bool failed; // a task had no memory
};

/* One value head of one piece; row: the piece's first one. */
struct head {
    size_t row, n, key, head;
    float *states;     // (n + 1, key_size, size)
    float *ds;         // (key_size, size) the gradient of the state
    float *u, *d, *dd; // (n, size) what the state holds for the key, the change; and its gradient
};

static void run_head(const struct delta *a, const struct head *h) {
    const size_t cells = a->key_size * a->size;
    memset(h->states, 0, cells * sizeof(float));
    for (size_t t = 0; t < h->n; t++) {
        const size_t row = h->row + t, at = row * a->heads + h->head;
        const float *k = a->in[KEYS] + (row * a->key_heads + h->key) * a->key_size;
        const float *v = a->in[VALUES] + at * a->size, g = a->in[DECAY][at];
        const float *before = h->states + t * cells;
        float *state = h->states + (t + 1) * cells, *u = h->u + t * a->size,
              *d = h->d + t * a->size;
        memset(u, 0, a->size * sizeof(float));
        for (size_t i = 0; i < a->key_size; i++) {
            for (size_t j = 0; j < a->size; j++) u[j] += g * before[i * a->size + j] * k[i];
        }
        for (size_t j = 0; j < a->size; j++) d[j] = (v[j] - u[j]) * a->in[BETA][at];
        for (size_t i = 0; i < a->key_size; i++) {
            for (size_t j = 0; j < a->size; j++) {
                state[i * a->size + j] = g * before[i * a->size + j] + k[i] * d[j];
            }
        }
    }
}

/* One token: ds is the gradient of the state after it, and becomes that of the state before it. */
static void back_token(const struct delta *a, const struct head *h, size_t t) {
    const size_t row = h->row + t, at = row * a->heads + h->head, cells = a->key_size * a->size;
    const size_t key = (row * a->key_heads + h->key) * a->key_size;
    const float *q = a->in[QUERIES] + key, *k = a->in[KEYS] + key;
    const float *v = a->in[VALUES] + at * a->size, *dy = a->dy + at * a->size;
    const float *before = h->states + t * cells, *state = before + cells;
    const float *u = h->u + t * a->size, *d = h->d + t * a->size;
    const float g = a->in[DECAY][at], beta = a->in[BETA][at];
    double dg = 0, dbeta = 0;
    memset(h->dd, 0, a->size * sizeof(float));
    for (size_t i = 0; i < a->key_size; i++) {
        float *ds = h->ds + i * a->size;
        double dq = 0;
        for (size_t j = 0; j < a->size; j++) {
            dq += (double)state[i * a->size + j] * (double)dy[j];
            ds[j] += a->factor * q[i] * dy[j];
            h->dd[j] += ds[j] * k[i];
        }
        if (a->to[QUERIES] != NULL) a->to[QUERIES][key + i] += (float)(dq * (double)a->factor);
    }
    for (size_t j = 0; j < a->size; j++) dbeta += (double)h->dd[j] * (double)(v[j] - u[j]);
    for (size_t i = 0; i < a->key_size; i++) {
        float *ds = h->ds + i * a->size;
        double dk = 0;
        for (size_t j = 0; j < a->size; j++) {
            const float du = -beta * h->dd[j], kept = before[i * a->size + j];
            dk += (double)ds[j] * (double)d[j] + (double)(g * kept) * (double)du;
            ds[j] += k[i] * du;
            dg += (double)ds[j] * (double)kept;
            ds[j] *= g;
        }
        if (a->to[KEYS] != NULL) a->to[KEYS][key + i] += (float)dk;
    }
    for (size_t j = 0; a->to[VALUES] != NULL && j < a->size; j++) {
        a->to[VALUES][at * a->size + j] += beta * h->dd[j];
    }
    if (a->to[DECAY] != NULL) a->to[DECAY][at] += (float)dg;
    if (a->to[BETA] != NULL) a->to[BETA][at] += (float)dbeta;
}

static void delta_task(void *arg, size_t task, int thread) {
    struct delta *a = arg;
    const size_t piece = task / a->key_heads, cells = a->key_size * a->size;
    struct head h = {
        .key = task % a->key_heads, .row = a->b->starts[piece], .n = a->b->call->pieces[piece].n};
    const size_t bytes = ((h.n + 2) * cells + (2 * h.n + 1) * a->size) * sizeof(float);
    (void)thread;
    h.states = tl_block_cache_take(bytes);
    if (h.states == NULL) {
        atomic_store(&a->failed, true);
        return;
    }
    h.ds = h.states + (h.n + 1) * cells;
    h.u = h.ds + cells;
    h.d = h.u + h.n * a->size;
    h.dd = h.d + h.n * a->size;
    for (h.head = 0; h.head < a->heads; h.head++) {
        const size_t key = a->tiled ? h.head % a->key_heads : h.head / (a->heads / a->key_heads);
        if (key != h.key) continue;
        run_head(a, &h);
        memset(h.ds, 0, cells * sizeof(float));
        for (size_t t = h.n; t-- > 0;) back_token(a, &h, t);
    }
    tl_block_cache_give(h.states, bytes);
}

int delta_back(struct back *b, const struct tl_step *s) {
    const struct tl_step *k = back_step(b, s, KEYS);
    struct delta a = {.b = b,
                      .dy = back_dy(b, s),
                      .key_heads = k->axes[0],
                      .key_size = k->axes[1],
                      .heads = s->axes[0],
                      .size = s->axes[1],
                      .tiled = s->numbers[TILED] != 0,
                      .factor = (float)s->numbers[FACTOR]};
    for (int i = QUERIES; i <= BETA; i++) {
        TL_TRY(back_value(b, s, i, &a.in[i]));
        TL_TRY(back_into(b, s, i, &a.to[i], NULL));
    }
    TL_TRY(back_tasks(b, b->call->n_pieces * a.key_heads, delta_task, &a));
    if (!atomic_load(&a.failed)) return TL_OK;
    return tl_fail(b->err, TL_ENOMEM, "no memory for the states of %zu tokens", b->longest);
}
