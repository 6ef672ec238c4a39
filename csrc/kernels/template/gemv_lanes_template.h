/*
 * gemv_lanes_template.h - how a gemv divides its rows among the lanes of vectors.
 *
 * A panel pays off only if several tokens use it. So, where there are enough vector registers, the
 * gemv templates multiply the weights as soon as they are read, without a panel. Elsewhere
 * (gemv_panel_template.h) the token is a tile of one. Each gemv template defines
 *   gemv_pack_bytes, gemv_pack, gemv_scratch, gemv_matmul, gemv_prefetch
 * as in struct tl_kernels. Types that GEMV_TYPES does not list are multiplied as a tile of tokens.
 *
 * Needs:   format_template.h
 * Defines: rows_per_lane, lanes_prefetch, GEMV_TYPES, gemv_listed
 */

/*
 * How many consecutive rows each lane takes. Every lane walks through its own range of rows,
 * because hardware reads a long range in one direction fastest. Lanes must not be a multiple of
 * 1024 bytes apart: they would share few sets of the cache.
 */
TL_INLINE size_t rows_per_lane(const struct tl_matrix *w, size_t rows, const size_t lanes) {
    const size_t n = rows / lanes;
    return n > 0 && n % 2 == 0 && n * w->row_bytes % 1024 == 0 ? n - 1 : n;
}

/* The quantized types that have their own functions. */
#ifdef GEMV_GRID_TEMPLATE
#define GEMV_GRID_TYPES(type) type(IQ2_XXS) type(IQ2_XS) type(IQ2_S) type(IQ3_XXS) type(IQ3_S)
#else
#define GEMV_GRID_TYPES(type)
#endif
#define GEMV_TYPES(type)                                                                           \
    type(Q4_0) type(Q4_1) type(Q5_0) type(Q5_1) type(Q8_0) type(Q2_K) type(Q3_K) type(Q4_K)        \
        type(Q5_K) type(Q6_K) type(IQ4_NL) type(IQ4_XS) type(MXFP4) GEMV_GRID_TYPES(type)

TL_INLINE bool gemv_listed(enum tl_type id) {
#define GEMV_LISTED(name) case TL_TYPE_##name:
    switch (id) {
        GEMV_TYPES(GEMV_LISTED)
        return true;
    default:
        return false;
    }
#undef GEMV_LISTED
}

/* Prefetches the start of every lane's range. */
TL_INLINE void lanes_prefetch(const struct tl_matrix *w, size_t row0, size_t row1,
                              const size_t lanes) {
    const size_t per_lane = rows_per_lane(w, row1 - row0, lanes);
    if (per_lane == 0) {
        prefetch_rows(w, row0, row1);
        return;
    }
    for (size_t r = 0; r < lanes; r++) {
        prefetch_bytes(w->data + (row0 + r * per_lane) * w->row_bytes, PREFETCH_BYTES);
    }
}
