/*
 * gemv_job_template.h - how a gemv walks through the rows of a matrix, GEMV_LANES at a time.
 *
 * The function of a type computes the results of consecutive rows of every lane. It is called by
 * pointer: one function that switches over the types would be copied whole, to each place where the
 * type is a constant, before the compiler drops what is not used.
 *
 * Needs:   gemv_lanes_template.h, GEMV_LANES, MAX_TILE, MAX_CHUNK_BYTES
 * Defines: struct gemv_job, gemv_function, gemv_copy, gemv_store, gemv_ahead, gemv_run
 */

/* Consecutive rows for each of the lanes. */
struct gemv_job {
    const uint8_t *first; // the first row of the first lane
    size_t lanes;         // that have rows
    size_t per_lane;      // rows
    size_t row_bytes, chunk_bytes;
    size_t whole, chunks; // chunks of a row: those without missing columns, and all
    size_t ahead;         // how far ahead to prefetch
    size_t turn;          // the chunk from which on the next rows of a lane are prefetched
    const void *packed;
    size_t side;           // AVX2: tokens that are packed side by side
    const int32_t *starts; // VNNI: see struct gemv_token
    const int32_t *grid_x; // VNNI: digits in the order of a grid, or NULL
    size_t tokens;         // of the tile, those that are not only zeros
    float *y;              // of the first row
    size_t y_stride;
    uint8_t copy[GEMV_LANES][MAX_CHUNK_BYTES];
    float out[MAX_TILE][GEMV_LANES];
};

typedef void gemv_function(struct gemv_job *job);

/* Copies a chunk that lacks rows or columns; the missing ones are zero. */
TL_OUTLINE void gemv_copy(struct gemv_job *j, size_t row, size_t chunk) {
    const size_t at = chunk * j->chunk_bytes, stride = j->per_lane * j->row_bytes;
    memset(j->copy, 0, sizeof(j->copy));
    for (size_t r = 0; r < j->lanes; r++) {
        memcpy(j->copy[r], j->first + r * stride + row * j->row_bytes + at,
               TL_MIN(j->row_bytes - at, j->chunk_bytes));
    }
}

/* Stores the results of a row of each lane. */
TL_OUTLINE void gemv_store(const struct gemv_job *j, size_t row) {
    for (size_t t = 0; t < j->tokens; t++) {
        float *to = j->y + t * j->y_stride + row;
        for (size_t r = 0; r < j->lanes; r++) to[r * j->per_lane] = j->out[t][r];
    }
}

/* How far ahead to prefetch at a chunk of a row. At the end of a lane's range that is the start of
   its next range. */
TL_INLINE size_t gemv_ahead(const struct gemv_job *j, size_t row, size_t chunk) {
    const bool next = chunk >= j->turn && row + 1 == j->per_lane;
    return j->ahead + (next ? (GEMV_LANES - 1) * j->per_lane * j->row_bytes : 0);
}

/* The rows [row0, row1); the fields of the job that are not set here have been set. */
static void gemv_run(gemv_function *function, struct gemv_job *job, const struct tl_matrix *w,
                     size_t row0, size_t row1, const void *packed, float *y, size_t y_stride) {
    job->row_bytes = w->row_bytes;
    job->chunk_bytes = (size_t)(TL_CHUNK / w->type->items * w->type->bytes);
    job->chunks = round_up(w->cols, TL_CHUNK) / TL_CHUNK;
    job->packed = packed;
    job->y_stride = y_stride;
    job->turn = 0;
    while (job->turn * job->chunk_bytes + job->ahead < w->row_bytes) job->turn++;
    for (size_t row = row0; row < row1; row += GEMV_LANES * job->per_lane) {
        job->first = w->data + row * w->row_bytes;
        job->y = y + row;
        job->lanes = TL_MIN(row1 - row, (size_t)GEMV_LANES);
        job->per_lane = TL_MAX(rows_per_lane(w, row1 - row, GEMV_LANES), (size_t)1);
        job->whole = job->lanes < GEMV_LANES ? 0 : w->row_bytes / job->chunk_bytes;
        function(job);
    }
}
