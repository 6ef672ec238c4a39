/* back.c - the table of the ops' gradients, and the walk from the last step to the first. */
#include "training/back.h"

#include "base/block_cache.h"
#include "base/fpu.h"
#include "training/back_pass.h"

#include <stdlib.h>
#include <string.h>

/* The function of each op; NULL: its gradient is not known. Scores and softmax are part of mix. */
static back_fn *const table[TL_OP_COUNT] = {
    [TL_OP_EMBED] = embed_back,
    [TL_OP_SAME] = same_back,
    [TL_OP_SHAPE] = same_back,
    [TL_OP_SLICE] = slice_back,
    [TL_OP_NORM_SCALE] = norm_scale_back,
    [TL_OP_NORM] = norm_back,
    [TL_OP_NORM_MEAN] = norm_mean_back,
    [TL_OP_LAYER_SCALE] = layer_scale_back,
    [TL_OP_LAYER_NORM] = layer_norm_back,
    [TL_OP_LINEAR] = linear_back,
    [TL_OP_ROPE] = rope_back,
    [TL_OP_TEMPER] = temper_back,
    [TL_OP_MIX] = mix_back,
    [TL_OP_ADD] = add_back,
    [TL_OP_COMBINE] = combine_back,
    [TL_OP_ADD_SHARED] = add_shared_back,
    [TL_OP_MATCH_RMS] = match_rms_back,
    [TL_OP_SPARSIFY] = sparsify_back,
    [TL_OP_ACT] = act_back,
    [TL_OP_UNARY] = unary_back,
    [TL_OP_SCALE] = scale_back,
    [TL_OP_CONCAT] = concat_back,
    [TL_OP_CONV] = conv_back,
    [TL_OP_DECAY] = decay_back,
    [TL_OP_DELTA] = delta_back,
    [TL_OP_SCAN] = scan_back,
    [TL_OP_SCAN_CHANNELS] = scan_channels_back,
    [TL_OP_SHIFT] = shift_back,
    [TL_OP_WKV] = wkv_back,
    [TL_OP_SOFTPLUS] = softplus_back,
    [TL_OP_XIELU] = xielu_back,
    [TL_OP_EXP] = exp_back,
    [TL_OP_ROUTE_PROBS] = route_probs_back,
    [TL_OP_ROUTE_WEIGHTS] = route_weights_back,
    [TL_OP_EXPERTS] = experts_back,
    [TL_OP_HEAD_LINEAR] = experts_back,
    [TL_OP_WEIGHTED_SUM] = weighted_sum_back,
};

static bool captured(const struct back *b, size_t i) {
    return b->call->captures != NULL && b->call->captures[i] != NULL;
}

static bool edited(const struct back *b, size_t i) {
    return b->call->edits != NULL && b->call->edits[i] != 0;
}

static size_t bytes_of(const struct back *b, size_t i) {
    return b->rows * b->p->steps[i].width * sizeof(float);
}

int back_value(const struct back *b, const struct tl_step *s, int i, const float **out) {
    *out = b->call->values[s->in[i]];
    if (*out != NULL) return TL_OK;
    return tl_fail(b->err, TL_EARG,
                   "the backward pass of step %zu (%s) reads step %zu, whose "
                   "value is not given",
                   (size_t)(s - b->p->steps), tl_ops[s->op].name, s->in[i]);
}

/* Makes the gradient of step i, not cleared. */
static int make_grad(struct back *b, size_t i) {
    b->grads[i] = captured(b, i) ? b->call->captures[i] : tl_block_cache_take(bytes_of(b, i));
    if (b->grads[i] != NULL) return TL_OK;
    return tl_fail(b->err, TL_ENOMEM, "no memory for a gradient of %zu bytes", bytes_of(b, i));
}

/* Whether the gradient of step i is the caller's array. */
static bool is_given(const struct back *b, size_t i) {
    return captured(b, i) && b->grads[i] == b->call->captures[i];
}

/* Frees the gradient of step i, unless it is the caller's. */
static void drop_grad(struct back *b, size_t i) {
    if (!is_given(b, i)) tl_block_cache_give(b->grads[i], bytes_of(b, i));
    b->grads[i] = NULL;
}

int back_into(struct back *b, const struct tl_step *s, int i, float **out, bool *fresh) {
    const size_t in = s->in[i];
    *out = NULL;
    if (fresh != NULL) *fresh = false;
    if (!b->needed[in]) return TL_OK;
    if (b->grads[in] == NULL) {
        TL_TRY(make_grad(b, in));
        if (fresh != NULL) {
            *fresh = true;
        } else {
            memset(b->grads[in], 0, bytes_of(b, in));
        }
    }
    *out = b->grads[in];
    return TL_OK;
}

struct sum {
    float *to;
    const float *from;
};

static void sum_range(struct back *b, const void *arg, size_t first, size_t last) {
    const struct sum *a = arg;
    b->k->add(a->to + first, a->from + first, a->to + first, last - first);
}

int back_copy(struct back *b, const struct tl_step *s, int i) {
    const size_t step = (size_t)(s - b->p->steps), in = s->in[i];
    const struct sum a = {b->grads[in], b->grads[step]};
    if (!b->needed[in]) return TL_OK;
    if (b->grads[in] != NULL) return back_ranges(b, b->rows * s->width, 4, sum_range, &a);
    TL_TRY(make_grad(b, in));
    memcpy(b->grads[in], b->grads[step], bytes_of(b, in));
    return TL_OK;
}

int back_move(struct back *b, const struct tl_step *s, int i) {
    const size_t step = (size_t)(s - b->p->steps), in = s->in[i];
    if (!b->needed[in] || b->grads[in] != NULL || captured(b, in) || is_given(b, step)) {
        return back_copy(b, s, i);
    }
    b->grads[in] = b->grads[step];
    b->grads[step] = NULL;
    return TL_OK;
}

int back_own(struct back *b, const struct tl_step *s) {
    const size_t i = (size_t)(s - b->p->steps);
    float *copy;
    if (!is_given(b, i)) return TL_OK;
    copy = tl_block_cache_take(bytes_of(b, i));
    if (copy == NULL) return tl_fail(b->err, TL_ENOMEM, "no memory for a gradient");
    memcpy(copy, b->grads[i], bytes_of(b, i));
    b->grads[i] = copy;
    return TL_OK;
}

size_t back_position(const struct back *b, size_t row, size_t *piece) {
    size_t i = 0;
    while (i + 1 < b->call->n_pieces && row >= b->starts[i + 1]) i++;
    *piece = i;
    return row - b->starts[i];
}

int back_tasks(struct back *b, size_t tasks, tl_task_fn *fn, void *arg) {
    if (tl_pool_run_all(b->call->threads, tasks, fn, arg, b->call->poll, b->call->poll_user) !=
        TL_OK) {
        return tl_fail(b->err, TL_ESTOP, "interrupted");
    }
    return TL_OK;
}

struct ranges {
    struct back *b;
    back_range_fn *fn;
    const void *arg;
    size_t items, parts;
};

static void range_task(void *arg, size_t task, int thread) {
    const struct ranges *r = arg;
    (void)thread;
    r->fn(r->b, r->arg, r->items * task / r->parts, r->items * (task + 1) / r->parts);
}

int back_ranges(struct back *b, size_t items, size_t work, back_range_fn *fn, const void *arg) {
    struct ranges r = {b, fn, arg, items, TL_MIN(items, (size_t)b->call->threads * 4)};
    if (b->call->threads == 1 || items * work < PASS_PARALLEL_WORK || items < 2) {
        fn(b, arg, 0, items);
        return TL_OK;
    }
    return back_tasks(b, r.parts, range_task, &r);
}

struct columns {
    struct back *b;
    const float *x;
    float *to;
    size_t n;
};

static void columns_task(void *arg, size_t task, int thread) {
    const struct columns *a = arg;
    const size_t first = task * BACK_COLUMNS, last = TL_MIN(first + BACK_COLUMNS, a->n);
    (void)thread;
    a->b->loops->columns(a->x + first, a->b->rows, a->n, last - first, a->to + first);
}

int back_columns(struct back *b, const float *x, size_t n, float *to) {
    struct columns a = {b, x, to, n};
    return back_tasks(b, (n + BACK_COLUMNS - 1) / BACK_COLUMNS, columns_task, &a);
}

/* Columns of a task are a multiple of this: the panel of the widest tile. */
#define TASK_COLUMNS 48

struct product {
    const struct back *b;
    const struct tl_gemm *g;
    size_t rows, columns; // of a task
    size_t down;          // tasks below each other
};

static void product_task(void *arg, size_t task, int thread) {
    const struct product *p = arg;
    const size_t m = task % p->down * p->rows, n = task / p->down * p->columns;
    p->b->gemm(p->g, m, TL_MIN(m + p->rows, p->g->m), n, TL_MIN(n + p->columns, p->g->n),
               (float *)(void *)(p->b->scratch + (size_t)thread * p->b->thread_bytes));
}

/* How many parts of `part` or less there are, at least `wanted` if each keeps `least` of them. */
static size_t parts_of(size_t n, size_t part, size_t wanted, size_t least) {
    return TL_MAX((n + part - 1) / part, TL_MIN(wanted, n / least));
}

int back_gemm(struct back *b, const struct tl_gemm *g) {
    struct product p = {b, g, 512, GEMM_COLUMNS, 0};
    const size_t wanted = (size_t)b->call->threads * 2; // so that no thread waits long for another
    size_t across = (g->n + GEMM_COLUMNS - 1) / GEMM_COLUMNS;
    if (g->m == 0) return TL_OK; // no row has a gradient
    if (b->call->threads > 1 && g->weights == NULL && g->k > g->m) {
        // every task packs its columns of B, which costs least if they are those of no other task
        p.columns = TL_MIN(TL_MAX(g->n / wanted / TASK_COLUMNS, (size_t)1) * TASK_COLUMNS,
                           (size_t)GEMM_COLUMNS);
        across = (g->n + p.columns - 1) / p.columns;
    }
    if (b->call->threads > 1) {
        const size_t parts = parts_of(g->m, p.rows, (wanted + across - 1) / across, 32);
        p.rows = ((g->m + parts - 1) / parts + 7) / 8 * 8;
    }
    p.down = (g->m + p.rows - 1) / p.rows;
    return back_tasks(b, p.down * across, product_task, &p);
}

/* Lists which gradients are of use: those that are wanted, and those that these depend on. */
static void find_needed(struct back *b) {
    const struct tl_plan *p = b->p;
    for (size_t i = 0; i < p->n; i++) {
        const struct tl_step *s = &p->steps[i];
        bool use = captured(b, i);
        for (int j = 0; j < s->n_in; j++) use |= b->needed[s->in[j]];
        for (int j = 0; j < TL_STEP_WEIGHTS; j++) use |= back_weight(b, s, j) != NULL;
        for (size_t j = 0; j < b->call->n_pieces && s->value == TL_VALUE_MATRIX; j++) {
            float *const *wanted = b->call->pieces[j].captures;
            use |= wanted != NULL && wanted[s->number] != NULL;
        }
        b->needed[i] = use && s->op != TL_OP_ROUTE_IDS; // which experts run is a constant
    }
}

/* Adds the seed, and turns the gradient of an edited value into that before the edit. */
static int complete(struct back *b, size_t i) {
    const struct tl_step *s = &b->p->steps[i];
    const float *seed = b->call->seeds != NULL ? b->call->seeds[i] : NULL;
    if (seed != NULL && b->grads[i] == NULL) {
        TL_TRY(make_grad(b, i));
        memcpy(b->grads[i], seed, bytes_of(b, i));
    } else if (seed != NULL) {
        const struct sum a = {b->grads[i], seed};
        TL_TRY(back_ranges(b, b->rows * s->width, 4, sum_range, &a));
    }
    if (b->grads[i] == NULL || !edited(b, i)) return TL_OK;
    TL_TRY(back_own(b, s)); // what is captured is the gradient of the edited value
    if (b->call->edit(b->call->edit_user, i, -1, b->grads[i]) == 0) return TL_OK;
    return tl_fail(b->err, TL_ESTOP, "stopped by an edit");
}

/* Whether anything flows into the scores or probs of a mix besides its own gradient. */
static bool seeded_matrix(const struct back *b, const struct tl_step *s) {
    for (size_t i = 0; i < b->call->n_pieces; i++) {
        const float *const *seeds = b->call->pieces[i].seeds;
        if (seeds != NULL && (seeds[s[-1].number] != NULL || seeds[s[-2].number] != NULL)) {
            return true;
        }
    }
    return false;
}

static int walk(struct back *b) {
    for (size_t i = b->p->n; i-- > 0;) {
        const struct tl_step *s = &b->p->steps[i];
        bool reads = false;
        if (!b->needed[i]) continue;
        if (s->value == TL_VALUE_ROWS) TL_TRY(complete(b, i));
        if (b->grads[i] == NULL && s->op == TL_OP_MIX && seeded_matrix(b, s)) {
            TL_TRY(make_grad(b, i));
            memset(b->grads[i], 0, bytes_of(b, i));
        }
        if (b->grads[i] == NULL) { // nothing depends on this value
            if (captured(b, i)) memset(b->call->captures[i], 0, bytes_of(b, i));
            continue;
        }
        for (int j = 0; j < s->n_in; j++) reads |= b->needed[s->in[j]];
        for (int j = 0; j < TL_STEP_WEIGHTS; j++) reads |= back_weight(b, s, j) != NULL;
        if (reads && table[s->op] == NULL) {
            return tl_fail(b->err, TL_ENOSUP,
                           "step %zu (%s): the gradient of this operation is not implemented", i,
                           tl_ops[s->op].name);
        }
        if (reads) TL_TRY(table[s->op](b, s));
        drop_grad(b, i);
    }
    return TL_OK;
}

static int prepare(struct back *b) {
    const struct tl_plan *p = b->p;
    b->starts = calloc(b->call->n_pieces + 1, sizeof(*b->starts));
    b->needed = calloc(p->n, sizeof(*b->needed));
    b->grads = calloc(p->n, sizeof(*b->grads));
    b->cos_sin = calloc(p->n_ropes + 1, sizeof(*b->cos_sin));
    if (b->starts == NULL || b->needed == NULL || b->grads == NULL || b->cos_sin == NULL) {
        return tl_fail(b->err, TL_ENOMEM, "no memory for a backward pass");
    }
    for (size_t i = 0; i < b->call->n_pieces; i++) {
        b->starts[i] = b->rows;
        b->rows += b->call->pieces[i].n;
        b->longest = TL_MAX(b->longest, b->call->pieces[i].n);
    }
    b->thread_bytes = GEMM_SCRATCH * sizeof(float) + back_attention_scratch(b);
    b->thread_bytes = (b->thread_bytes + 63) / 64 * 64;
    b->scratch = tl_block_cache_take(b->thread_bytes * (size_t)b->call->threads);
    if (b->scratch == NULL) return tl_fail(b->err, TL_ENOMEM, "no memory for a backward pass");
    find_needed(b);
    return TL_OK;
}

int tl_backward(const struct tl_plan *p, const struct tl_back_call *call, struct tl_error *err) {
    struct back b = {
        .p = p,
        .k = p->kernels,
        .call = call,
        .err = err,
        .gemm = tl_gemm_find(p->kernels),
        .loops = tl_loops_find(p->kernels),
    };
    const uint64_t fpu = tl_fpu_enter();
    int status = prepare(&b);
    if (status == TL_OK) status = walk(&b);
    for (size_t i = 0; b.grads != NULL && i < p->n; i++) drop_grad(&b, i);
    for (size_t i = 0; b.cos_sin != NULL && i < p->n_ropes; i++) tl_free(b.cos_sin[i]);
    tl_block_cache_give(b.scratch, b.thread_bytes * (size_t)call->threads);
    free(b.starts);
    free(b.needed);
    free(b.grads);
    free(b.cos_sin);
    tl_fpu_leave(fpu);
    return status;
}
