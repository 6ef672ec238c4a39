/*
 * avx2_tile.h - the inner tile of the byte layout for AVX2 in assembly: 16 rows, 6 digits.
 *
 * It needs all 16 registers: 12 sums, 2 of weights, a digit and a product. Compilers reorder the
 * additions and spill half of them. tile_bytes in tile_pairs_template.h is the same in intrinsics,
 * with the same bits; TINYLLM_NO_ASM builds only that.
 */
#ifndef TL_SIMD_AVX2_TILE_H
#define TL_SIMD_AVX2_TILE_H

#define ASM_CLOBBERS                                                                               \
    "cc", "memory", "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8",        \
        "xmm9", "xmm10", "xmm11", "xmm12", "xmm13", "xmm14", "xmm15"
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
                : ASM_CLOBBERS);                                                                   \
    }
DEFINE_TILE_ASM(2)
DEFINE_TILE_ASM(4)
DEFINE_TILE_ASM(8)

/* ---- words ---- */

#define ASM_ADD_WORDS(a, b, j, step)                                                               \
    ASM_DIGIT(j, step)                                                                             \
    "vpmaddwd %%ymm14, %%ymm12, %%ymm15\n"                                                         \
    "vpmaddwd %%ymm14, %%ymm13, %%ymm14\n"                                                         \
    "vpaddd %%ymm15, %%ymm" #a ", %%ymm" #a "\n"                                                   \
    "vpaddd %%ymm14, %%ymm" #b ", %%ymm" #b "\n"
#define ASM_ZERO(a, b, j, step)                                                                    \
    "vpxor %%ymm" #a ", %%ymm" #a ", %%ymm" #a "\n"                                                \
    "vpxor %%ymm" #b ", %%ymm" #b ", %%ymm" #b "\n"
#define ASM_STORE(a, b, j, step)                                                                   \
    "vmovdqu %%ymm" #a ", 64*" #j "(%[s])\n"                                                       \
    "vmovdqu %%ymm" #b ", 64*" #j "+32(%[s])\n"

/* s[6] of 16 rows = dot products of words; steps: a multiple of four */
TL_INLINE void tile_asm_words(v16i *s, const void *w, const void *x, int steps) {
    int fours = steps / 4;
    __asm__ volatile(ASM_DIGITS(ASM_ZERO, 0) "1:\n" ASM_WEIGHTS(0) ASM_DIGITS(ASM_ADD_WORDS, 0)
                         ASM_WEIGHTS(1) ASM_DIGITS(ASM_ADD_WORDS, 1) ASM_WEIGHTS(2)
                             ASM_DIGITS(ASM_ADD_WORDS, 2) ASM_WEIGHTS(3)
                                 ASM_DIGITS(ASM_ADD_WORDS, 3) "add $256, %[w]\n"
                                                              "add $96, %[x]\n"
                                                              "dec %[fours]\n"
                                                              "jnz 1b\n" ASM_DIGITS(ASM_STORE, 0)
                     : [w] "+r"(w), [x] "+r"(x), [fours] "+r"(fours)
                     : [s] "r"(s)
                     : ASM_CLOBBERS);
}

/* ---- fast mode, K types: a block of 32, with what follows the sums ---- */

#define ASM_STEPS_LAST_4                                                                           \
    ASM_WEIGHTS(4)                                                                                 \
    ASM_DIGITS(ASM_SET, 4)                                                                         \
    ASM_WEIGHTS(5)                                                                                 \
    ASM_DIGITS(ASM_ADD, 5)                                                                         \
    ASM_WEIGHTS(6) ASM_DIGITS(ASM_ADD, 6) ASM_WEIGHTS(7) ASM_DIGITS(ASM_ADD, 7)
/* The sums of the first half of the block are kept in memory. */
#define ASM_HALF(a, b, j, step)                                                                    \
    "vpmaddwd (%[scale]), %%ymm" #a ", %%ymm" #a "\n"                                              \
    "vpmaddwd 32(%[scale]), %%ymm" #b ", %%ymm" #b "\n"                                            \
    "vmovdqu %%ymm" #a ", 64*" #j "(%[half])\n"                                                    \
    "vmovdqu %%ymm" #b ", 64*" #j "+32(%[half])\n"
#define ASM_OTHER_HALF(a, b, j, step)                                                              \
    "vpmaddwd (%[other]), %%ymm" #a ", %%ymm" #a "\n"                                              \
    "vpmaddwd 32(%[other]), %%ymm" #b ", %%ymm" #b "\n"                                            \
    "vpaddd 64*" #j "(%[half]), %%ymm" #a ", %%ymm" #a "\n"                                        \
    "vpaddd 64*" #j "+32(%[half]), %%ymm" #b ", %%ymm" #b "\n" ASM_TOTAL(a, b, j)
#define ASM_WHOLE(a, b, j, step)                                                                   \
    "vpmaddwd (%[scale]), %%ymm" #a ", %%ymm" #a "\n"                                              \
    "vpmaddwd 32(%[scale]), %%ymm" #b ", %%ymm" #b "\n" ASM_TOTAL(a, b, j)
/* total = fma(float32(sum), scale of the activations, total) */
#define ASM_TOTAL(a, b, j)                                                                         \
    "vbroadcastss 4*" #j "(%[factor]), %%ymm14\n"                                                  \
    "vcvtdq2ps %%ymm" #a ", %%ymm" #a "\n"                                                         \
    "vcvtdq2ps %%ymm" #b ", %%ymm" #b "\n"                                                         \
    "vfmadd213ps 64*" #j "(%[total]), %%ymm14, %%ymm" #a "\n"                                      \
    "vfmadd213ps 64*" #j "+32(%[total]), %%ymm14, %%ymm" #b "\n"                                   \
    "vmovups %%ymm" #a ", 64*" #j "(%[total])\n"                                                   \
    "vmovups %%ymm" #b ", 64*" #j "+32(%[total])\n"
/*
 * Subtracts what the offset 2^shift of 16 weights has added. Before, the sums may have wrapped
 * around; sums of weights without the offset, at most 32 * 127 * 8, fit in int16.
 */
#define ASM_OFFSET(a, b, at, shift)                                                                \
    "vpbroadcastd " #at "(%[offsets]), %%ymm14\n"                                                  \
    "vpsllw $" #shift ", %%ymm14, %%ymm14\n"                                                       \
    "vpsubw %%ymm14, %%ymm" #a ", %%ymm" #a "\n"                                                   \
    "vpsubw %%ymm14, %%ymm" #b ", %%ymm" #b "\n"
#define ASM_OFFSETS_FIRST(shift)                                                                   \
    ASM_OFFSET(0, 1, 0, shift)                                                                     \
    ASM_OFFSET(2, 3, 4, shift)                                                                     \
    ASM_OFFSET(4, 5, 8, shift)                                                                     \
    ASM_OFFSET(6, 7, 12, shift) ASM_OFFSET(8, 9, 16, shift) ASM_OFFSET(10, 11, 20, shift)
#define ASM_OFFSETS_LAST(shift)                                                                    \
    ASM_OFFSET(0, 1, 24, shift)                                                                    \
    ASM_OFFSET(2, 3, 28, shift)                                                                    \
    ASM_OFFSET(4, 5, 32, shift)                                                                    \
    ASM_OFFSET(6, 7, 36, shift) ASM_OFFSET(8, 9, 40, shift) ASM_OFFSET(10, 11, 44, shift)
#define ASM_TWO_HALVES(first, last)                                                                \
    ASM_STEPS_4 first ASM_DIGITS(ASM_HALF, 0) ASM_STEPS_LAST_4 last ASM_DIGITS(ASM_OTHER_HALF, 0)

#define DEFINE_TILE_FAST(name, body)                                                               \
    TL_INLINE void tile_asm_fast_##name(v16 *total, const void *w, const void *x,                  \
                                        const void *scale, const void *other, const void *offsets, \
                                        const float *factor) {                                     \
        v16i half[6];                                                                              \
        __asm__(                                                                                   \
            body                                                                                   \
            :                                                                                      \
            : [total] "r"(total), [w] "r"(w), [x] "r"(x), [scale] "r"(scale), [other] "r"(other),  \
              [offsets] "r"(offsets), [factor] "r"(factor), [half] "r"(half)                       \
            : ASM_CLOBBERS);                                                                       \
    }
DEFINE_TILE_FAST(8, ASM_STEPS_8 ASM_DIGITS(ASM_WHOLE, 0))
DEFINE_TILE_FAST(4, ASM_TWO_HALVES(, ))
DEFINE_TILE_FAST(offset_4, ASM_TWO_HALVES(ASM_OFFSETS_FIRST(2), ASM_OFFSETS_LAST(2)))
DEFINE_TILE_FAST(offset_32, ASM_TWO_HALVES(ASM_OFFSETS_FIRST(5), ASM_OFFSETS_LAST(5)))

/* Each half of the block has its own scale, or both have the same. */
TL_INLINE void tile_asm_fast(v16 *total, const void *w, const void *x, const void *scale,
                             const void *other, const void *offsets, const float *factor,
                             const int depth, const int offset) {
    if (offset == 32) {
        tile_asm_fast_offset_32(total, w, x, scale, other, offsets, factor);
    } else if (offset == 4) {
        tile_asm_fast_offset_4(total, w, x, scale, other, offsets, factor);
    } else if (depth == 8) {
        tile_asm_fast_8(total, w, x, scale, other, offsets, factor);
    } else {
        tile_asm_fast_4(total, w, x, scale, other, offsets, factor);
    }
}

/* ---- sums of bytes ---- */

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

#endif
