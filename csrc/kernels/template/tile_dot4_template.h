/*
 * tile_dot4_template.h - tiles of bytes where the set has dot products of four bytes.
 *
 * Needs:   tile_template.h, v16i_dot4
 * Defines: TILE_STARTS, scale_word, scale_word_of, sum_of_bytes, scale_offsets, tile_bytes
 */

#define TILE_STARTS true // dot products start from minus what the offset of the weights adds

/* How sub-scales are stored: as int32 factors. */
TL_INLINE v16i scale_word(v16i scale) {
    return scale;
}

TL_INLINE int32_t scale_word_of(int16_t scale) {
    return scale;
}

/* In every lane the sum of its bytes. */
TL_INLINE v16i sum_of_bytes(v16i x) {
    return v16i_dot4(v16i_set1(0), v16i_set1(0x01010101), x);
}

TL_INLINE void scale_offsets(const struct tl_type_info *type, size_t first, struct panel *panel) {
    (void)type, (void)first, (void)panel; // see TILE_STARTS
}

/* s += dot products of one vector of bytes */
TL_INLINE void tile_dots(tile_sums s, const int32_t *weights, const int32_t *x, const int width) {
    v16i w[PANEL_VECTORS];
    for (int v = 0; v < PANEL_VECTORS; v++) w[v] = v16i_load(weights + 16 * v);
    TL_UNROLL(6)
    for (int j = 0; j < width; j++) {
        v16i digit = v16i_set1(x[j]);
        for (int v = 0; v < PANEL_VECTORS; v++) s[v][j] = v16i_dot4(s[v][j], w[v], digit);
    }
}

/* s += scale * (start + dot products of bytes); scale and start may be NULL */
TL_INLINE void tile_bytes(tile_sums s, const int32_t (*weights)[PANEL_ROWS], const int32_t *x,
                          const int steps, const int width, const int depth, const int32_t *scale,
                          const int32_t *start) {
    tile_sums part;
    (void)depth;
    tile_set(part, width, start);
    if (width == TILE_DIGITS) { // unless it is unrolled, gcc copies all sums in every round
        TL_UNROLL(8)
        for (int i = 0; i < steps; i++) tile_dots(part, weights[i], x + i * width, width);
    } else {
        TL_UNROLL(4)
        for (int i = 0; i < steps; i++) tile_dots(part, weights[i], x + i * width, width);
    }
    for (int v = 0; v < PANEL_VECTORS; v++) {
        for (int j = 0; j < width; j++) {
            if (scale != NULL) part[v][j] = v16i_mul(part[v][j], v16i_load(scale + 16 * v));
            s[v][j] = v16i_add(s[v][j], part[v][j]);
        }
    }
}
