/* kernels_scalar.c - the reference, compiled where fma and fmaf are one instruction. */
#include "kernels/kernels.h"

#if TL_X86
TL_TARGET_BEGIN("fma")
#endif

#define TL_SIMD TL_SIMD_SCALAR
#include "kernels/simd/simd_int.h"

#include "kernels/template/matmul_template.h"
#include "kernels/template/ops_template.h"

void tl_kernels_init_scalar(struct tl_kernels *k, bool fast) {
    matmul_init(k, fast);
    ops_init(k);
}

#if TL_X86
TL_TARGET_END
#endif
