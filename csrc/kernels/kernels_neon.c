/* kernels_neon.c - 128-bit vectors of aarch64 and dot products of bytes (FEAT_DotProd). */
#include "kernels/kernels.h"

#if TL_ARM || defined(TL_SIMDE)

#if TL_ARM && defined(__clang__)
TL_TARGET_BEGIN("dotprod")
#elif TL_ARM
TL_TARGET_BEGIN("arch=armv8.2-a+dotprod")
#endif

#include "kernels/simd/neon.h"

#define TILE_TEMPLATE "kernels/template/tile_dot4_template.h"
#define GEMV_TEMPLATE "kernels/template/gemv_panel_template.h"
#include "kernels/template/kernel_set_template.h"

TL_KERNEL_SET(neon)

#if TL_ARM
TL_TARGET_END
#endif

#endif
