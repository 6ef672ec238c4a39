/*
 * product_template.h - the product of gemm.h for one instruction set.
 *
 * A template is compiled once per instruction set: it has no include guard.
 *
 * Needs:   simd/<set>.h, GEMM_ROWS and GEMM_VECTORS, the tile that stays in registers
 * Defines: TL_GEMM
 */

#define GEMM_WIDTH ((size_t)GEMM_VECTORS * 16)

/* Packs rows [k0, k0 + depth) of columns [n0, n1) of B: panels of GEMM_WIDTH columns, padded with
   zeros. */
TL_INLINE void gemm_pack(const struct tl_gemm *g, size_t k0, size_t depth, size_t n0, size_t n1,
                         float *line, float *packed) {
    for (size_t i = 0; i < depth; i++) {
        const float *row = line;
        size_t step = 1;
        if (g->weights == NULL) {
            row = g->b + (k0 + i) * g->b_row + n0 * g->b_col;
            step = g->b_col;
        } else {
            const struct tl_matrix *w = g->weights;
            const size_t at = n0 / (size_t)w->type->items * (size_t)w->type->bytes;
            tl_type_to_f32(w->type, w->data + (k0 + i) * w->row_bytes + at, line, n1 - n0);
        }
        for (size_t n = n0; n < n1; n += GEMM_WIDTH) {
            const size_t some = TL_MIN(n1 - n, GEMM_WIDTH);
            float *to = packed + (n - n0) * depth + i * GEMM_WIDTH;
            const float *from = row + (n - n0) * step;
            if (step == 1 && some == GEMM_WIDTH) {
                for (size_t v = 0; v < GEMM_VECTORS; v++) {
                    v16_store(to + v * 16, v16_load(from + v * 16));
                }
                continue;
            }
            for (size_t j = 0; j < some; j++) to[j] = from[j * step];
            for (size_t j = some; j < GEMM_WIDTH; j++) to[j] = 0;
        }
    }
}

/* `rows` rows of one panel of C. */
TL_INLINE void gemm_tile(const int rows, const float *a, size_t a_row, size_t a_col, const float *b,
                         size_t depth, float *c, size_t c_row, size_t cols, bool add) {
    v16 s[GEMM_ROWS][GEMM_VECTORS];
    TL_UNROLL(16)
    for (int i = 0; i < rows; i++) {
        TL_UNROLL(2)
        for (int v = 0; v < GEMM_VECTORS; v++) s[i][v] = v16_set1(0);
    }
    for (size_t k = 0; k < depth; k++) {
        v16 line[GEMM_VECTORS];
        TL_UNROLL(2)
        for (int v = 0; v < GEMM_VECTORS; v++) {
            line[v] = v16_load(b + k * GEMM_WIDTH + (size_t)v * 16);
        }
        TL_UNROLL(16)
        for (int i = 0; i < rows; i++) {
            const v16 x = v16_set1(a[(size_t)i * a_row + k * a_col]);
            TL_UNROLL(2)
            for (int v = 0; v < GEMM_VECTORS; v++) s[i][v] = v16_fma(x, line[v], s[i][v]);
        }
    }
    for (int i = 0; i < rows; i++) {
        float *row = c + (size_t)i * c_row, part[GEMM_WIDTH];
        float *to = cols == GEMM_WIDTH ? row : part;
        if (cols < GEMM_WIDTH && add) {
            memset(part, 0, sizeof(part));
            memcpy(part, row, cols * sizeof(float));
        }
        for (int v = 0; v < GEMM_VECTORS; v++) {
            float *p = to + v * 16;
            v16_store(p, add ? v16_add(v16_load(p), s[i][v]) : s[i][v]);
        }
        if (cols < GEMM_WIDTH) memcpy(row, part, cols * sizeof(float));
    }
}

#define GEMM_CASE(n)                                                                               \
    case n:                                                                                        \
        gemm_tile(TL_MIN(n, GEMM_ROWS), a, g->a_row, g->a_col, b, depth, c, g->c_row, cols, add);  \
        break;

static void gemm_rows(const struct tl_gemm *g, size_t rows, const float *a, const float *b,
                      size_t depth, float *c, size_t cols, bool add) {
    switch (rows) {
        GEMM_CASE(1)
        GEMM_CASE(2)
        GEMM_CASE(3)
        GEMM_CASE(4)
        GEMM_CASE(5)
        GEMM_CASE(6)
        GEMM_CASE(7)
    default:
        gemm_tile(GEMM_ROWS, a, g->a_row, g->a_col, b, depth, c, g->c_row, cols, add);
    }
}

static void gemm_run(const struct tl_gemm *g, size_t m0, size_t m1, size_t n0, size_t n1,
                     float *scratch) {
    float *packed = scratch + GEMM_COLUMNS;
    for (size_t k0 = 0; k0 < g->k; k0 += GEMM_DEPTH) {
        const size_t depth = TL_MIN(g->k - k0, (size_t)GEMM_DEPTH);
        gemm_pack(g, k0, depth, n0, n1, scratch, packed);
        for (size_t n = n0; n < n1; n += GEMM_WIDTH) {
            const size_t cols = TL_MIN(n1 - n, GEMM_WIDTH);
            for (size_t m = m0; m < m1; m += GEMM_ROWS) {
                gemm_rows(g, TL_MIN(m1 - m, (size_t)GEMM_ROWS), g->a + m * g->a_row + k0 * g->a_col,
                          packed + (n - n0) * depth, depth, g->c + m * g->c_row + n, cols,
                          g->add || k0 > 0);
            }
        }
    }
}

#define TL_GEMM(set)                                                                               \
    void tl_gemm_##set(const struct tl_gemm *g, size_t m0, size_t m1, size_t n0, size_t n1,        \
                       float *scratch) {                                                           \
        gemm_run(g, m0, m1, n0, n1, scratch);                                                      \
    }
