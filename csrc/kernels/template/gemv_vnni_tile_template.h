/*
 * gemv_vnni_tile_template.h - Q4_K, Q5_K and Q6_K times a few tokens in fast mode, sixteen rows at
 * a time.
 *
 * The sums of a block start from the bits of 1.5 * 2^23 as a float, so they end as the bits of that
 * number plus the sum, and a fused multiply-add takes it off again while it multiplies by the
 * sub-scale. Both the product and the sum are exact, so the results are those of gemv_end_group and
 * gemv_end_chunk, with fewer operations for each token.
 *
 * Needs:   gemv_vnni_lanes_template.h, pack_fast_template.h
 * Defines: FLOAT_BIAS_BITS, gemv_k4_tile, gemv_k6_tile
 */

#define FLOAT_BIAS 12582912.0f // 1.5 * 2^23
#define FLOAT_BIAS_BITS 0x4b400000

/* Q4_K and Q5_K */
TL_INLINE void gemv_k4_tile(const bool five, const struct row_group *rows, const int tokens,
                            const struct gemv_token *t, v16 *fast) {
    const v16i six = bytes_of(0x3f);
    v16i header[4], scales[2], mins[2], fifth[8];
    v16 factor[8], bias[8], total[MAX_TILE], below[MAX_TILE];
    group_load_16(rows, 0, header);
    scales[0] = v16i_and(header[1], six);
    mins[0] = v16i_and(header[2], six);
    scales[1] = or_masked(masked(header[3], 0x0f), v16i_srl(header[1], 2), 0x30);
    mins[1] = or_masked(masked(v16i_srl(header[3], 4), 0x0f), v16i_srl(header[2], 2), 0x30);
    for (int i = 0; i < tokens; i++) total[i] = below[i] = v16_set1(0);
    TL_UNROLL(8)
    for (int b = 0; b < 8; b++) {
        const v16 min = v16_from_i32(one_byte(mins[b / 4], b % 4));
        TL_UNROLL(8)
        for (int i = 0; i < tokens; i++) {
            below[i] = v16_fma(min, v16_set1(t->fast.sum[b * tokens + i]), below[i]);
        }
        factor[b] = v16_from_i32(one_byte(scales[b / 4], b % 4));
        // high nibbles are not shifted, so their sums are 16 times as large
        if (!five && b % 2 == 1) factor[b] = v16_mul(factor[b], v16_set1(0.0625f));
        bias[b] = v16_mul(factor[b], v16_set1(-FLOAT_BIAS));
    }
    if (five) group_load_32(rows, 16, fifth);
    for (int c = 0; c < 4; c++) {
        const int32_t *digit = t->x + 16 * c * tokens;
        v16i x[8];
        KEEP_POINTER(digit); // so that what follows are constant distances from it
        group_load_32(rows, (five ? 48 : 16) + 32 * (size_t)c, x);
        if (c < 3) group_prefetch(rows, 64 * (size_t)c);
        TL_UNROLL(2)
        for (int half = 0; half < 2; half++) { // the low nibbles, then the high ones
            const int block = 2 * c + half;
            const float *scale = t->fast.scale + block * tokens;
            v16i s[MAX_TILE];
            KEEP_POINTER(scale);
            for (int i = 0; i < tokens; i++) s[i] = v16i_set1(FLOAT_BIAS_BITS);
            TL_UNROLL(8)
            for (int i = 0; i < 8; i++) {
                v16i q = masked(x[i], half == 0 ? 0x0f : 0xf0);
                if (five) {
                    if (half == 1) q = v16i_srl(q, 4);
                    q = or_masked(q, v16i_sll(fifth[i], half == 0 ? 4 : 3), 0x10);
                    if (half == 1) fifth[i] = v16i_srl(fifth[i], 2);
                }
                gemv_dots(s, tokens, q, digit + (8 * half + i) * tokens);
            }
            TL_UNROLL(8)
            for (int i = 0; i < tokens; i++) {
                const v16 sum = v16_fma(v16_from_bits(s[i]), factor[block], bias[block]);
                total[i] = v16_fma(sum, v16_set1(scale[i]), total[i]);
            }
        }
    }
    const v16 d = v16_from_low_halves(header[0]);
    const v16 dmin = v16_mul(v16_from_low_halves(v16i_srl(header[0], 16)), v16_set1(-1));
    TL_UNROLL(8)
    for (int i = 0; i < tokens; i++) {
        fast[i] = v16_fma(dmin, below[i], v16_fma(d, total[i], fast[i]));
    }
}

/* Q6_K; only the starts of even groups include FLOAT_BIAS_BITS. */
TL_INLINE void gemv_k6_tile(const struct row_group *rows, const int tokens,
                            const struct gemv_token *t, v16 *fast) {
    v16i scales[4];
    v16 factor[16], total[MAX_TILE];
    group_load_16(rows, 192, scales);
    TL_UNROLL(16)
    for (int g = 0; g < 16; g++) factor[g] = v16_from_i32(byte_at(scales[g / 4], g % 4, true));
    for (int i = 0; i < tokens; i++) total[i] = v16_set1(0);
    for (int h = 0; h < 2; h++) {
        v16i low[2][8], high[8];
        group_load_32(rows, 128 + 32 * (size_t)h, high);
        for (int part = 0; part < 2; part++) {
            group_load_32(rows, 64 * (size_t)h + 32 * (size_t)part, low[part]);
            group_prefetch(rows, 64 * (size_t)(2 * h + part));
        }
        KEEP_STORED(high); // the registers are for sums
        KEEP_STORED(low);
        TL_UNROLL(2)
        for (int up = 0; up < 2; up++) { // the low nibbles, then the high ones
            for (int part = 0; part < 2; part++) {
                const int block = 4 * h + 2 * up + part;
                const v16i bits = v16i_set1(up == 0 ? 4 - 2 * part : 2 * part);
                const int32_t *starts = t->starts + 2 * block * tokens;
                const int32_t *x = t->x + 8 * block * tokens;
                const float *scale = t->fast.scale + block * tokens;
                v16 sum[MAX_TILE];
                KEEP_POINTER(starts); // so that what follows are constant distances from it
                KEEP_POINTER(x);
                KEEP_POINTER(scale);
                TL_UNROLL(2)
                for (int g = 0; g < 2; g++) { // of 16 values
                    v16i s[MAX_TILE];
                    gemv_begin(s, tokens, starts + g * tokens);
                    TL_UNROLL(4)
                    for (int i = 4 * g; i < 4 * g + 4; i++) {
                        const v16i nibble = up == 0 ? low[part][i] : v16i_srl(low[part][i], 4);
                        const v16i two =
                            up == 0 ? v16i_sll_by(high[i], bits) : v16i_srl_by(high[i], bits);
                        const v16i q = or_masked(masked(nibble, 0x0f), two, 0x30);
                        gemv_dots(s, tokens, q, x + i * tokens);
                    }
                    const v16 f = factor[2 * block + g];
                    const v16 bias = v16_mul(f, v16_set1(-FLOAT_BIAS));
                    TL_UNROLL(8)
                    for (int i = 0; i < tokens; i++) {
                        if (g == 0) {
                            sum[i] = v16_fma(v16_from_bits(s[i]), f, bias);
                        } else {
                            sum[i] = v16_fma(v16_from_i32(s[i]), f, sum[i]);
                            total[i] = v16_fma(sum[i], v16_set1(scale[i]), total[i]);
                        }
                    }
                }
            }
        }
    }
    const v16 d = group_load_half(rows, 208);
    TL_UNROLL(8)
    for (int i = 0; i < tokens; i++) fast[i] = v16_fma(d, total[i], fast[i]);
}
