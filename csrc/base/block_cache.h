/*
 * block_cache.h - a cache of freed large blocks, for reuse.
 *
 * The system clears every fresh page at its first use, one page fault at a time. That takes longer
 * than the arithmetic that fills a captured array. So blocks that are given back are kept for
 * reuse, up to a limit for the whole process. Any thread may call these functions.
 */
#ifndef TL_BLOCK_CACHE_H
#define TL_BLOCK_CACHE_H

#include "base/base.h"

/* At least `bytes` bytes, 64-byte aligned, not cleared; NULL when there is no memory. */
void *tl_block_cache_take(size_t bytes);

/* Gives back what tl_block_cache_take(bytes) returned; NULL is allowed. */
void tl_block_cache_give(void *p, size_t bytes);

/* Bytes in the cache. */
size_t tl_block_cache_bytes(void);

#endif
