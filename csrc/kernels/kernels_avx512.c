/* kernels_avx512.c - 512-bit vectors. */
#include "kernels/kernels.h"

#if TL_X86

TL_TARGET_BEGIN("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")

#include "kernels/simd/avx512.h"

#define TILE_TEMPLATE "kernels/template/tile_pairs_template.h"
#define GEMV_TEMPLATE "kernels/template/gemv_borrowed_template.h"
#include "kernels/template/kernel_set_template.h"

void tl_kernels_init_avx512(struct tl_kernels *k, bool fast) {
    tl_kernels_init_avx2(&lender, false);
    tl_kernels_init_avx2(&fast_lender, true);
    kernel_set_init(k, fast);
}

TL_TARGET_END

#endif
