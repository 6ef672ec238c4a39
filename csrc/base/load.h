/* load.h - reads little-endian numbers at any address, and converts 16-bit floats. */
#ifndef TL_LOAD_H
#define TL_LOAD_H

#include <stdint.h>
#include <string.h>

#if defined(__BYTE_ORDER__) && defined(__ORDER_BIG_ENDIAN__) &&                                    \
    __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
#error "GGUF files are little-endian, and so is every machine that tinyllm runs on"
#endif

static inline uint16_t tl_load_u16(const uint8_t *p) {
    return (uint16_t)(p[0] | p[1] << 8);
}

static inline uint32_t tl_load_u32(const uint8_t *p) {
    return (uint32_t)tl_load_u16(p) | (uint32_t)tl_load_u16(p + 2) << 16;
}

static inline uint64_t tl_load_u64(const uint8_t *p) {
    return (uint64_t)tl_load_u32(p) | (uint64_t)tl_load_u32(p + 4) << 32;
}

/*
 * Has no branch, so that loops over it vectorize. A subnormal half becomes a normal float by one
 * exact multiplication, so nothing here rounds or depends on flush-to-zero.
 */
static inline float tl_f16_to_f32(uint16_t h) {
    uint32_t sign = (uint32_t)(h & 0x8000u) << 16;
    uint32_t magnitude = h & 0x7fffu;
    uint32_t normal = (magnitude << 13) + (112u << 23);
    uint32_t infinite = magnitude << 13 | 0x7f800000u;
    float tiny = (float)(int32_t)magnitude * 0x1p-24f;
    uint32_t bits;
    float f;
    memcpy(&bits, &tiny, sizeof(bits));
    bits = magnitude >= 0x0400u ? normal : bits;
    bits = magnitude >= 0x7c00u ? infinite : bits;
    bits |= sign;
    memcpy(&f, &bits, sizeof(f));
    return f;
}

static inline float tl_load_f16(const uint8_t *p) {
    return tl_f16_to_f32(tl_load_u16(p));
}

static inline float tl_bf16_to_f32(uint16_t h) {
    uint32_t bits = (uint32_t)h << 16;
    float f;
    memcpy(&f, &bits, sizeof(f));
    return f;
}

#endif
