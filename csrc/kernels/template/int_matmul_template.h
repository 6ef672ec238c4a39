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

/*
 * One copy of a loop for each format, so that the layout and the tile are constants inside. The
 * formats of one token, or a few, go to a gemv.
 */
#define INT_DISPATCH(format, function, ...)                                                        \
    switch (format) {                                                                              \
    case FORMAT_BYTE_ROW:                                                                          \
        break;                                                                                     \
    case FORMAT_BYTE_TILE:                                                                         \
        function(LAYOUT_BYTES, BYTE_TOKENS, __VA_ARGS__);                                          \
        break;                                                                                     \
    case FORMAT_WORD_ROW:                                                                          \
        break;                                                                                     \
    case FORMAT_WORD_TILE:                                                                         \
        if (USES_WORDS) function(LAYOUT_WORDS, WORD_TOKENS, __VA_ARGS__);                          \
        break;                                                                                     \
    case FORMAT_FAST_BYTE_ROW:                                                                     \
        break;                                                                                     \
    case FORMAT_FAST_BYTE_TILE:                                                                    \
        function(LAYOUT_FAST_BYTES, FAST_TOKENS, __VA_ARGS__);                                     \
        break;                                                                                     \
    case FORMAT_FAST_WORD_ROW:                                                                     \
        break;                                                                                     \
    case FORMAT_FAST_WORD_TILE:                                                                    \
        if (USES_WORDS) function(LAYOUT_FAST_WORDS, FAST_TOKENS, __VA_ARGS__);                     \
        break;                                                                                     \
    case FORMAT_FAST_WIDE_TILE:                                                                    \
        if (USES_WORDS) function(LAYOUT_FAST_WIDE, FAST_TOKENS, __VA_ARGS__);                      \
        break;                                                                                     \
    default:                                                                                       \
        break;                                                                                     \
    }

static size_t int_pack_bytes(enum matmul_format format, size_t cols, size_t tokens) {
    size_t size = 0;
    if (is_gemv(format)) return gemv_pack_bytes(format, cols, tokens);
    INT_DISPATCH(format, pack_size, cols, tokens, &size)
    return size;
}

static void int_pack(enum matmul_format format, const float *x, size_t cols, size_t tokens,
                     size_t first, size_t last, void *packed) {
    if (is_gemv(format)) {
        if (first < last) gemv_pack(format, x, cols, tokens, first, last, packed);
        return;
    }
    INT_DISPATCH(format, pack_tokens, x, cols, tokens, first, last, packed)
}

static size_t int_scratch(enum matmul_format format, size_t cols, size_t tokens) {
    return is_gemv(format) ? gemv_scratch(cols, tokens) : panel_scratch(tokens);
}

static void int_matmul(enum matmul_format format, const struct tl_matrix *w, size_t row0,
                       size_t row1, const void *packed, size_t tokens, float *y, size_t y_stride,
                       void *scratch) {
    if (is_gemv(format)) {
        gemv_matmul(format, w, row0, row1, packed, tokens, y, y_stride, scratch);
        return;
    }
    INT_DISPATCH(format, panel_gemm, w, row0, row1, packed, tokens, y, y_stride, scratch)
}

static void int_prefetch(enum matmul_format format, const struct tl_matrix *w, size_t row0,
                         size_t row1) {
    if (is_gemv(format)) {
        gemv_prefetch(w, row0, row1);
    } else {
        prefetch_rows(w, row0, row1);
    }
}
