/* kernels_avx512.c - 512-bit vectors. */
#include "kernels/kernels.h"

#if TL_X86

TL_TARGET_BEGIN("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")

#define TL_SIMD TL_SIMD_AVX512
#include "kernels/simd/simd_int.h"

#include "kernels/template/matmul_template.h"
#include "kernels/template/ops_template.h"

void tl_kernels_init_avx512(struct tl_kernels *k, bool fast) {
    matmul_init(k, fast);
    ops_init(k);
}

TL_TARGET_END

#endif
