/*
 * recurrent_template.h - mixers with a state: short convolution and gated delta rule.
 *
 * docs/numerics.md section 3 defines what is computed, in which order and with which rounding.
 * Channels and columns lie in the lanes, and no sum crosses lanes.
 *
 * Needs:   simd/<set>.h, ops_template.h
 * Defines: recurrent_init
 */

static void op_conv(const float *const *rows, size_t taps, const float *weights, const float *bias,
                    float *y, size_t n) {
    size_t c = 0;
    for (; c + 16 <= n; c += 16) {
        v16 sum = v16_set1(0.0f);
        for (size_t j = 0; j < taps; j++) {
            sum = v16_fma(v16_load(weights + j * n + c), v16_load(rows[j] + c), sum);
        }
        if (bias != NULL) sum = v16_add(sum, v16_load(bias + c));
        v16_store(y + c, sum);
    }
    for (; c < n; c++) {
        float sum = 0.0f;
        for (size_t j = 0; j < taps; j++) sum = fmaf(weights[j * n + c], rows[j][c], sum);
        y[c] = bias != NULL ? sum + bias[c] : sum;
    }
}

/* 16 * N columns. */
TL_INLINE void delta_tile(const int N, const struct tl_delta *d, const float *from, float *to,
                          const float *v, float *y) {
    const v16 decay = v16_set1(d->decay), beta = v16_set1(d->beta), factor = v16_set1(d->factor);
    v16 sum[4], change[4];
    TL_UNROLL(4)
    for (int j = 0; j < N; j++) sum[j] = v16_set1(0.0f);
    for (size_t i = 0; i < d->key_size; i++) {
        const v16 k = v16_set1(d->k[i]);
        const float *row = from + i * d->stride;
        TL_UNROLL(4)
        for (int j = 0; j < N; j++) {
            sum[j] = v16_fma(v16_mul(decay, v16_load(row + 16 * j)), k, sum[j]);
        }
    }
    TL_UNROLL(4)
    for (int j = 0; j < N; j++) {
        change[j] = v16_mul(v16_sub(v16_load(v + 16 * j), sum[j]), beta);
        sum[j] = v16_set1(0.0f);
    }
    for (size_t i = 0; i < d->key_size; i++) {
        const v16 k = v16_set1(d->k[i]), q = v16_set1(d->q[i]);
        const float *row = from + i * d->stride;
        TL_UNROLL(4)
        for (int j = 0; j < N; j++) {
            const v16 s = v16_fma(k, change[j], v16_mul(decay, v16_load(row + 16 * j)));
            v16_store(to + i * d->stride + 16 * j, s);
            sum[j] = v16_fma(s, q, sum[j]);
        }
    }
    TL_UNROLL(4)
    for (int j = 0; j < N; j++) v16_store(y + 16 * j, v16_mul(factor, sum[j]));
}

static void op_delta(const struct tl_delta *d, const float *from, float *to, const float *v,
                     float *y, size_t n) {
    size_t c = 0;
    for (; c + 64 <= n; c += 64) delta_tile(4, d, from + c, to + c, v + c, y + c);
    for (; c + 16 <= n; c += 16) delta_tile(1, d, from + c, to + c, v + c, y + c);
    for (; c < n; c++) {
        float sum = 0.0f, change;
        for (size_t i = 0; i < d->key_size; i++) {
            sum = fmaf(d->decay * from[i * d->stride + c], d->k[i], sum);
        }
        change = (v[c] - sum) * d->beta;
        sum = 0.0f;
        for (size_t i = 0; i < d->key_size; i++) {
            const float s = fmaf(d->k[i], change, d->decay * from[i * d->stride + c]);
            to[i * d->stride + c] = s;
            sum = fmaf(s, d->q[i], sum);
        }
        y[c] = d->factor * sum;
    }
}

static void recurrent_init(struct tl_kernels *k) {
    k->conv = op_conv;
    k->delta = op_delta;
}
