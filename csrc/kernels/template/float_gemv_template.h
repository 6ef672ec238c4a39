/*
 * float_gemv_template.h - float weights times one token, or a few: docs/numerics.md, section 2.
 *
 * Needs:   format_template.h; LANE_FMA(w, x, s), if it is not v16_fma
 * Defines: SUPERCHUNK, enum float_type, float_type_of, float_size, load_weights,
 *          load_weights_part, add_lanes, float_gemv
 */

#ifndef LANE_FMA
#define LANE_FMA v16_fma
#endif

#define SUPERCHUNK 4096 // float weights: columns between two additions of the lanes to y

/* Rows of float weights that are multiplied at the same time if there are few tokens. */
#define FLOAT_CHAINS 4

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

/* The same where a row ends after fewer bytes; the lanes beyond are zero. */
TL_INLINE v16 load_weights_part(enum float_type type, const uint8_t *p, size_t bytes) {
    uint8_t part[64] = {0};
    memcpy(part, p, bytes);
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
 * Rows times one token. The sum of a row is one chain of dependent additions, so several rows run
 * at the same time.
 */
TL_INLINE void float_rows(const struct tl_matrix *w, const uint8_t *const *row,
                          enum float_type type, const float *x, float *sum) {
    const size_t cols = w->cols, size = float_size(type), rows = FLOAT_CHAINS;
    for (size_t r = 0; r < rows; r++) sum[r] = 0;
    for (size_t k0 = 0; k0 < cols; k0 += SUPERCHUNK) {
        size_t end = cols - k0 < SUPERCHUNK ? cols : k0 + SUPERCHUNK, k = k0;
        v16 s[FLOAT_CHAINS];
        for (size_t r = 0; r < rows; r++) s[r] = v16_set1(0);
        for (; k + 16 <= end; k += 16) {
            for (size_t r = 0; r < rows; r++) {
                prefetch_bytes(row[r] + k * size + PREFETCH_BYTES, 1);
                s[r] = LANE_FMA(load_weights(type, row[r] + k * size), v16_load(x + k), s[r]);
            }
        }
        for (size_t r = 0; r < rows; r++) {
            if (k < end) {
                v16 part = load_weights_part(type, row[r] + k * size, w->row_bytes - k * size);
                s[r] = LANE_FMA(part, v16_load(x + k), s[r]);
            }
            sum[r] = add_lanes(sum[r], s[r]);
        }
    }
}

/* One function for each type, so that it is a constant inside. */
#define FLOAT_ROWS_FUNCTION(name, type)                                                            \
    static void float_rows_##name(const struct tl_matrix *w, const uint8_t *const *row,            \
                                  const float *x, float *sum) {                                    \
        float_rows(w, row, type, x, sum);                                                          \
    }
FLOAT_ROWS_FUNCTION(f32, FLOAT_F32)
FLOAT_ROWS_FUNCTION(f16, FLOAT_F16)
FLOAT_ROWS_FUNCTION(bf16, FLOAT_BF16)

static void float_gemv(const struct tl_matrix *w, size_t row0, size_t row1, const float *x,
                       size_t tokens, float *y, size_t y_stride) {
    const size_t stride = round_up(w->cols, 16), n = row1 - row0;
    const size_t each = (n + FLOAT_CHAINS - 1) / FLOAT_CHAINS;
    const enum float_type type = float_type_of(w->type);
    void (*const rows)(const struct tl_matrix *, const uint8_t *const *, const float *, float *) =
        type == FLOAT_F32   ? float_rows_f32
        : type == FLOAT_F16 ? float_rows_f16
                            : float_rows_bf16;
    for (size_t i = 0; i < each; i++) {
        const uint8_t *row[FLOAT_CHAINS];
        for (size_t r = 0; r < FLOAT_CHAINS; r++) { // beyond the last row: that again
            row[r] = w->data + (row0 + TL_MIN(r * each + i, n - 1)) * w->row_bytes;
        }
        for (size_t t = 0; t < tokens; t++) {
            float sum[FLOAT_CHAINS];
            rows(w, row, x + t * stride, sum);
            for (size_t r = 0; r < FLOAT_CHAINS && r * each + i < n; r++) {
                y[t * y_stride + row0 + r * each + i] = sum[r];
            }
        }
    }
}
