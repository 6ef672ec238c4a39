/* kernels_neon.c - 128-bit vectors of aarch64 and dot products of bytes (FEAT_DotProd). */
#include "kernels/kernels.h"

#if TL_ARM || defined(TL_SIMDE)

#if TL_ARM && defined(__clang__)
TL_TARGET_BEGIN("dotprod")
#elif TL_ARM
TL_TARGET_BEGIN("arch=armv8.2-a+dotprod")
#endif

#define TL_SIMD TL_SIMD_NEON
#include "kernels/simd/simd_int.h"

#include "kernels/template/matmul_template.h"
#include "kernels/template/ops_template.h"

void tl_kernels_init_neon(struct tl_kernels *k, bool fast) {
    matmul_init(k, fast);
    ops_init(k);
}

#if TL_ARM
TL_TARGET_END
#endif

#endif
