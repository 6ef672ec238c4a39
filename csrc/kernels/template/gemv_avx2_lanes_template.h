/*
 * gemv_avx2_lanes_template.h - what gemv_avx2_template.h multiplies: a token's packed activations,
 * and the bytes of eight rows, one in each 32-bit lane.
 *
 * Needs:   simd/x86.h, pack_template.h, pack_fast_template.h
 * Defines: GEMV_LANES, MAX_TILE, MAX_CHUNK_BYTES, struct gemv_chunk, struct lanes, struct
 *          gemv_sums, gemv_is_fast, gemv_side, gemv_pack_bytes, gemv_scratch, gemv_pack, load_128,
 *          load_256, set_int, lanes_at, lanes_row, lanes_load, lanes_half, from_halves, bits_of,
 *          bytes_as_words, byte_as_float, gemv_dot, three_digits, half_of, doubles_of, sum_halves,
 *          sum_rows, gemv_end_words
 */

#define GEMV_LANES 8
#define MAX_TILE 2          // tokens of a tile at most
#define MAX_CHUNK_BYTES 272 // Q8_0

/*
 * 256 activations of the token. Exact mode has three digits of int8 or two of int16, as in
 * panel_template.h; fast mode has one. The lowest is the first.
 */
struct gemv_chunk {
    union {
        int8_t bytes[3][TL_CHUNK];
        int16_t words[2][TL_CHUNK];
    } digit;
    // of each pair of blocks, for the low and the high nibbles: see gemv_nibbles
    int32_t seams[3][8];
    int32_t sum16[8][2]; // int16 pairs: sums of 16 values; exact: their low 14 bits, and the rest
    int32_t sum32[4][2]; // exact: the same for sums of 32 values, low 15 bits
    int32_t sum[8];      // sums of 32 values
    float scaled[8];     // the same as float32; fast: times scale
    float scale[8];      // fast
    double dx;           // exact
};

/* Eight rows, `stride` bytes apart, in two halves. */
struct lanes {
    const uint8_t *low, *high;
    size_t stride, stride3;
};

/* The sums of eight rows. */
struct gemv_sums {
    __m256d low, high; // exact: the rows 0 to 3 and 4 to 7
    __m256 y;          // fast
};

/* ---- activations ---- */

/* Stores the integers X of a chunk as digits, and their sums. */
static void gemv_put(const bool bytes, const int planes, const int32_t X[TL_CHUNK],
                     struct gemv_chunk *out) {
    int32_t sum[16];
    for (int k = 0; k < TL_CHUNK; k++) {
        int32_t x = X[k];
        if (bytes && planes == 3) {
            // as in v16i_quads, digits are from -128 to 127
            uint32_t digits = (uint32_t)(x + 0x808080) ^ 0x808080u;
            for (int p = 0; p < 3; p++) out->digit.bytes[p][k] = (int8_t)(digits >> 8 * p & 0xff);
        } else if (bytes) {
            out->digit.bytes[0][k] = (int8_t)x;
        } else if (planes == 2) {
            int32_t high = (x + 2048) >> 12;
            out->digit.words[0][k] = (int16_t)(x - high * 4096);
            out->digit.words[1][k] = (int16_t)high;
        } else {
            out->digit.words[0][k] = (int16_t)x;
        }
    }
    for (int g = 0; g < 16; g++) {
        sum[g] = 0;
        for (int k = 16 * g; k < 16 * g + 16; k++) sum[g] += X[k];
    }
    for (int b = 0; b < 8; b++) {
        out->sum[b] = sum[2 * b] + sum[2 * b + 1];
        out->scaled[b] = (float)out->sum[b];
        if (!bytes) continue;
        if (planes == 3) {
            split_pair(sum[2 * b], sum[2 * b + 1], 14, out->sum16[b]);
        } else {
            out->sum16[b][0] = (sum[2 * b] & 0xffff) | (int32_t)((uint32_t)sum[2 * b + 1] << 16);
        }
    }
    if (!bytes) return;
    for (int i = 0; i < 4; i++) {
        if (planes == 3) split_pair(out->sum[2 * i], out->sum[2 * i + 1], 15, out->sum32[i]);
        for (int p = 0; p < planes; p++) {
            for (int high = 0; high < 2; high++) {
                const int8_t *x = out->digit.bytes[p] + 64 * i + 16 * high;
                const int8_t seam[4] = {x[14], x[15], x[0], x[1]};
                memcpy(&out->seams[p][2 * i + high], seam, 4);
            }
        }
    }
}

static void gemv_pack_exact(const bool bytes, const float *x, size_t n, struct gemv_chunk *out) {
    v16i rounded[16];
    int32_t X[TL_CHUNK];
    out->dx = round_chunk(x, n, rounded);
    for (int i = 0; i < 16; i++) v16i_store(X + 16 * i, rounded[i]);
    gemv_put(bytes, bytes ? 3 : 2, X, out);
}

static void gemv_pack_fast(const bool bytes, const float *x, size_t n, struct gemv_chunk *out) {
    v16i rounded[16];
    float scale[16];
    int32_t X[TL_CHUNK];
    fast_round(bytes, x, n, rounded, scale);
    v16i_transpose(rounded);
    for (int i = 0; i < 16; i++) v16i_store(X + 16 * i, rounded[i]);
    gemv_put(bytes, 1, X, out);
    for (int b = 0; b < 8; b++) {
        out->scale[b] = scale[2 * b];
        out->scaled[b] *= out->scale[b];
    }
}

static bool gemv_is_fast(enum matmul_format format) {
    return format == FORMAT_FAST_BYTE_ROW || format == FORMAT_FAST_WORD_ROW;
}

/* Tokens whose chunks lie side by side; the last one of them may be zeros. */
static size_t gemv_side(enum matmul_format format, size_t tokens) {
    return gemv_is_fast(format) && tokens > 1 ? MAX_TILE : 1;
}

static size_t gemv_pack_bytes(enum matmul_format format, size_t cols, size_t tokens) {
    const size_t padded = round_up(tokens, gemv_side(format, tokens));
    return size_product(round_up(cols, TL_CHUNK) / TL_CHUNK, padded, sizeof(struct gemv_chunk));
}

static size_t gemv_scratch(size_t cols, size_t tokens) {
    (void)cols, (void)tokens;
    return 0;
}

static void gemv_pack(enum matmul_format format, const float *x, size_t cols, size_t tokens,
                      size_t first, size_t last, void *packed) {
    const bool bytes = format == FORMAT_BYTE_ROW || format == FORMAT_FAST_BYTE_ROW;
    const size_t side = gemv_side(format, tokens), chunks = round_up(cols, TL_CHUNK) / TL_CHUNK;
    // the call that packs the last token also fills the place beside it
    const size_t end = last == tokens ? round_up(tokens, side) : last;
    for (size_t t = first; t < end; t++) {
        struct gemv_chunk *out = (struct gemv_chunk *)packed + t / side * side * chunks + t % side;
        for (size_t k = 0; k < cols; k += TL_CHUNK, out += side) {
            const size_t n = TL_MIN(cols - k, (size_t)TL_CHUNK);
            const float *from = x + (t - first) * cols + k;
            if (t >= tokens) {
                memset(out, 0, sizeof(*out));
            } else if (gemv_is_fast(format)) {
                gemv_pack_fast(bytes, from, n, out);
            } else {
                gemv_pack_exact(bytes, from, n, out);
            }
        }
    }
}

/* ---- bytes and lanes ---- */

TL_INLINE __m128i load_128(const void *p) {
    return _mm_loadu_si128(p);
}

TL_INLINE __m256i load_256(const void *p) {
    return _mm256_loadu_si256(p);
}

TL_INLINE __m256i set_int(int32_t x) {
    return _mm256_set1_epi32(x);
}

TL_INLINE struct lanes lanes_at(const uint8_t *p, size_t stride) {
    struct lanes row = {p, p + 4 * stride, stride, 3 * stride};
#if defined(__GNUC__)
    // otherwise compilers keep a pointer for every load, far more than there are registers
    __asm__("" : "+r"(row.low), "+r"(row.high), "+r"(row.stride), "+r"(row.stride3));
#endif
    return row;
}

TL_INLINE const uint8_t *lanes_row(struct lanes row, const int i) {
    const uint8_t *p = i < 4 ? row.low : row.high;
    return i % 4 == 3 ? p + row.stride3 : p + (size_t)(i % 4) * row.stride;
}

/* Loads and transposes 16 bytes of the eight rows: x[i] holds dword i of each row. */
TL_INLINE void lanes_load(struct lanes row, size_t at, __m256i x[4]) {
    __m256i t[4];
    TL_UNROLL(4)
    for (int i = 0; i < 4; i++) {
        t[i] = _mm256_castsi128_si256(load_128(lanes_row(row, i) + at));
        t[i] = _mm256_inserti128_si256(t[i], load_128(lanes_row(row, i + 4) + at), 1);
    }
    columns_of_8(t, x);
}

/* A float16 of every row. */
TL_INLINE __m256 lanes_half(struct lanes row, size_t at) {
    uint16_t half[8];
    TL_UNROLL(8)
    for (int r = 0; r < 8; r++) memcpy(&half[r], lanes_row(row, r) + at, 2);
    return _mm256_cvtph_ps(load_128(half));
}

/* The two float16 of every dword. */
TL_INLINE void from_halves(__m256i x, __m256 *low, __m256 *high) {
    __m256i h = _mm256_packus_epi32(_mm256_and_si256(x, set_int(0xffff)), _mm256_srli_epi32(x, 16));
    h = _mm256_permute4x64_epi64(h, 0xd8);
    *low = _mm256_cvtph_ps(_mm256_castsi256_si128(h));
    *high = _mm256_cvtph_ps(_mm256_extracti128_si256(h, 1));
}

/* x >> n in 16-bit units (x << -n if n is negative), and then the bits of `mask` of every byte. */
TL_INLINE __m256i bits_of(__m256i x, const int n, const int mask) {
    if (n > 0) x = _mm256_srli_epi16(x, n);
    if (n < 0) x = _mm256_slli_epi16(x, -n);
    return _mm256_and_si256(x, _mm256_set1_epi8((char)mask));
}

/* The bytes i and j of every dword as int16, or as uint16. */
TL_INLINE __m256i bytes_as_words(__m256i x, const int i, const int j, const bool sign) {
    const int32_t order = sign ? (int32_t)(0x00800080u | (uint32_t)i << 8 | (uint32_t)j << 24)
                               : (int32_t)(0x80008000u | (uint32_t)i | (uint32_t)j << 16);
    const int32_t step = sign ? 0x04000400 : 0x00040004;
    const __m256i index =
        _mm256_setr_epi32(order, order + step, order + 2 * step, order + 3 * step, order,
                          order + step, order + 2 * step, order + 3 * step);
    x = _mm256_shuffle_epi8(x, index);
    return sign ? _mm256_srai_epi16(x, 8) : x;
}

/* Byte i of every dword, unsigned, as float32. */
TL_INLINE __m256 byte_as_float(__m256i x, const int i) {
    x = _mm256_and_si256(_mm256_srli_epi32(x, 8 * i), set_int(0xff));
    return _mm256_cvtepi32_ps(x);
}

/* a[p] += weights times four digits of plane p; `first`: sets a[p] instead */
TL_INLINE void gemv_dot(const int planes, __m256i *a, __m256i w, const int8_t *x,
                        const size_t plane, const bool first) {
    TL_UNROLL(3)
    for (int p = 0; p < planes; p++) {
        int32_t four;
        memcpy(&four, x + plane * (size_t)p, 4);
        __m256i products = mul_bytes_256(w, set_int(four));
        a[p] = first ? products : _mm256_add_epi16(a[p], products);
        KEEP(a[p]);
    }
}

/* The exact integers 65536 high + 256 middle + low in float64, for half of the rows. */
TL_INLINE __m256d three_digits(__m128i low, __m128i middle, __m128i high) {
    __m256d t =
        _mm256_fmadd_pd(_mm256_cvtepi32_pd(middle), _mm256_set1_pd(256), _mm256_cvtepi32_pd(low));
    return _mm256_fmadd_pd(_mm256_cvtepi32_pd(high), _mm256_set1_pd(65536), t);
}

TL_INLINE __m128i half_of(__m256i x, const int half) {
    return half ? _mm256_extracti128_si256(x, 1) : _mm256_castsi256_si128(x);
}

TL_INLINE __m256d doubles_of(__m256 x, const int half) {
    return _mm256_cvtps_pd(half ? _mm256_extractf128_ps(x, 1) : _mm256_castps256_ps128(x));
}

/* Lane r of each half of the result is the sum of that half of x[r]. */
TL_INLINE __m256i sum_halves(const __m256i x[4]) {
    const __m256i a =
        _mm256_add_epi32(_mm256_unpacklo_epi32(x[0], x[1]), _mm256_unpackhi_epi32(x[0], x[1]));
    const __m256i b =
        _mm256_add_epi32(_mm256_unpacklo_epi32(x[2], x[3]), _mm256_unpackhi_epi32(x[2], x[3]));
    return _mm256_add_epi32(_mm256_unpacklo_epi64(a, b), _mm256_unpackhi_epi64(a, b));
}

/* The sums of eight rows, from sum_halves of the rows 0 to 3 and of the rows 4 to 7. */
TL_INLINE __m256 sum_rows(const __m256i x[2]) {
    return _mm256_cvtepi32_ps(_mm256_add_epi32(_mm256_permute2x128_si256(x[0], x[1], 0x20),
                                               _mm256_permute2x128_si256(x[0], x[1], 0x31)));
}

/* Adds an exact chunk of int16 digits to the rows: T = 4096 total[1] + total[0]. */
TL_INLINE void gemv_end_words(const __m256i *total, __m256 d, const struct gemv_chunk *x,
                              struct gemv_sums *sums) {
    __m256d *sum[2] = {&sums->low, &sums->high};
    TL_UNROLL(2)
    for (int half = 0; half < 2; half++) {
        __m256d t =
            _mm256_fmadd_pd(_mm256_cvtepi32_pd(half_of(total[1], half)), _mm256_set1_pd(4096),
                            _mm256_cvtepi32_pd(half_of(total[0], half)));
        __m256d scale = _mm256_mul_pd(doubles_of(d, half), _mm256_set1_pd(x->dx));
        *sum[half] = _mm256_fmadd_pd(scale, t, *sum[half]);
    }
}
