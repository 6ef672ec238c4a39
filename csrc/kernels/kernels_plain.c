/* kernels_plain.c - the reference with the fma and fmaf of libm: runs anywhere, but slowly. */
#include "kernels/kernels.h"

#include "kernels/simd/scalar.h"
#include "kernels/template/kernel_set_template.h"

TL_KERNEL_SET(plain)
