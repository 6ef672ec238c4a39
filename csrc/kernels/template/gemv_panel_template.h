/*
 * gemv_panel_template.h - quantized weights times one token, which is a tile of one.
 *
 * Needs:   gemm_template.h
 * Defines: gemv_most, gemv_pack_bytes, gemv_pack, gemv_scratch, gemv_matmul, gemv_prefetch
 */

TILE_FUNCTIONS(one, 1, 1, 1)

static size_t gemv_pack_bytes(enum matmul_format format, size_t cols, size_t tokens) {
    return pack_size(tiling_of(format), cols, tokens);
}

static void gemv_pack(enum matmul_format format, const float *x, size_t cols, size_t tokens,
                      size_t first, size_t last, void *packed) {
    pack_tokens(tiling_of(format), x, cols, tokens, first, last, packed);
}

static size_t gemv_scratch(size_t cols, size_t tokens) {
    (void)cols;
    return panel_scratch(tokens);
}

static void gemv_matmul(enum matmul_format format, const struct tl_matrix *w, size_t row0,
                        size_t row1, const void *packed, size_t tokens, float *y, size_t y_stride,
                        void *scratch) {
    const struct tiling tiling = tiling_of(format);
    panel_gemm(tile_find_one(tiling.layout, type_id(w->type)), tiling, w, row0, row1, packed,
               tokens, y, y_stride, scratch);
}

static size_t gemv_most(const struct tl_type_info *type, bool fast) {
    (void)type, (void)fast; // panels are for every type
    return 1;
}

static void gemv_prefetch(const struct tl_matrix *w, size_t row0, size_t row1) {
    prefetch_rows(w, row0, row1);
}
