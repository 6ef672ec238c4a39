/*
 * cache.h - the types in which a cache stores keys and values, and attention over what is stored.
 *
 * A panel holds 16 positions of one head: keys as (size, 16), values as (16, size). Attention reads
 * floats in this layout. The other types have the same layout with fewer bytes, and panels are
 * widened to floats before attention reads them. Widening is exact, so only storing rounds, and the
 * bits of a result depend on the stored values alone.
 */
#ifndef TL_CACHE_H
#define TL_CACHE_H

#include "forward/plan.h"

/* Positions of a panel. */
#define TL_PANEL 16

struct tl_cache_type {
    const char *name;

    /* Bytes of a panel of vectors of `size` values; at most those of floats. */
    size_t (*bytes)(size_t size);

    /* Rounds the n <= size values of position `lane` of a panel into it. Value i is element
       first + i * step of the panel's values. */
    void (*put)(const float *x, size_t n, uint8_t *panel, size_t size, size_t lane, size_t first,
                size_t step);

    /* Writes a panel as floats; both NULL if they are floats already. */
    void (*widen_keys)(const struct tl_kernels *k, const void *panel, size_t size, float *to);
    void (*widen_values)(const struct tl_kernels *k, const void *panel, size_t size, float *to);
};

/* The type of that name; NULL if there is none. The first one has floats. */
const struct tl_cache_type *tl_cache_type_find(const char *name);

/* Rounds one key or value of a head into position `lane` of a panel. */
void tl_cache_put_key(const struct tl_cache *c, uint8_t *panel, size_t lane, const float *key);
void tl_cache_put_value(const struct tl_cache *c, uint8_t *panel, size_t lane, const float *value);

/* The floats of a panel: in `wide`, or the panel itself. */
const float *tl_cache_keys(const struct tl_kernels *k, const struct tl_cache *c,
                           const uint8_t *panel, float *wide);
const float *tl_cache_values(const struct tl_kernels *k, const struct tl_cache *c,
                             const uint8_t *panel, float *wide);

/* Floats of `wide`, which holds widened keys or values and sums, for any cache of a plan. */
size_t tl_cache_wide(const struct tl_plan *p);

/*
 * The kernels attn_scores and attn_mix over stored keys and values of one head. blocks[b] holds
 * positions b * TL_BLOCK ... in the type of the cache. There are at most MAX_QUERIES.
 */
void tl_cache_scores(const struct tl_kernels *k, const struct tl_cache *c, const float *q,
                     size_t queries, const float *const *blocks, size_t keys, float scale,
                     float *scores, size_t stride, float *wide);
void tl_cache_mix(const struct tl_kernels *k, const struct tl_cache *c, const float *probs,
                  size_t probs_stride, size_t queries, const struct tl_range *seen,
                  const float *const *blocks, float *mix, size_t mix_stride, float *wide);

#endif
