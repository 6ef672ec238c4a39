/*
 * pack_legacy.c - the float types, and those with one float scale for each 32 values.
 *
 * Block layouts: ggml-common.h of ggml. Q8_0 has the bytes of ggml's quantize_row_q8_0_ref. The
 * others are searched for the smallest error (lanes.h).
 */
#include "types/pack.h"

#include "base/load.h"
#include "base/store.h"
#include "types/lanes.h"

#include <string.h>

/* ---- floats ---- */

void tl_pack_f32(const float *x, const float *weight, size_t blocks, uint8_t *dst) {
    (void)weight;
    memcpy(dst, x, blocks * sizeof(*x));
}

void tl_pack_f16(const float *x, const float *weight, size_t blocks, uint8_t *dst) {
    (void)weight;
    for (size_t i = 0; i < blocks; i++) tl_store_u16(dst + 2 * i, tl_f32_to_f16(x[i]));
}

void tl_pack_bf16(const float *x, const float *weight, size_t blocks, uint8_t *dst) {
    (void)weight;
    for (size_t i = 0; i < blocks; i++) tl_store_u16(dst + 2 * i, tl_f32_to_bf16(x[i]));
}

/* ---- Q8_0 ---- */

void tl_pack_q8_0(const float *x, const float *weight, size_t blocks, uint8_t *dst) {
    (void)weight;
    for (; blocks > 0; blocks--, x += 32, dst += 34) {
        float most = 0, d, inverse;
        for (int i = 0; i < 32; i++) {
            const float a = x[i] < 0 ? -x[i] : x[i];
            most = a > most ? a : most;
        }
        d = most / 127;
        inverse = d > 0 ? 1 / d : 0;
        tl_store_u16(dst, tl_f32_to_f16(d));
        for (int i = 0; i < 32; i++) {
            // halves away from zero; exact in float64
            const double y = (double)(x[i] * inverse);
            dst[2 + i] = (uint8_t)(int8_t)(y < 0 ? y - 0.5 : y + 0.5);
        }
    }
}

/* ---- four and five bits ---- */

/* 32 values of 0 to 15: the first 16 are the low nibbles. */
static void store_nibbles(const uint8_t *q, uint8_t *dst) {
    for (int i = 0; i < 16; i++) dst[i] = (uint8_t)((q[i] & 15) | (q[i + 16] & 15) << 4);
}

/* The fifth bits. */
static void store_high(const uint8_t *q, uint8_t *dst) {
    uint32_t high = 0;
    for (int i = 0; i < 32; i++) high |= (uint32_t)(q[i] >> 4 & 1) << i;
    tl_store_u32(dst, high);
}

static const struct tl_levels levels_4 = {-8, 7, 0.20f, 0.05f, 8, NULL, NULL, 0};
static const struct tl_levels levels_5 = {-16, 15, 0.12f, 0.03f, 8, NULL, NULL, 0};

/* Scales as float16, and q + offset. */
static void pack_symmetric(const float *x, const float *weight, size_t blocks,
                           const struct tl_levels *levels, uint16_t *d, uint8_t *q) {
    struct tl_lanes s;
    float scale[TL_LANES];
    int8_t multiples[TL_CHUNK];
    tl_lanes_load(&s, x, weight, blocks * 32, true);
    tl_lanes_scales(&s, levels, scale);
    for (int b = 0; b < 8; b++) {
        d[b] = tl_f32_to_f16_scale(scale[b]);
        scale[b] = scale[b + 8] = tl_f16_to_f32(d[b]);
    }
    tl_lanes_round(&s, levels, scale, multiples);
    for (int i = 0; i < TL_CHUNK; i++) q[i] = (uint8_t)(multiples[i] - (int)levels->lo);
}

static void pack_affine(const float *x, const float *weight, size_t blocks, float top, uint16_t *d,
                        uint16_t *m, uint8_t *q) {
    struct tl_lanes s;
    float scale[TL_LANES], offset[TL_LANES];
    tl_lanes_load(&s, x, weight, blocks * 32, true);
    tl_lanes_center(&s);
    tl_lanes_affine(&s, top, false, scale, offset);
    for (int b = 0; b < 8; b++) {
        d[b] = tl_f32_to_f16_scale(scale[b]);
        m[b] = tl_f32_to_f16(TL_MAX(-65504, TL_MIN(offset[b], 65504)));
        scale[b] = scale[b + 8] = tl_f16_to_f32(d[b]);
        offset[b] = offset[b + 8] = tl_f16_to_f32(m[b]);
    }
    tl_lanes_affine_round(&s, top, scale, offset, (int8_t *)q);
}

void tl_pack_q4_0(const float *x, const float *weight, size_t blocks, uint8_t *dst) {
    uint16_t d[8];
    uint8_t q[TL_CHUNK];
    pack_symmetric(x, weight, blocks, &levels_4, d, q);
    for (size_t b = 0; b < blocks; b++, dst += 18) {
        tl_store_u16(dst, d[b]);
        store_nibbles(q + 32 * b, dst + 2);
    }
}

void tl_pack_q5_0(const float *x, const float *weight, size_t blocks, uint8_t *dst) {
    uint16_t d[8];
    uint8_t q[TL_CHUNK];
    pack_symmetric(x, weight, blocks, &levels_5, d, q);
    for (size_t b = 0; b < blocks; b++, dst += 22) {
        tl_store_u16(dst, d[b]);
        store_high(q + 32 * b, dst + 2);
        store_nibbles(q + 32 * b, dst + 6);
    }
}

void tl_pack_q4_1(const float *x, const float *weight, size_t blocks, uint8_t *dst) {
    uint16_t d[8], m[8];
    uint8_t q[TL_CHUNK];
    pack_affine(x, weight, blocks, 15, d, m, q);
    for (size_t b = 0; b < blocks; b++, dst += 20) {
        tl_store_u16(dst, d[b]);
        tl_store_u16(dst + 2, m[b]);
        store_nibbles(q + 32 * b, dst + 4);
    }
}

void tl_pack_q5_1(const float *x, const float *weight, size_t blocks, uint8_t *dst) {
    uint16_t d[8], m[8];
    uint8_t q[TL_CHUNK];
    pack_affine(x, weight, blocks, 31, d, m, q);
    for (size_t b = 0; b < blocks; b++, dst += 24) {
        tl_store_u16(dst, d[b]);
        tl_store_u16(dst + 2, m[b]);
        store_high(q + 32 * b, dst + 4);
        store_nibbles(q + 32 * b, dst + 8);
    }
}
