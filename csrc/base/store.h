/* store.h - writes little-endian numbers at any address, and rounds floats to 16 bits. */
#ifndef TL_STORE_H
#define TL_STORE_H

#include <stdint.h>
#include <string.h>

static inline void tl_store_u16(uint8_t *p, uint32_t x) {
    p[0] = (uint8_t)x;
    p[1] = (uint8_t)(x >> 8);
}

static inline void tl_store_u32(uint8_t *p, uint32_t x) {
    tl_store_u16(p, x);
    tl_store_u16(p + 2, x >> 16);
}

/* To nearest, ties to even; infinity from 65520 on. The fraction of a NaN is not kept. */
static inline uint16_t tl_f32_to_f16(float f) {
    uint32_t bits, sign, magnitude, half;
    memcpy(&bits, &f, sizeof(bits));
    sign = bits >> 16 & 0x8000u;
    magnitude = bits & 0x7fffffffu;
    if (magnitude >= 0x477ff000u) {
        half = magnitude > 0x7f800000u ? 0x7e00u : 0x7c00u;
    } else if (magnitude < 0x38800000u) { // subnormal: 0.5 + f has the right number of bits
        float tiny;
        memcpy(&tiny, &magnitude, sizeof(tiny));
        tiny += 0.5f;
        memcpy(&half, &tiny, sizeof(half));
        half -= 0x3f000000u;
    } else {
        half = (magnitude + 0xfffu + (magnitude >> 13 & 1u)) >> 13;
        half -= 112u << 10;
    }
    return (uint16_t)(sign | half);
}

/* For scales: the largest float16 instead of infinity, and the smallest one instead of zero. */
static inline uint16_t tl_f32_to_f16_scale(float f) {
    const uint16_t half = tl_f32_to_f16(f);
    if ((half & 0x7fffu) >= 0x7c00u) return (uint16_t)((half & 0x8000u) | 0x7bffu);
    if ((half & 0x7fffu) == 0 && f != 0) return (uint16_t)(half | 1u);
    return half;
}

static inline uint16_t tl_f32_to_bf16(float f) {
    uint32_t bits;
    memcpy(&bits, &f, sizeof(bits));
    if ((bits & 0x7fffffffu) > 0x7f800000u) return (uint16_t)(bits >> 16 | 64u); // a quiet NaN
    return (uint16_t)((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}

#endif
