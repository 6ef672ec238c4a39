/*
 * gemm.h - products of float32 matrices that lie anywhere in memory, transposed or not.
 *
 * Each element of a result is one chain of fma per GEMM_DEPTH terms, and the chains are added in
 * order. So its bits depend on no thread, tile or instruction set.
 */
#ifndef TL_GEMM_H
#define TL_GEMM_H

#include "kernels/kernels.h"

/* Terms of one chain. */
#define GEMM_DEPTH 192

/* Columns of a tile at most, and at least a block of any quantized type. */
#define GEMM_COLUMNS 256

/* Floats of scratch that a tile needs. */
#define GEMM_SCRATCH ((size_t)GEMM_DEPTH * GEMM_COLUMNS + GEMM_COLUMNS)

/* C (m, n) = A (m, k) B (k, n), or C + A B. Steps are in floats; a matrix with the steps of its
   transpose is transposed. */
struct tl_gemm {
    size_t m, n, k;
    const float *a;
    size_t a_row, a_col;             // from one row to the next, from one column to the next
    const float *b;                  //
    size_t b_row, b_col;             //
    const struct tl_matrix *weights; // is B, of any type that matmul accepts; NULL: b is
    float *c;
    size_t c_row;
    bool add;
    // Of a triangle or a band, what may be left out. NULL: nothing.
    const struct tl_range *terms;  // (m) the columns of A that are not zero, of each row
    const struct tl_range *wanted; // (m) the columns of C that are of use, of each row
};

/* Computes rows [m0, m1) and columns [n0, n1) of C, at most GEMM_COLUMNS; with weights, n0 is a
   multiple of GEMM_COLUMNS. */
typedef void tl_gemm_fn(const struct tl_gemm *g, size_t m0, size_t m1, size_t n0, size_t n1,
                        float *scratch);

/* The function for the instructions of a set of kernels. */
tl_gemm_fn *tl_gemm_find(const struct tl_kernels *k);

/* The whole product, on the calling thread. */
void tl_gemm_serial(tl_gemm_fn *fn, const struct tl_gemm *g, float *scratch);

/* Each gemm_<set>.c defines one. */
tl_gemm_fn tl_gemm_plain, tl_gemm_scalar, tl_gemm_avx2, tl_gemm_avx512, tl_gemm_neon;

#endif
