/*
 * gemv_avx2_template.h - quantized weights times one token, or a few in fast mode, eight rows at a
 * time.
 *
 * The bytes of eight rows are transposed in registers, so that each 32-bit lane has one row, and
 * then multiplied. Nothing is stored, and no sum runs across lanes. Sums of bytes stay in int16 as
 * long as they fit. All sums of integers are exact, so the results are those of the panels. The
 * digits of a few tokens (a tile) are multiplied like the digits of one: `planes` is how many.
 * Block layouts: ggml-common.h of ggml.
 *
 * Needs:   gemv_avx2_grid_template.h, gemv_job_template.h
 * Defines: gemv_most, gemv_matmul, gemv_prefetch
 */

/* ---- K types ---- */

/* One chunk of each row: the scales, and the sums that d multiplies at the end. */
struct gemv_k {
    __m256 d, dmin;
    __m256i scale[4], min[4];  // bytes: of groups of 16, four to a vector; Q4_K and Q5_K: of 32
    __m256i sum[8 * MAX_TILE]; // exact: of each digit; fast: of each block and token
};

/* How far apart the digits of the planes are. */
TL_INLINE size_t gemv_plane(const bool fast) {
    return fast ? sizeof(struct gemv_chunk) : TL_CHUNK;
}

/* Called after a group (Q4_K, Q5_K: a block) or a part of it: adds its sums times the sub-scale. */
TL_INLINE void gemv_end(const bool fast, const int planes, struct gemv_k *k, const __m256i *a,
                        __m256i scale, const int block) {
    TL_UNROLL(3)
    for (int p = 0; p < planes; p++) {
        __m256i *sum = &k->sum[fast ? block * planes + p : p];
        *sum = _mm256_add_epi32(*sum, mul_words_256(a[p], scale));
    }
}

/* Half of a chunk of Q4_K, or half of each block of Q5_K. */
TL_INLINE void gemv_k4_half(const bool five, const bool fast, const int planes, const int half,
                            struct lanes row, const struct gemv_chunk *x, struct gemv_k *k) {
    const size_t plane = gemv_plane(fast);
    __m256i fifth[4], low[3], high[3];
    if (five) lanes_load(row, (size_t)(16 + 16 * half), fifth);
    TL_UNROLL(4)
    for (int part = 0; part < 4; part++) {
        // Q4_K: the halves of 64 values go together; Q5_K: the halves with the same fifth bits
        const int c = five ? part : 2 * half + part / 2, g = five ? half : part % 2;
        const int at = five ? 2 * part % 4 : part / 2 * 2; // of its scales
        const __m256i scale = k->scale[five ? part / 2 : half];
        __m256i v[4];
        lanes_load(row, (size_t)((five ? 48 : 16) + 32 * c + 16 * g), v);
        TL_UNROLL(4)
        for (int i = 0; i < 4; i++) {
            const int8_t *digit = x->digit.bytes[0] + 64 * c + 16 * g + 4 * i;
            const bool first = i == 0 && (five || part % 2 == 0);
            __m256i w = bits_of(v[i], 0, 0x0f);
            if (five) w = _mm256_or_si256(w, bits_of(fifth[i], 2 * part - 4, 0x10));
            gemv_dot(planes, low, w, digit, plane, first);
            w = bits_of(v[i], 4, 0x0f);
            if (five) w = _mm256_or_si256(w, bits_of(fifth[i], 2 * part - 3, 0x10));
            gemv_dot(planes, high, w, digit + 32, plane, first);
        }
        if (!five && part % 2 == 0) continue;
        gemv_end(fast, planes, k, low, bytes_as_words(scale, at, at, false), 2 * c);
        gemv_end(fast, planes, k, high, bytes_as_words(scale, at + 1, at + 1, false), 2 * c + 1);
    }
}

/* Q4_K and Q5_K */
TL_INLINE void gemv_k4(const bool five, const bool fast, const int planes, struct lanes row,
                       const struct gemv_chunk *x, struct gemv_k *k) {
    __m256i head[4];
    lanes_load(row, 0, head);
    from_halves(head[0], &k->d, &k->dmin);
    k->scale[0] = bits_of(head[1], 0, 0x3f);
    k->min[0] = bits_of(head[2], 0, 0x3f);
    k->scale[1] = _mm256_or_si256(bits_of(head[3], 0, 0x0f), bits_of(head[1], 2, 0x30));
    k->min[1] = _mm256_or_si256(bits_of(head[3], 4, 0x0f), bits_of(head[2], 2, 0x30));
    if (five || (fast && planes == MAX_TILE)) {
        for (int half = 0; half < 2; half++) gemv_k4_half(five, fast, planes, half, row, x, k);
    } else { // unrolled, the sums of Q4_K stay in registers
        gemv_k4_half(false, fast, planes, 0, row, x, k);
        gemv_k4_half(false, fast, planes, 1, row, x, k);
    }
}

/* The sub-scales of a group of 16. */
TL_INLINE __m256i gemv_scale(const struct gemv_k *k, const int group, const bool sign) {
    return bytes_as_words(k->scale[group / 4], group % 4, group % 4, sign);
}

/* Q2_K, and Q3_K, which has a third bit. */
TL_INLINE void gemv_k2(const bool third, const bool fast, const int planes, struct lanes row,
                       const struct gemv_chunk *x, struct gemv_k *k) {
    __m256i top[2][4];
    if (third) {
        __m256i t[4], s[3];
        lanes_load(row, 94, t); // two bytes of values, 12 of scales, d
        from_halves(t[3], &k->dmin, &k->d);
        TL_UNROLL(3)
        for (int i = 0; i < 3; i++) {
            s[i] = _mm256_or_si256(_mm256_srli_epi32(t[i], 16), _mm256_slli_epi32(t[i + 1], 16));
        }
        TL_UNROLL(4)
        for (int i = 0; i < 4; i++) {
            __m256i low = bits_of(s[i % 2], i / 2 * 4, 0x0f), up = bits_of(s[2], 2 * i - 4, 0x30);
            k->scale[i] = _mm256_sub_epi8(_mm256_or_si256(low, up), _mm256_set1_epi8(32));
        }
    } else {
        __m256i t[4];
        lanes_load(row, 68, t); // values, d, dmin
        from_halves(t[3], &k->d, &k->dmin);
        lanes_load(row, 0, t);
        TL_UNROLL(4)
        for (int i = 0; i < 4; i++) {
            k->scale[i] = bits_of(t[i], 0, 0x0f);
            k->min[i] = bits_of(t[i], 4, 0x0f);
        }
    }
    if (third) {
        lanes_load(row, 0, top[0]);
        lanes_load(row, 16, top[1]);
    }
    for (int half = 0; half < 2; half++) {
        TL_UNROLL(2)
        for (int g = 0; g < 2; g++) {
            __m256i v[4];
            lanes_load(row, (size_t)((third ? 32 : 16) + 32 * half + 16 * g), v);
            TL_UNROLL(4)
            for (int j = 0; j < 4; j++) {
                const int block = 4 * half + j;
                __m256i a[3];
                TL_UNROLL(4)
                for (int i = 0; i < 4; i++) {
                    __m256i w = bits_of(v[i], 2 * j, 0x03);
                    if (third) w = _mm256_or_si256(w, bits_of(top[g][i], j - 2, 0x04));
                    gemv_dot(planes, a, w, x->digit.bytes[0] + 32 * block + 16 * g + 4 * i,
                             TL_CHUNK, i == 0);
                }
                gemv_end(fast, planes, k, a, gemv_scale(k, 2 * block + g, third), block);
            }
            for (int i = 0; third && i < 4; i++) top[g][i] = _mm256_srli_epi32(top[g][i], 4);
        }
    }
}

/* Q6_K */
TL_INLINE void gemv_k6(const bool fast, const int planes, struct lanes row,
                       const struct gemv_chunk *x, struct gemv_k *k) {
    const size_t plane = gemv_plane(fast);
    k->d = lanes_half(row, 208);
    lanes_load(row, 192, k->scale);
    for (int half = 0; half < 2; half++) {
        TL_UNROLL(2)
        for (int g = 0; g < 2; g++) {
            __m256i top[4];
            lanes_load(row, (size_t)(128 + 32 * half + 16 * g), top);
            TL_UNROLL(2)
            for (int part = 0; part < 2; part++) {
                const int block = 4 * half + part;
                __m256i v[4], low[3], high[3];
                lanes_load(row, (size_t)(64 * half + 32 * part + 16 * g), v);
                TL_UNROLL(4)
                for (int i = 0; i < 4; i++) {
                    const int8_t *digit = x->digit.bytes[0] + 32 * block + 16 * g + 4 * i;
                    __m256i w = _mm256_or_si256(bits_of(v[i], 0, 0x0f),
                                                bits_of(top[i], 2 * part - 4, 0x30));
                    gemv_dot(planes, low, w, digit, plane, i % 2 == 0);
                    w = _mm256_or_si256(bits_of(v[i], 4, 0x0f), bits_of(top[i], 2 * part, 0x30));
                    gemv_dot(planes, high, w, digit + 64, plane, i % 2 == 0);
                    if (i % 2 == 0) continue;
                    gemv_end(fast, planes, k, low, gemv_scale(k, 2 * block + g, true), block);
                    gemv_end(fast, planes, k, high, gemv_scale(k, 2 * block + 4 + g, true),
                             block + 2);
                    // otherwise gcc delays the additions and spills registers
                    for (int p = 0; !fast && p < planes; p++) KEEP(k->sum[p]);
                }
            }
        }
    }
}

/* The exact sum of bytes (minima or scales) times sums of activations, in float64. */
TL_INLINE void gemv_k_mins(const struct gemv_chunk *x, const __m256i *of, const bool wide,
                           const bool sign, __m256d out[2]) {
    __m256i low = _mm256_setzero_si256(), high = low;
    for (int i = 0; i < (wide ? 4 : 8); i++) {
        const __m256i pair = bytes_as_words(of[i / 2], i % 2 * 2, i % 2 * 2 + 1, sign);
        const int32_t *sum = wide ? x->sum32[i] : x->sum16[i];
        low = _mm256_add_epi32(low, mul_words_256(pair, set_int(sum[0])));
        high = _mm256_add_epi32(high, mul_words_256(pair, set_int(sum[1])));
    }
    TL_UNROLL(2)
    for (int half = 0; half < 2; half++) {
        out[half] = _mm256_fmadd_pd(_mm256_cvtepi32_pd(half_of(high, half)),
                                    _mm256_set1_pd(wide ? 32768 : 16384),
                                    _mm256_cvtepi32_pd(half_of(low, half)));
    }
}

TL_INLINE void gemv_k_exact(const struct traits traits, const struct gemv_chunk *x,
                            const struct gemv_k *k, struct gemv_sums *sums) {
    __m256d mins[2], total[2], *sum[2] = {&sums->low, &sums->high};
    TL_UNROLL(2)
    for (int half = 0; half < 2; half++) {
        total[half] = three_digits(half_of(k->sum[0], half), half_of(k->sum[1], half),
                                   half_of(k->sum[2], half));
    }
    if (traits.offset != 0) {
        gemv_k_mins(x, k->scale, false, true, mins);
        for (int half = 0; half < 2; half++) {
            total[half] = _mm256_fmadd_pd(mins[half], _mm256_set1_pd(-traits.offset), total[half]);
        }
    }
    for (int half = 0; half < 2; half++) {
        __m256d d = _mm256_mul_pd(doubles_of(k->d, half), _mm256_set1_pd(x->dx));
        *sum[half] = _mm256_fmadd_pd(d, total[half], *sum[half]);
    }
    if (!traits.has_min) return;
    gemv_k_mins(x, k->min, traits.wide, false, mins);
    for (int half = 0; half < 2; half++) {
        __m256d dmin = _mm256_mul_pd(doubles_of(k->dmin, half), _mm256_set1_pd(-x->dx));
        *sum[half] = _mm256_fmadd_pd(dmin, mins[half], *sum[half]);
    }
}

/* One of the tokens of a tile; sum_of_block: that of its first block. */
TL_INLINE void gemv_k_fast(const struct traits traits, const int tokens, const struct gemv_chunk *x,
                           const struct gemv_k *k, const __m256i *sum_of_block,
                           struct gemv_sums *sums) {
    __m256 total = _mm256_setzero_ps(), mins = total;
    TL_UNROLL(8)
    for (int b = 0; b < 8; b++) {
        const int at = b % 2 * 2;
        const __m256 scale = _mm256_set1_ps(x->scale[b]);
        __m256i sum = sum_of_block[b * tokens];
        if (traits.offset != 0) {
            __m256i pair = bytes_as_words(k->scale[b / 2], at, at + 1, true);
            pair = mul_words_256(pair, set_int(x->sum16[b][0]));
            sum = _mm256_sub_epi32(sum, _mm256_slli_epi32(pair, traits.offset == 32 ? 5 : 2));
        }
        total = _mm256_fmadd_ps(_mm256_cvtepi32_ps(sum), scale, total);
        if (traits.has_min && traits.wide) {
            __m256 min = byte_as_float(k->min[b / 4], b % 4);
            mins = _mm256_fmadd_ps(min, _mm256_set1_ps(x->scaled[b]), mins);
        } else if (traits.has_min) {
            __m256i pair = bytes_as_words(k->min[b / 2], at, at + 1, false);
            pair = mul_words_256(pair, set_int(x->sum16[b][0]));
            mins = _mm256_fmadd_ps(_mm256_cvtepi32_ps(pair), scale, mins);
        }
    }
    sums->y = _mm256_fmadd_ps(k->d, total, sums->y);
    if (!traits.has_min) return;
    mins = _mm256_mul_ps(mins, _mm256_set1_ps(-1));
    sums->y = _mm256_fmadd_ps(k->dmin, mins, sums->y);
}

/* ---- weights of eight bits: IQ4_NL and IQ4_XS ---- */

/* A table of what nibbles stand for, plus an offset that makes them unsigned. */
TL_INLINE __m256i gemv_table(const int8_t *values, const int offset) {
    uint8_t table[16];
    for (int i = 0; i < 16; i++) table[i] = (uint8_t)(values[i] + offset);
    return _mm256_broadcastsi128_si256(load_128(table));
}

/* Dword i of a block: the first four are the low nibbles. */
TL_INLINE __m256i looked_up(__m256i table, const __m256i nibbles[4], const int i) {
    return _mm256_shuffle_epi8(table, bits_of(nibbles[i % 4], i / 4 * 4, 0x0f));
}

/* Fast: the sum of a block, times a sub-scale that is twice in every lane. Neither a product with
   an absolute value nor the sum of two exceeds int16, because no activation is -128. */
TL_INLINE __m256i gemv_signed_bytes(__m256i table, const __m256i nibbles[4], const int8_t *x,
                                    __m256i scale) {
    __m256i sum = _mm256_setzero_si256();
    TL_UNROLL(8)
    for (int i = 0; i < 8; i++) {
        const __m256i w = looked_up(table, nibbles, i);
        int32_t four;
        memcpy(&four, x + 4 * i, 4);
        const __m256i products =
            mul_bytes_256(_mm256_abs_epi8(w), _mm256_sign_epi8(set_int(four), w));
        sum = _mm256_add_epi32(sum, mul_words_256(products, scale));
    }
    return sum;
}

/* Exact: the sums of a block with both digits. */
TL_INLINE void gemv_signed_words(__m256i table, const __m256i nibbles[4],
                                 const struct gemv_chunk *x, const int block, __m256i sum[2]) {
    const __m256i zero = _mm256_setzero_si256();
    __m256i a[2][2] = {{zero, zero}, {zero, zero}}; // two rows in each half, and the next two
    TL_UNROLL(8)
    for (int i = 0; i < 8; i++) {
        const __m256i w = looked_up(table, nibbles, i), sign = _mm256_cmpgt_epi8(zero, w);
        const __m256i part[2] = {_mm256_unpacklo_epi8(w, sign), _mm256_unpackhi_epi8(w, sign)};
        TL_UNROLL(2)
        for (int p = 0; p < 2; p++) {
            int64_t four;
            memcpy(&four, x->digit.words[p] + 32 * block + 4 * i, 8);
            const __m256i digits = _mm256_set1_epi64x(four);
            for (int j = 0; j < 2; j++) {
                a[p][j] = _mm256_add_epi32(a[p][j], mul_words_256(part[j], digits));
                KEEP(a[p][j]);
            }
        }
    }
    for (int p = 0; p < 2; p++) sum[p] = _mm256_hadd_epi32(a[p][0], a[p][1]);
}

/* IQ4_XS */
TL_INLINE void gemv_iq4_xs(const bool fast, struct lanes row, const struct gemv_chunk *x,
                           struct gemv_k *k) {
    const __m256i table = gemv_table(tl_codebook_iq4, 0);
    __m256i head[4];
    lanes_load(row, 0, head);
    from_halves(head[0], &k->d, &k->dmin);
    for (int b = 0; b < 8; b++) {
        __m256i v[4], sum[2];
        __m256i scale = _mm256_and_si256(head[1], set_int(0x0f));
        __m256i two = _mm256_and_si256(_mm256_srli_epi32(head[0], 16), set_int(0x03));
        head[0] = _mm256_srli_epi32(head[0], 2); // the sub-scale of the next block
        head[1] = _mm256_srli_epi32(head[1], 4);
        scale = _mm256_or_si256(scale, _mm256_slli_epi32(two, 4));
        scale = _mm256_sub_epi32(scale, set_int(32));
        lanes_load(row, (size_t)(8 + 16 * b), v);
        if (fast) {
            scale = _mm256_blend_epi16(scale, _mm256_slli_epi32(scale, 16), 0xaa);
            k->sum[b] = gemv_signed_bytes(table, v, x->digit.bytes[0] + 32 * b, scale);
            continue;
        }
        gemv_signed_words(table, v, x, b, sum);
        for (int p = 0; p < 2; p++) {
            k->sum[p] = _mm256_add_epi32(k->sum[p], _mm256_mullo_epi32(sum[p], scale));
        }
    }
}

TL_INLINE void gemv_iq4_xs_chunk(const bool fast, struct lanes row, const struct gemv_chunk *x,
                                 struct gemv_sums *sums) {
    struct gemv_k k;
    for (int i = 0; i < 8; i++) k.sum[i] = _mm256_setzero_si256();
    gemv_iq4_xs(fast, row, x, &k);
    if (fast) {
        gemv_k_fast(traits_of(TL_TYPE_IQ4_XS), 1, x, &k, k.sum, sums);
    } else {
        gemv_end_words(k.sum, k.d, x, sums);
    }
}

/* ---- types of 32 ---- */

/* Called after a block: adds it to *u, the sum of its chunk in exact mode, of its row in fast mode.
   sum: of each digit. */
TL_INLINE void gemv_block_end(const struct traits traits, const bool fast, const __m256i *sum,
                              __m256 d, __m256 m, const struct gemv_chunk *x, int block,
                              __m256 *u) {
    const int shift = traits.offset == 16 ? 4 : 3;
    __m256i offset = set_int(x->sum[block]);
    if (fast) {
        __m256i s = sum[0];
        if (traits.offset == MXFP4_OFFSET) {
            s = _mm256_sub_epi32(s, _mm256_mullo_epi32(offset, set_int(MXFP4_OFFSET)));
        } else if (traits.offset != 0) {
            s = _mm256_sub_epi32(s, _mm256_slli_epi32(offset, shift));
        }
        __m256 scaled = _mm256_mul_ps(_mm256_cvtepi32_ps(s), _mm256_set1_ps(x->scale[block]));
        *u = _mm256_fmadd_ps(scaled, d, *u);
    } else {
        // T = 4096 high + low, rounded once; see digits_to_f32
        __m256i e = _mm256_add_epi32(_mm256_slli_epi32(sum[1], 8), sum[0]);
        __m256i carry = _mm256_srai_epi32(_mm256_add_epi32(e, set_int(2048)), 12);
        __m256i high = _mm256_add_epi32(_mm256_slli_epi32(sum[2], 4), carry);
        __m256i low = _mm256_sub_epi32(e, _mm256_slli_epi32(carry, 12));
        if (traits.offset != 0) {
            high = _mm256_sub_epi32(high, _mm256_srai_epi32(offset, 12 - shift));
            offset = _mm256_and_si256(offset, set_int((1 << (12 - shift)) - 1));
            low = _mm256_sub_epi32(low, _mm256_slli_epi32(offset, shift));
        }
        __m256 t = _mm256_fmadd_ps(_mm256_cvtepi32_ps(high), _mm256_set1_ps(4096),
                                   _mm256_cvtepi32_ps(low));
        *u = _mm256_fmadd_ps(t, d, *u);
    }
    if (traits.has_min) *u = _mm256_fmadd_ps(_mm256_set1_ps(x->scaled[block]), m, *u);
}

/* Bits i, i + 1, j and j + 1 of every dword as bit 4 of its bytes; i and j are even. */
TL_INLINE __m256i fifth_bits(__m256i x, const int i, const int j) {
    const int32_t order = i / 8 * 0x0101 + j / 8 * 0x01010000;
    const __m256i index =
        _mm256_setr_epi32(order, order + 0x04040404, order + 0x08080808, order + 0x0c0c0c0c, order,
                          order + 0x04040404, order + 0x08080808, order + 0x0c0c0c0c);
    const __m256i bit = set_int((int32_t)(0x0201u << i % 8 | 0x02010000u << j % 8));
    x = _mm256_and_si256(_mm256_shuffle_epi8(x, index), bit);
    return _mm256_and_si256(_mm256_cmpeq_epi8(x, bit), _mm256_set1_epi8(0x10));
}

/*
 * The sums of one block of nibbles. `seam`: its bytes begin in the middle of a dword. Then q[0]
 * holds its last two bytes and its first two, and x->seams the digits for them. `five`: with fifth
 * bits. table: NULL, or what the nibbles stand for, which is less than 32.
 */
TL_INLINE void gemv_nibbles(const bool seam, const bool five, const __m256i *table, const bool fast,
                            const int planes, const __m256i q[4], __m256i fifth,
                            const struct gemv_chunk *x, int block, __m256i *sum) {
    const __m256i ones = _mm256_set1_epi16(1);
    const bool halves = five || table != NULL; // sixteen products exceed int16
    __m256i a[3];
    TL_UNROLL(4)
    for (int i = 0; i < 4; i++) {
        const int at = seam ? 4 * i - 2 : 4 * i, seam_at = at < 0 ? 14 : at;
        const int8_t *low = x->digit.bytes[0] + 32 * block + at, *high = low + 16;
        const size_t plane = !fast && seam && i == 0 ? sizeof(x->seams[0]) : gemv_plane(fast);
        if (seam && i == 0) {
            low = (const int8_t *)&x->seams[0][block];
            high = low + 4;
        }
        __m256i w = bits_of(q[i], 0, 0x0f);
        if (five) w = _mm256_or_si256(w, fifth_bits(fifth, seam_at, at + 2));
        if (table != NULL) w = _mm256_shuffle_epi8(*table, w);
        gemv_dot(planes, a, w, low, plane, i == 0 || (halves && i == 2));
        w = bits_of(q[i], 4, 0x0f);
        if (table != NULL) w = _mm256_shuffle_epi8(*table, w);
        if (five) w = _mm256_or_si256(w, fifth_bits(fifth, seam_at + 16, at + 18));
        gemv_dot(planes, a, w, high, plane, false);
        for (int p = 0; p < planes; p++) {
            if (halves && i == 1) sum[p] = mul_words_256(a[p], ones);
            if (!halves && i == 3) sum[p] = mul_words_256(a[p], ones);
            if (halves && i == 3) sum[p] = _mm256_add_epi32(sum[p], mul_words_256(a[p], ones));
        }
    }
}

/* Q4_0, Q4_1, Q5_0, Q5_1. Eight blocks are 9 to 12 times 16 bytes; a pair of blocks is 9 to 12
   dwords. */
TL_INLINE void gemv_nibbles_chunk(const enum tl_type id, const bool fast, const int tile,
                                  struct lanes row, const struct gemv_chunk *x, __m256 *u) {
    const struct traits traits = traits_of(id);
    const bool five = id == TL_TYPE_Q5_0 || id == TL_TYPE_Q5_1, seam = !traits.has_min;
    const int pair = 8 + (seam ? 1 : 2) + (five ? 2 : 0), planes = fast ? tile : 3;
    __m256i dwords[48], sum[3];
    for (int i = 0; i < pair; i++) lanes_load(row, (size_t)(16 * i), dwords + 4 * i);
    for (int i = 0; i < 4; i++) {
        const __m256i *v = dwords + pair * i;
        const int half = five ? 5 : 4; // has the end of the first block and the d of the second
        __m256i q[4], fifth = v[0];
        __m256 d[2], m[2];
        if (seam) {
            from_halves(_mm256_blend_epi16(v[0], v[half], 0xaa), &d[0], &d[1]);
            m[0] = m[1] = d[0];
            q[0] = _mm256_blend_epi16(v[half], v[half - 4], 0xaa);
            if (five) {
                fifth = _mm256_or_si256(_mm256_srli_epi32(v[0], 16), _mm256_slli_epi32(v[1], 16));
            }
        } else {
            from_halves(v[0], &d[0], &m[0]);
            from_halves(v[pair / 2], &d[1], &m[1]);
            q[0] = v[five ? 2 : 1];
            if (five) fifth = v[1];
        }
        for (int j = 1; j < 4; j++) q[j] = v[(seam ? half - 4 : five ? 2 : 1) + j];
        gemv_nibbles(seam, five, NULL, fast, planes, q, fifth, x, 2 * i, sum);
        for (int t = 0; t < tile; t++) {
            gemv_block_end(traits, fast, sum + t, d[0], m[0], x + t, 2 * i, u + t);
        }
        gemv_nibbles(false, five, NULL, fast, planes, v + pair - 4, v[pair - 5], x, 2 * i + 1, sum);
        for (int t = 0; t < tile; t++) {
            gemv_block_end(traits, fast, sum + t, d[1], m[1], x + t, 2 * i + 1, u + t);
        }
    }
}

/* The four dwords that begin at byte `at` of dwords that begin at 0. */
TL_INLINE void dwords_at(const __m256i *dwords, const int at, __m256i q[4]) {
    const int n = at % 4;
    TL_UNROLL(4)
    for (int i = 0; i < 4; i++) {
        const __m256i *x = dwords + at / 4 + i;
        q[i] = n == 0 ? x[0]
                      : _mm256_or_si256(_mm256_srli_epi32(x[0], 8 * n),
                                        _mm256_slli_epi32(x[1], 32 - 8 * n));
    }
}

/* IQ4_NL */
TL_INLINE __m256 gemv_iq4_nl_chunk(const bool fast, struct lanes row, const struct gemv_chunk *x,
                                   __m256 u) {
    const __m256i table = gemv_table(tl_codebook_iq4, 0), ones = _mm256_set1_epi16(1);
    __m256i dwords[36];
    for (int i = 0; i < 9; i++) lanes_load(row, (size_t)(16 * i), dwords + 4 * i);
    for (int i = 0; i < 4; i++) {
        const __m256i *v = dwords + 9 * i;
        __m256 d[2];
        from_halves(_mm256_blend_epi16(v[0], v[4], 0xaa), &d[0], &d[1]);
        TL_UNROLL(2)
        for (int j = 0; j < 2; j++) {
            const int block = 2 * i + j;
            __m256i q[4], sum[2];
            __m256 t;
            dwords_at(v, 18 * j + 2, q);
            if (fast) {
                sum[0] = gemv_signed_bytes(table, q, x->digit.bytes[0] + 32 * block, ones);
                t = _mm256_mul_ps(_mm256_cvtepi32_ps(sum[0]), _mm256_set1_ps(x->scale[block]));
            } else {
                gemv_signed_words(table, q, x, block, sum);
                t = _mm256_fmadd_ps(_mm256_cvtepi32_ps(sum[1]), _mm256_set1_ps(4096),
                                    _mm256_cvtepi32_ps(sum[0]));
            }
            u = _mm256_fmadd_ps(t, d[j], u);
        }
    }
    return u;
}

/* 2^(e - 128) in every lane: see unpack_codebook.c. */
TL_INLINE __m256 lanes_power_of_two(__m256i e) {
    const __m256i normal = _mm256_sub_epi32(_mm256_slli_epi32(e, 23), set_int(1 << 23));
    const __m256i subnormal = _mm256_add_epi32(_mm256_slli_epi32(e, 21), set_int(1 << 21));
    return _mm256_castsi256_ps(_mm256_max_epi32(normal, subnormal));
}

TL_INLINE void gemv_mxfp4_chunk(const bool fast, struct lanes row, const struct gemv_chunk *x,
                                struct gemv_sums *sums) {
    const __m256i table = gemv_table(tl_codebook_mxfp4, MXFP4_OFFSET);
    __m256d u[2] = {_mm256_setzero_pd(), _mm256_setzero_pd()};
    __m256i dwords[34];
    for (int i = 0; i < 8; i++) lanes_load(row, (size_t)(16 * i), dwords + 4 * i);
    lanes_load(row, 120, dwords + 30);     // two of these are there already
    for (int four = 0; four < 2; four++) { // 17 dwords
        TL_UNROLL(4)
        for (int i = 0; i < 4; i++) {
            const __m256i *v = dwords + 17 * four;
            const int planes = fast ? 1 : 3, at = 17 * i, b = 4 * four + i;
            const __m256i e = _mm256_srli_epi32(v[at / 4], 8 * (at % 4));
            const __m256 d = lanes_power_of_two(_mm256_and_si256(e, set_int(0xff)));
            __m256i q[4], sum[3];
            dwords_at(v, at + 1, q);
            gemv_nibbles(false, false, &table, fast, planes, q, q[0], x, b, sum);
            if (fast) {
                gemv_block_end(traits_of(TL_TYPE_MXFP4), true, sum, d, d, x, b, &sums->y);
                continue;
            }
            // T = 256 high + low - offset * sum, exact in float64
            const __m256i high = _mm256_add_epi32(_mm256_slli_epi32(sum[2], 8), sum[1]);
            const __m256d offset = _mm256_set1_pd(-MXFP4_OFFSET * (double)x->sum[b]);
            TL_UNROLL(2)
            for (int half = 0; half < 2; half++) {
                __m256d t = _mm256_fmadd_pd(_mm256_cvtepi32_pd(half_of(high, half)),
                                            _mm256_set1_pd(256), offset);
                t = _mm256_add_pd(t, _mm256_cvtepi32_pd(half_of(sum[0], half)));
                u[half] = _mm256_fmadd_pd(t, doubles_of(d, half), u[half]);
            }
        }
    }
    if (fast) return;
    sums->low = _mm256_fmadd_pd(u[0], _mm256_set1_pd(x->dx), sums->low);
    sums->high = _mm256_fmadd_pd(u[1], _mm256_set1_pd(x->dx), sums->high);
}

/* Q8_0: as int16, row by row; only the sums of eight rows are transposed. */
TL_INLINE void gemv_q8_0_chunk(const bool fast, const int tile, struct lanes row,
                               const struct gemv_chunk *x, __m256 *u) {
    for (int b = 0; b < 8; b++) {
        const size_t at = (size_t)(34 * b);
        const int planes = fast ? tile : 2;
        const __m256 d = lanes_half(row, at);
        __m256i digit[2][2], sum[2][2];
        TL_UNROLL(2)
        for (int p = 0; p < planes; p++) {
            const int16_t *words = fast ? x[p].digit.words[0] : x->digit.words[p];
            digit[p][0] = load_256(words + 32 * b);
            digit[p][1] = load_256(words + 32 * b + 16);
            KEEP(digit[p][0]); // in registers, because loads limit this loop
            KEEP(digit[p][1]);
        }
        TL_UNROLL(2)
        for (int half = 0; half < 2; half++) {
            __m256i part[2][4];
            TL_UNROLL(4)
            for (int r = 0; r < 4; r++) {
                const uint8_t *weights = lanes_row(row, 4 * half + r) + at + 2;
                const __m256i first = _mm256_cvtepi8_epi16(load_128(weights));
                const __m256i last = _mm256_cvtepi8_epi16(load_128(weights + 16));
                TL_UNROLL(2)
                for (int p = 0; p < planes; p++) {
                    part[p][r] = _mm256_add_epi32(mul_words_256(first, digit[p][0]),
                                                  mul_words_256(last, digit[p][1]));
                }
            }
            for (int p = 0; p < planes; p++) sum[p][half] = sum_halves(part[p]);
        }
        for (int t = 0; t < tile; t++) {
            __m256 s = sum_rows(sum[t]);
            if (fast) {
                s = _mm256_mul_ps(s, _mm256_set1_ps(x[t].scale[b]));
            } else {
                s = _mm256_fmadd_ps(sum_rows(sum[1]), _mm256_set1_ps(4096), s);
            }
            u[t] = _mm256_fmadd_ps(s, d, u[t]);
        }
    }
}

/* ---- all types ---- */

/* Prefetches a chunk of eight rows. */
TL_INLINE void gemv_prefetch_chunk(const uint8_t *first, size_t stride, size_t bytes) {
    for (size_t r = 0; r < GEMV_LANES; r++) prefetch_bytes(first + r * stride, bytes);
}

/* One chunk of eight rows: a function for each type, see gemv_job_template.h. */
#define GEMV_CHUNK(name, call)                                                                     \
    TL_INLINE void gemv_chunk_##name(const bool fast, const int tile, struct lanes row,            \
                                     const struct gemv_chunk *x, struct gemv_sums *sums) {         \
        (void)tile;                                                                                \
        call;                                                                                      \
    }

/* A K type: `call` sets the sums of k. */
#define GEMV_CHUNK_K(name, call)                                                                   \
    TL_INLINE void gemv_chunk_##name(const bool fast, const int tile, struct lanes row,            \
                                     const struct gemv_chunk *x, struct gemv_sums *sums) {         \
        const int planes = fast ? tile : 3;                                                        \
        struct gemv_k k;                                                                           \
        for (int i = 0; i < (fast ? 8 * tile : 3); i++) k.sum[i] = _mm256_setzero_si256();         \
        call;                                                                                      \
        if (fast) {                                                                                \
            TL_UNROLL(2)                                                                           \
            for (int t = 0; t < tile; t++) {                                                       \
                gemv_k_fast(traits_of(TL_TYPE_##name), tile, x + t, &k, k.sum + t, sums + t);      \
            }                                                                                      \
        } else {                                                                                   \
            gemv_k_exact(traits_of(TL_TYPE_##name), x, &k, sums);                                  \
        }                                                                                          \
    }

/* A type of 32: `call` adds the sums of the chunk to u. */
#define GEMV_CHUNK_32(name, call)                                                                  \
    TL_INLINE void gemv_chunk_##name(const bool fast, const int tile, struct lanes row,            \
                                     const struct gemv_chunk *x, struct gemv_sums *sums) {         \
        __m256 u[MAX_TILE];                                                                        \
        for (int t = 0; t < tile; t++) u[t] = fast ? sums[t].y : _mm256_setzero_ps();              \
        call;                                                                                      \
        if (fast) {                                                                                \
            for (int t = 0; t < tile; t++) sums[t].y = u[t];                                       \
        } else {                                                                                   \
            const __m256d dx = _mm256_set1_pd(x->dx);                                              \
            sums->low = _mm256_fmadd_pd(doubles_of(u[0], 0), dx, sums->low);                       \
            sums->high = _mm256_fmadd_pd(doubles_of(u[0], 1), dx, sums->high);                     \
        }                                                                                          \
    }
#define GEMV_CHUNK_NIBBLES(name)                                                                   \
    GEMV_CHUNK_32(name, gemv_nibbles_chunk(TL_TYPE_##name, fast, tile, row, x, u))
#define GEMV_CHUNK_GRID(name) GEMV_CHUNK(name, grid_chunk(TL_TYPE_##name, fast, row, x, sums))
GEMV_CHUNK_K(Q2_K, gemv_k2(false, fast, planes, row, x, &k))
GEMV_CHUNK_K(Q3_K, gemv_k2(true, fast, planes, row, x, &k))
GEMV_CHUNK_K(Q4_K, gemv_k4(false, fast, planes, row, x, &k))
GEMV_CHUNK_K(Q5_K, gemv_k4(true, fast, planes, row, x, &k))
GEMV_CHUNK_K(Q6_K, gemv_k6(fast, planes, row, x, &k))
GEMV_CHUNK(IQ4_XS, gemv_iq4_xs_chunk(fast, row, x, sums))
GEMV_CHUNK_NIBBLES(Q4_0)
GEMV_CHUNK_NIBBLES(Q4_1)
GEMV_CHUNK_NIBBLES(Q5_0)
GEMV_CHUNK_NIBBLES(Q5_1)
GEMV_CHUNK_32(Q8_0, gemv_q8_0_chunk(fast, tile, row, x, u))
GEMV_CHUNK_32(IQ4_NL, u[0] = gemv_iq4_nl_chunk(fast, row, x, u[0]))
GEMV_CHUNK(MXFP4, gemv_mxfp4_chunk(fast, row, x, sums))
GEMV_CHUNK_GRID(IQ2_XXS)
GEMV_CHUNK_GRID(IQ2_XS)
GEMV_CHUNK_GRID(IQ2_S)
GEMV_CHUNK_GRID(IQ3_XXS)
GEMV_CHUNK_GRID(IQ3_S)

/* The types of which two tokens are multiplied like one, in fast mode. Each adds to the time that
   the compiler takes. */
#define GEMV_TILE_TYPES(type) type(Q4_0) type(Q8_0) type(Q4_K) type(Q5_K) type(Q6_K)

/* Of the weights that the tiles of a matmul read, one tile after the other. */
#define GEMV_CACHED_BYTES ((size_t)1 << 18)

/* One function for each type, mode and tile, so that all three are constants inside. */
#define GEMV_FUNCTION(name, fast, tile)                                                            \
    static void gemv_##name##_##fast##_##tile(struct gemv_job *j) {                                \
        const size_t chunks = j->chunks, stride = j->per_lane * j->row_bytes;                      \
        const struct gemv_chunk *x = j->packed;                                                    \
        for (size_t i = 0; i < j->per_lane; i++) {                                                 \
            struct gemv_sums sums[tile];                                                           \
            for (int t = 0; t < tile; t++) {                                                       \
                sums[t].low = sums[t].high = _mm256_setzero_pd();                                  \
                sums[t].y = _mm256_setzero_ps();                                                   \
            }                                                                                      \
            for (size_t c = 0; c < chunks; c++) {                                                  \
                const uint8_t *src = j->first + i * j->row_bytes + c * j->chunk_bytes;             \
                struct lanes lanes = lanes_at(src, stride);                                        \
                if (c >= j->whole) {                                                               \
                    gemv_copy(j, i, c);                                                            \
                    lanes = lanes_at(j->copy[0], sizeof(j->copy[0]));                              \
                } else {                                                                           \
                    gemv_prefetch_chunk(src + gemv_ahead(j, i, c), stride, j->chunk_bytes);        \
                }                                                                                  \
                gemv_chunk_##name(fast, tile, lanes, x + c * j->side, sums);                       \
            }                                                                                      \
            for (int t = 0; t < tile; t++) {                                                       \
                if (!fast) {                                                                       \
                    sums[t].y = _mm256_set_m128(_mm256_cvtpd_ps(sums[t].high),                     \
                                                _mm256_cvtpd_ps(sums[t].low));                     \
                }                                                                                  \
                _mm256_storeu_ps(j->out[t], sums[t].y);                                            \
            }                                                                                      \
            gemv_store(j, i);                                                                      \
        }                                                                                          \
    }
#define GEMV_DEFINE(name) GEMV_FUNCTION(name, 0, 1) GEMV_FUNCTION(name, 1, 1)
#define GEMV_DEFINE_TILE(name) GEMV_FUNCTION(name, 1, 2)
GEMV_TYPES(GEMV_DEFINE)
GEMV_TILE_TYPES(GEMV_DEFINE_TILE)

static gemv_function *gemv_find(enum tl_type id, bool fast, size_t tile) {
#define GEMV_CASE(name)                                                                            \
    case TL_TYPE_##name:                                                                           \
        return fast ? gemv_##name##_1_1 : gemv_##name##_0_1;
#define GEMV_CASE_TILE(name)                                                                       \
    case TL_TYPE_##name:                                                                           \
        return gemv_##name##_1_2;
    if (tile > 1) {
        switch (id) {
            GEMV_TILE_TYPES(GEMV_CASE_TILE)
        default:
            return NULL;
        }
    }
    switch (id) {
        GEMV_TYPES(GEMV_CASE)
    default:
        return NULL;
    }
#undef GEMV_CASE
#undef GEMV_CASE_TILE
}

/* The most tokens of a type that take less time two by two, or one by one, than in a panel. */
static size_t gemv_most(const struct tl_type_info *type, bool fast) {
    const enum tl_type id = type_id(type);
    if (!gemv_listed(id)) return 0;
    if (id == TL_TYPE_IQ2_XXS || id == TL_TYPE_IQ2_XS || id == TL_TYPE_IQ2_S ||
        id == TL_TYPE_IQ3_XXS || id == TL_TYPE_IQ3_S) {
        return 4; // they take long to unpack
    }
    if (fast) return gemv_find(id, true, MAX_TILE) != NULL ? 4 : 2;
    return id == TL_TYPE_Q6_K || id == TL_TYPE_Q8_0 ? 2 : 1;
}

static void gemv_matmul(enum matmul_format format, const struct tl_matrix *w, size_t row0,
                        size_t row1, const void *packed, size_t tokens, float *y, size_t y_stride,
                        void *scratch) {
    const bool fast = gemv_is_fast(format);
    const size_t side = gemv_side(format, tokens);
    const size_t chunks = round_up(w->cols, TL_CHUNK) / TL_CHUNK;
    gemv_function *function = gemv_find(type_id(w->type), fast, side);
    const size_t tile = function != NULL ? side : 1;
    // of several tiles, each reads some rows, and the next one reads them from a cache
    const size_t some = TL_MAX(GEMV_CACHED_BYTES / w->row_bytes / 32 * 32, (size_t)32);
    const size_t step = tokens <= tile ? row1 - row0 : some;
    struct gemv_job job; // an initializer would clear its buffers, too
    (void)scratch;
    if (function == NULL) function = gemv_find(type_id(w->type), fast, 1);
    job.ahead = PREFETCH_BYTES;
    job.side = side;
    for (size_t row = row0; row < row1; row += step) {
        for (size_t t = 0; t < tokens; t += tile) {
            const struct gemv_chunk *x = packed;
            x += t / side * side * chunks + t % side;
            job.tokens = TL_MIN(tokens - t, tile);
            gemv_run(function, &job, w, row, TL_MIN(row + step, row1), x, y + t * y_stride,
                     y_stride);
        }
    }
}

static void gemv_prefetch(const struct tl_matrix *w, size_t row0, size_t row1) {
    lanes_prefetch(w, row0, row1, GEMV_LANES);
}
