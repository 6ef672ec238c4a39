/*
 * amx.h - tiles of the matrix extension AMX, which multiply bytes.
 *
 * A tile register holds up to 16 rows of 64 bytes. A product adds, for 16 tokens and 16 rows of the
 * matrix at once, dot products of up to 64 bytes to a tile of int32 sums. Intel, "64 and IA-32
 * Architectures Software Developer's Manual", volume 2, TDPBSSD and TILELOADD.
 */
#ifndef TL_SIMD_AMX_H
#define TL_SIMD_AMX_H

#include "kernels/simd/avx512vnni.h"

/* What LDTILECFG reads: the shapes of all registers. */
struct tile_shapes {
    uint8_t palette, start, zeros[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
};

/*
 * Shapes for products of `depth` values: 16, 32 or 64. Registers 0 to 3 hold sums, 4 to 6 digits of
 * tokens, and 7 weights. The shapes are those of this thread until _tile_release().
 */
TL_INLINE void tiles_begin(const int depth) {
    struct tile_shapes shapes = {.palette = 1};
    for (int i = 0; i < 8; i++) {
        shapes.row_bytes[i] = i < 4 || i == 7 ? 64 : (uint16_t)depth;
        shapes.rows[i] = i < 7 ? 16 : (uint8_t)(depth / 4);
    }
    _tile_loadconfig(&shapes);
}

/* gcc 12 does not say that a load of a tile reads memory. */
#if defined(__GNUC__) && !defined(TL_SIMDE)
#define TILE_MEMORY_IS_READ() __asm__ volatile("" ::: "memory")
#else
#define TILE_MEMORY_IS_READ() (void)0
#endif

/* Words and bytes. */
TL_INLINE v16i v16i_add_words(v16i x, v16i y) {
    return _mm512_add_epi16(x, y);
}
TL_INLINE v16i v16i_sub_words(v16i x, v16i y) {
    return _mm512_sub_epi16(x, y);
}
TL_INLINE v16i v16i_mul_words(v16i x, v16i y) {
    return _mm512_mullo_epi16(x, y);
}
TL_INLINE v16i v16i_srl_words(v16i x, const unsigned n) {
    return _mm512_srli_epi16(x, n);
}
TL_INLINE v16i v16i_sll_words(v16i x, const unsigned n) {
    return _mm512_slli_epi16(x, n);
}
TL_INLINE v16i v16i_sub_bytes(v16i x, v16i y) {
    return _mm512_sub_epi8(x, y);
}

#endif
