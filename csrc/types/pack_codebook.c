/*
 * pack_codebook.c - the types whose nibbles are indices of a table: IQ4_NL, IQ4_XS, MXFP4 and
 * NVFP4.
 *
 * Block layouts: ggml-common.h of ggml. The scale of MXFP4 is a power of two: OCP Microscaling
 * Formats (MX) Specification 1.0, section 6.3, leaves the choice of it to the writer.
 */
#include "types/pack.h"

#include "base/load.h"
#include "base/store.h"
#include "types/lanes.h"
#include "types/pack_k.h"
#include "types/unpack.h"

#include <string.h>

/* tl_codebook_iq4: the middles between two values, and their differences. */
static const float iq4_at[15] = {-115.5f, -93.5f, -74,   -57,   -42, -28.5f, -16, -4.5f,
                                 7,       19,     31.5f, 45.5f, 61,  79,     101};
static const float iq4_rise[15] = {23, 21, 18, 16, 14, 13, 12, 11, 12, 12, 13, 15, 16, 20, 24};
static const struct tl_levels iq4_levels = {-127, 113, 0.24f, 0.08f, 6, iq4_at, iq4_rise, 15};

/* The values of tl_codebook_mxfp4 in ascending order. */
static const float mxfp4_at[14] = {-10,  -7,   -5,   -3.5f, -2.5f, -1.5f, -0.5f,
                                   0.5f, 1.5f, 2.5f, 3.5f,  5,     7,     10};
static const float mxfp4_rise[14] = {4, 2, 2, 1, 1, 1, 1, 1, 1, 1, 1, 2, 2, 4};
static const struct tl_levels mxfp4_levels = {-12, 12, 0, 0, 0, mxfp4_at, mxfp4_rise, 14};

/* n values of a codebook as nibbles: the first half are the low ones. */
static void store_indices(const int8_t *table, const int8_t *q, int n, uint8_t *dst) {
    uint8_t index[256];
    for (int k = 15; k >= 0; k--) index[(uint8_t)table[k]] = (uint8_t)k; // of two zeros, the first
    for (int i = 0; i < n / 2; i++) {
        dst[i] = (uint8_t)(index[(uint8_t)q[i]] | index[(uint8_t)q[i + n / 2]] << 4);
    }
}

void tl_pack_iq4_nl(const float *x, const float *weight, size_t blocks, uint8_t *dst) {
    struct tl_lanes s;
    float scale[TL_LANES];
    int8_t q[TL_CHUNK];
    uint16_t d[8];
    tl_lanes_load(&s, x, weight, blocks * 32, true);
    if (weight == NULL) tl_lanes_stress(&s);
    tl_lanes_scales(&s, &iq4_levels, scale);
    for (int b = 0; b < 8; b++) {
        d[b] = tl_f32_to_f16_scale(scale[b]);
        scale[b] = scale[b + 8] = tl_f16_to_f32(d[b]);
    }
    tl_lanes_round(&s, &iq4_levels, scale, q);
    for (size_t b = 0; b < blocks; b++, dst += 18) {
        tl_store_u16(dst, d[b]);
        store_indices(tl_codebook_iq4, q + 32 * b, 32, dst + 2);
    }
}

void tl_pack_iq4_xs(const float *x, const float *weight, size_t blocks, uint8_t *dst) {
    struct tl_lanes s;
    float scale[TL_LANES], d;
    int8_t q[TL_CHUNK];
    int sub[TL_LANES];
    uint32_t low = 0, high = 0;
    if (blocks == 0) return;
    tl_lanes_load(&s, x, weight, TL_CHUNK, true);
    tl_fit_sub_scales(&s, &iq4_levels, -32, 31, &d, sub);
    for (int l = 0; l < TL_LANES; l++) scale[l] = d * (float)sub[l];
    tl_lanes_round(&s, &iq4_levels, scale, q);
    d *= tl_grow(&s, scale, NULL, q);
    tl_store_u16(dst, tl_f32_to_f16_scale(d));
    for (int b = 0; b < 8; b++) {
        const uint32_t value = (uint32_t)(sub[b] + 32);
        low |= (value & 15) << 4 * b;
        high |= value >> 4 << 2 * b;
        store_indices(tl_codebook_iq4, q + 32 * b, 32, dst + 8 + 16 * b);
    }
    tl_store_u16(dst + 2, high);
    tl_store_u32(dst + 4, low);
}

/* 2^e for -126 <= e <= 127. */
static float power_of_two(int e) {
    const uint32_t bits = (uint32_t)(e + 127) << 23;
    float x;
    memcpy(&x, &bits, sizeof(x));
    return x;
}

/* The exponent of a float; -127 for zero and subnormal ones. */
static int exponent_of(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof(bits));
    return (int)(bits >> 23 & 255) - 127;
}

void tl_pack_mxfp4(const float *x, const float *weight, size_t blocks, uint8_t *dst) {
    struct tl_lanes s;
    float scaled[TL_CHUNK], best[TL_LANES] = {0}, chosen[TL_LANES];
    int exponent[8] = {0};
    int8_t q[TL_CHUNK];
    // Scaled so that the largest value of a block is in [4, 8): far from overflow.
    for (size_t b = 0; b < blocks; b++) {
        float most = 0;
        int shift;
        for (int i = 0; i < 32; i++) {
            const float a = x[32 * b + i] < 0 ? -x[32 * b + i] : x[32 * b + i];
            most = a > most ? a : most;
        }
        exponent[b] = exponent_of(most) - 2;
        shift = -exponent[b];
        for (int i = 0; i < 32; i++) {
            float y = x[32 * b + i];
            if (shift > 100) y *= 0x1p100f; // 2^shift itself may be too large for a float
            scaled[32 * b + i] = y * power_of_two(shift > 100 ? shift - 100 : shift);
        }
    }
    tl_lanes_load(&s, scaled, weight, blocks * 32, true);
    for (int k = 0; k < 3; k++) {
        // The levels are twice the values of a float with four bits.
        float scale[TL_LANES], xq[TL_LANES], qq[TL_LANES];
        for (int l = 0; l < TL_LANES; l++) scale[l] = power_of_two(k - 2);
        tl_lanes_sums(&s, &mxfp4_levels, scale, xq, qq);
        for (int l = 0; l < TL_LANES; l++) {
            const float error = scale[l] * (scale[l] * qq[l] - 2 * xq[l]);
            if (k == 0 || error < best[l]) {
                best[l] = error;
                chosen[l] = scale[l];
            }
        }
    }
    // A block whose scale is outside the range takes the nearest scale.
    for (size_t b = 0; b < blocks; b++) {
        const int wanted = exponent_of(chosen[b]) + 1 + exponent[b];
        const int stored = wanted < -127 ? -127 : wanted > 127 ? 127 : wanted;
        const int k = exponent_of(chosen[b]) + (stored - wanted);
        chosen[b] = chosen[b + 8] = power_of_two(k < -126 ? -126 : k > 127 ? 127 : k);
        exponent[b] = stored;
    }
    tl_lanes_round(&s, &mxfp4_levels, chosen, q);
    for (size_t b = 0; b < blocks; b++, dst += 17) {
        dst[0] = (uint8_t)(exponent[b] + 127);
        store_indices(tl_codebook_mxfp4, q + 32 * b, 32, dst + 1);
    }
}

/* The last scale is 126: 127 is not a number. */
#define LAST_SCALE 126

/* The smallest scale of which 12 times are at least the largest value of a group. */
static int covering_scale(const float *x) {
    float most = 0;
    int code = 0;
    for (int i = 0; i < 16; i++) {
        const float a = x[i] < 0 ? -x[i] : x[i];
        most = a > most ? a : most;
    }
    while (code < LAST_SCALE && 12 * tl_half_of_e4m3((uint8_t)code) < most) code++;
    return code;
}

/* A scale has eight steps to twice its size, so all that can be the best are tried. */
void tl_pack_nvfp4(const float *x, const float *weight, size_t blocks, uint8_t *dst) {
    struct tl_lanes s;
    float best[TL_LANES] = {0}, scale[TL_LANES] = {0};
    int middle[TL_LANES] = {0};
    uint8_t code[TL_LANES] = {0};
    int8_t q[TL_CHUNK];
    tl_lanes_load(&s, x, weight, blocks * 64, false);
    for (size_t l = 0; l < 4 * blocks; l++) middle[l] = covering_scale(x + 16 * l);
    for (int k = -10; k <= 6; k++) {
        float tried[TL_LANES], xq[TL_LANES], qq[TL_LANES];
        for (int l = 0; l < TL_LANES; l++) {
            const int c = TL_MIN(TL_MAX(middle[l] + k, 0), LAST_SCALE);
            tried[l] = tl_half_of_e4m3((uint8_t)c);
        }
        tl_lanes_sums(&s, &mxfp4_levels, tried, xq, qq);
        for (int l = 0; l < TL_LANES; l++) {
            const float error = tried[l] * (tried[l] * qq[l] - 2 * xq[l]);
            if (error < best[l]) {
                best[l] = error;
                scale[l] = tried[l];
                code[l] = (uint8_t)TL_MIN(TL_MAX(middle[l] + k, 0), LAST_SCALE);
            }
        }
    }
    tl_lanes_round(&s, &mxfp4_levels, scale, q);
    for (size_t l = 0; l < 4 * blocks; l++) {
        uint8_t *block = dst + l / 4 * 36;
        block[l % 4] = code[l];
        store_indices(tl_codebook_mxfp4, q + 16 * l, 16, block + 4 + l % 4 * 8);
    }
}
