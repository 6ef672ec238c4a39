/*
 * gemv_lanes_template.h - how the rows of a gemv are shared out to the lanes of vectors.
 *
 * A gemv would read only once what it stores in a panel. Where there are vectors enough, the gemv
 * templates multiply the weights as they come; elsewhere (gemv_panel_template.h) a token is a tile
 * of one. All of them define
 *   gemv_pack_bytes, gemv_pack, gemv_scratch, gemv_matmul, gemv_prefetch
 * as in struct tl_kernels.
 *
 * Needs:   format_template.h
 * Defines: rows_per_lane, lane_ahead, lanes_prefetch, GEMV_TYPES
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
    const bool next = last && at + PREFETCH_BYTES >= w->row_bytes;
    return PREFETCH_BYTES + (next ? (lanes - 1) * per_lane * w->row_bytes : 0);
}

/* The types, each of which has functions of its own. */
#define GEMV_TYPES(type)                                                                           \
    type(Q4_0) type(Q4_1) type(Q5_0) type(Q5_1) type(Q8_0) type(Q2_K) type(Q3_K) type(Q4_K)        \
        type(Q5_K) type(Q6_K)

/* Reads ahead what every lane begins with. */
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
