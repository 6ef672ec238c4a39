/*
 * attention.c - appending to the kv cache, and attention over it.
 *
 * A task computes up to `tile` queries over one kv head. In a long span these are consecutive
 * tokens of one head; in a span of one token or a few, all of them for heads that share the kv
 * head. The three stages of a task (scores, softmax, mix) run together, unless scores or probs are
 * edited: then each stage runs over all tasks before the next begins.
 *
 * A single token over a long context is also split by blocks of positions, if the kv heads cannot
 * be divided evenly among the threads, or if the scores of all heads that share a kv head do not
 * fit one task. Sums are defined block by block, so the bits are the same.
 */
#include "forward/attention.h"

#include "base/math64.h"
#include "forward/cache.h"

#include <math.h>
#include <string.h>

enum stage { STAGE_SCORES = 1, STAGE_SOFTMAX = 2, STAGE_MIX = 4, STAGE_ALL = 7 };

/* What all tasks of one attention region share. */
struct attention {
    struct run *r;
    const struct tl_step *scores, *softmax;
    const struct tl_cache *cache;
    size_t cache_number;
    size_t heads;
    float scale;
    float cap;      // soft cap of the scores; 0: none
    const float *q; // (n, H, Dh)
    float *mix;     // (n, H, Dv)
    int stages;
};

static struct attention attention_of(struct run *r, const struct tl_step *s) {
    const struct tl_step *cache = &r->p->steps[s->in[1]];
    return (struct attention){.r = r,
                              .scores = s,
                              .softmax = s + 1,
                              .cache = &r->p->caches[cache->number],
                              .cache_number = cache->number,
                              .heads = s->axes[0],
                              .scale = (float)s->numbers[SCORES_FACTOR],
                              .cap = (float)s->numbers[SCORES_CAP],
                              .stages = STAGE_ALL};
}

/* The array that captures scores or probs of a piece; NULL if they are not captured. */
static float *matrix_of(const struct tl_piece *p, const struct tl_step *s) {
    return p->matrices != NULL ? p->matrices[s->number] : NULL;
}

struct tl_range attention_seen(const struct tl_step *scores, size_t position, size_t n) {
    const size_t size = (size_t)scores->numbers[SCORES_SIZE], half = size / 2, end = position + 1;
    switch ((enum mask)scores->numbers[SCORES_MASK]) {
    case MASK_WINDOW:
        return (struct tl_range){end > size ? end - size : 0, end};
    case MASK_CHUNK:
        return (struct tl_range){position / size * size, end};
    case MASK_SYMMETRIC:
        return (struct tl_range){position > half ? position - half : 0, TL_MIN(n, end + half)};
    case MASK_NONE:
        return (struct tl_range){0, n};
    default:
        return (struct tl_range){0, end};
    }
}

/* The logit of attending to no key, of a head. */
static float sink_of(const struct attention *a, size_t head) {
    return a->softmax->vectors[0] != NULL ? a->softmax->vectors[0][head] : -INFINITY;
}

/* 2^x */
static float power_of_two(double x) {
    return (float)tl_exp(x * 0.69314718055994530942);
}

/* Press et al. 2021 (arXiv:2108.12409). */
float attention_slope(const struct tl_step *scores, size_t head) {
    const double most = scores->numbers[SCORES_BIAS];
    size_t n = 1; // the largest power of two up to the number of heads
    while (2 * n <= scores->axes[0]) n *= 2;
    if (head < n) return power_of_two(-most * (double)(head + 1) / (double)n);
    return power_of_two(-most * (double)(2 * (head - n) + 1) / (double)(2 * n));
}

/* Distances from this one on share a bucket (Raffel et al. 2019, arXiv:1910.10683). */
#define FARTHEST (ATTENTION_BIASES / 2)

/* The bucket of a distance, of n buckets on one side: small distances have one each. */
static size_t bucket_of(size_t distance, size_t n) {
    const size_t exact = n / 2;
    double part;
    if (distance < exact) return distance;
    part = tl_log((double)distance / (double)exact) / tl_log((double)FARTHEST / (double)exact);
    return TL_MIN(exact + (size_t)(part * (double)(n - exact) + 1e-9), n - 1);
}

/* Loads the biases (buckets, H) as those of every distance, (H, 2 FARTHEST + 1). */
static int load_biases(const struct tl_op_check *c, struct tl_step *s, size_t heads) {
    const size_t n = (size_t)s->numbers[SCORES_BUCKETS], axes[2] = {n, heads};
    const bool both = s->numbers[SCORES_MASK] >= MASK_SYMMETRIC; // half of them for later keys
    const size_t side = both ? n / 2 : n;
    float *table = NULL;
    const char *name;
    size_t bytes;
    TL_TRY(op_name(c, 0, &name));
    TL_TRY(tl_weights_array(c->weights, name, axes, 2, &table, c->err));
    if (tl_mul_size(heads, ATTENTION_BIASES * sizeof(float), &bytes)) {
        s->vectors[0] = tl_alloc(bytes);
    }
    for (size_t h = 0; s->vectors[0] != NULL && h < heads; h++) {
        float *of_head = s->vectors[0] + h * ATTENTION_BIASES;
        for (size_t d = 0; d <= FARTHEST; d++) {
            const size_t bucket = bucket_of(d, side);
            of_head[FARTHEST - d] = table[bucket * heads + h];
            if (d > 0) of_head[FARTHEST + d] = table[(both ? bucket + side : 0) * heads + h];
        }
    }
    tl_free(table);
    if (s->vectors[0] != NULL) return TL_OK;
    return tl_fail(c->err, TL_ENOMEM, "no memory for tensor '%s'", name);
}

/* The bias of a bucket, by the distance of a key before or behind a position. */
static float bucket_bias(const struct tl_step *scores, size_t head, size_t position, size_t key) {
    const float *biases = scores->vectors[0] + head * ATTENTION_BIASES + FARTHEST;
    const size_t far = key > position ? key - position : position - key;
    const ptrdiff_t at = (ptrdiff_t)TL_MIN(far, (size_t)FARTHEST);
    return biases[key > position ? at : -at];
}

float attention_bias(const struct tl_step *scores, size_t head, size_t position, size_t key) {
    float bias = 0;
    if (scores->numbers[SCORES_BIAS] > 0) {
        bias -= attention_slope(scores, head) *
                (float)(key > position ? key - position : position - key);
    }
    return scores->vectors[0] != NULL ? bias + bucket_bias(scores, head, position, key) : bias;
}

/* Finishes the scores of one query at `position`, of n keys from the one at `first` on. */
static void finish_scores(const struct attention *a, float *scores, size_t n, size_t head,
                          size_t position, size_t first) {
    if (a->cap > 0) a->r->k->unary(TL_FN_SOFT_CAP, a->cap, scores, scores, n);
    if (a->scores->numbers[SCORES_BIAS] > 0) {
        const float slope = attention_slope(a->scores, head);
        for (size_t j = 0; j < n; j++) {
            const size_t key = first + j, far = key > position ? key - position : position - key;
            scores[j] = scores[j] - slope * (float)far;
        }
    }
    if (a->scores->vectors[0] != NULL) {
        for (size_t j = 0; j < n; j++) {
            scores[j] = scores[j] + bucket_bias(a->scores, head, position, first + j);
        }
    }
}

/*
 * How many heads a task takes: those that share a kv head, or fewer if otherwise some threads would
 * have no task. Captured and edited matrices have rows of one head, so several tokens of several
 * heads are no part of them.
 */
static size_t heads_together(const struct attention *a, const struct span *s) {
    const size_t threads = (size_t)a->r->call->threads;
    const bool matrices =
        matrix_of(s->piece, a->scores) != NULL || matrix_of(s->piece, a->softmax) != NULL;
    size_t n = a->heads / a->cache->kv_heads;
    if (s->n > 1 && matrices) return 1;
    while (n > 1 && (n * s->n > a->r->tile || a->heads / n < threads)) {
        n = n % 2 == 0 ? n / 2 : 1;
    }
    return n;
}

static size_t tasks_of(const struct attention *a, const struct span *s) {
    return a->heads / heads_together(a, s) * ((s->n + a->r->tile - 1) / a->r->tile);
}

/* Floats per row of scores; the padding keeps the rows of a tile out of each other's cache sets. */
static size_t scores_stride(const struct run *r) {
    return r->max_keys + 16;
}

size_t attention_scratch(const struct run *r) {
    size_t values = 0, head = 0;
    for (size_t i = 0; i < r->p->n_caches; i++) {
        values = TL_MAX(values, r->p->caches[i].value_stride);
        head = TL_MAX(head, r->p->caches[i].key_size);
    }
    // two lists of blocks; for each query its scores, its padded mix and a copy of it; floats of
    // keys and values that are stored in another type
    return (r->tile * (scores_stride(r) + values + head) + tl_cache_wide(r->p) + 16) *
               sizeof(float) +
           2 * (r->max_keys / TL_BLOCK) * sizeof(float *);
}

/* The first address from `p` on where a vector lies in one line of the processor's cache. */
static float *aligned(void *p) {
    return (float *)(((uintptr_t)p + 63) & ~(uintptr_t)63);
}

/* Writes one row of captured scores, from those of the keys that the query sees: -inf elsewhere. */
static void store_scores(float *row, const float *scores, struct tl_range seen, size_t all) {
    for (size_t j = 0; j < seen.first; j++) row[j] = -INFINITY;
    memcpy(row + seen.first, scores, (seen.end - seen.first) * sizeof(float));
    for (size_t j = seen.end; j < all; j++) row[j] = -INFINITY;
}

/* Lists the blocks that hold positions of a range, for one kv head. */
static void list_blocks(const struct attention *a, const struct span *s, size_t kv,
                        struct tl_range range, const float **keys, const float **values) {
    for (size_t b = range.first / TL_BLOCK; b * TL_BLOCK < range.end; b++) {
        *keys++ = tl_session_keys(s->piece->session, a->cache_number, kv, b);
        *values++ = tl_session_values(s->piece->session, a->cache_number, kv, b);
    }
}

/* The queries of a task: query i is of head `head + i % heads` and of the span's token `first + i /
   heads`. */
struct queries {
    size_t head, heads;
    size_t first, n; // n of all
};

static struct queries queries_of(const struct attention *a, const struct span *s, size_t task) {
    const size_t tile = a->r->tile, tiles = (s->n + tile - 1) / tile, first = task % tiles * tile;
    const size_t heads = heads_together(a, s);
    return (struct queries){.head = task / tiles * heads,
                            .heads = heads,
                            .first = first,
                            .n = heads * TL_MIN(tile, s->n - first)};
}

/*
 * Probabilities of one query, of the keys from `base` on. `scores` is scratch; `from` holds the
 * scores, in `scores` or elsewhere.
 */
static void softmax_row(const struct attention *a, const float *from, float *scores,
                        struct tl_range seen, size_t base, float sink, float *to) {
    // sums are defined by blocks of positions, so the first block begins before the first key
    const size_t first = seen.first / TL_BLOCK * TL_BLOCK, at = first - base;
    if (first < seen.first) {
        float *row = scores + at;
        for (size_t j = first; j < seen.first; j++) row[j - first] = -INFINITY;
        if (from != scores) {
            memcpy(row + (seen.first - first), from + (seen.first - base),
                   (seen.end - seen.first) * sizeof(float));
        }
        from = scores;
    }
    a->r->k->attn_softmax(from + at, seen.end - first, sink, to + at);
}

static void attention_task(void *arg, size_t task, int thread) {
    const struct attention *a = arg;
    struct run *r = a->r;
    const struct tl_cache *c = a->cache;
    const struct span *s = r->spans;
    uint8_t *scratch = r->scratch + (size_t)thread * r->thread_bytes;
    const float **keys = (const float **)(void *)scratch;
    const float **values = keys + r->max_keys / TL_BLOCK;
    const size_t stride = scores_stride(r);
    float *scores = (float *)(void *)(values + r->max_keys / TL_BLOCK);
    float *padded = scores + r->tile * stride, *gathered = padded + r->tile * c->value_stride;
    float *wide = aligned(gathered + r->tile * c->key_size);
    const size_t row_q = a->heads * c->key_size, row_mix = a->heads * c->value_size;
    struct tl_range seen[MAX_QUERIES], any = {SIZE_MAX, 0}; // any: by any of the queries
    size_t base;

    while (s + 1 < r->spans + r->n_spans && task >= s[1].first_task) s++;
    const struct queries t = queries_of(a, s, task - s->first_task);
    const size_t context = s->position - s->done + s->piece->n; // once the whole piece has run
    const bool several = t.heads > 1 && t.n > t.heads;          // of heads and of tokens
    const size_t tap_row = context * (t.heads > 1 ? s->piece->n : 1); // between captured queries
    const size_t tap_at = (t.head * s->piece->n + s->done + t.first) * context;
    float *tap_scores = matrix_of(s->piece, a->scores);
    float *tap_probs = matrix_of(s->piece, a->softmax);
    if (tap_scores != NULL) tap_scores += tap_at;
    if (tap_probs != NULL) tap_probs += tap_at;
    for (size_t i = 0; i < t.n; i++) {
        seen[i] = attention_seen(a->scores, s->position + t.first + i / t.heads, context);
        any.first = TL_MIN(any.first, seen[i].first);
        any.end = TL_MAX(any.end, seen[i].end);
    }
    base = any.first / TL_BLOCK * TL_BLOCK; // scores and probs in scratch begin here
    list_blocks(a, s, t.head / (a->heads / c->kv_heads), any, keys, values);
    if (a->stages & STAGE_SCORES) {
        const float *q = a->q + (s->row + t.first) * row_q + t.head * c->key_size;
        if (t.n > t.heads) {
            for (size_t i = 0; i < t.n; i++) {
                memcpy(gathered + i * c->key_size,
                       q + i / t.heads * row_q + i % t.heads * c->key_size,
                       c->key_size * sizeof(float));
            }
            q = gathered;
        }
        tl_cache_scores(r->k, c, q, t.n, keys, any.end - base, a->scale, scores, stride, wide);
        for (size_t i = 0; i < t.n; i++) {
            float *row = scores + i * stride + (seen[i].first - base);
            finish_scores(a, row, seen[i].end - seen[i].first, t.head + i % t.heads,
                          s->position + t.first + i / t.heads, seen[i].first);
            if (tap_scores != NULL) store_scores(tap_scores + i * tap_row, row, seen[i], context);
        }
    }
    if (a->stages & STAGE_SOFTMAX) {
        const bool staged = a->stages != STAGE_ALL;
        for (size_t i = 0; i < t.n; i++) {
            float *row = scores + i * stride, *tap = tap_probs;
            if (tap != NULL) tap += i * tap_row;
            softmax_row(a, staged ? tap_scores + i * tap_row + base : row, row, seen[i], base,
                        sink_of(a, t.head + i % t.heads), tap != NULL ? tap + base : row);
            if (tap == NULL) continue;
            memset(tap, 0, seen[i].first * sizeof(float));
            memset(tap + seen[i].end, 0, (context - seen[i].end) * sizeof(float));
        }
    }
    if (a->stages & STAGE_MIX) {
        const float *probs = tap_probs != NULL ? tap_probs + base : scores;
        const size_t probs_stride = tap_probs != NULL ? tap_row : stride;
        const size_t mix_row = t.heads > 1 ? c->value_size : row_mix; // between queries
        float *mix = a->mix + (s->row + t.first) * row_mix + t.head * c->value_size;
        for (size_t i = 0; i < t.n; i++) seen[i].first -= base, seen[i].end -= base;
        if (c->value_size == c->value_stride && !several) {
            tl_cache_mix(r->k, c, probs, probs_stride, t.n, seen, values, mix, mix_row, wide);
        } else {
            tl_cache_mix(r->k, c, probs, probs_stride, t.n, seen, values, padded, c->value_stride,
                         wide);
            for (size_t i = 0; i < t.n; i++) {
                memcpy(mix + i / t.heads * row_mix + i % t.heads * c->value_size,
                       padded + i * c->value_stride, c->value_size * sizeof(float));
            }
        }
    }
}

static int edit_matrix(struct run *r, const struct tl_step *s) {
    if (!pass_edited(r, s)) return TL_OK;
    for (size_t i = 0; i < r->n_spans; i++) {
        const struct span *span = &r->spans[i];
        if (r->call->edit(r->call->edit_user, pass_index(r, s), span->index,
                          matrix_of(span->piece, s)) != 0) {
            return tl_fail(r->err, TL_ESTOP, "stopped by an edit");
        }
    }
    return TL_OK;
}

/* ---- one token, split by blocks ---- */

#define SPLIT_BLOCKS 4     // with fewer, the extra regions cost more than splitting saves
#define TASKS_PER_THREAD 4 // small tasks, so that a slow thread is not waited for long

/* What all tasks of a split token share. Keys and blocks count from the block of the first key that
   the token sees. */
struct split {
    struct attention a;
    struct tl_range seen; // of positions
    size_t keys, first;   // how many, and the first one that is seen
    size_t parts;         // of each kv head
    float *scores;        // (heads, scores_stride)
    float *partial;       // (blocks, heads, value_stride)
};

/* Into how many parts the blocks of a kv head are split; 1: not split. */
static size_t parts_of(const struct attention *a, size_t keys) {
    const size_t threads = (size_t)a->r->call->threads, kv_heads = a->cache->kv_heads;
    const size_t blocks = (keys + TL_BLOCK - 1) / TL_BLOCK;
    const size_t group = a->heads / kv_heads;
    const bool even = kv_heads % threads == 0;
    const bool fits =
        group == 1 || (group <= a->r->tile && group * a->r->max_keys * sizeof(float) <= NEAR_BYTES);
    if (a->r->rows != 1 || blocks < SPLIT_BLOCKS || (even && fits)) return 1;
    return TL_MIN(blocks, (TASKS_PER_THREAD * threads + kv_heads - 1) / kv_heads);
}

size_t attention_shared(struct run *r) {
    const size_t blocks = r->max_keys / TL_BLOCK;
    size_t most = 0;
    for (size_t i = 0; i < r->p->n; i++) {
        const struct tl_step *s = &r->p->steps[i];
        if (s->op != TL_OP_SCORES) continue;
        const struct attention a = attention_of(r, s);
        if (parts_of(&a, r->max_keys) == 1) continue;
        most = TL_MAX(most, a.heads * (scores_stride(r) + blocks * a.cache->value_stride));
    }
    return most * sizeof(float);
}

/* A part: the blocks [first, end) of one kv head, their keys, and the lists of the head's blocks.
 */
struct part {
    size_t kv, first, end, keys;
    const float **key_blocks, **value_blocks;
    float *wide;
};

static struct part part_of(const struct split *p, size_t task, int thread) {
    const struct run *r = p->a.r;
    const size_t blocks = (p->keys + TL_BLOCK - 1) / TL_BLOCK, i = task % p->parts;
    struct part part = {
        .kv = task / p->parts, .first = i * blocks / p->parts, .end = (i + 1) * blocks / p->parts};
    part.key_blocks = (const float **)(void *)(r->scratch + (size_t)thread * r->thread_bytes);
    part.value_blocks = part.key_blocks + r->max_keys / TL_BLOCK;
    part.wide = aligned(part.value_blocks + r->max_keys / TL_BLOCK);
    part.keys = TL_MIN(part.end * TL_BLOCK, p->keys) - part.first * TL_BLOCK;
    list_blocks(&p->a, r->spans, part.kv, p->seen, part.key_blocks, part.value_blocks);
    return part;
}

static void split_scores_task(void *arg, size_t task, int thread) {
    const struct split *p = arg;
    const struct tl_cache *c = p->a.cache;
    const struct part part = part_of(p, task, thread);
    const size_t n = p->a.heads / c->kv_heads, stride = scores_stride(p->a.r);
    float *scores = p->scores + part.kv * n * stride + part.first * TL_BLOCK;
    tl_cache_scores(p->a.r->k, c, p->a.q + part.kv * n * c->key_size, n,
                    part.key_blocks + part.first, part.keys, p->a.scale, scores, stride, part.wide);
    for (size_t i = 0; i < n; i++) {
        finish_scores(&p->a, scores + i * stride, part.keys, part.kv * n + i, p->seen.end - 1,
                      p->seen.first / TL_BLOCK * TL_BLOCK + part.first * TL_BLOCK);
    }
}

static void split_softmax_task(void *arg, size_t head, int thread) {
    const struct split *p = arg;
    float *row = p->scores + head * scores_stride(p->a.r);
    (void)thread;
    for (size_t j = 0; j < p->first; j++) row[j] = -INFINITY;
    p->a.r->k->attn_softmax(row, p->keys, sink_of(&p->a, head), row);
}

static void split_mix_task(void *arg, size_t task, int thread) {
    const struct split *p = arg;
    const struct tl_cache *c = p->a.cache;
    const struct part part = part_of(p, task, thread);
    const size_t n = p->a.heads / c->kv_heads, stride = scores_stride(p->a.r);
    for (size_t b = part.first; b < part.end; b++) {
        const size_t at = b * TL_BLOCK;
        struct tl_range seen[MAX_QUERIES];
        for (size_t i = 0; i < n; i += MAX_QUERIES) {
            const size_t some = TL_MIN(n - i, (size_t)MAX_QUERIES), head = part.kv * n + i;
            for (size_t j = 0; j < some; j++) {
                seen[j].first = TL_MAX(p->first, at) - at;
                seen[j].end = TL_MIN(p->keys - at, (size_t)TL_BLOCK);
            }
            tl_cache_mix(p->a.r->k, c, p->scores + head * stride + at, stride, some, seen,
                         part.value_blocks + b,
                         p->partial + (b * p->a.heads + head) * c->value_stride, c->value_stride,
                         part.wide);
        }
    }
}

static void split_sum_task(void *arg, size_t head, int thread) {
    const struct split *p = arg;
    const struct tl_cache *c = p->a.cache;
    float *sum = p->partial + head * c->value_stride;
    (void)thread;
    for (size_t b = 1; b * TL_BLOCK < p->keys; b++) {
        p->a.r->k->add(sum, sum + b * p->a.heads * c->value_stride, sum, c->value_stride);
    }
    memcpy(p->a.mix + head * c->value_size, sum, c->value_size * sizeof(float));
}

static int split_run(const struct attention *a, struct tl_range seen, size_t parts) {
    struct run *r = a->r;
    const size_t base = seen.first / TL_BLOCK * TL_BLOCK;
    struct split p = {
        .a = *a, .parts = parts, .seen = seen, .keys = seen.end - base, .first = seen.first - base};
    p.scores = r->shared;
    p.partial = p.scores + a->heads * scores_stride(r);
    TL_TRY(pass_tasks(r, a->cache->kv_heads * parts, split_scores_task, &p));
    TL_TRY(pass_tasks(r, a->heads, split_softmax_task, &p));
    TL_TRY(pass_tasks(r, a->cache->kv_heads * parts, split_mix_task, &p));
    return pass_tasks(r, a->heads, split_sum_task, &p);
}

/* ---- the region of scores, softmax and mix ---- */

int attention_run(struct run *r, const struct tl_step *s) {
    struct attention a = attention_of(r, s);
    const bool staged = pass_edited(r, a.scores) || pass_edited(r, a.softmax);
    const struct tl_piece *first = r->spans[0].piece;
    const size_t position = r->spans[0].position;
    const struct tl_range seen =
        attention_seen(a.scores, position, position + 1); // by a single token
    const size_t parts = parts_of(&a, seen.end - seen.first / TL_BLOCK * TL_BLOCK);
    size_t tasks = 0;
    a.q = pass_in(r, s, 0);
    a.mix = pass_out(r, s + 2);
    if (parts > 1 && !staged && matrix_of(first, a.scores) == NULL &&
        matrix_of(first, a.softmax) == NULL) {
        TL_TRY(split_run(&a, seen, parts));
        return pass_done(r, s + 2, a.mix);
    }
    for (size_t i = 0; i < r->n_spans; i++) {
        r->spans[i].first_task = tasks;
        tasks += tasks_of(&a, &r->spans[i]);
    }
    if (!staged) {
        TL_TRY(pass_tasks(r, tasks, attention_task, &a));
        return pass_done(r, s + 2, a.mix);
    }
    for (int stage = STAGE_SCORES; stage <= STAGE_MIX; stage *= 2) {
        a.stages = stage;
        TL_TRY(pass_tasks(r, tasks, attention_task, &a));
        if (stage == STAGE_SCORES) TL_TRY(edit_matrix(r, a.scores));
        if (stage == STAGE_SOFTMAX) TL_TRY(edit_matrix(r, a.softmax));
    }
    return pass_done(r, s + 2, a.mix);
}

/* ---- cache: appends the chunk's keys and values to the caches of its sessions ---- */

struct append {
    struct run *r;
    size_t cache;
    const float *keys, *values;
};

/* One kv head of one span. */
static void append_task(void *arg, size_t task, int thread) {
    const struct append *a = arg;
    const struct tl_cache *c = &a->r->p->caches[a->cache];
    const struct span *s = &a->r->spans[task / c->kv_heads];
    (void)thread;
    tl_session_put(s->piece->session, a->cache, task % c->kv_heads, s->position, s->n,
                   a->keys + s->row * c->kv_heads * c->key_size,
                   a->values + s->row * c->kv_heads * c->value_size);
}

int cache_run(struct run *r, const struct tl_step *s) {
    struct append a = {
        .r = r, .cache = s->number, .keys = pass_in(r, s, 0), .values = pass_in(r, s, 1)};
    const size_t tasks = r->n_spans * r->p->caches[s->number].kv_heads;
    if (r->n == 1) { // too little work for the pool
        for (size_t i = 0; i < tasks; i++) append_task(&a, i, 0);
        return TL_OK;
    }
    return pass_tasks(r, tasks, append_task, &a);
}

/* ---- checks ---- */

/* reads: keys (K, Dh), values (K, Dv); no value. */
int cache_check(const struct tl_op_check *c, struct tl_step *s) {
    struct tl_plan *p = c->plan;
    const struct tl_step *k = &p->steps[s->in[0]], *v = &p->steps[s->in[1]];
    struct tl_cache *cache = &p->caches[p->n_caches];
    size_t keys, values;
    if (k->value != TL_VALUE_ROWS || k->n_axes != 2 || v->value != TL_VALUE_ROWS ||
        v->n_axes != 2 || k->axes[0] != v->axes[0]) {
        return tl_op_wrong(c, "its keys and values do not match; expected (K, Dh) and (K, Dv)");
    }
    *cache = (struct tl_cache){.type = p->cache_type,
                               .kv_heads = k->axes[0],
                               .key_size = k->axes[1],
                               .value_size = v->axes[1]};
    cache->value_stride = (cache->value_size + 15) / 16 * 16;
    // no type has more bytes than floats
    if (!tl_mul_size(cache->kv_heads * TL_BLOCK * sizeof(float), cache->key_size, &keys) ||
        !tl_mul_size(cache->kv_heads * TL_BLOCK * sizeof(float), cache->value_stride, &values) ||
        !tl_add_size(keys, values, &cache->block_bytes)) {
        return tl_op_wrong(c, "its keys and values are too large");
    }
    cache->key_panel = cache->type->bytes(cache->key_size);
    cache->value_panel = cache->type->bytes(cache->value_stride);
    cache->keys_bytes = cache->kv_heads * (TL_BLOCK / TL_PANEL) * cache->key_panel;
    cache->block_bytes =
        cache->keys_bytes + cache->kv_heads * (TL_BLOCK / TL_PANEL) * cache->value_panel;
    s->value = TL_VALUE_NONE;
    s->number = p->n_caches++;
    return TL_OK;
}

/* reads: queries (H, Dh), a cache; numbers: the first enum of this file; value (H, T, S). */
int scores_check(const struct tl_op_check *c, struct tl_step *s) {
    struct tl_plan *p = c->plan;
    const struct tl_step *q = &p->steps[s->in[0]], *cache = &p->steps[s->in[1]];
    const struct tl_cache *keys;
    size_t size;
    if (cache->op != TL_OP_CACHE)
        return tl_op_wrong(c, "its second read is wrong; expected a cache");
    keys = &p->caches[cache->number];
    if (q->value != TL_VALUE_ROWS || q->n_axes != 2 || q->axes[1] != keys->key_size ||
        q->axes[0] % keys->kv_heads != 0) {
        return tl_op_wrong(
            c, "its queries do not match its cache; expected (H, Dh), H a multiple of K");
    }
    if (!(s->numbers[SCORES_FACTOR] > 0 && s->numbers[SCORES_FACTOR] <= 1e30)) {
        return tl_fail(c->err, TL_EARG,
                       "step %zu (scores): its factor is %g; expected a positive number", p->n,
                       s->numbers[SCORES_FACTOR]);
    }
    TL_TRY(op_number(c, s, SCORES_MASK, MASK_CAUSAL, MASK_NONE));
    TL_TRY(op_size(c, s, SCORES_MASK, 0, &size));
    TL_TRY(op_number(c, s, SCORES_SIZE, 0, 1 << 30));
    TL_TRY(op_number(c, s, SCORES_CAP, 0, 1e30));
    TL_TRY(op_number(c, s, SCORES_BIAS, 0, 1e6));
    if (s->numbers[SCORES_SIZE] != floor(s->numbers[SCORES_SIZE]) ||
        (s->numbers[SCORES_SIZE] == 0 &&
         (s->numbers[SCORES_MASK] == MASK_WINDOW || s->numbers[SCORES_MASK] == MASK_CHUNK))) {
        return tl_op_wrong(c, "its window is not a positive whole number");
    }
    TL_TRY(op_number(c, s, SCORES_BUCKETS, 0, 1 << 16));
    TL_TRY(op_size(c, s, SCORES_BUCKETS, 0, &size));
    if (size != 0 && (size % 4 != 0 || size / 4 >= FARTHEST)) {
        return tl_op_wrong(c, "its buckets are no multiple of 4, or too many");
    }
    if (size != 0) TL_TRY(load_biases(c, s, q->axes[0]));
    if (s->numbers[SCORES_MASK] == MASK_SYMMETRIC || s->numbers[SCORES_MASK] == MASK_NONE)
        p->whole = true;
    s->value = TL_VALUE_MATRIX;
    s->axes[0] = q->axes[0];
    s->n_axes = 1;
    s->number = p->n_matrices++;
    return TL_OK;
}

/* reads: the scores of the step before; weights: sinks (H) or None; value (H, T, S). */
int softmax_check(const struct tl_op_check *c, struct tl_step *s) {
    struct tl_plan *p = c->plan;
    if (s->in[0] + 1 != p->n || p->steps[s->in[0]].op != TL_OP_SCORES) {
        return tl_op_wrong(c, "its read is wrong; expected the scores before it");
    }
    s->value = TL_VALUE_MATRIX;
    s->axes[0] = p->steps[s->in[0]].axes[0];
    s->n_axes = 1;
    s->number = p->n_matrices++;
    return op_vector(c, s, 0, s->axes[0]);
}

/* reads: the probs of the step before, the cache that its scores read; value (H, Dv). */
int mix_check(const struct tl_op_check *c, struct tl_step *s) {
    struct tl_plan *p = c->plan;
    const struct tl_step *probs = &p->steps[s->in[0]];
    if (s->in[0] + 1 != p->n || probs->op != TL_OP_SOFTMAX || probs[-1].in[1] != s->in[1]) {
        return tl_op_wrong(c, "its reads are wrong; expected the probs before it and their cache");
    }
    s->value = TL_VALUE_ROWS;
    s->axes[0] = probs->axes[0];
    s->axes[1] = p->caches[p->steps[s->in[1]].number].value_size;
    s->n_axes = 2;
    return TL_OK;
}
