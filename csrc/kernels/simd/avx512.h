/* avx512.h - 512-bit vectors; products of bytes go through sums of pairs in int16. */
#ifndef TL_SIMD_AVX512_H
#define TL_SIMD_AVX512_H

#include "kernels/simd/avx512_lanes.h"

#define INT8_OFFSET (-1)

TL_INLINE v16i v16i_dot2(v16i s, v16i w, v16i x) {
    s = _mm512_add_epi32(s, mul_words_512(w, x));
    KEEP_512(s); // see avx2.h
    return s;
}
TL_INLINE v16i v16i_low_words(v16i x) {
    __m512i order =
        _mm512_broadcast_i32x4(_mm_setr_epi32(0x01800080, 0x05800480, 0x09800880, 0x0d800c80));
    return _mm512_srai_epi16(_mm512_shuffle_epi8(x, order), 8);
}
TL_INLINE v16i v16i_high_words(v16i x) {
    return v16i_low_words(_mm512_srli_epi32(x, 16));
}
/* Two int16 in every lane: (x - offset) * scale. */
TL_INLINE v16i v16i_scale_words(v16i x, int16_t offset, v16i scale) {
    return _mm512_mullo_epi16(_mm512_sub_epi16(x, _mm512_set1_epi16(offset)), scale);
}
TL_INLINE v16i v16i_mul_bytes(v16i w, v16i x) {
    return mul_bytes_512(w, x);
}
TL_INLINE v16i v16i_add_bytes(v16i s, v16i w, v16i x) {
    s = _mm512_add_epi16(s, mul_bytes_512(w, x));
    KEEP_512(s);
    return s;
}

#endif
