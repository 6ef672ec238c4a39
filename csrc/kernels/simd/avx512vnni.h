/* avx512vnni.h - 512-bit vectors and dot products of four bytes. */
#ifndef TL_SIMD_AVX512VNNI_H
#define TL_SIMD_AVX512VNNI_H

#include "kernels/simd/avx512_lanes.h"

#define INT8_OFFSET 128

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
/* Every lane shifted by what the same lane of n says. */
TL_INLINE v16i v16i_sll_by(v16i x, v16i n) {
    return _mm512_sllv_epi32(x, n);
}
TL_INLINE v16i v16i_srl_by(v16i x, v16i n) {
    return _mm512_srlv_epi32(x, n);
}
/* In every lane the entry of a table of 16 that the low four bits of the index name. */
TL_INLINE v16i v16i_look_up_lanes(v16i table, v16i index) {
    return _mm512_permutexvar_epi32(index, table);
}
/* Every word of the index, below n (256 or 512), becomes that entry of a
   table. */
TL_INLINE v16i v16i_look_up_words(const uint16_t *table, const int n, v16i index) {
    v16i part[8];
    TL_UNROLL(8)
    for (int i = 0; i < n / 64; i++) {
        part[i] = _mm512_permutex2var_epi16(v16i_load(table + 64 * i), index,
                                            v16i_load(table + 64 * i + 32));
    }
    TL_UNROLL(3)
    for (int bit = 64; bit < n; bit *= 2) {
        const uint32_t set = _mm512_test_epi16_mask(index, _mm512_set1_epi16((int16_t)bit));
        TL_UNROLL(4)
        for (int i = 0; i < n / bit / 2; i++) {
            part[i] = _mm512_mask_blend_epi16(set, part[2 * i], part[2 * i + 1]);
        }
    }
    return part[0];
}
/* The same for a large table, whose last entry is followed by another one. */
TL_INLINE v16i v16i_gather_words(const uint16_t *table, v16i index) {
#ifdef TL_SIMDE // it has no gathers
    uint16_t at[32];
    memcpy(at, &index, sizeof(at));
    for (int i = 0; i < 32; i++) at[i] = table[at[i]];
    return v16i_load(at);
#else
    const v16i low = v16i_and(index, v16i_set1(0xffff)), high = v16i_srl(index, 16);
    return _mm512_mask_blend_epi16(0xaaaaaaaau, _mm512_i32gather_epi32(low, table, 2),
                                   v16i_sll(_mm512_i32gather_epi32(high, table, 2), 16));
#endif
}
/* In every lane the dword that begins at byte `n`, 1 to 3, of `low` and continues in `high`. */
TL_INLINE v16i v16i_join(v16i low, v16i high, const int n) {
    const uint64_t of_high = 0x1111111111111111u * (0xfu << (4 - n) & 0xfu);
#if (defined(TL_NO_INLINE) || defined(__clang__)) && !defined(TL_SIMDE) // n is no constant there
    const v16i count = _mm512_set1_epi32(32 - 8 * n);
    return _mm512_mask_blend_epi8(of_high, _mm512_rolv_epi32(low, count),
                                  _mm512_rolv_epi32(high, count));
#else
    return _mm512_mask_blend_epi8(of_high, _mm512_rol_epi32(low, 32 - 8 * n),
                                  _mm512_rol_epi32(high, 32 - 8 * n));
#endif
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
