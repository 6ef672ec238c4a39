/*
 * float_gemm_template.h - float weights times many tokens, with one row of the matrix in each lane.
 *
 * Needs:   float_gemv_template.h
 * Defines: FLOAT_IN_TILES, float_scratch, pack_float_tile, pack_float_tokens, float_gemm
 */

#define FLOAT_IN_TILES true
#define FLOAT_ROWS (16 * FLOAT_VECTORS)
// Steps of a panel of at most 32 kB; 0 where registers do not hold the sums of all lanes too.
#define SMALL_PANEL ((size_t)(FLOAT_VECTORS == 2 ? 16 : 0))
#define EACH(i, n)                                                                                 \
    TL_UNROLL(12)                                                                                  \
    for (size_t i = 0; i < (n); i++)
#define LANE_PAD 16 // keeps the lanes of a panel from mapping to the same sets of the L1 cache

/* Bytes of a panel, and then the sums (tokens, FLOAT_ROWS). */
TL_INLINE size_t float_scratch(size_t tokens) {
    return FLOAT_ROWS * sizeof(float) * (SUPERCHUNK + LANE_PAD + round_up(tokens, FLOAT_TOKENS));
}

/*
 * Packed tiles: for each tile, superchunk and lane the values k = lane, lane + 16, ... of
 * FLOAT_TOKENS tokens side by side. Columns are zero-padded to 16.
 */
static inline void pack_float_tile(const float *x, size_t cols, size_t token, float *packed) {
    const size_t padded = round_up(cols, 16);
    float *tile = packed + token / FLOAT_TOKENS * FLOAT_TOKENS * padded + token % FLOAT_TOKENS;
    for (size_t k0 = 0; k0 < padded; k0 += SUPERCHUNK) {
        size_t steps = TL_MIN(padded - k0, (size_t)SUPERCHUNK) / 16;
        float *out = tile + k0 * FLOAT_TOKENS;
        for (size_t lane = 0; lane < 16; lane++) {
            for (size_t i = 0; i < steps; i++) {
                size_t k = k0 + i * 16 + lane;
                out[(lane * steps + i) * FLOAT_TOKENS] = x != NULL && k < cols ? x[k] : 0;
            }
        }
    }
}

/* The same for FLOAT_TOKENS tokens, the first of which is the first of its tile. */
static inline void pack_float_tokens(const float *x, size_t cols, size_t token, float *packed) {
    const size_t padded = round_up(cols, 16);
    float *tile = packed + token * padded;
    for (size_t k0 = 0; k0 < padded; k0 += SUPERCHUNK) {
        const size_t steps = TL_MIN(padded - k0, (size_t)SUPERCHUNK) / 16;
        float *out = tile + k0 * FLOAT_TOKENS;
        for (size_t i = 0; i < steps; i++) {
            const size_t k = k0 + i * 16;
            v16i column[16];
            for (size_t t = 0; t < 16; t++) {
                const float *from = x + TL_MIN(t, (size_t)FLOAT_TOKENS - 1) * cols + k;
                column[t] =
                    v16i_bits(cols - k >= 16 ? v16_load(from) : v16_load_part(from, cols - k));
            }
            v16i_transpose(column);
            for (size_t lane = 0; lane < 16; lane++) {
                int32_t values[16];
                v16i_store(values, column[lane]);
                memcpy(out + (lane * steps + i) * FLOAT_TOKENS, values, FLOAT_TOKENS * 4);
            }
        }
    }
}

/*
 * The columns [k0, k0 + steps * 16) of FLOAT_ROWS rows as (lane, step, row). Rows beyond the end of
 * the matrix repeat its last one; their sums are not used.
 */
TL_INLINE void float_panel(const struct tl_matrix *w, enum float_type type, size_t row, size_t rows,
                           size_t k0, size_t steps, float *panel) {
    const size_t size = float_size(type);
    for (size_t i = 0; i < steps; i++) {
        const size_t k = k0 + i * 16, left = w->row_bytes - k * size;
        for (size_t r0 = 0; r0 < FLOAT_ROWS; r0 += 16) {
            float *out = panel + i * FLOAT_ROWS + r0;
            uint8_t part[16][64];
            v16i column[16];
            for (size_t r = 0; r < 16; r++) {
                const uint8_t *p = w->data + (row + TL_MIN(r0 + r, rows - 1)) * w->row_bytes;
                p += k * size;
                if (left < 16 * size) {
                    memset(part[r], 0, sizeof(part[r]));
                    p = memcpy(part[r], p, left);
                }
                column[r] = v16i_bits(load_weights(type, p));
            }
            v16i_transpose(column);
            for (size_t l = 0; l < 16; l++) {
                v16i_store(out + l * (steps * FLOAT_ROWS + LANE_PAD), column[l]);
            }
        }
    }
}

/* One function for each type, so that it is a constant inside. */
#define FLOAT_PANEL_FUNCTION(name, type)                                                           \
    static void float_panel_##name(const struct tl_matrix *w, size_t row, size_t rows, size_t k0,  \
                                   size_t steps, float *panel) {                                   \
        float_panel(w, type, row, rows, k0, steps, panel);                                         \
    }
FLOAT_PANEL_FUNCTION(f32, FLOAT_F32)
FLOAT_PANEL_FUNCTION(f16, FLOAT_F16)
FLOAT_PANEL_FUNCTION(bf16, FLOAT_BF16)

/* sums (FLOAT_TOKENS, FLOAT_ROWS) += some lanes of the panel, one after another, times those of one
   tile. */
static void float_tile(const float *panel, const float *x, size_t steps, size_t lanes,
                       float *sums) {
    v16 total[FLOAT_TOKENS * FLOAT_VECTORS];
    EACH(i, FLOAT_TOKENS * FLOAT_VECTORS) total[i] = v16_load(sums + 16 * i);
    for (size_t lane = 0; lane < lanes; lane++) {
        v16 s[FLOAT_TOKENS * FLOAT_VECTORS];
        EACH(i, FLOAT_TOKENS * FLOAT_VECTORS) s[i] = v16_set1(0);
        for (size_t step = 0; step < steps; step++) {
            v16 weights[FLOAT_VECTORS];
            EACH(v, FLOAT_VECTORS) weights[v] = v16_load(panel + step * FLOAT_ROWS + 16 * v);
            EACH(t, FLOAT_TOKENS) {
                const v16 value = v16_set1(x[step * FLOAT_TOKENS + t]);
                EACH(v, FLOAT_VECTORS) {
                    v16 *sum = &s[t * FLOAT_VECTORS + v];
                    *sum = LANE_FMA(weights[v], value, *sum);
                }
            }
        }
        EACH(i, FLOAT_TOKENS * FLOAT_VECTORS) total[i] = v16_add(total[i], s[i]);
        panel += steps * FLOAT_ROWS + LANE_PAD;
        x += steps * FLOAT_TOKENS;
    }
    EACH(i, FLOAT_TOKENS * FLOAT_VECTORS) v16_store(sums + 16 * i, total[i]);
}

TL_INLINE void prefetch_result(float *p) {
#if defined(__GNUC__)
    EACH(v, FLOAT_VECTORS) __builtin_prefetch(p + 16 * v, 1, 3);
#else
    (void)p;
#endif
}

/* The sums of some tokens and rows, to y. */
TL_INLINE void float_store(const float *sums, size_t tokens, size_t rows, float *y,
                           size_t y_stride) {
    for (size_t t = 0; t < tokens; t++, y += y_stride, sums += FLOAT_ROWS) {
        if (rows == FLOAT_ROWS) { // a copy of any length takes a loop
            EACH(v, FLOAT_VECTORS) v16_store(y + 16 * v, v16_load(sums + 16 * v));
        } else {
            memcpy(y, sums, rows * sizeof(float));
        }
    }
}

static void float_gemm(const struct tl_matrix *w, size_t row0, size_t row1, const float *packed,
                       size_t tokens, float *y, size_t y_stride, float *scratch) {
    const enum float_type type = float_type_of(w->type);
    void (*const unpack)(const struct tl_matrix *, size_t, size_t, size_t, size_t, float *) =
        type == FLOAT_F32   ? float_panel_f32
        : type == FLOAT_F16 ? float_panel_f16
                            : float_panel_bf16;
    const size_t padded = round_up(w->cols, 16), tile_size = FLOAT_TOKENS * padded;
    const bool once = padded <= SMALL_PANEL * 16; // each tile is computed at once
    float *panel = scratch, *sums = scratch + FLOAT_ROWS * SUPERCHUNK + 16 * LANE_PAD;
    for (size_t row = row0; row < row1; row += FLOAT_ROWS) {
        size_t rows = TL_MIN(row1 - row, (size_t)FLOAT_ROWS);
        size_t tiles = (tokens + FLOAT_TOKENS - 1) / FLOAT_TOKENS;
        memset(sums, 0, tiles * FLOAT_TOKENS * FLOAT_ROWS * sizeof(float));
        for (size_t k0 = 0; k0 < padded; k0 += SUPERCHUNK) {
            size_t steps = TL_MIN(padded - k0, (size_t)SUPERCHUNK) / 16;
            // a small panel stays in the L1 cache; of a large one, a lane does
            const size_t lanes = steps <= SMALL_PANEL ? 16 : 1;
            unpack(w, row, rows, k0, steps, panel);
            for (size_t lane = 0; lane < 16; lane += lanes) {
                for (size_t i = 0; i < tiles; i++) {
                    const size_t token = i * FLOAT_TOKENS;
                    const size_t n = TL_MIN(tokens - token, (size_t)FLOAT_TOKENS);
                    float *to = y + token * y_stride + row;
                    for (size_t t = 0; once && t < n; t++) prefetch_result(to + t * y_stride);
                    float_tile(panel + lane * (steps * FLOAT_ROWS + LANE_PAD),
                               packed + i * tile_size + (k0 + lane * steps) * FLOAT_TOKENS, steps,
                               lanes, sums + token * FLOAT_ROWS);
                    if (once) float_store(sums + token * FLOAT_ROWS, n, rows, to, y_stride);
                }
            }
        }
        if (!once) float_store(sums, tokens, rows, y + row, y_stride);
    }
}
