/*
 * float_gemm_scalar_template.h - float weights times many tokens, where the lanes are plain C.
 *
 * Needs:   float_gemv_template.h
 * Defines: FLOAT_IN_TILES, float_scratch, pack_float_tile, pack_float_tokens, float_gemm
 */

#define FLOAT_IN_TILES false // all tokens are packed as rows

TL_INLINE size_t float_scratch(size_t tokens) {
    (void)tokens;
    return 0;
}

// the scalar sets take all tokens row by row
static void pack_float_tile(const float *x, size_t cols, size_t token, float *packed) {
    (void)x, (void)cols, (void)token, (void)packed;
}

static void pack_float_tokens(const float *x, size_t cols, size_t token, float *packed) {
    (void)x, (void)cols, (void)token, (void)packed;
}

/* The columns [k0, k0 + n) of a row. */
static void float_values(const struct tl_matrix *w, size_t row, size_t k0, size_t n,
                         float *values) {
    const enum float_type type = float_type_of(w->type);
    const uint8_t *p = w->data + row * w->row_bytes + k0 * float_size(type);
    for (size_t k = 0; k < n; k += 16) {
        const uint8_t *from = p + k * float_size(type);
        v16_store(values + k, n - k < 16 ? load_weights_part(type, from, (n - k) * float_size(type))
                                         : load_weights(type, from));
    }
}

/* Works row by row too, but converts the weights of a superchunk once for all tokens. */
static void float_gemm(const struct tl_matrix *w, size_t row0, size_t row1, const float *packed,
                       size_t tokens, float *y, size_t y_stride, float *scratch) {
    const size_t padded = round_up(w->cols, 16);
    float values[SUPERCHUNK];
    (void)scratch;
    for (size_t row = row0; row < row1; row++) {
        for (size_t t = 0; t < tokens; t++) y[t * y_stride + row] = 0;
        for (size_t k0 = 0; k0 < w->cols; k0 += SUPERCHUNK) {
            const size_t n = TL_MIN(w->cols - k0, (size_t)SUPERCHUNK);
            float_values(w, row, k0, n, values);
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
