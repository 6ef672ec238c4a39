/*
 * simd.h - sixteen float32 lanes, the width in which docs/numerics.md defines every sum.
 *
 * Included after TL_SIMD is defined as one of the flavours below, inside a target region; may be
 * included once per file. On every flavour a lane computes the same correctly rounded operation,
 * so a template written on v16 has the same bits everywhere. TL_SIMDE: a test build in which
 * tests/c/simde_missing.h, included first, defines the intrinsics.
 */
#include <math.h>
#include <string.h>

#define TL_SIMD_SCALAR 0
#define TL_SIMD_AVX2 1
#define TL_SIMD_AVX512 2
#define TL_SIMD_NEON 3

#if TL_SIMD == TL_SIMD_AVX2

#ifndef TL_SIMDE
#include <immintrin.h>
#endif

#define TL_ATTN_QUERIES 6 // attention tile: 12 accumulators of 8 lanes
#define TL_ATTN_KEYS 1

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
/* lanes 2 j and 2 j + 1 change places */
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

/* sixteen float64 lanes: only sums */
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

#elif TL_SIMD == TL_SIMD_AVX512

#ifndef TL_SIMDE
#include <immintrin.h>
#endif

#define TL_ATTN_QUERIES 6
#define TL_ATTN_KEYS 4 // 24 accumulators

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
/* lanes 2 j and 2 j + 1 change places */
TL_INLINE v16 v16_swap_pairs(v16 x) {
    return _mm512_shuffle_ps(x, x, 0xb1);
}
/* 2^n as float32, where x = n + 1.5 * 2^23 and -126 <= n <= 127 */
TL_INLINE v16 v16_pow2(v16 x) {
    __m512i bits = _mm512_slli_epi32(_mm512_castps_si512(x), 23);
    return _mm512_castsi512_ps(_mm512_add_epi32(bits, _mm512_set1_epi32(0x3f800000)));
}

/* sixteen float64 lanes: only sums */
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

#elif TL_SIMD == TL_SIMD_NEON

#ifndef TL_SIMDE
#include <arm_neon.h>
#endif

#define TL_ATTN_QUERIES 6
#define TL_ATTN_KEYS 1

typedef struct {
    float32x4_t v[4];
} v16;

#define V16_NEON(expression)                                                                       \
    v16 r;                                                                                         \
    for (int i = 0; i < 4; i++) r.v[i] = (expression);                                             \
    return r

TL_INLINE v16 v16_add(v16 x, v16 y) {
    V16_NEON(vaddq_f32(x.v[i], y.v[i]));
}
TL_INLINE v16 v16_sub(v16 x, v16 y) {
    V16_NEON(vsubq_f32(x.v[i], y.v[i]));
}
TL_INLINE v16 v16_mul(v16 x, v16 y) {
    V16_NEON(vmulq_f32(x.v[i], y.v[i]));
}
TL_INLINE v16 v16_div(v16 x, v16 y) {
    V16_NEON(vdivq_f32(x.v[i], y.v[i]));
}
TL_INLINE v16 v16_max(v16 x, v16 y) { // x > y ? x : y
    V16_NEON(vbslq_f32(vcgtq_f32(x.v[i], y.v[i]), x.v[i], y.v[i]));
}
TL_INLINE v16 v16_load(const float *p) {
    V16_NEON(vld1q_f32(p + 4 * i));
}
TL_INLINE void v16_store(float *p, v16 x) {
    for (int i = 0; i < 4; i++) vst1q_f32(p + 4 * i, x.v[i]);
}
TL_INLINE v16 v16_set1(float x) {
    V16_NEON(vdupq_n_f32(x));
}
TL_INLINE v16 v16_fma(v16 x, v16 y, v16 z) {
    V16_NEON(vfmaq_f32(z.v[i], x.v[i], y.v[i]));
}
/* x < limit ? then : otherwise (otherwise for NaN) */
TL_INLINE v16 v16_if_less(v16 x, v16 limit, v16 then, v16 otherwise) {
    V16_NEON(vbslq_f32(vcltq_f32(x.v[i], limit.v[i]), then.v[i], otherwise.v[i]));
}
/* to the nearest integer, ties to even */
TL_INLINE v16 v16_rint(v16 x) {
    V16_NEON(vrndnq_f32(x.v[i]));
}
/* lanes 2 j and 2 j + 1 change places */
TL_INLINE v16 v16_swap_pairs(v16 x) {
    V16_NEON(vrev64q_f32(x.v[i]));
}
/* 2^n as float32, where x = n + 1.5 * 2^23 and -126 <= n <= 127 */
TL_INLINE v16 v16_pow2(v16 x) {
    V16_NEON(vreinterpretq_f32_s32(
        vaddq_s32(vshlq_n_s32(vreinterpretq_s32_f32(x.v[i]), 23), vdupq_n_s32(0x3f800000))));
}

/* sixteen float64 lanes: only sums */
typedef struct {
    float64x2_t v[8];
} d16;
TL_INLINE d16 d16_zero(void) {
    d16 r;
    for (int i = 0; i < 8; i++) r.v[i] = vdupq_n_f64(0.0);
    return r;
}
TL_INLINE d16 d16_add(d16 sum, v16 x) {
    for (int i = 0; i < 4; i++) {
        sum.v[2 * i] = vaddq_f64(sum.v[2 * i], vcvt_f64_f32(vget_low_f32(x.v[i])));
        sum.v[2 * i + 1] = vaddq_f64(sum.v[2 * i + 1], vcvt_f64_f32(vget_high_f32(x.v[i])));
    }
    return sum;
}
TL_INLINE void d16_store(double *p, d16 x) {
    for (int i = 0; i < 8; i++) vst1q_f64(p + 2 * i, x.v[i]);
}

#else // TL_SIMD_SCALAR

#define TL_ATTN_QUERIES 4
#define TL_ATTN_KEYS 1

typedef struct {
    float v[16];
} v16;

#define V16_EACH(expression)                                                                       \
    v16 r;                                                                                         \
    for (int i = 0; i < 16; i++) r.v[i] = (expression);                                            \
    return r

TL_INLINE v16 v16_add(v16 x, v16 y) {
    V16_EACH(x.v[i] + y.v[i]);
}
TL_INLINE v16 v16_sub(v16 x, v16 y) {
    V16_EACH(x.v[i] - y.v[i]);
}
TL_INLINE v16 v16_mul(v16 x, v16 y) {
    V16_EACH(x.v[i] * y.v[i]);
}
TL_INLINE v16 v16_div(v16 x, v16 y) {
    V16_EACH(x.v[i] / y.v[i]);
}
TL_INLINE v16 v16_max(v16 x, v16 y) {
    V16_EACH(x.v[i] > y.v[i] ? x.v[i] : y.v[i]);
}
TL_INLINE v16 v16_load(const float *p) {
    V16_EACH(p[i]);
}
TL_INLINE void v16_store(float *p, v16 x) {
    memcpy(p, x.v, sizeof(x.v));
}
TL_INLINE v16 v16_set1(float x) {
    V16_EACH(x);
}
TL_INLINE v16 v16_fma(v16 x, v16 y, v16 z) {
    V16_EACH(fmaf(x.v[i], y.v[i], z.v[i]));
}
/* x < limit ? then : otherwise (otherwise for NaN) */
TL_INLINE v16 v16_if_less(v16 x, v16 limit, v16 then, v16 otherwise) {
    V16_EACH(x.v[i] < limit.v[i] ? then.v[i] : otherwise.v[i]);
}
/* 2^n as float32, where x = n + 1.5 * 2^23 and -126 <= n <= 127 */
TL_INLINE v16 v16_pow2(v16 x) {
    v16 r;
    for (int i = 0; i < 16; i++) {
        uint32_t bits;
        memcpy(&bits, &x.v[i], 4);
        bits = (bits << 23) + 0x3f800000u;
        memcpy(&r.v[i], &bits, 4);
    }
    return r;
}

/* sixteen float64 lanes: only sums */
typedef struct {
    double v[16];
} d16;
TL_INLINE d16 d16_zero(void) {
    return (d16){{0}};
}
TL_INLINE d16 d16_add(d16 sum, v16 x) {
    for (int i = 0; i < 16; i++) sum.v[i] += (double)x.v[i];
    return sum;
}
TL_INLINE void d16_store(double *p, d16 x) {
    memcpy(p, x.v, sizeof(x.v));
}

#endif
