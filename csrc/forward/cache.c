/* cache.c - the types of stored keys and values: a row each, with how they are rounded. */
#include "forward/cache.h"

#include "base/store.h"
#include "forward/attention.h"
#include "types/pack.h"

#include <math.h>
#include <string.h>

/* ---- float32 ---- */

static size_t bytes_f32(size_t size) {
    return TL_PANEL * sizeof(float) * size;
}

static void put_f32(const float *x, size_t n, uint8_t *panel, size_t size, size_t lane,
                    size_t first, size_t step) {
    float *to = (float *)(void *)panel + first;
    (void)size;
    (void)lane;
    for (size_t i = 0; i < n; i++) to[i * step] = x[i];
}

/* ---- float16 ---- */

static size_t bytes_f16(size_t size) {
    return TL_PANEL * sizeof(uint16_t) * size;
}

static void put_f16(const float *x, size_t n, uint8_t *panel, size_t size, size_t lane,
                    size_t first, size_t step) {
    uint16_t *to = (uint16_t *)(void *)panel + first;
    (void)size;
    (void)lane;
    for (size_t i = 0; i < n; i++) to[i * step] = tl_f32_to_f16(x[i]);
}

static void widen_f16(const struct tl_kernels *k, const void *panel, size_t size, float *to) {
    k->widen_f16(panel, TL_PANEL * size, to);
}

/* ---- Q8_0: blocks of 32 values, the last one of a vector with fewer, with a float16 scale ---- */

/* The scales, (blocks, 16), come before the values of a panel. */
static size_t scales_bytes(size_t size) {
    return (size + 31) / 32 * TL_PANEL * sizeof(uint16_t);
}

static size_t bytes_q8(size_t size) {
    return scales_bytes(size) + TL_PANEL * size;
}

/* One block as in a file; all are NaN if one of them is no finite number, or if the scale would be
   no float16. */
static void pack_32(const float *x, size_t n, uint8_t block[34]) {
    float padded[32] = {0};
    bool fits = true;
    for (size_t i = 0; i < n; i++) {
        padded[i] = x[i];
        fits = fits && fabsf(x[i]) <= 127 * 65504.0f;
    }
    if (fits) {
        tl_pack_q8_0(padded, NULL, 1, block);
    } else {
        memset(block, 0, 34);
        tl_store_u16(block, 0x7e00u);
    }
}

static void put_q8(const float *x, size_t n, uint8_t *panel, size_t size, size_t lane, size_t first,
                   size_t step) {
    uint16_t *scales = (uint16_t *)(void *)panel + lane;
    uint8_t *to = panel + scales_bytes(size) + first;
    for (size_t i = 0; i < n; i += 32) {
        const size_t some = TL_MIN(n - i, (size_t)32);
        uint8_t block[34];
        pack_32(x + i, some, block);
        memcpy(scales + i / 32 * TL_PANEL, block, sizeof(*scales));
        for (size_t j = 0; j < some; j++) to[(i + j) * step] = block[2 + j];
    }
}

static void widen_q8_keys(const struct tl_kernels *k, const void *panel, size_t size, float *to) {
    k->widen_q8_keys(panel, (const uint8_t *)panel + scales_bytes(size), size, to);
}

static void widen_q8_values(const struct tl_kernels *k, const void *panel, size_t size, float *to) {
    k->widen_q8_values(panel, (const uint8_t *)panel + scales_bytes(size), size, to);
}

/* ---- the table ---- */

static const struct tl_cache_type types[] = {
    {"f32", bytes_f32, put_f32, NULL, NULL},
    {"f16", bytes_f16, put_f16, widen_f16, widen_f16},
    {"q8", bytes_q8, put_q8, widen_q8_keys, widen_q8_values},
};

const struct tl_cache_type *tl_cache_type_find(const char *name) {
    for (size_t i = 0; i < TL_ARRAY_LEN(types); i++) {
        if (strcmp(types[i].name, name) == 0) return &types[i];
    }
    return NULL;
}

void tl_cache_put_key(const struct tl_cache *c, uint8_t *panel, size_t lane, const float *key) {
    c->type->put(key, c->key_size, panel, c->key_size, lane, lane, TL_PANEL);
}

void tl_cache_put_value(const struct tl_cache *c, uint8_t *panel, size_t lane, const float *value) {
    c->type->put(value, c->value_size, panel, c->value_stride, lane, lane * c->value_stride, 1);
}

const float *tl_cache_keys(const struct tl_kernels *k, const struct tl_cache *c,
                           const uint8_t *panel, float *wide) {
    if (c->type->widen_keys == NULL) return (const float *)(const void *)panel;
    c->type->widen_keys(k, panel, c->key_size, wide);
    return wide;
}

const float *tl_cache_values(const struct tl_kernels *k, const struct tl_cache *c,
                             const uint8_t *panel, float *wide) {
    if (c->type->widen_values == NULL) return (const float *)(const void *)panel;
    c->type->widen_values(k, panel, c->value_stride, wide);
    return wide;
}

/* ---- attention ---- */

/* Keys that are widened at a time: they stay in the first-level cache. */
#define NEAR_KEYS 64

/* Bytes of values that a cache of the processor holds: of more, all queries use a block of values
   before the next one is read. */
#define NEAR_VALUES (512 * 1024)

/* Positions between a panel that is widened and the one that is fetched from memory meanwhile. */
#define AHEAD 128

size_t tl_cache_wide(const struct tl_plan *p) {
    size_t most = 0;
    for (size_t i = 0; i < p->n_caches; i++) {
        const struct tl_cache *c = &p->caches[i];
        if (c->state > 0) continue;
        most = TL_MAX(most, NEAR_KEYS * c->key_size);
        most = TL_MAX(most, (TL_BLOCK + MAX_QUERIES) * c->value_stride);
    }
    return most;
}

/* The panel at a position, of panels of so many bytes. */
static const uint8_t *panel_at(const float *const *blocks, size_t position, size_t bytes) {
    const uint8_t *block = (const uint8_t *)(const void *)blocks[position / TL_BLOCK];
    return block + position % TL_BLOCK / TL_PANEL * bytes;
}

/* The same, of positions below `end`. Begins to fetch the panel that is read later. */
static const uint8_t *next_panel(const float *const *blocks, size_t position, size_t end,
                                 size_t bytes) {
#if defined(__GNUC__)
    if (position + AHEAD < end) {
        const uint8_t *later = panel_at(blocks, position + AHEAD, bytes);
        for (size_t i = 0; i < bytes; i += 64) __builtin_prefetch(later + i, 0, 2);
    }
#else
    (void)end;
#endif
    return panel_at(blocks, position, bytes);
}

void tl_cache_scores(const struct tl_kernels *k, const struct tl_cache *c, const float *q,
                     size_t queries, const float *const *blocks, size_t keys, float scale,
                     float *scores, size_t stride, float *wide) {
    const float *const from = wide;
    if (c->type->widen_keys == NULL) {
        k->attn_scores(q, queries, blocks, c->key_size, keys, scale, scores, stride);
        return;
    }
    for (size_t at = 0; at < keys; at += NEAR_KEYS) {
        for (size_t i = 0; i < NEAR_KEYS; i += TL_PANEL) {
            c->type->widen_keys(k, next_panel(blocks, at + i, keys, c->key_panel), c->key_size,
                                wide + i * c->key_size);
        }
        k->attn_scores(q, queries, &from, c->key_size, TL_MIN(keys - at, (size_t)NEAR_KEYS), scale,
                       scores + at, stride);
    }
}

/* Puts what the queries see of a block, counted from its first key, into `part`; false if none of
   them sees any. */
static bool part_seen(const struct tl_range *seen, size_t queries, size_t at,
                      struct tl_range *part) {
    bool any = false;
    for (size_t i = 0; i < queries; i++) {
        part[i].first = TL_MIN(TL_MAX(seen[i].first, at), at + TL_BLOCK) - at;
        part[i].end = TL_MIN(TL_MAX(seen[i].end, at), at + TL_BLOCK) - at;
        any = any || part[i].first < part[i].end;
    }
    return any;
}

/* The sum over blocks has the order of attn_mix, and the same bits: no sum that begins with +0 is
   -0. */
void tl_cache_mix(const struct tl_kernels *k, const struct tl_cache *c, const float *probs,
                  size_t probs_stride, size_t queries, const struct tl_range *seen,
                  const float *const *blocks, float *mix, size_t mix_stride, float *wide) {
    const size_t stride = c->value_stride;
    const bool widens = c->type->widen_values != NULL;
    float *sums = wide + TL_BLOCK * stride;
    struct tl_range part[MAX_QUERIES];
    size_t end = 0;
    for (size_t i = 0; i < queries; i++) end = TL_MAX(end, seen[i].end);
    if (!widens && (queries == 1 || end * stride * sizeof(float) <= NEAR_VALUES)) {
        k->attn_mix(probs, probs_stride, queries, seen, blocks, stride, mix, mix_stride);
        return;
    }
    for (size_t i = 0; i < queries; i++) memset(mix + i * mix_stride, 0, stride * sizeof(float));
    for (size_t at = 0; at < end; at += TL_BLOCK) {
        const float *from = widens ? wide : blocks[at / TL_BLOCK];
        if (!part_seen(seen, queries, at, part)) continue;
        for (size_t i = 0; widens && i < TL_MIN(end - at, (size_t)TL_BLOCK); i += TL_PANEL) {
            c->type->widen_values(k, next_panel(blocks, at + i, end, c->value_panel), stride,
                                  wide + i * stride);
        }
        // the kernel leaves queries out if no other query of their tile sees a key
        memset(sums, 0, queries * stride * sizeof(float));
        k->attn_mix(probs + at, probs_stride, queries, part, &from, stride, sums, stride);
        for (size_t i = 0; i < queries; i++) {
            k->add(mix + i * mix_stride, sums + i * stride, mix + i * mix_stride, stride);
        }
    }
}
