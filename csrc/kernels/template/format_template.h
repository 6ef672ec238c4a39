/*
 * format_template.h - what all matmuls of a set share: the formats of packed activations, how
 * activations are rounded (docs/numerics.md, section 1), and prefetching.
 *
 * Needs:   nothing but simd/<set>.h
 * Defines: enum matmul_format, TOKENS_AT_ONCE, FLOAT_TILE_MIN, size_product, round_up, chunk_scale,
 *          FAST_LIMIT, FAST_TRIES, FAST_LIMIT_WORDS, FAST_LEAST, fast_weight, prefetch_line,
 *          prefetch_bytes, prefetch_rows, scaled_words
 */

/* Layouts of packed activations. */
enum matmul_format {
    FORMAT_FLOAT_ROW,      // as they are, each token zero-padded to a multiple of 16
    FORMAT_FLOAT_TILE,     // lane by lane, FLOAT_TOKENS tokens side by side
    FORMAT_BYTE_ROW,       // rounded to integers, int8 digits, one token or a few
    FORMAT_BYTE_TILE,      // the same, BYTE_TOKENS tokens side by side
    FORMAT_WORD_ROW,       // rounded to integers, int16 digits, one token
    FORMAT_WORD_TILE,      // the same, WORD_TOKENS tokens side by side
    FORMAT_FAST_BYTE_ROW,  // fast mode: int8 with a scale for each 32, one token or a few
    FORMAT_FAST_BYTE_TILE, // the same, FAST_TOKENS tokens side by side
    FORMAT_FAST_WORD_ROW,  // fast mode: int16 with a scale for each 32, one token
    FORMAT_FAST_WORD_TILE, // the same, FAST_TOKENS tokens side by side
    FORMAT_FAST_WIDE_TILE, // like FORMAT_FAST_BYTE_TILE, but each int8 is stored as int16
    FORMAT_PAIR_ROW,       // fast mode: like FORMAT_FLOAT_ROW, with two bfloat16 for each float
    FORMAT_PAIR_TILE,      // the same for FORMAT_FLOAT_TILE
    FORMAT_AMX,            // rounded to integers, int8 digits, 16 tokens for the tiles of AMX
    FORMAT_FAST_AMX,       // fast mode: the same, int8 with a scale for each 32
};

/* At most this many tokens share one pass over a panel, which limits the scratch memory. */
#define TOKENS_AT_ONCE 768 // a multiple of all tiles

/* From this many tokens on, a matrix of floats is unpacked into panels first. */
#define FLOAT_TILE_MIN 12

/* a * b * c, or SIZE_MAX, which no allocation grants. */
static inline size_t size_product(size_t a, size_t b, size_t c) {
    size_t out;
    return tl_mul_size(a, b, &out) && tl_mul_size(out, c, &out) ? out : SIZE_MAX;
}

static inline size_t round_up(size_t n, size_t to) {
    return n <= SIZE_MAX - to ? (n + to - 1) / to * to : SIZE_MAX;
}

/* ---- activations as 24-bit integers ---- */

/*
 * The scale dx of a chunk, and in *factor the power of two by which its activations are multiplied
 * before they are rounded to X. `largest` is the maximum of their bits without the sign. A chunk
 * with a NaN or an infinity has dx = NaN, and then X is all zeros.
 */
static inline double chunk_scale(uint32_t largest, float *factor) {
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
#define FAST_LEAST 0x1p-100f // a block with only smaller values becomes all zeros

/* Weight of a sum of squared errors in steps of largest / limit, to compare different limits. */
TL_INLINE float fast_weight(int limit) {
    return (float)(FAST_LIMIT * FAST_LIMIT) / (float)(limit * limit);
}

/* ---- prefetching ---- */

/* Prefetches a cache line into the first-level cache (`near`) or the second-level one. */
TL_INLINE void prefetch_line(const uint8_t *p, const bool near) {
#if defined(__GNUC__)
    if (near) {
        __builtin_prefetch(p, 0, 3);
    } else {
        __builtin_prefetch(p, 0, 2);
    }
#else
    (void)p, (void)near;
#endif
}

/* Prefetches n bytes into the second-level cache. */
TL_INLINE void prefetch_bytes(const uint8_t *p, size_t n) {
    for (size_t i = 0; i < n; i += 64) prefetch_line(p + i, false);
}

/* Prefetches the first rows, for a loop that reads the rows in order. */
static inline void prefetch_rows(const struct tl_matrix *w, size_t row0, size_t row1) {
    prefetch_bytes(w->data + row0 * w->row_bytes, TL_MIN(row1 - row0, TL_ROW_STEP) * w->row_bytes);
}

/*
 * Whether exact prompts multiply a type as int16 with the sub-scales multiplied into the weights.
 * That is faster for Q6_K where there are no dot products of bytes, because only two products of a
 * six-bit weight fit into int16.
 */
static inline bool scaled_words(const struct tl_type_info *type) {
    return SCALED_WORDS && type == tl_type_find(TL_TYPE_Q6_K);
}
