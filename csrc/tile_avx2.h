/*
 * tile_avx2.h - the inner tile of the byte layout for AVX2 in assembly: 16 rows, 6 digits.
 *
 * It needs all 16 registers: 12 sums, 2 of weights, a digit and a product. Compilers reorder the
 * additions and spill half of them. tile_bytes in matmul_panel.h is the same in intrinsics, with
 * the same bits; TINYLLM_NO_ASM builds only that.
 */

#define ASM_WEIGHTS(step)                                                                          \
    "vmovdqu 64*" #step "(%[w]), %%ymm12\n"                                                        \
    "vmovdqu 64*" #step "+32(%[w]), %%ymm13\n"
#define ASM_DIGIT(j, step) "vpbroadcastd 24*" #step "+4*" #j "(%[x]), %%ymm14\n"
/* sums a and b (the rows 0 to 7 and 8 to 15) of digit j: the first step sets, the others add */
#define ASM_SET(a, b, j, step)                                                                     \
    ASM_DIGIT(j, step)                                                                             \
    "vpmaddubsw %%ymm14, %%ymm12, %%ymm" #a "\n"                                                   \
    "vpmaddubsw %%ymm14, %%ymm13, %%ymm" #b "\n"
#define ASM_ADD(a, b, j, step)                                                                     \
    ASM_DIGIT(j, step)                                                                             \
    "vpmaddubsw %%ymm14, %%ymm12, %%ymm15\n"                                                       \
    "vpmaddubsw %%ymm14, %%ymm13, %%ymm14\n"                                                       \
    "vpaddw %%ymm15, %%ymm" #a ", %%ymm" #a "\n"                                                   \
    "vpaddw %%ymm14, %%ymm" #b ", %%ymm" #b "\n"
#define ASM_SCALE(a, b, j, step)                                                                   \
    "vpmaddwd (%[scale]), %%ymm" #a ", %%ymm" #a "\n"                                              \
    "vpmaddwd 32(%[scale]), %%ymm" #b ", %%ymm" #b "\n"                                            \
    "vpaddd 64*" #j "(%[s]), %%ymm" #a ", %%ymm" #a "\n"                                           \
    "vpaddd 64*" #j "+32(%[s]), %%ymm" #b ", %%ymm" #b "\n"                                        \
    "vmovdqu %%ymm" #a ", 64*" #j "(%[s])\n"                                                       \
    "vmovdqu %%ymm" #b ", 64*" #j "+32(%[s])\n"
#define ASM_DIGITS(what, step)                                                                     \
    what(0, 1, 0, step) what(2, 3, 1, step) what(4, 5, 2, step) what(6, 7, 3, step)                \
        what(8, 9, 4, step) what(10, 11, 5, step)
#define ASM_STEPS_2 ASM_WEIGHTS(0) ASM_DIGITS(ASM_SET, 0) ASM_WEIGHTS(1) ASM_DIGITS(ASM_ADD, 1)
#define ASM_STEPS_4                                                                                \
    ASM_STEPS_2                                                                                    \
    ASM_WEIGHTS(2) ASM_DIGITS(ASM_ADD, 2) ASM_WEIGHTS(3) ASM_DIGITS(ASM_ADD, 3)
// clang-format off
#define ASM_STEPS_8                                                                                \
    ASM_STEPS_4                                                                                    \
    ASM_WEIGHTS(4) ASM_DIGITS(ASM_ADD, 4) ASM_WEIGHTS(5) ASM_DIGITS(ASM_ADD, 5)                    \
    ASM_WEIGHTS(6) ASM_DIGITS(ASM_ADD, 6) ASM_WEIGHTS(7) ASM_DIGITS(ASM_ADD, 7)
// clang-format on

/* s[6] of 16 rows += scale * dot products over that many steps */
#define DEFINE_TILE_ASM(steps)                                                                     \
    TL_INLINE void tile_asm_##steps(v16i *s, const void *w, const void *x, const void *scale) {    \
        __asm__(ASM_STEPS_##steps ASM_DIGITS(ASM_SCALE, 0)                                         \
                :                                                                                  \
                : [s] "r"(s), [w] "r"(w), [x] "r"(x), [scale] "r"(scale)                           \
                : "memory", "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7",        \
                  "xmm8", "xmm9", "xmm10", "xmm11", "xmm12", "xmm13", "xmm14", "xmm15");           \
    }
DEFINE_TILE_ASM(2)
DEFINE_TILE_ASM(4)
DEFINE_TILE_ASM(8)

TL_INLINE void tile_asm(v16i *s, const int32_t (*weights)[16], const int32_t *x, const int steps,
                        const int depth, const int32_t *scale) {
    static const int16_t ones[32] = {1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1,
                                     1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1};
    const void *factor = scale != NULL ? (const void *)scale : ones;
    for (int i = 0; i < steps; i += depth) {
        if (depth == 8) tile_asm_8(s, weights + i, x + 6 * i, factor);
        if (depth == 4) tile_asm_4(s, weights + i, x + 6 * i, factor);
        if (depth == 2) tile_asm_2(s, weights + i, x + 6 * i, factor);
    }
}
