/*
 * kernels_avx512bf16.c - avx512vnni and, in fast mode, dot products of bfloat16 for BF16 weights
 * (docs/numerics.md, section 4).
 *
 * Two bfloat16 are as wide as a float32. So the templates of F32 weights are used, with a matrix of
 * half as many columns and another multiplication.
 */
#include "kernels/kernels.h"

#if TL_X86

TL_TARGET_BEGIN("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512bf16,avx2,fma,f16c")

#include "kernels/simd/avx512bf16.h"

#define LANE_FMA v16_dot_pairs
// clang-format off
#include "kernels/template/format_template.h"
#include "kernels/template/float_gemv_template.h"
#include "kernels/template/float_gemm_template.h"
// clang-format on

static struct tl_kernels vnni; // fast mode of avx512vnni

static size_t pairs_of(size_t cols) {
    return cols / 2 + cols % 2;
}

/* n values as pairs, the last one followed by zeros to `padded` pairs. */
static void round_pairs(const float *x, size_t n, float *pairs, size_t padded) {
    size_t k = 0;
    for (; k + 32 <= n; k += 32) v16_store(pairs + k / 2, v16_round_pairs(x + k));
    for (; k < 2 * padded; k += 32) {
        float part[32] = {0};
        if (k < n) memcpy(part, x + k, (n - k) * sizeof(float));
        v16_store(pairs + k / 2, v16_round_pairs(part));
    }
}

static int pair_format(const struct tl_type_info *type, size_t tokens) {
    if (type != tl_type_find(TL_TYPE_BF16)) return vnni.format(type, tokens);
    return tokens < FLOAT_TILE_MIN ? FORMAT_PAIR_ROW : FORMAT_PAIR_TILE;
}

static size_t pair_pack_bytes(int format, size_t cols, size_t tokens) {
    const size_t padded = round_up(pairs_of(cols), 16);
    if (format < FORMAT_PAIR_ROW) return vnni.pack_bytes(format, cols, tokens);
    if (format == FORMAT_PAIR_TILE) tokens = round_up(tokens, FLOAT_TOKENS);
    return size_product(padded, tokens, sizeof(float));
}

static void pair_pack(int format, const float *x, size_t cols, size_t tokens, size_t first,
                      size_t last, void *packed) {
    const size_t padded = round_up(pairs_of(cols), 16);
    float pairs[SUPERCHUNK];
    if (format < FORMAT_PAIR_ROW) {
        vnni.pack(format, x, cols, tokens, first, last, packed);
        return;
    }
    if (format == FORMAT_PAIR_ROW) {
        for (size_t t = first; t < last; t++) {
            round_pairs(x + (t - first) * cols, cols, (float *)packed + t * padded, padded);
        }
        return;
    }
    // the call that packs the last token also fills the last tile
    const size_t end = last == tokens ? round_up(tokens, FLOAT_TOKENS) : last;
    for (size_t t = first; t < end; t++) {
        float *tile = (float *)packed + t / FLOAT_TOKENS * FLOAT_TOKENS * padded;
        for (size_t k0 = 0; k0 < padded; k0 += SUPERCHUNK) {
            const size_t n = TL_MIN(padded - k0, (size_t)SUPERCHUNK);
            const size_t values = TL_MIN(cols - 2 * k0, 2 * n);
            if (t < tokens) round_pairs(x + (t - first) * cols + 2 * k0, values, pairs, n);
            pack_float_tile(t < tokens ? pairs : NULL, n, t % FLOAT_TOKENS,
                            tile + k0 * FLOAT_TOKENS);
        }
    }
}

static size_t pair_scratch(const struct tl_matrix *w, int format, size_t tokens) {
    if (format < FORMAT_PAIR_ROW) return vnni.scratch(w, format, tokens);
    return format == FORMAT_PAIR_TILE ? float_scratch(TL_MIN(tokens, (size_t)TOKENS_AT_ONCE)) : 0;
}

static void pair_matmul(const struct tl_matrix *w, int format, size_t row0, size_t row1,
                        const void *packed, size_t tokens, float *y, size_t y_stride,
                        void *scratch) {
    struct tl_matrix pairs = *w;
    pairs.type = tl_type_find(TL_TYPE_F32);
    pairs.cols = pairs_of(w->cols);
    if (row0 == row1) return;
    if (format < FORMAT_PAIR_ROW) {
        vnni.matmul(w, format, row0, row1, packed, tokens, y, y_stride, scratch);
    } else if (format == FORMAT_PAIR_ROW) {
        float_gemv(&pairs, row0, row1, packed, tokens, y, y_stride);
    } else {
        for (size_t t = 0; t < tokens; t += TOKENS_AT_ONCE) {
            const float *part = (const float *)packed + t * round_up(pairs.cols, 16);
            float_gemm(&pairs, row0, row1, part, TL_MIN(tokens - t, (size_t)TOKENS_AT_ONCE),
                       y + t * y_stride, y_stride, scratch);
        }
    }
}

void tl_kernels_init_avx512bf16(struct tl_kernels *k, bool fast) {
    tl_kernels_init_avx512vnni(k, fast);
    if (!fast) return;
    vnni = *k;
    k->format = pair_format;
    k->pack_bytes = pair_pack_bytes;
    k->pack = pair_pack;
    k->scratch = pair_scratch;
    k->matmul = pair_matmul;
}

TL_TARGET_END

#endif
