/*
 * ops_template.h - the forward pass besides the matmuls: norms, RoPE, attention.
 *
 * docs/numerics.md section 3 defines what is computed, in which order and with which rounding. The
 * loops here do that on sixteen lanes.
 *
 * Needs:   simd/<set>.h, function_template.h
 * Defines: ops_init
 */

static float op_norm_scale(const float *x, size_t n, double divisor, float epsilon) {
    double lane[16] = {0}, sum = 0;
    size_t i = 0;
    for (; i + 16 <= n; i += 16) {
        for (int l = 0; l < 16; l++) lane[l] += (double)x[i + l] * x[i + l]; // exact products
    }
    for (int l = 0; i < n; i++, l++) lane[l] += (double)x[i] * x[i];
    for (int l = 0; l < 16; l++) sum += lane[l];
    return (float)(1.0 / sqrt(sum / divisor + (double)epsilon));
}

static void op_norm_apply(const float *x, const float *weight, size_t n, float scale, float *y) {
    const v16 s = v16_set1(scale);
    size_t i = 0;
    if (weight == NULL) {
        for (; i + 16 <= n; i += 16) v16_store(y + i, v16_mul(v16_load(x + i), s));
        for (; i < n; i++) y[i] = x[i] * scale;
        return;
    }
    for (; i + 16 <= n; i += 16) {
        v16_store(y + i, v16_mul(v16_mul(v16_load(x + i), s), v16_load(weight + i)));
    }
    for (; i < n; i++) y[i] = (x[i] * scale) * weight[i];
}

static float op_norm_mean(const float *x, size_t n) {
    double lane[16] = {0}, sum = 0;
    size_t i = 0;
    for (; i + 16 <= n; i += 16) {
        for (int l = 0; l < 16; l++) lane[l] += x[i + l];
    }
    for (int l = 0; i < n; i++, l++) lane[l] += x[i];
    for (int l = 0; l < 16; l++) sum += lane[l];
    return (float)(sum / (double)n);
}

static float op_layer_scale(const float *x, size_t n, float mean, float epsilon) {
    double lane[16] = {0}, sum = 0;
    size_t i = 0;
    for (; i + 16 <= n; i += 16) {
        for (int l = 0; l < 16; l++) {
            const float d = x[i + l] - mean;
            lane[l] += (double)d * d;
        }
    }
    for (int l = 0; i < n; i++, l++) {
        const float d = x[i] - mean;
        lane[l] += (double)d * d;
    }
    for (int l = 0; l < 16; l++) sum += lane[l];
    return (float)(1.0 / sqrt(sum / (double)n + (double)epsilon));
}

static void op_layer_apply(const float *x, const float *weight, const float *bias, size_t n,
                           float mean, float scale, float *y) {
    const v16 m = v16_set1(mean), s = v16_set1(scale);
    size_t i = 0;
    for (; i + 16 <= n; i += 16) {
        v16 z = v16_mul(v16_sub(v16_load(x + i), m), s);
        if (weight != NULL) z = v16_mul(z, v16_load(weight + i));
        if (bias != NULL) z = v16_add(z, v16_load(bias + i));
        v16_store(y + i, z);
    }
    for (; i < n; i++) {
        float z = (x[i] - mean) * scale;
        if (weight != NULL) z = z * weight[i];
        if (bias != NULL) z = z + bias[i];
        y[i] = z;
    }
}

static void op_add(const float *a, const float *b, float *y, size_t n) {
    size_t i = 0;
    for (; i + 16 <= n; i += 16) v16_store(y + i, v16_add(v16_load(a + i), v16_load(b + i)));
    for (; i < n; i++) y[i] = a[i] + b[i];
}

static void op_weighted_sum(const float *x, const float *weights, size_t n, size_t width,
                            float *y) {
    size_t i = 0;
    for (; i + 16 <= width; i += 16) {
        v16 sum = v16_set1(0.0f);
        for (size_t j = 0; j < n; j++) {
            sum = v16_fma(v16_set1(weights[j]), v16_load(x + j * width + i), sum);
        }
        v16_store(y + i, sum);
    }
    for (; i < width; i++) {
        y[i] = 0;
        for (size_t j = 0; j < n; j++) y[i] = fmaf(weights[j], x[j * width + i], y[i]);
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

static void op_attn_softmax(const float *scores, size_t n, float sink, float *probs) {
    float max = sink, top[16], factor;
    double z;
    size_t i = 0;
    {
        v16 m = v16_set1(-INFINITY);
        for (; i + 16 <= n; i += 16) m = v16_max(v16_load(scores + i), m);
        v16_store(top, m);
        for (int w = 8; w > 0; w /= 2) { // no lane is NaN, so the order is of no matter
            for (int l = 0; l < w; l++) top[l] = top[l] > top[l + w] ? top[l] : top[l + w];
        }
        max = top[0] > max ? top[0] : max;
        for (; i < n; i++) max = scores[i] > max ? scores[i] : max;
    }
    if (max == -INFINITY) { // nothing to attend to, or NaN only
        bool nan = false;
        for (i = 0; i < n; i++) nan |= scores[i] != scores[i];
        for (i = 0; i < n; i++) probs[i] = nan ? NAN : 0.0f;
        return;
    }
    z = 0;
    if (sink != -INFINITY) {
        v16_store(top, v16_exp(v16_set1(sink - max)));
        z = top[0];
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
 * the keys; then the blocks are added. Query i sees the keys of seen[i].
 */
TL_INLINE void mix_tile(const int queries, const int N, const float *probs, size_t probs_stride,
                        const struct tl_range *seen, const float *const *blocks,
                        size_t value_stride, size_t column, float *mix, size_t mix_stride) {
    struct tl_range any = seen[0], all = seen[0]; // the keys that any query sees, and that all see
    for (int i = 1; i < queries; i++) {
        any = (struct tl_range){TL_MIN(any.first, seen[i].first), TL_MAX(any.end, seen[i].end)};
        all = (struct tl_range){TL_MAX(all.first, seen[i].first), TL_MIN(all.end, seen[i].end)};
    }
    for (size_t first = any.first, end; first < any.end; first = end) {
        const size_t k = first / TL_BLOCK * TL_BLOCK;
        const float *v = blocks[k / TL_BLOCK] + (first - k) * value_stride + column;
        size_t p = first;
        v16 acc[ATTN_QUERIES][4];
        end = TL_MIN(any.end, k + TL_BLOCK);
        TL_UNROLL(6)
        for (int i = 0; i < queries; i++) {
            TL_UNROLL(6)
            for (int j = 0; j < N; j++) acc[i][j] = v16_set1(0.0f);
        }
        while (p < end) {
            const bool shared = p >= all.first && p < all.end;
            const size_t stop = shared          ? TL_MIN(all.end, end)
                                : p < all.first ? TL_MIN(all.first, end)
                                                : end;
            for (; shared && p < stop; p++, v += value_stride) {
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
            for (; p < stop; p++, v += value_stride) {
                TL_UNROLL(6)
                for (int i = 0; i < queries; i++) {
                    if (p < seen[i].first || p >= seen[i].end) continue;
                    v16 w = v16_set1(probs[i * probs_stride + p]);
                    TL_UNROLL(6)
                    for (int j = 0; j < N; j++) {
                        acc[i][j] = v16_fma(w, v16_load(v + 16 * j), acc[i][j]);
                    }
                }
            }
        }
        TL_UNROLL(6)
        for (int i = 0; i < queries; i++) {
            TL_UNROLL(6)
            for (int j = 0; j < N; j++) {
                float *to = mix + i * mix_stride + column + 16 * j;
                v16 before = first == any.first ? v16_set1(0.0f) : v16_load(to);
                v16_store(to, v16_add(before, acc[i][j]));
            }
        }
    }
}

TL_INLINE void mix_rows(const int queries, const float *probs, size_t probs_stride,
                        const struct tl_range *seen, const float *const *blocks,
                        size_t value_stride, float *mix, size_t mix_stride) {
    size_t c = 0;
    for (; c + 16 * ATTN_KEYS <= value_stride; c += 16 * ATTN_KEYS) {
        mix_tile(queries, ATTN_KEYS, probs, probs_stride, seen, blocks, value_stride, c, mix,
                 mix_stride);
    }
    for (; ATTN_KEYS > 1 && c < value_stride; c += 16) {
        mix_tile(queries, 1, probs, probs_stride, seen, blocks, value_stride, c, mix, mix_stride);
    }
}

static void op_attn_mix(const float *probs, size_t probs_stride, size_t queries,
                        const struct tl_range *seen, const float *const *blocks,
                        size_t value_stride, float *mix, size_t mix_stride) {
    for (size_t i = 0, tile; i < queries; i += tile) {
        const float *from = probs + i * probs_stride;
        float *to = mix + i * mix_stride;
        tile = queries - i >= ATTN_QUERIES ? ATTN_QUERIES : queries - i >= 2 ? 2 : 1;
        if (tile == ATTN_QUERIES) {
            mix_rows(ATTN_QUERIES, from, probs_stride, seen + i, blocks, value_stride, to,
                     mix_stride);
        } else if (tile == 2) {
            mix_rows(2, from, probs_stride, seen + i, blocks, value_stride, to, mix_stride);
        } else {
            mix_rows(1, from, probs_stride, seen + i, blocks, value_stride, to, mix_stride);
        }
    }
}

/* ---- stored keys and values as floats ---- */

static void op_widen_f16(const void *from, size_t n, float *to) {
    const uint8_t *half = from;
    for (size_t i = 0; i < n; i += 16) v16_store(to + i, v16_load_f16(half + 2 * i));
}

static void op_widen_q8_keys(const void *scales, const uint8_t *from, size_t size, float *to) {
    const uint8_t *half = scales;
    for (size_t first = 0; first < size; first += 32, half += 32) {
        const v16 scale = v16_load_f16(half);
        const size_t end = TL_MIN(size, first + 32);
        for (size_t d = first; d < end; d++) {
            v16_store(to + 16 * d, v16_mul(v16_load_i8(from + 16 * d), scale));
        }
    }
}

static void op_widen_q8_values(const void *scales, const uint8_t *from, size_t size, float *to) {
    const uint8_t *half = scales;
    for (size_t first = 0; first < size; first += 32, half += 32) {
        float each[16];
        v16_store(each, v16_load_f16(half));
        for (size_t row = 0; row < 16; row++) {
            const v16 scale = v16_set1(each[row]);
            const size_t at = row * size + first;
            v16_store(to + at, v16_mul(v16_load_i8(from + at), scale));
            if (first + 16 >= size) continue;
            v16_store(to + at + 16, v16_mul(v16_load_i8(from + at + 16), scale));
        }
    }
}

static void ops_init(struct tl_kernels *k) {
    k->norm_scale = op_norm_scale;
    k->norm_apply = op_norm_apply;
    k->norm_mean = op_norm_mean;
    k->layer_scale = op_layer_scale;
    k->layer_apply = op_layer_apply;
    k->add = op_add;
    k->unary = function_unary;
    k->gated = function_gated;
    k->weighted_sum = op_weighted_sum;
    k->rope_pairs = op_rope_pairs;
    k->rope_halves = op_rope_halves;
    k->attn_scores = op_attn_scores;
    k->attn_softmax = op_attn_softmax;
    k->attn_mix = op_attn_mix;
    k->widen_f16 = op_widen_f16;
    k->widen_q8_keys = op_widen_q8_keys;
    k->widen_q8_values = op_widen_q8_values;
}
