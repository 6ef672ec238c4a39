/* gemm.c - finds the product for an instruction set. */
#include "training/gemm.h"

#include <string.h>

static const struct {
    const char *set;
    tl_gemm_fn *fn;
} table[] = {
    {"plain", tl_gemm_plain},
#if TL_X86
    {"scalar", tl_gemm_scalar}, {"avx2", tl_gemm_avx2},
    {"avx512", tl_gemm_avx512}, {"avx512vnni", tl_gemm_avx512},
#endif
#if TL_ARM || defined(TL_SIMDE)
    {"neon", tl_gemm_neon},
#endif
};

tl_gemm_fn *tl_gemm_find(const struct tl_kernels *k) {
    const struct tl_kernels *plain = tl_kernels_find("plain");
    for (size_t i = 0; i < TL_ARRAY_LEN(table); i++) {
        if (strcmp(table[i].set, k->name) != 0) continue;
        // without the instruction, "scalar" is compiled as "plain" is
        if (strcmp(k->name, "scalar") == 0 && plain != NULL && k->matmul == plain->matmul) break;
        return table[i].fn;
    }
    return tl_gemm_plain;
}

void tl_gemm_serial(tl_gemm_fn *fn, const struct tl_gemm *g, float *scratch) {
    for (size_t n = 0; n < g->n; n += GEMM_COLUMNS) {
        fn(g, 0, g->m, n, TL_MIN(n + GEMM_COLUMNS, g->n), scratch);
    }
}
