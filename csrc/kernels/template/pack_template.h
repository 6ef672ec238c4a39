/*
 * pack_template.h - packed activations of exact mode: one record for each tile and chunk.
 *
 * Needs:   panel_template.h, a tile template
 * Defines: struct record, record_bytes, record_at, round_chunk, split_pair, pack_record
 */

struct record {
    int32_t *digits; // [steps][tokens * planes], 4 bytes each
    int32_t *sums;   // [8][tokens * 2], int16 pairs: sums over 16 values, low 14 bits and high
    int32_t *pairs;  // [4][tokens * 2], the same: sums over 32 values, low 15 bits and high
    double *dx;      // [tokens]
    float *blocks;   // [8][tokens]: sums over 32 values, rounded
    int32_t *groups; // bytes: [16][tokens * planes]: sums of the digits over 16 values
};

TL_INLINE size_t record_bytes(const bool bytes, const size_t tokens) {
    size_t words = (size_t)(steps_of(bytes) * planes_of(bytes)) * tokens;
    words += 8 * tokens * 2 + 4 * tokens * 2 + tokens * 2 + 8 * tokens;
    if (bytes) words += 16 * tokens * 3;
    return (words * 4 + 63) & ~(size_t)63;
}

TL_INLINE struct record record_at(const void *packed, const bool bytes, const size_t tokens,
                                  size_t index) {
    struct record r;
    r.digits = (int32_t *)((uintptr_t)packed + index * record_bytes(bytes, tokens));
    r.sums = r.digits + (size_t)(steps_of(bytes) * planes_of(bytes)) * tokens;
    r.pairs = r.sums + 8 * tokens * 2;
    r.dx = (double *)(r.pairs + 4 * tokens * 2);
    r.blocks = (float *)(r.dx + tokens);
    r.groups = (int32_t *)(r.blocks + 8 * tokens);
    return r;
}

/* X and dx of n <= 256 values of a token; the rest of the chunk is zero. X[i] is 16 values. */
static double round_chunk(const float *x, size_t n, v16i X[16]) {
    v16i largest = v16i_set1(0);
    int32_t bits[16], most = 0;
    float padded[TL_CHUNK], factor = 0;
    double dx;
    if (n < TL_CHUNK) {
        memset(padded, 0, sizeof(padded));
        memcpy(padded, x, n * sizeof(float));
        x = padded;
    }
    for (int i = 0; i < 16; i++) {
        largest = v16i_max(largest, v16i_abs_bits(v16_load(x + 16 * i)));
    }
    v16i_store(bits, largest);
    for (int i = 0; i < 16; i++) most = TL_MAX(most, bits[i]);
    dx = chunk_scale((uint32_t)most, &factor);
    for (int i = 0; i < 16; i++) {
        X[i] =
            isnan(dx) ? v16i_set1(0) : v16i_round(v16_mul(v16_load(x + 16 * i), v16_set1(factor)));
    }
    return dx;
}

/* Splits two numbers: out[0] is a pair of int16, their lowest `bits` as signed numbers; out[1] is
   the pair of what remains above. */
static void split_pair(int32_t a, int32_t b, int bits, int32_t out[2]) {
    const int32_t half = 1 << (bits - 1), high_a = (a + half) >> bits, high_b = (b + half) >> bits;
    const int32_t low_a = a - high_a * (1 << bits), low_b = b - high_b * (1 << bits);
    out[0] = (low_a & 0xffff) | (int32_t)((uint32_t)low_b << 16);
    out[1] = (high_a & 0xffff) | (int32_t)((uint32_t)high_b << 16);
}

/* Stores the digits of X in the record, and the sums that the loops need. */
TL_INLINE void pack_record(const bool bytes, const v16i X[16], double dx, const size_t tile,
                           size_t slot, struct record r) {
    const size_t planes = (size_t)planes_of(bytes), width = tile * planes;
    int32_t out[16], sums[16], pairs[2][16], pair[2];
    v16i column[16], sum, high;
    for (size_t i = 0; i < 16; i++) {
        if (bytes) {
            // lane 4 j + p: plane p of the values 4 j to 4 j + 3
            v16i digits = v16i_quads(X[i]);
            v16i_store(out, digits);
            for (size_t j = 0; j < 4; j++) {
                memcpy(&r.digits[(4 * i + j) * width + slot * 3], &out[4 * j], 12);
            }
            v16i_store(out, v16i_fold4(sum_of_bytes(digits)));
            memcpy(&r.groups[i * width + slot * 3], out, 12);
        } else {
            // lane 2 j: the values 2 j and 2 j + 1
            int32_t low[16];
            high = v16i_sra(v16i_add(X[i], v16i_set1(2048)), 12);
            v16i_store(low, v16i_pairs(v16i_sub(X[i], v16i_sll(high, 12))));
            v16i_store(out, v16i_pairs(high));
            for (size_t j = 0; j < 8; j++) {
                r.digits[(8 * i + j) * width + slot * 2] = low[2 * j];
                r.digits[(8 * i + j) * width + slot * 2 + 1] = out[2 * j];
            }
        }
        column[i] = X[i];
    }
    v16i_transpose(column);
    sum = column[0];
    for (int i = 1; i < 16; i++) sum = v16i_add(sum, column[i]);
    high = v16i_sra(v16i_add(sum, v16i_set1(8192)), 14); // |sum| < 2^27
    v16i_store(sums, sum);
    v16i_store(pairs[0], v16i_pairs(v16i_sub(sum, v16i_sll(high, 14))));
    v16i_store(pairs[1], v16i_pairs(high));
    for (size_t b = 0; b < 8; b++) {
        r.blocks[b * tile + slot] = (float)(sums[2 * b] + sums[2 * b + 1]);
        r.sums[b * tile * 2 + slot * 2] = pairs[0][2 * b];
        r.sums[b * tile * 2 + slot * 2 + 1] = pairs[1][2 * b];
    }
    for (size_t i = 0; i < 4; i++) {
        const int32_t *four = sums + 4 * i;
        split_pair(four[0] + four[1], four[2] + four[3], 15, pair);
        memcpy(&r.pairs[i * tile * 2 + slot * 2], pair, sizeof(pair));
    }
    r.dx[slot] = dx;
}
