/*
 * unpack_ternary.c - the types of one or two bits without a codebook: Q1_0, Q2_0, TQ1_0 and TQ2_0.
 *
 * Block layouts: ggml-common.h of ggml; formulas: its dequantize_row_* functions.
 */
#include "types/unpack.h"

#include "base/load.h"

#include <string.h>

/* The scale of the block that holds the next `n` blocks of 32. */
static void repeat_scale(struct tl_chunk *out, size_t block, size_t n, float d) {
    for (size_t i = 0; i < n; i++) out->d[block * n + i] = d;
}

void tl_unpack_q1_0(const uint8_t *src, size_t blocks, struct tl_chunk *out) {
    memset(out, 0, sizeof(*out));
    for (size_t b = 0; b < blocks; b++, src += 18) {
        int8_t *q = out->q + 128 * b;
        repeat_scale(out, b, 4, tl_load_f16(src));
        for (int i = 0; i < 128; i++) q[i] = (int8_t)(2 * (src[2 + i / 8] >> i % 8 & 1) - 1);
    }
}

void tl_unpack_q2_0(const uint8_t *src, size_t blocks, struct tl_chunk *out) {
    memset(out, 0, sizeof(*out));
    for (size_t b = 0; b < blocks; b++, src += 18) {
        int8_t *q = out->q + 64 * b;
        repeat_scale(out, b, 2, tl_load_f16(src));
        for (int i = 0; i < 64; i++) q[i] = (int8_t)((src[2 + i / 4] >> i % 4 * 2 & 3) - 1);
    }
}

static void begin_ternary(struct tl_chunk *out, size_t blocks, const uint8_t *d) {
    memset(out, 0, sizeof(*out));
    if (blocks == 0) return;
    out->d[0] = tl_load_f16(d);
    for (int g = 0; g < 16; g++) out->scale[g] = 1;
}

/*
 * `count` bytes hold `digits` times as many values, each a digit of base 3. The byte is the number
 * 0.abcde in base 3, in units of 1/256, rounded up: the next digit is what is beyond the point
 * after a multiplication by 3.
 */
static int8_t *put_trits(const uint8_t *src, int count, int digits, int8_t *q) {
    uint8_t power = 1;
    for (int n = 0; n < digits; n++, power = (uint8_t)(3 * power)) {
        for (int i = 0; i < count; i++) {
            const uint8_t rest = (uint8_t)(src[i] * power);
            *q++ = (int8_t)((rest * 3 >> 8) - 1);
        }
    }
    return q;
}

void tl_unpack_tq1_0(const uint8_t *src, size_t blocks, struct tl_chunk *out) {
    int8_t *q = out->q;
    begin_ternary(out, blocks, src + 52);
    if (blocks == 0) return;
    q = put_trits(src, 32, 5, q);
    q = put_trits(src + 32, 16, 5, q);
    put_trits(src + 48, 4, 4, q);
}

void tl_unpack_tq2_0(const uint8_t *src, size_t blocks, struct tl_chunk *out) {
    begin_ternary(out, blocks, src + 64);
    if (blocks == 0) return;
    for (int half = 0; half < 2; half++, src += 32) {
        for (int j = 0; j < 4; j++) {
            int8_t *q = out->q + 128 * half + 32 * j;
            for (int i = 0; i < 32; i++) q[i] = (int8_t)((src[i] >> 2 * j & 3) - 1);
        }
    }
}
