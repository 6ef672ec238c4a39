/* optimizer.c - the loss, dropout, AdamW and Muon. */
#include "training/optimizer.h"

#include "base/block_cache.h"
#include "base/fpu.h"
#include "base/math64.h"
#include "base/pool.h"
#include "training/gemm.h"

#include <math.h>
#include <stdatomic.h>
#include <string.h>

/* Values or rows of a task. */
#define PART 16384
#define ROWS 16

/* The steps of Newton and Schulz, and the coefficients of Jordan's polynomial. */
#define ITERATIONS 5
static const float coefficients[3] = {3.4445f, -4.7750f, 2.0315f};

/* ---- loss ---- */

struct loss {
    const struct tl_kernels *k;
    const struct tl_loss *l;
};

static void loss_row(const struct loss *a, size_t row) {
    const struct tl_loss *l = a->l;
    const float *x = l->logits + row * l->vocab;
    float *to = l->gradient != NULL ? l->gradient + row * l->vocab : NULL;
    const int32_t target = l->targets[row];
    float most = -INFINITY;
    double sum = 0;
    l->losses[row] = 0;
    if (target < 0) {
        if (to != NULL) memset(to, 0, l->vocab * sizeof(float));
        return;
    }
    for (size_t i = 0; i < l->vocab; i++) most = TL_MAX(most, x[i]);
    if (to == NULL) {
        for (size_t i = 0; i < l->vocab; i++) sum += tl_exp((double)x[i] - (double)most);
        l->losses[row] = tl_log(sum) - ((double)x[target] - (double)most);
        return;
    }
    a->k->attn_softmax(x, l->vocab, -INFINITY, to);
    // the sum of the exponentials is that of the largest one divided by its probability
    for (size_t i = 0; i < l->vocab; i++) sum = TL_MAX(sum, (double)to[i]);
    l->losses[row] = -tl_log(sum) - ((double)x[target] - (double)most);
    to[target] -= 1;
    for (size_t i = 0; i < l->vocab; i++) to[i] *= l->scale;
}

static void loss_task(void *arg, size_t task, int thread) {
    const struct loss *a = arg;
    (void)thread;
    for (size_t i = task * ROWS; i < TL_MIN((task + 1) * ROWS, a->l->rows); i++) loss_row(a, i);
}

/* Runs tasks on the pool; they are few and short, so nothing polls. */
static int run_tasks(int threads, size_t tasks, tl_task_fn *fn, void *arg, struct tl_error *err) {
    const uint64_t fpu = tl_fpu_enter();
    const int status =
        tasks > TL_MAX_TASKS
            ? tl_fail(err, TL_EARG, "%zu tasks; expected at most %u", tasks, (unsigned)TL_MAX_TASKS)
            : tl_pool_run(threads, tasks, fn, arg, NULL, NULL);
    tl_fpu_leave(fpu);
    return status;
}

int tl_loss_run(const struct tl_kernels *k, const struct tl_loss *l, int threads,
                struct tl_error *err) {
    struct loss a = {k, l};
    return run_tasks(threads, (l->rows + ROWS - 1) / ROWS, loss_task, &a, err);
}

/* ---- dropout ---- */

/* Output i of SplitMix64. */
static uint64_t random_at(uint64_t key, uint64_t i) {
    uint64_t z = key + (i + 1) * UINT64_C(0x9E3779B97F4A7C15);
    z = (z ^ (z >> 30)) * UINT64_C(0xBF58476D1CE4E5B9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94D049BB133111EB);
    return z ^ (z >> 31);
}

static void dropout_task(void *arg, size_t task, int thread) {
    const struct tl_dropout *d = arg;
    const size_t first = task * PART, n = TL_MIN(d->n - first, (size_t)PART);
    const uint64_t limit = (uint64_t)(d->rate * 4294967296.0);
    const float scale = (float)(1 / (1 - d->rate));
    float *x = d->x + first;
    uint64_t random = 0;
    (void)thread;
    for (size_t i = 0; i < n; i++) {
        const uint64_t place = d->first + first + i;
        if (i == 0 || place % 2 == 0) random = random_at(d->key, place / 2);
        x[i] = (uint32_t)(random >> (place % 2 * 32)) < limit ? 0 : x[i] * scale;
    }
}

int tl_dropout_run(const struct tl_dropout *d, int threads, struct tl_error *err) {
    struct tl_dropout a = *d;
    return run_tasks(threads, (d->n + PART - 1) / PART, dropout_task, &a, err);
}

/* ---- AdamW ---- */

double tl_sum_squares(const float *x, size_t n) {
    double parts[8] = {0}, sum = 0;
    for (size_t i = 0; i < n; i++) parts[i % 8] += (double)x[i] * (double)x[i];
    for (size_t i = 0; i < 8; i++) sum += parts[i];
    return sum;
}

struct adamw {
    const struct tl_adamw *a;
    const struct tl_adamw_item *items;
    size_t n;
};

static void adamw_part(const struct tl_adamw *a, const struct tl_adamw_item *item, size_t first,
                       size_t last) {
    const double step = (double)a->step;
    const float keep = (float)(1 - a->rate * item->decay), scale = (float)a->scale;
    const float rate = (float)(a->rate / (1 - tl_exp(step * tl_log(a->beta1))));
    const float root = (float)(1 / sqrt(1 - tl_exp(step * tl_log(a->beta2))));
    const float beta1 = (float)a->beta1, rest1 = (float)(1 - a->beta1);
    const float beta2 = (float)a->beta2, rest2 = (float)(1 - a->beta2);
    const float epsilon = (float)a->epsilon;
    for (size_t i = first; i < last; i++) {
        const float g = item->g[i] * scale;
        const float m = beta1 * item->m[i] + rest1 * g, v = beta2 * item->v[i] + rest2 * (g * g);
        item->m[i] = m;
        item->v[i] = v;
        item->w[i] = item->w[i] * keep - rate * m / (sqrtf(v) * root + epsilon);
    }
}

static void adamw_task(void *arg, size_t task, int thread) {
    const struct adamw *all = arg;
    (void)thread;
    for (size_t i = 0; i < all->n; i++) {
        const size_t tasks = (all->items[i].n + PART - 1) / PART;
        if (task < tasks) {
            adamw_part(all->a, &all->items[i], task * PART,
                       TL_MIN((task + 1) * PART, all->items[i].n));
            return;
        }
        task -= tasks;
    }
}

int tl_adamw_run(const struct tl_adamw *a, const struct tl_adamw_item *items, size_t n, int threads,
                 struct tl_error *err) {
    struct adamw all = {a, items, n};
    size_t tasks = 0;
    for (size_t i = 0; i < n; i++) tasks += (items[i].n + PART - 1) / PART;
    return run_tasks(threads, tasks, adamw_task, &all, err);
}

/* ---- Muon ---- */

struct muon {
    const struct tl_muon *a;
    const struct tl_muon_item *items;
    tl_gemm_fn *gemm;
    atomic_bool failed; // a task had no memory
};

/* c (m, n) = a (m, k) times b (k, n). */
static struct tl_gemm product_of(size_t m, size_t n, size_t k, const float *a, const float *b,
                                 float *c) {
    return (struct tl_gemm){.m = m,
                            .n = n,
                            .k = k,
                            .a = a,
                            .a_row = k,
                            .a_col = 1,
                            .b = b,
                            .b_row = n,
                            .b_col = 1,
                            .c = c,
                            .c_row = n};
}

/* u (a, b), a <= b, becomes nearly orthogonal: u = (c0 + c1 s + c2 s^2) u with s = u u^T. */
static void orthogonalize(tl_gemm_fn *gemm, float *u, size_t a, size_t b, float *work) {
    float *s = work, *t = s + a * a, *next = t + a * a, *scratch = next + a * b;
    const float factor = (float)(1 / (sqrt(tl_sum_squares(u, a * b)) + 1e-7));
    for (size_t i = 0; i < a * b; i++) u[i] *= factor;
    for (int round = 0; round < ITERATIONS; round++) {
        struct tl_gemm square = product_of(a, a, b, u, u, s);
        const struct tl_gemm fourth = product_of(a, a, a, s, s, t);
        const struct tl_gemm product = product_of(a, b, a, t, u, next);
        square.b_row = 1; // transposed
        square.b_col = b;
        tl_gemm_serial(gemm, &square, scratch);
        tl_gemm_serial(gemm, &fourth, scratch);
        for (size_t i = 0; i < a * a; i++) t[i] = coefficients[1] * s[i] + coefficients[2] * t[i];
        tl_gemm_serial(gemm, &product, scratch);
        for (size_t i = 0; i < a * b; i++) u[i] = coefficients[0] * u[i] + next[i];
    }
}

static void muon_task(void *arg, size_t task, int thread) {
    struct muon *all = arg;
    const struct tl_muon_item *item = &all->items[task];
    const size_t rows = item->rows, cols = item->cols, n = rows * cols;
    const size_t a = TL_MIN(rows, cols), b = TL_MAX(rows, cols);
    const size_t bytes = (2 * n + 2 * a * a + GEMM_SCRATCH) * sizeof(float);
    const double tall = TL_MAX(1.0, (double)rows / (double)cols);
    const float keep = (float)(1 - all->a->rate * item->decay);
    const float rate = (float)(all->a->rate * sqrt(tall)), scale = (float)all->a->scale;
    const float momentum = (float)all->a->momentum, rest = (float)(1 - all->a->momentum);
    float *u = tl_block_cache_take(bytes);
    (void)thread;
    if (u == NULL) {
        atomic_store(&all->failed, true);
        return;
    }
    for (size_t i = 0; i < n; i++) {
        const float g = item->g[i] * scale, m = item->m[i] + rest * (g - item->m[i]);
        const size_t at = rows <= cols ? i : i % cols * rows + i / cols; // a wide matrix
        item->m[i] = m;
        u[at] = g + momentum * (m - g);
    }
    orthogonalize(all->gemm, u, a, b, u + n);
    for (size_t i = 0; i < n; i++) {
        const size_t at = rows <= cols ? i : i % cols * rows + i / cols;
        item->w[i] = item->w[i] * keep - rate * u[at];
    }
    tl_block_cache_give(u, bytes);
}

int tl_muon_run(const struct tl_kernels *k, const struct tl_muon *a,
                const struct tl_muon_item *items, size_t n, int threads, struct tl_error *err) {
    struct muon all = {.a = a, .items = items, .gemm = tl_gemm_find(k)};
    const int status = run_tasks(threads, n, muon_task, &all, err);
    if (status != TL_OK || !atomic_load(&all.failed)) return status;
    return tl_fail(err, TL_ENOMEM, "no memory for a step of Muon");
}
