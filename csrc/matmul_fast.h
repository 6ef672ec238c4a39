/*
 * matmul_fast.h - fast mode over the panels of matmul_panel.h, which includes it: activations are
 * int8 (words: int16) with a float32 scale for each 32 values, sums are float32, one block of 32
 * after the other (docs/numerics.md, section 4).
 *
 * Two parts, because the tiles need the panels and the panels are filled for any layout: the
 * first inclusion has the packed activations, the second (FAST_TILES) the tiles.
 */
#ifndef FAST_TILES

struct fast_record {
    int32_t *digits; // [steps][tokens], 4 bytes each
    float *scale;    // [8][tokens]
    float *sum;      // [8][tokens]: scale * the sum of the block
    int32_t *pairs;  // [8][tokens]: int16 pairs, sums over 16 values
    int32_t *groups; // [16][tokens]: the same as int32
    int32_t *words;  // [16][tokens]: int16 pairs, of each 16 values those of each pair of words
};

TL_INLINE size_t fast_record_bytes(const bool bytes, const size_t tokens) {
    return (((size_t)steps_of(bytes) + 56) * tokens * 4 + 63) & ~(size_t)63;
}

TL_INLINE struct fast_record fast_record_at(const void *packed, const bool bytes,
                                            const size_t tokens, size_t index) {
    struct fast_record r;
    r.digits = (int32_t *)((uintptr_t)packed + index * fast_record_bytes(bytes, tokens));
    r.scale = (float *)(r.digits + (size_t)steps_of(bytes) * tokens);
    r.sum = r.scale + 8 * tokens;
    r.pairs = (int32_t *)(r.sum + 8 * tokens);
    r.groups = r.pairs + 8 * tokens;
    r.words = r.groups + 16 * tokens;
    return r;
}

/* X of 32 values, and their scale. */
TL_INLINE float fast_round(const bool bytes, const float *x, v16i X[2]) {
    const v16 part[2] = {v16_load(x), v16_load(x + 16)};
    int32_t out[16], most = 0;
    float factor, scale;
    v16i_store(out, v16i_max(v16i_abs_bits(part[0]), v16i_abs_bits(part[1])));
    for (int i = 0; i < 16; i++) most = TL_MAX(most, out[i]);
    scale = block_scale((uint32_t)most, bytes ? 127 : 32000, &factor);
    for (int h = 0; h < 2; h++) {
        X[h] = v16i_set1(0);
        if (factor > 0) X[h] = v16i_round(v16_mul(part[h], v16_set1(factor)));
    }
    return scale;
}

TL_INLINE void fast_pack_record(const bool bytes, const float *x, size_t n, const size_t tile,
                                size_t slot, struct fast_record r) {
    float padded[TL_CHUNK];
    if (n < TL_CHUNK) {
        memset(padded, 0, sizeof(padded));
        memcpy(padded, x, n * sizeof(float));
        x = padded;
    }
    for (size_t b = 0; b < 8; b++) {
        v16i X[2];
        int32_t out[16], sum[2];
        r.scale[b * tile + slot] = fast_round(bytes, x + 32 * b, X);
        for (size_t h = 0; h < 2; h++) {
            int32_t word[2] = {0, 0};
            v16i_store(out, X[h]);
            for (int i = 0; i < 16; i++) word[i / 2 % 2] += out[i];
            sum[h] = word[0] + word[1];
            r.words[(2 * b + h) * tile + slot] =
                (word[0] & 0xffff) | (int32_t)((uint32_t)word[1] << 16);
            // see pack_record: there is only the lowest digit
            v16i_store(out, bytes ? v16i_quads(X[h]) : v16i_pairs(X[h]));
            for (size_t j = 0; j < (bytes ? 4 : 8); j++) {
                size_t step = (2 * b + h) * (bytes ? 4 : 8) + j;
                r.digits[step * tile + slot] = out[bytes ? 4 * j : 2 * j];
            }
            r.groups[(2 * b + h) * tile + slot] = sum[h];
        }
        r.sum[b * tile + slot] = r.scale[b * tile + slot] * (float)(sum[0] + sum[1]);
        r.pairs[b * tile + slot] = (sum[0] & 0xffff) | (int32_t)((uint32_t)sum[1] << 16);
    }
}

#else

/* sums (tokens, PANEL_ROWS) += one chunk of the panel times one tile */
TL_INLINE void fast_add_k(const struct panel *panel, struct fast_record x, const int tokens,
                          const struct traits traits, float *sums) {
    const int steps = traits.wide ? 8 : 4;
    v16 total[PANEL_VECTORS][TILE_TOKENS];
#ifdef TL_DOT4
    const bool starts_off = traits.offset != 0, subtract = false;
#else
    const bool starts_off = false, subtract = traits.offset != 0;
#endif
    int32_t starts[16 * TILE_DIGITS];
    if (starts_off) tile_starts(x.groups, tokens, traits.offset, false, starts);
    for (int v = 0; v < PANEL_VECTORS; v++) {
        for (int t = 0; t < tokens; t++) total[v][t] = v16_set1(0);
    }
#ifdef TL_TILE_ASM
    if (tokens == 6) {
        for (int b = 0; b < 8; b++) {
            const int32_t(*scale)[PANEL_ROWS] = panel->u.k.scale + 2 * b;
            tile_asm_fast(total[0], panel->weights + 8 * b, x.digits + 48 * b, scale[0],
                          traits.wide ? scale[0] : scale[1], x.words + 12 * b, x.scale + 6 * b,
                          traits.depth, traits.offset);
        }
    }
    const bool done = tokens == 6;
#else
    const bool done = false;
#endif
    for (int b = 0; b < 8 && !done; b++) {
        tile_sums s;
        tile_set(s, tokens, NULL);
        for (int i = 8 * b; i < 8 * b + 8; i += steps) {
            tile_bytes(s, panel->weights + i, x.digits + i * tokens, steps, tokens, traits.depth,
                       panel->u.k.scale[i / 4], starts_off ? starts + i / 4 * tokens : NULL);
        }
        for (int v = 0; v < PANEL_VECTORS; v++) {
            v16i min = v16i_load(&panel->u.k.min[b][16 * v]);
            for (int t = 0; t < tokens; t++) {
                if (subtract) {
                    v16i off = v16i_dot2(v16i_set1(0), min, v16i_set1(x.pairs[b * tokens + t]));
                    s[v][t] = v16i_sub(s[v][t], off);
                }
                total[v][t] =
                    v16_fma(v16_from_i32(s[v][t]), v16_set1(x.scale[b * tokens + t]), total[v][t]);
            }
        }
    }
    for (int v = 0; v < PANEL_VECTORS; v++) {
        v16 d = v16_load(panel->u.k.d + 16 * v);
        for (int t = 0; t < tokens; t++) {
            float *out = sums + t * PANEL_ROWS + 16 * v;
            v16_store(out, v16_fma(d, total[v][t], v16_load(out)));
        }
    }
    if (!traits.has_min) return;
    for (int v = 0; v < PANEL_VECTORS; v++) {
        v16 dmin = v16_load(panel->u.k.dmin + 16 * v), mins[TILE_TOKENS];
        for (int t = 0; t < tokens; t++) mins[t] = v16_set1(0);
        for (int b = 0; b < 8; b++) {
            v16i min = v16i_load(&panel->u.k.min[b][16 * v]);
            v16 same = v16_from_i32(v16i_and(min, v16i_set1(0xffff))); // wide: both are the same
            for (int t = 0; t < tokens; t++) {
                if (traits.wide) {
                    mins[t] = v16_fma(same, v16_set1(x.sum[b * tokens + t]), mins[t]);
                } else {
                    v16i both = v16i_dot2(v16i_set1(0), min, v16i_set1(x.pairs[b * tokens + t]));
                    mins[t] =
                        v16_fma(v16_from_i32(both), v16_set1(x.scale[b * tokens + t]), mins[t]);
                }
            }
        }
        for (int t = 0; t < tokens; t++) {
            float *out = sums + t * PANEL_ROWS + 16 * v;
            v16_store(out, v16_fma(dmin, v16_mul(mins[t], v16_set1(-1)), v16_load(out)));
        }
    }
}

TL_INLINE void fast_add_32(const bool bytes, const struct panel *panel, struct fast_record x,
                           const int tokens, const struct traits traits, float *sums) {
    const int steps = steps_of(bytes) / 8;
    int32_t starts[8 * TILE_DIGITS];
    v16 total[PANEL_VECTORS][TILE_TOKENS];
    if (bytes && traits.offset != 0) {
        tile_starts(x.groups, tokens, traits.offset, true, starts);
    }
    for (int v = 0; v < PANEL_VECTORS; v++) {
        for (int t = 0; t < tokens; t++) total[v][t] = v16_load(sums + t * PANEL_ROWS + 16 * v);
    }
    for (int b = 0; b < 8; b++) {
        tile_sums s;
        if (bytes) {
            tile_set(s, tokens, traits.offset != 0 ? starts + b * tokens : NULL);
            tile_bytes(s, panel->weights + b * steps, x.digits + b * steps * tokens, steps, tokens,
                       traits.depth, NULL, NULL);
        } else {
            tile_words(s, panel->weights + b * steps, x.digits + b * steps * tokens, steps, tokens);
        }
        for (int v = 0; v < PANEL_VECTORS; v++) {
            v16 d = v16_load(&panel->u.b.d[b][16 * v]), m = v16_load(&panel->u.b.m[b][16 * v]);
            for (int t = 0; t < tokens; t++) {
                v16 scaled = v16_mul(v16_from_i32(s[v][t]), v16_set1(x.scale[b * tokens + t]));
                total[v][t] = v16_fma(scaled, d, total[v][t]);
                if (!traits.has_min) continue;
                total[v][t] = v16_fma(m, v16_set1(x.sum[b * tokens + t]), total[v][t]);
            }
        }
    }
    for (int v = 0; v < PANEL_VECTORS; v++) {
        for (int t = 0; t < tokens; t++) v16_store(sums + t * PANEL_ROWS + 16 * v, total[v][t]);
    }
}

#endif
