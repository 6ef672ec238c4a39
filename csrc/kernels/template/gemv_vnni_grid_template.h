/*
 * gemv_vnni_grid_template.h - IQ2 and IQ3 times one token, sixteen rows at a time.
 *
 * A lane has the numbers of two entries of the grid, in its words. Their codes (types/grids.h) come
 * from tables in registers, those of IQ2_S from memory. The bytes of a lane are then weights of
 * four different entries, so that one shift gives the next weight of each: of 16 consecutive
 * weights, the k-th dword has those with the numbers k, 4 + k, 8 + k and 12 + k. The digits of the
 * activations are put into this order first. Block layouts: ggml-common.h of ggml.
 *
 * The loops over blocks are not unrolled: that would take a third of the compile time of this
 * instruction set, and the look-ups in tables take most of the run time.
 *
 * Needs:   gemv_vnni_lanes_template.h, v16i_look_up_words, v16i_gather_words,
 *          types/grids.h
 * Defines: grid_bytes, grid_digits, gemv_iq2, gemv_iq3
 */

/* Bytes of a block of the types of this file; 0 for others. */
TL_INLINE size_t grid_bytes(enum tl_type id) {
    switch (id) {
    case TL_TYPE_IQ2_XXS:
        return 66;
    case TL_TYPE_IQ2_XS:
        return 74;
    case TL_TYPE_IQ2_S:
        return 82;
    case TL_TYPE_IQ3_XXS:
        return 98;
    case TL_TYPE_IQ3_S:
        return 110;
    default:
        return 0;
    }
}

/* Puts the digits of a chunk into the order of the weights: transposes 4 x 4 bytes at a time. */
TL_INLINE void grid_digits(const int32_t *x, const int digits, int32_t *out) {
    for (int g = 0; g < 16; g++) {
        for (int p = 0; p < digits; p++) {
            uint32_t in[4], even[2], odd[2];
            for (int i = 0; i < 4; i++) in[i] = (uint32_t)x[(4 * g + i) * digits + p];
            for (int i = 0; i < 2; i++) { // bytes 0 and 2 of both, bytes 1 and 3 of both
                even[i] = (in[2 * i] & 0x00ff00ff) | (in[2 * i + 1] & 0x00ff00ff) << 8;
                odd[i] = (in[2 * i] >> 8 & 0x00ff00ff) | (in[2 * i + 1] & 0xff00ff00);
            }
            int32_t *to = out + 4 * g * digits + p;
            to[0] = (int32_t)((even[0] & 0xffff) | even[1] << 16);
            to[digits] = (int32_t)((odd[0] & 0xffff) | odd[1] << 16);
            to[2 * digits] = (int32_t)(even[0] >> 16 | (even[1] & 0xffff0000));
            to[3 * digits] = (int32_t)(odd[0] >> 16 | (odd[1] & 0xffff0000));
        }
    }
}

/* The levels of a grid, then, from `negative` on, the same with the other sign; plus the offset. */
TL_INLINE v16i grid_table(const int8_t *levels, const int n, const int negative) {
    int8_t table[16] = {0};
    for (int i = 0; i < n; i++) {
        table[i] = levels[i];
        table[negative + i] = (int8_t)-levels[i];
    }
    return codebook(table, INT8_OFFSET);
}

/* Signs of 16 weights: seven bits in each word become eight, an even number of which is set. */
TL_INLINE v16i grid_even_signs(v16i seven) {
    static const uint8_t parity[16] = {0,    0x80, 0x80, 0,    0x80, 0,    0,    0x80,
                                       0x80, 0,    0,    0x80, 0,    0x80, 0x80, 0};
    const v16i folded = masked(v16i_xor(seven, v16i_srl(seven, 4)), 0x0f);
    return v16i_or_and(seven, v16i_look_up(v16i_table(parity), folded), v16i_set1(-1));
}

/* The seven bits of the entries 2 half and 2 half + 1, of four in the lower 28 bits. */
TL_INLINE v16i grid_seven_signs(v16i x, const int half) {
    const v16i low = v16i_and(half ? v16i_srl(x, 14) : x, v16i_set1(0x7f));
    return v16i_or_and(low, half ? v16i_srl(x, 5) : v16i_sll(x, 9), v16i_set1(0x7f0000));
}

/* The bytes `at` and `at + 1` as words. */
TL_INLINE v16i grid_words(v16i x, const int at) {
    return v16i_choose_bytes(x, 0x80008000u | (uint32_t)at | (uint32_t)(at + 1) << 16);
}

/* Moves the upper four of eight signs in each word to the next byte; other bits are not used. */
TL_INLINE v16i grid_spread_signs(v16i signs) {
    return v16i_or_and(signs, v16i_sll(signs, 4), v16i_set1(0x0f000f00));
}

/* 2 s + 1 in every lane, for the s in the upper four bits. */
TL_INLINE v16i grid_odd_scale(v16i x) {
    return v16i_or_and(v16i_set1(1), v16i_srl(x, 27), v16i_set1(0x1e));
}

/* Adds 16 weights of IQ2: codes of two entries, and their signs. */
TL_INLINE void grid_dots_8(v16i s[MAX_WIDTH], const int digits, v16i table, v16i codes, v16i signs,
                           const int32_t *x) {
    signs = grid_spread_signs(signs);
    TL_UNROLL(4)
    for (int k = 0; k < 4; k++) {
        const v16i level = masked(shifted(codes, -2 * k), 0x03);
        const v16i q = v16i_look_up(table, or_masked(level, shifted(signs, 2 - k), 0x04));
        gemv_dots(s, digits, q, x + k * digits);
    }
}

/* IQ2_XXS, IQ2_XS and IQ2_S */
TL_INLINE void gemv_iq2(enum tl_type id, const struct row_group *rows, const int digits,
                        const struct gemv_token *t, v16d *exact, v16 *fast) {
    const v16i table = grid_table(tl_levels_iq2, 3, 4);
    const bool xxs = id == TL_TYPE_IQ2_XXS, xs = id == TL_TYPE_IQ2_XS;
    struct gemv_sums sums;
    v16i x[16], tail[4], scales[2][2];
    gemv_begin(sums.exact, digits, NULL);
    group_load_32(rows, 2, x);
    group_load_32(rows, 34, x + 8);
    group_prefetch(rows, 0);
    if (!xxs) {
        group_load_16(rows, xs ? 58 : 66, tail); // the last two dwords are sub-scales
        group_prefetch(rows, 64);
        for (int i = 0; i < 2; i++) {
            scales[i][0] = or_masked(bytes_of(1), v16i_sll(tail[2 + i], 1), 0x1e);
            scales[i][1] = or_masked(bytes_of(1), v16i_srl(tail[2 + i], 3), 0x1e);
        }
    }
    for (int block = 0; block < 8; block++) {
        v16i a[2][MAX_WIDTH];
        TL_UNROLL(2)
        for (int g = 0; g < 2; g++) { // of 16 values
            const int group = 2 * block + g;
            v16i index, signs, codes;
            if (xxs) {
                index = grid_words(x[2 * block], 2 * g);
                signs = grid_even_signs(grid_seven_signs(x[2 * block + 1], g));
                codes = v16i_look_up_words(tl_codes_iq2_xxs, 256, index);
            } else if (xs) {
                index = v16i_and(x[group], v16i_set1(0x01ff01ff));
                signs = grid_even_signs(v16i_and(v16i_srl(x[group], 9), v16i_set1(0x007f007f)));
                codes = v16i_look_up_words(tl_codes_iq2_xs, 512, index);
            } else {
                const v16i high = one_byte(tail[block / 4], block % 4);
                index = grid_words(x[block], 2 * g);
                index = v16i_or_and(index, shifted(high, 8 - 4 * g), v16i_set1(0x300));
                index = v16i_or_and(index, shifted(high, 22 - 4 * g), v16i_set1(0x03000000));
                signs = grid_words(x[8 + block], 2 * g);
                codes = v16i_gather_words(tl_codes_iq2_s, index);
            }
            gemv_begin(a[g], digits, t->starts + group * digits);
            grid_dots_8(a[g], digits, table, codes, signs, t->x + 4 * group * digits);
            if (!xxs) {
                const v16i scale = one_byte(scales[block / 4][g], block % 4);
                gemv_end_group(&sums, digits, 1, a[g], scale, block, g == 0);
            }
        }
        if (!xxs) continue;
        gemv_join(a[0], digits, a[1]);
        gemv_end_group(&sums, digits, 1, a[0], grid_odd_scale(x[2 * block + 1]), block, true);
    }
    gemv_end_chunk(&sums, digits, 1, t, v16_mul(group_load_half(rows, 0), v16_set1(0.125f)), exact,
                   fast);
}

/*
 * Adds 16 weights of IQ3: codes of the first and the third of four entries, of the second and the
 * fourth, and signs of pairs of entries.
 */
TL_INLINE void grid_dots_4(v16i s[MAX_WIDTH], const int digits, v16i table, v16i even, v16i odd,
                           v16i signs, const int32_t *x) {
    const v16i low = v16i_set1(0x00ff00ff), high = v16i_set1((int32_t)0xff00ff00);
    v16i pairs[2]; // the first two weights of each entry, and the other two
    signs = grid_spread_signs(signs);
    pairs[0] = v16i_or_and(v16i_and(even, low), v16i_sll(odd, 8), high);
    pairs[1] = v16i_or_and(v16i_and(odd, high), v16i_srl(even, 8), low);
    TL_UNROLL(4)
    for (int k = 0; k < 4; k++) {
        const v16i level = masked(shifted(pairs[k / 2], -4 * (k % 2)), 0x07);
        const v16i q = v16i_look_up(table, or_masked(level, shifted(signs, 3 - k), 0x08));
        gemv_dots(s, digits, q, x + k * digits);
    }
}

/* IQ3_XXS and IQ3_S */
TL_INLINE void gemv_iq3(enum tl_type id, const struct row_group *rows, const int digits,
                        const struct gemv_token *t, v16d *exact, v16 *fast) {
    const bool xxs = id == TL_TYPE_IQ3_XXS;
    const v16i table = grid_table(xxs ? tl_levels_iq3_xxs : tl_levels_iq3_s, 8, 8);
    const v16i bytes = v16i_set1(0x00ff00ff);
    struct gemv_sums sums;
    v16i x[16], signs[8], high[4], scales[4];
    v16 d = group_load_half(rows, 0);
    gemv_begin(sums.exact, digits, NULL);
    group_load_32(rows, 2, x);
    group_load_32(rows, 34, x + 8);
    group_load_32(rows, xxs ? 66 : 74, signs);
    group_prefetch(rows, 0);
    group_prefetch(rows, 64);
    if (xxs) {
        d = v16_mul(d, v16_set1(0.25f));
    } else {
        group_load_16(rows, 66, high);
        group_load_16(rows, 94, scales); // the last dword
        scales[0] = or_masked(bytes_of(1), v16i_sll(scales[3], 1), 0x1e);
        scales[1] = or_masked(bytes_of(1), v16i_srl(scales[3], 3), 0x1e);
    }
    for (int block = 0; block < 8; block++) {
        v16i a[2][MAX_WIDTH];
        TL_UNROLL(2)
        for (int g = 0; g < 2; g++) { // of 16 values
            const int group = 2 * block + g;
            v16i even = v16i_and(x[group], bytes), odd = v16i_and(v16i_srl(x[group], 8), bytes);
            v16i sign;
            if (xxs) {
                sign = grid_even_signs(grid_seven_signs(signs[block], g));
                even = v16i_look_up_words(tl_codes_iq3_xxs, 256, even);
                odd = v16i_look_up_words(tl_codes_iq3_xxs, 256, odd);
            } else {
                const v16i ninth = one_byte(high[block / 4], block % 4);
                const v16i low_bit = v16i_set1(0x100), high_bit = v16i_set1(0x01000000);
                even = v16i_or_and(even, shifted(ninth, 8 - 4 * g), low_bit);
                even = v16i_or_and(even, shifted(ninth, 22 - 4 * g), high_bit);
                odd = v16i_or_and(odd, shifted(ninth, 7 - 4 * g), low_bit);
                odd = v16i_or_and(odd, shifted(ninth, 21 - 4 * g), high_bit);
                sign = grid_words(signs[block], 2 * g);
                even = v16i_look_up_words(tl_codes_iq3_s, 512, even);
                odd = v16i_look_up_words(tl_codes_iq3_s, 512, odd);
            }
            gemv_begin(a[g], digits, t->starts + group * digits);
            grid_dots_4(a[g], digits, table, even, odd, sign, t->x + 4 * group * digits);
        }
        gemv_join(a[0], digits, a[1]);
        gemv_end_group(&sums, digits, 1, a[0],
                       xxs ? grid_odd_scale(signs[block]) : one_byte(scales[block % 2], block / 2),
                       block, true);
    }
    gemv_end_chunk(&sums, digits, 1, t, d, exact, fast);
}
