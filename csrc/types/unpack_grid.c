/*
 * unpack_grid.c - the types whose weights are entries of a grid: IQ1, IQ2 and IQ3.
 *
 * Their float scales are a half, a fourth or an eighth of those in the file, so that the sub-scales
 * and the weights are integers. Block layouts: ggml-common.h of ggml; formulas: its
 * dequantize_row_* functions.
 */
#include "types/unpack.h"

#include "base/load.h"
#include "types/grids.h"

#include <string.h>

/* Eight values, negative where `signs` has a bit; none is zero. */
static void put_signed(const int8_t *values, unsigned signs, int8_t *q) {
    const uint64_t ones = 0x0101010101010101u, each = 0x8040201008040201u;
    uint64_t v, negative = signs * ones & each; // a bit in each byte whose value is negative
    memcpy(&v, values, 8);
    negative = (negative + 0x7f * ones) >> 7 & ones;
    v = (v ^ negative * 0xff) + negative; // no byte carries, because none is zero
    memcpy(q, &v, 8);
}

/* The same for two entries of four values. */
static void put_signed_pair(const int8_t *first, const int8_t *second, unsigned signs, int8_t *q) {
    int8_t both[8];
    memcpy(both, first, 4);
    memcpy(both + 4, second, 4);
    put_signed(both, signs, q);
}

/* Sub-scales are odd: two for each byte of `scales`, one for each 16 values. */
static void odd_scales(const uint8_t *scales, int16_t *out) {
    for (int i = 0; i < 8; i++) {
        out[2 * i] = (int16_t)(2 * (scales[i] & 15) + 1);
        out[2 * i + 1] = (int16_t)(2 * (scales[i] >> 4) + 1);
    }
}

void tl_unpack_iq2_xxs(const uint8_t *src, size_t blocks, struct tl_chunk *out) {
    const struct tl_grids *grids = tl_grids();
    memset(out, 0, sizeof(*out));
    if (blocks == 0) return;
    out->d[0] = tl_load_f16(src) * 0.125f;
    src += 2;
    for (int b = 0; b < 8; b++, src += 8) {
        const uint32_t signs = tl_load_u32(src + 4);
        out->scale[2 * b] = out->scale[2 * b + 1] = (int16_t)(2 * (signs >> 28) + 1);
        for (int i = 0; i < 4; i++) {
            put_signed(grids->iq2_xxs[src[i]], tl_even_signs(signs >> 7 * i & 127),
                       out->q + 32 * b + 8 * i);
        }
    }
}

void tl_unpack_iq2_xs(const uint8_t *src, size_t blocks, struct tl_chunk *out) {
    const struct tl_grids *grids = tl_grids();
    memset(out, 0, sizeof(*out));
    if (blocks == 0) return;
    out->d[0] = tl_load_f16(src) * 0.125f;
    odd_scales(src + 66, out->scale);
    for (int i = 0; i < 32; i++) {
        const unsigned entry = tl_load_u16(src + 2 + 2 * i);
        put_signed(grids->iq2_xs[entry & 511], tl_even_signs(entry >> 9), out->q + 8 * i);
    }
}

void tl_unpack_iq2_s(const uint8_t *src, size_t blocks, struct tl_chunk *out) {
    const struct tl_grids *grids = tl_grids();
    const uint8_t *qs = src + 2, *signs = src + 34, *qh = src + 66;
    memset(out, 0, sizeof(*out));
    if (blocks == 0) return;
    out->d[0] = tl_load_f16(src) * 0.125f;
    odd_scales(src + 74, out->scale);
    for (int i = 0; i < 32; i++) {
        const int entry = qs[i] | (qh[i / 4] >> 2 * (i % 4) & 3) << 8;
        put_signed(grids->iq2_s[entry], signs[i], out->q + 8 * i);
    }
}

void tl_unpack_iq3_xxs(const uint8_t *src, size_t blocks, struct tl_chunk *out) {
    const struct tl_grids *grids = tl_grids();
    const uint8_t *qs = src + 2, *rest = src + 66;
    memset(out, 0, sizeof(*out));
    if (blocks == 0) return;
    out->d[0] = tl_load_f16(src) * 0.25f;
    for (int b = 0; b < 8; b++, rest += 4) {
        const uint32_t signs = tl_load_u32(rest);
        out->scale[2 * b] = out->scale[2 * b + 1] = (int16_t)(2 * (signs >> 28) + 1);
        for (int i = 0; i < 4; i++, qs += 2) {
            put_signed_pair(grids->iq3_xxs[qs[0]], grids->iq3_xxs[qs[1]],
                            tl_even_signs(signs >> 7 * i & 127), out->q + 32 * b + 8 * i);
        }
    }
}

void tl_unpack_iq3_s(const uint8_t *src, size_t blocks, struct tl_chunk *out) {
    const struct tl_grids *grids = tl_grids();
    const uint8_t *qs = src + 2, *qh = src + 66, *signs = src + 74, *scales = src + 106;
    memset(out, 0, sizeof(*out));
    if (blocks == 0) return;
    out->d[0] = tl_load_f16(src);
    for (int b = 0; b < 8; b++) {
        const int scale = scales[b / 2] >> b % 2 * 4 & 15;
        out->scale[2 * b] = out->scale[2 * b + 1] = (int16_t)(2 * scale + 1);
        for (int i = 0; i < 4; i++, qs += 2) {
            const int first = qs[0] | (qh[b] >> 2 * i & 1) << 8;
            const int second = qs[1] | (qh[b] >> (2 * i + 1) & 1) << 8;
            put_signed_pair(grids->iq3_s[first], grids->iq3_s[second], signs[4 * b + i],
                            out->q + 32 * b + 8 * i);
        }
    }
}

/* Eight values: eight times those of a grid, plus or minus one. */
static void put_shifted(const int8_t *values, bool minus, int8_t *q) {
    for (int i = 0; i < 8; i++) q[i] = (int8_t)(8 * values[i] + (minus ? -1 : 1));
}

void tl_unpack_iq1_s(const uint8_t *src, size_t blocks, struct tl_chunk *out) {
    const struct tl_grids *grids = tl_grids();
    memset(out, 0, sizeof(*out));
    if (blocks == 0) return;
    out->d[0] = tl_load_f16(src) * 0.125f;
    for (int b = 0; b < 8; b++) {
        const uint8_t *qs = src + 2 + 4 * b;
        const unsigned high = tl_load_u16(src + 34 + 2 * b);
        out->scale[2 * b] = out->scale[2 * b + 1] = (int16_t)(2 * (high >> 12 & 7) + 1);
        for (int i = 0; i < 4; i++) {
            const unsigned entry = qs[i] | (high >> 3 * i & 7) << 8;
            put_shifted(grids->iq1[entry], high >> 15, out->q + 32 * b + 8 * i);
        }
    }
}

void tl_unpack_iq1_m(const uint8_t *src, size_t blocks, struct tl_chunk *out) {
    const struct tl_grids *grids = tl_grids();
    const uint8_t *qs = src, *qh = src + 32, *scales = src + 48;
    unsigned d = 0; // a float16: four bits of it are above each four sub-scales
    memset(out, 0, sizeof(*out));
    if (blocks == 0) return;
    for (int i = 0; i < 4; i++) {
        const unsigned four = tl_load_u16(scales + 2 * i);
        d |= four >> 12 << 4 * i;
        for (int j = 0; j < 4; j++) {
            out->scale[4 * i + j] = (int16_t)(2 * (four >> 3 * j & 7) + 1);
        }
    }
    out->d[0] = tl_f16_to_f32((uint16_t)d) * 0.125f;
    for (int i = 0; i < 32; i++) {
        const int high = qh[i / 2] >> i % 2 * 4;
        put_shifted(grids->iq1[qs[i] | (high & 7) << 8], high & 8, out->q + 8 * i);
    }
}
