/*
 * matmul_template.h - matrix times activations, exact mode: docs/numerics.md, sections 1 and 2.
 *
 * Included by each kernels_<set>.c inside its target region, after simd_int.h. Float weights are
 * here; quantized weights are in matmul_scalar_template.h (as the text defines them) or
 * gemm_template.h (16 rows in the lanes). All that is common to them is here: how activations are
 * rounded, the formats of packed activations, and how a matrix finds its loop.
 */

/* Layouts of packed activations. */
enum matmul_format {
    FORMAT_FLOAT_ROW,      // as they are, each token zero-padded to a multiple of 16
    FORMAT_FLOAT_TILE,     // lane by lane, FLOAT_TOKENS tokens side by side
    FORMAT_BYTE_ROW,       // rounded to integers, int8 digits, one token
    FORMAT_BYTE_TILE,      // the same, BYTE_TOKENS tokens side by side
    FORMAT_WORD_ROW,       // rounded to integers, int16 digits, one token
    FORMAT_WORD_TILE,      // the same, WORD_TOKENS tokens side by side
    FORMAT_FAST_BYTE_ROW,  // fast mode: int8 with a scale for each 32, one token
    FORMAT_FAST_BYTE_TILE, // the same, FAST_TOKENS tokens side by side
    FORMAT_FAST_WORD_ROW,  // fast mode: int16 with a scale for each 32, one token
    FORMAT_FAST_WORD_TILE, // the same, FAST_TOKENS tokens side by side
};

#define SUPERCHUNK 4096 // float weights: columns between two additions of the lanes to y
#define FLOAT_ROWS 16
#define LANE_PAD 16 // keeps the lanes of a panel from falling on the same sets of the L1 cache

/* Rows of floats that are multiplied side by side with few tokens. */
#define FLOAT_CHAINS 4

/* From this many tokens on a matrix of floats is unpacked into panels first. */
#define FLOAT_TILE_MIN 12

/* Tokens that share one pass over a panel: bounds the scratch memory. */
#define TOKENS_AT_ONCE 768 // a multiple of all tiles

#if TL_SIMD == TL_SIMD_AVX512
#define FLOAT_TOKENS 12
#else
#define FLOAT_TOKENS 6
#endif

/* a * b * c, or SIZE_MAX, which no allocation grants. */
static size_t size_product(size_t a, size_t b, size_t c) {
    size_t out;
    return tl_mul_size(a, b, &out) && tl_mul_size(out, c, &out) ? out : SIZE_MAX;
}

static size_t round_up(size_t n, size_t to) {
    return n <= SIZE_MAX - to ? (n + to - 1) / to * to : SIZE_MAX;
}

/* ---- activations as 24-bit integers ---- */

/*
 * The scale of a chunk: dx, and the power of two that turns its activations into the numbers that
 * are rounded to X. `largest` is the maximum of the bits without the sign. A chunk with a NaN or
 * an infinity has dx = NaN, and then X is all zeros.
 */
static double chunk_scale(uint32_t largest, float *factor) {
    uint32_t exponent = (largest + 0x010101u) >> 23, factor_bits;
    uint64_t dx_bits;
    double dx;
    if (largest >= 0x7f800000u) return (double)NAN;
    if (exponent < 23) exponent = 23;
    factor_bits = (276 - exponent) << 23; // 2^(149 - exponent)
    memcpy(factor, &factor_bits, sizeof(*factor));
    dx_bits = (uint64_t)(exponent + 1023 - 149) << 52;
    memcpy(&dx, &dx_bits, sizeof(dx));
    return dx;
}

/*
 * Fast mode: the largest of 32 activations becomes one of the FAST_TRIES integers up to FAST_LIMIT,
 * whichever gives the least error; where digits are int16 it becomes FAST_LIMIT_WORDS.
 */
#define FAST_LIMIT 127
#define FAST_TRIES 8
#define FAST_LIMIT_WORDS 32000.0f
#define FAST_LEAST 0x1p-100f // a block that does not reach it is all zeros

/* What a sum of squared errors in steps of largest / limit counts for. */
TL_INLINE float fast_weight(int limit) {
    return (float)(FAST_LIMIT * FAST_LIMIT) / (float)(limit * limit);
}

/* ---- reading ahead ---- */

/* Asks the memory for bytes that will be read soon, into the second-level cache. */
TL_INLINE void fetch_bytes(const uint8_t *p, size_t n) {
#if defined(__GNUC__)
    for (size_t i = 0; i < n; i += 64) __builtin_prefetch(p + i, 0, 2);
#else
    (void)p, (void)n;
#endif
}

/* The first of these rows, for a loop that takes one after the other. */
static void fetch_rows(const struct tl_matrix *w, size_t row0, size_t row1) {
    fetch_bytes(w->data + row0 * w->row_bytes, TL_MIN(row1 - row0, TL_ROW_STEP) * w->row_bytes);
}

/* How far ahead of what is read. */
#define BYTES_AHEAD 1024

/* ---- float weights ---- */

enum float_type { FLOAT_F32, FLOAT_F16, FLOAT_BF16 };

static enum float_type float_type_of(const struct tl_type_info *type) {
    if (type->bytes == 4) return FLOAT_F32;
    return type == tl_type_find(TL_TYPE_F16) ? FLOAT_F16 : FLOAT_BF16;
}

TL_INLINE size_t float_size(enum float_type type) {
    return type == FLOAT_F32 ? 4 : 2;
}

TL_INLINE v16 load_weights(enum float_type type, const uint8_t *p) {
    if (type == FLOAT_F16) return v16_load_f16(p);
    if (type == FLOAT_BF16) return v16_load_bf16(p);
    return v16_load_f32(p);
}

TL_INLINE v16 load_weights_part(enum float_type type, const uint8_t *p, size_t n) {
    uint8_t part[64] = {0};
    memcpy(part, p, n * float_size(type));
    return load_weights(type, part);
}

/* y += the lanes of s, one after another. */
TL_INLINE float add_lanes(float y, v16 s) {
    float lane[16];
    v16_store(lane, s);
    for (int l = 0; l < 16; l++) y += lane[l];
    return y;
}

/*
 * Rows times one token. The sum of a row is one chain of additions; several rows are several
 * chains, and each reads a stretch of memory of its own.
 */
TL_INLINE void float_rows(const uint8_t *const *row, const size_t rows, enum float_type type,
                          size_t cols, const float *x, float *sum) {
    const size_t size = float_size(type);
    for (size_t r = 0; r < rows; r++) sum[r] = 0;
    for (size_t k0 = 0; k0 < cols; k0 += SUPERCHUNK) {
        size_t end = cols - k0 < SUPERCHUNK ? cols : k0 + SUPERCHUNK, k = k0;
        v16 s[FLOAT_CHAINS];
        for (size_t r = 0; r < rows; r++) s[r] = v16_set1(0);
        for (; k + 16 <= end; k += 16) {
            for (size_t r = 0; r < rows; r++) {
                fetch_bytes(row[r] + k * size + BYTES_AHEAD, 1);
                s[r] = v16_fma(load_weights(type, row[r] + k * size), v16_load(x + k), s[r]);
            }
        }
        for (size_t r = 0; r < rows; r++) {
            if (k < end) {
                v16 part = load_weights_part(type, row[r] + k * size, end - k);
                s[r] = v16_fma(part, v16_load(x + k), s[r]);
            }
            sum[r] = add_lanes(sum[r], s[r]);
        }
    }
}

TL_INLINE void float_matvec(const struct tl_matrix *w, enum float_type type, size_t row0,
                            size_t row1, const float *x, size_t tokens, float *y, size_t y_stride) {
    const size_t stride = round_up(w->cols, 16), each = (row1 - row0) / FLOAT_CHAINS;
    float sum[FLOAT_CHAINS];
    for (size_t i = 0; i < each; i++) {
        const uint8_t *row[FLOAT_CHAINS];
        for (size_t r = 0; r < FLOAT_CHAINS; r++) {
            row[r] = w->data + (row0 + r * each + i) * w->row_bytes;
        }
        for (size_t t = 0; t < tokens; t++) {
            float_rows(row, FLOAT_CHAINS, type, w->cols, x + t * stride, sum);
            for (size_t r = 0; r < FLOAT_CHAINS; r++) {
                y[t * y_stride + row0 + r * each + i] = sum[r];
            }
        }
    }
    for (size_t i = row0 + FLOAT_CHAINS * each; i < row1; i++) {
        const uint8_t *row = w->data + i * w->row_bytes;
        for (size_t t = 0; t < tokens; t++) {
            float_rows(&row, 1, type, w->cols, x + t * stride, &y[t * y_stride + i]);
        }
    }
}

#if TL_SIMD == TL_SIMD_SCALAR

// the scalar sets take all tokens row by row
static void pack_float_tile(const float *x, size_t cols, size_t token, float *packed) {
    (void)x, (void)cols, (void)token, (void)packed;
}

/* Row by row as well, but the weights of a superchunk are converted once for all tokens. */
TL_INLINE void float_matmul(const struct tl_matrix *w, enum float_type type, size_t row0,
                            size_t row1, const float *packed, size_t tokens, float *y,
                            size_t y_stride, float *scratch) {
    const size_t size = float_size(type), padded = round_up(w->cols, 16);
    float values[SUPERCHUNK];
    (void)scratch;
    for (size_t row = row0; row < row1; row++) {
        const uint8_t *p = w->data + row * w->row_bytes;
        for (size_t t = 0; t < tokens; t++) y[t * y_stride + row] = 0;
        for (size_t k0 = 0; k0 < w->cols; k0 += SUPERCHUNK) {
            const size_t n = TL_MIN(w->cols - k0, (size_t)SUPERCHUNK);
            for (size_t k = 0; k < n; k += 16) {
                const uint8_t *from = p + (k0 + k) * size;
                v16_store(values + k, n - k < 16 ? load_weights_part(type, from, n - k)
                                                 : load_weights(type, from));
            }
            for (size_t t = 0; t < tokens; t++) {
                const float *x = packed + t * padded + k0;
                v16 s = v16_set1(0);
                for (size_t k = 0; k < n; k += 16) {
                    s = v16_fma(v16_load(values + k), v16_load(x + k), s);
                }
                y[t * y_stride + row] = add_lanes(y[t * y_stride + row], s);
            }
        }
    }
}

#else

/*
 * Packed tiles: for each tile, superchunk and lane the values k = lane, lane + 16, ... of
 * FLOAT_TOKENS tokens side by side. Columns are zero-padded to 16.
 */
static void pack_float_tile(const float *x, size_t cols, size_t token, float *packed) {
    const size_t padded = round_up(cols, 16);
    float *tile = packed + token / FLOAT_TOKENS * FLOAT_TOKENS * padded + token % FLOAT_TOKENS;
    for (size_t k0 = 0; k0 < padded; k0 += SUPERCHUNK) {
        size_t steps = TL_MIN(padded - k0, (size_t)SUPERCHUNK) / 16;
        float *out = tile + k0 * FLOAT_TOKENS;
        for (size_t lane = 0; lane < 16; lane++) {
            for (size_t i = 0; i < steps; i++) {
                size_t k = k0 + i * 16 + lane;
                out[(lane * steps + i) * FLOAT_TOKENS] = x != NULL && k < cols ? x[k] : 0;
            }
        }
    }
}

/*
 * The columns [k0, k0 + steps * 16) of FLOAT_ROWS rows as (lane, step, row). A row that is not
 * there repeats the last one; nobody reads its sums.
 */
TL_INLINE void float_panel(const struct tl_matrix *w, enum float_type type, size_t row, size_t rows,
                           size_t k0, size_t steps, float *panel) {
    const size_t size = float_size(type);
    for (size_t i = 0; i < steps; i++) {
        const size_t k = k0 + i * 16, left = w->cols - k;
        v16i column[16];
        for (size_t r = 0; r < FLOAT_ROWS; r++) {
            const uint8_t *p = w->data + (row + TL_MIN(r, rows - 1)) * w->row_bytes + k * size;
            column[r] =
                v16i_bits(left >= 16 ? load_weights(type, p) : load_weights_part(type, p, left));
        }
        v16i_transpose(column);
        for (size_t l = 0; l < 16; l++) {
            v16i_store(panel + l * (steps * FLOAT_ROWS + LANE_PAD) + i * FLOAT_ROWS, column[l]);
        }
    }
}

/* sums (FLOAT_TOKENS, 16 rows) += one lane of the panel times the same lane of one tile. */
TL_INLINE void float_tile(const float *panel, const float *x, size_t steps, float *sums) {
    v16 s[FLOAT_TOKENS];
    for (int t = 0; t < FLOAT_TOKENS; t++) s[t] = v16_set1(0);
    for (size_t i = 0; i < steps; i++) {
        v16 weights = v16_load(panel + i * FLOAT_ROWS);
        TL_UNROLL(12)
        for (int t = 0; t < FLOAT_TOKENS; t++) {
            s[t] = v16_fma(weights, v16_set1(x[i * FLOAT_TOKENS + (size_t)t]), s[t]);
        }
    }
    for (int t = 0; t < FLOAT_TOKENS; t++) {
        float *out = sums + t * FLOAT_ROWS;
        v16_store(out, v16_add(v16_load(out), s[t]));
    }
}

TL_INLINE void float_matmul(const struct tl_matrix *w, enum float_type type, size_t row0,
                            size_t row1, const float *packed, size_t tokens, float *y,
                            size_t y_stride, float *scratch) {
    const size_t padded = round_up(w->cols, 16), tile_size = FLOAT_TOKENS * padded;
    float *panel = scratch, *sums = scratch + FLOAT_ROWS * SUPERCHUNK + 16 * LANE_PAD;
    for (size_t row = row0; row < row1; row += FLOAT_ROWS) {
        size_t rows = TL_MIN(row1 - row, (size_t)FLOAT_ROWS);
        size_t tiles = (tokens + FLOAT_TOKENS - 1) / FLOAT_TOKENS;
        memset(sums, 0, tiles * FLOAT_TOKENS * FLOAT_ROWS * sizeof(float));
        for (size_t k0 = 0; k0 < padded; k0 += SUPERCHUNK) {
            size_t steps = TL_MIN(padded - k0, (size_t)SUPERCHUNK) / 16;
            float_panel(w, type, row, rows, k0, steps, panel);
            for (size_t lane = 0; lane < 16; lane++) {
                for (size_t i = 0; i < tiles; i++) {
                    float_tile(panel + lane * (steps * FLOAT_ROWS + LANE_PAD),
                               packed + i * tile_size + (k0 + lane * steps) * FLOAT_TOKENS, steps,
                               sums + i * FLOAT_TOKENS * FLOAT_ROWS);
                }
            }
        }
        for (size_t t = 0; t < tokens; t++) {
            memcpy(y + t * y_stride + row, sums + t * FLOAT_ROWS, rows * sizeof(float));
        }
    }
}

#endif

/* One copy of a loop for each float type, so that the type is a constant inside. */
#define FLOAT_DISPATCH(function, ...)                                                              \
    switch (float_type_of(w->type)) {                                                              \
    case FLOAT_F32:                                                                                \
        function(w, FLOAT_F32, __VA_ARGS__);                                                       \
        break;                                                                                     \
    case FLOAT_F16:                                                                                \
        function(w, FLOAT_F16, __VA_ARGS__);                                                       \
        break;                                                                                     \
    case FLOAT_BF16:                                                                               \
        function(w, FLOAT_BF16, __VA_ARGS__);                                                      \
        break;                                                                                     \
    }

/* ---- quantized weights ---- */

/*
 * Where there are no dot products of bytes, and only two products of a six-bit weight fit into
 * int16, exact prompts of Q6_K are faster as int16 with the sub-scales multiplied in.
 */
static bool scaled_words(const struct tl_type_info *type) {
    return TL_SIMD == TL_SIMD_AVX2 && type == tl_type_find(TL_TYPE_Q6_K);
}

#if TL_SIMD == TL_SIMD_SCALAR
#include "kernels/template/gemm_scalar_template.h"
#else
#include "kernels/template/gemm_template.h"
#endif

/* ---- the entries of struct tl_kernels ---- */

static int matmul_format(const struct tl_type_info *type, size_t tokens) {
    if (type->kind == TL_KIND_FLOAT) {
        bool few = tokens < FLOAT_TILE_MIN || TL_SIMD == TL_SIMD_SCALAR;
        return few ? FORMAT_FLOAT_ROW : FORMAT_FLOAT_TILE;
    }
    if (tokens > 1 && scaled_words(type)) return FORMAT_WORD_TILE;
    if (int_in_bytes(type)) return tokens == 1 ? FORMAT_BYTE_ROW : FORMAT_BYTE_TILE;
    return tokens == 1 ? FORMAT_WORD_ROW : FORMAT_WORD_TILE;
}

static int matmul_format_fast(const struct tl_type_info *type, size_t tokens) {
    if (type->kind == TL_KIND_FLOAT) return matmul_format(type, tokens);
    if (int_in_bytes(type)) return tokens == 1 ? FORMAT_FAST_BYTE_ROW : FORMAT_FAST_BYTE_TILE;
    return tokens == 1 ? FORMAT_FAST_WORD_ROW : FORMAT_FAST_WORD_TILE;
}

static size_t matmul_pack_bytes(int format, size_t cols, size_t tokens) {
    switch ((enum matmul_format)format) {
    case FORMAT_FLOAT_ROW:
        return size_product(round_up(cols, 16), tokens, sizeof(float));
    case FORMAT_FLOAT_TILE:
        return size_product(round_up(cols, 16), round_up(tokens, FLOAT_TOKENS), sizeof(float));
    default:
        return int_pack_bytes((enum matmul_format)format, cols, tokens);
    }
}

static void matmul_pack(int format, const float *x, size_t cols, size_t tokens, size_t first,
                        size_t last, void *packed) {
    const size_t padded = round_up(cols, 16);
    switch ((enum matmul_format)format) {
    case FORMAT_FLOAT_ROW:
        for (size_t t = first; t < last; t++) {
            float *out = (float *)packed + t * padded;
            memcpy(out, x + t * cols, cols * sizeof(float));
            memset(out + cols, 0, (padded - cols) * sizeof(float));
        }
        break;
    case FORMAT_FLOAT_TILE:
        for (size_t t = first; t < last; t++) pack_float_tile(x + t * cols, cols, t, packed);
        // whoever packs the last token also fills the last tile
        for (size_t t = tokens; last == tokens && t % FLOAT_TOKENS != 0; t++) {
            pack_float_tile(NULL, cols, t, packed);
        }
        break;
    default:
        int_pack((enum matmul_format)format, x, cols, tokens, first, last, packed);
    }
}

static size_t matmul_scratch(const struct tl_matrix *w, int format, size_t tokens) {
    size_t at_once = TL_MIN(tokens, (size_t)TOKENS_AT_ONCE);
    switch ((enum matmul_format)format) {
    case FORMAT_FLOAT_ROW:
        return 0;
    case FORMAT_FLOAT_TILE:
        return FLOAT_ROWS * sizeof(float) *
               (SUPERCHUNK + LANE_PAD + round_up(at_once, FLOAT_TOKENS));
    default:
        return int_scratch((enum matmul_format)format, w->cols, at_once);
    }
}

static void matmul_matmul(const struct tl_matrix *w, int format, size_t row0, size_t row1,
                          const void *packed, size_t tokens, float *y, size_t y_stride,
                          void *scratch) {
    const uint8_t *x = packed;
    if (format == FORMAT_FLOAT_ROW && TL_SIMD == TL_SIMD_SCALAR && tokens > 1) {
        FLOAT_DISPATCH(float_matmul, row0, row1, packed, tokens, y, y_stride, scratch)
        return;
    }
    if (format == FORMAT_FLOAT_ROW) {
        FLOAT_DISPATCH(float_matvec, row0, row1, packed, tokens, y, y_stride)
        return;
    }
    for (size_t t = 0; t < tokens; t += TOKENS_AT_ONCE) {
        size_t n = TL_MIN(tokens - t, (size_t)TOKENS_AT_ONCE);
        const void *part = x + matmul_pack_bytes(format, w->cols, t);
        if (format == FORMAT_FLOAT_TILE) {
            FLOAT_DISPATCH(float_matmul, row0, row1, part, n, y + t * y_stride, y_stride, scratch)
        } else {
            int_matmul((enum matmul_format)format, w, row0, row1, part, n, y + t * y_stride,
                       y_stride, scratch);
        }
    }
}

static void matmul_fetch(const struct tl_matrix *w, int format, size_t row0, size_t row1) {
    int_fetch((enum matmul_format)format, w, row0, row1);
}

static void matmul_init(struct tl_kernels *k, bool fast) {
    k->format = fast ? matmul_format_fast : matmul_format;
    k->pack_bytes = matmul_pack_bytes;
    k->pack = matmul_pack;
    k->scratch = matmul_scratch;
    k->matmul = matmul_matmul;
    k->prefetch = matmul_fetch;
}
