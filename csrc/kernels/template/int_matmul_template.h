/*
 * int_matmul_template.h - matmuls of quantized weights: the format of the activations chooses gemv
 * or gemm.
 *
 * Needs:   gemm_template.h, a gemv template
 * Defines: int_pack_bytes, int_pack, int_scratch, int_matmul, int_prefetch
 */

static bool is_gemv(enum matmul_format format) {
    return format == FORMAT_BYTE_ROW || format == FORMAT_WORD_ROW ||
           format == FORMAT_FAST_BYTE_ROW || format == FORMAT_FAST_WORD_ROW;
}

TILE_FUNCTIONS(many, BYTE_TOKENS, WORD_TOKENS, FAST_TOKENS)

static size_t int_pack_bytes(enum matmul_format format, size_t cols, size_t tokens) {
    if (is_gemv(format)) return gemv_pack_bytes(format, cols, tokens);
    return pack_size(tiling_of(format), cols, tokens);
}

static void int_pack(enum matmul_format format, const float *x, size_t cols, size_t tokens,
                     size_t first, size_t last, void *packed) {
    if (!is_gemv(format)) {
        pack_tokens(tiling_of(format), x, cols, tokens, first, last, packed);
    } else if (first < last) {
        gemv_pack(format, x, cols, tokens, first, last, packed);
    }
}

static size_t int_scratch(enum matmul_format format, size_t cols, size_t tokens) {
    return is_gemv(format) ? gemv_scratch(cols, tokens) : panel_scratch(tokens);
}

static void int_matmul(enum matmul_format format, const struct tl_matrix *w, size_t row0,
                       size_t row1, const void *packed, size_t tokens, float *y, size_t y_stride,
                       void *scratch) {
    const struct tiling tiling = tiling_of(format);
    if (is_gemv(format)) {
        gemv_matmul(format, w, row0, row1, packed, tokens, y, y_stride, scratch);
        return;
    }
    panel_gemm(tile_find_many(tiling.layout, type_id(w->type)), tiling, w, row0, row1, packed,
               tokens, y, y_stride, scratch);
}

static void int_prefetch(enum matmul_format format, const struct tl_matrix *w, size_t row0,
                         size_t row1) {
    if (is_gemv(format)) {
        gemv_prefetch(w, row0, row1);
    } else {
        prefetch_rows(w, row0, row1);
    }
}
