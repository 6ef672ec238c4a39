/*
 * matmul_panel.h - quantized weights with one row of the matrix in each lane.
 *
 * Included by matmul_template.h for every set with vectors. A chunk of PANEL_ROWS rows is unpacked
 * into a panel: integers interleaved so that one vector holds the next 2 or 4 values of 16 rows.
 * The panel is used for all tokens, in tiles of INT_TOKENS. The 24-bit activations are cut into
 * digits, small enough for the dot products of this set, and each digit is one row of the tile:
 *   TL_DOT4   X = 65536 p2 + 256 p1 + p0, int8 digits times uint8 weights (q + an offset)
 *   else      X = 4096 h + l, int16 digits times int16 weights (sub-scales multiplied in)
 * All of that is exact in int32, so how it is cut does not show in the result.
 */

#ifdef TL_DOT4
#define PLANES 3
#define STEPS 64 // vectors per chunk
#define INT_TOKENS 2
#else
#define PLANES 2
#define STEPS 128
#define INT_TOKENS 3
#endif
#if TL_SIMD == TL_SIMD_AVX512
#define PANEL_VECTORS 2 // of 16 rows each
#else
#define PANEL_VECTORS 1
#endif
#define PANEL_ROWS (16 * PANEL_VECTORS)
#define PANEL_CHUNKS 8 // chunks unpacked together, so that the sums are read and written less
#define BLOCK_STEPS (STEPS / 8)

struct panel {
    int32_t weights[STEPS][PANEL_ROWS]; // 4 uint8 (q + offset) or 2 int16 (q, or q * scale) each
    union {
        struct {
            float d[PANEL_ROWS], dmin[PANEL_ROWS];
            int32_t min[8][PANEL_ROWS]; // int16 pairs: two groups of 16 values
#ifdef TL_DOT4
            int32_t scale[16][PANEL_ROWS];
#endif
        } k;
        struct {
            float d[8][PANEL_ROWS], m[8][PANEL_ROWS];
        } b; // blocks of 32
    } u;
};

/* What the loops below need to know of a type; constants wherever speed matters. */
struct traits {
    bool has_min;
    bool wide;  // the sub-scales of two neighbouring groups of 16 are the same
    int offset; // q + offset is not negative
};

static enum tl_type type_id(const struct tl_type_info *type) {
    return (enum tl_type)(type - tl_type_find(TL_TYPE_F32));
}

static struct traits traits_of(const struct tl_type_info *type) {
    switch (type_id(type)) {
    case TL_TYPE_Q4_K:
    case TL_TYPE_Q5_K:
        return (struct traits){true, true, 0};
    case TL_TYPE_Q2_K:
    case TL_TYPE_Q4_1:
    case TL_TYPE_Q5_1:
        return (struct traits){true, false, 0};
    case TL_TYPE_Q3_K:
        return (struct traits){false, false, 4};
    case TL_TYPE_Q6_K:
        return (struct traits){false, false, 32};
    case TL_TYPE_Q4_0:
        return (struct traits){false, false, 8};
    case TL_TYPE_Q5_0:
        return (struct traits){false, false, 16};
    default: // Q8_0
        return (struct traits){false, false, TL_OFFSET_Q8_0};
    }
}

/* ---- packed activations: one record for each tile and chunk ---- */

struct record {
    int32_t *digits; // [STEPS][tokens * PLANES], 4 bytes each
    int32_t *sums;   // [8][tokens * 2], int16 pairs: sums over 16 values, high and low 14 bits
    double *dx;      // [tokens]
    float *blocks;   // [8][tokens]: sums over 32 values, rounded
    int32_t *groups; // TL_DOT4: [16][tokens * PLANES]: sums of the digits over 16 values
};

TL_INLINE size_t record_bytes(const size_t tokens) {
    size_t words = STEPS * tokens * PLANES + 8 * tokens * 2 + tokens * 2 + 8 * tokens;
#ifdef TL_DOT4
    words += 16 * tokens * PLANES;
#endif
    return (words * 4 + 63) & ~(size_t)63;
}

TL_INLINE struct record record_at(const void *packed, const size_t tokens, size_t index) {
    struct record r;
    r.digits = (int32_t *)((uintptr_t)packed + index * record_bytes(tokens));
    r.sums = r.digits + STEPS * tokens * PLANES;
    r.dx = (double *)(r.sums + 8 * tokens * 2);
    r.blocks = (float *)(r.dx + tokens);
    r.groups = (int32_t *)(r.blocks + 8 * tokens);
    return r;
}

static size_t int_pack_bytes(size_t cols, size_t tokens, size_t tile) {
    return size_product(round_up(cols, TL_CHUNK) / TL_CHUNK, round_up(tokens, tile) / tile,
                        record_bytes(tile));
}

/* X and dx of n <= 256 values of a token; the rest of the chunk is zero. X[i] is 16 values. */
static double round_chunk(const float *x, size_t n, v16i X[16]) {
    v16i largest = v16i_set1(0);
    int32_t bits[16], most = 0;
    float padded[TL_CHUNK], factor;
    double dx;
    if (n < TL_CHUNK) {
        memset(padded, 0, sizeof(padded));
        memcpy(padded, x, n * sizeof(float));
        x = padded;
    }
    for (int i = 0; i < 16; i++) {
        largest = v16i_max(largest, v16i_abs_bits(v16_load(x + 16 * i)));
    }
    v16i_store(bits, largest);
    for (int i = 0; i < 16; i++) most = TL_MAX(most, bits[i]);
    dx = chunk_scale((uint32_t)most, &factor);
    for (int i = 0; i < 16; i++) {
        X[i] = isnan(dx) ? v16i_set1(0)
                         : v16i_round(v16_mul(v16_load(x + 16 * i), v16_set1(factor)));
    }
    return dx;
}

/* The digits of X into their places, and what else the loops need to know of them. */
static void pack_record(const v16i X[16], double dx, const size_t tile, size_t slot,
                        struct record r) {
    const size_t width = tile * PLANES;
    int32_t out[16], sums[16], pairs[2][16];
    v16i column[16], sum, high;
    for (size_t i = 0; i < 16; i++) {
#ifdef TL_DOT4
        // lane 4 j + p: plane p of the values 4 j to 4 j + 3
        v16i digits = v16i_quads(X[i]);
        v16i_store(out, digits);
        for (size_t j = 0; j < 4; j++) {
            memcpy(&r.digits[(4 * i + j) * width + slot * PLANES], &out[4 * j], 4 * PLANES);
        }
        v16i_store(out, v16i_fold4(v16i_dot4(v16i_set1(0), v16i_set1(0x01010101), digits)));
        memcpy(&r.groups[i * width + slot * PLANES], out, 4 * PLANES);
#else
        // lane 2 j: the values 2 j and 2 j + 1
        int32_t low[16];
        high = v16i_sra(v16i_add(X[i], v16i_set1(2048)), 12);
        v16i_store(low, v16i_pairs(v16i_sub(X[i], v16i_sll(high, 12))));
        v16i_store(out, v16i_pairs(high));
        for (size_t j = 0; j < 8; j++) {
            r.digits[(8 * i + j) * width + slot * PLANES] = low[2 * j];
            r.digits[(8 * i + j) * width + slot * PLANES + 1] = out[2 * j];
        }
#endif
        column[i] = X[i];
    }
    v16i_transpose(column);
    sum = column[0];
    for (int i = 1; i < 16; i++) sum = v16i_add(sum, column[i]);
    high = v16i_sra(v16i_add(sum, v16i_set1(8192)), 14); // |sum| < 2^27
    v16i_store(sums, sum);
    v16i_store(pairs[0], v16i_pairs(v16i_sub(sum, v16i_sll(high, 14))));
    v16i_store(pairs[1], v16i_pairs(high));
    for (size_t b = 0; b < 8; b++) {
        r.blocks[b * tile + slot] = (float)(sums[2 * b] + sums[2 * b + 1]);
        r.sums[b * tile * 2 + slot * 2] = pairs[0][2 * b];
        r.sums[b * tile * 2 + slot * 2 + 1] = pairs[1][2 * b];
    }
    r.dx[slot] = dx;
}

static void int_pack(const float *x, size_t cols, size_t tokens, size_t first, size_t last,
                     void *packed, const size_t tile) {
    const size_t chunks = round_up(cols, TL_CHUNK) / TL_CHUNK;
    // whoever packs the last token also fills the last tile
    size_t end = last == tokens ? round_up(tokens, tile) : last;
    for (size_t t = first; t < end; t++) {
        for (size_t c = 0; c < chunks; c++) {
            struct record r = record_at(packed, tile, t / tile * chunks + c);
            size_t n = TL_MIN(cols - c * TL_CHUNK, (size_t)TL_CHUNK);
            v16i X[16];
            double dx = 0;
            if (t < tokens) {
                dx = round_chunk(x + t * cols + c * TL_CHUNK, n, X);
            } else {
                for (int i = 0; i < 16; i++) X[i] = v16i_set1(0);
            }
            pack_record(X, dx, tile, t % tile, r);
        }
    }
}

/* ---- panels ---- */

/* Where the panels, and then the sums (tokens, PANEL_ROWS), lie in the scratch memory. */
static size_t int_scratch(size_t tokens) {
    return PANEL_CHUNKS * sizeof(struct panel) + 64 +
           round_up(tokens, INT_TOKENS) * PANEL_ROWS * sizeof(double);
}

/*
 * One chunk of 16 rows, any type. `first` is 0 or 16: where in the panel these rows go. A row
 * that is not there repeats the last one; nobody reads its sums.
 */
static void fill_any(const struct tl_type_info *type, const uint8_t *const *row, size_t blocks,
                     size_t first, struct panel *panel) {
    const int offset = traits_of(type).offset;
    int32_t words[16][STEPS];
    struct tl_chunk chunk;
    for (size_t r = 0; r < 16; r++) {
        const size_t at = first + r;
        if (r > 0 && row[r] == row[r - 1]) {
            memcpy(words[r], words[r - 1], sizeof(words[r]));
        } else {
            type->unpack(row[r], blocks, &chunk);
#ifdef TL_DOT4
            uint8_t q[TL_CHUNK];
            for (int k = 0; k < TL_CHUNK; k++) q[k] = (uint8_t)(chunk.q[k] + offset);
#else
            int16_t q[TL_CHUNK];
            for (int g = 0; g < 16; g++) {
                int scale = type->kind == TL_KIND_K ? chunk.scale[g] : 1;
                for (int k = 16 * g; k < 16 * g + 16; k++) q[k] = (int16_t)(chunk.q[k] * scale);
            }
            (void)offset;
#endif
            memcpy(words[r], q, sizeof(words[r]));
        }
        if (type->kind == TL_KIND_K) {
            panel->u.k.d[at] = chunk.d[0];
            panel->u.k.dmin[at] = chunk.dmin;
            for (int g = 0; g < 8; g++) memcpy(&panel->u.k.min[g][at], &chunk.min[2 * g], 4);
#ifdef TL_DOT4
            for (int g = 0; g < 16; g++) panel->u.k.scale[g][at] = chunk.scale[g];
#endif
        } else {
            for (int b = 0; b < 8; b++) {
                panel->u.b.d[b][at] = chunk.d[b];
                panel->u.b.m[b][at] = chunk.m[b];
            }
        }
    }
    for (int s = 0; s < STEPS; s += 16) {
        v16i column[16];
        for (int r = 0; r < 16; r++) column[r] = v16i_load(&words[r][s]);
        v16i_transpose(column);
        for (int i = 0; i < 16; i++) v16i_store(&panel->weights[s + i][first], column[i]);
    }
}

#ifdef TL_PANEL_FILL
#include TL_PANEL_FILL
#else
#define fill_rows fill_any
#endif

/* ---- sums of a tile ---- */

typedef v16i tile_sums[PANEL_VECTORS][INT_TOKENS * PLANES];

/* s = start + dot products over `steps` vectors; width: digits per step */
TL_INLINE void tile_dot(tile_sums s, const int32_t (*weights)[PANEL_ROWS], const int32_t *x,
                        const int steps, const int width) {
    for (int i = 0; i < steps; i++) {
        v16i w[PANEL_VECTORS];
        for (int v = 0; v < PANEL_VECTORS; v++) w[v] = v16i_load(&weights[i][16 * v]);
        TL_UNROLL(6)
        for (int j = 0; j < width; j++) {
            v16i digit = v16i_set1(x[i * width + j]);
            for (int v = 0; v < PANEL_VECTORS; v++) {
#ifdef TL_DOT4
                s[v][j] = v16i_dot4(s[v][j], w[v], digit);
#else
                s[v][j] = v16i_dot2(s[v][j], w[v], digit);
#endif
            }
        }
    }
}

/* Every row starts with start[j], or with zero. */
TL_INLINE void tile_set(tile_sums s, const int width, const int32_t *start) {
    for (int j = 0; j < width; j++) {
        v16i first = v16i_set1(start != NULL ? start[j] : 0);
        for (int v = 0; v < PANEL_VECTORS; v++) s[v][j] = first;
    }
}

#ifdef TL_DOT4
/*
 * What `offset` has added to the dot products of each group of 16 (or block of 32) values, with
 * the opposite sign: where the sums start.
 */
TL_INLINE void tile_starts(const int32_t *groups, const int width, const int offset,
                           const bool blocks, int32_t *starts) {
    for (int i = 0; i < (blocks ? 8 : 16) * width; i++) {
        int at = blocks ? i / width * 2 * width + i % width : i;
        starts[i] = -offset * (blocks ? groups[at] + groups[at + width] : groups[at]);
    }
}
#endif

/* The chunk's exact T for each digit. */
TL_INLINE void tile_chunk_k(const struct panel *panel, struct record x, const int width,
                            const struct traits traits, tile_sums s) {
#ifdef TL_DOT4
    const int steps = traits.wide ? 8 : 4;
    int32_t starts[16 * INT_TOKENS * PLANES];
    if (traits.offset != 0) tile_starts(x.groups, width, traits.offset, false, starts);
    tile_set(s, width, NULL);
    for (int g = 0; g < 64 / steps; g++) {
        tile_sums part;
        tile_set(part, width, traits.offset != 0 ? starts + g * width : NULL);
        tile_dot(part, panel->weights + steps * g, x.digits + steps * g * width, steps, width);
        for (int v = 0; v < PANEL_VECTORS; v++) {
            v16i scale = v16i_load(&panel->u.k.scale[steps / 4 * g][16 * v]);
            for (int j = 0; j < width; j++) {
                s[v][j] = v16i_add(s[v][j], v16i_mul(part[v][j], scale));
            }
        }
    }
#else
    (void)traits;
    tile_set(s, width, NULL);
    tile_dot(s, panel->weights, x.digits, STEPS, width);
#endif
}

/* From the sums of a token's digits to the exact T in float64. */
TL_INLINE v16d digits_to_f64(const v16i *digit) {
#ifdef TL_DOT4
    v16d t = v16d_fma(v16d_from_i32(digit[1]), v16d_set1(256), v16d_from_i32(digit[0]));
    return v16d_fma(v16d_from_i32(digit[2]), v16d_set1(65536), t);
#else
    return v16d_fma(v16d_from_i32(digit[1]), v16d_set1(4096), v16d_from_i32(digit[0]));
#endif
}

/* T of a block of 32, rounded once to float32. */
TL_INLINE v16 digits_to_f32(const v16i *digit) {
#ifdef TL_DOT4
    // T = 4096 high + low with both halves small enough for float32
    v16i e = v16i_add(v16i_sll(digit[1], 8), digit[0]);
    v16i carry = v16i_sra(v16i_add(e, v16i_set1(2048)), 12);
    v16i high = v16i_add(v16i_sll(digit[2], 4), carry);
    v16i low = v16i_sub(e, v16i_sll(carry, 12));
#else
    v16i high = digit[1], low = digit[0];
#endif
    return v16_fma(v16_from_i32(high), v16_set1(4096), v16_from_i32(low));
}

/* sums (tokens, PANEL_ROWS) += one chunk of the panel times one tile */
TL_INLINE void tile_add_k(const struct panel *panel, struct record x, const int tokens,
                          const struct traits traits, double *sums) {
    tile_sums s;
    tile_chunk_k(panel, x, tokens * PLANES, traits, s);
    for (int t = 0; t < tokens; t++) {
        v16d dx = v16d_set1(x.dx[t]);
        for (int v = 0; v < PANEL_VECTORS; v++) {
            double *out = sums + t * PANEL_ROWS + 16 * v;
            v16d scale = v16d_mul(v16d_from_f32(v16_load(panel->u.k.d + 16 * v)), dx);
            v16d_store(out, v16d_fma(scale, digits_to_f64(&s[v][t * PLANES]), v16d_load(out)));
        }
    }
    if (!traits.has_min) return;
    for (int t = 0; t < tokens; t++) {
        v16d dx = v16d_set1(-x.dx[t]);
        for (int v = 0; v < PANEL_VECTORS; v++) {
            double *out = sums + t * PANEL_ROWS + 16 * v;
            v16i low = v16i_set1(0), high = low;
            for (int g = 0; g < 8; g++) {
                v16i min = v16i_load(&panel->u.k.min[g][16 * v]);
                low = v16i_dot2(low, min, v16i_set1(x.sums[(g * tokens + t) * 2]));
                high = v16i_dot2(high, min, v16i_set1(x.sums[(g * tokens + t) * 2 + 1]));
            }
            v16d m = v16d_fma(v16d_from_i32(high), v16d_set1(16384), v16d_from_i32(low));
            v16d scale = v16d_mul(v16d_from_f32(v16_load(panel->u.k.dmin + 16 * v)), dx);
            v16d_store(out, v16d_fma(scale, m, v16d_load(out)));
        }
    }
}

TL_INLINE void tile_add_32(const struct panel *panel, struct record x, const int tokens,
                           const struct traits traits, double *sums) {
    v16 u[PANEL_VECTORS][INT_TOKENS];
    for (int v = 0; v < PANEL_VECTORS; v++) {
        for (int t = 0; t < tokens; t++) u[v][t] = v16_set1(0);
    }
#ifdef TL_DOT4
    int32_t starts[8 * INT_TOKENS * PLANES];
    tile_starts(x.groups, tokens * PLANES, traits.offset, true, starts);
#endif
    for (int b = 0; b < 8; b++) {
        tile_sums s;
#ifdef TL_DOT4
        tile_set(s, tokens * PLANES, starts + b * tokens * PLANES);
#else
        tile_set(s, tokens * PLANES, NULL);
#endif
        tile_dot(s, panel->weights + b * BLOCK_STEPS, x.digits + b * BLOCK_STEPS * tokens * PLANES,
                 BLOCK_STEPS, tokens * PLANES);
        for (int v = 0; v < PANEL_VECTORS; v++) {
            v16 d = v16_load(&panel->u.b.d[b][16 * v]);
            for (int t = 0; t < tokens; t++) {
                u[v][t] = v16_fma(digits_to_f32(&s[v][t * PLANES]), d, u[v][t]);
            }
            if (!traits.has_min) continue;
            v16 m = v16_load(&panel->u.b.m[b][16 * v]);
            for (int t = 0; t < tokens; t++) {
                u[v][t] = v16_fma(v16_set1(x.blocks[b * tokens + t]), m, u[v][t]);
            }
        }
    }
    for (int t = 0; t < tokens; t++) {
        v16d dx = v16d_set1(x.dx[t]);
        for (int v = 0; v < PANEL_VECTORS; v++) {
            double *out = sums + t * PANEL_ROWS + 16 * v;
            v16d_store(out, v16d_fma(v16d_from_f32(u[v][t]), dx, v16d_load(out)));
        }
    }
}

/* One tile times one chunk: the traits as constants. */
TL_INLINE void tile_add(const struct tl_type_info *type, const struct panel *panel, struct record x,
                        const int tokens, double *sums) {
    const struct traits traits = traits_of(type);
    if (type->kind == TL_KIND_K) {
        if (traits.wide) {
            tile_add_k(panel, x, tokens, (struct traits){true, true, 0}, sums);
        } else if (traits.has_min) {
            tile_add_k(panel, x, tokens, (struct traits){true, false, 0}, sums);
        } else {
            tile_add_k(panel, x, tokens, (struct traits){false, false, traits.offset}, sums);
        }
    } else if (traits.has_min) {
        tile_add_32(panel, x, tokens, (struct traits){true, false, 0}, sums);
    } else {
        tile_add_32(panel, x, tokens, (struct traits){false, false, traits.offset}, sums);
    }
}

/* A part of the rows that come next is fetched while these are worked on. */
TL_INLINE void prefetch(const uint8_t *p, size_t bytes) {
#if defined(__GNUC__)
    for (size_t i = 0; i < bytes; i += 64) __builtin_prefetch(p + i, 0, 2);
#else
    (void)p, (void)bytes;
#endif
}

TL_INLINE void panel_matmul(const struct tl_matrix *w, size_t row0, size_t row1, const void *packed,
                            size_t tokens, const int tile, float *y, size_t y_stride,
                            void *scratch) {
    const struct tl_type_info *type = w->type;
    const size_t per_chunk = (size_t)(TL_CHUNK / type->items);
    const size_t blocks = w->cols / (size_t)type->items;
    const size_t chunks = round_up(w->cols, TL_CHUNK) / TL_CHUNK;
    const size_t tiles = (tokens + (size_t)tile - 1) / (size_t)tile;
    const size_t ahead = PANEL_ROWS * w->row_bytes;
    const size_t chunks_at_once = tile == 1 ? 1 : PANEL_CHUNKS;
    struct panel *panels = scratch;
    double *sums = (double *)((char *)scratch + round_up(PANEL_CHUNKS * sizeof(*panels), 64));
    for (size_t row = row0; row < row1; row += PANEL_ROWS) {
        const size_t rows = TL_MIN(row1 - row, (size_t)PANEL_ROWS);
        const uint8_t *src = w->data + row * w->row_bytes;
        memset(sums, 0, tiles * (size_t)tile * PANEL_ROWS * sizeof(double));
        for (size_t c0 = 0; c0 < chunks; c0 += chunks_at_once) {
            const size_t n = TL_MIN(chunks - c0, chunks_at_once);
            if (row1 - row >= 2 * PANEL_ROWS) {
                prefetch(src + ahead + ahead / chunks * c0, ahead / chunks * n);
            }
            for (size_t c = 0; c < n; c++) {
                const size_t first = (c0 + c) * per_chunk;
                for (size_t r0 = 0; r0 < PANEL_ROWS; r0 += 16) {
                    const uint8_t *at[16];
                    for (size_t r = 0; r < 16; r++) {
                        at[r] = src + TL_MIN(r0 + r, rows - 1) * w->row_bytes +
                                first * (size_t)type->bytes;
                    }
                    fill_rows(type, at, TL_MIN(blocks - first, per_chunk), r0, &panels[c]);
                }
            }
            for (size_t i = 0; i < tiles; i++) {
                double *out = sums + i * (size_t)tile * PANEL_ROWS;
                for (size_t c = 0; c < n; c++) {
                    struct record x = record_at(packed, (size_t)tile, i * chunks + c0 + c);
                    tile_add(type, &panels[c], x, tile, out);
                }
            }
        }
        for (size_t t = 0; t < tokens; t++) {
            for (size_t r = 0; r < rows; r++) {
                y[t * y_stride + row + r] = (float)sums[t * PANEL_ROWS + r];
            }
        }
    }
}

static void int_matmul_tile(const struct tl_matrix *w, size_t row0, size_t row1, const void *packed,
                            size_t tokens, float *y, size_t y_stride, void *scratch) {
    panel_matmul(w, row0, row1, packed, tokens, INT_TOKENS, y, y_stride, scratch);
}

static void int_matmul_row(const struct tl_matrix *w, size_t row0, size_t row1, const void *packed,
                           float *y, void *scratch) {
    panel_matmul(w, row0, row1, packed, 1, 1, y, 0, scratch);
}
