/*
 * attention.c - appending to the kv cache, and attention over it.
 *
 * A task is up to `tile` queries over one head of keys: consecutive tokens of one head, or, when a
 * span is one token, the heads of that token that share these keys. Its three stages (scores,
 * softmax, mix) run together unless scores or probs are edited: then each stage runs over all
 * tasks before the next begins.
 */
#include "run.h"

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
    const float scale = r->m->config.attention_scale != 0
                            ? (float)r->m->config.attention_scale
                            : (float)(1.0 / sqrt((double)shape->head_size));
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
    for (size_t b = 0; b * TL_BLOCK < last; b++) {
        const size_t kv = t.head / (shape->heads / shape->kv_heads);
        keys[b] =
            tl_session_keys(s->piece->session, a->layer, b) + kv * shape->head_size * TL_BLOCK;
        values[b] =
            tl_session_values(s->piece->session, a->layer, b) + kv * l->value_stride * TL_BLOCK;
    }
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

int attention_run(struct run *r, size_t layer, const float *q, float *mix) {
    struct attention a = {.r = r, .layer = layer, .q = q, .mix = mix, .stages = STAGE_ALL};
    const struct tl_layer_shape *shape = &r->m->layers[layer].shape;
    const bool staged =
        tap_edited(r, TL_TAP_ATTN_SCORES, layer) || tap_edited(r, TL_TAP_ATTN_PROBS, layer);
    size_t tasks = 0;
    int status = TL_OK;
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
