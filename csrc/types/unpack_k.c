/*
 * unpack_k.c - the K types: integer sub-scales under one float scale for each 256 values.
 *
 * Block layouts: ggml-common.h of ggml; formulas: its dequantize_row_* functions.
 */
#include "types/unpack.h"

#include "base/load.h"

#include <string.h>

static void begin_k(struct tl_chunk *c, size_t blocks, float d, float dmin, bool has_min) {
    if (blocks == 0) {
        memset(c->q, 0, sizeof(c->q));
        memset(c->scale, 0, sizeof(c->scale));
        d = dmin = 0;
    }
    if (blocks == 0 || !has_min) memset(c->min, 0, sizeof(c->min));
    memset(c->d, 0, sizeof(c->d));
    memset(c->m, 0, sizeof(c->m));
    c->d[0] = d;
    c->dmin = dmin;
    c->has_min = has_min;
}

void tl_unpack_q2_k(const uint8_t *src, size_t blocks, struct tl_chunk *out) {
    const uint8_t *scales = src, *qs = src + 16;
    if (blocks == 0) {
        begin_k(out, 0, 0, 0, true);
        return;
    }
    begin_k(out, blocks, tl_load_f16(src + 80), tl_load_f16(src + 82), true);
    for (int s = 0; s < 16; s++) {
        out->scale[s] = scales[s] & 15;
        out->min[s] = scales[s] >> 4;
    }
    for (int half = 0; half < 2; half++) {
        for (int j = 0; j < 4; j++) {
            int8_t *q = out->q + half * 128 + j * 32;
            for (int i = 0; i < 32; i++) q[i] = (int8_t)(qs[half * 32 + i] >> (2 * j) & 3);
        }
    }
}

void tl_unpack_q3_k(const uint8_t *src, size_t blocks, struct tl_chunk *out) {
    const uint8_t *hmask = src, *qs = src + 32, *scales = src + 96;
    if (blocks == 0) {
        begin_k(out, 0, 0, 0, false);
        return;
    }
    begin_k(out, blocks, tl_load_f16(src + 108), 0, false);
    // six bits: the low four in bytes 0 to 7, two scales each; the high two in bytes 8 to 11
    for (int s = 0; s < 16; s++) {
        int low = scales[s % 8] >> (s / 8 * 4) & 15;
        int high = scales[8 + s % 4] >> (s / 4 * 2) & 3;
        out->scale[s] = (int16_t)((low | high << 4) - 32);
    }
    for (int half = 0; half < 2; half++) {
        for (int j = 0; j < 4; j++) {
            int8_t *q = out->q + half * 128 + j * 32;
            int bit = half * 4 + j;
            for (int i = 0; i < 32; i++) {
                int high = hmask[i] >> bit & 1;
                q[i] = (int8_t)((qs[half * 32 + i] >> (2 * j) & 3) + 4 * high - 4);
            }
        }
    }
}

/* Q4_K and Q5_K: eight six-bit scales and minima in 12 bytes, each for 32 values. */
static void scales_min_k4(const uint8_t *p, struct tl_chunk *out) {
    for (int j = 0; j < 8; j++) {
        int scale, min;
        if (j < 4) {
            scale = p[j] & 63;
            min = p[j + 4] & 63;
        } else {
            scale = (p[j + 4] & 15) | p[j - 4] >> 6 << 4;
            min = p[j + 4] >> 4 | p[j] >> 6 << 4;
        }
        out->scale[2 * j] = out->scale[2 * j + 1] = (int16_t)scale;
        out->min[2 * j] = out->min[2 * j + 1] = (int16_t)min;
    }
}

void tl_unpack_q4_k(const uint8_t *src, size_t blocks, struct tl_chunk *out) {
    const uint8_t *qs = src + 16;
    if (blocks == 0) {
        begin_k(out, 0, 0, 0, true);
        return;
    }
    begin_k(out, blocks, tl_load_f16(src), tl_load_f16(src + 2), true);
    scales_min_k4(src + 4, out);
    for (int c = 0; c < 4; c++) {
        int8_t *q = out->q + c * 64;
        for (int i = 0; i < 32; i++) {
            q[i] = (int8_t)(qs[c * 32 + i] & 15);
            q[i + 32] = (int8_t)(qs[c * 32 + i] >> 4);
        }
    }
}

void tl_unpack_q5_k(const uint8_t *src, size_t blocks, struct tl_chunk *out) {
    const uint8_t *qh = src + 16, *qs = src + 48;
    if (blocks == 0) {
        begin_k(out, 0, 0, 0, true);
        return;
    }
    begin_k(out, blocks, tl_load_f16(src), tl_load_f16(src + 2), true);
    scales_min_k4(src + 4, out);
    for (int c = 0; c < 4; c++) {
        int8_t *q = out->q + c * 64;
        for (int i = 0; i < 32; i++) {
            int high = qh[i] >> (2 * c);
            q[i] = (int8_t)((qs[c * 32 + i] & 15) | (high & 1) << 4);
            q[i + 32] = (int8_t)(qs[c * 32 + i] >> 4 | (high & 2) << 3);
        }
    }
}

void tl_unpack_q6_k(const uint8_t *src, size_t blocks, struct tl_chunk *out) {
    const uint8_t *ql = src, *qh = src + 128, *scales = src + 192;
    if (blocks == 0) {
        begin_k(out, 0, 0, 0, false);
        return;
    }
    begin_k(out, blocks, tl_load_f16(src + 208), 0, false);
    for (int s = 0; s < 16; s++) out->scale[s] = (int16_t)(scales[s] - (scales[s] & 128) * 2);
    for (int half = 0; half < 2; half++, ql += 64, qh += 32) {
        int8_t *q = out->q + half * 128;
        for (int i = 0; i < 32; i++) {
            q[i] = (int8_t)(((ql[i] & 15) | (qh[i] & 3) << 4) - 32);
            q[i + 32] = (int8_t)(((ql[i + 32] & 15) | (qh[i] >> 2 & 3) << 4) - 32);
            q[i + 64] = (int8_t)((ql[i] >> 4 | (qh[i] >> 4 & 3) << 4) - 32);
            q[i + 96] = (int8_t)((ql[i + 32] >> 4 | (qh[i] >> 6 & 3) << 4) - 32);
        }
    }
}

/* A float32 scale and no sub-scales. The sums of the values, which are stored too, are not read. */
void tl_unpack_q8_k(const uint8_t *src, size_t blocks, struct tl_chunk *out) {
    float d = 0;
    if (blocks > 0) memcpy(&d, src, sizeof(d));
    begin_k(out, blocks, d, 0, false);
    if (blocks == 0) return;
    for (int s = 0; s < 16; s++) out->scale[s] = 1;
    memcpy(out->q, src + 4, TL_CHUNK);
}
