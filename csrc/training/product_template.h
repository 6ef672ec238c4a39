/*
 * product_template.h - the product of gemm.h for one instruction set.
 *
 * A template is compiled once per instruction set: it has no include guard.
 *
 * Needs:   simd/<set>.h, GEMM_ROWS and GEMM_VECTORS, the tile that stays in registers
 * Defines: TL_GEMM
 */

#define GEMM_WIDTH ((size_t)GEMM_VECTORS * 16)

/* The columns of the panel that begins where `left` columns are left. No panel of one vector
   follows a full one, because a tile of one vector waits for memory. */
TL_INLINE size_t gemm_panel(size_t left) {
    const size_t vectors = (left + 15) / 16;
    if (vectors <= GEMM_VECTORS) return left;
    return (vectors == GEMM_VECTORS + 1 && GEMM_VECTORS > 2 ? 2 : GEMM_VECTORS) * 16;
}

/* One row of a panel, padded with zeros to whole vectors. */
TL_INLINE void gemm_pack_row(const float *from, size_t cols, float *to) {
    for (; cols >= 16; cols -= 16, from += 16, to += 16) v16_store(to, v16_load(from));
    if (cols > 0) v16_store(to, v16_load_part(from, cols));
}

/* A panel of a transposed matrix: column after column, because those lie in order. */
TL_INLINE void gemm_pack_columns(const struct tl_gemm *g, size_t k0, size_t depth, size_t n,
                                 size_t cols, size_t width, float *to) {
    for (size_t j = 0; j < width; j++) {
        const float *from = g->b + k0 * g->b_row + (n + j) * g->b_col;
        if (j < cols) {
            for (size_t i = 0; i < depth; i++) to[i * width + j] = from[i * g->b_row];
        } else {
            for (size_t i = 0; i < depth; i++) to[i * width + j] = 0;
        }
    }
}

/* Row k of B as float32, from column n0 on. */
TL_INLINE const float *gemm_row(const struct tl_gemm *g, size_t k, size_t n0, size_t n1,
                                float *line) {
    const struct tl_matrix *w = g->weights;
    const uint8_t *data;
    if (w == NULL) return g->b + k * g->b_row + n0;
    data = w->data + k * w->row_bytes + n0 / (size_t)w->type->items * (size_t)w->type->bytes;
    if (w->type == tl_type_find(TL_TYPE_F32) && (uintptr_t)data % sizeof(float) == 0) {
        return (const float *)(const void *)data;
    }
    tl_type_to_f32(w->type, data, line, n1 - n0);
    return line;
}

/* Packs rows [k0, k0 + depth) of columns [n0, n1) of B, one panel after another. */
TL_INLINE void gemm_pack(const struct tl_gemm *g, size_t k0, size_t depth, size_t n0, size_t n1,
                         float *line, float *packed) {
    const bool columns = g->weights == NULL && g->b_col != 1;
    for (size_t i = 0; i < (columns ? 1 : depth); i++) {
        const float *row = columns ? NULL : gemm_row(g, k0 + i, n0, n1, line);
        for (size_t n = n0, cols; n < n1; n += cols) {
            float *to = packed + (n - n0) * depth;
            cols = gemm_panel(n1 - n);
            const size_t width = (cols + 15) / 16 * 16;
            if (columns) {
                gemm_pack_columns(g, k0, depth, n, cols, width, to);
            } else {
                gemm_pack_row(row + (n - n0), cols, to + i * width);
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

/* A panel, of a number of vectors that the compiler knows. */
#define GEMM_CASE(n)                                                                               \
    case n:                                                                                        \
        gemm_tile(TL_MIN(n, GEMM_ROWS), vectors, a, g->a_row, g->a_col, b, depth, c, g->c_row,     \
                  last, add);                                                                      \
        break;

TL_INLINE void gemm_panel_rows(const struct tl_gemm *g, const int vectors, size_t rows,
                               const float *a, const float *b, size_t depth, float *c, size_t last,
                               bool add) {
    for (; rows >= GEMM_ROWS; rows -= GEMM_ROWS) {
        gemm_tile(GEMM_ROWS, vectors, a, g->a_row, g->a_col, b, depth, c, g->c_row, last, add);
        a += GEMM_ROWS * g->a_row;
        c += GEMM_ROWS * g->c_row;
    }
    switch (rows) {
        GEMM_CASE(1)
        GEMM_CASE(2)
        GEMM_CASE(3)
        GEMM_CASE(4)
        GEMM_CASE(5)
        GEMM_CASE(6)
        GEMM_CASE(7)
    default:
        break;
    }
}

static void gemm_run(const struct tl_gemm *g, size_t m0, size_t m1, size_t n0, size_t n1,
                     float *scratch) {
    float *packed = scratch + GEMM_COLUMNS;
    for (size_t k0 = 0; k0 < g->k; k0 += GEMM_DEPTH) {
        const size_t depth = TL_MIN(g->k - k0, (size_t)GEMM_DEPTH);
        const float *a = g->a + m0 * g->a_row + k0 * g->a_col;
        const bool add = g->add || k0 > 0;
        gemm_pack(g, k0, depth, n0, n1, scratch, packed);
        for (size_t n = n0, cols; n < n1; n += cols) {
            const float *b = packed + (n - n0) * depth;
            float *c = g->c + m0 * g->c_row + n;
            cols = gemm_panel(n1 - n);
            const size_t last = (cols - 1) % 16 + 1;
            switch ((cols + 15) / 16) {
            case 1:
                gemm_panel_rows(g, 1, m1 - m0, a, b, depth, c, last, add);
                break;
            case 2:
                gemm_panel_rows(g, TL_MIN(2, GEMM_VECTORS), m1 - m0, a, b, depth, c, last, add);
                break;
            default:
                gemm_panel_rows(g, GEMM_VECTORS, m1 - m0, a, b, depth, c, last, add);
            }
        }
    }
}

#define TL_GEMM(set)                                                                               \
    void tl_gemm_##set(const struct tl_gemm *g, size_t m0, size_t m1, size_t n0, size_t n1,        \
                       float *scratch) {                                                           \
        gemm_run(g, m0, m1, n0, n1, scratch);                                                      \
    }
