/*
 * recurrent.cl - ops with a state; forward/recurrent.c and scan.c are the CPU's.
 *
 * Each kernel runs some rows of one span. `before` is the state before them and `after` the state
 * behind them, which may be the same memory. No sum crosses columns, so each item has a column.
 */

/* ---- the values of the last tokens: state (taps - 1, channels) ---- */

/* The value of channel c of the token `back` before row `row`, of rows from `first` on. */
float value_before(__global const float *x, __global const float *before, ulong first, int taps,
                   ulong channels, int row, int back, size_t c) {
    if (back <= row) return x[(first + (ulong)(row - back)) * channels + c];
    return before[(ulong)(taps - 1 - (back - row)) * channels + c];
}

/* weights (taps, channels); n values. */
__kernel void conv(ulong n, ulong first, int taps, ulong channels, __global const float *x,
                   __global const float *before, __global const float *weights,
                   __global const float *bias, __global float *y) {
    const size_t i = get_global_id(0), c = i % channels;
    const int row = (int)(i / channels);
    float sum = 0.0f;
    if (i >= n) return;
    for (int j = 0; j < taps; j++) {
        const float value = value_before(x, before, first, taps, channels, row, taps - 1 - j, c);
        sum = f_fma(weights[j * channels + c], value, sum);
    }
    y[first * channels + i] = bias != 0 ? f_add(sum, bias[c]) : sum;
}

/* y (rows, parts, channels), shares (parts, channels); n values. */
__kernel void shift(ulong n, ulong first, ulong parts, ulong channels, __global const float *x,
                    __global const float *before, __global const float *shares,
                    __global float *y) {
    const size_t i = get_global_id(0), c = i % channels, part = i / channels % parts;
    const int row = (int)(i / channels / parts);
    if (i >= n) return;
    const float now = x[(first + row) * channels + c];
    const float last = value_before(x, before, first, 2, channels, row, 1, c);
    y[first * parts * channels + i] =
        f_add(now, f_mul(f_sub(last, now), shares[part * channels + c]));
}

/* The state behind `rows` rows. */
__kernel void last_values(ulong channels, ulong first, int rows, int taps,
                          __global const float *x, __global const float *before,
                          __global float *after) {
    const size_t c = get_global_id(0);
    if (c >= channels) return;
    // values move towards the beginning, so none is read after it was overwritten
    for (int j = 0; j + 1 < taps; j++) {
        after[j * channels + c] =
            value_before(x, before, first, taps, channels, rows - 1, taps - 2 - j, c);
    }
}

/* ---- a matrix for each head: state (heads, states, size) ---- */

/* What all of them need: rows from `first` on, and the axes of the state. */
typedef struct {
    ulong first, rows, heads, states, size;
} shape;

/* The gated delta rule: q, k (rows, key_heads, states), v, y (rows, heads, size), one decay and
   beta for each head. global: (size, heads) */
__kernel void delta(shape s, ulong key_heads, int tiled, float factor, __global const float *before,
                    __global float *after, __global const float *q, __global const float *k,
                    __global const float *v, __global const float *decay,
                    __global const float *beta, __global float *y) {
    const size_t column = get_global_id(0), head = get_global_id(1);
    const size_t key_head = tiled ? head % key_heads : head / (s.heads / key_heads);
    if (column >= s.size) return;
    before += head * s.states * s.size + column;
    after += head * s.states * s.size + column;
    for (size_t row = s.first; row < s.first + s.rows; row++) {
        const size_t one = row * s.heads + head, at = (row * key_heads + key_head) * s.states;
        const float keep = decay[one];
        float sum = 0.0f;
        for (size_t i = 0; i < s.states; i++) {
            sum = f_fma(f_mul(keep, before[i * s.size]), k[at + i], sum);
        }
        const float change = f_mul(f_sub(v[one * s.size + column], sum), beta[one]);
        sum = 0.0f;
        for (size_t i = 0; i < s.states; i++) {
            const float state = f_fma(k[at + i], change, f_mul(keep, before[i * s.size]));
            after[i * s.size] = state;
            sum = f_fma(state, q[at + i], sum);
        }
        y[one * s.size + column] = f_mul(factor, sum);
        before = after;
    }
}

/* Mamba-2: x, y (rows, heads, size), dt and decay for each head, b, c (rows, groups, states).
   global: (size, heads) */
__kernel void scan(shape s, ulong groups, __global const float *before, __global float *after,
                   __global const float *x, __global const float *dt, __global const float *b,
                   __global const float *c, __global const float *decay,
                   __global const float *skip, __global float *y) {
    const size_t column = get_global_id(0), head = get_global_id(1);
    if (column >= s.size) return;
    before += head * s.states * s.size + column;
    after += head * s.states * s.size + column;
    for (size_t row = s.first; row < s.first + s.rows; row++) {
        const size_t one = row * s.heads + head;
        const size_t at = (row * groups + head / (s.heads / groups)) * s.states;
        const float value = x[one * s.size + column], u = f_mul(dt[one], value);
        float sum = 0.0f;
        for (size_t i = 0; i < s.states; i++) {
            const float state = f_add(f_mul(decay[one], before[i * s.size]), f_mul(b[at + i], u));
            after[i * s.size] = state;
            sum = f_add(sum, f_mul(c[at + i], state));
        }
        y[one * s.size + column] = skip != 0 ? f_add(sum, f_mul(skip[head], value)) : sum;
        before = after;
    }
}

/* exp(x) rounded from float64, with x within -110 and 110. */
float narrow_exp(real x) {
    const real top = r_bits(0x405b800000000000UL); // 110
    real shifted, n, r, p;
    x = r_less(x, r_neg(top)) ? r_neg(top) : x;
    x = r_less(top, x) ? top : x;
    shifted = r_add(r_mul(x, R_LOG2_E), R_ROUND);
    n = r_sub(shifted, R_ROUND);
    r = r_sub(x, r_mul(n, R_LN2));
    p = r_bits(inverse_factorials[10]);
    for (int i = 9; i >= 0; i--) p = r_add(r_mul(p, r), r_bits(inverse_factorials[i]));
    return r_to_float(r_mul(p, r_bits((r_to_bits(shifted) + 1023) << 52)));
}

/* Mamba-1, with one head: x, dt, y (rows, size), b, c (rows, states), rates (states, size). */
__kernel void scan_channels(shape s, __global const float *before, __global float *after,
                            __global const float *x, __global const float *dt,
                            __global const float *b, __global const float *c,
                            __global const float *rates, __global const float *skip,
                            __global float *y) {
    const size_t column = get_global_id(0);
    if (column >= s.size) return;
    before += column;
    after += column;
    for (size_t row = s.first; row < s.first + s.rows; row++) {
        const float value = x[row * s.size + column], step = dt[row * s.size + column];
        const float u = f_mul(step, value);
        float sum = 0.0f;
        for (size_t i = 0; i < s.states; i++) {
            const float rate = rates[i * s.size + column];
            const float keep = narrow_exp(r_mul(r_float(step), r_float(rate)));
            const float state = f_add(f_mul(keep, before[i * s.size]),
                                      f_mul(b[row * s.states + i], u));
            after[i * s.size] = state;
            sum = f_add(sum, f_mul(c[row * s.states + i], state));
        }
        y[row * s.size + column] = skip != 0 ? f_add(sum, f_mul(skip[column], value)) : sum;
        before = after;
    }
}

/* RWKV-7: receptances, decays, keys, removed keys and rates (rows, heads, states), v, y (rows,
   heads, size). global: (size, heads) */
__kernel void wkv(shape s, __global const float *before, __global float *after,
                  __global const float *receptances, __global const float *keeps,
                  __global const float *keys, __global const float *v,
                  __global const float *removed, __global const float *rates, __global float *y) {
    const size_t column = get_global_id(0), head = get_global_id(1);
    if (column >= s.size) return;
    before += head * s.states * s.size + column;
    after += head * s.states * s.size + column;
    for (size_t row = s.first; row < s.first + s.rows; row++) {
        const size_t one = row * s.heads + head, at = one * s.states;
        const float value = v[one * s.size + column];
        float found = 0.0f, sum = 0.0f;
        for (size_t i = 0; i < s.states; i++) {
            found = f_add(found, f_mul(removed[at + i], before[i * s.size]));
        }
        for (size_t i = at; i < at + s.states; i++) {
            const size_t place = (i - at) * s.size;
            const float lost = f_mul(f_mul(removed[i], rates[i]), found);
            const float kept = f_sub(f_mul(keeps[i], before[place]), lost);
            const float state = f_add(kept, f_mul(keys[i], value));
            after[place] = state;
            sum = f_add(sum, f_mul(receptances[i], state));
        }
        y[one * s.size + column] = sum;
        before = after;
    }
}
