/* gemm_scalar.c - the product and the loops, compiled where fmaf is one instruction. */
#include "training/gemm.h"
#include "training/loops.h"

#if TL_X86
TL_TARGET_BEGIN("fma")
#endif

#include "kernels/simd/scalar.h"

#define GEMM_ROWS 2
#define GEMM_VECTORS 1
#define GEMM_EACH_SIZE(of) of(2) of(1)
#include "training/loops_template.h"
#include "training/product_template.h"

TL_GEMM(scalar)
TL_LOOPS(scalar)

#if TL_X86
TL_TARGET_END
#endif
