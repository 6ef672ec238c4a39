/*
 * gemv_avx2_grid_template.h - IQ2 and IQ3 times one token, eight rows at a time.
 *
 * The entries of the grid are loaded row by row, 32 weights in a vector, and only the sums of eight
 * rows are transposed. Signs and sub-scales are unpacked with a row in each lane first. Exact mode
 * multiplies int16; in fast mode signs move from the weights to the activations. Block layouts:
 * ggml-common.h of ggml.
 *
 * Needs:   gemv_avx2_lanes_template.h, types/grids.h
 * Defines: grid_chunk
 */

/* What the rows of a chunk have beside entries: for each block of 32, in each lane. */
struct grid_rest {
    __m256 d;
    __m256i signs[8];    // those of weight i are bit i
    __m256i scale[8][2]; // of each 16 weights
};

/* In each byte seven signs, of which an even number is set with the eighth. */
TL_INLINE __m256i grid_even_signs(__m256i seven) {
    __m256i odd = _mm256_xor_si256(seven, _mm256_srli_epi32(seven, 4));
    odd = _mm256_xor_si256(odd, _mm256_srli_epi32(odd, 2));
    odd = _mm256_xor_si256(odd, _mm256_srli_epi32(odd, 1));
    odd = _mm256_slli_epi32(_mm256_and_si256(odd, _mm256_set1_epi8(1)), 7);
    return _mm256_or_si256(seven, odd);
}

/* A sub-scale, 2 s + 1, from the four bits from `at` on. */
TL_INLINE __m256i grid_odd_scale(__m256i x, const int at) {
    x = _mm256_and_si256(_mm256_srli_epi32(x, at), set_int(15));
    return _mm256_or_si256(_mm256_slli_epi32(x, 1), set_int(1));
}

/* Four signs of seven bits, and a sub-scale in the upper four. */
TL_INLINE void grid_put_word(struct grid_rest *rest, const int block, __m256i x) {
    __m256i seven = _mm256_and_si256(x, set_int(0x7f));
    for (int i = 1; i < 4; i++) {
        const __m256i next = _mm256_and_si256(_mm256_slli_epi32(x, i), set_int(0x7f << 8 * i));
        seven = _mm256_or_si256(seven, next);
    }
    rest->signs[block] = grid_even_signs(seven);
    rest->scale[block][0] = rest->scale[block][1] = grid_odd_scale(x, 28);
}

TL_INLINE void grid_unpack_rest(const enum tl_type id, struct lanes row, struct grid_rest *rest) {
    __m256i x[4];
    rest->d = lanes_half(row, 0);
    if (id != TL_TYPE_IQ3_S) {
        rest->d = _mm256_mul_ps(rest->d, _mm256_set1_ps(id == TL_TYPE_IQ3_XXS ? 0.25f : 0.125f));
    }
    TL_UNROLL(4)
    for (int i = 0; i < 4; i++) {
        if (id == TL_TYPE_IQ2_XXS) { // entries, the rest, entries, the rest
            lanes_load(row, (size_t)(2 + 16 * i), x);
            grid_put_word(rest, 2 * i, x[1]);
            grid_put_word(rest, 2 * i + 1, x[3]);
        } else if (id == TL_TYPE_IQ3_XXS && i < 2) {
            lanes_load(row, (size_t)(66 + 16 * i), x);
            for (int j = 0; j < 4; j++) grid_put_word(rest, 4 * i + j, x[j]);
        } else if (id == TL_TYPE_IQ2_XS) { // int16, the upper seven bits of which are signs
            lanes_load(row, (size_t)(2 + 16 * i), x);
            TL_UNROLL(2)
            for (int j = 0; j < 2; j++) {
                __m256i a = _mm256_srli_epi16(x[2 * j], 9), b = _mm256_srli_epi16(x[2 * j + 1], 9);
                a = _mm256_or_si256(a, _mm256_srli_epi32(a, 8));
                b = _mm256_or_si256(_mm256_slli_epi32(b, 16), _mm256_slli_epi32(b, 8));
                rest->signs[2 * i + j] = grid_even_signs(_mm256_blend_epi16(a, b, 0xaa));
            }
        } else if (id == TL_TYPE_IQ2_S && i < 2) {
            lanes_load(row, (size_t)(34 + 16 * i), rest->signs + 4 * i);
        } else if (id == TL_TYPE_IQ3_S && i < 2) {
            lanes_load(row, (size_t)(74 + 16 * i), rest->signs + 4 * i);
        }
    }
    if (id == TL_TYPE_IQ2_XXS || id == TL_TYPE_IQ3_XXS) return;
    lanes_load(row, id == TL_TYPE_IQ2_XS ? 58 : id == TL_TYPE_IQ2_S ? 66 : 94, x);
    TL_UNROLL(8)
    for (int b = 0; b < 8; b++) {
        if (id == TL_TYPE_IQ3_S) {
            rest->scale[b][0] = rest->scale[b][1] = grid_odd_scale(x[3], 4 * b);
        } else {
            rest->scale[b][0] = grid_odd_scale(x[2 + b / 4], 8 * (b % 4));
            rest->scale[b][1] = grid_odd_scale(x[2 + b / 4], 8 * (b % 4) + 4);
        }
    }
}

TL_INLINE __m256i grid_eights(const int8_t (*grid)[8], const size_t at[4]) {
    int64_t v[4];
    TL_UNROLL(4)
    for (int i = 0; i < 4; i++) memcpy(&v[i], grid[at[i]], 8);
    return _mm256_set_epi64x(v[3], v[2], v[1], v[0]);
}

TL_INLINE __m256i grid_fours(const int8_t (*grid)[4], const size_t at[8]) {
    int64_t v[4];
    TL_UNROLL(4)
    for (int i = 0; i < 4; i++) { // pairs of entries are joined in general registers
        uint32_t low, high;
        memcpy(&low, grid[at[2 * i]], 4);
        memcpy(&high, grid[at[2 * i + 1]], 4);
        v[i] = (int64_t)((uint64_t)high << 32 | low);
    }
    return _mm256_set_epi64x(v[3], v[2], v[1], v[0]);
}

/* 32 weights of a row, block b of its chunk, without their signs. */
TL_INLINE __m256i grid_values(const enum tl_type id, const struct tl_grids *grids,
                              const uint8_t *chunk, size_t b) {
    const uint8_t *qs = chunk + 2 + 8 * b;
    size_t at[8];
    if (id == TL_TYPE_IQ2_XXS) {
        for (int i = 0; i < 4; i++) at[i] = qs[i];
        return grid_eights(grids->iq2_xxs, at);
    }
    if (id == TL_TYPE_IQ2_XS) {
        uint16_t word[4];
        memcpy(word, qs, 8);
        for (int i = 0; i < 4; i++) at[i] = word[i] & 511u;
        return grid_eights(grids->iq2_xs, at);
    }
    if (id == TL_TYPE_IQ2_S) {
        const size_t high = chunk[66 + b];
        qs -= 4 * b;
        for (int i = 0; i < 4; i++) at[i] = qs[i] | (high << (8 - 2 * i) & 0x300);
        return grid_eights(grids->iq2_s, at);
    }
    if (id == TL_TYPE_IQ3_XXS) {
        TL_UNROLL(8)
        for (int i = 0; i < 8; i++) at[i] = qs[i];
        return grid_fours(grids->iq3_xxs, at);
    }
    const size_t high = chunk[66 + b];
    TL_UNROLL(8)
    for (int i = 0; i < 8; i++) at[i] = qs[i] | (high << (8 - i) & 0x100);
    return grid_fours(grids->iq3_s, at);
}

/* 0xff in the bytes whose sign is set. */
TL_INLINE __m256i grid_negative(int32_t signs) {
    const __m256i order =
        _mm256_setr_epi64x(0, 0x0101010101010101, 0x0202020202020202, 0x0303030303030303);
    const __m256i bits = _mm256_set1_epi64x((int64_t)0x8040201008040201u);
    const __m256i x = _mm256_and_si256(_mm256_shuffle_epi8(set_int(signs), order), bits);
    return _mm256_cmpeq_epi8(x, bits);
}

TL_INLINE __m256i grid_with_signs(__m256i x, __m256i negative) {
    return _mm256_sub_epi8(_mm256_xor_si256(x, negative), negative);
}

/* A vector of int16 digits: eight of each 16 values, the first eight or the last eight. */
TL_INLINE __m256i grid_digits(const int16_t *x) {
    return _mm256_inserti128_si256(_mm256_castsi128_si256(load_128(x)), load_128(x + 16), 1);
}

/* The sums of eight rows over 32 weights, from sum_halves, times their sub-scales. */
TL_INLINE __m256i grid_scaled(const __m256i sum[2], const __m256i scale[2]) {
    const __m256i first = _mm256_permute2x128_si256(sum[0], sum[1], 0x20);
    const __m256i last = _mm256_permute2x128_si256(sum[0], sum[1], 0x31);
    return _mm256_add_epi32(_mm256_mullo_epi32(first, scale[0]),
                            _mm256_mullo_epi32(last, scale[1]));
}

/* One chunk of eight rows. */
TL_INLINE void grid_chunk(const enum tl_type id, const bool fast, struct lanes row,
                          const struct gemv_chunk *x, struct gemv_sums *sums) {
    const struct tl_grids *grids = tl_grids();
    const int planes = fast ? 1 : 2;
    __m256i total[2] = {_mm256_setzero_si256(), _mm256_setzero_si256()};
    __m256 float_total = _mm256_setzero_ps();
    struct grid_rest rest;
    grid_unpack_rest(id, row, &rest);
    for (size_t b = 0; b < 8; b++) {
        int32_t signs[8];
        __m256i digit[2][2], sum[2][2];
        _mm256_storeu_si256((__m256i *)(void *)signs, rest.signs[b]);
        if (fast) {
            digit[0][0] = load_256(x->digit.bytes[0] + 32 * b);
        } else {
            for (int p = 0; p < 2; p++) {
                digit[p][0] = grid_digits(x->digit.words[p] + 32 * b);
                digit[p][1] = grid_digits(x->digit.words[p] + 32 * b + 8);
            }
        }
        TL_UNROLL(2)
        for (int half = 0; half < 2; half++) {
            __m256i part[2][4];
            TL_UNROLL(4)
            for (int r = 0; r < 4; r++) {
                const __m256i v = grid_values(id, grids, lanes_row(row, 4 * half + r), b);
                const __m256i negative = grid_negative(signs[4 * half + r]);
                if (fast) {
                    const __m256i signed_x = grid_with_signs(digit[0][0], negative);
                    part[0][r] = mul_words_256(mul_bytes_256(v, signed_x), _mm256_set1_epi16(1));
                    continue;
                }
                const __m256i w = grid_with_signs(v, negative);
                const __m256i first = _mm256_unpacklo_epi8(w, negative);
                const __m256i last = _mm256_unpackhi_epi8(w, negative);
                for (int p = 0; p < 2; p++) {
                    part[p][r] = _mm256_add_epi32(mul_words_256(first, digit[p][0]),
                                                  mul_words_256(last, digit[p][1]));
                }
            }
            for (int p = 0; p < planes; p++) sum[p][half] = sum_halves(part[p]);
        }
        if (fast) {
            const __m256i scaled = grid_scaled(sum[0], rest.scale[b]);
            float_total = _mm256_fmadd_ps(_mm256_cvtepi32_ps(scaled), _mm256_set1_ps(x->scale[b]),
                                          float_total);
        } else {
            for (int p = 0; p < 2; p++) {
                total[p] = _mm256_add_epi32(total[p], grid_scaled(sum[p], rest.scale[b]));
            }
        }
    }
    if (fast) {
        sums->y = _mm256_fmadd_ps(rest.d, float_total, sums->y);
    } else {
        gemv_end_words(total, rest.d, x, sums);
    }
}
