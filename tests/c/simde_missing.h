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
