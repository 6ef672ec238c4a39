/*
 * fast.cl - the matmuls of fast mode (docs/numerics.md, section 4), for the type TYPE. It comes
 * after matmul.cl.
 *
 * Activations are X of eight bits, with the sum of each 16 in `sums` and a scale for each 32.
 * TL_DOTS: the device has cl_khr_integer_dot_product with four packed integers.
 */
#ifdef K_TYPE
#define PIECES 2 // of a chunk: t and u
#elif TYPE == TYPE_NVFP4
#define PIECES 16 // scaled sums
#else
#define PIECES 8
#endif

/* sum of q X, over the 16 values of group g */
int dot_16(const int *q, __global const char *X) {
    int sum = 0;
#ifdef TL_DOTS
    __global const uint *packed = (__global const uint *)X; // X is that of a whole group
    for (int i = 0; i < 4; i++, q += 4) {
        const char4 four = (char4)((char)q[0], (char)q[1], (char)q[2], (char)q[3]);
        sum += dot_4x8packed_ss_int(as_uint(four), packed[i]);
    }
#else
    for (int i = 0; i < 16; i++) sum += q[i] * X[i];
#endif
    return sum;
}

#ifdef K_TYPE
void fast_parts(bytes p, const work *w, __global const char *X, __global const int *sums,
                __global const float *scales, int stride, int blocks, __local float *to) {
    float products[TOKENS], minima[TOKENS];
    for (int t = 0; t < TOKENS; t++) products[t] = minima[t] = 0.0f;
    for (int b = 0; b < 8; b++) {
        int totals[TOKENS], minimum[TOKENS], same = 0;
        for (int t = 0; t < TOKENS; t++) totals[t] = minimum[t] = 0;
        for (int g = 2 * b; g < 2 * b + 2; g++) {
            int q[16], scale = 0, min = 0;
            unpack_16(p, g, q, &scale, &min);
            for (int t = 0; t < TOKENS; t++) {
                if (t >= w->n) break;
                totals[t] += scale * dot_16(q, X + w->x[t] * stride + 16 * g);
                minimum[t] += min * sums[w->x[t] * (stride / 16) + g];
            }
            same = min;
        }
        for (int t = 0; t < TOKENS; t++) {
            if (t >= w->n) break;
            const float scale = scales[w->x[t] * (stride / 32) + b];
            products[t] = f_fma(f_long(totals[t]), scale, products[t]);
#if TYPE == TYPE_Q4_K || TYPE == TYPE_Q5_K
            __global const int *both = sums + w->x[t] * (stride / 16) + 2 * b;
            minima[t] = f_fma(f_long(same), f_mul(scale, f_long(both[0] + both[1])), minima[t]);
#else
            minima[t] = f_fma(f_long(minimum[t]), scale, minima[t]);
#endif
        }
    }
    for (int t = 0; t < TOKENS; t++) {
        to[2 * t] = products[t];
        to[2 * t + 1] = minima[t];
    }
}

/* Adds a chunk of one row and token. */
float fast_add(float y, bytes p, __local const float *parts, __global const int *sums,
               __global const float *scales, int blocks) {
    y = f_fma(SCALE(p), parts[0], y);
#ifdef DMIN
    y = f_fma(f_half(load_16(p + DMIN)), f_neg(parts[1]), y);
#endif
    return y;
}

#else
void fast_parts(bytes chunk, const work *w, __global const char *X, __global const int *sums,
                __global const float *scales, int stride, int blocks, __local float *to) {
    for (int b = 0; b < blocks; b++) {
        int totals[TOKENS];
        for (int t = 0; t < TOKENS; t++) totals[t] = 0;
        for (int g = 0; g < 2; g++) {
            int q[16], scale, min;
            unpack_16(chunk + b / PARTS * BYTES, b % PARTS * 2 + g, q, &scale, &min);
            for (int t = 0; t < TOKENS; t++) {
                if (t >= w->n) break;
                totals[t] += dot_16(q, X + w->x[t] * stride + 32 * b + 16 * g);
                if (PIECES == 8 && g == 0) continue;
                to[t * PIECES + (PIECES == 16 ? 2 * b + g : b)] =
                    f_mul(f_long(totals[t]), scales[w->x[t] * (stride / 32) + b]);
                totals[t] = 0;
            }
        }
    }
}

float fast_add(float y, bytes chunk, __local const float *parts, __global const int *sums,
               __global const float *scales, int blocks) {
    for (int b = 0; b < blocks; b++) {
        bytes p = chunk + b / PARTS * BYTES;
#if TYPE == TYPE_NVFP4
        for (int g = 0; g < 2; g++) {
            const float d = f_mul(f_long(units_of(p, b % PARTS * 2 + g)), 0x1p-10f);
            y = f_fma(parts[2 * b + g], d, y);
        }
#else
        y = f_fma(parts[b], SCALE(p), y);
#if HAS_MIN
        const float sum = f_mul(scales[b], f_long(sums[2 * b] + sums[2 * b + 1]));
        y = f_fma(f_half(load_16(p + 2)), sum, y);
#endif
#endif
    }
    return blocks < 8 ? f_add(y, 0.0f) : y; // the blocks that the last chunk lacks are zeros
}
#endif

/* As `matmul` of matmul.cl, in float32. parts: group_rows * TILE * TOKENS * PIECES. */
__kernel void matmul(EXPERT_ARGUMENTS int rows, int blocks, int row_bytes, int group_rows,
                     int tokens, __global const uchar *weights, __global const char *X,
                     __global const int *sums, __global const float *scales, __global float *y,
                     int y_stride, int y_first, __local float *parts,
                     __local ulong *accumulators) {
    const int lane = (int)get_local_id(0), lanes = (int)get_local_size(0);
    const int chunks = (blocks + PER_CHUNK - 1) / PER_CHUNK, stride = chunks * CHUNK;
    const int row0 = (int)get_global_id(1) * group_rows, n_rows = min(group_rows, rows - row0);
    const work w = find_work(PASS_EXPERTS rows, tokens);
    for (int i = lane; i < n_rows * TOKENS; i += lanes) accumulators[i] = 0; // bits of +0
    for (int first = 0; first < chunks; first += TILE) {
        const int n = min(TILE, chunks - first);
        for (int i = lane; i < n_rows * n; i += lanes) {
            const int row = i / n, c = first + i % n;
            const long at = w.row + row0 + row;
            if (at < 0 || at >= w.end) continue; // another buffer has the row
            fast_parts(weights + (size_t)at * row_bytes + (size_t)c * CHUNK_BYTES, &w,
                       X + c * CHUNK, sums + c * 16, scales + c * 8, stride,
                       min(PER_CHUNK, blocks - c * PER_CHUNK),
                       parts + (row * TILE + (c - first)) * (TOKENS * PIECES));
        }
        barrier(CLK_LOCAL_MEM_FENCE);
        for (int i = lane; i < n_rows * TOKENS; i += lanes) {
            const int row = i / TOKENS, t = i % TOKENS;
            const long at = w.row + row0 + row;
            float sum = as_float((uint)accumulators[i]);
            if (t >= w.n || at < 0 || at >= w.end) continue;
            for (int c = first; c < first + n; c++) {
                sum = fast_add(sum, weights + (size_t)at * row_bytes + (size_t)c * CHUNK_BYTES,
                               parts + ((row * TILE + (c - first)) * TOKENS + t) * PIECES,
                               sums + w.x[t] * (stride / 16) + c * 16,
                               scales + w.x[t] * (stride / 32) + c * 8,
                               min(PER_CHUNK, blocks - c * PER_CHUNK));
            }
            accumulators[i] = as_uint(sum);
            if (first + n == chunks) y[w.y[t] * y_stride + y_first + row0 + row] = sum;
        }
        barrier(CLK_LOCAL_MEM_FENCE);
    }
}
