/*
 * hash.h - hashes for tables whose keys come from files or texts.
 *
 * They depend on a secret of the process. Without it, a file could hold keys that all have the same
 * hash, and building the table would take time in proportion to the square of its size. No result
 * may depend on the order of a table.
 */
#ifndef TL_HASH_H
#define TL_HASH_H

#include <stdint.h>
#include <string.h>

#if defined(_MSC_VER) && defined(_M_X64)
#include <intrin.h>
#endif

struct tl_hash_key {
    uint64_t a, b;
};

/* The upper half of the 128-bit product of two words, XORed with the lower half. */
static inline uint64_t tl_hash_fold(uint64_t x, uint64_t y) {
#if defined(__SIZEOF_INT128__)
    __extension__ typedef unsigned __int128 product;
    const product p = (product)x * y;
    return (uint64_t)p ^ (uint64_t)(p >> 64);
#elif defined(_MSC_VER) && defined(_M_X64)
    uint64_t high, low = _umul128(x, y, &high);
    return low ^ high;
#else
    const uint64_t a = x >> 32, b = (uint32_t)x, c = y >> 32, d = (uint32_t)y;
    const uint64_t middle = a * d + (b * d >> 32), carried = b * c + (uint32_t)middle;
    return (x * y) ^ (a * c + (middle >> 32) + (carried >> 32));
#endif
}

/* The hash of everything so far and one more word. */
static inline uint64_t tl_hash_word(const struct tl_hash_key *key, uint64_t hash, uint64_t word) {
    return tl_hash_fold(word ^ key->a, hash ^ key->b);
}

static inline uint64_t tl_hash_bytes(const struct tl_hash_key *key, const void *bytes,
                                     size_t size) {
    const uint8_t *p = bytes;
    uint64_t hash = tl_hash_word(key, 0, size), word;
    for (; size >= 8; p += 8, size -= 8) {
        memcpy(&word, p, 8);
        hash = tl_hash_word(key, hash, word);
    }
    word = 0;
    for (size_t i = 0; i < size; i++) word |= (uint64_t)p[i] << 8 * i;
    return tl_hash_word(key, hash, word);
}

#endif
