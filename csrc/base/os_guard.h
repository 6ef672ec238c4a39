/* os_guard.h - reads of a mapped file that has become shorter give zeros instead of a crash. */
#ifndef TL_OS_GUARD_H
#define TL_OS_GUARD_H

#include "base/base.h"

/* A guarded range of memory. */
struct tl_guard;

/*
 * Guards a mapping: a page that cannot be read becomes a page of zeros, and so do all after it in
 * the mapping. NULL if there is no memory, or on Windows, where nobody can shorten a mapped file.
 */
struct tl_guard *tl_guard_add(const void *data, size_t size);

/* Must come before the memory is unmapped. `guard` may be NULL. */
void tl_guard_remove(struct tl_guard *guard);

/* Whether a page of the range became zeros. `guard` may be NULL. */
bool tl_guard_lost(const struct tl_guard *guard);

#endif
