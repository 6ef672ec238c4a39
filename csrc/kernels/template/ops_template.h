/*
 * ops_template.h - the forward pass besides the matmuls: norm, activation, RoPE, attention.
 *
 * docs/numerics.md section 3 defines what is computed, in which order and with which rounding. The
 * loops here do that on sixteen lanes.
 *
 * Needs:   simd/<set>.h
 * Defines: ops_init
 */

/* A partial load and store for the last n < 16 values; the lanes beyond are zero. */
TL_INLINE v16 v16_load_part(const float *p, size_t n) {
    float part[16] = {0};
    memcpy(part, p, n * sizeof(float));
    return v16_load(part);
}

TL_INLINE void v16_store_part(float *p, size_t n, v16 x) {
    float part[16];
    v16_store(part, x);
    memcpy(p, part, n * sizeof(float));
}

/*
 * exp, error below 1 ulp; 0 below -86.6, inf above 88.72.
 * exp(x) = 2^n exp(r), |r| <= ln(2)/2, by the Taylor series of degree 7; 1.5 * 2^23 rounds to
 * an integer when added. 2^(n-1) * 2 instead of 2^n, so that n = 128 does not overflow early.
 */
TL_INLINE v16 v16_exp(v16 x) {
    const v16 magic = v16_set1(12582912.0f), two = v16_set1(2.0f);
    v16 shifted = v16_fma(x, v16_set1(1.44269504f), magic);
    v16 n = v16_sub(shifted, magic);
    v16 r = v16_fma(n, v16_set1(-0x1.62e430p-1f), x);
    v16 p = v16_set1(1.0f / 5040);
    r = v16_fma(n, v16_set1(0x1.05c610p-29f), r);
    p = v16_fma(p, r, v16_set1(1.0f / 720));
    p = v16_fma(p, r, v16_set1(1.0f / 120));
    p = v16_fma(p, r, v16_set1(1.0f / 24));
    p = v16_fma(p, r, v16_set1(1.0f / 6));
    p = v16_fma(p, r, v16_set1(0.5f));
    p = v16_fma(p, r, v16_set1(1.0f));
    p = v16_fma(p, r, v16_set1(1.0f));
    p = v16_mul(v16_mul(p, v16_pow2(v16_sub(shifted, v16_set1(1.0f)))), two);
    p = v16_if_less(x, v16_set1(-86.6f), v16_set1(0.0f), p);
    return v16_if_less(v16_set1(88.72f), x, v16_set1(INFINITY), p);
}

static float op_norm_scale(const float *x, size_t n, float epsilon) {
    double lane[16] = {0}, sum = 0;
    size_t i = 0;
    for (; i + 16 <= n; i += 16) {
        for (int l = 0; l < 16; l++) lane[l] += (double)x[i + l] * x[i + l]; // exact products
    }
    for (int l = 0; i < n; i++, l++) lane[l] += (double)x[i] * x[i];
    for (int l = 0; l < 16; l++) sum += lane[l];
    return (float)(1.0 / sqrt(sum / (double)n + (double)epsilon));
}

static void op_norm_apply(const float *x, const float *weight, size_t n, float scale, float *y) {
    const v16 s = v16_set1(scale);
    size_t i = 0;
    for (; i + 16 <= n; i += 16) {
        v16_store(y + i, v16_mul(v16_mul(v16_load(x + i), s), v16_load(weight + i)));
    }
    for (; i < n; i++) y[i] = (x[i] * scale) * weight[i];
}

static void op_add(const float *a, const float *b, float *y, size_t n) {
    size_t i = 0;
    for (; i + 16 <= n; i += 16) v16_store(y + i, v16_add(v16_load(a + i), v16_load(b + i)));
    for (; i < n; i++) y[i] = a[i] + b[i];
}

TL_INLINE v16 v16_silu(v16 x) {
    const v16 one = v16_set1(1.0f);
    return v16_div(x, v16_add(one, v16_exp(v16_sub(v16_set1(0.0f), x))));
}

static void op_silu_mul(const float *gate, const float *up, float *y, size_t n) {
    size_t i = 0;
    for (; i + 16 <= n; i += 16) {
        v16_store(y + i, v16_mul(v16_silu(v16_load(gate + i)), v16_load(up + i)));
    }
    if (i < n) {
        v16 g = v16_load_part(gate + i, n - i), u = v16_load_part(up + i, n - i);
        v16_store_part(y + i, n - i, v16_mul(v16_silu(g), u));
    }
}

static void op_rope_pairs(const float *x, float *y, size_t heads, size_t head_size, size_t rot,
                          const float *cos_sin) {
    for (size_t h = 0; h < heads; h++, x += head_size, y += head_size) {
        for (size_t j = 0; j < rot; j += 2) {
            float c = cos_sin[j], s = cos_sin[j + 1], a = x[j], b = x[j + 1];
            y[j] = fmaf(a, c, -(b * s));
            y[j + 1] = fmaf(a, s, b * c);
        }
        for (size_t j = rot; j < head_size; j++) y[j] = x[j];
    }
}

static void op_rope_halves(const float *x, float *y, size_t heads, size_t head_size, size_t rot,
                           const float *cos_sin) {
    const size_t half = rot / 2;
    for (size_t h = 0; h < heads; h++, x += head_size, y += head_size) {
        for (size_t j = 0; j < half; j++) {
            float c = cos_sin[2 * j], s = cos_sin[2 * j + 1], a = x[j], b = x[j + half];
            y[j] = fmaf(a, c, -(b * s));
            y[j + half] = fmaf(a, s, b * c);
        }
        for (size_t j = rot; j < head_size; j++) y[j] = x[j];
    }
}

/* ---- attention ---- */

/* Scores of some queries against 16 * N keys: each is one chain of additions over the head. */
TL_INLINE void scores_tile(const int queries, const int N, const float *q, const float *panel,
                           size_t head_size, v16 scale, float *scores, size_t stride) {
    v16 acc[ATTN_QUERIES][4];
    TL_UNROLL(6)
    for (int i = 0; i < queries; i++) {
        TL_UNROLL(6)
        for (int j = 0; j < N; j++) acc[i][j] = v16_set1(0.0f);
    }
    for (size_t d = 0; d < head_size; d++) {
        v16 k[4];
        TL_UNROLL(6)
        for (int j = 0; j < N; j++) k[j] = v16_load(panel + (j * head_size + d) * 16);
        TL_UNROLL(6)
        for (int i = 0; i < queries; i++) {
            v16 x = v16_set1(q[i * head_size + d]);
            TL_UNROLL(6)
            for (int j = 0; j < N; j++) acc[i][j] = v16_fma(x, k[j], acc[i][j]);
        }
    }
    TL_UNROLL(6)
    for (int i = 0; i < queries; i++) {
        TL_UNROLL(6)
        for (int j = 0; j < N; j++) {
            v16_store(scores + i * stride + 16 * j, v16_mul(scale, acc[i][j]));
        }
    }
}

static void op_attn_scores(const float *q, size_t queries, const float *const *blocks,
                           size_t head_size, size_t keys, float scale, float *scores,
                           size_t stride) {
    const v16 s = v16_set1(scale);
    for (size_t k = 0; k < keys; k += 16 * ATTN_KEYS) { // these keys stay in the first-level cache
        const float *panel = blocks[k / TL_BLOCK] + k % TL_BLOCK * head_size;
        size_t i = 0;
        for (; i + ATTN_QUERIES <= queries; i += ATTN_QUERIES) {
            scores_tile(ATTN_QUERIES, ATTN_KEYS, q + i * head_size, panel, head_size, s,
                        scores + i * stride + k, stride);
        }
        for (; i + 2 <= queries; i += 2) {
            scores_tile(2, ATTN_KEYS, q + i * head_size, panel, head_size, s,
                        scores + i * stride + k, stride);
        }
        for (; i < queries; i++) {
            scores_tile(1, ATTN_KEYS, q + i * head_size, panel, head_size, s,
                        scores + i * stride + k, stride);
        }
    }
}

static void op_attn_softmax(const float *scores, size_t n, float *probs) {
    float max = -INFINITY, top[16], factor;
    double z = 0;
    size_t i = 0;
    {
        v16 m = v16_set1(-INFINITY);
        for (; i + 16 <= n; i += 16) m = v16_max(v16_load(scores + i), m);
        v16_store(top, m);
        for (int l = 0; l < 16; l++) max = top[l] > max ? top[l] : max;
        for (; i < n; i++) max = scores[i] > max ? scores[i] : max;
    }
    if (max == -INFINITY) { // nothing to attend to, or NaN only
        bool nan = false;
        for (i = 0; i < n; i++) nan |= scores[i] != scores[i];
        for (i = 0; i < n; i++) probs[i] = nan ? NAN : 0.0f;
        return;
    }
    for (size_t k = 0; k < n; k += TL_BLOCK) {
        const size_t end = TL_MIN(n, k + TL_BLOCK);
        double lane[16], sum = 0;
        d16 lanes = d16_zero();
        for (i = k; i + 16 <= end; i += 16) {
            v16 e = v16_exp(v16_sub(v16_load(scores + i), v16_set1(max)));
            v16_store(probs + i, e);
            lanes = d16_add(lanes, e);
        }
        d16_store(lane, lanes);
        if (i < end) {
            v16 e = v16_exp(v16_sub(v16_load_part(scores + i, end - i), v16_set1(max)));
            v16_store_part(probs + i, end - i, e);
            for (int l = 0; i < end; i++, l++) lane[l] += (double)probs[i];
        }
        for (int l = 0; l < 16; l++) sum += lane[l];
        z += sum;
    }
    factor = (float)(1.0 / z);
    for (i = 0; i + 16 <= n; i += 16) {
        v16_store(probs + i, v16_mul(v16_load(probs + i), v16_set1(factor)));
    }
    for (; i < n; i++) probs[i] *= factor;
}

/*
 * Values times probabilities for 16 * N columns: one chain of additions per block, in the order of
 * the keys; then the blocks are added. Query i sees the first keys - (queries - 1 - i) * step keys.
 */
TL_INLINE void mix_tile(const int queries, const int N, const float *probs, size_t probs_stride,
                        size_t step, size_t keys, const float *const *blocks, size_t value_stride,
                        size_t column, float *mix, size_t mix_stride) {
    const size_t all = keys - ((size_t)queries - 1) * step; // keys that every query sees
    for (size_t k = 0; k < keys; k += TL_BLOCK) {
        const float *v = blocks[k / TL_BLOCK] + column;
        const size_t end = TL_MIN(keys, k + TL_BLOCK), shared = TL_MIN(all, end);
        size_t p = k;
        v16 acc[ATTN_QUERIES][4];
        TL_UNROLL(6)
        for (int i = 0; i < queries; i++) {
            TL_UNROLL(6)
            for (int j = 0; j < N; j++) acc[i][j] = v16_set1(0.0f);
        }
        for (; p < shared; p++, v += value_stride) {
            v16 x[4];
            TL_UNROLL(6)
            for (int j = 0; j < N; j++) x[j] = v16_load(v + 16 * j);
            TL_UNROLL(6)
            for (int i = 0; i < queries; i++) {
                v16 w = v16_set1(probs[i * probs_stride + p]);
                TL_UNROLL(6)
                for (int j = 0; j < N; j++) acc[i][j] = v16_fma(w, x[j], acc[i][j]);
            }
        }
        for (; p < end; p++, v += value_stride) {
            TL_UNROLL(6)
            for (int i = 0; i < queries; i++) {
                if (p >= all + i * step) continue;
                v16 w = v16_set1(probs[i * probs_stride + p]);
                TL_UNROLL(6)
                for (int j = 0; j < N; j++) {
                    acc[i][j] = v16_fma(w, v16_load(v + 16 * j), acc[i][j]);
                }
            }
        }
        TL_UNROLL(6)
        for (int i = 0; i < queries; i++) {
            TL_UNROLL(6)
            for (int j = 0; j < N; j++) {
                float *to = mix + i * mix_stride + column + 16 * j;
                v16 before = k == 0 ? v16_set1(0.0f) : v16_load(to);
                v16_store(to, v16_add(before, acc[i][j]));
            }
        }
    }
}

TL_INLINE void mix_rows(const int queries, const float *probs, size_t probs_stride, size_t step,
                        size_t keys, const float *const *blocks, size_t value_stride, float *mix,
                        size_t mix_stride) {
    size_t c = 0;
    for (; c + 16 * ATTN_KEYS <= value_stride; c += 16 * ATTN_KEYS) {
        mix_tile(queries, ATTN_KEYS, probs, probs_stride, step, keys, blocks, value_stride, c, mix,
                 mix_stride);
    }
    for (; ATTN_KEYS > 1 && c < value_stride; c += 16) {
        mix_tile(queries, 1, probs, probs_stride, step, keys, blocks, value_stride, c, mix,
                 mix_stride);
    }
}

static void op_attn_mix(const float *probs, size_t probs_stride, size_t queries, size_t step,
                        size_t keys, const float *const *blocks, size_t value_stride, float *mix,
                        size_t mix_stride) {
    for (size_t i = 0, tile; i < queries; i += tile) {
        const float *from = probs + i * probs_stride;
        float *to = mix + i * mix_stride;
        size_t seen; // by the last query of the tile
        tile = queries - i >= ATTN_QUERIES ? ATTN_QUERIES : queries - i >= 2 ? 2 : 1;
        seen = keys - (queries - i - tile) * step;
        if (tile == ATTN_QUERIES) {
            mix_rows(ATTN_QUERIES, from, probs_stride, step, seen, blocks, value_stride, to,
                     mix_stride);
        } else if (tile == 2) {
            mix_rows(2, from, probs_stride, step, seen, blocks, value_stride, to, mix_stride);
        } else {
            mix_rows(1, from, probs_stride, step, seen, blocks, value_stride, to, mix_stride);
        }
    }
}

static void ops_init(struct tl_kernels *k) {
    k->norm_scale = op_norm_scale;
    k->norm_apply = op_norm_apply;
    k->add = op_add;
    k->silu_mul = op_silu_mul;
    k->rope_pairs = op_rope_pairs;
    k->rope_halves = op_rope_halves;
    k->attn_scores = op_attn_scores;
    k->attn_softmax = op_attn_softmax;
    k->attn_mix = op_attn_mix;
}
