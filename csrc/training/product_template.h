/*
 * product_template.h - the product of gemm.h for one instruction set.
 *
 * A template is compiled once per instruction set: it has no include guard.
 *
 * Needs:   simd/<set>.h; GEMM_ROWS and GEMM_VECTORS (1 or 3), the tile that stays in registers;
 *          GEMM_EACH_SIZE(of), of(rows) for each number of rows that a tile has, most first
 * Defines: TL_GEMM
 */

/* The columns of the panel that begins where `left` columns are left. No panel of one vector
   follows a full one, because a tile of one vector waits for memory. */
TL_INLINE size_t gemm_panel(size_t left) {
    const size_t vectors = (left + 15) / 16;
    if (vectors <= GEMM_VECTORS) return left;
    return (vectors == GEMM_VECTORS + 1 && GEMM_VECTORS > 2 ? 2 : GEMM_VECTORS) * 16;
}

/* A panel of a transposed matrix. Its columns lie in order, so they are read sixteen at a time. */
TL_INLINE void gemm_pack_columns(const struct tl_gemm *g, size_t k0, size_t depth, size_t n,
                                 size_t cols, size_t width, float *to) {
    for (size_t v = 0; v < width; v += 16) {
        const size_t count = TL_MIN(cols - v, (size_t)16);
        const float *from = g->b + k0 * g->b_row + (n + v) * g->b_col;
        size_t i = 0;
#ifdef PANEL_VECTORS // the set has integers, and with them transpositions
        for (; g->b_row == 1 && i + 16 <= depth; i += 16) {
            v16i x[16];
            for (size_t j = 0; j < 16; j++) {
                x[j] = j < count ? v16i_load(from + i + j * g->b_col) : v16i_set1(0);
            }
            v16i_transpose(x);
            for (size_t j = 0; j < 16; j++) v16i_store(to + (i + j) * width + v, x[j]);
        }
#endif
        for (size_t j = 0; j < 16; j++) {
            const float *column = from + j * g->b_col;
            for (size_t k = i; k < depth; k++) {
                to[k * width + v + j] = j < count ? column[k * g->b_row] : 0;
            }
        }
    }
}

/* Rows of B are prefetched this far ahead of the copy. */
#define GEMM_AHEAD 8

/* Whether rows of B are used as they lie in memory. */
TL_INLINE bool gemm_direct(const struct tl_gemm *g) {
    const struct tl_matrix *w = g->weights;
    if (w == NULL) return g->b_col == 1;
    return w->type == tl_type_find(TL_TYPE_F32) &&
           ((uintptr_t)w->data | w->row_bytes) % sizeof(float) == 0;
}

/* Row k of B as float32, from column n0 on. */
TL_INLINE const float *gemm_row(const struct tl_gemm *g, size_t k, size_t n0, size_t n1,
                                float *line) {
    const struct tl_matrix *w = g->weights;
    const uint8_t *data;
    if (w == NULL) return g->b + k * g->b_row + n0;
    data = w->data + k * w->row_bytes + n0 / (size_t)w->type->items * (size_t)w->type->bytes;
    if (gemm_direct(g)) return (const float *)(const void *)data;
    tl_type_to_f32(w->type, data, line, n1 - n0);
    return line;
}

TL_INLINE void gemm_prefetch(const float *p) {
#if defined(__GNUC__)
    __builtin_prefetch(p, 0, 3);
#else
    (void)p;
#endif
}

/* `depth` rows of a panel of `vectors` vectors, the last of which has `last` columns; it is padded
   with zeros. */
TL_INLINE void gemm_pack_rows(const float *from, size_t stride, size_t depth, const int vectors,
                              size_t last, float *to) {
    for (size_t i = 0; i < depth; i++, from += stride) {
        const float *next = from + (i + GEMM_AHEAD < depth ? GEMM_AHEAD * stride : 0);
        TL_UNROLL(4)
        for (int v = 0; v < vectors; v++, to += 16) {
            gemm_prefetch(next + v * 16);
            v16_store(to, v < vectors - 1 || last == 16 ? v16_load(from + v * 16)
                                                        : v16_load_part(from + v * 16, last));
        }
    }
}

TL_INLINE void gemm_pack_panel(const float *from, size_t stride, size_t depth, size_t cols,
                               float *to) {
    const size_t last = (cols - 1) % 16 + 1;
    switch ((cols + 15) / 16) {
    case 1:
        gemm_pack_rows(from, stride, depth, 1, last, to);
        break;
    case 2:
        gemm_pack_rows(from, stride, depth, TL_MIN(2, GEMM_VECTORS), last, to);
        break;
    default:
        gemm_pack_rows(from, stride, depth, GEMM_VECTORS, last, to);
    }
}

/* Packs rows [k0, k0 + depth) of columns [n0, n1) of B, one panel after another. */
TL_INLINE void gemm_pack(const struct tl_gemm *g, size_t k0, size_t depth, size_t n0, size_t n1,
                         float *line, float *packed) {
    const bool columns = g->weights == NULL && g->b_col != 1, direct = gemm_direct(g);
    const size_t stride = g->weights == NULL ? g->b_row : g->weights->row_bytes / sizeof(float);
    for (size_t i = 0; i < (columns || direct ? 1 : depth); i++) {
        const float *row = columns ? NULL : gemm_row(g, k0 + i, n0, n1, line);
        for (size_t n = n0, cols; n < n1; n += cols) {
            float *to = packed + (n - n0) * depth;
            cols = gemm_panel(n1 - n);
            const size_t width = (cols + 15) / 16 * 16;
            if (columns) {
                gemm_pack_columns(g, k0, depth, n, cols, width, to);
            } else if (direct) {
                gemm_pack_panel(row + (n - n0), stride, depth, cols, to);
            } else {
                gemm_pack_panel(row + (n - n0), 0, 1, cols, to + i * width);
            }
        }
    }
}

/* `rows` rows of one panel of C, of `vectors` vectors, the last of which has `last` columns. */
TL_INLINE void gemm_tile(const int rows, const int vectors, const float *a, size_t a_row,
                         size_t a_col, const float *b, size_t depth, float *c, size_t c_row,
                         size_t last, bool add) {
    v16 s[GEMM_ROWS][GEMM_VECTORS];
    TL_UNROLL(16)
    for (int i = 0; i < rows; i++) {
        TL_UNROLL(4)
        for (int v = 0; v < vectors; v++) s[i][v] = v16_set1(0);
    }
    for (size_t k = 0; k < depth; k++) {
        v16 line[GEMM_VECTORS];
        TL_UNROLL(4)
        for (int v = 0; v < vectors; v++)
            line[v] = v16_load(b + (k * (size_t)vectors + (size_t)v) * 16);
        TL_UNROLL(16)
        for (int i = 0; i < rows; i++) {
            const v16 x = v16_set1(a[(size_t)i * a_row + k * a_col]);
            TL_UNROLL(4)
            for (int v = 0; v < vectors; v++) s[i][v] = v16_fma(x, line[v], s[i][v]);
        }
    }
    TL_UNROLL(16)
    for (int i = 0; i < rows; i++) {
        TL_UNROLL(4)
        for (int v = 0; v < vectors; v++) {
            float *p = c + (size_t)i * c_row + (size_t)v * 16;
            if (v < vectors - 1 || last == 16) {
                v16_store(p, add ? v16_add(v16_load(p), s[i][v]) : s[i][v]);
            } else {
                v16_store_part(p, last, add ? v16_add(v16_load_part(p, last), s[i][v]) : s[i][v]);
            }
        }
    }
}

/* What the rows [first, last) need: from the least to the most of their ranges. */
TL_INLINE struct tl_range gemm_needed(const struct tl_range *of, size_t first, size_t last) {
    struct tl_range all = of[first];
    for (size_t i = first + 1; i < last; i++) {
        all = (struct tl_range){TL_MIN(all.first, of[i].first), TL_MAX(all.end, of[i].end)};
    }
    return all;
}

/* Where a panel lies in C, and which of its terms are packed. */
struct gemm_place {
    size_t n, cols;   // columns [n, n + cols)
    size_t k0, depth; // terms [k0, k0 + depth)
    bool add;
};

/* A tile of each size, of numbers that the compiler knows. */
#define GEMM_TILE(rows, vectors)                                                                   \
    static void gemm_tile_##rows##_##vectors(const float *a, size_t a_row, size_t a_col,           \
                                             const float *b, size_t depth, float *c, size_t c_row, \
                                             size_t last, bool add) {                              \
        gemm_tile(rows, vectors, a, a_row, a_col, b, depth, c, c_row, last, add);                  \
    }

typedef void gemm_tile_fn(const float *a, size_t a_row, size_t a_col, const float *b, size_t depth,
                          float *c, size_t c_row, size_t last, bool add);

struct gemm_tile_size {
    size_t rows;
    gemm_tile_fn *of[GEMM_VECTORS]; // of 1, 2, ... vectors
};

#if GEMM_VECTORS == 1
#define GEMM_TILES(rows) GEMM_TILE(rows, 1)
#define GEMM_SIZE(rows) {rows, {gemm_tile_##rows##_1}},
#else
#define GEMM_TILES(rows) GEMM_TILE(rows, 1) GEMM_TILE(rows, 2) GEMM_TILE(rows, 3)
#define GEMM_SIZE(rows) {rows, {gemm_tile_##rows##_1, gemm_tile_##rows##_2, gemm_tile_##rows##_3}},
#endif

GEMM_EACH_SIZE(GEMM_TILES)

/* Rows [row, end) of a panel. */
static void gemm_panel_rows(const struct tl_gemm *g, const struct gemm_place *at, size_t row,
                            size_t end, const float *packed) {
    static const struct gemm_tile_size sizes[] = {GEMM_EACH_SIZE(GEMM_SIZE)};
    const size_t vectors = (at->cols + 15) / 16;
    const struct gemm_tile_size *size = sizes;
    for (; row < end; row += size->rows) {
        struct tl_range k = {0, at->depth};
        while (size->rows > end - row) size++;
        if (g->wanted != NULL) {
            const struct tl_range of = gemm_needed(g->wanted, row, row + size->rows);
            if (of.end <= at->n || of.first >= at->n + at->cols) continue;
        }
        if (g->terms != NULL) {
            const struct tl_range of = gemm_needed(g->terms, row, row + size->rows);
            k.first = TL_MIN(TL_MAX(of.first, at->k0) - at->k0, at->depth);
            k.end = TL_MAX(TL_MIN(TL_MAX(of.end, at->k0) - at->k0, at->depth), k.first);
        }
        size->of[vectors - 1](g->a + row * g->a_row + (at->k0 + k.first) * g->a_col, g->a_row,
                              g->a_col, packed + k.first * vectors * 16, k.end - k.first,
                              g->c + row * g->c_row + at->n, g->c_row, (at->cols - 1) % 16 + 1,
                              at->add);
    }
}

static void gemm_run(const struct tl_gemm *g, size_t m0, size_t m1, size_t n0, size_t n1,
                     float *scratch) {
    float *packed = scratch + GEMM_COLUMNS;
    // a panel that is packed just before its use is still in the first-level cache; rows of
    // quantized weights are unpacked as a whole
    const bool each = gemm_direct(g);
    struct gemm_place at = {0};
    for (; at.k0 < g->k; at.k0 += GEMM_DEPTH) {
        at.depth = TL_MIN(g->k - at.k0, (size_t)GEMM_DEPTH);
        at.add = g->add || at.k0 > 0;
        if (!each) gemm_pack(g, at.k0, at.depth, n0, n1, scratch, packed);
        for (at.n = n0; at.n < n1; at.n += at.cols) {
            const float *panel = each ? packed : packed + (at.n - n0) * at.depth;
            at.cols = gemm_panel(n1 - at.n);
            if (each) gemm_pack(g, at.k0, at.depth, at.n, at.n + at.cols, scratch, packed);
            gemm_panel_rows(g, &at, m0, m1, panel);
        }
    }
}

#define TL_GEMM(set)                                                                               \
    void tl_gemm_##set(const struct tl_gemm *g, size_t m0, size_t m1, size_t n0, size_t n1,        \
                       float *scratch) {                                                           \
        gemm_run(g, m0, m1, n0, n1, scratch);                                                      \
    }
