/* top.c - the largest values of an array, in order. */
#include "base/top.h"

#include <string.h>

/* A number that is larger for the value that comes first: the value, then the lower index. */
static uint64_t key_of(float value, size_t index) {
    uint32_t bits;
    value += 0.0f; // -0 and 0 are equal
    memcpy(&bits, &value, 4);
    bits = value != value ? 0 : bits >> 31 ? ~bits : bits | 0x80000000u;
    return (uint64_t)bits << 32 | (0xffffffffu - (uint32_t)index);
}

/* Moves the first key of a heap, whose smallest key is first, to its place. */
static void sink(uint64_t *keys, size_t n, size_t at) {
    const uint64_t key = keys[at];
    for (size_t child; (child = 2 * at + 1) < n; at = child) {
        if (child + 1 < n && keys[child + 1] < keys[child]) child++;
        if (key <= keys[child]) break;
        keys[at] = keys[child];
    }
    keys[at] = key;
}

void tl_top_find(const float *x, size_t n, size_t k, uint64_t *keys, int32_t *ids) {
    size_t left = k;
    float least;
    if (k == 0) return;
    for (size_t i = 0; i < k; i++) keys[i] = key_of(x[i], i);
    for (size_t i = k / 2; i-- > 0;) sink(keys, k, i);
    least = x[0xffffffffu - (uint32_t)keys[0]];
    for (size_t i = k; i < n; i++) {
        uint64_t key;
        if (x[i] <= least) continue; // almost always
        key = key_of(x[i], i);
        if (key <= keys[0]) continue; // NaN
        keys[0] = key;
        sink(keys, k, 0);
        least = x[0xffffffffu - (uint32_t)keys[0]];
    }
    while (left-- > 0) { // the smallest key goes last
        ids[left] = (int32_t)(0xffffffffu - (uint32_t)keys[0]);
        keys[0] = keys[left];
        sink(keys, left, 0);
    }
}

size_t tl_top_rank(const float *x, size_t n, size_t i) {
    const uint64_t key = key_of(x[i], i);
    size_t rank = 0;
    for (size_t j = 0; j < n; j++) rank += key_of(x[j], j) > key;
    return rank;
}
