/* session.h - the kv cache of one context: blocks of positions for each cache of a plan. */
#ifndef TL_SESSION_H
#define TL_SESSION_H

#include "forward/plan.h"

struct tl_block; // TL_BLOCK positions of one cache, shared between sessions by reference count

/* The positions [0, n) are in the cache; it has room for n_blocks * TL_BLOCK. */
struct tl_session {
    const struct tl_plan *plan; // borrows
    size_t n;
    size_t n_blocks; // blocks per cache
    size_t capacity;
    struct tl_block **blocks; // (caches, capacity)
    void *work;               // buffers of the forward pass, kept between calls
    size_t work_bytes;
};

int tl_session_new(const struct tl_plan *p, struct tl_session **out, struct tl_error *err);
/* A session with the same positions; blocks are shared until one of the two writes to them. */
int tl_session_fork(const struct tl_session *s, struct tl_session **out, struct tl_error *err);
void tl_session_rewind(struct tl_session *s, size_t n); // keeps the first n <= s->n positions
void tl_session_free(struct tl_session *s);
size_t tl_session_cache_bytes(const struct tl_session *s);

/* Makes positions [s->n, s->n + n) of every cache writable. On failure s is as before. */
int tl_session_reserve(struct tl_session *s, size_t n, struct tl_error *err);
/* The keys (kv_heads, TL_BLOCK / 16, key_size, 16) and values (kv_heads, TL_BLOCK, value_stride).
 */
float *tl_session_keys(const struct tl_session *s, size_t cache, size_t block);
float *tl_session_values(const struct tl_session *s, size_t cache, size_t block);

/* Writes one kv head at positions [position, position + n), which are reserved, from rows of all
   heads: keys (n, kv_heads, key_size), values (n, kv_heads, value_size). */
void tl_session_put(struct tl_session *s, size_t cache, size_t head, size_t position, size_t n,
                    const float *keys, const float *values);
/* Copies the keys and values of all positions of a cache, in the same layout. */
void tl_session_get(const struct tl_session *s, size_t cache, float *keys, float *values);

#endif
