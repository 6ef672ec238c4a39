/*
 * unpack_codebook.c - nibbles are indices of a table: IQ4_NL, IQ4_XS, MXFP4 and NVFP4.
 *
 * Block layouts: ggml-common.h of ggml; formulas: its dequantize_row_* functions.
 */
#include "types/unpack.h"

#include "base/load.h"

#include <string.h>

const int8_t tl_codebook_iq4[16] = {-127, -104, -83, -65, -49, -35, -22, -10,
                                    1,    13,   25,  38,  53,  69,  89,  113};

/* Floats of four bits (a sign, two of exponent, one of fraction), times two. */
const int8_t tl_codebook_mxfp4[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};

/* 16 bytes of nibbles: the low ones are the first 16 values, the high ones the other 16. */
static void look_up_32(const int8_t *table, const uint8_t *qs, int8_t *q) {
    for (int i = 0; i < 16; i++) {
        q[i] = table[qs[i] & 15];
        q[i + 16] = table[qs[i] >> 4];
    }
}

void tl_unpack_iq4_nl(const uint8_t *src, size_t blocks, struct tl_chunk *out) {
    memset(out, 0, sizeof(*out));
    for (size_t b = 0; b < blocks; b++, src += 18) {
        out->d[b] = tl_load_f16(src);
        look_up_32(tl_codebook_iq4, src + 2, out->q + b * 32);
    }
}

void tl_unpack_iq4_xs(const uint8_t *src, size_t blocks, struct tl_chunk *out) {
    memset(out, 0, sizeof(*out));
    if (blocks == 0) return;
    out->d[0] = tl_load_f16(src);
    const uint32_t high = tl_load_u16(src + 2), low = tl_load_u32(src + 4);
    for (int b = 0; b < 8; b++) {
        // six bits minus 32: four of `low`, two of `high`
        int scale = (int)((low >> 4 * b & 15) | (high >> 2 * b & 3) << 4) - 32;
        out->scale[2 * b] = out->scale[2 * b + 1] = (int16_t)scale;
        look_up_32(tl_codebook_iq4, src + 8 + 16 * b, out->q + 32 * b);
    }
}

/* 2^(e - 128), for every e from 0 to 255. The first two are subnormal. */
static float power_of_two(uint8_t e) {
    uint32_t bits = e < 2 ? 0x00200000u << e : (uint32_t)(e - 1) << 23;
    float d;
    memcpy(&d, &bits, sizeof(d));
    return d;
}

void tl_unpack_mxfp4(const uint8_t *src, size_t blocks, struct tl_chunk *out) {
    memset(out, 0, sizeof(*out));
    for (size_t b = 0; b < blocks; b++, src += 17) {
        out->d[b] = power_of_two(src[0]);
        look_up_32(tl_codebook_mxfp4, src + 1, out->q + b * 32);
    }
}

float tl_half_of_e4m3(uint8_t x) {
    const int exponent = x >> 3 & 15, fraction = x & 7;
    const int units = exponent == 0 ? fraction : (8 + fraction) << (exponent - 1);
    return x == 127 ? 0 : (float)units * 0x1p-10f;
}

void tl_unpack_nvfp4(const uint8_t *src, size_t blocks, struct tl_chunk *out) {
    memset(out, 0, sizeof(*out));
    for (size_t b = 0; b < blocks; b++, src += 36) {
        for (size_t g = 0; g < 4; g++) {
            const uint8_t *qs = src + 4 + 8 * g;
            int8_t *q = out->q + 64 * b + 16 * g;
            out->d[4 * b + g] = tl_half_of_e4m3(src[g]);
            for (int i = 0; i < 8; i++) {
                q[i] = tl_codebook_mxfp4[qs[i] & 15];
                q[i + 8] = tl_codebook_mxfp4[qs[i] >> 4];
            }
        }
    }
}
