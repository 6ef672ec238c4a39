/* kernels_avx512.c - 512-bit vectors. */
#include "kernels/kernels.h"
#include "types/grids.h"

#if TL_X86

TL_TARGET_BEGIN("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")

#include "kernels/simd/avx512.h"

#define TILE_TEMPLATE "kernels/template/tile_pairs_template.h"
#define GEMV_LANES_TEMPLATE "kernels/template/gemv_avx2_lanes_template.h"
#define GEMV_GRID_TEMPLATE "kernels/template/gemv_avx2_grid_template.h"
#define GEMV_TEMPLATE "kernels/template/gemv_avx2_template.h"
#include "kernels/template/kernel_set_template.h"

TL_KERNEL_SET(avx512)

TL_TARGET_END

#endif
