/*
 * gemm_exact_template.h - exact mode: a tile times a panel (docs/numerics.md, section 1).
 *
 * Needs:   pack_template.h, a tile template
 * Defines: digits_to_f64, block_to_f64, digits_to_f32, tile_add_k, tile_add_scaled_words,
 *          tile_add_32, tile_add_wide
 */

/* From the sums of a token's digits to the exact T in float64. */
TL_INLINE v16d digits_to_f64(const v16i *digit) {
    v16d t = v16d_fma(v16d_from_i32(digit[1]), v16d_set1(256), v16d_from_i32(digit[0]));
    return v16d_fma(v16d_from_i32(digit[2]), v16d_set1(65536), t);
}

/* The same for a block of MXFP4 or NVFP4, whose sums are small. */
TL_INLINE v16d block_to_f64(const v16i *digit) {
    const v16i high = v16i_add(v16i_sll(digit[2], 8), digit[1]);
    return v16d_fma(v16d_from_i32(high), v16d_set1(256), v16d_from_i32(digit[0]));
}

/* T of a block of 32, rounded once to float32: T = 4096 high + low, both exact in float32. */
TL_INLINE v16 digits_to_f32(const bool bytes, const v16i *digit) {
    v16i low = digit[0], high = digit[1];
    if (bytes) {
        v16i e = v16i_add(v16i_sll(digit[1], 8), digit[0]);
        v16i carry = v16i_sra(v16i_add(e, v16i_set1(2048)), 12);
        high = v16i_add(v16i_sll(digit[2], 4), carry);
        low = v16i_sub(e, v16i_sll(carry, 12));
    }
    return v16_fma(v16_from_i32(high), v16_set1(4096), v16_from_i32(low));
}

/* The exact sum of minima (or of what the offset adds) times the activations of a token. */
TL_INLINE v16d tile_mins(const struct panel *panel, const int v, const struct record *x,
                         const int t, const int tokens, const bool wide) {
    const int32_t *sums = (wide ? x->pairs : x->sums) + 2 * t;
    v16i low = v16i_set1(0), high = low;
    for (int g = 0; g < (wide ? 4 : 8); g++) {
        v16i min = v16i_load(wide ? &panel->u.k.min32[g][16 * v] : &panel->u.k.min[g][16 * v]);
        low = v16i_dot2(low, min, v16i_set1(sums[g * tokens * 2]));
        high = v16i_dot2(high, min, v16i_set1(sums[g * tokens * 2 + 1]));
    }
    return v16d_fma(v16d_from_i32(high), v16d_set1(wide ? 32768 : 16384), v16d_from_i32(low));
}

/* sums (tokens, PANEL_ROWS) += one chunk of the panel times one tile. Where dot products start from
   minus what the offset adds, `offset` is that of the type, and only whether there is one is a
   constant. */
TL_INLINE void tile_add_k(const struct panel *panel, struct record x, const int tokens,
                          const struct traits traits, int offset, double *sums) {
    const int steps = traits.wide ? 8 : 4, width = tokens * 3;
    tile_sums s;
    const bool starts_off = TILE_STARTS && traits.offset != 0;
    const bool subtract = !TILE_STARTS && traits.offset != 0;
    int32_t starts[16 * TILE_DIGITS];
    if (starts_off) tile_starts(x.groups, width, offset, traits.wide, starts);
    tile_set(s, width, NULL);
    for (int g = 0; g < 64 / steps; g++) {
        tile_bytes(s, panel->weights + steps * g, x.digits + steps * g * width, steps, width,
                   traits.depth, panel->u.k.scale[steps / 4 * g],
                   starts_off ? starts + g * width : NULL);
    }
    for (int t = 0; t < tokens; t++) {
        const double dx = x.dx[t];
        for (int v = 0; v < PANEL_VECTORS; v++) {
            double *out = sums + t * PANEL_ROWS + 16 * v;
            v16d total = digits_to_f64(&s[v][t * 3]), sum = v16d_load(out);
            v16d d = v16d_from_f32(v16_load(panel->u.k.d + 16 * v));
            if (subtract) {
                v16d offsets = tile_mins(panel, v, &x, t, tokens, traits.wide);
                total = v16d_fma(offsets, v16d_set1(-1), total);
            }
            sum = v16d_fma(v16d_mul(d, v16d_set1(dx)), total, sum);
            if (traits.has_min) {
                v16d dmin = v16d_from_f32(v16_load(panel->u.k.dmin + 16 * v));
                v16d mins = tile_mins(panel, v, &x, t, tokens, traits.wide);
                sum = v16d_fma(v16d_mul(dmin, v16d_set1(-dx)), mins, sum);
            }
            v16d_store(out, sum);
        }
    }
}

/* Like tile_add_k, for weights that include the sub-scales; there are no minima. */
TL_INLINE void tile_add_scaled_words(const struct panel *panel, struct record x, const int tokens,
                                     double *sums) {
    tile_sums s;
    tile_words(s, panel->weights, x.digits, 128, tokens * 2);
    for (int t = 0; t < tokens; t++) {
        for (int v = 0; v < PANEL_VECTORS; v++) {
            double *out = sums + t * PANEL_ROWS + 16 * v;
            v16d d = v16d_mul(v16d_from_f32(v16_load(panel->u.k.d + 16 * v)), v16d_set1(x.dx[t]));
            v16d total = v16d_fma(v16d_from_i32(s[v][2 * t + 1]), v16d_set1(4096),
                                  v16d_from_i32(s[v][2 * t]));
            v16d_store(out, v16d_fma(d, total, v16d_load(out)));
        }
    }
}

TL_INLINE void tile_add_32(const bool bytes, const struct panel *panel, struct record x,
                           const int tokens, const struct traits traits, int offset, double *sums) {
    const int planes = planes_of(bytes), width = tokens * planes, steps = steps_of(bytes) / 8;
    v16 u[PANEL_VECTORS][TILE_TOKENS];
    int32_t starts[8 * TILE_DIGITS];
    if (bytes && traits.offset != 0) tile_starts(x.groups, width, offset, true, starts);
    for (int v = 0; v < PANEL_VECTORS; v++) {
        for (int t = 0; t < tokens; t++) u[v][t] = v16_set1(0);
    }
    for (int b = 0; b < 8; b++) {
        tile_sums s;
        if (bytes) {
            tile_set(s, width, traits.offset != 0 ? starts + b * width : NULL);
            tile_bytes(s, panel->weights + b * steps, x.digits + b * steps * width, steps, width,
                       traits.depth, NULL, NULL);
        } else {
            tile_words(s, panel->weights + b * steps, x.digits + b * steps * width, steps, width);
        }
        for (int v = 0; v < PANEL_VECTORS; v++) {
            v16 d = v16_load(&panel->u.b.d[b][16 * v]), m = v16_load(&panel->u.b.m[b][16 * v]);
            for (int t = 0; t < tokens; t++) {
                u[v][t] = v16_fma(digits_to_f32(bytes, &s[v][t * planes]), d, u[v][t]);
                if (!traits.has_min) continue;
                u[v][t] = v16_fma(v16_set1(x.blocks[b * tokens + t]), m, u[v][t]);
            }
        }
    }
    for (int t = 0; t < tokens; t++) {
        for (int v = 0; v < PANEL_VECTORS; v++) {
            double *out = sums + t * PANEL_ROWS + 16 * v;
            v16d_store(out, v16d_fma(v16d_from_f32(u[v][t]), v16d_set1(x.dx[t]), v16d_load(out)));
        }
    }
}

/* Like tile_add_32, with float64 sums, for 8 blocks of 32 (MXFP4) or 16 of 16 (NVFP4). */
TL_INLINE void tile_add_wide(const struct panel *panel, const int blocks, struct record x,
                             const int tokens, const struct traits traits, double *sums) {
    const int width = tokens * 3, steps = 64 / blocks;
    v16d u[PANEL_VECTORS][BYTE_TOKENS];
    int32_t starts[16 * TILE_DIGITS];
    tile_starts(x.groups, width, traits.offset, blocks == 8, starts);
    for (int v = 0; v < PANEL_VECTORS; v++) {
        for (int t = 0; t < tokens; t++) u[v][t] = v16d_set1(0);
    }
    for (int b = 0; b < blocks; b++) {
        tile_sums s;
        tile_set(s, width, starts + b * width);
        tile_bytes(s, panel->weights + steps * b, x.digits + steps * b * width, steps, width,
                   traits.depth, NULL, NULL);
        for (int v = 0; v < PANEL_VECTORS; v++) {
            const v16d d = v16d_from_f32(v16_load(&panel->u.b.d[b][16 * v]));
            for (int t = 0; t < tokens; t++) {
                u[v][t] = v16d_fma(block_to_f64(&s[v][t * 3]), d, u[v][t]);
            }
        }
    }
    for (int t = 0; t < tokens; t++) {
        for (int v = 0; v < PANEL_VECTORS; v++) {
            double *out = sums + t * PANEL_ROWS + 16 * v;
            v16d_store(out, v16d_fma(u[v][t], v16d_set1(x.dx[t]), v16d_load(out)));
        }
    }
}
