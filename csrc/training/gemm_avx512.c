/* gemm_avx512.c - the product and the loops with 512-bit vectors. */
#include "training/gemm.h"
#include "training/loops.h"

#if TL_X86

TL_TARGET_BEGIN("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")

#include "kernels/simd/avx512.h"

#define GEMM_ROWS 8
#define GEMM_VECTORS 3
#define GEMM_EACH_SIZE(of) of(8) of(4) of(2) of(1)
#include "training/loops_template.h"
#include "training/product_template.h"

TL_GEMM(avx512)
TL_LOOPS(avx512)

TL_TARGET_END

#endif
