/* ops.cl - the steps of a plan but matmuls and attention; docs/numerics.md says what each is. */

#define CHUNK 256

/*
 * Packs the activations (tokens, cols) of quantized matmuls; matmul.cl says how. A work-group takes
 * a chunk of a token. global: (items, chunks, tokens); local: (items, 1, 1)
 */
__kernel void pack(int cols, int chunks, __global const uint *x, __global short2 *words,
                   __global int *sums, __global int *exponents, __local int *X) {
    const int lane = (int)get_local_id(0), lanes = (int)get_local_size(0);
    const size_t token = get_global_id(2), chunk = get_global_id(1), at = token * chunks + chunk;
    const int n = min(CHUNK, cols - (int)chunk * CHUNK);
    __global const uint *from = x + token * cols + chunk * CHUNK;
    uint largest = 0;
    int e;
    for (int k = lane; k < n; k += lanes) largest = max(largest, from[k] & 0x7fffffffu);
    X[lane] = (int)largest;
    barrier(CLK_LOCAL_MEM_FENCE);
    for (int i = 0; i < lanes; i++) largest = max(largest, (uint)X[i]);
    barrier(CLK_LOCAL_MEM_FENCE);
    e = max(23, (int)((largest + 0x010101u) >> 23));
    if (largest >= 0x7f800000u) e = -1;
    for (int k = lane; k < CHUNK; k += lanes) {
        const uint bits = k < n ? from[k] : 0;
        const int exponent = max(1, (int)(bits >> 23 & 255));
        const uint m = (bits & 0x7fffffu) | (uint)((bits >> 23 & 255) != 0) << 23;
        const int shift = e + 1 - exponent; // of m, for rint(x 2^(149 - e)); at least 1
        int value = 0;
        if (e >= 0 && shift < 26) {
            const uint lost = m & ((1u << shift) - 1), half_bit = 1u << (shift - 1);
            value = (int)(m >> shift);
            value += lost > half_bit || (lost == half_bit && (value & 1));
            if (bits >> 31) value = -value;
        }
        const int high = (value + 2048) >> 12;
        words[at * CHUNK + k] = (short2)((short)(value - high * 4096), (short)high);
        X[k] = value;
    }
    barrier(CLK_LOCAL_MEM_FENCE);
    for (int g = lane; g < 16; g += lanes) {
        int sum = 0;
        for (int i = 0; i < 16; i++) sum += X[16 * g + i];
        sums[at * 16 + g] = sum;
    }
    if (lane == 0) exponents[at] = e;
}

/* Rounds to an integer, ties to even; |x| < 2^22. */
float f_round(float x) { return f_sub(f_add(x, 12582912.0f), 12582912.0f); }

/*
 * Packs the activations (tokens, cols) for the matmuls of fast mode; fast.cl says how. An item
 * rounds a block of 32. global: (blocks, tokens)
 */
__kernel void pack_fast(int cols, int blocks, __global const float *x, __global char *X,
                        __global int *sums, __global float *scales) {
    const int block = (int)get_global_id(0);
    const size_t token = get_global_id(1), at = token * blocks + block;
    float values[32], factor = 0.0f, least = INFINITY, square[2], rest[2], all;
    uint largest = 0;
    if (block >= blocks) return;
    for (int k = 0; k < 32; k++) {
        values[k] = 32 * block + k < cols ? x[token * cols + 32 * block + k] : 0.0f;
        largest = max(largest, as_uint(values[k]) & 0x7fffffffu);
    }
    // a block that is not finite, or all below 2^-100, becomes zeros
    const bool finite = largest < 0x7f800000u, zeros = largest < 0x0d800000u || !finite;
    for (int limit = 127; limit > 119 && !zeros; limit--) {
        const float f = f_mul(f_div(128.0f, as_float(largest)), f_mul(f_long(limit), 0x1p-7f));
        float error[2] = {0.0f, 0.0f};
        for (int k = 0; k < 32; k++) {
            const float scaled = f_mul(values[k], f), e = f_sub(scaled, f_round(scaled));
            error[k / 16] = f_fma(e, e, error[k / 16]);
        }
        all = f_mul(f_add(error[0], error[1]), f_div(16129.0f, f_long(limit * limit)));
        if (f_less(all, least)) {
            least = all;
            factor = f;
        }
    }
    for (int g = 0; g < 2; g++) {
        int sum = 0;
        square[g] = rest[g] = 0.0f;
        for (int k = 16 * g; k < 16 * g + 16; k++) {
            const float scaled = zeros ? 0.0f : f_mul(values[k], factor), q = f_round(scaled);
            square[g] = f_fma(q, q, square[g]);
            rest[g] = f_fma(f_sub(scaled, q), q, rest[g]);
            X[at * 32 + k] = (char)(int)q;
            sum += (int)q;
        }
        sums[at * 2 + g] = sum;
    }
    // the scale with the least squared error for these integers
    all = f_add(square[0], square[1]);
    all = f_div(f_add(all, f_add(rest[0], rest[1])), f_mul(all, factor));
    scales[at] = !finite ? NAN : zeros ? 0.0f : all;
}

/* ---- each value from values at the same place ---- */

__kernel void add(ulong n, __global const float *a, __global const float *b, __global float *y) {
    const size_t i = get_global_id(0);
    if (i < n) y[i] = f_add(a[i], b[i]);
}

/* y (rows, width) times a scale, plus a bias of `width` values; each only if it is given. */
__kernel void finish_rows(ulong n, ulong width, __global const float *scale,
                          __global const float *bias, __global float *y) {
    const size_t i = get_global_id(0);
    if (i >= n) return;
    float x = y[i];
    if (scale != 0) x = f_mul(x, scale[0]);
    if (bias != 0) x = f_add(x, bias[i % width]);
    y[i] = x;
}

__kernel void unary(ulong n, int function, float parameter, float inverse,
                    __global const float *x, __global float *y) {
    const size_t i = get_global_id(0);
    if (i < n) y[i] = f_apply(function, parameter, inverse, x[i]);
}

/* f(gate) * up; a gate is for `each` values of up. */
__kernel void gated(ulong n, ulong each, int function, float alpha, float inverse, float limit,
                    __global const float *gate, __global const float *up, __global float *y) {
    const size_t i = get_global_id(0);
    if (i >= n) return;
    const float g = gate[i / each], u = up[i];
    if (function == FN_OAI && each == 1) {
        const float top = f_less(limit, g) ? limit : g;
        const float part = f_over(top, f_mul(top, f_neg(alpha)));
        y[i] = f_mul(part, f_add(f_clamp(u, f_sub(0.0f, limit), limit), 1.0f));
    } else {
        y[i] = f_mul(u, f_apply(function, alpha, inverse, g));
    }
}

/* x times a weight of `period` values. */
__kernel void times_weight(ulong n, ulong period, __global const float *x,
                           __global const float *weight, __global float *y) {
    const size_t i = get_global_id(0);
    if (i < n) y[i] = f_mul(x[i], weight[i % period]);
}

/* x (rows, width) times one factor for each row. */
__kernel void times_rows(ulong n, ulong width, __global const float *x,
                         __global const float *factors, __global float *y) {
    const size_t i = get_global_id(0);
    if (i < n) y[i] = f_mul(x[i], factors[i / width]);
}

/* ---- moving values ---- */

/* Each run of `stride` values gives `run` of them, from `first` on. */
__kernel void slice(ulong n, ulong stride, ulong first, ulong run, __global const float *x,
                    __global float *y) {
    const size_t i = get_global_id(0);
    if (i < n) y[i] = x[i / run * stride + first + i % run];
}

/* a (rows, heads, a_size) and b (rows, heads or 1, b_size) behind each other. */
__kernel void concat(ulong n, ulong a_size, ulong b_size, ulong heads_of_b,
                     __global const float *a, __global const float *b, __global float *y) {
    const size_t i = get_global_id(0), size = a_size + b_size, head = i / size, j = i % size;
    if (i >= n) return;
    y[i] = j < a_size ? a[head * a_size + j] : b[head / heads_of_b * b_size + (j - a_size)];
}

/* Vectors (rows, count, size) plus a vector (rows, size). */
__kernel void add_shared(ulong n, ulong count, ulong size, __global const float *x,
                         __global const float *shared, __global float *y) {
    const size_t i = get_global_id(0);
    if (i < n) y[i] = f_add(x[i], shared[i / (count * size) * size + i % size]);
}

/* Sums of `count` vectors: x (rows, count, size), weights (rows, sums, count), y (rows, sums, size).
 */
__kernel void combine(ulong n, ulong sums, ulong count, ulong size, __global const float *x,
                      __global const float *weights, __global float *y) {
    const size_t i = get_global_id(0), vector = i / size, row = vector / sums;
    float sum = 0.0f;
    if (i >= n) return;
    for (size_t j = 0; j < count; j++) {
        sum = f_fma(weights[vector * count + j], x[(row * count + j) * size + i % size], sum);
    }
    y[i] = sum;
}

/* ---- norms: sums in sixteen lanes, which are added in order ---- */

/* Adds the lanes of this item's vector. */
real sum_of_lanes(real lane, __local ulong *lanes) {
    __local ulong *mine = lanes + get_local_id(1) * 16;
    real sum = R0;
    mine[get_local_id(0)] = r_to_bits(lane);
    barrier(CLK_LOCAL_MEM_FENCE);
    for (int l = 0; l < 16; l++) sum = r_add(sum, r_bits(mine[l]));
    return sum;
}

/* Which statistic of a vector. */
enum { RMS_SCALE, LENGTH_SCALE, MEAN, DEVIATION_SCALE };

/*
 * One statistic for each of `vectors` vectors of n values.
 * global: (16, vectors); local: (16, vectors of a group)
 */
__kernel void statistic(int kind, ulong vectors, ulong n, float epsilon, __global const float *x,
                        __global const float *means, __global float *y, __local ulong *lanes) {
    const size_t vector = get_global_id(1);
    __global const float *from = x + min(vector, (size_t)vectors - 1) * n;
    real lane = R0, sum;
    for (size_t k = get_local_id(0); k < n; k += 16) {
        float value = from[k];
        if (kind == DEVIATION_SCALE) value = f_sub(value, means[min(vector, (size_t)vectors - 1)]);
        const real wide = r_float(value);
        lane = r_add(lane, kind == MEAN ? wide : r_mul(wide, wide));
    }
    sum = sum_of_lanes(lane, lanes);
    if (get_local_id(0) != 0 || vector >= vectors) return;
    if (kind != LENGTH_SCALE) sum = r_div(sum, r_long((long)n));
    if (kind != MEAN) sum = r_div(R1, r_root(r_add(sum, r_float(epsilon))));
    y[vector] = r_to_float(sum);
}

/* (x - mean) * scale * weight + bias; the mean, the weight and the bias only if they are given. */
__kernel void apply_norm(ulong n, ulong size, ulong period, __global const float *x,
                        __global const float *means, __global const float *scales,
                        __global const float *weight, __global const float *bias,
                        __global float *y) {
    const size_t i = get_global_id(0), vector = i / size;
    if (i >= n) return;
    float z = x[i];
    if (means != 0) z = f_sub(z, means[vector]);
    z = f_mul(z, scales[vector]);
    if (weight != 0) z = f_mul(z, weight[i % period]);
    if (bias != 0) z = f_add(z, bias[i % period]);
    y[i] = z;
}

/* max(x - bound, 0), where the bound is mean + factor / scale of the vector. */
__kernel void sparsify(ulong n, ulong size, float factor, __global const float *x,
                       __global const float *means, __global const float *scales,
                       __global float *y) {
    const size_t i = get_global_id(0), vector = i / size;
    if (i >= n) return;
    const real part = r_div(r_float(factor), r_float(scales[vector]));
    const float above = f_sub(x[i], r_to_float(r_add(r_float(means[vector]), part)));
    y[i] = f_less(above, 0.0f) ? 0.0f : above;
}

/* ---- float64 until the end ---- */

/* log(1 + exp(x + bias)); a bias of `width` values only if it is given. */
__kernel void softplus(ulong n, ulong width, __global const float *x, __global const float *bias,
                       __global float *y) {
    const size_t i = get_global_id(0);
    if (i >= n) return;
    y[i] = r_to_float(r_softplus(r_add(r_float(x[i]), bias != 0 ? r_float(bias[i % width]) : R0)));
}

/* exp(factor x); the bits of the factor. */
__kernel void exponential(ulong n, ulong factor, __global const float *x, __global float *y) {
    const size_t i = get_global_id(0);
    if (i < n) y[i] = r_to_float(r_exp(r_mul(r_bits(factor), r_float(x[i]))));
}

__kernel void xielu(ulong n, float positive, float negative, float beta, float top,
                    __global const float *values, __global float *y) {
    const size_t i = get_global_id(0);
    if (i >= n) return;
    const real x = r_float(values[i]), linear = r_mul(r_float(beta), x);
    if (r_less(R0, x)) {
        y[i] = r_to_float(r_mul(r_add(r_mul(r_float(positive), x), r_float(beta)), x));
    } else {
        const real e = r_exp(r_less(r_float(top), x) ? r_float(top) : x);
        y[i] = r_to_float(r_add(r_mul(r_sub(r_sub(e, R1), x), r_float(negative)), linear));
    }
}

/* exp(rate softplus(x + bias)); rate and bias of `width` values. */
__kernel void decay(ulong n, ulong width, __global const float *x, __global const float *rate,
                    __global const float *bias, __global float *y) {
    const size_t i = get_global_id(0);
    if (i >= n) return;
    const real t = r_softplus(r_add(r_float(x[i]), r_float(bias[i % width])));
    y[i] = r_to_float(r_exp(r_mul(r_float(rate[i % width]), t)));
}

/*
 * Vectors x (rows, count, n), each with the root mean square of one of `like` (rows, n).
 * global: (16, vectors); local: (16, vectors of a group)
 */
__kernel void match_rms(ulong vectors, ulong count, ulong n, float most, __global const float *x,
                        __global const float *like, __global float *y, __local ulong *lanes) {
    const size_t vector = min(get_global_id(1), (size_t)vectors - 1);
    real lane = R0, other = R0;
    x += vector * n;
    like += vector / count * n;
    for (size_t k = get_local_id(0); k < n; k += 16) {
        lane = r_add(lane, r_mul(r_float(x[k]), r_float(x[k])));
        other = r_add(other, r_mul(r_float(like[k]), r_float(like[k])));
    }
    lane = sum_of_lanes(lane, lanes);
    barrier(CLK_LOCAL_MEM_FENCE);
    other = sum_of_lanes(other, lanes);
    const real size = r_long((long)n);
    const float scale = r_to_float(r_div(R1, r_root(r_div(lane, size))));
    const float rms = f_div(1.0f, r_to_float(r_div(R1, r_root(r_div(other, size)))));
    if (get_global_id(1) >= vectors) return;
    for (size_t k = get_local_id(0); k < n; k += 16) {
        y[vector * n + k] = f_mul(f_mul(x[k], f_less(most, scale) ? most : scale), rms);
    }
}

/* ---- RoPE ---- */

/* x (rows, heads, size), cos_sin (rows, rotated / 2, 2); `halves`: the pairs are (j, j + half). */
__kernel void rope(ulong n, ulong heads, ulong size, ulong rotated, int halves,
                   __global const float *x, __global const float *cos_sin, __global float *y) {
    const size_t i = get_global_id(0), j = i % size, half_size = rotated / 2;
    if (i >= n) return;
    if (j >= rotated) {
        y[i] = x[i];
        return;
    }
    const size_t pair = halves ? j % half_size : j / 2, away = halves ? half_size : 1;
    const bool second = halves ? j >= half_size : j % 2 != 0;
    __global const float *turn = cos_sin + (i / (heads * size) * half_size + pair) * 2;
    const float a = second ? x[i - away] : x[i], b = second ? x[i] : x[i + away];
    y[i] = second ? f_fma(a, turn[1], f_mul(b, turn[0]))
                  : f_fma(a, turn[0], f_neg(f_mul(b, turn[1])));
}
