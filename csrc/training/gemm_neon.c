/* gemm_neon.c - the product and the loops with the 128-bit vectors of aarch64. */
#include "training/gemm.h"
#include "training/loops.h"

#if TL_ARM || defined(TL_SIMDE)

#if TL_ARM && defined(__clang__)
TL_TARGET_BEGIN("dotprod")
#elif TL_ARM
TL_TARGET_BEGIN("arch=armv8.2-a+dotprod")
#endif

#include "kernels/simd/neon.h"

#define GEMM_ROWS 5
#define GEMM_VECTORS 1
#define GEMM_EACH_SIZE(of) of(5) of(2) of(1)
#include "training/loops_template.h"
#include "training/product_template.h"

TL_GEMM(neon)
TL_LOOPS(neon)

#if TL_ARM
TL_TARGET_END
#endif

#endif
