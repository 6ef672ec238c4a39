/*
 * back_attention.c - the gradient of scores, softmax and mix together.
 *
 * A task is one kv head of one piece, so that the sums over the queries of a key belong to one
 * thread. It works on a tile of queries at a time. If something happens to the gradients of scores
 * or probs (they are wanted, seeded or edited), these have memory of their own, and each stage runs
 * over all tasks before the next begins.
 */
#include "training/back_pass.h"

#include "base/block_cache.h"
#include "forward/attention.h"

#include <math.h>
#include <string.h>

/* Queries of a tile. */
#define TILE 128

enum stage { STAGE_PROBS = 1, STAGE_SCORES = 2, STAGE_INPUTS = 4, STAGE_ALL = 7 };

struct attention {
    struct back *b;
    const struct tl_step *scores, *softmax, *mix;
    const struct tl_cache *cache;
    const float *q, *k, *v, *dmix;
    float *dq, *dk, *dv; // NULL: of no use
    bool fresh[3];       // dq, dk and dv are not cleared yet
    size_t heads;
    float *work; // gradients of scores or probs, one piece after another (H, n, n); NULL: a tile
    int stages;
};

size_t back_attention_scratch(const struct back *b) {
    const size_t rows = TL_MIN(b->longest, (size_t)TILE);
    // a tile and a row of probs; which keys a query sees, and which queries see a key
    return (rows + 1) * b->longest * sizeof(float) + (rows + b->longest) * sizeof(struct tl_range);
}

/* The matrix of a piece from one of its lists, or NULL. */
static const float *matrix(const float *const *list, const struct tl_step *s) {
    return list != NULL ? list[s->number] : NULL;
}

/* Where the work of a piece begins. */
static size_t work_at(const struct attention *a, size_t piece) {
    size_t at = 0;
    for (size_t i = 0; i < piece; i++) {
        at += a->heads * a->b->call->pieces[i].n * a->b->call->pieces[i].n;
    }
    return at;
}

/* A tile of queries of one head, with the keys [first, end) that they see. */
struct tile {
    size_t piece, row, head, kv; // row: of the piece's first token
    size_t n;                    // tokens of the piece
    size_t t0, t1;               // queries
    size_t first, end;
    struct tl_range *seen;  // (t1 - t0) the keys that each query sees, from `first` on
    struct tl_range *seers; // (end - first) the queries that see each key, from t0 on
    float *d;               // gradient of probs, then of scores: (t1 - t0, end - first)
    size_t stride;          // of d
    float *line;            // scratch for a row of probs
    float *gemm;            // scratch
};

static void run_gemm(const struct attention *a, const struct tile *t, struct tl_gemm g) {
    tl_gemm_serial(a->b->gemm, &g, t->gemm);
}

static void probs_stage(const struct attention *a, const struct tile *t) {
    const struct tl_back_piece *p = &a->b->call->pieces[t->piece];
    const size_t dv = a->cache->value_size, kv = a->cache->kv_heads, keys = t->end - t->first;
    const size_t at = (t->head * t->n + t->t0) * t->n + t->first, rows = t->t1 - t->t0;
    const float *seed = matrix(p->seeds, a->softmax), *probs = matrix(p->matrices, a->softmax);
    const float *dmix = a->dmix + (t->row + t->t0) * a->heads * dv + t->head * dv;
    const size_t value = (t->row + t->first) * kv * dv + t->kv * dv;
    run_gemm(a, t,
             (struct tl_gemm){.m = rows,
                              .n = keys,
                              .k = dv,
                              .a = dmix,
                              .a_row = a->heads * dv,
                              .a_col = 1,
                              .b = a->v + value,
                              .b_row = 1,
                              .b_col = kv * dv,
                              .c = t->d,
                              .c_row = t->stride,
                              .wanted = t->seen});
    for (size_t i = 0; i < rows; i++) {
        const struct tl_range seen = t->seen[i];
        float *d = t->d + i * t->stride;
        memset(d, 0, seen.first * sizeof(float));
        memset(d + seen.end, 0, (keys - seen.end) * sizeof(float));
        for (size_t j = seen.first; seed != NULL && j < seen.end; j++) {
            d[j] += seed[at + i * t->n + j];
        }
    }
    if (a->dv == NULL) return;
    run_gemm(a, t,
             (struct tl_gemm){.m = keys,
                              .n = dv,
                              .k = rows,
                              .a = probs + at,
                              .a_row = 1,
                              .a_col = t->n,
                              .b = dmix,
                              .b_row = a->heads * dv,
                              .b_col = 1,
                              .c = a->dv + value,
                              .c_row = kv * dv,
                              .add = true,
                              .terms = t->seers});
}

/* The probs of a query before an edit of them, from its scores. */
static const float *unedited(const struct attention *a, const struct tile *t, size_t query) {
    const struct tl_back_piece *p = &a->b->call->pieces[t->piece];
    const size_t at = (t->head * t->n + query) * t->n;
    const float *sinks = a->softmax->vectors[0];
    const struct tl_range seen = attention_seen(a->scores, query, t->n);
    a->b->k->attn_softmax(matrix(p->matrices, a->scores) + at, seen.end,
                          sinks != NULL ? sinks[t->head] : -INFINITY, t->line);
    return t->line + t->first;
}

static bool is_edited(const struct back *b, const struct tl_step *s) {
    return b->call->edits != NULL && b->call->edits[s - b->p->steps] != 0;
}

static void scores_stage(const struct attention *a, const struct tile *t) {
    const struct tl_back_piece *p = &a->b->call->pieces[t->piece];
    const float *seed = matrix(p->seeds, a->scores);
    for (size_t i = 0; i < t->t1 - t->t0; i++) {
        const struct tl_range seen = t->seen[i];
        const size_t at = (t->head * t->n + t->t0 + i) * t->n + t->first;
        const float *probs = matrix(p->matrices, a->softmax) + at;
        float *d = t->d + i * t->stride;
        if (is_edited(a->b, a->softmax)) probs = unedited(a, t, t->t0 + i);
        a->b->loops->softmax(probs + seen.first, seen.end - seen.first, d + seen.first);
        for (size_t j = seen.first; seed != NULL && j < seen.end; j++) d[j] += seed[at + j];
    }
}

/* From the gradients of the scores to those of the products of queries and keys. */
static void unscale(const struct attention *a, const struct tile *t) {
    const struct tl_back_piece *p = &a->b->call->pieces[t->piece];
    const float scale = (float)a->scores->numbers[SCORES_FACTOR];
    const float cap = (float)a->scores->numbers[SCORES_CAP];
    for (size_t i = 0; i < t->t1 - t->t0; i++) {
        const struct tl_range seen = t->seen[i];
        const size_t at = (t->head * t->n + t->t0 + i) * t->n + t->first;
        float *d = t->d + i * t->stride;
        for (size_t j = seen.first; cap > 0 && j < seen.end; j++) {
            if (d[j] == 0) continue;
            // the cap comes before the bias
            const float bias = attention_bias(a->scores, t->head, t->t0 + i, t->first + j);
            const float u = (matrix(p->matrices, a->scores)[at + j] - bias) / cap;
            d[j] *= 1 - u * u;
        }
        a->b->k->unary(TL_FN_SCALE, scale, d + seen.first, d + seen.first, seen.end - seen.first);
    }
}

static void inputs_stage(const struct attention *a, const struct tile *t) {
    const size_t dh = a->cache->key_size, kv = a->cache->kv_heads, keys = t->end - t->first;
    const size_t rows = t->t1 - t->t0, key = (t->row + t->first) * kv * dh + t->kv * dh;
    const size_t query = (t->row + t->t0) * a->heads * dh + t->head * dh;
    unscale(a, t);
    if (a->dq != NULL) {
        run_gemm(a, t,
                 (struct tl_gemm){.m = rows,
                                  .n = dh,
                                  .k = keys,
                                  .a = t->d,
                                  .a_row = t->stride,
                                  .a_col = 1,
                                  .b = a->k + key,
                                  .b_row = kv * dh,
                                  .b_col = 1,
                                  .c = a->dq + query,
                                  .c_row = a->heads * dh,
                                  .add = !a->fresh[0],
                                  .terms = t->seen});
    }
    if (a->dk != NULL) {
        run_gemm(a, t,
                 (struct tl_gemm){.m = keys,
                                  .n = dh,
                                  .k = rows,
                                  .a = t->d,
                                  .a_row = 1,
                                  .a_col = t->stride,
                                  .b = a->q + query,
                                  .b_row = a->heads * dh,
                                  .b_col = 1,
                                  .c = a->dk + key,
                                  .c_row = kv * dh,
                                  .add = true,
                                  .terms = t->seers});
    }
}

/* Sets the keys of a tile, and where its gradient lies. Later queries see no earlier keys. */
static void place_tile(const struct attention *a, struct tile *t, float *scratch) {
    const size_t rows = t->t1 - t->t0;
    size_t since = 0, until = 0;
    for (size_t i = 0; i < rows; i++) t->seen[i] = attention_seen(a->scores, t->t0 + i, t->n);
    t->first = t->seen[0].first;
    t->end = t->seen[rows - 1].end;
    for (size_t i = 0; i < rows; i++) {
        t->seen[i].first -= t->first;
        t->seen[i].end -= t->first;
    }
    for (size_t j = 0; j < t->end - t->first; j++) {
        while (since < rows && t->seen[since].end <= j) since++;
        while (until < rows && t->seen[until].first <= j) until++;
        t->seers[j] = (struct tl_range){since, until};
    }
    t->d = scratch;
    t->stride = t->end - t->first;
    if (a->work != NULL) {
        t->d = a->work + work_at(a, t->piece) + (t->head * t->n + t->t0) * t->n + t->first;
        t->stride = t->n;
    }
}

/* Clears the gradient of a kv head in the rows of a piece. */
static void clear_head(float *to, const struct tile *t, size_t kv_heads, size_t size) {
    for (size_t i = t->row; i < t->row + t->n; i++) {
        memset(to + (i * kv_heads + t->kv) * size, 0, size * sizeof(float));
    }
}

static void attention_task(void *arg, size_t task, int thread) {
    const struct attention *a = arg;
    const struct back *b = a->b;
    const size_t kv_heads = a->cache->kv_heads, group = a->heads / kv_heads;
    float *scratch = (float *)(void *)(b->scratch + (size_t)thread * b->thread_bytes);
    struct tile t = {.piece = task / kv_heads, .kv = task % kv_heads, .gemm = scratch};
    t.n = b->call->pieces[t.piece].n;
    t.row = b->starts[t.piece];
    t.seen = (struct tl_range *)(void *)(scratch + GEMM_SCRATCH);
    t.seers = t.seen + TL_MIN(b->longest, (size_t)TILE);
    t.line = (float *)(void *)(t.seers + b->longest);
    if (a->fresh[2] && a->stages & STAGE_PROBS)
        clear_head(a->dv, &t, kv_heads, a->cache->value_size);
    if (a->fresh[1] && a->stages & STAGE_INPUTS)
        clear_head(a->dk, &t, kv_heads, a->cache->key_size);
    for (t.head = t.kv * group; t.head < (t.kv + 1) * group; t.head++) {
        for (t.t0 = 0; t.t0 < t.n; t.t0 += TILE) {
            t.t1 = TL_MIN(t.t0 + TILE, t.n);
            place_tile(a, &t, t.line + b->longest);
            if (a->stages & STAGE_PROBS) probs_stage(a, &t);
            if (a->stages & STAGE_SCORES) scores_stage(a, &t);
            if (a->stages & STAGE_INPUTS) inputs_stage(a, &t);
        }
    }
}

/* Whether something happens to the gradients of scores or probs. */
static bool is_staged(const struct back *b, const struct tl_step *s) {
    bool found = is_edited(b, s);
    for (size_t i = 0; i < b->call->n_pieces; i++) {
        const struct tl_back_piece *p = &b->call->pieces[i];
        found |= matrix(p->seeds, s) != NULL;
        found |= p->captures != NULL && p->captures[s->number] != NULL;
    }
    return found;
}

/* Hands out the gradients of scores or probs, and lets an edit change them. */
static int complete_matrix(const struct attention *a, const struct tl_step *s) {
    const struct tl_back_call *call = a->b->call;
    for (size_t i = 0; i < call->n_pieces; i++) {
        const struct tl_back_piece *p = &call->pieces[i];
        float *work = a->work + work_at(a, i);
        if (p->captures != NULL && p->captures[s->number] != NULL) {
            memcpy(p->captures[s->number], work, a->heads * p->n * p->n * sizeof(float));
        }
        if (!is_edited(a->b, s)) continue;
        if (call->edit(call->edit_user, (size_t)(s - a->b->p->steps), (int)i, work) != 0) {
            return tl_fail(a->b->err, TL_ESTOP, "stopped by an edit");
        }
    }
    return TL_OK;
}

static int check_matrices(const struct attention *a) {
    const bool scores = a->scores->numbers[SCORES_CAP] > 0 || is_edited(a->b, a->softmax);
    for (size_t i = 0; i < a->b->call->n_pieces; i++) {
        const struct tl_back_piece *p = &a->b->call->pieces[i];
        if (matrix(p->matrices, a->softmax) == NULL ||
            (scores && matrix(p->matrices, a->scores) == NULL)) {
            return tl_fail(a->b->err, TL_EARG,
                           "the backward pass of attention (step %zu) needs its probs%s",
                           (size_t)(a->mix - a->b->p->steps), scores ? " and scores" : "");
        }
    }
    return TL_OK;
}

static int run_stages(struct attention *a) {
    struct back *b = a->b;
    const size_t tasks = b->call->n_pieces * a->cache->kv_heads;
    const size_t bytes = work_at(a, b->call->n_pieces) * sizeof(float);
    int status = TL_OK;
    if (!is_staged(b, a->scores) && !is_staged(b, a->softmax)) {
        a->stages = STAGE_ALL;
        return back_tasks(b, tasks, attention_task, a);
    }
    a->work = tl_block_cache_take(bytes);
    if (a->work == NULL) return tl_fail(b->err, TL_ENOMEM, "no memory for %zu bytes", bytes);
    memset(a->work, 0, bytes);
    for (a->stages = STAGE_PROBS; a->stages <= STAGE_INPUTS && status == TL_OK; a->stages *= 2) {
        status = back_tasks(b, tasks, attention_task, a);
        if (status == TL_OK && a->stages == STAGE_PROBS) status = complete_matrix(a, a->softmax);
        if (status == TL_OK && a->stages == STAGE_SCORES) status = complete_matrix(a, a->scores);
    }
    tl_block_cache_give(a->work, bytes);
    return status;
}

int mix_back(struct back *b, const struct tl_step *s) {
    const struct tl_step *cache = back_step(b, s, 1);
    struct attention a = {.b = b,
                          .scores = s - 2,
                          .softmax = s - 1,
                          .mix = s,
                          .cache = &b->p->caches[cache->number],
                          .dmix = back_dy(b, s),
                          .heads = s->axes[0]};
    if (back_weight(b, a.softmax, 0) != NULL) {
        return tl_fail(b->err, TL_ENOSUP, "the gradient of attention sinks is not implemented");
    }
    TL_TRY(check_matrices(&a));
    TL_TRY(back_value(b, a.scores, 0, &a.q));
    TL_TRY(back_value(b, cache, 0, &a.k));
    TL_TRY(back_value(b, cache, 1, &a.v));
    TL_TRY(back_into(b, a.scores, 0, &a.dq, &a.fresh[0]));
    TL_TRY(back_into(b, cache, 0, &a.dk, &a.fresh[1]));
    TL_TRY(back_into(b, cache, 1, &a.dv, &a.fresh[2]));
    return run_stages(&a);
}
