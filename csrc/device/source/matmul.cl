/*
 * matmul.cl - the matmuls of docs/numerics.md, sections 1 and 2, for the type TYPE.
 *
 * TOKENS tokens share the weights that are unpacked. Activations of quantized types are packed
 * first: X = 4096 high + low as a pair of int16, which is a token's `words`; the sums of X over 16
 * values, its `sums`; and for each chunk the exponent of dx, or -1 if a value is not finite.
 *
 * With EXPERTS the weights are the matrices of experts, and the tokens of a work-group are pairs of
 * a token and the same expert, as sort_pairs of router.cl has sorted them.
 */
#define CHUNK 256
#define TILE 8 // chunks of a row that a work-group has the integers of at a time

#ifdef EXPERTS
/* The matrix of expert e is rows from e * all + first on, and the buffer has the rows from
   part_first to part_first + part_rows - 1. `own`: each pair has its own activations. */
typedef struct {
    long pairs, used, own, first, all, part_first, part_rows;
} experts;
#define EXPERT_ARGUMENTS experts e, __global const int *chosen,
#define PASS_EXPERTS e, chosen,
#else
#define EXPERT_ARGUMENTS
#define PASS_EXPERTS
#endif

/* The tokens of a work-group: how many, and where their activations and results are. */
typedef struct {
    int n;
    size_t x[TOKENS], y[TOKENS];
    long row, end; // of the buffer: the first row of the matrix, and how many the buffer has
} work;

work find_work(EXPERT_ARGUMENTS int rows, int tokens) {
    const size_t first = get_global_id(2) * TOKENS;
    work w;
    w.n = 0;
    w.row = 0;
    w.end = rows;
    for (int t = 0; t < TOKENS; t++) w.x[t] = w.y[t] = first + t;
#ifdef EXPERTS
    __global const int *order = chosen + e.pairs + first;
    while (w.n < TOKENS && order[w.n] >= 0) w.n++;
    w.end = e.part_rows;
    for (int t = 0; t < w.n; t++) {
        w.y[t] = order[t];
        w.x[t] = e.own ? order[t] : order[t] / e.used;
        w.row = chosen[order[t]] * e.all + e.first - e.part_first;
    }
#else
    w.n = min(TOKENS, tokens - (int)first);
#endif
    return w;
}

#ifdef BYTES // a quantized type

#ifdef K_TYPE
#define PER_CHUNK 1 // scales
#define CHUNK_BYTES BYTES
typedef long part;  // T and M of a chunk
#else
#define PER_CHUNK 8
#define CHUNK_BYTES (8 / PARTS * BYTES)
#if TYPE == TYPE_MXFP4 || TYPE == TYPE_NVFP4
typedef ulong part; // u, the bits of a float64
#else
typedef uint part; // u, the bits of a float32
#endif
#endif

#ifndef FAST
long whole(int high, int low) { return (long)high * 4096 + low; }

/* sum of q X, over the 16 values of group g */
#define DOT(q, words, high, low)                                                                       \
    for (int i = 0; i < 16; i++) {                                                                 \
        const short2 pair = (words)[i];                                                              \
        low += (q)[i] * pair.x;                                                                    \
        high += (q)[i] * pair.y;                                                                   \
    }

/*
 * The exact integers of a chunk of one row, for TOKENS tokens. In a K type each sum of products
 * fits 32 bits: |q s| <= 4096, and -2048 <= low <= 2047.
 */
#ifdef K_TYPE
void chunk_parts(bytes p, const work *w, __global const short2 *words, __global const int *sums,
                 int stride, int blocks, long *products, long *minima) {
    int high[TOKENS], low[TOKENS];
    for (int t = 0; t < TOKENS; t++) high[t] = low[t] = 0, minima[t] = 0;
    for (int g = 0; g < 16; g++) {
        int q[16], scale = 0, min = 0;
        unpack_16(p, g, q, &scale, &min);
        for (int i = 0; i < 16; i++) q[i] *= scale;
        for (int t = 0; t < TOKENS; t++) {
            if (t >= w->n) break;
            DOT(q, words + w->x[t] * stride + 16 * g, high[t], low[t])
#ifdef DMIN
            minima[t] += (long)min * sums[w->x[t] * (stride / 16) + g];
#endif
        }
    }
    for (int t = 0; t < TOKENS; t++) products[t] = whole(high[t], low[t]);
}
#else
void chunk_parts(bytes chunk, const work *w, __global const short2 *words,
                 __global const int *sums, int stride, int blocks, part *u) {
    for (int t = 0; t < TOKENS; t++) u[t] = 0; // the bits of +0
    for (int b = 0; b < blocks; b++) {
        bytes p = chunk + b / PARTS * BYTES;
        int high[TOKENS], low[TOKENS];
        for (int t = 0; t < TOKENS; t++) high[t] = low[t] = 0;
        for (int g = 0; g < 2; g++) {
            int q[16], scale, min;
            unpack_16(p, b % PARTS * 2 + g, q, &scale, &min);
            for (int t = 0; t < TOKENS; t++) {
                if (t >= w->n) break;
                DOT(q, words + w->x[t] * stride + 32 * b + 16 * g, high[t], low[t])
#if TYPE == TYPE_NVFP4
                const real d = r_mul(r_long(units_of(p, b % PARTS * 2 + g)),
                                     r_bits(0x3f50000000000000UL)); // 2^-10
                u[t] = r_to_bits(r_fma(r_long(whole(high[t], low[t])), d, r_bits(u[t])));
                high[t] = low[t] = 0;
#endif
            }
        }
#if TYPE != TYPE_NVFP4
        for (int t = 0; t < TOKENS; t++) {
            if (t >= w->n) break;
#if TYPE == TYPE_MXFP4
            // 2^(e - 128), a normal float64 for every e
            const real d = r_bits((ulong)(p[0] + 1023 - 128) << 52);
            u[t] = r_to_bits(r_fma(r_long(whole(high[t], low[t])), d, r_bits(u[t])));
#else
            float sum = f_fma(f_long(whole(high[t], low[t])), f_half(load_16(p)), as_float(u[t]));
#if HAS_MIN
            __global const int *group = sums + w->x[t] * (stride / 16) + 2 * b;
            sum = f_fma(f_long((long)group[0] + group[1]), f_half(load_16(p + 2)), sum);
#endif
            u[t] = as_uint(sum);
#endif
        }
#endif
    }
}
#endif

/*
 * y (tokens, y_stride): rows [0, rows) of w times the tokens. A work-group takes `group_rows` rows
 * and TOKENS tokens. Its items compute the exact integers of TILE chunks in any order; then an item
 * for each row and token runs the chain of rounded operations over them.
 * global: (items, groups of rows, groups of tokens); local: (items, 1, 1)
 * parts: group_rows * TILE * TOKENS * (2 for K types, else 1) of `part`; accumulators: ulong
 */
__kernel void matmul(EXPERT_ARGUMENTS int rows, int blocks, int row_bytes, int group_rows,
                     int tokens, __global const uchar *weights, __global const short2 *words,
                     __global const int *sums, __global const int *exponents,
                     __global float *y, int y_stride, int y_first, __local part *parts,
                     __local ulong *accumulators) {
    const int lane = (int)get_local_id(0), lanes = (int)get_local_size(0);
    const int chunks = (blocks + PER_CHUNK - 1) / PER_CHUNK, stride = chunks * CHUNK;
    const int row0 = (int)get_global_id(1) * group_rows, n_rows = min(group_rows, rows - row0);
    const work w = find_work(PASS_EXPERTS rows, tokens);
    if (w.n <= 0) return;
    for (int i = lane; i < n_rows * TOKENS; i += lanes) accumulators[i] = r_to_bits(R0);
    for (int first = 0; first < chunks; first += TILE) {
        const int n = min(TILE, chunks - first);
        for (int i = lane; i < n_rows * n; i += lanes) {
            const int row = i / n, c = first + i % n;
            const long at = w.row + row0 + row;
            __global const uchar *p =
                weights + (size_t)at * row_bytes + (size_t)c * CHUNK_BYTES;
            __local part *to = parts + (row * TILE + (c - first)) * TOKENS;
            if (at < 0 || at >= w.end) continue; // another buffer has the row
#ifdef K_TYPE
            long products[TOKENS], minima[TOKENS];
            chunk_parts(p, &w, words + c * CHUNK, sums + c * 16, stride, 1, products, minima);
            for (int t = 0; t < TOKENS; t++) {
                to[t] = products[t];
                to[group_rows * TILE * TOKENS + t] = minima[t];
            }
#else
            part u[TOKENS];
            chunk_parts(p, &w, words + c * CHUNK, sums + c * 16, stride,
                        min(PER_CHUNK, blocks - c * PER_CHUNK), u);
            for (int t = 0; t < TOKENS; t++) to[t] = u[t];
#endif
        }
        barrier(CLK_LOCAL_MEM_FENCE);
        for (int i = lane; i < n_rows * TOKENS; i += lanes) {
            const int row = i / TOKENS, t = i % TOKENS;
            real sum = r_bits(accumulators[i]);
            const long at = w.row + row0 + row;
            if (t >= w.n || at < 0 || at >= w.end) continue;
            for (int c = first; c < first + n; c++) {
                const int exponent = exponents[w.x[t] * chunks + c];
                __local const part *from = parts + (row * TILE + (c - first)) * TOKENS + t;
                // 2^(exponent - 149), or NaN for values that are not finite
                const real dx = r_bits(exponent < 0 ? 0x7ff8000000000000UL
                                                    : (ulong)(exponent + 1023 - 149) << 52);
#ifdef K_TYPE
                __global const uchar *p =
                    weights + (size_t)at * row_bytes + (size_t)c * BYTES;
                const real d = r_float(SCALE(p));
                sum = r_fma(r_mul(d, dx), r_long(from[0]), sum);
#ifdef DMIN
                const real dmin = r_float(f_half(load_16(p + DMIN)));
                sum = r_fma(r_neg(r_mul(dmin, dx)), r_long(from[group_rows * TILE * TOKENS]), sum);
#endif
#elif TYPE == TYPE_MXFP4 || TYPE == TYPE_NVFP4
                sum = r_fma(r_bits(from[0]), dx, sum);
#else
                sum = r_fma(r_float(as_float(from[0])), dx, sum);
#endif
            }
            accumulators[i] = r_to_bits(sum);
            if (first + n == chunks) {
                y[w.y[t] * y_stride + y_first + row0 + row] = r_to_float(sum);
            }
        }
        barrier(CLK_LOCAL_MEM_FENCE);
    }
}

#endif // FAST

#else // a float type

/*
 * Sixteen lanes, in superchunks of 4096 values. A work-group takes as many rows as local_size(1)
 * and TOKENS tokens.
 * global: (16, rows, groups of tokens); local: (16, rows of a group, 1)
 */
__kernel void matmul(EXPERT_ARGUMENTS int rows, int cols, int tokens, __global const item *weights,
                     __global const float *x, __global float *y, int y_stride, int y_first,
                     __local float *lanes) {
    const int lane = (int)get_local_id(0), row = (int)get_global_id(1);
    const work w = find_work(PASS_EXPERTS rows, tokens);
    const long at = w.row + row;
    const bool mine_too = row < rows && at >= 0 && at < w.end; // else another buffer has the row
    __global const item *from_row = weights + (mine_too ? (size_t)at * cols : 0);
    __local float *mine = lanes + get_local_id(1) * 16 * TOKENS;
    float total[TOKENS];
    if (w.n <= 0) return;
    for (int t = 0; t < TOKENS; t++) total[t] = 0.0f;
    for (int from = 0; from < cols; from += 4096) {
        const int end = min(cols, from + 4096);
        float sum[TOKENS];
        for (int t = 0; t < TOKENS; t++) sum[t] = 0.0f;
        for (int k = from + lane; k < end; k += 16) {
            const float weight = weight_of(from_row[k]);
            for (int t = 0; t < TOKENS; t++) {
                if (t < w.n) sum[t] = f_fma(weight, x[w.x[t] * cols + k], sum[t]);
            }
        }
        for (int t = 0; t < TOKENS; t++) mine[lane * TOKENS + t] = sum[t];
        barrier(CLK_LOCAL_MEM_FENCE);
        for (int t = lane; t < w.n; t += 16) {
            for (int l = 0; l < 16; l++) total[0] = f_add(total[0], mine[l * TOKENS + t]);
        }
        barrier(CLK_LOCAL_MEM_FENCE);
    }
    if (lane < w.n && mine_too) y[w.y[lane] * y_stride + y_first + row] = total[0];
}

#endif
