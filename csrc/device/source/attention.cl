/*
 * attention.cl - the kv cache of one session, and attention over it.
 *
 * The cache is blocks of BLOCK positions, one behind the other, each as on the host: the keys as
 * (kv_heads, BLOCK / 16, key_size, 16), and after them the values as (kv_heads, BLOCK, stride).
 */
#define BLOCK 256

/* What all kernels need of a cache. */
typedef struct {
    ulong kv_heads, key_size, value_size, stride, keys, block; // keys, block: floats of a block
} layout;

/* Appends n tokens from `position` on. keys (n, kv_heads, key_size), values (n, kv_heads,
   value_size), from first_key and first_value on; `total` values of both. */
__kernel void append(ulong total, layout l, ulong position, ulong first_key, ulong first_value,
                     __global const float *keys, __global const float *values,
                     __global float *cache) {
    const size_t i = get_global_id(0), row_keys = l.kv_heads * l.key_size;
    const size_t row_values = l.kv_heads * l.value_size, row = row_keys + row_values;
    if (i >= total) return;
    const size_t token = i / row, at = (position + token) % BLOCK;
    __global float *block = cache + (position + token) / BLOCK * l.block;
    size_t j = i % row;
    if (j < row_keys) {
        const size_t head = j / l.key_size, d = j % l.key_size;
        block[(head * BLOCK + at / 16 * 16) * l.key_size + d * 16 + at % 16] =
            keys[first_key + token * row_keys + j];
    } else {
        j -= row_keys;
        const size_t head = j / l.value_size, d = j % l.value_size;
        block[l.keys + (head * BLOCK + at) * l.stride + d] = values[first_value + token * row_values + j];
    }
}

/* enum mask of attention.h */
enum { CAUSAL, WINDOW, CHUNKED, SYMMETRIC, NONE };

/* The keys that a query sees: those from .x to .y - 1. `all`: positions of the whole context. */
int2 seen_by(int mask, int size, int position, int all) {
    const int half_size = size / 2, end = position + 1;
    switch (mask) {
    case WINDOW:
        return (int2)(max(end - size, 0), end);
    case CHUNKED:
        return (int2)(position / size * size, end);
    case SYMMETRIC:
        return (int2)(max(position - half_size, 0), min(all, end + half_size));
    case NONE:
        return (int2)(0, all);
    default:
        return (int2)(0, end);
    }
}

#define FARTHEST 128 // of the distances that have a bias each

/*
 * Scores (heads, queries, all) of the queries from first_row on, of (rows, heads, key_size). The
 * first is at `position`; -inf for keys that a query does not see. slopes (heads) and biases (heads, 2 FARTHEST
 * + 1) only if they are given; inverse = 1 / cap.
 * global: (all, queries, heads)
 */
__kernel void scores(layout l, int mask, int size, int position, int all, float scale, float cap,
                     float inverse, ulong first_row, __global const float *slopes,
                     __global const float *biases, __global const float *q,
                     __global const float *cache, __global float *y, ulong queries, ulong heads) {
    const int j = (int)get_global_id(0), query = (int)get_global_id(1);
    const size_t head = get_global_id(2), kv = head / (heads / l.kv_heads);
    const int2 seen = seen_by(mask, size, position + query, all);
    float sum = 0.0f;
    if (j >= all) return;
    y += (head * queries + query) * all + j;
    if (j < seen.x || j >= seen.y) {
        *y = -INFINITY;
        return;
    }
    q += ((first_row + query) * heads + head) * l.key_size;
    cache += j / BLOCK * l.block + (kv * BLOCK + j % BLOCK / 16 * 16) * l.key_size + j % 16;
    for (size_t d = 0; d < l.key_size; d++) sum = f_fma(q[d], cache[16 * d], sum);
    sum = f_mul(scale, sum);
    if (cap > 0) sum = f_mul(cap, f_tanh(f_mul(sum, inverse)));
    const int far = abs(position + query - j);
    if (slopes != 0) sum = f_sub(sum, f_mul(slopes[head], f_long(far)));
    if (biases != 0) {
        const int at = min(far, FARTHEST);
        biases += head * (2 * FARTHEST + 1) + FARTHEST;
        sum = f_add(sum, biases[j > position + query ? at : -at]);
    }
    *y = sum;
}

/*
 * Probabilities (heads, queries, all) in place of the scores. A work-group takes a query and head;
 * its items are groups of sixteen, and each takes a block of positions.
 * global: (items, queries, heads); local: (items, 1, 1), items a multiple of 16
 */
__kernel void softmax(int mask, int size, int position, int all, __global const float *sinks,
                      __global float *scores, __local ulong *lanes, ulong queries) {
    const int lane = (int)get_local_id(0), items = (int)get_local_size(0), query = (int)get_global_id(1);
    const size_t head = get_global_id(2);
    const int2 seen = seen_by(mask, size, position + query, all);
    const float sink = sinks != 0 ? sinks[head] : -INFINITY;
    float most = -INFINITY;
    bool nan = false;
    real z;
    scores += (head * queries + query) * all;
    for (int j = seen.x + lane; j < seen.y; j += items) {
        if (f_less(most, scores[j])) most = scores[j];
        nan = nan || f_is_nan(scores[j]);
    }
    lanes[lane] = (ulong)as_uint(most) | (ulong)nan << 32;
    barrier(CLK_LOCAL_MEM_FENCE);
    most = sink;
    for (int i = 0; i < items; i++) {
        const float other = as_float((uint)lanes[i]);
        if (f_less(most, other)) most = other;
        nan = nan || lanes[i] >> 32 != 0;
    }
    barrier(CLK_LOCAL_MEM_FENCE);
    if (as_uint(most) == 0xff800000u) { // nothing to attend to, or NaN only
        for (int j = lane; j < all; j += items) {
            scores[j] = nan && j >= seen.x && j < seen.y ? NAN : 0.0f;
        }
        return;
    }
    z = r_float(f_exp(f_sub(sink, most)));
    for (int first = seen.x / BLOCK * BLOCK; first < seen.y; first += items / 16 * BLOCK) {
        const int from = first + lane / 16 * BLOCK, end = min(from + BLOCK, seen.y);
        real sum = R0;
        for (int j = from + lane % 16; j < end; j += 16) {
            if (j < seen.x) continue;
            const float e = f_exp(f_sub(scores[j], most));
            scores[j] = e;
            sum = r_add(sum, r_float(e));
        }
        lanes[lane] = r_to_bits(sum);
        barrier(CLK_LOCAL_MEM_FENCE);
        for (int i = 0; i < items && first + i / 16 * BLOCK < seen.y; i += 16) {
            sum = R0;
            for (int k = 0; k < 16; k++) sum = r_add(sum, r_bits(lanes[i + k]));
            z = r_add(z, sum);
        }
        barrier(CLK_LOCAL_MEM_FENCE);
    }
    barrier(CLK_GLOBAL_MEM_FENCE);
    const float factor = r_to_float(r_div(R1, z));
    for (int j = lane; j < all; j += items) {
        scores[j] = j >= seen.x && j < seen.y ? f_mul(scores[j], factor) : 0.0f;
    }
}

/*
 * Values times probabilities, into the rows from first_row on of y (rows, heads, value_size).
 * global: (value_size, queries, heads)
 */
__kernel void weigh_values(layout l, int mask, int size, int position, int all, ulong first_row,
                  __global const float *probs, __global const float *cache, __global float *y,
                  ulong queries, ulong heads) {
    const size_t d = get_global_id(0), query = get_global_id(1), head = get_global_id(2);
    const size_t kv = head / (heads / l.kv_heads);
    const int2 seen = seen_by(mask, size, position + (int)query, all);
    float total = 0.0f;
    if (d >= l.value_size) return;
    probs += (head * queries + query) * all;
    cache += l.keys + kv * BLOCK * l.stride + d;
    for (int first = seen.x / BLOCK * BLOCK; first < seen.y; first += BLOCK) {
        __global const float *block = cache + first / BLOCK * l.block;
        const int end = min(first + BLOCK, seen.y);
        float sum = 0.0f;
        for (int j = max(first, seen.x); j < end; j++) {
            sum = f_fma(probs[j], block[(j - first) * l.stride], sum);
        }
        total = f_add(total, sum);
    }
    y[((first_row + query) * heads + head) * l.value_size + d] = total;
}
