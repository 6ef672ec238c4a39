/*
 * row_sums.h - fast mode, one token, 256-bit vectors: the sums of each block of 32, row after row.
 *
 * Included by matmul_panel.h after fill_panel.h. With sixteen registers a panel is too much to
 * build for one token; here the weights of a row stay where they are, only the sums of eight rows
 * are transposed. They are integers, so the result is that of the panels. Block layouts:
 * ggml-common.h of ggml.
 */

TL_INLINE __m256i load_256(const void *p) {
    return _mm256_loadu_si256(p);
}

TL_INLINE __m256i low_nibbles(__m256i x) {
    return _mm256_and_si256(x, _mm256_set1_epi8(0x0f));
}

/* x >> n (n of 16 bits, upwards if negative), the bits of `mask` of every byte. */
TL_INLINE __m256i bits_of(__m256i x, const int n, const int mask) {
    x = n >= 0 ? _mm256_srli_epi16(x, n) : _mm256_slli_epi16(x, -n);
    return _mm256_and_si256(x, _mm256_set1_epi8((char)mask));
}

/*
 * q: 32 weights of each of eight rows; x: the digits that they meet. Lane r of *low is the sum over
 * the first 16 of row r, of *high over the last 16.
 */
TL_INLINE void row_sums(const __m256i q[8], const int32_t *x, __m256i *low, __m256i *high) {
    const __m256i digits = load_256(x), ones = _mm256_set1_epi16(1);
    __m256i p[8], pair[4], four[2];
    TL_UNROLL(8)
    for (int r = 0; r < 8; r++) {
        p[r] = _mm256_madd_epi16(_mm256_maddubs_epi16(q[r], digits), ones);
    }
    TL_UNROLL(4)
    for (int i = 0; i < 4; i++) {
        pair[i] = _mm256_add_epi32(_mm256_unpacklo_epi32(p[2 * i], p[2 * i + 1]),
                                   _mm256_unpackhi_epi32(p[2 * i], p[2 * i + 1]));
    }
    TL_UNROLL(2)
    for (int i = 0; i < 2; i++) {
        four[i] = _mm256_add_epi32(_mm256_unpacklo_epi64(pair[2 * i], pair[2 * i + 1]),
                                   _mm256_unpackhi_epi64(pair[2 * i], pair[2 * i + 1]));
    }
    *low = _mm256_permute2x128_si256(four[0], four[1], 0x20);
    *high = _mm256_permute2x128_si256(four[0], four[1], 0x31);
}

/* The sub-scales of a group of eight rows, from pairs of int16. */
TL_INLINE __m256i row_scales(const struct panel *p, int group, size_t row) {
    return _mm256_srai_epi32(load_256(&p->u.k.scale[group][row]), 16);
}

TL_INLINE void put_sums(struct panel *p, int block, size_t row, __m256i sums) {
    _mm256_storeu_si256((__m256i *)(void *)&p->sums[block][row], sums);
}

/* Q4_K and Q5_K: one sub-scale for the block */
TL_INLINE void row_block_k4(const __m256i q[8], const struct direct *d, int block, size_t row,
                            struct panel *p) {
    __m256i low, high;
    row_sums(q, d->digits + 8 * block, &low, &high);
    put_sums(p, block, row,
             _mm256_mullo_epi32(_mm256_add_epi32(low, high), row_scales(p, 2 * block, row)));
}

/* Q6_K: two */
TL_INLINE void row_block_k6(const __m256i q[8], const struct direct *d, int block, size_t row,
                            struct panel *p) {
    __m256i low, high;
    row_sums(q, d->digits + 8 * block, &low, &high);
    low = _mm256_mullo_epi32(low, row_scales(p, 2 * block, row));
    high = _mm256_mullo_epi32(high, row_scales(p, 2 * block + 1, row));
    put_sums(p, block, row, _mm256_add_epi32(low, high));
}

TL_INLINE void row_sums_q4_k(const struct rows *rows, const struct direct *d, struct panel *p) {
    fill_header_k4(rows, 0, p);
    for (int r0 = 0; r0 < 16; r0 += 8) {
        for (int c = 0; c < 4; c++) {
            __m256i x[8], q[8];
            TL_UNROLL(8)
            for (int r = 0; r < 8; r++) {
                x[r] = load_256(row_at(rows, r0 + r, 16 + 32 * (size_t)c));
                q[r] = low_nibbles(x[r]);
            }
            row_block_k4(q, d, 2 * c, (size_t)r0, p);
            TL_UNROLL(8)
            for (int r = 0; r < 8; r++) q[r] = bits_of(x[r], 4, 0x0f);
            row_block_k4(q, d, 2 * c + 1, (size_t)r0, p);
        }
    }
}

TL_INLINE void row_sums_q5_k(const struct rows *rows, const struct direct *d, struct panel *p) {
    fill_header_k4(rows, 0, p);
    for (int r0 = 0; r0 < 16; r0 += 8) {
        TL_UNROLL(4)
        for (int c = 0; c < 4; c++) {
            __m256i x[8], fifth[8], q[8];
            TL_UNROLL(8)
            for (int r = 0; r < 8; r++) {
                x[r] = load_256(row_at(rows, r0 + r, 48 + 32 * (size_t)c));
                fifth[r] = load_256(rows->at[r0 + r] + 16);
                q[r] = _mm256_or_si256(low_nibbles(x[r]), bits_of(fifth[r], 2 * c - 4, 0x10));
            }
            row_block_k4(q, d, 2 * c, (size_t)r0, p);
            TL_UNROLL(8)
            for (int r = 0; r < 8; r++) {
                q[r] = _mm256_or_si256(bits_of(x[r], 4, 0x0f), bits_of(fifth[r], 2 * c - 3, 0x10));
            }
            row_block_k4(q, d, 2 * c + 1, (size_t)r0, p);
        }
    }
}

TL_INLINE void row_sums_q6_k(const struct rows *rows, const struct direct *d, struct panel *p) {
    fill_header_q6(rows, 0, p);
    for (int r0 = 0; r0 < 16; r0 += 8) {
        for (int half = 0; half < 2; half++) {
            TL_UNROLL(2)
            for (int part = 0; part < 2; part++) {
                __m256i x[8], top[8], q[8];
                TL_UNROLL(8)
                for (int r = 0; r < 8; r++) {
                    x[r] = load_256(row_at(rows, r0 + r, (size_t)(64 * half + 32 * part)));
                    top[r] = load_256(row_at(rows, r0 + r, (size_t)(128 + 32 * half)));
                    q[r] = _mm256_or_si256(low_nibbles(x[r]), bits_of(top[r], 2 * part - 4, 0x30));
                }
                row_block_k6(q, d, 4 * half + part, (size_t)r0, p);
                TL_UNROLL(8)
                for (int r = 0; r < 8; r++) {
                    q[r] = _mm256_or_si256(bits_of(x[r], 4, 0x0f), bits_of(top[r], 2 * part, 0x30));
                }
                row_block_k6(q, d, 4 * half + part + 2, (size_t)r0, p);
            }
        }
    }
}

/* 16 rows of the types whose traits say `direct`; their chunks are always whole. */
TL_INLINE void fill_row_sums(const struct tl_type_info *type, const struct rows *rows,
                             const struct direct *d, struct panel *p) {
    switch (type_id(type)) {
    case TL_TYPE_Q4_K:
        row_sums_q4_k(rows, d, p);
        break;
    case TL_TYPE_Q5_K:
        row_sums_q5_k(rows, d, p);
        break;
    default:
        row_sums_q6_k(rows, d, p);
    }
    scale_offsets(type, 0, p);
}
