/* session.c - the kv cache: blocks of positions, shared by reference count between forks. */
#include "model/model.h"

#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

/* TL_BLOCK positions of one layer. Never moves; written only while one session holds it. */
struct tl_block {
    atomic_int references;
    float *data;   // keys (kv_heads, TL_BLOCK / 16, head_size, 16)
    float *values; // inside data, after the keys: (kv_heads, TL_BLOCK, stride)
};

static size_t values_bytes(const struct tl_layer *l) {
    return l->shape.kv_heads * l->value_stride * TL_BLOCK * sizeof(float);
}

static void release(struct tl_block *b) {
    if (b == NULL || atomic_fetch_sub(&b->references, 1) > 1) return;
    tl_free(b->data);
    free(b);
}

static struct tl_block *block_new(const struct tl_layer *l) {
    const size_t bytes = l->keys_bytes + values_bytes(l);
    struct tl_block *b = malloc(sizeof(*b));
    float *data = tl_alloc(bytes);
    if (b == NULL || data == NULL) {
        free(b);
        tl_free(data);
        return NULL;
    }
    memset(data, 0, bytes); // the kernels may read positions that are not there yet
    atomic_init(&b->references, 1);
    b->data = data;
    b->values = data + l->keys_bytes / sizeof(float);
    return b;
}

int tl_session_new(const struct tl_model *m, struct tl_session **out, struct tl_error *err) {
    *out = calloc(1, sizeof(**out));
    if (*out == NULL) return tl_fail(err, TL_ENOMEM, "no memory for a session");
    (*out)->model = m;
    return TL_OK;
}

void tl_session_rewind(struct tl_session *s, size_t n) {
    const size_t keep = (n + TL_BLOCK - 1) / TL_BLOCK;
    for (size_t l = 0; l < s->model->config.layers; l++) {
        for (size_t b = keep; b < s->n_blocks; b++) {
            release(s->blocks[l * s->capacity + b]);
            s->blocks[l * s->capacity + b] = NULL;
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
    for (size_t l = 0; l < s->model->config.layers; l++) {
        const struct tl_layer *layer = &s->model->layers[l];
        bytes += s->n_blocks * (layer->keys_bytes + values_bytes(layer));
    }
    return bytes;
}

/* Room for `wanted` blocks per layer in the table; the blocks themselves come later. */
static bool grow_table(struct tl_session *s, size_t wanted) {
    const size_t layers = s->model->config.layers;
    size_t capacity = TL_MAX(s->capacity * 2, TL_MAX(wanted, (size_t)4)), cells;
    struct tl_block **blocks;
    if (wanted <= s->capacity) return true;
    if (!tl_mul_size(capacity, layers, &cells)) return false;
    blocks = calloc(cells, sizeof(struct tl_block *));
    if (blocks == NULL) return false;
    for (size_t l = 0; l < layers; l++) {
        for (size_t b = 0; b < s->n_blocks; b++) {
            blocks[l * capacity + b] = s->blocks[l * s->capacity + b];
        }
    }
    free(s->blocks);
    s->blocks = blocks;
    s->capacity = capacity;
    return true;
}

int tl_session_fork(const struct tl_session *s, struct tl_session **out, struct tl_error *err) {
    struct tl_session *fork;
    int status = tl_session_new(s->model, out, err);
    if (status != TL_OK) return status;
    fork = *out;
    if (!grow_table(fork, s->n_blocks)) {
        tl_session_free(fork);
        *out = NULL;
        return tl_fail(err, TL_ENOMEM, "no memory for a session of %zu tokens", s->n);
    }
    for (size_t l = 0; l < s->model->config.layers; l++) {
        for (size_t b = 0; b < s->n_blocks; b++) {
            struct tl_block *shared = s->blocks[l * s->capacity + b];
            atomic_fetch_add(&shared->references, 1);
            fork->blocks[l * fork->capacity + b] = shared;
        }
    }
    fork->n = s->n;
    fork->n_blocks = s->n_blocks;
    return TL_OK;
}

int tl_session_reserve(struct tl_session *s, size_t n, struct tl_error *err) {
    const size_t layers = s->model->config.layers;
    const size_t wanted = (s->n + n + TL_BLOCK - 1) / TL_BLOCK, before = s->n_blocks;
    if (!grow_table(s, wanted)) goto no_memory;
    // a block that a fork shares is copied before this session writes to it
    for (size_t l = 0; l < layers; l++) {
        const struct tl_layer *layer = &s->model->layers[l];
        for (size_t b = s->n / TL_BLOCK; b < before; b++) {
            struct tl_block **cell = &s->blocks[l * s->capacity + b], *copy;
            if (atomic_load(&(*cell)->references) == 1) continue;
            copy = block_new(layer);
            if (copy == NULL) goto no_memory;
            memcpy(copy->data, (*cell)->data, layer->keys_bytes + values_bytes(layer));
            release(*cell);
            *cell = copy;
        }
    }
    for (size_t l = 0; l < layers; l++) {
        for (size_t b = before; b < wanted; b++) {
            struct tl_block *fresh = block_new(&s->model->layers[l]);
            if (fresh == NULL) {
                s->n_blocks = wanted; // so that rewind finds those that were made
                goto undo;
            }
            s->blocks[l * s->capacity + b] = fresh;
        }
    }
    s->n_blocks = TL_MAX(wanted, before);
    return TL_OK;
undo:
    tl_session_rewind(s, s->n);
no_memory:
    return tl_fail(err, TL_ENOMEM, "no memory for the kv cache of %zu tokens", s->n + n);
}

float *tl_session_keys(const struct tl_session *s, size_t layer, size_t block) {
    return s->blocks[layer * s->capacity + block]->data;
}

float *tl_session_values(const struct tl_session *s, size_t layer, size_t block) {
    return s->blocks[layer * s->capacity + block]->values;
}

/* Where the key of a position lies in its block, of which it takes every 16th value. */
static size_t key_offset(const struct tl_layer_shape *shape, size_t head, size_t at) {
    return (head * TL_BLOCK + at / 16 * 16) * shape->head_size + at % 16;
}

void tl_session_put(struct tl_session *s, size_t layer, size_t head, size_t position, size_t n,
                    const float *keys, const float *values) {
    const struct tl_layer *l = &s->model->layers[layer];
    const struct tl_layer_shape *shape = &l->shape;
    for (size_t i = 0; i < n; i++) {
        const size_t block = (position + i) / TL_BLOCK, at = (position + i) % TL_BLOCK;
        const size_t row = i * shape->kv_heads + head;
        const float *key = keys + row * shape->head_size;
        float *k = tl_session_keys(s, layer, block) + key_offset(shape, head, at);
        float *v = tl_session_values(s, layer, block) + (head * TL_BLOCK + at) * l->value_stride;
        for (size_t d = 0; d < shape->head_size; d++) k[16 * d] = key[d];
        memcpy(v, values + row * shape->value_size, shape->value_size * sizeof(float));
    }
}

void tl_session_get(const struct tl_session *s, size_t layer, float *keys, float *values) {
    const struct tl_layer *l = &s->model->layers[layer];
    const struct tl_layer_shape *shape = &l->shape;
    for (size_t i = 0; i < s->n; i++) {
        const size_t block = i / TL_BLOCK, at = i % TL_BLOCK;
        for (size_t head = 0; head < shape->kv_heads; head++) {
            const float *k = tl_session_keys(s, layer, block) + key_offset(shape, head, at);
            const float *v =
                tl_session_values(s, layer, block) + (head * TL_BLOCK + at) * l->value_stride;
            for (size_t d = 0; d < shape->head_size; d++) *keys++ = k[16 * d];
            memcpy(values, v, shape->value_size * sizeof(float));
            values += shape->value_size;
        }
    }
}
