/*
 * attention.c - appending to the kv cache, and attention over it.
 *
 * A task is up to `tile` queries over one head of keys: consecutive tokens of one head, or, when a
 * span is one token, the heads of that token that share these keys. Its three stages (scores,
 * softmax, mix) run together unless scores or probs are edited: then each stage runs over all
 * tasks before the next begins.
 *
 * One token over a long context is split by blocks of positions as well, where the heads of keys
 * do not come out even over the threads, or where the scores of all heads that share one would not
 * fit a task. The sums are defined block by block, so the bits are the same.
 */
#include "forward/pass.h"

#include <math.h>
#include <string.h>

enum stage { STAGE_SCORES = 1, STAGE_SOFTMAX = 2, STAGE_MIX = 4, STAGE_ALL = 7 };

struct attention {
    struct run *r;
    size_t layer;
    const float *q; // (n, H, Dh)
    float *mix;     // (n, H, Dv)
    int stages;
};

/* The heads of one token that a task takes: those that share keys, if every thread gets some. */
static size_t heads_together(const struct run *r, const struct tl_layer_shape *shape) {
    size_t n = shape->heads / shape->kv_heads;
    while (n > 1 && (n > r->tile || shape->heads / n < (size_t)r->call->threads)) {
        n = n % 2 == 0 ? n / 2 : 1;
    }
    return n;
}

static size_t tasks_of(const struct run *r, const struct tl_layer_shape *shape,
                       const struct span *s) {
    if (s->n == 1) return shape->heads / heads_together(r, shape);
    return shape->heads * ((s->n + r->tile - 1) / r->tile);
}

/* A row of scores; the padding keeps a tile's rows from falling on the same sets of the cache. */
static size_t scores_stride(const struct run *r) {
    return r->max_keys + 16;
}

size_t attention_scratch(const struct run *r) {
    size_t values = 0, head = 0;
    for (size_t l = 0; l < r->m->config.layers; l++) {
        values = TL_MAX(values, r->m->layers[l].value_stride);
        head = TL_MAX(head, r->m->layers[l].shape.head_size);
    }
    // two lists of blocks; of each query: its scores, its mix if padded, and itself
    return r->tile * (scores_stride(r) + values + head) * sizeof(float) +
           2 * (r->max_keys / TL_BLOCK) * sizeof(float *);
}

/* One row of scores as the tap shows it: what is not visible is -inf. */
static void store_scores(float *row, const float *scores, size_t visible, size_t all) {
    memcpy(row, scores, visible * sizeof(float));
    for (size_t j = visible; j < all; j++) row[j] = -INFINITY;
}

static float scale_of(const struct run *r, const struct tl_layer_shape *shape) {
    return r->m->config.attention_scale != 0 ? (float)r->m->config.attention_scale
                                             : (float)(1.0 / sqrt((double)shape->head_size));
}

/* The blocks that hold the positions before `end`, of one head of keys. */
static void list_blocks(const struct run *r, size_t layer, const struct span *s, size_t kv,
                        size_t end, const float **keys, const float **values) {
    const struct tl_layer *l = &r->m->layers[layer];
    for (size_t b = 0; b * TL_BLOCK < end; b++) {
        keys[b] = tl_session_keys(s->piece->session, layer, b) + kv * l->shape.head_size * TL_BLOCK;
        values[b] =
            tl_session_values(s->piece->session, layer, b) + kv * l->value_stride * TL_BLOCK;
    }
}

/* The queries of a task. */
struct queries {
    size_t head, first; // of the first query: its head, and its token within the span
    size_t n;
    size_t tokens, heads; // from one query to the next; one of them is 0, the other 1
};

static struct queries queries_of(const struct run *r, const struct tl_layer_shape *shape,
                                 const struct span *s, size_t task) {
    if (s->n == 1) {
        const size_t n = heads_together(r, shape);
        return (struct queries){.head = task * n, .n = n, .heads = 1};
    }
    const size_t tiles = (s->n + r->tile - 1) / r->tile, first = task % tiles * r->tile;
    return (struct queries){
        .head = task / tiles, .first = first, .n = TL_MIN(r->tile, s->n - first), .tokens = 1};
}

static void attention_task(void *arg, size_t task, int thread) {
    const struct attention *a = arg;
    struct run *r = a->r;
    const struct tl_layer *l = &r->m->layers[a->layer];
    const struct tl_layer_shape *shape = &l->shape;
    const struct span *s = r->spans;
    uint8_t *scratch = r->scratch + (size_t)thread * r->thread_bytes;
    const float **keys = (const float **)(void *)scratch;
    const float **values = keys + r->max_keys / TL_BLOCK;
    const size_t stride = scores_stride(r);
    float *scores = (float *)(void *)(values + r->max_keys / TL_BLOCK);
    float *padded = scores + r->tile * stride, *gathered = padded + r->tile * l->value_stride;
    const float scale = scale_of(r, shape);
    const size_t row_q = shape->heads * shape->head_size;
    const size_t row_mix = shape->heads * shape->value_size;
    float *tap_scores = NULL, *tap_probs = NULL;

    while (s + 1 < r->spans + r->n_spans && task >= s[1].first_task) s++;
    const struct queries t = queries_of(r, shape, s, task - s->first_task);
    const size_t context = s->position - s->done + s->piece->n; // once the whole piece has run
    const size_t last = s->position + t.first + (s->n == 1 ? 1 : t.n);   // keys of the last query
    const size_t tap_row = context * (t.tokens + t.heads * s->piece->n); // between queries
    const size_t tap_at = (t.head * s->piece->n + s->done + t.first) * context;
    if (s->piece->scores != NULL && s->piece->scores[a->layer] != NULL) {
        tap_scores = s->piece->scores[a->layer] + tap_at;
    }
    if (s->piece->probs != NULL && s->piece->probs[a->layer] != NULL) {
        tap_probs = s->piece->probs[a->layer] + tap_at;
    }
    list_blocks(r, a->layer, s, t.head / (shape->heads / shape->kv_heads), last, keys, values);
    if (a->stages & STAGE_SCORES) {
        const float *q = a->q + (s->row + t.first) * row_q + t.head * shape->head_size;
        if (t.tokens > 0) {
            for (size_t i = 0; i < t.n; i++) {
                memcpy(gathered + i * shape->head_size, q + i * row_q,
                       shape->head_size * sizeof(float));
            }
            q = gathered;
        }
        r->k->attn_scores(q, t.n, keys, shape->head_size, last, scale, scores, stride);
        for (size_t i = 0; tap_scores != NULL && i < t.n; i++) {
            store_scores(tap_scores + i * tap_row, scores + i * stride,
                         last - (t.n - 1 - i) * t.tokens, context);
        }
    }
    if (a->stages & STAGE_SOFTMAX) {
        const bool staged = a->stages != STAGE_ALL;
        for (size_t i = 0; i < t.n; i++) {
            const size_t visible = last - (t.n - 1 - i) * t.tokens;
            const float *from = staged ? tap_scores + i * tap_row : scores + i * stride;
            float *to = tap_probs != NULL ? tap_probs + i * tap_row : scores + i * stride;
            r->k->attn_softmax(from, visible, to);
            if (tap_probs != NULL) {
                memset(to + visible, 0, (context - visible) * sizeof(float));
            }
        }
    }
    if (a->stages & STAGE_MIX) {
        const float *probs = tap_probs != NULL ? tap_probs : scores;
        const size_t probs_stride = tap_probs != NULL ? tap_row : stride;
        const size_t mix_row = t.tokens > 0 ? row_mix : shape->value_size;
        float *mix = a->mix + (s->row + t.first) * row_mix + t.head * shape->value_size;
        if (shape->value_size == l->value_stride) {
            r->k->attn_mix(probs, probs_stride, t.n, t.tokens, last, values, l->value_stride, mix,
                           mix_row);
        } else {
            r->k->attn_mix(probs, probs_stride, t.n, t.tokens, last, values, l->value_stride,
                           padded, l->value_stride);
            for (size_t i = 0; i < t.n; i++) {
                memcpy(mix + i * mix_row, padded + i * l->value_stride,
                       shape->value_size * sizeof(float));
            }
        }
    }
}

static int edit_matrix(struct run *r, enum tl_tap tap, size_t layer) {
    if (!tap_edited(r, tap, layer)) return TL_OK;
    for (size_t i = 0; i < r->n_spans; i++) {
        const struct tl_piece *p = r->spans[i].piece;
        float *const *arrays = tap == TL_TAP_ATTN_SCORES ? p->scores : p->probs;
        if (r->call->edit(r->call->edit_user, tap, layer, r->spans[i].index, arrays[layer]) != 0) {
            return tl_fail(r->err, TL_ESTOP, "stopped by an edit");
        }
    }
    return TL_OK;
}

/* ---- one token, split by blocks ---- */

#define SPLIT_BLOCKS 4     // fewer are not worth the regions it takes
#define TASKS_PER_THREAD 4 // so that a late thread leaves little to wait for

struct split {
    struct run *r;
    size_t layer;
    const float *q;
    float *mix;
    size_t keys, parts; // of each head of keys
    float *scores;      // (heads, scores_stride)
    float *partial;     // (blocks, heads, value_stride)
};

static size_t parts_of(const struct run *r, const struct tl_layer_shape *shape, size_t keys) {
    const size_t threads = (size_t)r->call->threads, blocks = (keys + TL_BLOCK - 1) / TL_BLOCK;
    const bool even = shape->kv_heads % threads == 0,
               fits = shape->heads / shape->kv_heads <= r->tile;
    if (r->rows != 1 || blocks < SPLIT_BLOCKS || (even && fits)) return 1;
    return TL_MIN(blocks, (TASKS_PER_THREAD * threads + shape->kv_heads - 1) / shape->kv_heads);
}

size_t attention_shared(const struct run *r) {
    size_t most = 0;
    for (size_t l = 0; l < r->m->config.layers; l++) {
        const struct tl_layer *layer = &r->m->layers[l];
        const size_t blocks = r->max_keys / TL_BLOCK;
        if (parts_of(r, &layer->shape, r->max_keys) == 1) continue;
        most = TL_MAX(most, layer->shape.heads * (scores_stride(r) + blocks * layer->value_stride));
    }
    return most * sizeof(float);
}

/* The blocks [first, end) of a part, and its head of keys; their lists, and how many keys. */
struct part {
    size_t kv, first, end, keys;
    const float **key_blocks, **value_blocks;
};

static struct part part_of(const struct split *a, size_t task, int thread) {
    struct run *r = a->r;
    const size_t blocks = (a->keys + TL_BLOCK - 1) / TL_BLOCK, i = task % a->parts;
    struct part p = {
        .kv = task / a->parts, .first = i * blocks / a->parts, .end = (i + 1) * blocks / a->parts};
    p.key_blocks = (const float **)(void *)(r->scratch + (size_t)thread * r->thread_bytes);
    p.value_blocks = p.key_blocks + r->max_keys / TL_BLOCK;
    p.keys = TL_MIN(p.end * TL_BLOCK, a->keys) - p.first * TL_BLOCK;
    list_blocks(r, a->layer, r->spans, p.kv, a->keys, p.key_blocks, p.value_blocks);
    return p;
}

static void split_scores_task(void *arg, size_t task, int thread) {
    const struct split *a = arg;
    const struct tl_layer_shape *shape = &a->r->m->layers[a->layer].shape;
    const struct part p = part_of(a, task, thread);
    const size_t n = shape->heads / shape->kv_heads, stride = scores_stride(a->r);
    a->r->k->attn_scores(a->q + p.kv * n * shape->head_size, n, p.key_blocks + p.first,
                         shape->head_size, p.keys, scale_of(a->r, shape),
                         a->scores + p.kv * n * stride + p.first * TL_BLOCK, stride);
}

static void split_softmax_task(void *arg, size_t head, int thread) {
    const struct split *a = arg;
    float *row = a->scores + head * scores_stride(a->r);
    (void)thread;
    a->r->k->attn_softmax(row, a->keys, row);
}

static void split_mix_task(void *arg, size_t task, int thread) {
    const struct split *a = arg;
    const struct tl_layer *l = &a->r->m->layers[a->layer];
    const struct part p = part_of(a, task, thread);
    const size_t n = l->shape.heads / l->shape.kv_heads, stride = scores_stride(a->r);
    for (size_t b = p.first; b < p.end; b++) {
        const size_t at = b * TL_BLOCK;
        a->r->k->attn_mix(
            a->scores + p.kv * n * stride + at, stride, n, 0,
            TL_MIN(a->keys - at, (size_t)TL_BLOCK), p.value_blocks + b, l->value_stride,
            a->partial + (b * l->shape.heads + p.kv * n) * l->value_stride, l->value_stride);
    }
}

static void split_sum_task(void *arg, size_t head, int thread) {
    const struct split *a = arg;
    const struct tl_layer *l = &a->r->m->layers[a->layer];
    float *sum = a->partial + head * l->value_stride;
    (void)thread;
    for (size_t b = 1; b * TL_BLOCK < a->keys; b++) {
        a->r->k->add(sum, sum + b * l->shape.heads * l->value_stride, sum, l->value_stride);
    }
    memcpy(a->mix + head * l->shape.value_size, sum, l->shape.value_size * sizeof(float));
}

static int split_run(struct run *r, size_t layer, const float *q, float *mix, size_t parts) {
    const struct tl_layer_shape *shape = &r->m->layers[layer].shape;
    struct split a = {.r = r, .layer = layer, .q = q, .mix = mix, .parts = parts};
    int status;
    a.keys = r->spans[0].position + 1;
    a.scores = r->shared;
    a.partial = a.scores + shape->heads * scores_stride(r);
    status = run_tasks(r, shape->kv_heads * parts, split_scores_task, &a);
    if (status == TL_OK) status = run_tasks(r, shape->heads, split_softmax_task, &a);
    if (status == TL_OK) status = run_tasks(r, shape->kv_heads * parts, split_mix_task, &a);
    if (status == TL_OK) status = run_tasks(r, shape->heads, split_sum_task, &a);
    return status;
}

int attention_run(struct run *r, size_t layer, const float *q, float *mix) {
    struct attention a = {.r = r, .layer = layer, .q = q, .mix = mix, .stages = STAGE_ALL};
    const struct tl_layer_shape *shape = &r->m->layers[layer].shape;
    const bool staged =
        tap_edited(r, TL_TAP_ATTN_SCORES, layer) || tap_edited(r, TL_TAP_ATTN_PROBS, layer);
    const struct tl_piece *first = r->spans[0].piece;
    const size_t parts = parts_of(r, shape, r->spans[0].position + 1);
    size_t tasks = 0;
    int status = TL_OK;
    if (parts > 1 && !staged && (first->scores == NULL || first->scores[layer] == NULL) &&
        (first->probs == NULL || first->probs[layer] == NULL)) {
        return split_run(r, layer, q, mix, parts);
    }
    for (size_t i = 0; i < r->n_spans; i++) {
        r->spans[i].first_task = tasks;
        tasks += tasks_of(r, shape, &r->spans[i]);
    }
    if (!staged) return run_tasks(r, tasks, attention_task, &a);
    for (int stage = STAGE_SCORES; stage <= STAGE_MIX; stage *= 2) {
        a.stages = stage;
        status = run_tasks(r, tasks, attention_task, &a);
        if (status == TL_OK && stage == STAGE_SCORES) {
            status = edit_matrix(r, TL_TAP_ATTN_SCORES, layer);
        }
        if (status == TL_OK && stage == STAGE_SOFTMAX) {
            status = edit_matrix(r, TL_TAP_ATTN_PROBS, layer);
        }
        if (status != TL_OK) break;
    }
    return status;
}

struct append {
    struct run *r;
    size_t layer;
    const float *keys, *values;
};

/* One kv head of one span. */
static void append_task(void *arg, size_t task, int thread) {
    const struct append *a = arg;
    const struct tl_layer_shape *shape = &a->r->m->layers[a->layer].shape;
    const struct span *s = &a->r->spans[task / shape->kv_heads];
    (void)thread;
    tl_session_put(s->piece->session, a->layer, task % shape->kv_heads, s->position, s->n,
                   a->keys + s->row * shape->kv_heads * shape->head_size,
                   a->values + s->row * shape->kv_heads * shape->value_size);
}

int attention_append(struct run *r, size_t layer, const float *keys, const float *values) {
    struct append a = {.r = r, .layer = layer, .keys = keys, .values = values};
    const size_t tasks = r->n_spans * r->m->layers[layer].shape.kv_heads;
    if (r->n == 1) { // not worth waking anybody
        for (size_t i = 0; i < tasks; i++) append_task(&a, i, 0);
        return TL_OK;
    }
    return run_tasks(r, tasks, append_task, &a);
}
