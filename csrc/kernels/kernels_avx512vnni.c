/* kernels_avx512vnni.c - 512-bit vectors and dot products of bytes. */
#include "kernels/kernels.h"
#include "types/grids.h"

#if TL_X86

TL_TARGET_BEGIN("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")

#include "kernels/simd/avx512vnni.h"

#define TILE_TEMPLATE "kernels/template/tile_dot4_template.h"
#define GEMV_LANES_TEMPLATE "kernels/template/gemv_vnni_lanes_template.h"
#define GEMV_GRID_TEMPLATE "kernels/template/gemv_vnni_grid_template.h"
#define GEMV_TILE_TEMPLATE "kernels/template/gemv_vnni_tile_template.h"
#define GEMV_TEMPLATE "kernels/template/gemv_vnni_template.h"
#include "kernels/template/kernel_set_template.h"

TL_KERNEL_SET(avx512vnni)

TL_TARGET_END

#endif
