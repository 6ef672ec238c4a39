/*
 * gemv_vnni_lanes_template.h - what gemv_vnni_template.h is made of: loads of a chunk of sixteen
 * rows, a token's packed activations, and the ends of blocks and chunks.
 *
 * `digits` is a constant, three in exact mode and one in fast mode. So is `tokens`, how many tokens
 * are multiplied side by side: a tile. Its sums are one after another, those of a token's digits
 * together.
 *
 * Needs:   simd/avx512vnni.h, fill_panel_template.h, gemm_exact_template.h, gemm_template.h
 * Defines: MAX_DIGITS, MAX_TILE, MAX_WIDTH, MAX_CHUNK_BYTES, GEMV_LANES, struct row_group,
 *          group_load_32, group_load_16, group_load_half, group_prefetch, struct gemv_token,
 *          struct gemv_sums, gemv_token_at, gemv_begin, gemv_dots, gemv_join, gemv_end_group,
 *          gemv_end_chunk, one_byte, two_bytes, gemv_minima, shifted
 */

#define MAX_DIGITS 3
#define MAX_TILE 8          // tokens of a tile at most
#define MAX_WIDTH 8         // sums of a tile at most
#define MAX_CHUNK_BYTES 272 // Q8_0

#define GEMV_LANES 16

/* A chunk of sixteen rows. */
struct row_group {
    const uint8_t *first; // its bytes in the first row
    size_t bytes;         // from one row to the next
    size_t ahead;         // how far ahead of the reads to prefetch
    bool near;            // into the first cache
};

TL_INLINE void group_load_32(const struct row_group *rows, size_t at, v16i x[8]) {
    const uint8_t *p = rows->first + at;
    const size_t n = rows->bytes;
    __m512i t[8];
    KEEP_POINTER(p);
    for (size_t i = 0; i < 8; i += 4) {
        const uint8_t *q = p + 4 * n;
        for (size_t j = 0; j < 4; j++) t[i + j] = two_32_bytes(p + j * n, q + j * n);
        p = q + 4 * n;
    }
    v16i_columns_32(t, x);
}

TL_INLINE void group_load_16(const struct row_group *rows, size_t at, v16i x[4]) {
    const uint8_t *p = rows->first + at;
    const size_t n = rows->bytes;
    __m512i t[4];
    for (size_t i = 0; i < 4; i++) {
        KEEP_POINTER(p); // otherwise there is a register for each of 16 distances
        t[i] = four_16_bytes(p, p + 4 * n, p + 8 * n, p + 12 * n);
        p += n;
    }
    v16i_columns_16(t, x);
}

/* A float16 of each row. */
TL_INLINE v16 group_load_half(const struct row_group *rows, size_t at) {
    uint16_t half[16];
    for (size_t r = 0; r < 16; r++) memcpy(&half[r], rows->first + r * rows->bytes + at, 2);
    return v16_load_f16(half);
}

/* Prefetches a cache line of each row. */
TL_INLINE void group_prefetch(const struct row_group *rows, size_t at) {
    const uint8_t *p = rows->first + at + rows->ahead;
    KEEP_POINTER(p);
    for (int i = 0; i < 4; i++) {
        for (size_t j = 0; j < 4; j++) prefetch_line(p + j * rows->bytes, rows->near);
        p += 4 * rows->bytes;
    }
}

/* A chunk of the tokens of a tile, in both modes. */
struct gemv_token {
    struct record exact;
    struct fast_record fast;
    const int32_t *x;      // digits
    const int32_t *groups; // their sums over groups of 16
    const int32_t *starts; // minus what the weights' offset adds to the sums of each group
};

/* The sums of a chunk of a K type, each group times its sub-scale. */
struct gemv_sums {
    v16i exact[MAX_WIDTH]; // of all blocks
    v16 fast[8];           // of each block, one token
};

TL_INLINE struct gemv_token gemv_token_at(const void *packed, const int digits, const int tokens,
                                          size_t chunk) {
    struct gemv_token t = {.x = NULL};
    if (digits == 1) {
        t.fast = fast_record_at(packed, true, (size_t)tokens, chunk);
        t.x = t.fast.digits;
        t.groups = t.fast.groups;
    } else {
        t.exact = record_at(packed, true, (size_t)tokens, chunk);
        t.x = t.exact.digits;
        t.groups = t.exact.groups;
    }
    return t;
}

/* Sets the sums with which a group of weights begins. */
TL_INLINE void gemv_begin(v16i s[MAX_WIDTH], const int width, const int32_t *starts) {
    TL_UNROLL(8)
    for (int p = 0; p < width; p++) s[p] = v16i_set1(starts != NULL ? starts[p] : 0);
}

TL_INLINE void gemv_dots(v16i s[MAX_WIDTH], const int width, v16i weights, const int32_t *x) {
    TL_UNROLL(8)
    for (int p = 0; p < width; p++) s[p] = v16i_dot4_at(s[p], weights, x + p);
}

/* Adds the sums of two groups that have the same sub-scale. */
TL_INLINE void gemv_join(v16i s[MAX_WIDTH], const int width, const v16i other[MAX_WIDTH]) {
    TL_UNROLL(8)
    for (int p = 0; p < width; p++) s[p] = v16i_add(s[p], other[p]);
}

/* Called after a group: adds its sums, times its sub-scale, to those of the chunk, or in fast mode
   of the block. `first`: the block has none yet. */
TL_INLINE void gemv_end_group(struct gemv_sums *sums, const int digits, const int tokens,
                              const v16i s[MAX_WIDTH], v16i scale, const int block,
                              const bool first) {
    TL_UNROLL(8)
    for (int p = 0; p < digits * tokens; p++) {
        if (digits == 1) { // integers below 2^24
            const v16 sum = v16_from_i32(s[0]), factor = v16_from_i32(scale);
            v16 *to = &sums->fast[block];
            *to = first ? v16_mul(sum, factor) : v16_fma(sum, factor, *to);
        } else {
            sums->exact[p] = v16i_add(sums->exact[p], v16i_mul(s[p], scale));
            KEEP_512(sums->exact[p]); // otherwise gcc adds them all at the end and spills them
        }
    }
}

/* Called after the last block of a chunk: adds its sums to the rows. */
TL_INLINE void gemv_end_chunk(const struct gemv_sums *sums, const int digits, const int tokens,
                              const struct gemv_token *t, v16 d, v16d *exact, v16 *fast) {
    TL_UNROLL(8)
    for (int i = 0; i < tokens; i++) {
        if (digits == 1) {
            v16 total = v16_set1(0);
            TL_UNROLL(8)
            for (int b = 0; b < 8; b++) {
                total = v16_fma(sums->fast[b], v16_set1(t->fast.scale[b]), total);
            }
            fast[i] = v16_fma(d, total, fast[i]);
        } else {
            const v16d scale = v16d_mul(v16d_from_f32(d), v16d_set1(t->exact.dx[i]));
            exact[i] = v16d_fma(scale, digits_to_f64(sums->exact + 3 * i), exact[i]);
        }
    }
}

/* Byte i of every lane. */
TL_INLINE v16i one_byte(v16i x, const int i) {
    return v16i_choose_bytes(x, 0x80808000u | (uint32_t)i);
}

/* The bytes i and j of every lane, as int16. */
TL_INLINE v16i two_bytes(v16i x, const int i, const int j) {
    return v16i_choose_bytes(x, 0x80008000u | (uint32_t)i | (uint32_t)j << 16);
}

/* Subtracts dmin * minima * sums of the activations; min[b]: the minima as int16 pairs. */
TL_INLINE void gemv_minima(const int digits, const int tokens, const bool wide,
                           const struct gemv_token *t, v16 dmin, const v16i min[8], v16d *exact,
                           v16 *fast) {
    TL_UNROLL(8)
    for (int i = 0; i < tokens; i++) {
        if (digits == 1) {
            v16 sum = v16_set1(0);
            TL_UNROLL(8)
            for (int b = 0; b < 8; b++) {
                const int at = b * tokens + i;
                if (wide) { // one minimum for the block
                    v16 same = v16_from_i32(v16i_and(min[b], v16i_set1(0xffff)));
                    sum = v16_fma(same, v16_set1(t->fast.sum[at]), sum);
                } else {
                    v16i both = v16i_dot2(v16i_set1(0), min[b], v16i_set1(t->fast.pairs[at]));
                    sum = v16_fma(v16_from_i32(both), v16_set1(t->fast.scale[at]), sum);
                }
            }
            fast[i] = v16_fma(dmin, v16_mul(sum, v16_set1(-1)), fast[i]);
        } else {
            v16i low = v16i_set1(0), high = low;
            TL_UNROLL(8)
            for (int b = 0; b < 8; b++) {
                const int32_t *pair = t->exact.sums + 2 * (b * tokens + i);
                low = v16i_dot2(low, min[b], v16i_set1(pair[0]));
                high = v16i_dot2(high, min[b], v16i_set1(pair[1]));
            }
            const v16d sum = v16d_fma(v16d_from_i32(high), v16d_set1(16384), v16d_from_i32(low));
            const v16d scale = v16d_mul(v16d_from_f32(dmin), v16d_set1(-t->exact.dx[i]));
            exact[i] = v16d_fma(scale, sum, exact[i]);
        }
    }
}

/* x << n in whole lanes, or x >> -n if n is negative. */
TL_INLINE v16i shifted(v16i x, const int n) {
    return n < 0 ? v16i_srl(x, (unsigned)-n) : n > 0 ? v16i_sll(x, (unsigned)n) : x;
}
