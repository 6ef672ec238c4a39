/*
 * gemm_template.h - quantized weights with one row of the matrix in each lane.
 *
 * Included by matmul_template.h for every set with vectors. A chunk of PANEL_ROWS rows is unpacked
 * into a panel: integers interleaved so that one vector holds the next values of 16 rows. The
 * panel is used for all tokens, a tile of tokens at a time. The 24-bit activations are cut into
 * digits that are small enough for the dot products of this set; a digit of a token is one row of
 * the tile. Two layouts, chosen by `bytes`, a constant in every loop:
 *   bytes   X = 65536 p2 + 256 p1 + p0, int8 digits times uint8 weights (q + an offset)
 *   words   X = 4096 h + l, int16 digits times int16 weights
 * All of that is exact, so how it is cut does not show in the result.
 */

#if TL_SIMD == TL_SIMD_AVX512
#define PANEL_VECTORS 2 // of 16 rows each
#else
#define PANEL_VECTORS 1
#endif
#define PANEL_ROWS (16 * PANEL_VECTORS)
#define PANEL_CHUNKS 8 // chunks unpacked together, so that the sums are read and written less

#define BYTE_TOKENS 2
#define WORD_TOKENS 3
#define FAST_TOKENS 6
#define TILE_TOKENS FAST_TOKENS // the largest
#define TILE_DIGITS 6           // digits of a tile, in every layout

TL_INLINE int planes_of(const bool bytes) {
    return bytes ? 3 : 2;
}

/* How activations are packed. Fast: one digit, and a float32 scale for each 32 values. */
enum layout { LAYOUT_BYTES, LAYOUT_WORDS, LAYOUT_FAST_BYTES, LAYOUT_FAST_WORDS };

TL_INLINE bool layout_in_bytes(const enum layout layout) {
    return layout == LAYOUT_BYTES || layout == LAYOUT_FAST_BYTES;
}

/* Vectors per chunk. */
TL_INLINE int steps_of(const bool bytes) {
    return bytes ? 64 : 128;
}

struct panel {
    int32_t weights[128][PANEL_ROWS]; // bytes: the first 64
    union {
        struct {
            float d[PANEL_ROWS], dmin[PANEL_ROWS];
            int32_t min[8][PANEL_ROWS];    // int16 pairs: two groups of 16 values
            int32_t min32[4][PANEL_ROWS];  // Q4_K and Q5_K: the same for two blocks of 32
            int32_t scale[16][PANEL_ROWS]; // as SCALE_WORD makes them
        } k;
        struct {
            float d[8][PANEL_ROWS], m[8][PANEL_ROWS];
        } b; // blocks of 32
    } u;
};

/* How the sub-scales are kept: int32 to multiply, or int16 twice to multiply sums of pairs. */
#ifdef TL_DOT4
#define SCALE_WORD(x) (x)
#else
#define SCALE_WORD(x) twice(x)
#endif

/* What the loops below need to know of a type; constants wherever speed matters. */
struct traits {
    bool has_min;
    bool wide;  // the sub-scales of two neighbouring groups of 16 are the same
    int offset; // q + offset is not negative
    int depth;  // so many times two products of a weight and a digit fit in int16
};

static enum tl_type type_id(const struct tl_type_info *type) {
    return (enum tl_type)(type - tl_type_find(TL_TYPE_F32));
}

TL_INLINE struct traits traits_of(enum tl_type id) {
    switch (id) {
    case TL_TYPE_Q4_K:
        return (struct traits){true, true, 0, 8};
    case TL_TYPE_Q5_K:
        return (struct traits){true, true, 0, 4};
    case TL_TYPE_Q2_K:
        return (struct traits){true, false, 0, 4};
    case TL_TYPE_Q3_K:
        return (struct traits){false, false, 4, 4};
    case TL_TYPE_Q6_K:
        return (struct traits){false, false, 32, 2};
    case TL_TYPE_Q4_0:
        return (struct traits){false, false, 8, 8};
    case TL_TYPE_Q4_1:
        return (struct traits){true, false, 0, 8};
    case TL_TYPE_Q5_0:
        return (struct traits){false, false, 16, 4};
    case TL_TYPE_Q5_1:
        return (struct traits){true, false, 0, 4};
    default: // Q8_0
        return (struct traits){false, false, TL_MAX(TL_OFFSET_Q8_0, 0), 8};
    }
}

static bool int_in_bytes(const struct tl_type_info *type) {
    return TL_OFFSET_Q8_0 >= 0 || type_id(type) != TL_TYPE_Q8_0;
}

/* ---- packed activations: one record for each tile and chunk ---- */

struct record {
    int32_t *digits; // [steps][tokens * planes], 4 bytes each
    int32_t *sums;   // [8][tokens * 2], int16 pairs: sums over 16 values, low 14 bits and high
    int32_t *pairs;  // [4][tokens * 2], the same: sums over 32 values, low 15 bits and high
    double *dx;      // [tokens]
    float *blocks;   // [8][tokens]: sums over 32 values, rounded
    int32_t *groups; // bytes: [16][tokens * planes]: sums of the digits over 16 values
};

TL_INLINE size_t record_bytes(const bool bytes, const size_t tokens) {
    size_t words = (size_t)(steps_of(bytes) * planes_of(bytes)) * tokens;
    words += 8 * tokens * 2 + 4 * tokens * 2 + tokens * 2 + 8 * tokens;
    if (bytes) words += 16 * tokens * 3;
    return (words * 4 + 63) & ~(size_t)63;
}

TL_INLINE struct record record_at(const void *packed, const bool bytes, const size_t tokens,
                                  size_t index) {
    struct record r;
    r.digits = (int32_t *)((uintptr_t)packed + index * record_bytes(bytes, tokens));
    r.sums = r.digits + (size_t)(steps_of(bytes) * planes_of(bytes)) * tokens;
    r.pairs = r.sums + 8 * tokens * 2;
    r.dx = (double *)(r.pairs + 4 * tokens * 2);
    r.blocks = (float *)(r.dx + tokens);
    r.groups = (int32_t *)(r.blocks + 8 * tokens);
    return r;
}

/* X and dx of n <= 256 values of a token; the rest of the chunk is zero. X[i] is 16 values. */
static double round_chunk(const float *x, size_t n, v16i X[16]) {
    v16i largest = v16i_set1(0);
    int32_t bits[16], most = 0;
    float padded[TL_CHUNK], factor = 0;
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
        X[i] =
            isnan(dx) ? v16i_set1(0) : v16i_round(v16_mul(v16_load(x + 16 * i), v16_set1(factor)));
    }
    return dx;
}

/* Pairs of int16: the lowest `bits` of two numbers as signed numbers, and what is above. */
static void split_pair(int32_t a, int32_t b, int bits, int32_t out[2]) {
    const int32_t half = 1 << (bits - 1), high_a = (a + half) >> bits, high_b = (b + half) >> bits;
    const int32_t low_a = a - high_a * (1 << bits), low_b = b - high_b * (1 << bits);
    out[0] = (low_a & 0xffff) | (int32_t)((uint32_t)low_b << 16);
    out[1] = (high_a & 0xffff) | (int32_t)((uint32_t)high_b << 16);
}

/* The digits of X into their places, and what else the loops need to know of them. */
TL_INLINE void pack_record(const bool bytes, const v16i X[16], double dx, const size_t tile,
                           size_t slot, struct record r) {
    const size_t planes = (size_t)planes_of(bytes), width = tile * planes;
    int32_t out[16], sums[16], pairs[2][16], pair[2];
    v16i column[16], sum, high;
    for (size_t i = 0; i < 16; i++) {
        if (bytes) {
            // lane 4 j + p: plane p of the values 4 j to 4 j + 3
            v16i digits = v16i_quads(X[i]);
            v16i_store(out, digits);
            for (size_t j = 0; j < 4; j++) {
                memcpy(&r.digits[(4 * i + j) * width + slot * 3], &out[4 * j], 12);
            }
#ifdef TL_DOT4
            sum = v16i_dot4(v16i_set1(0), v16i_set1(0x01010101), digits);
#else
            sum = v16i_mul_bytes(v16i_set1(0x01010101), digits);
            sum = v16i_dot2(v16i_set1(0), sum, v16i_set1(0x00010001));
#endif
            v16i_store(out, v16i_fold4(sum));
            memcpy(&r.groups[i * width + slot * 3], out, 12);
        } else {
            // lane 2 j: the values 2 j and 2 j + 1
            int32_t low[16];
            high = v16i_sra(v16i_add(X[i], v16i_set1(2048)), 12);
            v16i_store(low, v16i_pairs(v16i_sub(X[i], v16i_sll(high, 12))));
            v16i_store(out, v16i_pairs(high));
            for (size_t j = 0; j < 8; j++) {
                r.digits[(8 * i + j) * width + slot * 2] = low[2 * j];
                r.digits[(8 * i + j) * width + slot * 2 + 1] = out[2 * j];
            }
        }
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
    for (size_t i = 0; i < 4; i++) {
        const int32_t *four = sums + 4 * i;
        split_pair(four[0] + four[1], four[2] + four[3], 15, pair);
        memcpy(&r.pairs[i * tile * 2 + slot * 2], pair, sizeof(pair));
    }
    r.dx[slot] = dx;
}

#include "kernels/template/gemm_fast_template.h"

TL_INLINE size_t layout_record_bytes(const enum layout layout, const size_t tile) {
    if (layout >= LAYOUT_FAST_BYTES) return fast_record_bytes(layout_in_bytes(layout), tile);
    return record_bytes(layout_in_bytes(layout), tile);
}

TL_INLINE void pack_tokens(const enum layout layout, const size_t tile, const float *x, size_t cols,
                           size_t tokens, size_t first, size_t last, void *packed) {
    const size_t chunks = round_up(cols, TL_CHUNK) / TL_CHUNK;
    const bool bytes = layout_in_bytes(layout);
    const float zero[TL_CHUNK] = {0};
    // whoever packs the last token also fills the last tile
    size_t end = last == tokens ? round_up(tokens, tile) : last;
    for (size_t t = first; t < end; t++) {
        for (size_t c = 0; c < chunks; c++) {
            size_t n = TL_MIN(cols - c * TL_CHUNK, (size_t)TL_CHUNK), at = t / tile * chunks + c;
            const float *part = t < tokens ? x + t * cols + c * TL_CHUNK : zero;
            if (layout >= LAYOUT_FAST_BYTES) {
                fast_pack_record(bytes, part, n, tile, t % tile,
                                 fast_record_at(packed, bytes, tile, at));
            } else {
                v16i X[16];
                double dx = round_chunk(part, n, X);
                pack_record(bytes, X, dx, tile, t % tile, record_at(packed, bytes, tile, at));
            }
        }
    }
}

/* ---- panels ---- */

/*
 * Where the dot products cannot start from what the offset adds, it is taken away like a minimum:
 * min = offset * scale, in pairs.
 */
static void scale_offsets(const struct tl_type_info *type, size_t first, struct panel *panel) {
#ifdef TL_DOT4
    (void)type, (void)first, (void)panel;
#else
    const int offset = traits_of(type_id(type)).offset;
    const int bits = offset == 32 ? 5 : 2;
    if (type->kind != TL_KIND_K || offset == 0) return;
    for (int g = 0; g < 8; g++) {
        v16i low = v16i_srl(v16i_sll(v16i_load(&panel->u.k.scale[2 * g][first]), 16 + bits), 16);
        v16i high = v16i_sll(v16i_load(&panel->u.k.scale[2 * g + 1][first]), 16 + bits);
        v16i_store(&panel->u.k.min[g][first], v16i_or_and(low, high, v16i_set1(-1)));
    }
#endif
}

/*
 * One chunk of 16 rows, any type. `first` is 0 or 16: where in the panel these rows go. A row
 * that is not there repeats the last one; nobody reads its sums.
 */
static void fill_any(const struct tl_type_info *type, const struct rows *row, size_t blocks,
                     size_t first, struct panel *panel) {
    const int offset = traits_of(type_id(type)).offset;
    const int steps = steps_of(int_in_bytes(type));
    int32_t words[16][128];
    struct tl_chunk chunk;
    for (size_t r = 0; r < 16; r++) {
        const size_t at = first + r;
        if (r > 0 && row->at[r] == row->at[r - 1]) {
            memcpy(words[r], words[r - 1], sizeof(words[r]));
        } else {
            type->unpack(row->at[r], blocks, &chunk);
            if (int_in_bytes(type)) {
                uint8_t q[TL_CHUNK];
                for (int k = 0; k < TL_CHUNK; k++) q[k] = (uint8_t)(chunk.q[k] + offset);
                memcpy(words[r], q, sizeof(q));
            } else {
                int16_t q[TL_CHUNK];
                for (int k = 0; k < TL_CHUNK; k++) q[k] = chunk.q[k];
                memcpy(words[r], q, sizeof(q));
            }
        }
        if (type->kind == TL_KIND_K) {
            panel->u.k.d[at] = chunk.d[0];
            panel->u.k.dmin[at] = chunk.dmin;
            for (int g = 0; g < 8; g++) memcpy(&panel->u.k.min[g][at], &chunk.min[2 * g], 4);
            for (int g = 0; g < 16; g++) {
#ifdef TL_DOT4
                panel->u.k.scale[g][at] = chunk.scale[g];
#else
                panel->u.k.scale[g][at] = (int32_t)((uint32_t)(uint16_t)chunk.scale[g] * 0x10001u);
#endif
            }
        } else {
            for (int b = 0; b < 8; b++) {
                panel->u.b.d[b][at] = chunk.d[b];
                panel->u.b.m[b][at] = chunk.m[b];
            }
        }
    }
    for (int s = 0; s < steps; s += 16) {
        v16i column[16];
        for (int r = 0; r < 16; r++) column[r] = v16i_load(&words[r][s]);
        v16i_transpose(column);
        for (int i = 0; i < 16; i++) v16i_store(&panel->weights[s + i][first], column[i]);
    }
}

#include "kernels/template/fill_panel_template.h"

/* ---- sums of a tile ---- */

typedef v16i tile_sums[PANEL_VECTORS][TILE_DIGITS];

#ifdef TL_TILE_ASM
#include TL_TILE_ASM
#endif

/* s = start[j] in every row, or zero */
TL_INLINE void tile_set(tile_sums s, const int width, const int32_t *start) {
    for (int j = 0; j < width; j++) {
        v16i first = v16i_set1(start != NULL ? start[j] : 0);
        for (int v = 0; v < PANEL_VECTORS; v++) s[v][j] = first;
    }
}

/* s = dot products of words over `steps` vectors; width: digits per step */
TL_INLINE void tile_words(tile_sums s, const int32_t (*weights)[PANEL_ROWS], const int32_t *x,
                          const int steps, const int width) {
#ifdef TL_TILE_ASM
    if (width == 6) {
        tile_asm_words(s[0], weights, x, steps);
        return;
    }
#endif
    tile_set(s, width, NULL);
    for (int i = 0; i < steps; i++) {
        v16i w[PANEL_VECTORS];
        for (int v = 0; v < PANEL_VECTORS; v++) w[v] = v16i_load(&weights[i][16 * v]);
        TL_UNROLL(6)
        for (int j = 0; j < width; j++) {
            v16i digit = v16i_set1(x[i * width + j]);
            for (int v = 0; v < PANEL_VECTORS; v++) s[v][j] = v16i_dot2(s[v][j], w[v], digit);
        }
    }
}

#ifdef TL_DOT4
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
#endif

/* s += scale * (start + dot products of bytes); scale and start may be NULL */
TL_INLINE void tile_bytes(tile_sums s, const int32_t (*weights)[PANEL_ROWS], const int32_t *x,
                          const int steps, const int width, const int depth, const int32_t *scale,
                          const int32_t *start) {
    tile_sums part;
#ifdef TL_DOT4
    (void)depth;
    tile_set(part, width, start);
    if (width == TILE_DIGITS) { // rolled up, gcc copies all the sums in every round
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
#else
    (void)start;
#ifdef TL_TILE_ASM
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
#endif
}

/*
 * What `offset` adds to the dot products of each group of 16 values, or block of 32, with the
 * opposite sign: where they start.
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

/* From the sums of a token's digits to the exact T in float64. */
TL_INLINE v16d digits_to_f64(const v16i *digit) {
    v16d t = v16d_fma(v16d_from_i32(digit[1]), v16d_set1(256), v16d_from_i32(digit[0]));
    return v16d_fma(v16d_from_i32(digit[2]), v16d_set1(65536), t);
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

/* sums (tokens, PANEL_ROWS) += one chunk of the panel times one tile */
TL_INLINE void tile_add_k(const struct panel *panel, struct record x, const int tokens,
                          const struct traits traits, double *sums) {
    const int steps = traits.wide ? 8 : 4, width = tokens * 3;
    tile_sums s;
#ifdef TL_DOT4
    const bool starts_off = traits.offset != 0, subtract = false;
#else
    const bool starts_off = false, subtract = traits.offset != 0;
#endif
    int32_t starts[16 * TILE_DIGITS];
    if (starts_off) tile_starts(x.groups, width, traits.offset, false, starts);
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

/* The same where the sub-scales are in the weights; no minima. */
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
                           const int tokens, const struct traits traits, double *sums) {
    const int planes = planes_of(bytes), width = tokens * planes, steps = steps_of(bytes) / 8;
    v16 u[PANEL_VECTORS][TILE_TOKENS];
    int32_t starts[8 * TILE_DIGITS];
    if (bytes && traits.offset != 0) tile_starts(x.groups, width, traits.offset, true, starts);
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

#define FAST_TILES
#include "kernels/template/gemm_fast_template.h"

/* One tile times one chunk, with the traits as constants. Sums are float64, in fast mode float32.*/
TL_INLINE void tile_add(const enum layout layout, enum tl_type id, const struct panel *panel,
                        const void *record, const int tokens, void *sums) {
    const size_t tile = (size_t)tokens;
    if (layout == LAYOUT_WORDS && id == TL_TYPE_Q6_K) {
        tile_add_scaled_words(panel, record_at(record, false, tile, 0), tokens, sums);
        return;
    }
    if (layout == LAYOUT_WORDS) {
        tile_add_32(false, panel, record_at(record, false, tile, 0), tokens,
                    traits_of(TL_TYPE_Q8_0), sums);
        return;
    }
    if (layout == LAYOUT_FAST_WORDS) {
        fast_add_32(false, panel, fast_record_at(record, false, tile, 0), tokens,
                    traits_of(TL_TYPE_Q8_0), sums);
        return;
    }
#define CASE_K(type)                                                                               \
    case type:                                                                                     \
        if (layout == LAYOUT_BYTES) {                                                              \
            tile_add_k(panel, record_at(record, true, tile, 0), tokens, traits_of(type), sums);    \
        } else {                                                                                   \
            fast_add_k(panel, fast_record_at(record, true, tile, 0), tokens, traits_of(type),      \
                       sums);                                                                      \
        }                                                                                          \
        break
#define CASE_32(type)                                                                              \
    case type:                                                                                     \
        if (layout == LAYOUT_BYTES) {                                                              \
            tile_add_32(true, panel, record_at(record, true, tile, 0), tokens, traits_of(type),    \
                        sums);                                                                     \
        } else {                                                                                   \
            fast_add_32(true, panel, fast_record_at(record, true, tile, 0), tokens,                \
                        traits_of(type), sums);                                                    \
        }                                                                                          \
        break
    switch (id) {
        CASE_K(TL_TYPE_Q2_K);
        CASE_K(TL_TYPE_Q3_K);
        CASE_K(TL_TYPE_Q4_K);
        CASE_K(TL_TYPE_Q5_K);
        CASE_K(TL_TYPE_Q6_K);
        CASE_32(TL_TYPE_Q4_0);
        CASE_32(TL_TYPE_Q4_1);
        CASE_32(TL_TYPE_Q5_0);
        CASE_32(TL_TYPE_Q5_1);
        CASE_32(TL_TYPE_Q8_0);
    default:
        break;
    }
#undef CASE_K
#undef CASE_32
}

TL_INLINE void panel_matmul(const enum layout layout, const int tile, const struct tl_matrix *w,
                            size_t row0, size_t row1, const void *packed, size_t tokens, float *y,
                            size_t y_stride, void *scratch) {
    const struct tl_type_info *type = w->type;
    const size_t per_chunk = (size_t)(TL_CHUNK / type->items);
    const size_t blocks = w->cols / (size_t)type->items;
    const size_t chunks = round_up(w->cols, TL_CHUNK) / TL_CHUNK;
    const size_t tiles = (tokens + (size_t)tile - 1) / (size_t)tile;
    const size_t chunks_at_once = tile == 1 ? 1 : PANEL_CHUNKS;
    struct panel *panels = scratch;
    const size_t sum_bytes = layout < LAYOUT_FAST_BYTES ? sizeof(double) : sizeof(float);
    const size_t record_size = layout_record_bytes(layout, (size_t)tile);
    char *sums = (char *)scratch + round_up(PANEL_CHUNKS * sizeof(*panels), 64);
    for (size_t row = row0; row < row1; row += PANEL_ROWS) {
        const size_t rows = TL_MIN(row1 - row, (size_t)PANEL_ROWS);
        const uint8_t *src = w->data + row * w->row_bytes;
        memset(sums, 0, tiles * (size_t)tile * PANEL_ROWS * sum_bytes);
        for (size_t c0 = 0; c0 < chunks; c0 += chunks_at_once) {
            const size_t n = TL_MIN(chunks - c0, chunks_at_once);
            for (size_t c = 0; c < n; c++) {
                const size_t first = (c0 + c) * per_chunk;
                for (size_t r0 = 0; r0 < PANEL_ROWS; r0 += 16) {
                    struct rows at = {.ahead = PANEL_ROWS * w->row_bytes};
                    for (size_t r = 0; r < 16; r++) {
                        at.at[r] = src + TL_MIN(r0 + r, rows - 1) * w->row_bytes +
                                   first * (size_t)type->bytes;
                    }
                    fill_rows(type, &at, TL_MIN(blocks - first, per_chunk), r0, &panels[c]);
                    if (layout == LAYOUT_WORDS && scaled_words(type)) {
                        fill_scaled_words(r0, &panels[c]);
                    }
                }
            }
            for (size_t i = 0; i < tiles; i++) {
                void *out = sums + i * (size_t)tile * PANEL_ROWS * sum_bytes;
                for (size_t c = 0; c < n; c++) {
                    const char *x = (const char *)packed + (i * chunks + c0 + c) * record_size;
                    tile_add(layout, type_id(type), &panels[c], x, tile, out);
                }
            }
        }
        for (size_t t = 0; t < tokens; t++) {
            for (size_t r = 0; r < rows; r++) {
                size_t at = t * PANEL_ROWS + r;
                y[t * y_stride + row + r] = layout < LAYOUT_FAST_BYTES
                                                ? (float)((const double *)(const void *)sums)[at]
                                                : ((const float *)(const void *)sums)[at];
            }
        }
    }
}

/*
 * ---- one token ----
 *
 * What it would read of a panel it would read once. Where there are vectors enough, a file of its
 * own multiplies the weights as they come; elsewhere a token is a tile of one.
 *   one_pack_bytes, one_pack, one_scratch, one_matmul    as in struct tl_kernels
 *   ONE_LANES                                            rows at a time
 */

/*
 * Each lane walks through rows that follow one another, as if there were so many threads: a long
 * way in one direction is what the hardware reads fastest. This many rows are each lane's; lanes a
 * multiple of 1024 bytes apart would share few sets of the cache.
 */
TL_INLINE size_t rows_per_lane(const struct tl_matrix *w, size_t rows, const size_t lanes) {
    const size_t n = rows / lanes;
    return n > 0 && n % 2 == 0 && n * w->row_bytes % 1024 == 0 ? n - 1 : n;
}

/* What to ask for at byte `at` of a row, from there; at a lane's end, what the next lot begins
 * with. */
TL_INLINE size_t lane_ahead(const struct tl_matrix *w, size_t at, size_t per_lane, bool last,
                            const size_t lanes) {
    const bool next = last && at + BYTES_AHEAD >= w->row_bytes;
    return BYTES_AHEAD + (next ? (lanes - 1) * per_lane * w->row_bytes : 0);
}

/* The types, each of which has functions of its own. */
#define ONE_TYPES(type)                                                                            \
    type(Q4_0) type(Q4_1) type(Q5_0) type(Q5_1) type(Q8_0) type(Q2_K) type(Q3_K) type(Q4_K)        \
        type(Q5_K) type(Q6_K)

#if TL_SIMD == TL_SIMD_AVX512 && defined(TL_DOT4)
#define ONE_TOKEN 1
#include "kernels/template/gemv_vnni_template.h"
#elif TL_SIMD == TL_SIMD_AVX2 || TL_SIMD == TL_SIMD_AVX512
#define ONE_TOKEN 1
#include "kernels/template/gemv_avx2_template.h"
#else
#define ONE_TOKEN 0
#endif

#if ONE_TOKEN
static bool is_one_token(enum matmul_format format) {
    return format == FORMAT_BYTE_ROW || format == FORMAT_WORD_ROW ||
           format == FORMAT_FAST_BYTE_ROW || format == FORMAT_FAST_WORD_ROW;
}
#endif

/* ---- the entries of struct tl_kernels ---- */

/* One copy of a loop for each format, so that the layout and the tile are constants inside. */
#define INT_DISPATCH(format, function, ...)                                                        \
    switch (format) {                                                                              \
    case FORMAT_BYTE_ROW:                                                                          \
        if (!ONE_TOKEN) function(LAYOUT_BYTES, 1, __VA_ARGS__);                                    \
        break;                                                                                     \
    case FORMAT_BYTE_TILE:                                                                         \
        function(LAYOUT_BYTES, BYTE_TOKENS, __VA_ARGS__);                                          \
        break;                                                                                     \
    case FORMAT_WORD_ROW:                                                                          \
        if (!ONE_TOKEN) function(LAYOUT_WORDS, 1, __VA_ARGS__);                                    \
        break;                                                                                     \
    case FORMAT_WORD_TILE:                                                                         \
        function(LAYOUT_WORDS, WORD_TOKENS, __VA_ARGS__);                                          \
        break;                                                                                     \
    case FORMAT_FAST_BYTE_ROW:                                                                     \
        if (!ONE_TOKEN) function(LAYOUT_FAST_BYTES, 1, __VA_ARGS__);                               \
        break;                                                                                     \
    case FORMAT_FAST_BYTE_TILE:                                                                    \
        function(LAYOUT_FAST_BYTES, FAST_TOKENS, __VA_ARGS__);                                     \
        break;                                                                                     \
    case FORMAT_FAST_WORD_ROW:                                                                     \
        if (!ONE_TOKEN) function(LAYOUT_FAST_WORDS, 1, __VA_ARGS__);                               \
        break;                                                                                     \
    case FORMAT_FAST_WORD_TILE:                                                                    \
        function(LAYOUT_FAST_WORDS, FAST_TOKENS, __VA_ARGS__);                                     \
        break;                                                                                     \
    default:                                                                                       \
        break;                                                                                     \
    }

static void pack_size(enum layout layout, size_t tile, size_t cols, size_t tokens, size_t *out) {
    *out = size_product(round_up(cols, TL_CHUNK) / TL_CHUNK, round_up(tokens, tile) / tile,
                        layout_record_bytes(layout, tile));
}

static size_t int_pack_bytes(enum matmul_format format, size_t cols, size_t tokens) {
    size_t size = 0;
#if ONE_TOKEN
    if (is_one_token(format)) return one_pack_bytes(cols, tokens);
#endif
    INT_DISPATCH(format, pack_size, cols, tokens, &size)
    return size;
}

static void int_pack(enum matmul_format format, const float *x, size_t cols, size_t tokens,
                     size_t first, size_t last, void *packed) {
#if ONE_TOKEN
    if (is_one_token(format)) {
        if (first < last) one_pack(format, x, cols, packed);
        return;
    }
#endif
    INT_DISPATCH(format, pack_tokens, x, cols, tokens, first, last, packed)
}

/* Bytes of the panels, and then the sums (tokens, PANEL_ROWS). */
static size_t int_scratch(enum matmul_format format, size_t cols, size_t tokens) {
#if ONE_TOKEN
    if (is_one_token(format)) return one_scratch(cols);
#else
    (void)format, (void)cols;
#endif
    return round_up(PANEL_CHUNKS * sizeof(struct panel), 64) +
           round_up(tokens, BYTE_TOKENS * WORD_TOKENS) * PANEL_ROWS * sizeof(double);
}

static void int_matmul(enum matmul_format format, const struct tl_matrix *w, size_t row0,
                       size_t row1, const void *packed, size_t tokens, float *y, size_t y_stride,
                       void *scratch) {
#if ONE_TOKEN
    if (is_one_token(format)) {
        one_matmul(format, w, row0, row1, packed, y, scratch);
        return;
    }
#endif
    INT_DISPATCH(format, panel_matmul, w, row0, row1, packed, tokens, y, y_stride, scratch)
}

static void int_fetch(enum matmul_format format, const struct tl_matrix *w, size_t row0,
                      size_t row1) {
#if ONE_TOKEN
    const size_t per_lane = rows_per_lane(w, row1 - row0, ONE_LANES);
    if (is_one_token(format) && per_lane > 0) {
        for (size_t r = 0; r < ONE_LANES; r++) {
            fetch_bytes(w->data + (row0 + r * per_lane) * w->row_bytes, BYTES_AHEAD);
        }
        return;
    }
#else
    (void)format;
#endif
    fetch_rows(w, row0, row1);
}
