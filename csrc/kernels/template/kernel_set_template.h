/*
 * kernel_set_template.h - all kernels of an instruction set: the templates, in order.
 *
 * A template is compiled once per instruction set: it has no include guard and includes nothing.
 *
 * Needs:   simd/<set>.h; where it has integers, TILE_TEMPLATE and GEMV_TEMPLATE, and, if that is in
 *          several files, GEMV_LANES_TEMPLATE, GEMV_GRID_TEMPLATE and GEMV_TILE_TEMPLATE;
 *          BORROWED_OPS where all but matmuls is taken from another set
 * Defines: kernel_set_init, TL_KERNEL_SET
 */
// clang-format off

#include "kernels/template/format_template.h"
#include "kernels/template/float_gemv_template.h"

#ifdef TILE_TEMPLATE

#include "kernels/template/float_gemm_template.h"
#include "kernels/template/panel_template.h"
#include "kernels/template/tile_template.h"
#include TILE_TEMPLATE
#include "kernels/template/pack_template.h"
#include "kernels/template/pack_fast_template.h"
#include "kernels/template/fill_panel_template.h"
#include "kernels/template/gemm_exact_template.h"
#include "kernels/template/gemm_fast_template.h"
#include "kernels/template/gemm_template.h"
#include "kernels/template/gemv_lanes_template.h"
#ifdef GEMV_LANES_TEMPLATE
#include GEMV_LANES_TEMPLATE
#endif
#ifdef GEMV_GRID_TEMPLATE
#include GEMV_GRID_TEMPLATE
#endif
#ifdef GEMV_TILE_TEMPLATE
#include GEMV_TILE_TEMPLATE
#endif
#ifdef GEMV_LANES
#include "kernels/template/gemv_job_template.h"
#endif
#include GEMV_TEMPLATE
#include "kernels/template/int_matmul_template.h"

#else

#include "kernels/template/float_gemm_scalar_template.h"
#include "kernels/template/gemm_scalar_template.h"

#endif

#include "kernels/template/matmul_template.h"
#ifndef BORROWED_OPS
#include "kernels/template/function_template.h"
#include "kernels/template/ops_template.h"
#include "kernels/template/recurrent_template.h"
#endif

// clang-format on

static void kernel_set_init(struct tl_kernels *k, bool fast) {
    matmul_init(k, fast);
#ifndef BORROWED_OPS
    ops_init(k);
    recurrent_init(k);
#endif
}

/* Defines tl_kernels_init_<set>. */
#define TL_KERNEL_SET(set)                                                                         \
    void tl_kernels_init_##set(struct tl_kernels *k, bool fast) {                                  \
        kernel_set_init(k, fast);                                                                  \
    }
