/*
 * simde_missing.h - intrinsics that SIMDe 0.7.4 does not have, from those that it has.
 * Included before everything else by run_simde.sh.
 */
#include <math.h>

#include <simde/arm/neon.h>
#include <simde/x86/avx512.h>
#include <simde/x86/f16c.h>

#define vdivq_f32 tl_vdivq_f32
static inline simde_float32x4_t tl_vdivq_f32(simde_float32x4_t a, simde_float32x4_t b) {
    simde_float32x4_private x = simde_float32x4_to_private(a), y = simde_float32x4_to_private(b);
    for (int i = 0; i < 4; i++) x.values[i] /= y.values[i];
    return simde_float32x4_from_private(x);
}

/* 512-bit operations as two of 256 bits. */
#define TL_HALVES(name, half, ...)                                                                 \
    static inline simde__m512i name(simde__m512i a, simde__m512i b) {                              \
        simde__m512i_private x = simde__m512i_to_private(a), y = simde__m512i_to_private(b);       \
        (void)y;                                                                                   \
        for (int i = 0; i < 2; i++) x.m256i[i] = half(x.m256i[i] __VA_ARGS__);                     \
        return simde__m512i_from_private(x);                                                       \
    }
TL_HALVES(tl_madd_epi16, simde_mm256_madd_epi16, , y.m256i[i])
#undef _mm512_madd_epi16
#define _mm512_madd_epi16 tl_madd_epi16

static inline simde__m512i tl_srai_epi32(simde__m512i a, unsigned n) {
    simde__m512i_private x = simde__m512i_to_private(a);
    for (int i = 0; i < 16; i++) x.i32[i] >>= n;
    return simde__m512i_from_private(x);
}
#undef _mm512_srai_epi32
#define _mm512_srai_epi32 tl_srai_epi32

static inline simde__m512i tl_cvtps_epi32(simde__m512 a) {
    simde__m512_private x = simde__m512_to_private(a);
    simde__m512i_private r;
    for (int i = 0; i < 2; i++) r.m256i[i] = simde_mm256_cvtps_epi32(x.m256[i]);
    return simde__m512i_from_private(r);
}
#undef _mm512_cvtps_epi32
#define _mm512_cvtps_epi32 tl_cvtps_epi32

static inline simde__m512 tl_cvtph_ps(simde__m256i a) {
    simde__m256i_private x = simde__m256i_to_private(a);
    simde__m512_private r;
    for (int i = 0; i < 2; i++) r.m256[i] = simde_mm256_cvtph_ps(x.m128i[i]);
    return simde__m512_from_private(r);
}
#undef _mm512_cvtph_ps
#define _mm512_cvtph_ps tl_cvtph_ps

static inline simde__m256i tl_cvtepi32_epi16(simde__m512i a) {
    simde__m512i_private x = simde__m512i_to_private(a);
    simde__m256i_private r;
    for (int i = 0; i < 16; i++) r.i16[i] = (int16_t)x.i32[i];
    return simde__m256i_from_private(r);
}
#undef _mm512_cvtepi32_epi16
#define _mm512_cvtepi32_epi16 tl_cvtepi32_epi16

/* lane by lane */
#define TL_EACH(name, result, argument, to, from, n, expression)                                   \
    static inline result name(argument a) {                                                        \
        argument##_private x = argument##_to_private(a);                                           \
        result##_private r;                                                                        \
        for (int i = 0; i < (n); i++) to[i] = (expression)from[i];                                 \
        return result##_from_private(r);                                                           \
    }
TL_EACH(tl_cvtepi32_pd, simde__m512d, simde__m256i, r.f64, x.i32, 8, double)
TL_EACH(tl_cvtepi32_ps, simde__m512, simde__m512i, r.f32, x.i32, 16, float)
TL_EACH(tl_cvtepu16_epi32, simde__m512i, simde__m256i, r.i32, x.u16, 16, int32_t)
TL_EACH(tl_cvtpd_ps, simde__m256, simde__m512d, r.f32, x.f64, 8, float)
TL_EACH(tl_cvtps_pd, simde__m512d, simde__m256, r.f64, x.f32, 8, double)
#undef _mm512_cvtepi32_pd
#undef _mm512_cvtepi32_ps
#undef _mm512_cvtepu16_epi32
#undef _mm512_cvtpd_ps
#undef _mm512_cvtps_pd
#undef _mm512_extractf32x8_ps
#define _mm512_cvtepi32_pd tl_cvtepi32_pd
#define _mm512_cvtepi32_ps tl_cvtepi32_ps
#define _mm512_cvtepu16_epi32 tl_cvtepu16_epi32
#define _mm512_cvtpd_ps tl_cvtpd_ps
#define _mm512_cvtps_pd tl_cvtps_pd
#define _mm512_extractf32x8_ps(a, i) (simde__m512_to_private(a).m256[i])
