/* gemm_scalar.c - the product compiled where fmaf is one instruction. */
#include "training/gemm.h"

#if TL_X86
TL_TARGET_BEGIN("fma")
#endif

#include "kernels/simd/scalar.h"

#define GEMM_ROWS 2
#define GEMM_VECTORS 1
#include "training/product_template.h"

TL_GEMM(scalar)

#if TL_X86
TL_TARGET_END
#endif
