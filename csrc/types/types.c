/*
 * types.c - the table of ggml tensor types, dequantization and quantization.
 *
 * Ids, names and sizes: ggml.h and ggml-common.h of ggml.
 */
#include "types/types.h"

#include "base/load.h"
#include "types/pack.h"
#include "types/unpack.h"

#include <float.h>
#include <string.h>

/* ---- the table ---- */

static const struct tl_type_info types[TL_TYPE_COUNT] = {
    [0] = {"F32", TL_KIND_FLOAT, 1, 4, NULL, tl_pack_f32},
    [1] = {"F16", TL_KIND_FLOAT, 1, 2, NULL, tl_pack_f16},
    [2] = {"Q4_0", TL_KIND_32, 32, 18, tl_unpack_q4_0, tl_pack_q4_0},
    [3] = {"Q4_1", TL_KIND_32, 32, 20, tl_unpack_q4_1, tl_pack_q4_1},
    [4] = {"Q4_2", TL_KIND_REMOVED, 0, 0, NULL},
    [5] = {"Q4_3", TL_KIND_REMOVED, 0, 0, NULL},
    [6] = {"Q5_0", TL_KIND_32, 32, 22, tl_unpack_q5_0, tl_pack_q5_0},
    [7] = {"Q5_1", TL_KIND_32, 32, 24, tl_unpack_q5_1, tl_pack_q5_1},
    [8] = {"Q8_0", TL_KIND_32, 32, 34, tl_unpack_q8_0, tl_pack_q8_0},
    [9] = {"Q8_1", TL_KIND_32, 32, 36, tl_unpack_q8_1, NULL},
    [10] = {"Q2_K", TL_KIND_K, 256, 84, tl_unpack_q2_k, tl_pack_q2_k},
    [11] = {"Q3_K", TL_KIND_K, 256, 110, tl_unpack_q3_k, tl_pack_q3_k},
    [12] = {"Q4_K", TL_KIND_K, 256, 144, tl_unpack_q4_k, tl_pack_q4_k},
    [13] = {"Q5_K", TL_KIND_K, 256, 176, tl_unpack_q5_k, tl_pack_q5_k},
    [14] = {"Q6_K", TL_KIND_K, 256, 210, tl_unpack_q6_k, tl_pack_q6_k},
    [15] = {"Q8_K", TL_KIND_K, 256, 292, tl_unpack_q8_k, NULL},
    [16] = {"IQ2_XXS", TL_KIND_K, 256, 66, tl_unpack_iq2_xxs, tl_pack_iq2_xxs},
    [17] = {"IQ2_XS", TL_KIND_K, 256, 74, tl_unpack_iq2_xs, tl_pack_iq2_xs},
    [18] = {"IQ3_XXS", TL_KIND_K, 256, 98, tl_unpack_iq3_xxs, tl_pack_iq3_xxs},
    [19] = {"IQ1_S", TL_KIND_K, 256, 50, tl_unpack_iq1_s, tl_pack_iq1_s},
    [20] = {"IQ4_NL", TL_KIND_32, 32, 18, tl_unpack_iq4_nl, tl_pack_iq4_nl},
    [21] = {"IQ3_S", TL_KIND_K, 256, 110, tl_unpack_iq3_s, tl_pack_iq3_s},
    [22] = {"IQ2_S", TL_KIND_K, 256, 82, tl_unpack_iq2_s, tl_pack_iq2_s},
    [23] = {"IQ4_XS", TL_KIND_K, 256, 136, tl_unpack_iq4_xs, tl_pack_iq4_xs},
    [24] = {"I8", TL_KIND_ARRAY, 1, 1, NULL},
    [25] = {"I16", TL_KIND_ARRAY, 1, 2, NULL},
    [26] = {"I32", TL_KIND_ARRAY, 1, 4, NULL},
    [27] = {"I64", TL_KIND_ARRAY, 1, 8, NULL},
    [28] = {"F64", TL_KIND_ARRAY, 1, 8, NULL},
    [29] = {"IQ1_M", TL_KIND_K, 256, 56, tl_unpack_iq1_m, tl_pack_iq1_m},
    [30] = {"BF16", TL_KIND_FLOAT, 1, 2, NULL, tl_pack_bf16},
    [31] = {"Q4_0_4_4", TL_KIND_REMOVED, 0, 0, NULL},
    [32] = {"Q4_0_4_8", TL_KIND_REMOVED, 0, 0, NULL},
    [33] = {"Q4_0_8_8", TL_KIND_REMOVED, 0, 0, NULL},
    [34] = {"TQ1_0", TL_KIND_K, 256, 54, tl_unpack_tq1_0, tl_pack_tq1_0},
    [35] = {"TQ2_0", TL_KIND_K, 256, 66, tl_unpack_tq2_0, tl_pack_tq2_0},
    [36] = {"IQ4_NL_4_4", TL_KIND_REMOVED, 0, 0, NULL},
    [37] = {"IQ4_NL_4_8", TL_KIND_REMOVED, 0, 0, NULL},
    [38] = {"IQ4_NL_8_8", TL_KIND_REMOVED, 0, 0, NULL},
    [39] = {"MXFP4", TL_KIND_32, 32, 17, tl_unpack_mxfp4, tl_pack_mxfp4},
    [40] = {"NVFP4", TL_KIND_16, 64, 36, tl_unpack_nvfp4, tl_pack_nvfp4},
    [41] = {"Q1_0", TL_KIND_32, 128, 18, tl_unpack_q1_0, tl_pack_q1_0},
    [42] = {"Q2_0", TL_KIND_32, 64, 18, tl_unpack_q2_0, tl_pack_q2_0},
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
 * float32 arithmetic rounds only once here. A scale has 11 significant bits, a sub-scale 7, and a q
 * has 5 (7 in Q8_0 and IQ4_NL, which have no sub-scales, and in IQ4_XS, whose sub-scales have 5).
 * So every product fits in 24 bits, and only the last addition rounds. The scale of MXFP4 is a
 * power of two: a product is exact unless it is beyond float32, where it is an infinity. The scale
 * of Q8_K is a float32: there is no sub-scale, and its product is rounded once.
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
        if (kind == TL_KIND_16) {                                                                  \
            for (size_t i = 0; i < n; i++) out[i] = (real)c->d[i / 16] * (real)c->q[i];            \
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
            EACH(uint16_t, (real)tl_bf16_to_f32(x));                                               \
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
        default: /* every other type has `unpack` */                                               \
            memset(out, 0, n * sizeof(real));                                                      \
        }                                                                                          \
    }
DEFINE_TO(tl_type_to_f32, float, chunk_to_f32)
DEFINE_TO(tl_type_to_f64, double, chunk_to_f64)

/* ---- quantization ---- */

/* The largest magnitude whose scale fits: float16, but for the types without float16. */
static float limit_of(const struct tl_type_info *t) {
    switch ((enum tl_type)(t - types)) {
    case TL_TYPE_F32:
    case TL_TYPE_BF16:
    case TL_TYPE_MXFP4:
        return FLT_MAX;
    case TL_TYPE_NVFP4:
        return TL_NVFP4_LIMIT;
    default:
        return 65504;
    }
}

bool tl_type_from_f32(const struct tl_type_info *t, const float *x, const float *weight,
                      uint8_t *dst, size_t n) {
    const size_t items = (size_t)t->items, per_chunk = TL_CHUNK / items;
    const float limit = limit_of(t);
    for (size_t left = n / items; left > 0;) {
        const size_t blocks = TL_MIN(left, per_chunk), values = blocks * items;
        bool fits = true;
        for (size_t i = 0; i < values; i++) fits &= x[i] >= -limit && x[i] <= limit;
        if (!fits) return false;
        t->pack(x, weight, blocks, dst);
        x += values;
        if (weight != NULL) weight += values;
        dst += blocks * (size_t)t->bytes;
        left -= blocks;
    }
    return true;
}
