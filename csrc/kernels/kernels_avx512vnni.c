/*
 * kernels_avx512vnni.c - 512-bit vectors and dot products of bytes: the matmuls. The rest is
 * that of avx512.
 */
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
#define BORROWED_OPS
#include "kernels/template/kernel_set_template.h"

void tl_kernels_init_avx512vnni(struct tl_kernels *k, bool fast) {
    tl_kernels_init_avx512(k, fast);
    kernel_set_init(k, fast);
}

void tl_panel_fill_avx512vnni(const struct tl_matrix *w, size_t row, size_t end, size_t chunk,
                              struct panel *panel) {
    fill_panel(w, row, end, chunk, panel);
}

TL_TARGET_END

#endif
