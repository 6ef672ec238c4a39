/* gemm_plain.c - the product and the loops with the fmaf of libm: runs anywhere, but slowly. */
#include "training/gemm.h"
#include "training/loops.h"

#include "kernels/simd/scalar.h"

#define GEMM_ROWS 2
#define GEMM_VECTORS 1
#define GEMM_EACH_SIZE(of) of(2) of(1)
#include "training/loops_template.h"
#include "training/product_template.h"

TL_GEMM(plain)
TL_LOOPS(plain)
