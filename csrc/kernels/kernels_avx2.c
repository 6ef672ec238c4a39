/* kernels_avx2.c - 256-bit vectors. */
#include "kernels/kernels.h"

#if TL_X86

TL_TARGET_BEGIN("avx2,fma,f16c")

#define TL_SIMD TL_SIMD_AVX2
#if defined(__GNUC__) && !defined(TINYLLM_NO_ASM)
#define TL_TILE_ASM "kernels/simd/avx2_tile.h"
#endif
#include "kernels/simd/simd_int.h"

#include "kernels/template/matmul_template.h"
#include "kernels/template/ops_template.h"

void tl_kernels_init_avx2(struct tl_kernels *k, bool fast) {
    matmul_init(k, fast);
    ops_init(k);
}

TL_TARGET_END

#endif
