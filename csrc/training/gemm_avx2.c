/* gemm_avx2.c - the product and the loops with 256-bit vectors. */
#include "training/gemm.h"
#include "training/loops.h"

#if TL_X86

TL_TARGET_BEGIN("avx2,fma,f16c")

#include "kernels/simd/avx2.h"

#define GEMM_ROWS 6
#define GEMM_VECTORS 1
#define GEMM_EACH_SIZE(of) of(6) of(3) of(2) of(1)
#include "training/loops_template.h"
#include "training/product_template.h"

TL_GEMM(avx2)
TL_LOOPS(avx2)

TL_TARGET_END

#endif
