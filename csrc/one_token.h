/*
 * one_token.h - one token where vectors are wide enough to hold the sums of 16 rows: the weights
 * are multiplied as they come out of the transposition, and never stored.
 *
 * Included by matmul_panel.h after fill_panel.h. `digits` is a constant, three in exact mode and
 * one in fast mode. The integers and the order of the float operations are those of tile_add_k,
 * tile_add_32, fast_add_k and fast_add_32, so the result is theirs. Block layouts: ggml-common.h
 * of ggml.
 */

#define MAX_DIGITS 3

/* Sixteen rows, one after the other. */
struct row_group {
    const uint8_t *first;
    size_t bytes; // of a row
};

#ifdef TL_SIMDE
#define KEEP_POINTER(p) (void)(p)
#else
#define KEEP_POINTER(p) __asm__("" : "+r"(p)) // else gcc keeps sixteen pointers, most in memory
#endif

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
    KEEP_POINTER(p);
    for (size_t i = 0; i < 4; i++) {
        t[i] = four_16_bytes(p + i * n, p + (i + 4) * n, p + (i + 8) * n, p + (i + 12) * n);
    }
    v16i_columns_16(t, x);
}

/* Memory is slow to answer: asks for what the next sixteen rows have at this place. */
TL_INLINE void group_fetch(const struct row_group *rows, size_t at) {
    const uint8_t *p = rows->first + 16 * rows->bytes + at;
    KEEP_POINTER(p);
    for (int i = 0; i < 4; i++) {
        for (size_t j = 0; j < 4; j++) __builtin_prefetch(p + j * rows->bytes, 0, 2);
        p += 4 * rows->bytes;
    }
}

/* A token's chunk, in both modes. */
struct one_token {
    struct record exact;
    struct fast_record fast;
    const int32_t *x;      // digits
    const int32_t *groups; // their sums over groups of 16
    int32_t starts[16 * MAX_DIGITS];
};

/* The sums of a chunk of a K type, each block of 32 times its sub-scales. */
struct one_sums {
    v16i exact[MAX_DIGITS]; // of all blocks
    v16i fast[8];
};

TL_INLINE struct one_token one_token_at(const void *packed, const int digits, size_t chunk) {
    struct one_token t = {.x = NULL};
    if (digits == 1) {
        t.fast = fast_record_at(packed, true, 1, chunk);
        t.x = t.fast.digits;
        t.groups = t.fast.groups;
    } else {
        t.exact = record_at(packed, true, 1, chunk);
        t.x = t.exact.digits;
        t.groups = t.exact.groups;
    }
    return t;
}

/* The sums of the digits that a group of weights begins with. */
TL_INLINE void one_begin(v16i s[MAX_DIGITS], const int digits, const int32_t *starts) {
    for (int p = 0; p < digits; p++) s[p] = v16i_set1(starts != NULL ? starts[p] : 0);
}

TL_INLINE void one_dots(v16i s[MAX_DIGITS], const int digits, v16i weights, const int32_t *x) {
    for (int p = 0; p < digits; p++) s[p] = v16i_dot4_at(s[p], weights, x + p);
}

TL_INLINE void one_scale(v16i s[MAX_DIGITS], const int digits, v16i scale) {
    for (int p = 0; p < digits; p++) s[p] = v16i_mul(s[p], scale);
}

/* A block of 32 is complete. */
TL_INLINE void one_end_block(struct one_sums *sums, const int digits, const v16i s[MAX_DIGITS],
                             const int block) {
    if (digits == 1) {
        sums->fast[block] = s[0];
        return;
    }
    for (int p = 0; p < digits; p++) {
        sums->exact[p] = v16i_add(sums->exact[p], s[p]);
        KEEP_512(sums->exact[p]); // else gcc adds them all at the end, and keeps them in memory
    }
}

/* The chunk is. */
TL_INLINE void one_end_chunk(const struct one_sums *sums, const int digits,
                             const struct one_token *t, v16 d, v16d *exact, v16 *fast) {
    if (digits == 1) {
        v16 total = v16_set1(0);
        for (int b = 0; b < 8; b++) {
            total = v16_fma(v16_from_i32(sums->fast[b]), v16_set1(t->fast.scale[b]), total);
        }
        *fast = v16_fma(d, total, *fast);
    } else {
        const v16d scale = v16d_mul(v16d_from_f32(d), v16d_set1(t->exact.dx[0]));
        *exact = v16d_fma(scale, digits_to_f64(sums->exact), *exact);
    }
}

/* Q4_K and Q5_K: `fifth` bits or none. */
TL_INLINE void one_k4(const struct row_group *rows, size_t at, const int digits, const bool fifth,
                      const struct one_token *t, v16d *exact, v16 *fast) {
    const v16i nibble = bytes_of(0x0f), six = bytes_of(0x3f);
    struct one_sums sums;
    v16i header[4], scales[2], mins[2], high[8];
    one_begin(sums.exact, digits, NULL);
    group_load_16(rows, at, header);
    const v16 d = v16_from_low_halves(header[0]);
    const v16 dmin = v16_from_low_halves(v16i_srl(header[0], 16));
    scales[0] = v16i_and(header[1], six);
    mins[0] = v16i_and(header[2], six);
    scales[1] = or_masked(v16i_and(header[3], nibble), v16i_srl(header[1], 2), 0x30);
    mins[1] = or_masked(v16i_and(v16i_srl(header[3], 4), nibble), v16i_srl(header[2], 2), 0x30);
    if (fifth) group_load_32(rows, at + 16, high);
    TL_UNROLL(4)
    for (int c = 0; c < 4; c++) {
        v16i x[8], a[MAX_DIGITS], b[MAX_DIGITS];
        group_load_32(rows, at + (fifth ? 48 : 16) + 32 * (size_t)c, x);
        if (c < 3) group_fetch(rows, at + 64 * (size_t)c);
        one_begin(a, digits, NULL);
        one_begin(b, digits, NULL);
        TL_UNROLL(8)
        for (int i = 0; i < 8; i++) {
            v16i low = v16i_and(x[i], nibble), up = v16i_and(v16i_srl(x[i], 4), nibble);
            if (fifth) {
                low = or_masked(low,
                                c == 0   ? v16i_sll(high[i], 4)
                                : c == 1 ? v16i_sll(high[i], 2)
                                : c == 2 ? high[i]
                                         : v16i_srl(high[i], 2),
                                0x10);
                up = or_masked(up,
                               c == 0   ? v16i_sll(high[i], 3)
                               : c == 1 ? v16i_sll(high[i], 1)
                               : c == 2 ? v16i_srl(high[i], 1)
                                        : v16i_srl(high[i], 3),
                               0x10);
            }
            one_dots(a, digits, low, t->x + (16 * c + i) * digits);
            one_dots(b, digits, up, t->x + (16 * c + 8 + i) * digits);
        }
        one_scale(a, digits, byte_at(scales[c / 2], 2 * c % 4, false));
        one_end_block(&sums, digits, a, 2 * c);
        one_scale(b, digits, byte_at(scales[c / 2], 2 * c % 4 + 1, false));
        one_end_block(&sums, digits, b, 2 * c + 1);
    }
    one_end_chunk(&sums, digits, t, d, exact, fast);
    if (digits == 1) {
        v16 minima = v16_set1(0);
        TL_UNROLL(8)
        for (int g = 0; g < 8; g++) {
            v16 min = v16_from_i32(byte_at(mins[g / 4], g % 4, false));
            minima = v16_fma(min, v16_set1(t->fast.sum[g]), minima);
        }
        *fast = v16_fma(dmin, v16_mul(minima, v16_set1(-1)), *fast);
    } else {
        v16i low = v16i_set1(0), up = low;
        TL_UNROLL(8)
        for (int g = 0; g < 8; g++) {
            v16i min = twice(byte_at(mins[g / 4], g % 4, false));
            low = v16i_dot2(low, min, v16i_set1(t->exact.sums[2 * g]));
            up = v16i_dot2(up, min, v16i_set1(t->exact.sums[2 * g + 1]));
        }
        const v16d total = v16d_fma(v16d_from_i32(up), v16d_set1(16384), v16d_from_i32(low));
        *exact = v16d_fma(v16d_mul(v16d_from_f32(dmin), v16d_set1(-t->exact.dx[0])), total, *exact);
    }
}

/* What an offset of the weights adds to the sums of each group of 16 digits, with its sign. */
TL_INLINE void one_starts(struct one_token *t, const int digits, const int offset) {
    for (int i = 0; i < digits; i++) {
        const v16i sums = v16i_load(t->groups + 16 * i);
        v16i_store(t->starts + 16 * i, v16i_mul(sums, v16i_set1(-offset)));
    }
}

TL_INLINE void one_k6(const struct row_group *rows, size_t at, const int digits,
                      struct one_token *t, v16d *exact, v16 *fast) {
    const v16i nibble = bytes_of(0x0f);
    struct one_sums sums;
    v16i scales[4];
    uint16_t half[16];
    one_begin(sums.exact, digits, NULL);
    one_starts(t, digits, 32);
    group_load_16(rows, at + 192, scales);
    for (size_t r = 0; r < 16; r++) memcpy(&half[r], rows->first + r * rows->bytes + at + 208, 2);
    for (int h = 0; h < 2; h++) {
        v16i high[8];
        group_load_32(rows, at + 128 + 32 * (size_t)h, high);
        TL_UNROLL(2)
        for (int part = 0; part < 2; part++) { // the blocks `block` and `block + 2`
            const int block = 4 * h + part;
            v16i low[8], a[2][MAX_DIGITS], b[2][MAX_DIGITS];
            group_load_32(rows, at + 64 * (size_t)h + 32 * (size_t)part, low);
            group_fetch(rows, at + 64 * (size_t)(2 * h + part));
            TL_UNROLL(2)
            for (int g = 0; g < 2; g++) { // of 16 values
                const int one = 2 * block + g, other = one + 4;
                one_begin(a[g], digits, t->starts + one * digits);
                one_begin(b[g], digits, t->starts + other * digits);
                TL_UNROLL(4)
                for (int i = 4 * g; i < 4 * g + 4; i++) {
                    v16i x = v16i_and(low[i], nibble), y = v16i_and(v16i_srl(low[i], 4), nibble);
                    x = or_masked(x, v16i_sll(high[i], part == 0 ? 4 : 2), 0x30);
                    y = or_masked(y, part == 0 ? high[i] : v16i_srl(high[i], 2), 0x30);
                    one_dots(a[g], digits, x, t->x + (8 * block + i) * digits);
                    one_dots(b[g], digits, y, t->x + (8 * block + 16 + i) * digits);
                }
                one_scale(a[g], digits, byte_at(scales[2 * h], 2 * part + g, true));
                one_scale(b[g], digits, byte_at(scales[2 * h + 1], 2 * part + g, true));
            }
            for (int p = 0; p < digits; p++) {
                a[0][p] = v16i_add(a[0][p], a[1][p]);
                b[0][p] = v16i_add(b[0][p], b[1][p]);
            }
            one_end_block(&sums, digits, a[0], block);
            one_end_block(&sums, digits, b[0], block + 2);
        }
    }
    one_end_chunk(&sums, digits, t, v16_load_f16(half), exact, fast);
}

/* Sixteen rows of a K type; true if this type is done here. */
TL_INLINE bool one_rows(enum tl_type id, const struct row_group *rows, const int digits,
                        const void *packed, size_t chunks, size_t bytes, float *y) {
    v16d exact = v16d_set1(0);
    v16 fast = v16_set1(0);
    for (size_t c = 0; c < chunks; c++) {
        struct one_token t = one_token_at(packed, digits, c);
        switch (id) {
        case TL_TYPE_Q4_K:
            one_k4(rows, c * bytes, digits, false, &t, &exact, &fast);
            break;
        case TL_TYPE_Q6_K:
            one_k6(rows, c * bytes, digits, &t, &exact, &fast);
            break;
        case TL_TYPE_Q5_K:
            one_k4(rows, c * bytes, digits, true, &t, &exact, &fast);
            break;
        default:
            return false;
        }
    }
    v16_store(y, digits == 1 ? fast : v16_from_f64(exact));
    return true;
}

/* The rows of [row0, row1) that are done; the rest are for the panels. */
TL_INLINE size_t one_token_rows(const int digits, const struct tl_matrix *w, size_t row0,
                                size_t row1, const void *packed, float *y) {
    const size_t bytes = (size_t)(TL_CHUNK / w->type->items * w->type->bytes);
    if (w->cols % TL_CHUNK != 0) return row0;
    for (; row0 + 16 <= row1; row0 += 16) {
        const struct row_group rows = {w->data + row0 * w->row_bytes, w->row_bytes};
        if (!one_rows(type_id(w->type), &rows, digits, packed, w->cols / TL_CHUNK, bytes,
                      y + row0)) {
            break;
        }
    }
    return row0;
}
