/*
 * types.c - the table of ggml tensor types, and what the numbers of each block are.
 *
 * Block layouts: ggml-common.h of ggml; formulas: its dequantize_row_* functions.
 */
#include "types/types.h"

#include <string.h>

#if defined(__BYTE_ORDER__) && defined(__ORDER_BIG_ENDIAN__) &&                                    \
    __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
#error "GGUF files are little-endian, and so is every machine that tinyllm runs on"
#endif

static uint16_t load_u16(const uint8_t *p) {
    return (uint16_t)(p[0] | p[1] << 8);
}

static uint32_t load_u32(const uint8_t *p) {
    return (uint32_t)load_u16(p) | (uint32_t)load_u16(p + 2) << 16;
}

/*
 * Without a branch, so that loops over it vectorize. A denormal half is a normal float, made by
 * one exact product, so nothing here rounds or depends on flush-to-zero.
 */
float tl_f16_to_f32(uint16_t h) {
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

static float load_f16(const uint8_t *p) {
    return tl_f16_to_f32(load_u16(p));
}

/* ---- blocks of 32 ---- */

/* Everything but q and d of the blocks that follow. */
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

/* The same with a fifth bit for each value in the 32 bits of qh. */
static void fives_32(const uint8_t *qs, uint32_t qh, int offset, int8_t *q) {
    for (int i = 0; i < 16; i++) {
        int low = (qs[i] & 15) | (int)((qh >> i & 1u) << 4);
        int high = qs[i] >> 4 | (int)((qh >> (i + 16) & 1u) << 4);
        q[i] = (int8_t)(low - offset);
        q[i + 16] = (int8_t)(high - offset);
    }
}

static void unpack_q4_0(const uint8_t *src, size_t blocks, struct tl_chunk *out) {
    begin_32(out, blocks, false);
    for (size_t b = 0; b < blocks; b++, src += 18) {
        out->d[b] = load_f16(src);
        nibbles_32(src + 2, 8, out->q + b * 32);
    }
}

static void unpack_q4_1(const uint8_t *src, size_t blocks, struct tl_chunk *out) {
    begin_32(out, blocks, true);
    for (size_t b = 0; b < blocks; b++, src += 20) {
        out->d[b] = load_f16(src);
        out->m[b] = load_f16(src + 2);
        nibbles_32(src + 4, 0, out->q + b * 32);
    }
}

static void unpack_q5_0(const uint8_t *src, size_t blocks, struct tl_chunk *out) {
    begin_32(out, blocks, false);
    for (size_t b = 0; b < blocks; b++, src += 22) {
        out->d[b] = load_f16(src);
        fives_32(src + 6, load_u32(src + 2), 16, out->q + b * 32);
    }
}

static void unpack_q5_1(const uint8_t *src, size_t blocks, struct tl_chunk *out) {
    begin_32(out, blocks, true);
    for (size_t b = 0; b < blocks; b++, src += 24) {
        out->d[b] = load_f16(src);
        out->m[b] = load_f16(src + 2);
        fives_32(src + 8, load_u32(src + 4), 0, out->q + b * 32);
    }
}

static void unpack_q8_0(const uint8_t *src, size_t blocks, struct tl_chunk *out) {
    begin_32(out, blocks, false);
    for (size_t b = 0; b < blocks; b++, src += 34) {
        out->d[b] = load_f16(src);
        memcpy(out->q + b * 32, src + 2, 32);
    }
}

/* ---- blocks of 256 ---- */

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

static void unpack_q2_k(const uint8_t *src, size_t blocks, struct tl_chunk *out) {
    const uint8_t *scales = src, *qs = src + 16;
    if (blocks == 0) {
        begin_k(out, 0, 0, 0, true);
        return;
    }
    begin_k(out, blocks, load_f16(src + 80), load_f16(src + 82), true);
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

static void unpack_q3_k(const uint8_t *src, size_t blocks, struct tl_chunk *out) {
    const uint8_t *hmask = src, *qs = src + 32, *scales = src + 96;
    if (blocks == 0) {
        begin_k(out, 0, 0, 0, false);
        return;
    }
    begin_k(out, blocks, load_f16(src + 108), 0, false);
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

static void unpack_q4_k(const uint8_t *src, size_t blocks, struct tl_chunk *out) {
    const uint8_t *qs = src + 16;
    if (blocks == 0) {
        begin_k(out, 0, 0, 0, true);
        return;
    }
    begin_k(out, blocks, load_f16(src), load_f16(src + 2), true);
    scales_min_k4(src + 4, out);
    for (int c = 0; c < 4; c++) {
        int8_t *q = out->q + c * 64;
        for (int i = 0; i < 32; i++) {
            q[i] = (int8_t)(qs[c * 32 + i] & 15);
            q[i + 32] = (int8_t)(qs[c * 32 + i] >> 4);
        }
    }
}

static void unpack_q5_k(const uint8_t *src, size_t blocks, struct tl_chunk *out) {
    const uint8_t *qh = src + 16, *qs = src + 48;
    if (blocks == 0) {
        begin_k(out, 0, 0, 0, true);
        return;
    }
    begin_k(out, blocks, load_f16(src), load_f16(src + 2), true);
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

static void unpack_q6_k(const uint8_t *src, size_t blocks, struct tl_chunk *out) {
    const uint8_t *ql = src, *qh = src + 128, *scales = src + 192;
    if (blocks == 0) {
        begin_k(out, 0, 0, 0, false);
        return;
    }
    begin_k(out, blocks, load_f16(src + 208), 0, false);
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

/* ---- the table ---- */

static const struct tl_type_info types[TL_TYPE_COUNT] = {
    [0] = {"F32", TL_KIND_FLOAT, 1, 4, NULL},
    [1] = {"F16", TL_KIND_FLOAT, 1, 2, NULL},
    [2] = {"Q4_0", TL_KIND_32, 32, 18, unpack_q4_0},
    [3] = {"Q4_1", TL_KIND_32, 32, 20, unpack_q4_1},
    [4] = {"Q4_2", TL_KIND_REMOVED, 0, 0, NULL},
    [5] = {"Q4_3", TL_KIND_REMOVED, 0, 0, NULL},
    [6] = {"Q5_0", TL_KIND_32, 32, 22, unpack_q5_0},
    [7] = {"Q5_1", TL_KIND_32, 32, 24, unpack_q5_1},
    [8] = {"Q8_0", TL_KIND_32, 32, 34, unpack_q8_0},
    [9] = {"Q8_1", TL_KIND_RAW, 32, 36, NULL},
    [10] = {"Q2_K", TL_KIND_K, 256, 84, unpack_q2_k},
    [11] = {"Q3_K", TL_KIND_K, 256, 110, unpack_q3_k},
    [12] = {"Q4_K", TL_KIND_K, 256, 144, unpack_q4_k},
    [13] = {"Q5_K", TL_KIND_K, 256, 176, unpack_q5_k},
    [14] = {"Q6_K", TL_KIND_K, 256, 210, unpack_q6_k},
    [15] = {"Q8_K", TL_KIND_RAW, 256, 292, NULL},
    [16] = {"IQ2_XXS", TL_KIND_RAW, 256, 66, NULL},
    [17] = {"IQ2_XS", TL_KIND_RAW, 256, 74, NULL},
    [18] = {"IQ3_XXS", TL_KIND_RAW, 256, 98, NULL},
    [19] = {"IQ1_S", TL_KIND_RAW, 256, 50, NULL},
    [20] = {"IQ4_NL", TL_KIND_RAW, 32, 18, NULL},
    [21] = {"IQ3_S", TL_KIND_RAW, 256, 110, NULL},
    [22] = {"IQ2_S", TL_KIND_RAW, 256, 82, NULL},
    [23] = {"IQ4_XS", TL_KIND_RAW, 256, 136, NULL},
    [24] = {"I8", TL_KIND_ARRAY, 1, 1, NULL},
    [25] = {"I16", TL_KIND_ARRAY, 1, 2, NULL},
    [26] = {"I32", TL_KIND_ARRAY, 1, 4, NULL},
    [27] = {"I64", TL_KIND_ARRAY, 1, 8, NULL},
    [28] = {"F64", TL_KIND_ARRAY, 1, 8, NULL},
    [29] = {"IQ1_M", TL_KIND_RAW, 256, 56, NULL},
    [30] = {"BF16", TL_KIND_FLOAT, 1, 2, NULL},
    [31] = {"Q4_0_4_4", TL_KIND_REMOVED, 0, 0, NULL},
    [32] = {"Q4_0_4_8", TL_KIND_REMOVED, 0, 0, NULL},
    [33] = {"Q4_0_8_8", TL_KIND_REMOVED, 0, 0, NULL},
    [34] = {"TQ1_0", TL_KIND_RAW, 256, 54, NULL},
    [35] = {"TQ2_0", TL_KIND_RAW, 256, 66, NULL},
    [36] = {"IQ4_NL_4_4", TL_KIND_REMOVED, 0, 0, NULL},
    [37] = {"IQ4_NL_4_8", TL_KIND_REMOVED, 0, 0, NULL},
    [38] = {"IQ4_NL_8_8", TL_KIND_REMOVED, 0, 0, NULL},
    [39] = {"MXFP4", TL_KIND_RAW, 32, 17, NULL},
    [40] = {"NVFP4", TL_KIND_RAW, 64, 36, NULL},
    [41] = {"Q1_0", TL_KIND_RAW, 128, 18, NULL},
    [42] = {"Q2_0", TL_KIND_RAW, 64, 18, NULL},
};

const struct tl_type_info *tl_type_find(uint32_t id) {
    if (id >= TL_TYPE_COUNT || types[id].kind == TL_KIND_REMOVED) return NULL;
    return &types[id];
}

const char *tl_type_removed_name(uint32_t id) {
    if (id >= TL_TYPE_COUNT || types[id].kind != TL_KIND_REMOVED) return NULL;
    return types[id].name;
}

bool tl_type_row_bytes(const struct tl_type_info *t, uint64_t n, size_t *out) {
    uint64_t blocks = n / (uint64_t)t->items;
    if (n % (uint64_t)t->items != 0 || blocks > SIZE_MAX / (size_t)t->bytes) return false;
    *out = (size_t)blocks * (size_t)t->bytes;
    return true;
}

/* ---- dequantization ---- */

/*
 * float32 arithmetic rounds only once here: a scale has 11 significant bits, a sub-scale 7 and a
 * q 7 (Q8_0, where there is no sub-scale) or 5, so every product fits in 24 bits, and only the
 * last addition rounds. No value but zero is below 2^-24, so flush-to-zero changes nothing.
 */
#define DEFINE_FROM_CHUNK(name, real)                                                              \
    static void name(enum tl_kind kind, const struct tl_chunk *c, real *out, size_t n) {           \
        if (kind == TL_KIND_K) {                                                                   \
            for (size_t g = 0; g < n / 16; g++) {                                                  \
                real d = (real)c->d[0] * (real)c->scale[g], m = (real)c->dmin * (real)c->min[g];   \
                const int8_t *q = c->q + g * 16;                                                   \
                if (c->has_min) {                                                                  \
                    for (int i = 0; i < 16; i++) out[g * 16 + i] = d * (real)q[i] - m;             \
                } else {                                                                           \
                    for (int i = 0; i < 16; i++) out[g * 16 + i] = d * (real)q[i];                 \
                }                                                                                  \
            }                                                                                      \
            return;                                                                                \
        }                                                                                          \
        for (size_t g = 0; g < n / 32; g++) {                                                      \
            real d = (real)c->d[g], m = (real)c->m[g];                                             \
            const int8_t *q = c->q + g * 32;                                                       \
            if (c->has_min) {                                                                      \
                for (int i = 0; i < 32; i++) out[g * 32 + i] = d * (real)q[i] + m;                 \
            } else {                                                                               \
                for (int i = 0; i < 32; i++) out[g * 32 + i] = d * (real)q[i];                     \
            }                                                                                      \
        }                                                                                          \
    }
DEFINE_FROM_CHUNK(chunk_to_f32, float)
DEFINE_FROM_CHUNK(chunk_to_f64, double)

static float bf16_to_f32(uint16_t h) {
    uint32_t bits = (uint32_t)h << 16;
    float f;
    memcpy(&f, &bits, sizeof(f));
    return f;
}

/* Elements of a C type at any alignment. */
#define EACH(ctype, expression)                                                                    \
    for (size_t i = 0; i < n; i++) {                                                               \
        ctype x;                                                                                   \
        memcpy(&x, src + i * sizeof(x), sizeof(x));                                                \
        out[i] = (expression);                                                                     \
    }                                                                                              \
    break

#define DEFINE_TO(name, real, from_chunk)                                                          \
    void name(const struct tl_type_info *t, const uint8_t *src, real *out, size_t n) {             \
        if (t->unpack != NULL) {                                                                   \
            size_t items = (size_t)t->items, per_chunk = TL_CHUNK / items;                         \
            for (size_t left = n / items; left > 0;) {                                             \
                struct tl_chunk chunk;                                                             \
                size_t blocks = TL_MIN(left, per_chunk);                                           \
                t->unpack(src, blocks, &chunk);                                                    \
                from_chunk(t->kind, &chunk, out, blocks *items);                                   \
                src += blocks * (size_t)t->bytes;                                                  \
                out += blocks * items;                                                             \
                left -= blocks;                                                                    \
            }                                                                                      \
            return;                                                                                \
        }                                                                                          \
        switch ((enum tl_type)(t - types)) {                                                       \
        case TL_TYPE_F32:                                                                          \
            EACH(float, (real)x);                                                                  \
        case TL_TYPE_F16:                                                                          \
            EACH(uint16_t, (real)tl_f16_to_f32(x));                                                \
        case TL_TYPE_BF16:                                                                         \
            EACH(uint16_t, (real)bf16_to_f32(x));                                                  \
        case TL_TYPE_F64:                                                                          \
            EACH(double, (real)x);                                                                 \
        case TL_TYPE_I8:                                                                           \
            EACH(int8_t, (real)x);                                                                 \
        case TL_TYPE_I16:                                                                          \
            EACH(int16_t, (real)x);                                                                \
        case TL_TYPE_I32:                                                                          \
            EACH(int32_t, (real)x);                                                                \
        case TL_TYPE_I64:                                                                          \
            EACH(int64_t, (real)x);                                                                \
        default: /* no formula: the caller has looked at the kind */                               \
            memset(out, 0, n * sizeof(real));                                                      \
        }                                                                                          \
    }
DEFINE_TO(tl_type_to_f32, float, chunk_to_f32)
DEFINE_TO(tl_type_to_f64, double, chunk_to_f64)
