/* avx2.h - 256-bit vectors, two for sixteen lanes. */
#ifndef TL_SIMD_AVX2_H
#define TL_SIMD_AVX2_H

#include "kernels/simd/x86.h"

#define ATTN_QUERIES 6 // 12 accumulators of 8 lanes
#define ATTN_KEYS 1
#define FLOAT_TOKENS 6
#define FLOAT_VECTORS 1
#define PANEL_VECTORS 1
#define PREFETCH_BYTES 1024
#define INT8_OFFSET (-1)
// only two products of a six-bit weight fit into int16
#define SCALED_WORDS 1

/* ---- float32 and float64 ---- */

typedef struct {
    __m256 a, b;
} v16;

#define V16_BINARY(name, op)                                                                       \
    TL_INLINE v16 name(v16 x, v16 y) {                                                             \
        return (v16){op(x.a, y.a), op(x.b, y.b)};                                                  \
    }
V16_BINARY(v16_add, _mm256_add_ps)
V16_BINARY(v16_sub, _mm256_sub_ps)
V16_BINARY(v16_mul, _mm256_mul_ps)
V16_BINARY(v16_div, _mm256_div_ps)
V16_BINARY(v16_max, _mm256_max_ps) // x > y ? x : y

TL_INLINE v16 v16_load(const float *p) {
    return (v16){_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)};
}
TL_INLINE void v16_store(float *p, v16 x) {
    _mm256_storeu_ps(p, x.a);
    _mm256_storeu_ps(p + 8, x.b);
}
V16_PART_BY_COPY
TL_INLINE v16 v16_set1(float x) {
    return (v16){_mm256_set1_ps(x), _mm256_set1_ps(x)};
}
TL_INLINE v16 v16_fma(v16 x, v16 y, v16 z) {
    return (v16){_mm256_fmadd_ps(x.a, y.a, z.a), _mm256_fmadd_ps(x.b, y.b, z.b)};
}
/* x < limit ? then : otherwise (otherwise for NaN) */
TL_INLINE v16 v16_if_less(v16 x, v16 limit, v16 then, v16 otherwise) {
    return (v16){_mm256_blendv_ps(otherwise.a, then.a, _mm256_cmp_ps(x.a, limit.a, _CMP_LT_OQ)),
                 _mm256_blendv_ps(otherwise.b, then.b, _mm256_cmp_ps(x.b, limit.b, _CMP_LT_OQ))};
}
/* to the nearest integer, ties to even */
TL_INLINE v16 v16_rint(v16 x) {
    return (v16){_mm256_round_ps(x.a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC),
                 _mm256_round_ps(x.b, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
}
/* swaps lanes 2 j and 2 j + 1 */
TL_INLINE v16 v16_swap_pairs(v16 x) {
    return (v16){_mm256_permute_ps(x.a, 0xb1), _mm256_permute_ps(x.b, 0xb1)};
}
/* 2^n as float32, where x = n + 1.5 * 2^23 and -126 <= n <= 127 */
TL_INLINE v16 v16_pow2(v16 x) {
    const __m256i one = _mm256_set1_epi32(0x3f800000);
    __m256i a = _mm256_slli_epi32(_mm256_castps_si256(x.a), 23);
    __m256i b = _mm256_slli_epi32(_mm256_castps_si256(x.b), 23);
    return (v16){_mm256_castsi256_ps(_mm256_add_epi32(a, one)),
                 _mm256_castsi256_ps(_mm256_add_epi32(b, one))};
}

/* sixteen float64 lanes, for sums only */
typedef struct {
    __m256d v[4];
} d16;
TL_INLINE d16 d16_zero(void) {
    const __m256d zero = _mm256_setzero_pd();
    return (d16){{zero, zero, zero, zero}};
}
TL_INLINE d16 d16_add(d16 sum, v16 x) {
    const __m128 part[4] = {_mm256_castps256_ps128(x.a), _mm256_extractf128_ps(x.a, 1),
                            _mm256_castps256_ps128(x.b), _mm256_extractf128_ps(x.b, 1)};
    for (int i = 0; i < 4; i++) sum.v[i] = _mm256_add_pd(sum.v[i], _mm256_cvtps_pd(part[i]));
    return sum;
}
TL_INLINE void d16_store(double *p, d16 x) {
    for (int i = 0; i < 4; i++) _mm256_storeu_pd(p + 4 * i, x.v[i]);
}

/* ---- integers ---- */

typedef struct {
    __m256i a, b;
} v16i;

typedef struct {
    __m256d a, b, c, d;
} v16d;

#define V16I_BINARY(name, op)                                                                      \
    TL_INLINE v16i name(v16i x, v16i y) {                                                          \
        return (v16i){op(x.a, y.a), op(x.b, y.b)};                                                 \
    }
V16I_BINARY(v16i_add, _mm256_add_epi32)
V16I_BINARY(v16i_sub, _mm256_sub_epi32)
V16I_BINARY(v16i_mul, _mm256_mullo_epi32)
V16I_BINARY(v16i_and, _mm256_and_si256)
V16I_BINARY(v16i_xor, _mm256_xor_si256)
V16I_BINARY(v16i_mul_bytes, mul_bytes_256)

TL_INLINE v16i v16i_or_and(v16i x, v16i y, v16i mask) { // x | (y & mask)
    return (v16i){_mm256_or_si256(x.a, _mm256_and_si256(y.a, mask.a)),
                  _mm256_or_si256(x.b, _mm256_and_si256(y.b, mask.b))};
}
TL_INLINE v16i v16i_srl(v16i x, int n) {
    return (v16i){_mm256_srli_epi32(x.a, n), _mm256_srli_epi32(x.b, n)};
}
TL_INLINE __m256i half_words(__m256i x) {
    const __m256i order =
        _mm256_broadcastsi128_si256(_mm_setr_epi32(0x01800080, 0x05800480, 0x09800880, 0x0d800c80));
    return _mm256_srai_epi16(_mm256_shuffle_epi8(x, order), 8);
}
TL_INLINE v16i v16i_low_words(v16i x) {
    return (v16i){half_words(x.a), half_words(x.b)};
}
TL_INLINE v16i v16i_high_words(v16i x) {
    return v16i_low_words(v16i_srl(x, 16));
}
TL_INLINE v16i v16i_add_bytes(v16i s, v16i w, v16i x) {
    s.a = _mm256_add_epi16(s.a, mul_bytes_256(w.a, x.a));
    s.b = _mm256_add_epi16(s.b, mul_bytes_256(w.b, x.b));
    KEEP_PAIR(s.a, s.b); // see v16i_dot2
    return s;
}

TL_INLINE v16i v16i_sll(v16i x, int n) {
    return (v16i){_mm256_slli_epi32(x.a, n), _mm256_slli_epi32(x.b, n)};
}
TL_INLINE v16i v16i_sra(v16i x, int n) {
    return (v16i){_mm256_srai_epi32(x.a, n), _mm256_srai_epi32(x.b, n)};
}
TL_INLINE v16i v16i_load(const void *p) {
    const char *q = p;
    return (v16i){_mm256_loadu_si256((const __m256i *)(const void *)q),
                  _mm256_loadu_si256((const __m256i *)(const void *)(q + 32))};
}
TL_INLINE void v16i_store(void *p, v16i x) {
    char *q = p;
    _mm256_storeu_si256((__m256i *)(void *)q, x.a);
    _mm256_storeu_si256((__m256i *)(void *)(q + 32), x.b);
}
TL_INLINE v16i v16i_table(const void *p) {
    const __m256i table = _mm256_broadcastsi128_si256(_mm_loadu_si128(p));
    return (v16i){table, table};
}
V16I_BINARY(v16i_look_up, _mm256_shuffle_epi8)
TL_INLINE v16i v16i_max(v16i x, v16i y) {
    return (v16i){_mm256_max_epi32(x.a, y.a), _mm256_max_epi32(x.b, y.b)};
}
TL_INLINE v16i v16i_abs_bits(v16 x) {
    const __m256i mask = _mm256_set1_epi32(0x7fffffff);
    return (v16i){_mm256_and_si256(_mm256_castps_si256(x.a), mask),
                  _mm256_and_si256(_mm256_castps_si256(x.b), mask)};
}
TL_INLINE v16i v16i_round(v16 x) {
    return (v16i){_mm256_cvtps_epi32(x.a), _mm256_cvtps_epi32(x.b)};
}
TL_INLINE __m256i half_pairs(__m256i x) {
    return _mm256_blend_epi16(x, _mm256_srli_epi64(x, 16), 0xaa);
}
TL_INLINE v16i v16i_pairs(v16i x) {
    return (v16i){half_pairs(x.a), half_pairs(x.b)};
}
TL_INLINE v16i v16i_set1(int32_t x) {
    return (v16i){_mm256_set1_epi32(x), _mm256_set1_epi32(x)};
}
TL_INLINE v16i v16i_dot2(v16i s, v16i w, v16i x) {
    s.a = _mm256_add_epi32(s.a, mul_words_256(w.a, x.a));
    s.b = _mm256_add_epi32(s.b, mul_words_256(w.b, x.b));
    // without this GCC reassociates the sums of an unrolled tile and spills all of it
    KEEP_PAIR(s.a, s.b);
    return s;
}
TL_INLINE v16 v16_from_i32(v16i x) {
    return (v16){_mm256_cvtepi32_ps(x.a), _mm256_cvtepi32_ps(x.b)};
}
TL_INLINE v16i v16i_bits(v16 x) {
    return (v16i){_mm256_castps_si256(x.a), _mm256_castps_si256(x.b)};
}
TL_INLINE v16 v16_load_f32(const void *p) {
    v16i x = v16i_load(p);
    return (v16){_mm256_castsi256_ps(x.a), _mm256_castsi256_ps(x.b)};
}
TL_INLINE v16 v16_load_f16(const void *p) {
    const char *q = p;
    return (v16){_mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(const void *)q)),
                 _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(const void *)(q + 16)))};
}
TL_INLINE v16 v16_load_i8(const void *p) {
    const __m128i q = _mm_loadu_si128((const __m128i *)p);
    return (v16){_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(q)),
                 _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_srli_si128(q, 8)))};
}
TL_INLINE __m256 half_bf16(const char *q) {
    __m256i h = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)(const void *)q));
    return _mm256_castsi256_ps(_mm256_slli_epi32(h, 16));
}
TL_INLINE v16 v16_load_bf16(const void *p) {
    return (v16){half_bf16(p), half_bf16((const char *)p + 16)};
}

TL_INLINE v16d v16d_load(const double *p) {
    return (v16d){_mm256_loadu_pd(p), _mm256_loadu_pd(p + 4), _mm256_loadu_pd(p + 8),
                  _mm256_loadu_pd(p + 12)};
}
TL_INLINE void v16d_store(double *p, v16d x) {
    _mm256_storeu_pd(p, x.a);
    _mm256_storeu_pd(p + 4, x.b);
    _mm256_storeu_pd(p + 8, x.c);
    _mm256_storeu_pd(p + 12, x.d);
}
TL_INLINE v16d v16d_set1(double x) {
    __m256d v = _mm256_set1_pd(x);
    return (v16d){v, v, v, v};
}
TL_INLINE v16d v16d_mul(v16d x, v16d y) {
    return (v16d){_mm256_mul_pd(x.a, y.a), _mm256_mul_pd(x.b, y.b), _mm256_mul_pd(x.c, y.c),
                  _mm256_mul_pd(x.d, y.d)};
}
TL_INLINE v16d v16d_fma(v16d x, v16d y, v16d z) {
    return (v16d){_mm256_fmadd_pd(x.a, y.a, z.a), _mm256_fmadd_pd(x.b, y.b, z.b),
                  _mm256_fmadd_pd(x.c, y.c, z.c), _mm256_fmadd_pd(x.d, y.d, z.d)};
}
TL_INLINE v16d v16d_from_i32(v16i x) {
    return (v16d){_mm256_cvtepi32_pd(_mm256_castsi256_si128(x.a)),
                  _mm256_cvtepi32_pd(_mm256_extracti128_si256(x.a, 1)),
                  _mm256_cvtepi32_pd(_mm256_castsi256_si128(x.b)),
                  _mm256_cvtepi32_pd(_mm256_extracti128_si256(x.b, 1))};
}
TL_INLINE v16d v16d_from_f32(v16 x) {
    return (v16d){_mm256_cvtps_pd(_mm256_castps256_ps128(x.a)),
                  _mm256_cvtps_pd(_mm256_extractf128_ps(x.a, 1)),
                  _mm256_cvtps_pd(_mm256_castps256_ps128(x.b)),
                  _mm256_cvtps_pd(_mm256_extractf128_ps(x.b, 1))};
}
TL_INLINE v16 v16_from_f64(v16d x) {
    return (v16){_mm256_set_m128(_mm256_cvtpd_ps(x.b), _mm256_cvtpd_ps(x.a)),
                 _mm256_set_m128(_mm256_cvtpd_ps(x.d), _mm256_cvtpd_ps(x.c))};
}

TL_INLINE __m256i half_quads(__m256i x) {
    const __m256i order = _mm256_broadcastsi128_si256(
        _mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15));
    const __m256i middle = _mm256_set1_epi32(0x808080);
    return _mm256_shuffle_epi8(_mm256_xor_si256(_mm256_add_epi32(x, middle), middle), order);
}
TL_INLINE v16i v16i_quads(v16i x) {
    return (v16i){half_quads(x.a), half_quads(x.b)};
}
TL_INLINE v16i v16i_fold4(v16i x) {
    x.a = _mm256_add_epi32(x.a, x.b);
    x.a = _mm256_add_epi32(x.a, _mm256_permute2x128_si256(x.a, x.a, 1));
    return (v16i){x.a, x.a};
}
/* The low half of every lane, a float16, as float32. */
TL_INLINE v16 v16_from_low_halves(v16i x) {
    const __m256i mask = _mm256_set1_epi32(0xffff);
    __m256i h = _mm256_packus_epi32(_mm256_and_si256(x.a, mask), _mm256_and_si256(x.b, mask));
    h = _mm256_permute4x64_epi64(h, 0xd8);
    return (v16){_mm256_cvtph_ps(_mm256_castsi256_si128(h)),
                 _mm256_cvtph_ps(_mm256_extracti128_si256(h, 1))};
}

/* Transposes eight rows of eight dwords. */
TL_INLINE void transpose_8(__m256i r[8]) {
    __m256i t[8];
    for (int i = 0; i < 8; i += 4) {
        __m256i a = _mm256_unpacklo_epi32(r[i], r[i + 1]);
        __m256i b = _mm256_unpackhi_epi32(r[i], r[i + 1]);
        __m256i c = _mm256_unpacklo_epi32(r[i + 2], r[i + 3]);
        __m256i d = _mm256_unpackhi_epi32(r[i + 2], r[i + 3]);
        t[i] = _mm256_unpacklo_epi64(a, c);
        t[i + 1] = _mm256_unpackhi_epi64(a, c);
        t[i + 2] = _mm256_unpacklo_epi64(b, d);
        t[i + 3] = _mm256_unpackhi_epi64(b, d);
    }
    for (int i = 0; i < 4; i++) {
        r[i] = _mm256_permute2x128_si256(t[i], t[i + 4], 0x20);
        r[i + 4] = _mm256_permute2x128_si256(t[i], t[i + 4], 0x31);
    }
}
/* x[i] lane j becomes x[j] lane i */
TL_INLINE void v16i_transpose(v16i x[16]) {
    for (int half = 0; half < 2; half++) {
        __m256i low[8], high[8];
        for (int i = 0; i < 8; i++) {
            low[i] = half ? x[i].b : x[i].a;
            high[i] = half ? x[i + 8].b : x[i + 8].a;
        }
        transpose_8(low);
        transpose_8(high);
        for (int i = 0; i < 8; i++) {
            // the second half of the result is kept where the first half was read from
            if (half == 0) {
                x[i].a = low[i];
                x[i + 8].a = high[i];
            } else {
                __m256i swap = x[i + 8].a;
                x[i + 8] = (v16i){low[i], high[i]};
                x[i].b = swap;
            }
        }
    }
}

/* Loads and transposes 32 bytes of 16 rows: x[i] holds dword i of each row. */
TL_INLINE void v16i_load_32_bytes(const struct rows *row, size_t at, v16i x[8]) {
    __m256i low[8], high[8];
    for (int i = 0; i < 8; i++) {
        low[i] = _mm256_loadu_si256((const __m256i *)(const void *)row_at(row, i, at));
        high[i] = _mm256_loadu_si256((const __m256i *)(const void *)row_at(row, i + 8, at));
    }
    transpose_8(low);
    transpose_8(high);
    for (int i = 0; i < 8; i++) x[i] = (v16i){low[i], high[i]};
}
/* Loads and transposes 16 bytes of eight rows: x[i] holds dword i of each row. */
TL_INLINE void half_load_16_bytes(const struct rows *row, int first, size_t at, __m256i x[4]) {
    __m256i t[4];
    for (int i = 0; i < 4; i++) {
        t[i] = _mm256_set_m128i(
            _mm_loadu_si128((const __m128i *)(const void *)row_at(row, first + i + 4, at)),
            _mm_loadu_si128((const __m128i *)(const void *)row_at(row, first + i, at)));
    }
    columns_of_8(t, x);
}
TL_INLINE void v16i_load_16_bytes(const struct rows *row, size_t at, v16i x[4]) {
    __m256i low[4], high[4];
    half_load_16_bytes(row, 0, at, low);
    half_load_16_bytes(row, 8, at, high);
    for (int i = 0; i < 4; i++) x[i] = (v16i){low[i], high[i]};
}

/* Two int16 in every lane: (x - offset) * scale. */
TL_INLINE v16i v16i_scale_words(v16i x, int16_t offset, v16i scale) {
    const __m256i o = _mm256_set1_epi16(offset);
    return (v16i){_mm256_mullo_epi16(_mm256_sub_epi16(x.a, o), scale.a),
                  _mm256_mullo_epi16(_mm256_sub_epi16(x.b, o), scale.b)};
}

#if defined(__GNUC__) && !defined(TINYLLM_NO_ASM)
#define TILE_ASM
#include "kernels/simd/avx2_tile.h"
#endif

#endif
