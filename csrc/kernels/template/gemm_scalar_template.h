/*
 * gemm_scalar_template.h - matmuls of quantized weights, exactly as docs/numerics.md defines them.
 *
 * A chunk of a row is unpacked once and used for all tokens. Every other set must give the bits
 * of this file.
 *
 * Needs:   format_template.h
 * Defines: int_in_bytes, gemv_most, int_pack_bytes, int_pack, int_scratch, int_matmul, int_prefetch
 */

static bool int_in_bytes(const struct tl_type_info *type) {
    (void)type; // one layout, neither bytes nor words
    return true;
}

static size_t gemv_most(const struct tl_type_info *type, bool fast) {
    (void)type, (void)fast; // one token is like many
    return 1;
}

/*
 * A chunk of one packed token: X = 4096 * high + low, because compilers vectorize sums of products
 * of int16. `block` and `group` are sums of X over 32 and 16 values.
 */
struct int_chunk {
    int16_t low[TL_CHUNK];  // -2048 .. 2047; all of X in fast mode
    int16_t high[TL_CHUNK]; // -2040 .. 2040
    int32_t group[16];
    int32_t block[8];
    double dx;
    float scale[8]; // fast mode
};

/* X and dx of n <= 256 values of a token; the rest of the chunk is zero. */
static double round_chunk(const float *x, size_t n, int32_t *X) {
    uint32_t largest = 0, bits;
    float factor;
    double dx;
    for (size_t k = 0; k < n; k++) {
        memcpy(&bits, x + k, sizeof(bits));
        bits &= 0x7fffffffu;
        largest = bits > largest ? bits : largest;
    }
    dx = chunk_scale(largest, &factor);
    memset(X, 0, TL_CHUNK * sizeof(*X));
    for (size_t k = 0; k < n && !isnan(dx); k++) X[k] = (int32_t)rintf(x[k] * factor);
    return dx;
}

/* Fast mode, one block of 32: int8 and a scale. */
static float round_block(const float *x, int32_t *X) {
    uint32_t largest = 0, bits;
    float most, factor = 0, best = INFINITY, square[2] = {0}, rest[2] = {0};
    for (int k = 0; k < 32; k++) {
        memcpy(&bits, x + k, sizeof(bits));
        bits &= 0x7fffffffu;
        largest = bits > largest ? bits : largest;
    }
    memset(X, 0, 32 * sizeof(*X));
    memcpy(&most, &largest, sizeof(most));
    if (largest >= 0x7f800000u) return NAN;
    if (most < FAST_LEAST) return 0;
    for (int limit = FAST_LIMIT; limit > FAST_LIMIT - FAST_TRIES; limit--) {
        const float f = 128 / most * ((float)limit / 128);
        float error[2] = {0}, all;
        for (int k = 0; k < 32; k++) {
            float y = x[k] * f, e = y - rintf(y);
            error[k / 16] = fmaf(e, e, error[k / 16]);
        }
        all = (error[0] + error[1]) * fast_weight(limit);
        if (all < best) {
            best = all;
            factor = f;
        }
    }
    for (int k = 0; k < 32; k++) {
        float y = x[k] * factor, q = rintf(y);
        square[k / 16] = fmaf(q, q, square[k / 16]);
        rest[k / 16] = fmaf(y - q, q, rest[k / 16]);
        X[k] = (int32_t)q;
    }
    square[0] += square[1];
    return (square[0] + (rest[0] + rest[1])) / (square[0] * factor);
}

/* Fast mode: n <= 256 values of a token. */
static void round_blocks(const float *x, size_t n, int32_t *X, float *scale) {
    float padded[TL_CHUNK] = {0};
    memcpy(padded, x, n * sizeof(float));
    for (int b = 0; b < 8; b++) scale[b] = round_block(padded + 32 * b, X + 32 * b);
}

static size_t int_pack_bytes(enum matmul_format format, size_t cols, size_t tokens) {
    (void)format;
    return size_product(round_up(cols, TL_CHUNK) / TL_CHUNK, tokens, sizeof(struct int_chunk));
}

static void int_pack(enum matmul_format format, const float *x, size_t cols, size_t tokens,
                     size_t first, size_t last, void *packed) {
    const size_t chunks = round_up(cols, TL_CHUNK) / TL_CHUNK;
    (void)tokens;
    for (size_t t = first; t < last; t++) {
        for (size_t c = 0; c < chunks; c++) {
            struct int_chunk *out = (struct int_chunk *)packed + t * chunks + c;
            const float *part = x + (t - first) * cols + c * TL_CHUNK;
            size_t n = TL_MIN(cols - c * TL_CHUNK, (size_t)TL_CHUNK);
            int32_t X[TL_CHUNK];
            if (format >= FORMAT_FAST_BYTE_ROW) {
                round_blocks(part, n, X, out->scale);
            } else {
                out->dx = round_chunk(part, n, X);
            }
            for (int k = 0; k < TL_CHUNK; k++) {
                int32_t high = (int32_t)((uint32_t)(X[k] + 0x800800) >> 12) - 0x800;
                out->high[k] = (int16_t)high;
                out->low[k] = (int16_t)(X[k] - 4096 * high);
            }
            for (int g = 0; g < 16; g++) {
                out->group[g] = 0;
                for (int i = 0; i < 16; i++) out->group[g] += X[g * 16 + i];
            }
            for (int b = 0; b < 8; b++) out->block[b] = out->group[2 * b] + out->group[2 * b + 1];
        }
    }
}

static size_t int_scratch(enum matmul_format format, size_t cols, size_t tokens) {
    (void)format, (void)cols;
    return tokens * sizeof(double);
}

/* The sum of w_k x_k over n <= 128 values, |w| <= 4096, which cannot overflow in any order. */
TL_INLINE int32_t dot_words(const int16_t *w, const int16_t *x, const int n) {
    int32_t sum = 0;
    for (int k = 0; k < n; k++) sum += w[k] * x[k];
    return sum;
}

TL_INLINE int64_t dot_X(const int16_t *w, const struct int_chunk *x, const int from, const int n) {
    return (int64_t)dot_words(w + from, x->high + from, n) * 4096 +
           dot_words(w + from, x->low + from, n);
}

/* w: K types: the integers times their sub-scales; types of 32: the integers */
static double add_chunk_k(const struct tl_chunk *c, const int16_t *w, const struct int_chunk *x,
                          double sum) {
    int64_t total = dot_X(w, x, 0, 128) + dot_X(w, x, 128, 128), mins = 0;
    sum = fma((double)c->d[0] * x->dx, (double)total, sum);
    if (!c->has_min) return sum;
    for (int g = 0; g < 16; g++) mins += (int64_t)c->min[g] * x->group[g];
    return fma(-((double)c->dmin * x->dx), (double)mins, sum);
}

static double add_chunk_32(const struct tl_chunk *c, const int16_t *w, const struct int_chunk *x,
                           double sum) {
    float u = 0;
    for (int b = 0; b < 8; b++) {
        u = fmaf((float)dot_X(w, x, 32 * b, 32), c->d[b], u);
        if (c->has_min) u = fmaf((float)x->block[b], c->m[b], u);
    }
    return fma((double)u, x->dx, sum);
}

/* MXFP4: blocks of 32; NVFP4: of 16. */
static double add_chunk_wide(const struct tl_chunk *c, const int16_t *w, const struct int_chunk *x,
                             const int block, double sum) {
    double u = 0;
    for (int b = 0; b < TL_CHUNK / block; b++) {
        u = fma((double)dot_X(w, x, block * b, block), (double)c->d[b], u);
    }
    return fma(u, x->dx, sum);
}

/* Fast mode, one chunk: float32 sums, one block of 32 after another. */
static float fast_chunk_k(const struct tl_chunk *c, const struct tl_type_info *type,
                          const int16_t *w, const struct int_chunk *x, float sum) {
    const bool wide = type == tl_type_find(TL_TYPE_Q4_K) || type == tl_type_find(TL_TYPE_Q5_K);
    float totals = 0, mins = 0;
    for (int b = 0; b < 8; b++) {
        int32_t total = dot_words(w + 32 * b, x->low + 32 * b, 32);
        int32_t min = c->min[2 * b] * x->group[2 * b] + c->min[2 * b + 1] * x->group[2 * b + 1];
        totals = fmaf((float)total, x->scale[b], totals);
        mins = wide ? fmaf(c->min[2 * b], x->scale[b] * (float)x->block[b], mins)
                    : fmaf((float)min, x->scale[b], mins);
    }
    sum = fmaf(c->d[0], totals, sum);
    return c->has_min ? fmaf(c->dmin, -mins, sum) : sum;
}

static float fast_chunk_32(const struct tl_chunk *c, const int16_t *w, const struct int_chunk *x,
                           float sum) {
    for (int b = 0; b < 8; b++) {
        int32_t total = dot_words(w + 32 * b, x->low + 32 * b, 32);
        sum = fmaf((float)total * x->scale[b], c->d[b], sum);
        if (c->has_min) sum = fmaf(c->m[b], x->scale[b] * (float)x->block[b], sum);
    }
    return sum;
}

static float fast_chunk_16(const struct tl_chunk *c, const int16_t *w, const struct int_chunk *x,
                           float sum) {
    for (int g = 0; g < 16; g++) {
        int32_t total = dot_words(w + 16 * g, x->low + 16 * g, 16);
        sum = fmaf((float)total * x->scale[g / 2], c->d[g], sum);
    }
    return sum;
}

static double add_chunk(enum matmul_format format, const struct tl_type_info *type,
                        const struct tl_chunk *c, const int16_t *w, const struct int_chunk *x,
                        double sum) {
    if (format >= FORMAT_FAST_BYTE_ROW) { // the sum is a float32
        if (type->kind == TL_KIND_16) return fast_chunk_16(c, w, x, (float)sum);
        return type->kind == TL_KIND_K ? fast_chunk_k(c, type, w, x, (float)sum)
                                       : fast_chunk_32(c, w, x, (float)sum);
    }
    if (type == tl_type_find(TL_TYPE_MXFP4)) return add_chunk_wide(c, w, x, 32, sum);
    if (type->kind == TL_KIND_16) return add_chunk_wide(c, w, x, 16, sum);
    return type->kind == TL_KIND_K ? add_chunk_k(c, w, x, sum) : add_chunk_32(c, w, x, sum);
}

static void int_matmul(enum matmul_format format, const struct tl_matrix *w, size_t row0,
                       size_t row1, const void *packed, size_t tokens, float *y, size_t y_stride,
                       void *scratch) {
    const size_t per_chunk = (size_t)(TL_CHUNK / w->type->items);
    const size_t blocks = w->cols / (size_t)w->type->items;
    const size_t chunks = round_up(w->cols, TL_CHUNK) / TL_CHUNK;
    const struct int_chunk *x = packed;
    double *sums = scratch;
    for (size_t row = row0; row < row1; row++) {
        const uint8_t *p = w->data + row * w->row_bytes;
        for (size_t t = 0; t < tokens; t++) sums[t] = 0;
        for (size_t c = 0; c < chunks; c++) {
            struct tl_chunk chunk;
            int16_t q[TL_CHUNK];
            size_t n = TL_MIN(blocks - c * per_chunk, per_chunk);
            w->type->unpack(p + c * per_chunk * (size_t)w->type->bytes, n, &chunk);
            for (int g = 0; g < 16; g++) {
                int16_t scale = w->type->kind == TL_KIND_K ? chunk.scale[g] : 1;
                for (int k = 16 * g; k < 16 * g + 16; k++) q[k] = (int16_t)(chunk.q[k] * scale);
            }
            for (size_t t = 0; t < tokens; t++) {
                sums[t] = add_chunk(format, w->type, &chunk, q, x + t * chunks + c, sums[t]);
            }
        }
        for (size_t t = 0; t < tokens; t++) y[t * y_stride + row] = (float)sums[t];
    }
}

static void int_prefetch(enum matmul_format format, const struct tl_matrix *w, size_t row0,
                         size_t row1) {
    (void)format;
    prefetch_rows(w, row0, row1);
}
