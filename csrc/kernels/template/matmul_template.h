/*
 * matmul_template.h - the matmul entries of struct tl_kernels: they choose the loop for a matrix.
 *
 * Needs:   format_template.h, a float_gemm template, gemv_most, and the int_* functions of
 *          gemm_scalar_template.h or int_matmul_template.h
 * Defines: matmul_init
 */

static int matmul_format(const struct tl_type_info *type, size_t tokens) {
    if (type->kind == TL_KIND_FLOAT) {
        bool few = tokens < FLOAT_TILE_MIN || !FLOAT_IN_TILES;
        return few ? FORMAT_FLOAT_ROW : FORMAT_FLOAT_TILE;
    }
    const bool row = tokens <= gemv_most(type, false);
    if (!row && scaled_words(type)) return FORMAT_WORD_TILE;
    if (int_in_bytes(type)) return row ? FORMAT_BYTE_ROW : FORMAT_BYTE_TILE;
    return row ? FORMAT_WORD_ROW : FORMAT_WORD_TILE;
}

static int matmul_format_fast(const struct tl_type_info *type, size_t tokens) {
    const bool row = tokens <= gemv_most(type, true);
    if (type->kind == TL_KIND_FLOAT) return matmul_format(type, tokens);
    if (int_in_bytes(type)) return row ? FORMAT_FAST_BYTE_ROW : FORMAT_FAST_BYTE_TILE;
    if (type == tl_type_find(TL_TYPE_Q8_0)) { // int16 is as fast, and more exact
        return row ? FORMAT_FAST_WORD_ROW : FORMAT_FAST_WORD_TILE;
    }
    return row ? FORMAT_FAST_BYTE_ROW : FORMAT_FAST_WIDE_TILE;
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
            memcpy(out, x + (t - first) * cols, cols * sizeof(float));
            memset(out + cols, 0, (padded - cols) * sizeof(float));
        }
        break;
    case FORMAT_FLOAT_TILE:
        for (size_t t = first, n; t < last; t += n) {
            n = t % FLOAT_TOKENS == 0 && t + FLOAT_TOKENS <= last ? FLOAT_TOKENS : 1;
            if (n > 1) {
                pack_float_tokens(x + (t - first) * cols, cols, t, packed);
            } else {
                pack_float_tile(x + (t - first) * cols, cols, t, packed);
            }
        }
        // the call that packs the last token also fills the last tile
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
        return float_scratch(at_once);
    default:
        return int_scratch((enum matmul_format)format, w->cols, at_once);
    }
}

static void matmul_matmul(const struct tl_matrix *w, int format, size_t row0, size_t row1,
                          const void *packed, size_t tokens, float *y, size_t y_stride,
                          void *scratch) {
    const uint8_t *x = packed;
    if (row0 == row1) return;
    if (format == FORMAT_FLOAT_ROW && !FLOAT_IN_TILES && tokens > 1) {
        float_gemm(w, row0, row1, packed, tokens, y, y_stride, scratch);
        return;
    }
    if (format == FORMAT_FLOAT_ROW) {
        float_gemv(w, row0, row1, packed, tokens, y, y_stride);
        return;
    }
    for (size_t t = 0; t < tokens; t += TOKENS_AT_ONCE) {
        size_t n = TL_MIN(tokens - t, (size_t)TOKENS_AT_ONCE);
        const void *part = x + matmul_pack_bytes(format, w->cols, t);
        if (format == FORMAT_FLOAT_TILE) {
            float_gemm(w, row0, row1, part, n, y + t * y_stride, y_stride, scratch);
        } else {
            int_matmul((enum matmul_format)format, w, row0, row1, part, n, y + t * y_stride,
                       y_stride, scratch);
        }
    }
}

static void matmul_prefetch(const struct tl_matrix *w, int format, size_t row0, size_t row1) {
    int_prefetch((enum matmul_format)format, w, row0, row1);
}

static void matmul_init(struct tl_kernels *k, bool fast) {
    k->rows_at_once = TL_ROW_STEP;
    k->format = fast ? matmul_format_fast : matmul_format;
    k->pack_bytes = matmul_pack_bytes;
    k->pack = matmul_pack;
    k->scratch = matmul_scratch;
    k->matmul = matmul_matmul;
    k->prefetch = matmul_prefetch;
}
