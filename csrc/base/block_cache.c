/* block_cache.c - a bounded cache of freed blocks. */
#include "base/block_cache.h"

#include "base/os.h"

#include <stdatomic.h>

#define SMALLEST ((size_t)64 << 10) // for smaller blocks malloc is as fast
#define HUGE_PAGE ((size_t)2 << 20)
#define MAX_BLOCKS 512
#define MAX_BYTES ((size_t)512 << 20)

struct block {
    void *p;
    size_t bytes;
};

/*
 * The blocks in the cache, oldest first. `taken` is a lock that nobody waits for: a thread that
 * finds it taken allocates or frees its block without the cache. So a child that was forked while
 * another thread held the lock does not hang.
 */
static atomic_flag taken = ATOMIC_FLAG_INIT;
static struct block kept[MAX_BLOCKS];
static size_t n_kept;
static _Atomic size_t bytes_kept;

/* Rounds up to a multiple of an eighth of a power of two, so that a context that grows a little
   fits the blocks of the call before. SIZE_MAX if the size is too large. */
static size_t round_up(size_t bytes) {
    size_t step = TL_MAX(SMALLEST, (size_t)4096) / 8;
    if (bytes > SIZE_MAX / 4) return SIZE_MAX;
    while (step * 16 < bytes) step *= 2;
    return (bytes + step - 1) / step * step;
}

static void drop(size_t i) {
    bytes_kept -= kept[i].bytes;
    n_kept--;
    for (; i < n_kept; i++) kept[i] = kept[i + 1];
}

void *tl_block_cache_take(size_t bytes) {
    const size_t size = round_up(bytes);
    void *p = NULL;
    if (bytes < SMALLEST) return tl_alloc(bytes);
    if (size == SIZE_MAX) return NULL;
    if (!atomic_flag_test_and_set_explicit(&taken, memory_order_acquire)) {
        for (size_t i = n_kept; i-- > 0 && p == NULL;) { // the newest first: it is warmest
            if (kept[i].bytes == size) {
                p = kept[i].p;
                drop(i);
            }
        }
        atomic_flag_clear_explicit(&taken, memory_order_release);
    }
    if (p != NULL) return p;
    return size >= HUGE_PAGE ? tl_alloc_huge(size) : tl_alloc(size);
}

void tl_block_cache_give(void *p, size_t bytes) {
    const size_t size = round_up(bytes);
    if (p != NULL && bytes >= SMALLEST && size <= MAX_BYTES / 2 &&
        !atomic_flag_test_and_set_explicit(&taken, memory_order_acquire)) {
        void *old[MAX_BLOCKS];
        size_t n_old = 0;
        while (n_kept == MAX_BLOCKS || bytes_kept + size > MAX_BYTES) {
            old[n_old++] = kept[0].p;
            drop(0);
        }
        kept[n_kept++] = (struct block){p, size};
        bytes_kept += size;
        atomic_flag_clear_explicit(&taken, memory_order_release);
        while (n_old > 0) tl_free(old[--n_old]);
        return;
    }
    tl_free(p);
}

size_t tl_block_cache_bytes(void) {
    return bytes_kept;
}
