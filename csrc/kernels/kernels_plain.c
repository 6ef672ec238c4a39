/* kernels_plain.c - the reference with the fma and fmaf of libm: runs anywhere, and slowly. */
#include "kernels/kernels.h"

#define TL_SIMD TL_SIMD_SCALAR
#include "kernels/simd/simd_int.h"

#include "kernels/template/matmul_template.h"
#include "kernels/template/ops_template.h"

void tl_kernels_init_plain(struct tl_kernels *k, bool fast) {
    matmul_init(k, fast);
    ops_init(k);
}
