/*
 * simd_int.h - sixteen int32 and sixteen float64 lanes beside the float32 lanes of simd.h.
 *
 * For the kernels of quantized weights: one lane is one row of the matrix.
 *   v16i_dot2(s, w, x)   s + w0 * x0 + w1 * x1     on pairs of int16
 * Where TL_DOT4 is defined, on quadruples of bytes, w unsigned (at most 127 + TL_OFFSET_Q8_0):
 *   v16i_dot4(s, w, x)   s + w0 * x0 + ... + w3 * x3
 * Elsewhere the same in two steps, w at most 127, with sums of pairs as int16 between them:
 *   v16i_mul_bytes(w, x)       w0 * x0 + w1 * x1 | w2 * x2 + w3 * x3
 *   v16i_add_bytes(s, w, x)    s + that
 * All of them are exact as long as the result fits int32.
 *   v16i_low_words(x)    bytes 0 and 1 of every lane as two int16; high_words: bytes 2 and 3
 *   v16i_pairs(x)        lane 2 j: the low halves of the lanes 2 j and 2 j + 1, as int16
 *   v16i_quads(x)        lane 4 j + p: digit p (0 lowest) of the lanes 4 j to 4 j + 3, as int8
 *   v16i_fold4(x)        lane p: the sum of the lanes p, 4 + p, 8 + p, 12 + p
 */
#include "kernels/simd/simd.h"

/* Sixteen rows that are read together, and how far ahead lie the rows to read after them. */
struct rows {
    const uint8_t *at[16];
    size_t ahead;
};

/* Memory is slow to answer: ask for the next rows a little with every load of these. */
TL_INLINE const uint8_t *row_at(const struct rows *rows, int i, size_t at) {
    const uint8_t *p = rows->at[i] + at;
#if defined(__GNUC__)
    __builtin_prefetch(p + rows->ahead, 0, 2);
#endif
    return p;
}

#if TL_SIMD == TL_SIMD_AVX2 || TL_SIMD == TL_SIMD_AVX512
/* t[i]: 16 bytes of the rows i and i + 4 of eight; x[i]: their dwords i. */
TL_INLINE void columns_of_8(const __m256i t[4], __m256i x[4]) {
    __m256i a = _mm256_unpacklo_epi32(t[0], t[1]), b = _mm256_unpackhi_epi32(t[0], t[1]);
    __m256i c = _mm256_unpacklo_epi32(t[2], t[3]), d = _mm256_unpackhi_epi32(t[2], t[3]);
    x[0] = _mm256_unpacklo_epi64(a, c);
    x[1] = _mm256_unpackhi_epi64(a, c);
    x[2] = _mm256_unpacklo_epi64(b, d);
    x[3] = _mm256_unpackhi_epi64(b, d);
}
#endif

#if TL_SIMD == TL_SIMD_AVX2

typedef struct {
    __m256i a, b;
} v16i;

typedef struct {
    __m256d a, b, c, d;
} v16d;

#ifdef TL_SIMDE
#define KEEP_256(x) (void)(x)
#else
#define KEEP_256(x) __asm__("" : "+x"((x).a), "+x"((x).b))
#endif

#define V16I_BINARY(name, op)                                                                      \
    TL_INLINE v16i name(v16i x, v16i y) {                                                          \
        return (v16i){op(x.a, y.a), op(x.b, y.b)};                                                 \
    }
V16I_BINARY(v16i_add, _mm256_add_epi32)
V16I_BINARY(v16i_sub, _mm256_sub_epi32)
V16I_BINARY(v16i_mul, _mm256_mullo_epi32)
V16I_BINARY(v16i_and, _mm256_and_si256)
V16I_BINARY(v16i_xor, _mm256_xor_si256)
V16I_BINARY(v16i_mul_bytes, _mm256_maddubs_epi16)

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
    s.a = _mm256_add_epi16(s.a, _mm256_maddubs_epi16(w.a, x.a));
    s.b = _mm256_add_epi16(s.b, _mm256_maddubs_epi16(w.b, x.b));
    KEEP_256(s); // see v16i_dot2
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
    s.a = _mm256_add_epi32(s.a, _mm256_madd_epi16(w.a, x.a));
    s.b = _mm256_add_epi32(s.b, _mm256_madd_epi16(w.b, x.b));
    // without this GCC reassociates the sums of an unrolled tile and spills all of it
    KEEP_256(s);
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

/* Eight rows of eight dwords. */
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
            // the lanes of the rows 8 to 15 wait where the first half has been read
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

/* The same 32 bytes of 16 rows: x[i] holds their dwords i. */
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
/* The same for 16 bytes and four dwords. */
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

#elif TL_SIMD == TL_SIMD_AVX512

typedef __m512i v16i;

#ifdef TL_SIMDE
#define KEEP_512(x) (void)(x)
#else
#define KEEP_512(x) __asm__("" : "+v"(x))
#endif

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
#ifdef TL_VNNI
#define TL_DOT4
#define TL_OFFSET_Q8_0 128
TL_INLINE v16i v16i_dot2(v16i s, v16i w, v16i x) {
    return _mm512_dpwssd_epi32(s, w, x);
}
TL_INLINE v16i v16i_dot4(v16i s, v16i w, v16i x) {
    return _mm512_dpbusd_epi32(s, w, x);
}
/* In every lane the bytes that `order` names, the lowest first; 0x80 stands for zero. */
TL_INLINE v16i v16i_choose_bytes(v16i x, const uint32_t order) {
    const int32_t first = (int32_t)order, step = 0x04040404;
    return _mm512_shuffle_epi8(x, _mm512_broadcast_i32x4(_mm_setr_epi32(
                                      first, first + step, first + 2 * step, first + 3 * step)));
}
/* The entries of a table of 16 that the low four bits of the lanes name. */
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
#else // gcc would spend an instruction, and a register, on the lanes
    __asm__("vpdpbusd %2%{1to16%}, %1, %0" : "+v"(s) : "v"(w), "m"(*x));
    return s;
#endif
}
#else
TL_INLINE v16i v16i_dot2(v16i s, v16i w, v16i x) {
    s = _mm512_add_epi32(s, _mm512_madd_epi16(w, x));
    KEEP_512(s); // see the AVX2 flavour
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
TL_INLINE v16i v16i_mul_bytes(v16i w, v16i x) {
    return _mm512_maddubs_epi16(w, x);
}
TL_INLINE v16i v16i_add_bytes(v16i s, v16i w, v16i x) {
    s = _mm512_add_epi16(s, _mm512_maddubs_epi16(w, x));
    KEEP_512(s);
    return s;
}
#endif
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

/* t[i]: 32 bytes of the rows i and i + 4, t[i + 4] of the rows i + 8 and i + 12. */
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

/* The same 32 bytes of 16 rows: x[i] holds their dwords i. */
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

/* t[i]: 16 bytes of the rows i, i + 4, i + 8 and i + 12. */
TL_INLINE void v16i_columns_16(const __m512i t[4], v16i x[4]) {
    __m512i a = _mm512_unpacklo_epi32(t[0], t[1]), b = _mm512_unpackhi_epi32(t[0], t[1]);
    __m512i c = _mm512_unpacklo_epi32(t[2], t[3]), d = _mm512_unpackhi_epi32(t[2], t[3]);
    x[0] = _mm512_unpacklo_epi64(a, c);
    x[1] = _mm512_unpackhi_epi64(a, c);
    x[2] = _mm512_unpacklo_epi64(b, d);
    x[3] = _mm512_unpackhi_epi64(b, d);
}

/* The same for 16 bytes and four dwords. */
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

#elif TL_SIMD == TL_SIMD_NEON

#define TL_DOT4
#define TL_OFFSET_Q8_0 0 // signed times signed

typedef struct {
    int32x4_t v[4];
} v16i;

typedef struct {
    float64x2_t v[8];
} v16d;

#define V16I_NEON(expression)                                                                      \
    v16i r;                                                                                        \
    for (int i = 0; i < 4; i++) r.v[i] = (expression);                                             \
    return r
#define V16D_NEON(expression)                                                                      \
    v16d r;                                                                                        \
    for (int i = 0; i < 8; i++) r.v[i] = (expression);                                             \
    return r

TL_INLINE v16i v16i_add(v16i x, v16i y) {
    V16I_NEON(vaddq_s32(x.v[i], y.v[i]));
}
TL_INLINE v16i v16i_sub(v16i x, v16i y) {
    V16I_NEON(vsubq_s32(x.v[i], y.v[i]));
}
TL_INLINE v16i v16i_mul(v16i x, v16i y) {
    V16I_NEON(vmulq_s32(x.v[i], y.v[i]));
}
TL_INLINE v16i v16i_and(v16i x, v16i y) {
    V16I_NEON(vandq_s32(x.v[i], y.v[i]));
}
TL_INLINE v16i v16i_xor(v16i x, v16i y) {
    V16I_NEON(veorq_s32(x.v[i], y.v[i]));
}
TL_INLINE v16i v16i_max(v16i x, v16i y) {
    V16I_NEON(vmaxq_s32(x.v[i], y.v[i]));
}
TL_INLINE v16i v16i_or_and(v16i x, v16i y, v16i mask) { // x | (y & mask)
    V16I_NEON(vorrq_s32(x.v[i], vandq_s32(y.v[i], mask.v[i])));
}
TL_INLINE v16i v16i_sll(v16i x, int n) {
    V16I_NEON(vshlq_s32(x.v[i], vdupq_n_s32(n)));
}
TL_INLINE v16i v16i_sra(v16i x, int n) {
    V16I_NEON(vshlq_s32(x.v[i], vdupq_n_s32(-n)));
}
TL_INLINE v16i v16i_srl(v16i x, int n) {
    V16I_NEON(vreinterpretq_s32_u32(vshlq_u32(vreinterpretq_u32_s32(x.v[i]), vdupq_n_s32(-n))));
}
TL_INLINE v16i v16i_load(const void *p) {
    const uint8_t *q = p;
    V16I_NEON(vreinterpretq_s32_u8(vld1q_u8(q + 16 * i)));
}
TL_INLINE void v16i_store(void *p, v16i x) {
    uint8_t *q = p;
    for (int i = 0; i < 4; i++) vst1q_u8(q + 16 * i, vreinterpretq_u8_s32(x.v[i]));
}
TL_INLINE v16i v16i_set1(int32_t x) {
    V16I_NEON(vdupq_n_s32(x));
}
TL_INLINE v16i v16i_bits(v16 x) {
    V16I_NEON(vreinterpretq_s32_f32(x.v[i]));
}
TL_INLINE v16i v16i_abs_bits(v16 x) {
    V16I_NEON(vandq_s32(vreinterpretq_s32_f32(x.v[i]), vdupq_n_s32(0x7fffffff)));
}
TL_INLINE v16i v16i_round(v16 x) {
    V16I_NEON(vcvtq_s32_f32(vrndnq_f32(x.v[i])));
}
TL_INLINE int32x4_t quarter_bytes(int32x4_t x, const uint8_t *order) {
    return vreinterpretq_s32_u8(vqtbl1q_u8(vreinterpretq_u8_s32(x), vld1q_u8(order)));
}
TL_INLINE v16i v16i_pairs(v16i x) {
    static const uint8_t order[16] = {0, 1, 4,  5,  255, 255, 255, 255,
                                      8, 9, 12, 13, 255, 255, 255, 255};
    V16I_NEON(quarter_bytes(x.v[i], order));
}
TL_INLINE v16i v16i_quads(v16i x) {
    static const uint8_t order[16] = {0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15};
    const int32x4_t middle = vdupq_n_s32(0x808080);
    V16I_NEON(quarter_bytes(veorq_s32(vaddq_s32(x.v[i], middle), middle), order));
}
TL_INLINE v16i v16i_fold4(v16i x) {
    int32x4_t sum = vaddq_s32(vaddq_s32(x.v[0], x.v[1]), vaddq_s32(x.v[2], x.v[3]));
    V16I_NEON(sum);
}
TL_INLINE int32x4_t quarter_dot2(int32x4_t s, int32x4_t w, int32x4_t x) {
    int16x8_t a = vreinterpretq_s16_s32(w), b = vreinterpretq_s16_s32(x);
    return vaddq_s32(s, vpaddq_s32(vmull_s16(vget_low_s16(a), vget_low_s16(b)),
                                   vmull_s16(vget_high_s16(a), vget_high_s16(b))));
}
TL_INLINE v16i v16i_dot2(v16i s, v16i w, v16i x) {
    V16I_NEON(quarter_dot2(s.v[i], w.v[i], x.v[i]));
}
TL_INLINE v16i v16i_dot4(v16i s, v16i w, v16i x) {
    V16I_NEON(vdotq_s32(s.v[i], vreinterpretq_s8_s32(w.v[i]), vreinterpretq_s8_s32(x.v[i])));
}
/* Four rows of four dwords. */
TL_INLINE void transpose_4(int32x4_t r[4]) {
    int32x4_t a = vzip1q_s32(r[0], r[2]), b = vzip2q_s32(r[0], r[2]);
    int32x4_t c = vzip1q_s32(r[1], r[3]), d = vzip2q_s32(r[1], r[3]);
    r[0] = vzip1q_s32(a, c);
    r[1] = vzip2q_s32(a, c);
    r[2] = vzip1q_s32(b, d);
    r[3] = vzip2q_s32(b, d);
}
/* x[i] lane j becomes x[j] lane i */
TL_INLINE void v16i_transpose(v16i x[16]) {
    for (int q = 0; q < 4; q++) {
        for (int p = 0; p <= q; p++) {
            int32x4_t a[4], b[4];
            for (int i = 0; i < 4; i++) {
                a[i] = x[4 * q + i].v[p];
                b[i] = x[4 * p + i].v[q];
            }
            transpose_4(a);
            transpose_4(b);
            for (int i = 0; i < 4; i++) {
                x[4 * q + i].v[p] = b[i];
                x[4 * p + i].v[q] = a[i];
            }
        }
    }
}
/* The same 16 bytes of 16 rows: x[i] holds their dwords i. */
TL_INLINE void v16i_load_16_bytes(const struct rows *row, size_t at, v16i x[4]) {
    for (int q = 0; q < 4; q++) {
        int32x4_t part[4];
        for (int i = 0; i < 4; i++)
            part[i] = vreinterpretq_s32_u8(vld1q_u8(row_at(row, 4 * q + i, at)));
        transpose_4(part);
        for (int i = 0; i < 4; i++) x[i].v[q] = part[i];
    }
}
/* The same for 32 bytes and eight dwords. */
TL_INLINE void v16i_load_32_bytes(const struct rows *row, size_t at, v16i x[8]) {
    v16i_load_16_bytes(row, at, x);
    v16i_load_16_bytes(row, at + 16, x + 4);
}

TL_INLINE v16 v16_from_i32(v16i x) {
    V16_NEON(vcvtq_f32_s32(x.v[i]));
}
TL_INLINE float32x4_t quarter_halves(uint16x4_t h) {
    return vcvt_f32_f16(vreinterpret_f16_u16(h));
}
/* The low half of every lane, a float16, as float32. */
TL_INLINE v16 v16_from_low_halves(v16i x) {
    V16_NEON(quarter_halves(vmovn_u32(vreinterpretq_u32_s32(x.v[i]))));
}
TL_INLINE v16 v16_load_f32(const void *p) {
    const uint8_t *q = p;
    V16_NEON(vreinterpretq_f32_u8(vld1q_u8(q + 16 * i)));
}
TL_INLINE v16 v16_load_f16(const void *p) {
    const uint8_t *q = p;
    V16_NEON(quarter_halves(vreinterpret_u16_u8(vld1_u8(q + 8 * i))));
}
TL_INLINE v16 v16_load_bf16(const void *p) {
    const uint8_t *q = p;
    V16_NEON(
        vreinterpretq_f32_u32(vshlq_n_u32(vmovl_u16(vreinterpret_u16_u8(vld1_u8(q + 8 * i))), 16)));
}
TL_INLINE v16d v16d_load(const double *p) {
    V16D_NEON(vld1q_f64(p + 2 * i));
}
TL_INLINE void v16d_store(double *p, v16d x) {
    for (int i = 0; i < 8; i++) vst1q_f64(p + 2 * i, x.v[i]);
}
TL_INLINE v16d v16d_set1(double x) {
    V16D_NEON(vdupq_n_f64(x));
}
TL_INLINE v16d v16d_mul(v16d x, v16d y) {
    V16D_NEON(vmulq_f64(x.v[i], y.v[i]));
}
TL_INLINE v16d v16d_fma(v16d x, v16d y, v16d z) {
    V16D_NEON(vfmaq_f64(z.v[i], x.v[i], y.v[i]));
}
TL_INLINE float64x2_t pair_from_i32(int32x2_t x) {
    return vcvtq_f64_s64(vmovl_s32(x));
}
TL_INLINE v16d v16d_from_i32(v16i x) {
    V16D_NEON(pair_from_i32(i % 2 ? vget_high_s32(x.v[i / 2]) : vget_low_s32(x.v[i / 2])));
}
TL_INLINE v16d v16d_from_f32(v16 x) {
    V16D_NEON(vcvt_f64_f32(i % 2 ? vget_high_f32(x.v[i / 2]) : vget_low_f32(x.v[i / 2])));
}
TL_INLINE v16 v16_from_f64(v16d x) {
    V16_NEON(vcombine_f32(vcvt_f32_f64(x.v[2 * i]), vcvt_f32_f64(x.v[2 * i + 1])));
}

#endif

#ifndef TL_OFFSET_Q8_0
#define TL_OFFSET_Q8_0 (-1) // bytes cannot do it: Q8_0 goes through int16
#endif

#if TL_SIMD == TL_SIMD_SCALAR // only what the float kernels need

TL_INLINE v16 v16_load_f32(const void *p) {
    v16 r;
    memcpy(r.v, p, sizeof(r.v));
    return r;
}
TL_INLINE v16 v16_load_f16(const void *p) {
    const char *q = p;
    v16 r;
    for (int i = 0; i < 16; i++) {
        uint16_t h;
        uint32_t bits;
        memcpy(&h, q + 2 * i, 2);
        bits = (h & 0x7fffu) << 13;
        memcpy(&r.v[i], &bits, 4);
        r.v[i] *= 0x1p112f; // exact, for denormals too
        memcpy(&bits, &r.v[i], 4);
        bits |= (h & 0x8000u) << 16 | ((h & 0x7c00u) == 0x7c00u ? 0x7f800000u : 0u);
        memcpy(&r.v[i], &bits, 4);
    }
    return r;
}
TL_INLINE v16 v16_load_bf16(const void *p) {
    const char *q = p;
    v16 r;
    for (int i = 0; i < 16; i++) {
        uint16_t h;
        uint32_t bits;
        memcpy(&h, q + 2 * i, 2);
        bits = (uint32_t)h << 16;
        memcpy(&r.v[i], &bits, 4);
    }
    return r;
}

#endif
