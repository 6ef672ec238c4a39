/*
 * gemm_fast_template.h - fast mode: a tile times a panel. The sums are float32, and blocks of 32
 * are added one after another (docs/numerics.md, section 4).
 *
 * Needs:   pack_fast_template.h, a tile template; TILE_ASM: tile_asm_fast
 * Defines: fast_add_k, fast_add_scaled_words, fast_add_32
 */

/* sums (tokens, PANEL_ROWS) += one chunk of the panel times one tile; `offset`: see
   gemm_exact_template.h */
TL_INLINE void fast_add_k(const struct panel *panel, struct fast_record x, const int tokens,
                          const struct traits traits, int offset, float *sums) {
    const int steps = traits.wide ? 8 : 4;
    v16 total[PANEL_VECTORS][TILE_TOKENS];
    const bool starts_off = TILE_STARTS && traits.offset != 0;
    const bool subtract = !TILE_STARTS && traits.offset != 0;
    int32_t starts[16 * TILE_DIGITS];
    if (starts_off) tile_starts(x.groups, tokens, offset, traits.wide, starts);
    for (int v = 0; v < PANEL_VECTORS; v++) {
        for (int t = 0; t < tokens; t++) total[v][t] = v16_set1(0);
    }
#ifdef TILE_ASM
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
                       panel->u.k.scale[i / 4], starts_off ? starts + i / steps * tokens : NULL);
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

/* Like fast_add_k, for weights that include the sub-scales; there are no minima. */
TL_INLINE void fast_add_scaled_words(const struct panel *panel, struct fast_record x,
                                     const int tokens, float *sums) {
    v16 total[PANEL_VECTORS][TILE_TOKENS];
    for (int v = 0; v < PANEL_VECTORS; v++) {
        for (int t = 0; t < tokens; t++) total[v][t] = v16_set1(0);
    }
    for (int b = 0; b < 8; b++) {
        tile_sums s;
        tile_words(s, panel->weights + 16 * b, x.digits + 16 * b * tokens, 16, tokens);
        for (int v = 0; v < PANEL_VECTORS; v++) {
            for (int t = 0; t < tokens; t++) {
                total[v][t] =
                    v16_fma(v16_from_i32(s[v][t]), v16_set1(x.scale[b * tokens + t]), total[v][t]);
            }
        }
    }
    for (int v = 0; v < PANEL_VECTORS; v++) {
        const v16 d = v16_load(panel->u.k.d + 16 * v);
        for (int t = 0; t < tokens; t++) {
            float *out = sums + t * PANEL_ROWS + 16 * v;
            v16_store(out, v16_fma(d, total[v][t], v16_load(out)));
        }
    }
}

/* 8 blocks of 32, or 16 of 16 (NVFP4). */
TL_INLINE void fast_add_32(const bool bytes, const struct panel *panel, const int blocks,
                           struct fast_record x, const int tokens, const struct traits traits,
                           int offset, float *sums) {
    const int steps = steps_of(bytes) / blocks;
    int32_t starts[16 * TILE_DIGITS];
    v16 total[PANEL_VECTORS][TILE_TOKENS];
    if (bytes && traits.offset != 0) {
        tile_starts(x.groups, tokens, offset, blocks == 8, starts);
    }
    for (int v = 0; v < PANEL_VECTORS; v++) {
        for (int t = 0; t < tokens; t++) total[v][t] = v16_load(sums + t * PANEL_ROWS + 16 * v);
    }
    for (int b = 0; b < blocks; b++) {
        const float *scale = x.scale + b * 8 / blocks * tokens;
        tile_sums s;
        if (bytes) {
            tile_set(s, tokens, traits.offset != 0 ? starts + b * tokens : NULL);
            tile_bytes(s, panel->weights + b * steps, x.digits + b * steps * tokens, steps, tokens,
                       traits.depth, NULL, NULL);
        } else {
            tile_words(s, panel->weights + b * steps, x.digits + b * steps * tokens, steps, tokens);
        }
        for (int v = 0; v < PANEL_VECTORS; v++) {
            v16 d = v16_load(&panel->u.b.d[b][16 * v]);
            for (int t = 0; t < tokens; t++) {
                v16 scaled = v16_mul(v16_from_i32(s[v][t]), v16_set1(scale[t]));
                total[v][t] = v16_fma(scaled, d, total[v][t]);
                if (!traits.has_min) continue; // always blocks of 32
                v16 m = v16_load(&panel->u.b.m[b][16 * v]);
                total[v][t] = v16_fma(m, v16_set1(x.sum[b * tokens + t]), total[v][t]);
            }
        }
    }
    for (int v = 0; v < PANEL_VECTORS; v++) {
        for (int t = 0; t < tokens; t++) v16_store(sums + t * PANEL_ROWS + 16 * v, total[v][t]);
    }
}
