/*
 * gemm_template.h - quantized weights times many tokens: rows are unpacked into panels, and every
 * tile of tokens is multiplied with them.
 *
 * Needs:   fill_panel_template.h, gemm_exact_template.h, gemm_fast_template.h
 * Defines: struct tiling, tiling_of, pack_size, pack_tokens, tile_type, TILE_FUNCTIONS,
 *          fill_panel, panel_scratch, panel_gemm
 */

/* How activations are packed: the layout, and how many tokens lie side by side. */
struct tiling {
    enum layout layout;
    size_t tokens;
};

/* The tiling of a format of quantized weights; that of one token has a tile of one. */
static struct tiling tiling_of(enum matmul_format format) {
    switch (format) {
    case FORMAT_BYTE_ROW:
        return (struct tiling){LAYOUT_BYTES, 1};
    case FORMAT_BYTE_TILE:
        return (struct tiling){LAYOUT_BYTES, BYTE_TOKENS};
    case FORMAT_WORD_ROW:
        return (struct tiling){LAYOUT_WORDS, 1};
    case FORMAT_WORD_TILE:
        return (struct tiling){LAYOUT_WORDS, WORD_TOKENS};
    case FORMAT_FAST_BYTE_ROW:
        return (struct tiling){LAYOUT_FAST_BYTES, 1};
    case FORMAT_FAST_BYTE_TILE:
        return (struct tiling){LAYOUT_FAST_BYTES, FAST_TOKENS};
    case FORMAT_FAST_WORD_ROW:
        return (struct tiling){LAYOUT_FAST_WORDS, 1};
    case FORMAT_FAST_WORD_TILE:
        return (struct tiling){LAYOUT_FAST_WORDS, FAST_TOKENS};
    default: // FORMAT_FAST_WIDE_TILE
        return (struct tiling){LAYOUT_FAST_WIDE, FAST_TOKENS};
    }
}

static size_t tiling_bytes(struct tiling tiling) {
    const bool bytes = layout_in_bytes(tiling.layout);
    return tiling.layout >= LAYOUT_FAST_BYTES ? fast_record_bytes(bytes, tiling.tokens)
                                              : record_bytes(bytes, tiling.tokens);
}

static size_t pack_size(struct tiling tiling, size_t cols, size_t tokens) {
    return size_product(round_up(cols, TL_CHUNK) / TL_CHUNK,
                        round_up(tokens, tiling.tokens) / tiling.tokens, tiling_bytes(tiling));
}

static void pack_tokens(struct tiling tiling, const float *x, size_t cols, size_t tokens,
                        size_t first, size_t last, void *packed) {
    const size_t chunks = round_up(cols, TL_CHUNK) / TL_CHUNK, tile = tiling.tokens;
    const bool bytes = layout_in_bytes(tiling.layout);
    const float zero[TL_CHUNK] = {0};
    // the call that packs the last token also fills the last tile with zeros
    size_t end = last == tokens ? round_up(tokens, tile) : last;
    for (size_t t = first; t < end; t++) {
        for (size_t c = 0; c < chunks; c++) {
            size_t n = TL_MIN(cols - c * TL_CHUNK, (size_t)TL_CHUNK), at = t / tile * chunks + c;
            const float *part = t < tokens ? x + (t - first) * cols + c * TL_CHUNK : zero;
            if (tiling.layout >= LAYOUT_FAST_BYTES) {
                fast_pack_record(tiling.layout, part, n, tile, t % tile,
                                 fast_record_at(packed, bytes, tile, at));
            } else {
                v16i X[16];
                double dx = round_chunk(part, n, X);
                pack_record(bytes, X, dx, tile, t % tile, record_at(packed, bytes, tile, at));
            }
        }
    }
}

/*
 * sums += one tile times n chunks of a panel; records are `bytes` apart. Sums are float64, in fast
 * mode float32. `offset` is that of the type. There is one function for each layout and for types
 * whose other traits are the same, which are constants inside.
 */
typedef void tile_function(const struct panel *panel, size_t n, const char *record, size_t bytes,
                           int offset, void *sums);

/* The types that tile_type names, with the function that makes theirs. */
#if USES_WORDS
#define TILE_TYPES(k, block, wide, ...)                                                            \
    k(Q2_K, __VA_ARGS__) k(Q3_K, __VA_ARGS__) k(Q4_K, __VA_ARGS__) k(Q5_K, __VA_ARGS__)            \
        k(Q6_K, __VA_ARGS__) block(Q4_0, __VA_ARGS__) block(Q4_1, __VA_ARGS__)                     \
            block(Q5_0, __VA_ARGS__) block(Q5_1, __VA_ARGS__) wide(MXFP4, 8, __VA_ARGS__)          \
                wide(NVFP4, 16, __VA_ARGS__)
#elif INT8_OFFSET == 0
#define TILE_TYPES(k, block, wide, ...)                                                            \
    k(Q2_K, __VA_ARGS__) k(Q4_K, __VA_ARGS__) k(Q6_K, __VA_ARGS__) k(IQ4_XS, __VA_ARGS__)          \
        k(IQ2_XS, __VA_ARGS__) block(Q4_0, __VA_ARGS__) block(Q4_1, __VA_ARGS__)                   \
            block(Q8_0, __VA_ARGS__) wide(MXFP4, 8, __VA_ARGS__) wide(NVFP4, 16, __VA_ARGS__)
#else
#define TILE_TYPES(k, block, wide, ...)                                                            \
    k(Q2_K, __VA_ARGS__) k(Q4_K, __VA_ARGS__) k(Q6_K, __VA_ARGS__) k(IQ4_XS, __VA_ARGS__)          \
        block(Q4_0, __VA_ARGS__) block(Q4_1, __VA_ARGS__) wide(MXFP4, 8, __VA_ARGS__)              \
            wide(NVFP4, 16, __VA_ARGS__)
#endif

/* The type whose tiles are multiplied in the same way. */
static enum tl_type tile_type(enum tl_type id) {
    id = like_type(id);
    if (USES_WORDS) return id;
    switch (id) { // four products of bytes are added at once, whatever their depth
    case TL_TYPE_Q5_K:
        return TL_TYPE_Q4_K;
    case TL_TYPE_Q3_K:
        return TL_TYPE_Q6_K;
    case TL_TYPE_IQ2_XS:
        return INT8_OFFSET > 0 ? TL_TYPE_Q6_K : id;
    case TL_TYPE_Q5_0:
        return TL_TYPE_Q4_0;
    case TL_TYPE_Q8_0:
        return INT8_OFFSET > 0 ? TL_TYPE_Q4_0 : id;
    case TL_TYPE_Q5_1:
        return TL_TYPE_Q4_1;
    default:
        return id;
    }
}

#define TILE_FUNCTION(name, call)                                                                  \
    static void tile_##name(const struct panel *panel, size_t n, const char *record, size_t bytes, \
                            int offset, void *sums) {                                              \
        (void)offset;                                                                              \
        for (; n > 0; n--, panel++, record += bytes) call;                                         \
    }
#define TILE_EXACT(tokens) record_at(record, true, tokens, 0), tokens
#define TILE_FAST(tokens) fast_record_at(record, true, tokens, 0), tokens
#define TILE_K(name, set, exact, fast)                                                             \
    TILE_FUNCTION(set##_exact_##name,                                                              \
                  tile_add_k(panel, TILE_EXACT(exact), traits_of(TL_TYPE_##name), offset, sums))   \
    TILE_FUNCTION(set##_fast_##name,                                                               \
                  fast_add_k(panel, TILE_FAST(fast), traits_of(TL_TYPE_##name), offset, sums))
#define TILE_32(name, set, exact, fast)                                                            \
    TILE_FUNCTION(set##_exact_##name, tile_add_32(true, panel, TILE_EXACT(exact),                  \
                                                  traits_of(TL_TYPE_##name), offset, sums))        \
    TILE_FUNCTION(set##_fast_##name, fast_add_32(true, panel, 8, TILE_FAST(fast),                  \
                                                 traits_of(TL_TYPE_##name), offset, sums))
#define TILE_WIDE(name, blocks, set, exact, fast)                                                  \
    TILE_FUNCTION(set##_exact_##name, tile_add_wide(panel, blocks, TILE_EXACT(exact),              \
                                                    traits_of(TL_TYPE_##name), sums))              \
    TILE_FUNCTION(set##_fast_##name, fast_add_32(true, panel, blocks, TILE_FAST(fast),             \
                                                 traits_of(TL_TYPE_##name), MXFP4_OFFSET, sums))

#if USES_WORDS
#define TILE_WORDS(tokens) record_at(record, false, tokens, 0), tokens
#define TILE_FAST_WORDS(tokens) fast_record_at(record, false, tokens, 0), tokens
#define TILE_WORD_FUNCTIONS(set, words, fast)                                                      \
    TILE_FUNCTION(set##_scaled, tile_add_scaled_words(panel, TILE_WORDS(words), sums))             \
    TILE_FUNCTION(set##_words,                                                                     \
                  tile_add_32(false, panel, TILE_WORDS(words), traits_of(TL_TYPE_Q8_0), 0, sums))  \
    TILE_FUNCTION(set##_fast_scaled, fast_add_scaled_words(panel, TILE_FAST_WORDS(fast), sums))    \
    TILE_FUNCTION(set##_fast_words, fast_add_32(false, panel, 8, TILE_FAST_WORDS(fast),            \
                                                traits_of(TL_TYPE_Q8_0), 0, sums))                 \
    static tile_function *tile_find_words_##set(enum layout layout, enum tl_type id) {             \
        if (layout == LAYOUT_WORDS) return is_k(id) ? tile_##set##_scaled : tile_##set##_words;    \
        return layout == LAYOUT_FAST_WIDE && is_k(id) ? tile_##set##_fast_scaled                   \
                                                      : tile_##set##_fast_words;                   \
    }
#define TILE_FIND_WORDS(set) tile_find_words_##set(layout, id)
#else
#define TILE_WORD_FUNCTIONS(set, words, fast)
#define TILE_FIND_WORDS(set) NULL
#endif

#define TILE_CASE(name, set)                                                                       \
    case TL_TYPE_##name:                                                                           \
        return layout == LAYOUT_BYTES ? tile_##set##_exact_##name : tile_##set##_fast_##name;
#define TILE_CASE_WIDE(name, blocks, set) TILE_CASE(name, set)

/* Defines tile_find_<set>, which returns the function of a type, for tiles of that many tokens in
   the layouts of bytes, of words, and of fast mode. */
#define TILE_FUNCTIONS(set, exact, words, fast)                                                    \
    TILE_TYPES(TILE_K, TILE_32, TILE_WIDE, set, exact, fast)                                       \
    TILE_WORD_FUNCTIONS(set, words, fast)                                                          \
    static tile_function *tile_find_##set(enum layout layout, enum tl_type id) {                   \
        if (!layout_in_bytes(layout)) return TILE_FIND_WORDS(set);                                 \
        switch (tile_type(id)) {                                                                   \
            TILE_TYPES(TILE_CASE, TILE_CASE, TILE_CASE_WIDE, set)                                  \
        default:                                                                                   \
            return NULL;                                                                           \
        }                                                                                          \
    }

/* Unpacks a chunk of the rows from `row` on; `end` is the first that is not there. */
static void fill_panel(const struct tl_matrix *w, size_t row, size_t end, size_t chunk,
                       struct panel *panel) {
    const size_t per_chunk = (size_t)(TL_CHUNK / w->type->items), first = chunk * per_chunk;
    const size_t blocks = w->cols / (size_t)w->type->items - first;
    const uint8_t *src = w->data + first * (size_t)w->type->bytes;
    for (size_t r0 = 0; r0 < PANEL_ROWS; r0 += 16) {
        struct rows at = {.ahead = PANEL_ROWS * w->row_bytes};
        for (size_t r = 0; r < 16; r++) {
            at.at[r] = src + TL_MIN(row + r0 + r, end - 1) * w->row_bytes;
        }
        fill_rows(w->type, &at, TL_MIN(blocks, per_chunk), r0, panel);
    }
}

static void panel_gemm(tile_function *add, struct tiling tiling, const struct tl_matrix *w,
                       size_t row0, size_t row1, const void *packed, size_t tokens, float *y,
                       size_t y_stride, void *scratch) {
    const enum layout layout = tiling.layout;
    const size_t tile = tiling.tokens;
    const struct tl_type_info *type = w->type;
    const int offset = traits_of(type_id(type)).offset;
    const bool words = layout == LAYOUT_WORDS && scaled_words(type);
    const size_t chunks = round_up(w->cols, TL_CHUNK) / TL_CHUNK;
    const size_t tiles = (tokens + tile - 1) / tile;
    const size_t chunks_at_once = tiles <= 4 ? 1 : PANEL_CHUNKS;
    struct panel *panels = scratch;
    const size_t sum_bytes = layout < LAYOUT_FAST_BYTES ? sizeof(double) : sizeof(float);
    const size_t record_size = tiling_bytes(tiling);
    char *sums = (char *)scratch + round_up(PANEL_CHUNKS * sizeof(*panels), 64);
    for (size_t row = row0; row < row1; row += PANEL_ROWS) {
        const size_t rows = TL_MIN(row1 - row, (size_t)PANEL_ROWS);
        memset(sums, 0, tiles * tile * PANEL_ROWS * sum_bytes);
        for (size_t c0 = 0; c0 < chunks; c0 += chunks_at_once) {
            const size_t n = TL_MIN(chunks - c0, chunks_at_once);
            for (size_t c = 0; c < n; c++) {
                fill_panel(w, row, row1, c0 + c, &panels[c]);
                for (size_t r0 = 0; words && r0 < PANEL_ROWS; r0 += 16) {
                    fill_scaled_words(r0, &panels[c]);
                }
            }
            for (size_t i = 0; i < tiles; i++) {
                void *out = sums + i * tile * PANEL_ROWS * sum_bytes;
                const char *x = (const char *)packed + (i * chunks + c0) * record_size;
                add(panels, n, x, record_size, offset, out);
            }
        }
        for (size_t t = 0; t < tokens; t++) {
            for (size_t r = 0; r < rows; r++) {
                size_t at = t * PANEL_ROWS + r;
                y[t * y_stride + row + r] = layout < LAYOUT_FAST_BYTES
                                                ? (float)((const double *)(const void *)sums)[at]
                                                : ((const float *)(const void *)sums)[at];
            }
        }
    }
}

/* Bytes of the panels, and then the sums (tokens, PANEL_ROWS). */
TL_INLINE size_t panel_scratch(size_t tokens) {
    return round_up(PANEL_CHUNKS * sizeof(struct panel), 64) +
           round_up(tokens, BYTE_TOKENS * WORD_TOKENS) * PANEL_ROWS * sizeof(double);
}
