/* selftest.cl - one operation after another on given operands: selftest.c compares the results. */

enum { FMA, ADD, MULTIPLY, DIVIDE, MULTIPLY_ADD, ROOT, NARROW, WIDEN };

__kernel void try_float(int op, int n, __global const float *a, __global const float *b,
                        __global const float *c, __global float *y) {
    const int i = (int)get_global_id(0);
    if (i >= n) return;
    switch (op) {
    case FMA:
        y[i] = f_fma(a[i], b[i], c[i]);
        break;
    case ADD:
        y[i] = f_add(a[i], b[i]);
        break;
    case MULTIPLY:
        y[i] = f_mul(a[i], b[i]);
        break;
    case DIVIDE:
        y[i] = f_div(a[i], b[i]);
        break;
    default:
        y[i] = f_add(f_mul(a[i], b[i]), c[i]); // two roundings
    }
}

__kernel void try_real(int op, int n, __global const ulong *a, __global const ulong *b,
                       __global const ulong *c, __global ulong *y) {
    const int i = (int)get_global_id(0);
    if (i >= n) return;
    const real p = r_bits(a[i]), q = r_bits(b[i]), r = r_bits(c[i]);
    switch (op) {
    case FMA:
        y[i] = r_to_bits(r_fma(p, q, r));
        break;
    case ADD:
        y[i] = r_to_bits(r_add(p, q));
        break;
    case MULTIPLY:
        y[i] = r_to_bits(r_mul(p, q));
        break;
    case DIVIDE:
        y[i] = r_to_bits(r_div(p, q));
        break;
    case MULTIPLY_ADD:
        y[i] = r_to_bits(r_add(r_mul(p, q), r));
        break;
    case ROOT:
        y[i] = r_to_bits(r_root(p));
        break;
    case NARROW:
        y[i] = as_uint(r_to_float(p));
        break;
    default:
        y[i] = r_to_bits(r_add(r_long((long)a[i]), r_float(as_float((uint)b[i]))));
    }
}

__kernel void try_function(int function, float parameter, float inverse, int n,
                           __global const float *x, __global float *y) {
    const int i = (int)get_global_id(0);
    if (i < n) y[i] = f_apply(function, parameter, inverse, x[i]);
}
