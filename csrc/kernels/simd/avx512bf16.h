/* avx512bf16.h - 512-bit vectors and dot products of two bfloat16. */
#ifndef TL_SIMD_AVX512BF16_H
#define TL_SIMD_AVX512BF16_H

#include "kernels/simd/avx512_lanes.h"

/* Sixteen pairs of the bfloat16 nearest to 32 values. */
TL_INLINE v16 v16_round_pairs(const float *x) {
    return _mm512_castsi512_ps((__m512i)_mm512_cvtne2ps_pbh(v16_load(x + 16), v16_load(x)));
}
/* s + w1 * x1 + w0 * x0 in every lane, on pairs of bfloat16. */
TL_INLINE v16 v16_dot_pairs(v16 w, v16 x, v16 s) {
    return _mm512_dpbf16_ps(s, (__m512bh)_mm512_castps_si512(w), (__m512bh)_mm512_castps_si512(x));
}

#endif
