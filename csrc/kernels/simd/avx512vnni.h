/* avx512vnni.h - 512-bit vectors and dot products of four bytes. */
#ifndef TL_SIMD_AVX512VNNI_H
#define TL_SIMD_AVX512VNNI_H

#include "kernels/simd/avx512_lanes.h"

#define Q8_0_OFFSET 128

TL_INLINE v16i v16i_dot2(v16i s, v16i w, v16i x) {
    return _mm512_dpwssd_epi32(s, w, x);
}
TL_INLINE v16i v16i_dot4(v16i s, v16i w, v16i x) {
    return _mm512_dpbusd_epi32(s, w, x);
}
/* Selects bytes in every lane: `order` names them, the lowest first; 0x80 stands for zero. */
TL_INLINE v16i v16i_choose_bytes(v16i x, const uint32_t order) {
    const int32_t first = (int32_t)order, step = 0x04040404;
    return _mm512_shuffle_epi8(x, _mm512_broadcast_i32x4(_mm_setr_epi32(
                                      first, first + step, first + 2 * step, first + 3 * step)));
}
/* In every lane the entry of a table of 16 that the low four bits of the index name. */
TL_INLINE v16i v16i_look_up(v16i table, v16i index) {
    return _mm512_permutexvar_epi32(index, table);
}
/* The high half of every lane of `low`, and above it the low half of `high`. */
TL_INLINE v16i v16i_join_halves(v16i low, v16i high) {
    return _mm512_mask_blend_epi16(0xaaaaaaaau, _mm512_rol_epi32(low, 16),
                                   _mm512_rol_epi32(high, 16));
}
/* v16i_dot4 with *x in every lane. */
TL_INLINE v16i v16i_dot4_at(v16i s, v16i w, const int32_t *x) {
#ifdef TL_SIMDE
    return v16i_dot4(s, w, v16i_set1(*x));
#else // gcc would spend an instruction and a register on the broadcast
    __asm__("vpdpbusd %2%{1to16%}, %1, %0" : "+v"(s) : "v"(w), "m"(*x));
    return s;
#endif
}

#endif
