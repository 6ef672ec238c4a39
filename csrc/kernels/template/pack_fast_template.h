/*
 * pack_fast_template.h - packed activations of fast mode: int8 (words: int16) with a float32 scale
 * for each 32 values (docs/numerics.md, section 4).
 *
 * Needs:   panel_template.h
 * Defines: struct fast_record, fast_record_bytes, fast_record_at, fast_round, fast_pack_record
 */

struct fast_record {
    int32_t *digits; // [steps][tokens], 4 bytes each
    float *scale;    // [8][tokens]
    float *sum;      // [8][tokens]: scale * the sum of the block
    int32_t *pairs;  // [8][tokens]: int16 pairs, sums over 16 values
    int32_t *groups; // [16][tokens]: the same as int32
    int32_t *words;  // [16][tokens]: int16 pairs, of each 16 values those of each pair of words
};

TL_INLINE size_t fast_record_bytes(const bool bytes, const size_t tokens) {
    return (((size_t)steps_of(bytes) + 56) * tokens * 4 + 63) & ~(size_t)63;
}

TL_INLINE struct fast_record fast_record_at(const void *packed, const bool bytes,
                                            const size_t tokens, size_t index) {
    struct fast_record r;
    r.digits = (int32_t *)((uintptr_t)packed + index * fast_record_bytes(bytes, tokens));
    r.scale = (float *)(r.digits + (size_t)steps_of(bytes) * tokens);
    r.sum = r.scale + 8 * tokens;
    r.pairs = (int32_t *)(r.sum + 8 * tokens);
    r.groups = r.pairs + 8 * tokens;
    r.words = r.groups + 16 * tokens;
    return r;
}

TL_INLINE v16 v16_from_bits(v16i x) {
    return v16_load_f32(&x);
}

/*
 * The factors by which the blocks of a chunk are multiplied before they are rounded. Each is the
 * one with the least sum of squared errors among those that map the largest value to one of the
 * limits. x[k] holds value k of each half of a block: lanes 2 b and 2 b + 1 are block b. base is
 * 128 / the largest value.
 */
TL_INLINE v16 fast_factor(const v16 x[16], v16 base) {
    v16 best = v16_set1(INFINITY), factor = v16_set1(0);
    for (int first = 0; first < FAST_TRIES; first += 2 /* side by side */) {
        v16 f[2], error[2];
        for (int i = 0; i < 2; i++) {
            f[i] = v16_mul(base, v16_set1((float)(FAST_LIMIT - first - i) / 128));
            error[i] = v16_set1(0);
        }
        TL_UNROLL(16)
        for (int k = 0; k < 16; k++) {
            TL_UNROLL(16)
            for (int i = 0; i < 2; i++) {
                v16 y = v16_mul(x[k], f[i]);
                v16 e = v16_sub(y, v16_rint(y));
                error[i] = v16_fma(e, e, error[i]);
            }
        }
        TL_UNROLL(16)
        for (int i = 0; i < 2; i++) {
            v16 all = v16_add(error[i], v16_swap_pairs(error[i]));
            all = v16_mul(all, v16_set1(fast_weight(FAST_LIMIT - first - i)));
            factor = v16_if_less(all, best, f[i], factor);
            best = v16_if_less(all, best, all, best);
        }
    }
    return factor;
}

/*
 * The integers (int8, or int16) of up to 256 values and their scales: lane h of q[k] is value 16 h
 * + k; a block of 32 has two lanes of scales, which are equal.
 */
TL_INLINE void fast_round(const bool int8, const float *values, size_t n, v16i q[16],
                          float scale[16]) {
    const v16 zero = v16_set1(0), infinity = v16_set1(INFINITY);
    float padded[TL_CHUNK];
    v16 x[16], most, base, factor, square = zero, rest = zero;
    v16i bits[16], largest = v16i_set1(0);
    if (n < TL_CHUNK) {
        memset(padded, 0, sizeof(padded));
        memcpy(padded, values, n * sizeof(float));
        values = padded;
    }
    for (int i = 0; i < 16; i++) bits[i] = v16i_bits(v16_load(values + 16 * i));
    v16i_transpose(bits);
    for (int k = 0; k < 16; k++) {
        x[k] = v16_from_bits(bits[k]);
        largest = v16i_max(largest, v16i_abs_bits(x[k]));
    }
    most = v16_from_bits(largest);
    most = v16_from_bits(v16i_max(largest, v16i_bits(v16_swap_pairs(most))));
    // a block with a NaN or an infinity becomes all zeros
    for (int k = 0; k < 16; k++) x[k] = v16_if_less(most, infinity, x[k], zero);
    base = v16_if_less(most, v16_set1(FAST_LEAST), zero, v16_div(v16_set1(128), most));
    base = v16_if_less(most, infinity, base, zero);
    factor = int8 ? fast_factor(x, base) : v16_mul(base, v16_set1(FAST_LIMIT_WORDS / 128));
    for (int k = 0; k < 16; k++) {
        v16 y = v16_mul(x[k], factor), rounded = v16_rint(y);
        square = v16_fma(rounded, rounded, square);
        rest = v16_fma(v16_sub(y, rounded), rounded, rest);
        q[k] = v16i_round(rounded);
    }
    // the scale with the least squared error for these integers
    square = v16_add(square, v16_swap_pairs(square));
    rest = v16_add(rest, v16_swap_pairs(rest));
    base = v16_div(v16_add(square, rest), v16_mul(square, factor));
    base = v16_if_less(zero, factor, base, zero);
    v16_store(scale, v16_if_less(most, infinity, base, v16_set1(NAN)));
}

TL_INLINE void fast_pack_record(const enum layout layout, const float *values, size_t n,
                                const size_t tile, size_t slot, struct fast_record r) {
    const bool bytes = layout_in_bytes(layout);
    float scale[16];
    int32_t digits[8][16], word[2][16];
    v16i q[16], sum[2] = {v16i_set1(0), v16i_set1(0)};
    fast_round(layout_of_int8(layout), values, n, q, scale);
    for (int k = 0; k < 16; k++) sum[k / 2 % 2] = v16i_add(sum[k / 2 % 2], q[k]);
    for (int i = 0; i < 2; i++) v16i_store(word[i], sum[i]);
    for (int i = 0; i < (bytes ? 4 : 8); i++) {
        v16i d;
        if (bytes) {
            d = v16i_and(q[4 * i], v16i_set1(0xff));
            d = v16i_or_and(d, v16i_sll(q[4 * i + 1], 8), v16i_set1(0xff00));
            d = v16i_or_and(d, v16i_sll(q[4 * i + 2], 16), v16i_set1(0xff0000));
            d = v16i_or_and(d, v16i_sll(q[4 * i + 3], 24), v16i_set1(-1));
        } else {
            d = v16i_and(q[2 * i], v16i_set1(0xffff));
            d = v16i_or_and(d, v16i_sll(q[2 * i + 1], 16), v16i_set1(-1));
        }
        v16i_store(digits[i], d);
    }
    for (size_t h = 0; h < 16; h++) {
        for (size_t i = 0; i < (bytes ? 4 : 8); i++) {
            r.digits[(h * (bytes ? 4 : 8) + i) * tile + slot] = digits[i][h];
        }
        r.groups[h * tile + slot] = word[0][h] + word[1][h];
        r.words[h * tile + slot] = (word[0][h] & 0xffff) | (int32_t)((uint32_t)word[1][h] << 16);
    }
    for (size_t b = 0; b < 8; b++) {
        const int32_t s[2] = {word[0][2 * b] + word[1][2 * b],
                              word[0][2 * b + 1] + word[1][2 * b + 1]};
        r.scale[b * tile + slot] = scale[2 * b];
        r.sum[b * tile + slot] = scale[2 * b] * (float)(s[0] + s[1]);
        r.pairs[b * tile + slot] = (s[0] & 0xffff) | (int32_t)((uint32_t)s[1] << 16);
    }
}
