/*
 * types.h - the table of ggml tensor types, dequantization and quantization.
 *
 * Each type has a row in the table, and a quantized type has a function that unpacks its blocks
 * (unpack.h). That function writes the integers and the scales of up to 256 consecutive values of a
 * row. Dequantization and the reference matmul use only these, so a type that is unpacked correctly
 * is correct everywhere. Ids, names and block layouts: ggml.h and ggml-common.h of ggml.
 */
#ifndef TL_TYPES_H
#define TL_TYPES_H

#include "base/base.h"

enum tl_type {
    TL_TYPE_F32 = 0,
    TL_TYPE_F16 = 1,
    TL_TYPE_Q4_0 = 2,
    TL_TYPE_Q4_1 = 3,
    TL_TYPE_Q5_0 = 6,
    TL_TYPE_Q5_1 = 7,
    TL_TYPE_Q8_0 = 8,
    TL_TYPE_Q8_1 = 9,
    TL_TYPE_Q2_K = 10,
    TL_TYPE_Q3_K = 11,
    TL_TYPE_Q4_K = 12,
    TL_TYPE_Q5_K = 13,
    TL_TYPE_Q6_K = 14,
    TL_TYPE_Q8_K = 15,
    TL_TYPE_IQ2_XXS = 16,
    TL_TYPE_IQ2_XS = 17,
    TL_TYPE_IQ3_XXS = 18,
    TL_TYPE_IQ1_S = 19,
    TL_TYPE_IQ4_NL = 20,
    TL_TYPE_IQ3_S = 21,
    TL_TYPE_IQ2_S = 22,
    TL_TYPE_IQ4_XS = 23,
    TL_TYPE_I8 = 24,
    TL_TYPE_I16 = 25,
    TL_TYPE_I32 = 26,
    TL_TYPE_I64 = 27,
    TL_TYPE_F64 = 28,
    TL_TYPE_IQ1_M = 29,
    TL_TYPE_BF16 = 30,
    TL_TYPE_TQ1_0 = 34,
    TL_TYPE_TQ2_0 = 35,
    TL_TYPE_MXFP4 = 39,
    TL_TYPE_NVFP4 = 40,
    TL_TYPE_Q1_0 = 41,
    TL_TYPE_Q2_0 = 42,
    TL_TYPE_COUNT = 43, // rows of the table; some ids in between were removed from ggml
};

enum tl_kind {
    TL_KIND_REMOVED, // ggml has dropped this id: a file that uses it is rejected
    TL_KIND_ARRAY,   // readable as numbers, not runnable: F64 and the integers
    TL_KIND_FLOAT,   // F32, F16, BF16
    TL_KIND_K,       // integer sub-scales under one float scale per 256
    TL_KIND_32,      // one float scale per 32
    TL_KIND_16,      // one float scale per 16
};

#define TL_CHUNK 256

/*
 * 256 consecutive values of a row, as integers and scales.
 *   TL_KIND_K:   value[i] = d[0] * scale[i / 16] * q[i] - dmin * min[i / 16]
 *   TL_KIND_32:  value[i] = d[i / 32] * q[i] + m[i / 32]
 *   TL_KIND_16:  value[i] = d[i / 16] * q[i]
 * These expressions are exact in float64, and rounding them once gives the float32 value.
 */
struct tl_chunk {
    int8_t q[TL_CHUNK];
    int16_t scale[16];
    int16_t min[16];
    float d[16];
    float m[8];
    float dmin;
    bool has_min; // the type has minima: dmin and min, or m
};

struct tl_type_info {
    const char *name; // ggml's name in capitals, NULL for an id that never existed
    enum tl_kind kind;
    int items; // values per block
    int bytes; // bytes per block
    /* Quantized kinds: `blocks` whole blocks, at most 256 values; the rest of *out is zeroed. */
    void (*unpack)(const uint8_t *src, size_t blocks, struct tl_chunk *out);
    /* The way back (pack.h), or NULL. */
    void (*pack)(const float *x, const float *weight, size_t blocks, uint8_t *dst);
};

/*
 * What a nibble stands for, before its scales: kvalues_iq4nl (IQ4_NL and IQ4_XS) and kvalues_mxfp4
 * of ggml-common.h.
 */
extern const int8_t tl_codebook_iq4[16];
extern const int8_t tl_codebook_mxfp4[16];

/* The row of a type id, or NULL when the id is outside the table or was removed. */
const struct tl_type_info *tl_type_find(uint32_t id);

/* The name that a removed id had ("Q4_2"), or NULL; for error messages. */
const char *tl_type_removed_name(uint32_t id);

/* Bytes of a row of n values; false if n is not a multiple of the block, or on overflow. */
bool tl_type_row_bytes(const struct tl_type_info *t, uint64_t n, size_t *out);

/*
 * Reads n values from src (any alignment), n a multiple of the block size. float64 is exact for
 * every type except I64 beyond 2^53; float32 is the exact value rounded once.
 */
void tl_type_to_f32(const struct tl_type_info *t, const uint8_t *src, float *out, size_t n);
void tl_type_to_f64(const struct tl_type_info *t, const uint8_t *src, double *out, size_t n);

/*
 * Writes n values to dst, n a multiple of the block size, so that the sum of weight * error^2 is
 * small. Weights are positive, one for each value; NULL: all are equal. False, with part of dst
 * written, if a value is not finite or too large for the type. Needs a type with `pack`.
 */
bool tl_type_from_f32(const struct tl_type_info *t, const float *x, const float *weight,
                      uint8_t *dst, size_t n);

#endif
