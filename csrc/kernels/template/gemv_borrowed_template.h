/*
 * gemv_borrowed_template.h - the gemv of another set, whose formats are the same.
 *
 * A copy of AVX2's gemv for the set of AVX-512 without VNNI is at most a sixth faster, and only
 * where the weights are in the caches: the memory limits it. It would add a tenth to the time that
 * the package takes to compile.
 *
 * Needs:   gemv_lanes_template.h
 * Defines: lender, fast_lender, gemv_most, gemv_pack_bytes, gemv_pack, gemv_scratch, gemv_matmul,
 *          gemv_prefetch
 */

// filled by the function that fills the table of this set; the second one is for fast mode
static struct tl_kernels lender, fast_lender;

/* More than two tokens are faster in the panels of this set. */
static size_t gemv_most(const struct tl_type_info *type, bool fast) {
    const struct tl_kernels *from = fast ? &fast_lender : &lender;
    const int row = from->format(type, 1);
    if (row == from->format(type, TOKENS_AT_ONCE)) return 0; // a panel for one token, too
    return fast && row == from->format(type, 2) ? 2 : 1;
}

static size_t gemv_pack_bytes(enum matmul_format format, size_t cols, size_t tokens) {
    return lender.pack_bytes((int)format, cols, tokens);
}

static void gemv_pack(enum matmul_format format, const float *x, size_t cols, size_t tokens,
                      size_t first, size_t last, void *packed) {
    lender.pack((int)format, x, cols, tokens, first, last, packed);
}

static size_t gemv_scratch(size_t cols, size_t tokens) {
    (void)cols, (void)tokens;
    return 0;
}

static void gemv_matmul(enum matmul_format format, const struct tl_matrix *w, size_t row0,
                        size_t row1, const void *packed, size_t tokens, float *y, size_t y_stride,
                        void *scratch) {
    lender.matmul(w, (int)format, row0, row1, packed, tokens, y, y_stride, scratch);
}

static void gemv_prefetch(const struct tl_matrix *w, size_t row0, size_t row1) {
    lender.prefetch(w, FORMAT_BYTE_ROW, row0, row1);
}
