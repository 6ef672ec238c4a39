/* session.c - the kv cache: blocks of positions, shared by reference count between forks. */
#include "forward/session.h"

#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

/* TL_BLOCK positions of one cache. Never moves; written only while one session holds it. */
struct tl_block {
    atomic_int references;
    float *data;   // owns; the keys (kv_heads, TL_BLOCK / 16, key_size, 16)
    float *values; // inside data, after the keys: (kv_heads, TL_BLOCK, value_stride)
};

static void release(struct tl_block *b) {
    if (b == NULL || atomic_fetch_sub(&b->references, 1) > 1) return;
    tl_free(b->data);
    free(b);
}

static struct tl_block *block_new(const struct tl_cache *c) {
    struct tl_block *b = malloc(sizeof(*b));
    float *data = tl_alloc(c->block_bytes);
    if (b == NULL || data == NULL) {
        free(b);
        tl_free(data);
        return NULL;
    }
    memset(data, 0, c->block_bytes); // kernels may read positions before they are written
    atomic_init(&b->references, 1);
    b->data = data;
    b->values = data + c->keys_bytes / sizeof(float);
    return b;
}

int tl_session_new(const struct tl_plan *p, struct tl_session **out, struct tl_error *err) {
    *out = calloc(1, sizeof(**out));
    if (*out == NULL) return tl_fail(err, TL_ENOMEM, "no memory for a session");
    (*out)->plan = p;
    return TL_OK;
}

void tl_session_rewind(struct tl_session *s, size_t n) {
    const size_t keep = (n + TL_BLOCK - 1) / TL_BLOCK;
    for (size_t c = 0; c < s->plan->n_caches; c++) {
        for (size_t b = keep; b < s->n_blocks; b++) {
            release(s->blocks[c * s->capacity + b]);
            s->blocks[c * s->capacity + b] = NULL;
        }
    }
    s->n_blocks = TL_MIN(s->n_blocks, keep);
    s->n = n;
}

void tl_session_free(struct tl_session *s) {
    if (s == NULL) return;
    tl_session_rewind(s, 0);
    free(s->blocks);
    tl_free(s->work);
    free(s);
}

size_t tl_session_cache_bytes(const struct tl_session *s) {
    size_t bytes = 0;
    for (size_t c = 0; c < s->plan->n_caches; c++) {
        bytes += s->n_blocks * s->plan->caches[c].block_bytes;
    }
    return bytes;
}

/* Makes room in the table for `wanted` blocks per cache; does not make the blocks. */
static bool grow_table(struct tl_session *s, size_t wanted) {
    const size_t caches = s->plan->n_caches;
    size_t capacity = TL_MAX(s->capacity * 2, TL_MAX(wanted, (size_t)4)), cells;
    struct tl_block **blocks;
    if (wanted <= s->capacity) return true;
    if (!tl_mul_size(capacity, caches, &cells)) return false;
    blocks = calloc(cells ? cells : 1, sizeof(struct tl_block *));
    if (blocks == NULL) return false;
    for (size_t c = 0; c < caches; c++) {
        for (size_t b = 0; b < s->n_blocks; b++) {
            blocks[c * capacity + b] = s->blocks[c * s->capacity + b];
        }
    }
    free(s->blocks);
    s->blocks = blocks;
    s->capacity = capacity;
    return true;
}

int tl_session_fork(const struct tl_session *s, struct tl_session **out, struct tl_error *err) {
    struct tl_session *fork;
    int status = tl_session_new(s->plan, out, err);
    if (status != TL_OK) return status;
    fork = *out;
    if (!grow_table(fork, s->n_blocks)) {
        tl_session_free(fork);
        *out = NULL;
        return tl_fail(err, TL_ENOMEM, "no memory for a session of %zu tokens", s->n);
    }
    for (size_t c = 0; c < s->plan->n_caches; c++) {
        for (size_t b = 0; b < s->n_blocks; b++) {
            struct tl_block *shared = s->blocks[c * s->capacity + b];
            atomic_fetch_add(&shared->references, 1);
            fork->blocks[c * fork->capacity + b] = shared;
        }
    }
    fork->n = s->n;
    fork->n_blocks = s->n_blocks;
    return TL_OK;
}

int tl_session_reserve(struct tl_session *s, size_t n, struct tl_error *err) {
    const size_t caches = s->plan->n_caches;
    const size_t wanted = (s->n + n + TL_BLOCK - 1) / TL_BLOCK, before = s->n_blocks;
    if (!grow_table(s, wanted)) goto no_memory;
    // a block that a fork shares is copied before this session writes to it
    for (size_t c = 0; c < caches; c++) {
        const struct tl_cache *cache = &s->plan->caches[c];
        for (size_t b = s->n / TL_BLOCK; b < before; b++) {
            struct tl_block **cell = &s->blocks[c * s->capacity + b], *copy;
            if (atomic_load(&(*cell)->references) == 1) continue;
            copy = block_new(cache);
            if (copy == NULL) goto no_memory;
            memcpy(copy->data, (*cell)->data, cache->block_bytes);
            release(*cell);
            *cell = copy;
        }
    }
    for (size_t c = 0; c < caches; c++) {
        for (size_t b = before; b < wanted; b++) {
            struct tl_block *fresh = block_new(&s->plan->caches[c]);
            if (fresh == NULL) {
                s->n_blocks = wanted; // so that tl_session_rewind frees those that were made
                goto undo;
            }
            s->blocks[c * s->capacity + b] = fresh;
        }
    }
    s->n_blocks = TL_MAX(wanted, before);
    return TL_OK;
undo:
    tl_session_rewind(s, s->n);
no_memory:
    return tl_fail(err, TL_ENOMEM, "no memory for the kv cache of %zu tokens", s->n + n);
}

float *tl_session_keys(const struct tl_session *s, size_t cache, size_t block) {
    return s->blocks[cache * s->capacity + block]->data;
}

float *tl_session_values(const struct tl_session *s, size_t cache, size_t block) {
    return s->blocks[cache * s->capacity + block]->values;
}

/* Where the key of a position begins in its block; its values are 16 floats apart. */
static size_t key_offset(const struct tl_cache *c, size_t head, size_t at) {
    return (head * TL_BLOCK + at / 16 * 16) * c->key_size + at % 16;
}

void tl_session_put(struct tl_session *s, size_t cache, size_t head, size_t position, size_t n,
                    const float *keys, const float *values) {
    const struct tl_cache *c = &s->plan->caches[cache];
    for (size_t i = 0; i < n; i++) {
        const size_t block = (position + i) / TL_BLOCK, at = (position + i) % TL_BLOCK;
        const size_t row = i * c->kv_heads + head;
        const float *key = keys + row * c->key_size;
        float *k = tl_session_keys(s, cache, block) + key_offset(c, head, at);
        float *v = tl_session_values(s, cache, block) + (head * TL_BLOCK + at) * c->value_stride;
        for (size_t d = 0; d < c->key_size; d++) k[16 * d] = key[d];
        memcpy(v, values + row * c->value_size, c->value_size * sizeof(float));
    }
}

void tl_session_get(const struct tl_session *s, size_t cache, float *keys, float *values) {
    const struct tl_cache *c = &s->plan->caches[cache];
    for (size_t i = 0; i < s->n; i++) {
        const size_t block = i / TL_BLOCK, at = i % TL_BLOCK;
        for (size_t head = 0; head < c->kv_heads; head++) {
            const float *k = tl_session_keys(s, cache, block) + key_offset(c, head, at);
            const float *v =
                tl_session_values(s, cache, block) + (head * TL_BLOCK + at) * c->value_stride;
            for (size_t d = 0; d < c->key_size; d++) *keys++ = k[16 * d];
            memcpy(values, v, c->value_size * sizeof(float));
            values += c->value_size;
        }
    }
}
