/*
 * rows.cl - rows of a matrix of the type TYPE as float32; types/types.c is the CPU's. It comes
 * after types.cl.
 *
 * Of quantized types a value is (scale sub-scale q) - minimum, or + minimum. The products fit 24
 * bits, so each operation but the last is exact.
 */

#ifdef BYTES // a quantized type
/* Values 16 g .. 16 g + 15 of a row, into y. */
void put_values(bytes row, size_t g, int n, __global float *y) {
    int q[16], scale = 0, min = 0;
#ifdef K_TYPE
    bytes p = row + g / 16 * BYTES;
    unpack_16(p, (int)(g % 16), q, &scale, &min);
    const float d = f_mul(SCALE(p), f_long(scale));
#else
    const int part = (int)(g / 2 % PARTS * 2 + g % 2); // of the block
    bytes p = row + g / 2 / PARTS * BYTES;
    unpack_16(p, part, q, &scale, &min);
#if TYPE == TYPE_NVFP4
    const float d = f_mul(f_long(units_of(p, part)), 0x1p-10f);
#else
    const float d = SCALE(p);
#endif
#endif
    for (int i = 0; i < n; i++) {
        float value = f_mul(d, f_long(q[i]));
#ifdef DMIN
        value = f_sub(value, f_mul(f_half(load_16(p + DMIN)), f_long(min)));
#elif HAS_MIN
        value = f_add(value, f_half(load_16(p + 2)));
#endif
        y[i] = value;
    }
}
#else
void put_values(__global const item *row, size_t g, int n, __global float *y) {
    for (int i = 0; i < n; i++) y[i] = weight_of(row[16 * g + i]);
}
#endif

/*
 * y (tokens, cols): the rows that `chosen` (tokens) names. The buffer has those from part_first to
 * part_first + part_rows - 1. An item takes sixteen values; n items.
 */
__kernel void rows(ulong n, ulong cols, ulong row_bytes, ulong part_first, ulong part_rows,
                   __global const uchar *weights, __global const int *chosen, __global float *y) {
    const size_t i = get_global_id(0), each = (cols + 15) / 16, token = i / each, g = i % each;
    if (i >= n) return;
    const ulong row = (ulong)chosen[token];
    if (row < part_first || row - part_first >= part_rows) return; // another buffer has the row
    __global const uchar *from = weights + (row - part_first) * row_bytes;
    const int count = (int)min((ulong)16, cols - 16 * g);
#ifdef BYTES
    put_values(from, g, count, y + token * cols + 16 * g);
#else
    put_values((__global const item *)from, g, count, y + token * cols + 16 * g);
#endif
}
