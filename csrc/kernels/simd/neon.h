/* neon.h - 128-bit vectors of aarch64, four for sixteen lanes, and dot products of four bytes. */
#ifndef TL_SIMD_NEON_H
#define TL_SIMD_NEON_H

#include "kernels/simd/simd.h"

#ifndef TL_SIMDE
#include <arm_neon.h>
#endif

#define ATTN_QUERIES 6
#define ATTN_KEYS 1
#define FLOAT_TOKENS 6
#define FLOAT_VECTORS 1
#define PANEL_VECTORS 1
#define PREFETCH_BYTES 1024
#define INT8_OFFSET 0 // signed times signed
#define SCALED_WORDS 0

/* ---- float32 and float64 ---- */

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
V16_PART_BY_COPY
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
/* swaps lanes 2 j and 2 j + 1 */
TL_INLINE v16 v16_swap_pairs(v16 x) {
    V16_NEON(vrev64q_f32(x.v[i]));
}
/* 2^n as float32, where x = n + 1.5 * 2^23 and -126 <= n <= 127 */
TL_INLINE v16 v16_pow2(v16 x) {
    V16_NEON(vreinterpretq_f32_s32(
        vaddq_s32(vshlq_n_s32(vreinterpretq_s32_f32(x.v[i]), 23), vdupq_n_s32(0x3f800000))));
}

/* sixteen float64 lanes, for sums only */
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

/* ---- integers ---- */

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
TL_INLINE v16i v16i_table(const void *p) {
    const int32x4_t table = vreinterpretq_s32_u8(vld1q_u8(p));
    V16I_NEON(table);
}
TL_INLINE int32x4_t quarter_look_up(int32x4_t table, int32x4_t x) {
    return vreinterpretq_s32_u8(vqtbl1q_u8(vreinterpretq_u8_s32(table), vreinterpretq_u8_s32(x)));
}
TL_INLINE v16i v16i_look_up(v16i table, v16i x) {
    V16I_NEON(quarter_look_up(table.v[i], x.v[i]));
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
/* Transposes four rows of four dwords. */
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
/* Loads and transposes 16 bytes of 16 rows: x[i] holds dword i of each row. */
TL_INLINE void v16i_load_16_bytes(const struct rows *row, size_t at, v16i x[4]) {
    for (int q = 0; q < 4; q++) {
        int32x4_t part[4];
        for (int i = 0; i < 4; i++)
            part[i] = vreinterpretq_s32_u8(vld1q_u8(row_at(row, 4 * q + i, at)));
        transpose_4(part);
        for (int i = 0; i < 4; i++) x[i].v[q] = part[i];
    }
}
/* Loads and transposes 32 bytes of 16 rows: x[i] holds dword i of each row. */
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
TL_INLINE v16 v16_load_i8(const void *p) {
    const int8x16_t q = vld1q_s8(p);
    const int16x8_t low = vmovl_s8(vget_low_s8(q)), high = vmovl_s8(vget_high_s8(q));
    const int32x4_t part[4] = {vmovl_s16(vget_low_s16(low)), vmovl_s16(vget_high_s16(low)),
                               vmovl_s16(vget_low_s16(high)), vmovl_s16(vget_high_s16(high))};
    V16_NEON(vcvtq_f32_s32(part[i]));
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
