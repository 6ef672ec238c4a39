/*
 * tile_template.h - the sums of a tile: sixteen rows, or twice as many, times some digits.
 *
 * Needs:   panel_template.h
 * Defines: tile_sums, tile_set, tile_words, tile_starts
 */

/* The sums of a tile, for each of its digits. */
typedef v16i tile_sums[PANEL_VECTORS][TILE_DIGITS];

/* s = start[j] in every row, or zero */
TL_INLINE void tile_set(tile_sums s, const int width, const int32_t *start) {
    for (int j = 0; j < width; j++) {
        v16i first = v16i_set1(start != NULL ? start[j] : 0);
        for (int v = 0; v < PANEL_VECTORS; v++) s[v][j] = first;
    }
}

/* s = dot products of words over `steps` vectors, a multiple of 16; width: digits per step */
TL_INLINE void tile_words(tile_sums s, const int32_t (*weights)[PANEL_ROWS], const int32_t *x,
                          const int steps, const int width) {
#ifdef TILE_ASM
    if (width == 6) {
        tile_asm_words(s[0], weights, x, steps);
        return;
    }
#endif
    tile_set(s, width, NULL);
    for (int first = 0; first < steps; first += 16) {
        TL_UNROLL(16) // otherwise gcc copies all sums in every round
        for (int i = first; i < first + 16; i++) {
            v16i w[PANEL_VECTORS];
            for (int v = 0; v < PANEL_VECTORS; v++) w[v] = v16i_load(&weights[i][16 * v]);
            TL_UNROLL(6)
            for (int j = 0; j < width; j++) {
                v16i digit = v16i_set1(x[i * width + j]);
                for (int v = 0; v < PANEL_VECTORS; v++) s[v][j] = v16i_dot2(s[v][j], w[v], digit);
            }
        }
    }
}

/*
 * Computes where dot products start: at minus what `offset` adds to those of each group of 16
 * values, or of each block of 32.
 */
TL_INLINE void tile_starts(const int32_t *groups, const int width, const int offset,
                           const bool blocks, int32_t *starts) {
    for (int g = 0; g < (blocks ? 8 : 16); g++) {
        for (int j = 0; j < width; j++) {
            const int32_t *sum = groups + (blocks ? 2 * g : g) * width + j;
            starts[g * width + j] = -offset * (blocks ? sum[0] + sum[width] : sum[0]);
        }
    }
}
