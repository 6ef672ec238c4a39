/*
 * gemm_template.h - quantized weights times many tokens: rows are unpacked into panels, and every
 * tile of tokens is multiplied with them.
 *
 * Needs:   fill_panel_template.h, gemm_exact_template.h, gemm_fast_template.h
 * Defines: layout_record_bytes, pack_size, pack_tokens, panel_scratch, panel_gemm
 */

TL_INLINE size_t layout_record_bytes(const enum layout layout, const size_t tile) {
    if (layout >= LAYOUT_FAST_BYTES) return fast_record_bytes(layout_in_bytes(layout), tile);
    return record_bytes(layout_in_bytes(layout), tile);
}

TL_INLINE void pack_size(enum layout layout, size_t tile, size_t cols, size_t tokens, size_t *out) {
    *out = size_product(round_up(cols, TL_CHUNK) / TL_CHUNK, round_up(tokens, tile) / tile,
                        layout_record_bytes(layout, tile));
}

TL_INLINE void pack_tokens(const enum layout layout, const size_t tile, const float *x, size_t cols,
                           size_t tokens, size_t first, size_t last, void *packed) {
    const size_t chunks = round_up(cols, TL_CHUNK) / TL_CHUNK;
    const bool bytes = layout_in_bytes(layout);
    const float zero[TL_CHUNK] = {0};
    // the call that packs the last token also fills the last tile with zeros
    size_t end = last == tokens ? round_up(tokens, tile) : last;
    for (size_t t = first; t < end; t++) {
        for (size_t c = 0; c < chunks; c++) {
            size_t n = TL_MIN(cols - c * TL_CHUNK, (size_t)TL_CHUNK), at = t / tile * chunks + c;
            const float *part = t < tokens ? x + (t - first) * cols + c * TL_CHUNK : zero;
            if (layout >= LAYOUT_FAST_BYTES) {
                fast_pack_record(layout, part, n, tile, t % tile,
                                 fast_record_at(packed, bytes, tile, at));
            } else {
                v16i X[16];
                double dx = round_chunk(part, n, X);
                pack_record(bytes, X, dx, tile, t % tile, record_at(packed, bytes, tile, at));
            }
        }
    }
}

/* One tile times one chunk, with the traits as constants. Sums are float64, in fast mode float32.*/
TL_INLINE void tile_add(const enum layout layout, enum tl_type id, const struct panel *panel,
                        const void *record, const int tokens, void *sums) {
    const size_t tile = (size_t)tokens;
    if (layout == LAYOUT_WORDS && is_k(id)) {
        tile_add_scaled_words(panel, record_at(record, false, tile, 0), tokens, sums);
        return;
    }
    if (layout == LAYOUT_WORDS) {
        tile_add_32(false, panel, record_at(record, false, tile, 0), tokens,
                    traits_of(TL_TYPE_Q8_0), sums);
        return;
    }
    if (layout == LAYOUT_FAST_WIDE && is_k(id)) {
        fast_add_scaled_words(panel, fast_record_at(record, false, tile, 0), tokens, sums);
        return;
    }
    if (layout == LAYOUT_FAST_WORDS || layout == LAYOUT_FAST_WIDE) {
        fast_add_32(false, panel, 8, fast_record_at(record, false, tile, 0), tokens,
                    traits_of(TL_TYPE_Q8_0), sums);
        return;
    }
#define CASE_K(type)                                                                               \
    case type:                                                                                     \
        if (layout == LAYOUT_BYTES) {                                                              \
            tile_add_k(panel, record_at(record, true, tile, 0), tokens, traits_of(type), sums);    \
        } else {                                                                                   \
            fast_add_k(panel, fast_record_at(record, true, tile, 0), tokens, traits_of(type),      \
                       sums);                                                                      \
        }                                                                                          \
        break
#define CASE_32(type)                                                                              \
    case type:                                                                                     \
        if (layout == LAYOUT_BYTES) {                                                              \
            tile_add_32(true, panel, record_at(record, true, tile, 0), tokens, traits_of(type),    \
                        sums);                                                                     \
        } else {                                                                                   \
            fast_add_32(true, panel, 8, fast_record_at(record, true, tile, 0), tokens,             \
                        traits_of(type), sums);                                                    \
        }                                                                                          \
        break
#define CASE_WIDE(type, blocks)                                                                    \
    case type:                                                                                     \
        if (layout == LAYOUT_BYTES) {                                                              \
            tile_add_wide(panel, blocks, record_at(record, true, tile, 0), tokens,                 \
                          traits_of(type), sums);                                                  \
        } else {                                                                                   \
            fast_add_32(true, panel, blocks, fast_record_at(record, true, tile, 0), tokens,        \
                        traits_of(type), sums);                                                    \
        }                                                                                          \
        break
    switch (like_type(id)) {
        CASE_K(TL_TYPE_Q2_K);
        CASE_K(TL_TYPE_Q3_K);
        CASE_K(TL_TYPE_Q4_K);
        CASE_K(TL_TYPE_Q5_K);
        CASE_K(TL_TYPE_Q6_K);
        CASE_K(TL_TYPE_IQ4_XS);
        CASE_K(TL_TYPE_IQ2_XS);
        CASE_32(TL_TYPE_Q4_0);
        CASE_32(TL_TYPE_Q4_1);
        CASE_32(TL_TYPE_Q5_0);
        CASE_32(TL_TYPE_Q5_1);
        CASE_32(TL_TYPE_Q8_0);
        CASE_WIDE(TL_TYPE_MXFP4, 8);
        CASE_WIDE(TL_TYPE_NVFP4, 16);
    default:
        break;
    }
#undef CASE_K
#undef CASE_32
#undef CASE_WIDE
}

TL_INLINE void panel_gemm(const enum layout layout, const int tile, const struct tl_matrix *w,
                          size_t row0, size_t row1, const void *packed, size_t tokens, float *y,
                          size_t y_stride, void *scratch) {
    const struct tl_type_info *type = w->type;
    const size_t per_chunk = (size_t)(TL_CHUNK / type->items);
    const size_t blocks = w->cols / (size_t)type->items;
    const size_t chunks = round_up(w->cols, TL_CHUNK) / TL_CHUNK;
    const size_t tiles = (tokens + (size_t)tile - 1) / (size_t)tile;
    const size_t chunks_at_once = tiles <= 4 ? 1 : PANEL_CHUNKS;
    struct panel *panels = scratch;
    const size_t sum_bytes = layout < LAYOUT_FAST_BYTES ? sizeof(double) : sizeof(float);
    const size_t record_size = layout_record_bytes(layout, (size_t)tile);
    char *sums = (char *)scratch + round_up(PANEL_CHUNKS * sizeof(*panels), 64);
    for (size_t row = row0; row < row1; row += PANEL_ROWS) {
        const size_t rows = TL_MIN(row1 - row, (size_t)PANEL_ROWS);
        const uint8_t *src = w->data + row * w->row_bytes;
        memset(sums, 0, tiles * (size_t)tile * PANEL_ROWS * sum_bytes);
        for (size_t c0 = 0; c0 < chunks; c0 += chunks_at_once) {
            const size_t n = TL_MIN(chunks - c0, chunks_at_once);
            for (size_t c = 0; c < n; c++) {
                const size_t first = (c0 + c) * per_chunk;
                for (size_t r0 = 0; r0 < PANEL_ROWS; r0 += 16) {
                    struct rows at = {.ahead = PANEL_ROWS * w->row_bytes};
                    for (size_t r = 0; r < 16; r++) {
                        at.at[r] = src + TL_MIN(r0 + r, rows - 1) * w->row_bytes +
                                   first * (size_t)type->bytes;
                    }
                    fill_rows(type, &at, TL_MIN(blocks - first, per_chunk), r0, &panels[c]);
                    if (layout == LAYOUT_WORDS && scaled_words(type)) {
                        fill_scaled_words(r0, &panels[c]);
                    }
                }
            }
            for (size_t i = 0; i < tiles; i++) {
                void *out = sums + i * (size_t)tile * PANEL_ROWS * sum_bytes;
                for (size_t c = 0; c < n; c++) {
                    const char *x = (const char *)packed + (i * chunks + c0 + c) * record_size;
                    tile_add(layout, type_id(type), &panels[c], x, tile, out);
                }
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
