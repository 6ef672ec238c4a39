/*
 * block_cache.h - large blocks of memory that are used again.
 *
 * Pages fresh from the system are cleared by it, one fault at a time, which takes longer than the
 * arithmetic that fills a captured array. Blocks that are given back are kept for the next taker,
 * up to a bound for the whole process. Safe from any thread.
 */
#ifndef TL_BLOCK_CACHE_H
#define TL_BLOCK_CACHE_H

#include "base/base.h"

/* At least `bytes` bytes, 64-byte aligned, not cleared; NULL when there is no memory. */
void *tl_block_cache_take(size_t bytes);

/* Gives back what tl_block_cache_take(bytes) returned; NULL is allowed. */
void tl_block_cache_give(void *p, size_t bytes);

/* Bytes that are kept for the next taker. */
size_t tl_block_cache_bytes(void);

#endif
