/*
 * simde_missing.h - the intrinsics for a build with SIMDe 0.7.4. Adds those that it lacks, and
 * replaces those that round in another way than the processor. run_simde.sh includes this
 * before everything else.
 */
#include <math.h>
#include <string.h>

#include <simde/arm/neon.h>
#include <simde/x86/avx512.h>
#include <simde/x86/f16c.h>
#include <simde/x86/fma.h>

#ifndef _MM_FROUND_NO_EXC
#define _MM_FROUND_NO_EXC SIMDE_MM_FROUND_NO_EXC
#endif

/* to[i] = expression, lane by lane; x, y, z are the arguments' lanes. */
#define TL_EACH_1(name, result, argument, to, n, expression)                                       \
    static inline result name(argument a) {                                                        \
        argument##_private x = argument##_to_private(a);                                           \
        result##_private r;                                                                        \
        for (int i = 0; i < (n); i++) r.to[i] = (expression);                                      \
        return result##_from_private(r);                                                           \
    }
#define TL_EACH_2(name, type, lanes, n, expression)                                                \
    static inline type name(type a, type b) {                                                      \
        type##_private x = type##_to_private(a), y = type##_to_private(b), r;                      \
        for (int i = 0; i < (n); i++) r.lanes[i] = (expression);                                   \
        return type##_from_private(r);                                                             \
    }
#define TL_EACH_3(name, type, lanes, n, expression)                                                \
    static inline type name(type a, type b, type c) {                                              \
        type##_private x = type##_to_private(a), y = type##_to_private(b);                         \
        type##_private z = type##_to_private(c), r;                                                \
        for (int i = 0; i < (n); i++) r.lanes[i] = (expression);                                   \
        return type##_from_private(r);                                                             \
    }

/* ---- rounding to the nearest integer, ties to even: SIMDe rounds them away from zero ---- */

TL_EACH_1(tl_round_256, simde__m256, simde__m256, f32, 8, nearbyintf(x.f32[i]))
#undef _mm256_round_ps
#define _mm256_round_ps(a, mode) tl_round_256(a)

/* ---- fused multiply and add: one rounding ---- */

typedef simde_float32x4_t simde_float32x4;
typedef simde_float64x2_t simde_float64x2;

TL_EACH_3(tl_fma_256, simde__m256, f32, 8, fmaf(x.f32[i], y.f32[i], z.f32[i]))
TL_EACH_3(tl_fma_256d, simde__m256d, f64, 4, fma(x.f64[i], y.f64[i], z.f64[i]))
TL_EACH_3(tl_fma_512, simde__m512, f32, 16, fmaf(x.f32[i], y.f32[i], z.f32[i]))
TL_EACH_3(tl_fma_512d, simde__m512d, f64, 8, fma(x.f64[i], y.f64[i], z.f64[i]))
TL_EACH_3(tl_vfma, simde_float32x4, values, 4, fmaf(y.values[i], z.values[i], x.values[i]))
TL_EACH_3(tl_vfma_64, simde_float64x2, values, 2, fma(y.values[i], z.values[i], x.values[i]))
#undef _mm256_fmadd_ps
#undef _mm256_fmadd_pd
#undef _mm512_fmadd_ps
#undef _mm512_fmadd_pd
#undef vfmaq_f32
#undef vfmaq_f64
#define _mm256_fmadd_ps tl_fma_256
#define _mm256_fmadd_pd tl_fma_256d
#define _mm512_fmadd_ps tl_fma_512
#define _mm512_fmadd_pd tl_fma_512d
#define vfmaq_f32 tl_vfma
#define vfmaq_f64 tl_vfma_64

/* ---- missing ---- */

TL_EACH_2(tl_vdiv, simde_float32x4, values, 4, x.values[i] / y.values[i])
#define vdivq_f32 tl_vdiv

TL_EACH_2(tl_madd_epi16, simde__m512i, i32, 16,
          x.i16[2 * i] * y.i16[2 * i] + x.i16[2 * i + 1] * y.i16[2 * i + 1])
#undef _mm512_madd_epi16
#define _mm512_madd_epi16 tl_madd_epi16

static inline simde__m512i tl_srai_epi32(simde__m512i a, unsigned n) {
    simde__m512i_private x = simde__m512i_to_private(a);
    for (int i = 0; i < 16; i++) x.i32[i] >>= n;
    return simde__m512i_from_private(x);
}
#define _mm512_srai_epi32 tl_srai_epi32

static inline simde__m512 tl_cvtph_ps(simde__m256i a) {
    simde__m256i_private x = simde__m256i_to_private(a);
    simde__m512_private r;
    for (int i = 0; i < 2; i++) r.m256[i] = simde_mm256_cvtph_ps(x.m128i[i]);
    return simde__m512_from_private(r);
}
#define _mm512_cvtph_ps tl_cvtph_ps

TL_EACH_1(tl_cvtps_epi32, simde__m512i, simde__m512, i32, 16, (int32_t)nearbyintf(x.f32[i]))
TL_EACH_1(tl_cvtepi32_epi16, simde__m256i, simde__m512i, i16, 16, (int16_t)x.i32[i])
TL_EACH_1(tl_cvtepi32_pd, simde__m512d, simde__m256i, f64, 8, x.i32[i])
TL_EACH_1(tl_cvtepi32_ps, simde__m512, simde__m512i, f32, 16, (float)x.i32[i])
TL_EACH_1(tl_cvtepu16_epi32, simde__m512i, simde__m256i, i32, 16, x.u16[i])
TL_EACH_1(tl_cvtepi8_epi32, simde__m512i, simde__m128i, i32, 16, x.i8[i])
TL_EACH_1(tl_cvtpd_ps, simde__m256, simde__m512d, f32, 8, (float)x.f64[i])
TL_EACH_1(tl_cvtps_pd, simde__m512d, simde__m256, f64, 8, (double)x.f32[i])
#define _mm512_cvtps_epi32 tl_cvtps_epi32
#define _mm512_cvtepi32_epi16 tl_cvtepi32_epi16
#define _mm512_cvtepi32_pd tl_cvtepi32_pd
#define _mm512_cvtepi32_ps tl_cvtepi32_ps
#define _mm512_cvtepu16_epi32 tl_cvtepu16_epi32
#define _mm512_cvtepi8_epi32 tl_cvtepi8_epi32
#define _mm512_cvtpd_ps tl_cvtpd_ps
#define _mm512_cvtps_pd tl_cvtps_pd
#define _mm512_extractf32x8_ps(a, i) (simde__m512_to_private(a).m256[i])

/* ---- bfloat16: subnormal numbers count as zero, each product is added with one rounding ---- */

static inline float tl_flush(float x) {
    return isnormal(x) || !isfinite(x) ? x : copysignf(0, x);
}

static inline float tl_from_bf16(uint32_t bits) {
    float x;
    bits <<= 16;
    memcpy(&x, &bits, sizeof(x));
    return tl_flush(x);
}

static inline simde__m512 tl_dpbf16_ps(simde__m512 s, simde__m512bh w, simde__m512bh x) {
    simde__m512_private r = simde__m512_to_private(s);
    uint32_t a[16], b[16];
    memcpy(a, &w, sizeof(a));
    memcpy(b, &x, sizeof(b));
    for (int i = 0; i < 16; i++) {
        float high = tl_from_bf16(a[i] >> 16), low = tl_from_bf16(a[i] & 0xffff);
        float sum = tl_flush(fmaf(high, tl_from_bf16(b[i] >> 16), tl_flush(r.f32[i])));
        r.f32[i] = tl_flush(fmaf(low, tl_from_bf16(b[i] & 0xffff), sum));
    }
    return simde__m512_from_private(r);
}
#undef _mm512_dpbf16_ps
#define _mm512_dpbf16_ps tl_dpbf16_ps

static inline simde__m512bh tl_cvtne2ps_pbh(simde__m512 high, simde__m512 low) {
    const float *x[2] = {(const float *)&low, (const float *)&high};
    uint16_t to[32];
    simde__m512bh out;
    for (int i = 0; i < 32; i++) {
        const float from = tl_flush(x[i / 16][i % 16]);
        uint32_t bits;
        memcpy(&bits, &from, sizeof(bits));
        bits = isnan(from) ? bits | 0x400000 : bits + 0x7fff + (bits >> 16 & 1);
        to[i] = (uint16_t)(bits >> 16);
    }
    memcpy(&out, to, sizeof(out));
    return out;
}
#undef _mm512_cvtne2ps_pbh
#define _mm512_cvtne2ps_pbh tl_cvtne2ps_pbh

/* ---- AMX: the tile registers of this thread ---- */

struct tl_shapes {
    uint8_t palette, start, zeros[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
};

static _Thread_local struct tl_shapes tl_shapes;
static _Thread_local int8_t tl_tiles[8][16][64];

static inline void tl_tile_config(const void *shapes) {
    memcpy(&tl_shapes, shapes, sizeof(tl_shapes));
    memset(tl_tiles, 0, sizeof(tl_tiles));
}

static inline void tl_tile_release(void) {
    memset(&tl_shapes, 0, sizeof(tl_shapes)); // a tile without rows loads and stores nothing
}

static inline void tl_tile_load(int tile, const void *from, size_t stride) {
    memset(tl_tiles[tile], 0, sizeof(tl_tiles[tile]));
    for (size_t r = 0; r < tl_shapes.rows[tile]; r++) {
        memcpy(tl_tiles[tile][r], (const char *)from + r * stride, tl_shapes.row_bytes[tile]);
    }
}

static inline void tl_tile_store(int tile, void *to, size_t stride) {
    for (size_t r = 0; r < tl_shapes.rows[tile]; r++) {
        memcpy((char *)to + r * stride, tl_tiles[tile][r], tl_shapes.row_bytes[tile]);
    }
}

static inline void tl_tile_dot(int sum, int a, int b) {
    for (int i = 0; i < tl_shapes.rows[sum]; i++) {
        int32_t row[16];
        memcpy(row, tl_tiles[sum][i], sizeof(row));
        for (int k = 0; k < tl_shapes.row_bytes[a]; k++) {
            for (int j = 0; j < 16; j++) {
                row[j] += tl_tiles[a][i][k] * tl_tiles[b][k / 4][4 * j + k % 4];
            }
        }
        memcpy(tl_tiles[sum][i], row, sizeof(row));
    }
}

#define _tile_loadconfig tl_tile_config
#define _tile_release tl_tile_release
#define _tile_zero(tile) memset(tl_tiles[tile], 0, sizeof(tl_tiles[tile]))
#define _tile_loadd tl_tile_load
#define _tile_stored tl_tile_store
#define _tile_dpbssd tl_tile_dot
