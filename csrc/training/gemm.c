/* gemm.c - finds the product and the loops for an instruction set. */
#include "training/gemm.h"
#include "training/loops.h"

#include <string.h>

static const struct {
    const char *set;
    tl_gemm_fn *gemm;
    const struct tl_loops *loops;
} table[] = {
    {"plain", tl_gemm_plain, &tl_loops_plain},
#if TL_X86
    {"scalar", tl_gemm_scalar, &tl_loops_scalar},
    {"avx2", tl_gemm_avx2, &tl_loops_avx2},
    {"avx512", tl_gemm_avx512, &tl_loops_avx512},
    {"avx512vnni", tl_gemm_avx512, &tl_loops_avx512},
    {"avx512bf16", tl_gemm_avx512, &tl_loops_avx512},
    {"amx", tl_gemm_avx512, &tl_loops_avx512},
#endif
#if TL_ARM || defined(TL_SIMDE)
    {"neon", tl_gemm_neon, &tl_loops_neon},
#endif
};

/* The row of a set. */
static size_t row_of(const struct tl_kernels *k) {
    const struct tl_kernels *plain = tl_kernels_find("plain");
    for (size_t i = 0; i < TL_ARRAY_LEN(table); i++) {
        if (strcmp(table[i].set, k->name) != 0) continue;
        // without the instruction, "scalar" is compiled as "plain" is
        if (strcmp(k->name, "scalar") == 0 && plain != NULL && k->matmul == plain->matmul) break;
        return i;
    }
    return 0;
}

tl_gemm_fn *tl_gemm_find(const struct tl_kernels *k) {
    return table[row_of(k)].gemm;
}

const struct tl_loops *tl_loops_find(const struct tl_kernels *k) {
    return table[row_of(k)].loops;
}

void tl_gemm_serial(tl_gemm_fn *fn, const struct tl_gemm *g, float *scratch) {
    for (size_t n = 0; n < g->n; n += GEMM_COLUMNS) {
        fn(g, 0, g->m, n, TL_MIN(n + GEMM_COLUMNS, g->n), scratch);
    }
}
