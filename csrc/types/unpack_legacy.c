/*
 * unpack_legacy.c - the types with one float scale for each 32 values: Q4_0 to Q8_1.
 *
 * Block layouts: ggml-common.h of ggml; formulas: its dequantize_row_* functions.
 */
#include "types/unpack.h"

#include "base/load.h"

#include <string.h>

/* Sets everything except q and d of the blocks. */
static void begin_32(struct tl_chunk *c, size_t blocks, bool has_min) {
    memset(c->q + blocks * 32, 0, TL_CHUNK - blocks * 32);
    memset(c->scale, 0, sizeof(c->scale));
    memset(c->min, 0, sizeof(c->min));
    memset(c->d, 0, sizeof(c->d));
    memset(c->m, 0, sizeof(c->m));
    c->dmin = 0;
    c->has_min = has_min;
}

/* 16 bytes of nibbles: the low ones are the first 16 values, the high ones the other 16. */
static void nibbles_32(const uint8_t *qs, int offset, int8_t *q) {
    for (int i = 0; i < 16; i++) {
        q[i] = (int8_t)((qs[i] & 15) - offset);
        q[i + 16] = (int8_t)((qs[i] >> 4) - offset);
    }
}

/* Like nibbles_32, with a fifth bit for each value in the 32 bits of qh. */
static void fives_32(const uint8_t *qs, uint32_t qh, int offset, int8_t *q) {
    for (int i = 0; i < 16; i++) {
        int low = (qs[i] & 15) | (int)((qh >> i & 1u) << 4);
        int high = qs[i] >> 4 | (int)((qh >> (i + 16) & 1u) << 4);
        q[i] = (int8_t)(low - offset);
        q[i + 16] = (int8_t)(high - offset);
    }
}

void tl_unpack_q4_0(const uint8_t *src, size_t blocks, struct tl_chunk *out) {
    begin_32(out, blocks, false);
    for (size_t b = 0; b < blocks; b++, src += 18) {
        out->d[b] = tl_load_f16(src);
        nibbles_32(src + 2, 8, out->q + b * 32);
    }
}

void tl_unpack_q4_1(const uint8_t *src, size_t blocks, struct tl_chunk *out) {
    begin_32(out, blocks, true);
    for (size_t b = 0; b < blocks; b++, src += 20) {
        out->d[b] = tl_load_f16(src);
        out->m[b] = tl_load_f16(src + 2);
        nibbles_32(src + 4, 0, out->q + b * 32);
    }
}

void tl_unpack_q5_0(const uint8_t *src, size_t blocks, struct tl_chunk *out) {
    begin_32(out, blocks, false);
    for (size_t b = 0; b < blocks; b++, src += 22) {
        out->d[b] = tl_load_f16(src);
        fives_32(src + 6, tl_load_u32(src + 2), 16, out->q + b * 32);
    }
}

void tl_unpack_q5_1(const uint8_t *src, size_t blocks, struct tl_chunk *out) {
    begin_32(out, blocks, true);
    for (size_t b = 0; b < blocks; b++, src += 24) {
        out->d[b] = tl_load_f16(src);
        out->m[b] = tl_load_f16(src + 2);
        fives_32(src + 8, tl_load_u32(src + 4), 0, out->q + b * 32);
    }
}

void tl_unpack_q8_0(const uint8_t *src, size_t blocks, struct tl_chunk *out) {
    begin_32(out, blocks, false);
    for (size_t b = 0; b < blocks; b++, src += 34) {
        out->d[b] = tl_load_f16(src);
        memcpy(out->q + b * 32, src + 2, 32);
    }
}

/* The sum of the values, which is stored too, is not read. */
void tl_unpack_q8_1(const uint8_t *src, size_t blocks, struct tl_chunk *out) {
    begin_32(out, blocks, false);
    for (size_t b = 0; b < blocks; b++, src += 36) {
        out->d[b] = tl_load_f16(src);
        memcpy(out->q + b * 32, src + 4, 32);
    }
}
