/* x86.h - what the files of AVX2 and AVX-512 share. */
#ifndef TL_SIMD_X86_H
#define TL_SIMD_X86_H

#include "kernels/simd/simd.h"

#ifndef TL_SIMDE
#include <immintrin.h>
#endif

/*
 * Forces a value into a register at this place. Otherwise compilers reorder the sums of an unrolled
 * loop, or keep a pointer for every load. Both need far more registers than there are, so that most
 * values are spilled to memory.
 */
#ifdef TL_SIMDE
#define KEEP(x) (void)(x)
#define KEEP_PAIR(x, y) (void)(x), (void)(y)
#define KEEP_512(x) (void)(x)
#define KEEP_POINTER(p) (void)(p)
#define KEEP_STORED(x) (void)(x)
#else
#define KEEP(x) __asm__("" : "+x"(x))
#define KEEP_PAIR(x, y) __asm__("" : "+x"(x), "+x"(y))
#define KEEP_512(x) __asm__("" : "+v"(x))
#define KEEP_POINTER(p) __asm__("" : "+r"(p))
#define KEEP_STORED(x) __asm__("" : "+m"(x)) // in memory, not in registers
#endif

/*
 * maddubs_epi16 and madd_epi16. gcc describes them by lists of all elements, and spends seconds on
 * attempts to combine these with what comes before and after.
 */
#if defined(__GNUC__) && !defined(__clang__) && !defined(TL_SIMDE)
#define MUL_FUNCTION(name, type, instruction)                                                      \
    TL_INLINE type name(type w, type x) {                                                          \
        type products;                                                                             \
        __asm__(instruction " %2, %1, %0" : "=v"(products) : "v"(w), "v"(x));                      \
        return products;                                                                           \
    }
MUL_FUNCTION(mul_bytes_256, __m256i, "vpmaddubsw")
MUL_FUNCTION(mul_words_256, __m256i, "vpmaddwd")
#ifdef __AVX512BW__
MUL_FUNCTION(mul_bytes_512, __m512i, "vpmaddubsw")
MUL_FUNCTION(mul_words_512, __m512i, "vpmaddwd")
#endif
#undef MUL_FUNCTION
#else
#define mul_bytes_256 _mm256_maddubs_epi16
#define mul_words_256 _mm256_madd_epi16
#define mul_bytes_512 _mm512_maddubs_epi16
#define mul_words_512 _mm512_madd_epi16
#endif

/* Transposes eight rows: t[i] holds 16 bytes of the rows i and i + 4, x[i] dword i of each row. */
TL_INLINE void columns_of_8(const __m256i t[4], __m256i x[4]) {
    __m256i a = _mm256_unpacklo_epi32(t[0], t[1]), b = _mm256_unpackhi_epi32(t[0], t[1]);
    __m256i c = _mm256_unpacklo_epi32(t[2], t[3]), d = _mm256_unpackhi_epi32(t[2], t[3]);
    x[0] = _mm256_unpacklo_epi64(a, c);
    x[1] = _mm256_unpackhi_epi64(a, c);
    x[2] = _mm256_unpacklo_epi64(b, d);
    x[3] = _mm256_unpackhi_epi64(b, d);
}

#endif
