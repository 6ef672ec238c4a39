/*
 * avx512_lanes.h - 512-bit vectors: everything except the integer products, in which avx512.h and
 * avx512vnni.h differ.
 */
#ifndef TL_SIMD_AVX512_LANES_H
#define TL_SIMD_AVX512_LANES_H

#include "kernels/simd/x86.h"

#define ATTN_QUERIES 6
#define ATTN_KEYS 4 // 24 accumulators
#define FLOAT_TOKENS 6
#define FLOAT_VECTORS 2 // 12 accumulators, and the sums of earlier lanes
#define PANEL_VECTORS 2
#define PREFETCH_BYTES 1024
#define PREFETCH_BYTES_NEAR 512 // into the first cache, where a few tokens are multiplied
#define SCALED_WORDS 0

/* ---- float32 and float64 ---- */

typedef __m512 v16;

TL_INLINE v16 v16_add(v16 x, v16 y) {
    return _mm512_add_ps(x, y);
}
TL_INLINE v16 v16_sub(v16 x, v16 y) {
    return _mm512_sub_ps(x, y);
}
TL_INLINE v16 v16_mul(v16 x, v16 y) {
    return _mm512_mul_ps(x, y);
}
TL_INLINE v16 v16_div(v16 x, v16 y) {
    return _mm512_div_ps(x, y);
}
TL_INLINE v16 v16_max(v16 x, v16 y) { // x > y ? x : y
    return _mm512_max_ps(x, y);
}
TL_INLINE v16 v16_load(const float *p) {
    return _mm512_loadu_ps(p);
}
TL_INLINE void v16_store(float *p, v16 x) {
    _mm512_storeu_ps(p, x);
}
#ifdef TL_SIMDE // it has no masked loads
V16_PART_BY_COPY
#else
TL_INLINE v16 v16_load_part(const float *p, size_t n) { // see V16_PART_BY_COPY
    return _mm512_maskz_loadu_ps((__mmask16)((1u << n) - 1), p);
}
TL_INLINE void v16_store_part(float *p, size_t n, v16 x) {
    _mm512_mask_storeu_ps(p, (__mmask16)((1u << n) - 1), x);
}
#endif
TL_INLINE v16 v16_set1(float x) {
    return _mm512_set1_ps(x);
}
TL_INLINE v16 v16_fma(v16 x, v16 y, v16 z) {
    return _mm512_fmadd_ps(x, y, z);
}
/* x < limit ? then : otherwise (otherwise for NaN) */
TL_INLINE v16 v16_if_less(v16 x, v16 limit, v16 then, v16 otherwise) {
    return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(x, limit, _CMP_LT_OQ), otherwise, then);
}
/* to the nearest integer, ties to even */
TL_INLINE v16 v16_rint(v16 x) {
    return _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
/* swaps lanes 2 j and 2 j + 1 */
TL_INLINE v16 v16_swap_pairs(v16 x) {
    return _mm512_shuffle_ps(x, x, 0xb1);
}
/* 2^n as float32, where x = n + 1.5 * 2^23 and -126 <= n <= 127 */
TL_INLINE v16 v16_pow2(v16 x) {
    __m512i bits = _mm512_slli_epi32(_mm512_castps_si512(x), 23);
    return _mm512_castsi512_ps(_mm512_add_epi32(bits, _mm512_set1_epi32(0x3f800000)));
}

/* sixteen float64 lanes, for sums only */
typedef struct {
    __m512d a, b;
} d16;
TL_INLINE d16 d16_zero(void) {
    return (d16){_mm512_setzero_pd(), _mm512_setzero_pd()};
}
TL_INLINE d16 d16_add(d16 sum, v16 x) {
    const __m512d b = _mm512_cvtps_pd(_mm512_extractf32x8_ps(x, 1));
    return (d16){_mm512_add_pd(sum.a, _mm512_cvtps_pd(_mm512_castps512_ps256(x))),
                 _mm512_add_pd(sum.b, b)};
}
TL_INLINE void d16_store(double *p, d16 x) {
    _mm512_storeu_pd(p, x.a);
    _mm512_storeu_pd(p + 8, x.b);
}

/* ---- integers ---- */

typedef __m512i v16i;

typedef struct {
    __m512d a, b;
} v16d;

TL_INLINE v16i v16i_add(v16i x, v16i y) {
    return _mm512_add_epi32(x, y);
}
TL_INLINE v16i v16i_sub(v16i x, v16i y) {
    return _mm512_sub_epi32(x, y);
}
TL_INLINE v16i v16i_mul(v16i x, v16i y) {
    return _mm512_mullo_epi32(x, y);
}
TL_INLINE v16i v16i_and(v16i x, v16i y) {
    return _mm512_and_si512(x, y);
}
TL_INLINE v16i v16i_xor(v16i x, v16i y) {
    return _mm512_xor_si512(x, y);
}
TL_INLINE v16i v16i_or_and(v16i x, v16i y, v16i mask) { // x | (y & mask)
    return _mm512_ternarylogic_epi32(x, y, mask, 0xf8);
}
TL_INLINE v16i v16i_srl(v16i x, const unsigned n) {
    return _mm512_srli_epi32(x, n);
}
TL_INLINE v16i v16i_sll(v16i x, const unsigned n) {
    return _mm512_slli_epi32(x, n);
}
TL_INLINE v16i v16i_sra(v16i x, const unsigned n) {
    return _mm512_srai_epi32(x, n);
}
TL_INLINE v16i v16i_load(const void *p) {
    return _mm512_loadu_si512(p);
}
TL_INLINE void v16i_store(void *p, v16i x) {
    _mm512_storeu_si512(p, x);
}
TL_INLINE v16i v16i_table(const void *p) {
    return _mm512_broadcast_i32x4(_mm_loadu_si128(p));
}
TL_INLINE v16i v16i_look_up(v16i table, v16i x) {
    return _mm512_shuffle_epi8(table, x);
}
TL_INLINE v16i v16i_max(v16i x, v16i y) {
    return _mm512_max_epi32(x, y);
}
TL_INLINE v16i v16i_abs_bits(v16 x) {
    return _mm512_and_si512(_mm512_castps_si512(x), _mm512_set1_epi32(0x7fffffff));
}
TL_INLINE v16i v16i_round(v16 x) {
    return _mm512_cvtps_epi32(x);
}
TL_INLINE v16i v16i_pairs(v16i x) {
    return _mm512_mask_blend_epi16(0xaaaaaaaau, x, _mm512_srli_epi64(x, 16));
}
TL_INLINE v16i v16i_set1(int32_t x) {
    return _mm512_set1_epi32(x);
}
TL_INLINE v16i v16i_quads(v16i x) {
    const __m512i order =
        _mm512_broadcast_i32x4(_mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15));
    x = _mm512_add_epi32(x, _mm512_set1_epi32(0x808080));
    return _mm512_shuffle_epi8(_mm512_xor_si512(x, _mm512_set1_epi32(0x808080)), order);
}
TL_INLINE v16i v16i_fold4(v16i x) {
    x = _mm512_add_epi32(x, _mm512_shuffle_i32x4(x, x, 0x4e));
    return _mm512_add_epi32(x, _mm512_shuffle_i32x4(x, x, 0xb1));
}
/* The low half of every lane, a float16, as float32. */
TL_INLINE v16 v16_from_low_halves(v16i x) {
    return _mm512_cvtph_ps(_mm512_cvtepi32_epi16(x));
}
TL_INLINE __m512i two_32_bytes(const uint8_t *low, const uint8_t *high) {
    return _mm512_inserti64x4(
        _mm512_castsi256_si512(_mm256_loadu_si256((const __m256i *)(const void *)low)),
        _mm256_loadu_si256((const __m256i *)(const void *)high), 1);
}

/* Transposes: t[i] holds 32 bytes of rows i and i + 4, t[i + 4] those of rows i + 8 and i + 12. */
TL_INLINE void v16i_columns_32(__m512i t[8], v16i x[8]) {
    for (int i = 0; i < 8; i += 4) {
        __m512i a = _mm512_unpacklo_epi32(t[i], t[i + 1]);
        __m512i b = _mm512_unpackhi_epi32(t[i], t[i + 1]);
        __m512i c = _mm512_unpacklo_epi32(t[i + 2], t[i + 3]);
        __m512i d = _mm512_unpackhi_epi32(t[i + 2], t[i + 3]);
        t[i] = _mm512_unpacklo_epi64(a, c);
        t[i + 1] = _mm512_unpackhi_epi64(a, c);
        t[i + 2] = _mm512_unpacklo_epi64(b, d);
        t[i + 3] = _mm512_unpackhi_epi64(b, d);
    }
    for (int i = 0; i < 4; i++) {
        x[i] = _mm512_shuffle_i32x4(t[i], t[i + 4], 0x88);
        x[i + 4] = _mm512_shuffle_i32x4(t[i], t[i + 4], 0xdd);
    }
}

/* Loads and transposes 32 bytes of 16 rows: x[i] holds dword i of each row. */
TL_INLINE void v16i_load_32_bytes(const struct rows *row, size_t at, v16i x[8]) {
    __m512i t[8];
    for (int i = 0; i < 8; i++) {
        const int r = i / 4 * 8 + i % 4;
        t[i] = two_32_bytes(row_at(row, r, at), row_at(row, r + 4, at));
    }
    v16i_columns_32(t, x);
}

TL_INLINE __m512i four_16_bytes(const uint8_t *a, const uint8_t *b, const uint8_t *c,
                                const uint8_t *d) {
    const __m256i low = _mm256_inserti128_si256(
        _mm256_castsi128_si256(_mm_loadu_si128((const __m128i *)(const void *)a)),
        _mm_loadu_si128((const __m128i *)(const void *)b), 1);
    const __m256i high = _mm256_inserti128_si256(
        _mm256_castsi128_si256(_mm_loadu_si128((const __m128i *)(const void *)c)),
        _mm_loadu_si128((const __m128i *)(const void *)d), 1);
    return _mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1);
}

/* Transposes: t[i] holds 16 bytes of the rows i, i + 4, i + 8 and i + 12. */
TL_INLINE void v16i_columns_16(const __m512i t[4], v16i x[4]) {
    __m512i a = _mm512_unpacklo_epi32(t[0], t[1]), b = _mm512_unpackhi_epi32(t[0], t[1]);
    __m512i c = _mm512_unpacklo_epi32(t[2], t[3]), d = _mm512_unpackhi_epi32(t[2], t[3]);
    x[0] = _mm512_unpacklo_epi64(a, c);
    x[1] = _mm512_unpackhi_epi64(a, c);
    x[2] = _mm512_unpacklo_epi64(b, d);
    x[3] = _mm512_unpackhi_epi64(b, d);
}

/* Loads and transposes 16 bytes of 16 rows: x[i] holds dword i of each row. */
TL_INLINE void v16i_load_16_bytes(const struct rows *row, size_t at, v16i x[4]) {
    __m512i t[4];
    for (int i = 0; i < 4; i++) {
        t[i] = four_16_bytes(row_at(row, i, at), row_at(row, i + 4, at), row_at(row, i + 8, at),
                             row_at(row, i + 12, at));
    }
    v16i_columns_16(t, x);
}

TL_INLINE v16 v16_from_i32(v16i x) {
    return _mm512_cvtepi32_ps(x);
}
TL_INLINE v16i v16i_bits(v16 x) {
    return _mm512_castps_si512(x);
}
TL_INLINE v16 v16_load_f32(const void *p) {
    return _mm512_loadu_ps(p);
}
TL_INLINE v16 v16_load_f16(const void *p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(p));
}
TL_INLINE v16 v16_load_i8(const void *p) {
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(p)));
}
TL_INLINE v16 v16_load_bf16(const void *p) {
    __m512i h = _mm512_cvtepu16_epi32(_mm256_loadu_si256(p));
    return _mm512_castsi512_ps(_mm512_slli_epi32(h, 16));
}
/* x[i] lane j becomes x[j] lane i */
TL_INLINE void v16i_transpose(v16i x[16]) {
    __m512i t[16];
    for (int i = 0; i < 16; i += 4) {
        __m512i a = _mm512_unpacklo_epi32(x[i], x[i + 1]);
        __m512i b = _mm512_unpackhi_epi32(x[i], x[i + 1]);
        __m512i c = _mm512_unpacklo_epi32(x[i + 2], x[i + 3]);
        __m512i d = _mm512_unpackhi_epi32(x[i + 2], x[i + 3]);
        t[i] = _mm512_unpacklo_epi64(a, c);
        t[i + 1] = _mm512_unpackhi_epi64(a, c);
        t[i + 2] = _mm512_unpacklo_epi64(b, d);
        t[i + 3] = _mm512_unpackhi_epi64(b, d);
    }
    for (int i = 0; i < 4; i++) { // quarters: x[i + 4 q] = quarter q of four rows
        __m512i a = _mm512_shuffle_i32x4(t[i], t[i + 4], 0x88);
        __m512i b = _mm512_shuffle_i32x4(t[i + 8], t[i + 12], 0x88);
        __m512i c = _mm512_shuffle_i32x4(t[i], t[i + 4], 0xdd);
        __m512i d = _mm512_shuffle_i32x4(t[i + 8], t[i + 12], 0xdd);
        x[i] = _mm512_shuffle_i32x4(a, b, 0x88);
        x[i + 8] = _mm512_shuffle_i32x4(a, b, 0xdd);
        x[i + 4] = _mm512_shuffle_i32x4(c, d, 0x88);
        x[i + 12] = _mm512_shuffle_i32x4(c, d, 0xdd);
    }
}

TL_INLINE v16d v16d_load(const double *p) {
    return (v16d){_mm512_loadu_pd(p), _mm512_loadu_pd(p + 8)};
}
TL_INLINE void v16d_store(double *p, v16d x) {
    _mm512_storeu_pd(p, x.a);
    _mm512_storeu_pd(p + 8, x.b);
}
TL_INLINE v16d v16d_set1(double x) {
    return (v16d){_mm512_set1_pd(x), _mm512_set1_pd(x)};
}
TL_INLINE v16d v16d_mul(v16d x, v16d y) {
    return (v16d){_mm512_mul_pd(x.a, y.a), _mm512_mul_pd(x.b, y.b)};
}
TL_INLINE v16d v16d_fma(v16d x, v16d y, v16d z) {
    return (v16d){_mm512_fmadd_pd(x.a, y.a, z.a), _mm512_fmadd_pd(x.b, y.b, z.b)};
}
TL_INLINE v16d v16d_from_i32(v16i x) {
    return (v16d){_mm512_cvtepi32_pd(_mm512_castsi512_si256(x)),
                  _mm512_cvtepi32_pd(_mm512_extracti64x4_epi64(x, 1))};
}
TL_INLINE v16d v16d_from_f32(v16 x) {
    return (v16d){_mm512_cvtps_pd(_mm512_castps512_ps256(x)),
                  _mm512_cvtps_pd(_mm512_extractf32x8_ps(x, 1))};
}
TL_INLINE v16 v16_from_f64(v16d x) {
    return _mm512_insertf32x8(_mm512_castps256_ps512(_mm512_cvtpd_ps(x.a)), _mm512_cvtpd_ps(x.b),
                              1);
}

#endif
