/*
 * simd.h - what the file of every instruction set defines: vectors of sixteen lanes, the width in
 * which docs/numerics.md defines every sum.
 *
 * A kernels_<set>.c includes simd/<set>.h inside its target region, and then the templates, which
 * use these names. A lane computes the same correctly rounded operation in every set, so a template
 * gives the same bits everywhere. TL_SIMDE: a test build in which tests/c/simde_missing.h, included
 * first, defines the intrinsics.
 *
 * Facts:
 *   ATTN_QUERIES, ATTN_KEYS   the tile of attention: queries, and vectors of keys
 *   FLOAT_TOKENS, FLOAT_VECTORS   the tile of float weights: tokens, and vectors of 16 rows
 *   PANEL_VECTORS             the tile of quantized weights: vectors of 16 rows
 *   PREFETCH_BYTES            how far ahead of the reads memory is prefetched
 *   PREFETCH_BYTES_NEAR       the same where a few tokens are multiplied, into the first cache
 *   INT8_OFFSET               what is added to weights of eight bits, to multiply them as bytes;
 *                             -1: they are multiplied as int16
 *   SCALED_WORDS              whether exact prompts of Q6_K are multiplied as int16 with the
 *                             sub-scales in the weights
 *   LONG_INLINE               how functions of many operations are compiled; default: TL_INLINE
 *   TILE_ASM                  defined where tile_asm*() is the inner tile in assembly
 *
 * Types: v16 (float32), d16 (float64, sums only); where there are integers v16i (int32) and v16d
 * (float64) as well. Operations: those of scalar.h and avx2.h. The less obvious ones:
 *   v16i_dot2(s, w, x)   s + w0 * x0 + w1 * x1     on pairs of int16
 * For tile_dot4_template.h, on quadruples of bytes, w unsigned (at most 127 + INT8_OFFSET):
 *   v16i_dot4(s, w, x)   s + w0 * x0 + ... + w3 * x3
 * For tile_pairs_template.h the same in two steps, w at most 127, with sums of pairs as int16
 * between them:
 *   v16i_mul_bytes(w, x)       w0 * x0 + w1 * x1 | w2 * x2 + w3 * x3
 *   v16i_add_bytes(s, w, x)    s + v16i_mul_bytes(w, x)
 * All of them are exact as long as the result fits int32.
 *   v16i_look_up(t, x)   every byte of x, 0 to 15, becomes that entry of t; v16i_table(p): the t of
 *                        sixteen bytes at p
 *   v16i_low_words(x)    bytes 0 and 1 of every lane as two int16; high_words: bytes 2 and 3
 *   v16i_pairs(x)        lane 2 j: the low halves of the lanes 2 j and 2 j + 1, as int16
 *   v16i_quads(x)        lane 4 j + p: digit p (0 lowest) of the lanes 4 j to 4 j + 3, as int8
 *   v16i_fold4(x)        lane p: the sum of the lanes p, 4 + p, 8 + p, 12 + p
 */
#ifndef TL_SIMD_H
#define TL_SIMD_H

#include "kernels/kernels.h"

#include <math.h>
#include <string.h>

/* A load and a store of the first n < 16 lanes; the lanes beyond are zero. For a set without masks.
 */
#define V16_PART_BY_COPY                                                                           \
    TL_INLINE v16 v16_load_part(const float *p, size_t n) {                                        \
        float part[16] = {0};                                                                      \
        memcpy(part, p, n * sizeof(float));                                                        \
        return v16_load(part);                                                                     \
    }                                                                                              \
    TL_INLINE void v16_store_part(float *p, size_t n, v16 x) {                                     \
        float part[16];                                                                            \
        v16_store(part, x);                                                                        \
        memcpy(p, part, n * sizeof(float));                                                        \
    }

/* Sixteen rows that are read together; the rows to be read next are `ahead` bytes after them. */
struct rows {
    const uint8_t *at[16];
    size_t ahead;
};

/* The address of byte `at` of row i. Each call prefetches the same byte of the next rows. */
TL_INLINE const uint8_t *row_at(const struct rows *rows, int i, size_t at) {
    const uint8_t *p = rows->at[i] + at;
#if defined(__GNUC__)
    __builtin_prefetch(p + rows->ahead, 0, 2);
#endif
    return p;
}

#endif
