/*
 * loops_template.h - the loops of loops.h for one instruction set.
 *
 * A template is compiled once per instruction set: it has no include guard.
 *
 * Needs:   simd/<set>.h
 * Defines: TL_LOOPS
 */

/* Columns that are summed at the same time, in vectors. */
#define LOOP_VECTORS 4

TL_INLINE v16 loop_load(const float *p, size_t n) {
    return n >= 16 ? v16_load(p) : v16_load_part(p, n);
}

/* The first n of sixteen values: x, added to what is there unless it is fresh. */
TL_INLINE void loop_put(float *to, size_t n, bool fresh, v16 x) {
    if (!fresh) x = v16_add(loop_load(to, n), x);
    if (n >= 16) {
        v16_store(to, x);
    } else {
        v16_store_part(to, n, x);
    }
}

TL_INLINE double loop_total(d16 lanes) {
    double lane[16], sum = 0;
    d16_store(lane, lanes);
    for (int l = 0; l < 16; l++) sum += lane[l];
    return sum;
}

static void loop_columns(const float *x, size_t rows, size_t stride, size_t n, float *to) {
    for (size_t j = 0; j < n; j += 16 * LOOP_VECTORS) {
        v16 sum[LOOP_VECTORS];
        for (size_t v = 0; v < LOOP_VECTORS; v++) sum[v] = v16_set1(0);
        for (size_t i = 0; i < rows; i++) {
            TL_UNROLL(4)
            for (size_t v = 0; v < LOOP_VECTORS; v++) {
                const size_t at = j + 16 * v;
                if (at < n) sum[v] = v16_add(sum[v], loop_load(x + i * stride + at, n - at));
            }
        }
        for (size_t v = 0; v < LOOP_VECTORS && j + 16 * v < n; v++) {
            loop_put(to + j + 16 * v, n - j - 16 * v, false, sum[v]);
        }
    }
}

static void loop_product(const float *a, const float *b, const float *c, size_t n, bool fresh,
                         float *to) {
    for (size_t i = 0; i < n; i += 16) {
        v16 x = v16_mul(loop_load(a + i, n - i), loop_load(b + i, n - i));
        if (c != NULL) x = v16_mul(x, loop_load(c + i, n - i));
        loop_put(to + i, n - i, fresh, x);
    }
}

static void loop_shifted(const float *x, size_t n, float mean, float factor, bool fresh,
                         float *to) {
    const v16 m = v16_set1(mean), f = v16_set1(factor);
    for (size_t i = 0; i < n; i += 16) {
        loop_put(to + i, n - i, fresh, v16_mul(v16_sub(loop_load(x + i, n - i), m), f));
    }
}

static void loop_norm(const float *x, const float *w, const float *dy, size_t n, float mean,
                      float scale, bool fresh, float *dx, double sums[2]) {
    const v16 m = v16_set1(mean), s = v16_set1(scale);
    d16 by_x = d16_zero(), plain = d16_zero();
    for (size_t i = 0; i < n; i += 16) {
        v16 d = loop_load(dy + i, n - i);
        if (w != NULL) d = v16_mul(d, loop_load(w + i, n - i));
        // beyond the end d is zero
        by_x = d16_add(by_x, v16_mul(d, v16_sub(loop_load(x + i, n - i), m)));
        plain = d16_add(plain, d);
        if (dx != NULL) loop_put(dx + i, n - i, fresh, v16_mul(d, s));
    }
    sums[0] = loop_total(by_x);
    sums[1] = loop_total(plain);
}

static void loop_norm_weight(const struct tl_norm_vectors *v, size_t first, size_t last, float *dw,
                             float *dbias) {
    for (size_t j = first; j < last; j += 16) {
        const size_t n = last - j;
        v16 by_weight = v16_set1(0), by_bias = v16_set1(0);
        for (size_t i = 0; i < v->count; i++) {
            const v16 dy = loop_load(v->dy + i * v->stride + j, n);
            v16 x = loop_load(v->x + i * v->stride + j, n);
            if (v->means != NULL) x = v16_sub(x, v16_set1(v->means[i * v->step]));
            by_weight = v16_fma(dy, v16_mul(x, v16_set1(v->scales[i * v->step])), by_weight);
            by_bias = v16_add(by_bias, dy);
        }
        if (dw != NULL) loop_put(dw + j, n, false, by_weight);
        if (dbias != NULL) loop_put(dbias + j, n, false, by_bias);
    }
}

static void loop_softmax(const float *probs, size_t n, float *d) {
    d16 lanes = d16_zero();
    v16 sum;
    for (size_t i = 0; i < n; i += 16) {
        lanes = d16_add(lanes, v16_mul(loop_load(probs + i, n - i), loop_load(d + i, n - i)));
    }
    sum = v16_set1((float)loop_total(lanes));
    for (size_t i = 0; i < n; i += 16) {
        const v16 x = v16_sub(loop_load(d + i, n - i), sum);
        loop_put(d + i, n - i, true, v16_mul(loop_load(probs + i, n - i), x));
    }
}

/* z of GELU_TANH, which is x sigmoid(z): 2 sqrt(2 / pi) (x + 0.044715 x^3). */
static void loop_inner(const float *x, size_t n, float *to) {
    for (size_t i = 0; i < n; i++) to[i] = 1.5957691f * (x[i] + 0.044715f * x[i] * x[i] * x[i]);
}

static void loop_slope(enum tl_function f, float p, const float *x, const float *y, const float *s,
                       size_t n, float *to) {
    switch (f) {
    case TL_FN_SILU:
        for (size_t i = 0; i < n; i++) to[i] = s[i] * (1 + x[i] * (1 - s[i]));
        return;
    case TL_FN_GELU_TANH:
        for (size_t i = 0; i < n; i++) {
            const float dz = 1.5957691f * (1 + 0.134145f * x[i] * x[i]);
            const float slope = s[i] * (1 - s[i]);
            to[i] = s[i] + (slope != 0 ? x[i] * slope * dz : 0); // 0 times infinity
        }
        return;
    case TL_FN_SIGMOID:
        for (size_t i = 0; i < n; i++) to[i] = y[i] * (1 - y[i]);
        return;
    case TL_FN_RELU:
        for (size_t i = 0; i < n; i++) to[i] = x[i] > 0 ? 1.0f : 0.0f;
        return;
    case TL_FN_RELU2:
        for (size_t i = 0; i < n; i++) to[i] = x[i] > 0 ? 2 * x[i] : 0;
        return;
    case TL_FN_SOFT_CAP:
        for (size_t i = 0; i < n; i++) to[i] = 1 - y[i] / p * (y[i] / p);
        return;
    case TL_FN_CLAMP:
        for (size_t i = 0; i < n; i++) to[i] = x[i] > -p && x[i] < p ? 1.0f : 0.0f;
        return;
    default: // the identity, and SCALE
        for (size_t i = 0; i < n; i++) to[i] = f == TL_FN_SCALE ? p : 1.0f;
    }
}

#define TL_LOOPS(set)                                                                              \
    const struct tl_loops tl_loops_##set = {                                                       \
        .columns = loop_columns,                                                                   \
        .product = loop_product,                                                                   \
        .shifted = loop_shifted,                                                                   \
        .norm = loop_norm,                                                                         \
        .norm_weight = loop_norm_weight,                                                           \
        .softmax = loop_softmax,                                                                   \
        .inner = loop_inner,                                                                       \
        .slope = loop_slope,                                                                       \
    };
