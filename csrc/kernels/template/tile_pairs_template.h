/*
 * tile_pairs_template.h - tiles of bytes where products of bytes are summed as int16 first.
 *
 * Needs:   tile_template.h, v16i_mul_bytes, v16i_add_bytes; TILE_ASM: tile_asm
 * Defines: TILE_STARTS, scale_word, scale_word_of, sum_of_bytes, scale_offsets, tile_bytes
 */

#define TILE_STARTS false

/* How sub-scales are stored: as int16, twice, to multiply sums of pairs. */
TL_INLINE v16i scale_word(v16i scale) {
    return twice(scale);
}

TL_INLINE int32_t scale_word_of(int16_t scale) {
    return (int32_t)((uint32_t)(uint16_t)scale * 0x10001u);
}

/* In every lane the sum of its bytes. */
TL_INLINE v16i sum_of_bytes(v16i x) {
    v16i pairs = v16i_mul_bytes(v16i_set1(0x01010101), x);
    return v16i_dot2(v16i_set1(0), pairs, v16i_set1(0x00010001));
}

/*
 * In this layout dot products cannot start from minus what the offset adds. It is subtracted like a
 * minimum instead: min = offset * scale, in pairs.
 */
static void scale_offsets(const struct tl_type_info *type, size_t first, struct panel *panel) {
    const int offset = traits_of(type_id(type)).offset;
    const int bits = offset == 32 ? 5 : 2;
    if (type->kind != TL_KIND_K || offset == 0) return;
    for (int g = 0; g < 8; g++) {
        v16i low = v16i_srl(v16i_sll(v16i_load(&panel->u.k.scale[2 * g][first]), 16 + bits), 16);
        v16i high = v16i_sll(v16i_load(&panel->u.k.scale[2 * g + 1][first]), 16 + bits);
        v16i_store(&panel->u.k.min[g][first], v16i_or_and(low, high, v16i_set1(-1)));
    }
}

/* s += scale * (start + dot products of bytes); scale and start may be NULL */
TL_INLINE void tile_bytes(tile_sums s, const int32_t (*weights)[PANEL_ROWS], const int32_t *x,
                          const int steps, const int width, const int depth, const int32_t *scale,
                          const int32_t *start) {
    tile_sums part;
    (void)start;
#ifdef TILE_ASM
    if (width == 6 && (scale != NULL || depth < 8)) {
        tile_asm(s[0], weights, x, steps, depth, scale);
        return;
    }
#endif
    for (int i0 = 0; i0 < steps; i0 += depth) {
        TL_UNROLL(8)
        for (int i = i0; i < i0 + depth; i++) {
            v16i w[PANEL_VECTORS];
            for (int v = 0; v < PANEL_VECTORS; v++) w[v] = v16i_load(&weights[i][16 * v]);
            TL_UNROLL(6)
            for (int j = 0; j < width; j++) {
                v16i digit = v16i_set1(x[i * width + j]);
                for (int v = 0; v < PANEL_VECTORS; v++) {
                    part[v][j] = i == i0 ? v16i_mul_bytes(w[v], digit)
                                         : v16i_add_bytes(part[v][j], w[v], digit);
                }
            }
        }
        for (int v = 0; v < PANEL_VECTORS; v++) {
            v16i factor = scale != NULL ? v16i_load(scale + 16 * v) : v16i_set1(0x00010001);
            for (int j = 0; j < width; j++) s[v][j] = v16i_dot2(s[v][j], part[v][j], factor);
        }
    }
}
