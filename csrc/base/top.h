/* top.h - the largest values of an array, in order. */
#ifndef TL_TOP_H
#define TL_TOP_H

#include "base/base.h"

/*
 * Writes the indices of the k largest of n < 2^32 values to ids, in descending order of value;
 * among equal values, lower indices come first. NaN counts as the smallest. k <= n; keys has room
 * for k numbers.
 */
void tl_top_find(const float *x, size_t n, size_t k, uint64_t *keys, int32_t *ids);

/* How many of n values come before x[i] in the order of tl_top_find. i < n. */
size_t tl_top_rank(const float *x, size_t n, size_t i);

#endif
