/* kernels_scalar.c - the reference, compiled where fma and fmaf are one instruction. */
#include "kernels/kernels.h"

#if TL_X86
TL_TARGET_BEGIN("fma")
#endif

#include "kernels/simd/scalar.h"
#include "kernels/template/kernel_set_template.h"

TL_KERNEL_SET(scalar)

#if TL_X86
TL_TARGET_END
#endif
