/*
 * arithmetic.cl - float32 and float64 with the bits of IEEE 754, whatever the device has.
 *
 *   TL_FLOAT64   the device has cl_khr_fp64, whose +, *, /, sqrt and fma are correctly rounded.
 *                Without it a float64 is a ulong, and each operation is done in integers.
 *   TL_DIVIDE    float32 division is correctly rounded. Without it, it is done in integers.
 *   TL_INTEGERS  each float32 operation is done in integers too: for devices that flush denormals
 *
 * Each operation is a function of its own, so that no compiler contracts two of them into one.
 */
#pragma OPENCL FP_CONTRACT OFF
#ifdef TL_FLOAT64
#pragma OPENCL EXTENSION cl_khr_fp64 : enable
#endif

/* ---- numbers in integers: (-1)^sign m 2^e, where the top bit of m is set unless m is 0 ---- */

enum { FINITE, INFINITE, NOT_A_NUMBER };

struct number {
    ulong m;
    int e;
    uint sign;
    uint kind;
};

/* `digits`: 24 for float32, 53 for float64. */
struct number number_of(ulong bits, int digits) {
    const int top = digits == 24 ? 255 : 2047;
    const int exponent = (int)(bits >> (digits - 1)) & top;
    const ulong fraction = bits & ((1UL << (digits - 1)) - 1);
    struct number x;
    x.sign = (uint)(bits >> (digits == 24 ? 31 : 63)) & 1;
    x.kind = exponent < top ? FINITE : fraction != 0 ? NOT_A_NUMBER : INFINITE;
    x.m = fraction | (ulong)(exponent != 0) << (digits - 1);
    x.e = max(exponent, 1) - (top >> 1) - (digits - 1);
    if (x.m != 0) {
        const int shift = (int)clz(x.m);
        x.m <<= shift;
        x.e -= shift;
    }
    return x;
}

/* Rounds to nearest, ties to even. The lowest bit of m stands for everything below it too. */
ulong bits_of(struct number x, int digits) {
    const int top = digits == 24 ? 255 : 2047;
    const ulong sign = (ulong)x.sign << (digits == 24 ? 31 : 63);
    const ulong infinity = (ulong)top << (digits - 1);
    int exponent = x.e + 63 + (top >> 1), shift = 64 - digits;
    ulong kept, lost;
    if (x.kind == NOT_A_NUMBER) return infinity | 1UL << (digits - 2);
    if (x.kind == INFINITE) return sign | infinity;
    if (x.m == 0) return sign;
    if (exponent >= top) return sign | infinity;
    if (exponent < 1) { // denormal
        shift += min(1 - exponent, 70);
        exponent = 1;
    }
    kept = shift < 64 ? x.m >> shift : 0;
    lost = shift < 64 ? x.m << (64 - shift) : shift == 64 ? x.m : 1;
    kept += lost > 1UL << 63 || (lost == 1UL << 63 && (kept & 1));
    // a carry into the next power of two, or into infinity, gives the right bits as it is
    return sign | (kept + ((ulong)(exponent - 1) << (digits - 1)));
}

struct number number_fma(struct number a, struct number b, struct number c) {
    struct number r;
    ulong high, low, other_high = 0, other_low = 0;
    uint other_sign = c.sign;
    int e, shift;
    r.m = 0;
    r.e = 0;
    r.sign = a.sign ^ b.sign;
    r.kind = FINITE;
    if (a.kind == NOT_A_NUMBER || b.kind == NOT_A_NUMBER || c.kind == NOT_A_NUMBER) {
        r.kind = NOT_A_NUMBER;
        return r;
    }
    if (a.kind == INFINITE || b.kind == INFINITE) {
        const bool zero = (a.kind == FINITE && a.m == 0) || (b.kind == FINITE && b.m == 0);
        const bool opposite = c.kind == INFINITE && c.sign != r.sign;
        r.kind = zero || opposite ? NOT_A_NUMBER : INFINITE;
        return r;
    }
    if (c.kind == INFINITE) return c;
    if (a.m == 0 || b.m == 0) {
        if (c.m != 0) return c;
        r.sign &= c.sign; // -0 only if both are -0
        return r;
    }
    // the product in 128 bits below bit 127; its lowest bits are zeros, so nothing is lost
    high = mul_hi(a.m, b.m);
    low = a.m * b.m;
    e = a.e + b.e;
    if (high >> 63) {
        low = low >> 1 | high << 63;
        high >>= 1;
        e++;
    }
    if (c.m != 0) {
        int other_e = c.e - 63;
        other_high = c.m >> 1;
        other_low = c.m << 63;
        // the top bit of both is bit 126: align the one with the lower exponent
        if (other_e > e ||
            (other_e == e && (other_high > high || (other_high == high && other_low > low)))) {
            const ulong h = high, l = low;
            const int was = e;
            const uint sign = r.sign;
            high = other_high, low = other_low, e = other_e, r.sign = other_sign;
            other_high = h, other_low = l, other_e = was, other_sign = sign;
        }
        shift = e - other_e;
        if (shift >= 127) {
            other_high = 0;
            other_low = 1;
        } else if (shift >= 64) {
            const ulong lost =
                other_low | (shift == 64 ? 0 : other_high << (128 - shift));
            other_low = (other_high >> (shift - 64)) | (lost != 0);
            other_high = 0;
        } else if (shift > 0) {
            const ulong lost = other_low << (64 - shift);
            other_low = other_low >> shift | other_high << (64 - shift);
            other_low |= lost != 0;
            other_high >>= shift;
        }
        if (other_sign == r.sign) {
            low += other_low;
            high += other_high + (low < other_low);
        } else {
            high -= other_high + (low < other_low);
            low -= other_low;
            if ((high | low) == 0) {
                r.sign = 0;
                return r;
            }
        }
    }
    if (high == 0) {
        high = low;
        low = 0;
        e -= 64;
    }
    shift = (int)clz(high);
    if (shift > 0) {
        high = high << shift | low >> (64 - shift);
        low <<= shift;
    }
    r.m = high | (low != 0);
    r.e = e + 64 - shift;
    return r;
}

struct number number_divide(struct number a, struct number b) {
    struct number r;
    ulong rest, quotient = 0;
    int shift;
    r.m = 0;
    r.e = 0;
    r.sign = a.sign ^ b.sign;
    r.kind = FINITE;
    if (a.kind == NOT_A_NUMBER || b.kind == NOT_A_NUMBER || (a.kind == INFINITE && b.kind == INFINITE) ||
        (a.kind == FINITE && b.kind == FINITE && a.m == 0 && b.m == 0)) {
        r.kind = NOT_A_NUMBER;
        return r;
    }
    if (a.kind == INFINITE || (b.kind == FINITE && b.m == 0)) {
        r.kind = INFINITE;
        return r;
    }
    if (b.kind == INFINITE || a.m == 0) return r;
    // one bit of the quotient after another; both numbers are below 2^63, so the doubles fit
    rest = a.m >> 1;
    for (int i = 0; i < 60; i++) {
        const bool fits = rest >= b.m >> 1;
        quotient = quotient << 1 | fits;
        rest = (fits ? rest - (b.m >> 1) : rest) << 1;
    }
    shift = (int)clz(quotient);
    r.m = quotient << shift | (rest != 0);
    r.e = a.e - b.e - 59 - shift;
    return r;
}

struct number number_root(struct number a) {
    struct number r = a;
    ulong root = 0, rest = 0, from = a.m;
    int shift;
    if (a.kind == NOT_A_NUMBER || (a.kind == FINITE && a.m == 0)) return r;
    if (a.sign) r.kind = NOT_A_NUMBER;
    if (r.kind != FINITE) return r;
    r.e = a.e;
    if (r.e & 1) { // an even exponent; the lowest bit of a float's m is zero here
        from >>= 1;
        r.e++;
    }
    // digit by digit: 60 bits of the root of from * 2^56
    for (int i = 0; i < 60; i++) {
        rest = rest << 2 | from >> 62;
        from <<= 2;
        root <<= 1;
        if (rest > root << 1) {
            rest -= root << 1 | 1;
            root |= 1;
        }
    }
    shift = (int)clz(root);
    r.m = root << shift | ((rest | from) != 0);
    r.e = r.e / 2 - 28 - shift;
    return r;
}

struct number number_long(long x) {
    struct number r;
    r.sign = x < 0;
    r.kind = FINITE;
    r.m = x < 0 ? 0 - (ulong)x : (ulong)x;
    r.e = 0;
    if (r.m != 0) {
        const int shift = (int)clz(r.m);
        r.m <<= shift;
        r.e = -shift;
    }
    return r;
}

struct number number_float(float x) { return number_of(as_uint(x), 24); }
float number_to_float(struct number x) { return as_float((uint)bits_of(x, 24)); }

/* ---- float64: the type `real` ---- */

#ifdef TL_FLOAT64
typedef double real;
real r_bits(ulong bits) { return as_double(bits); }
ulong r_to_bits(real x) { return as_ulong(x); }
real r_fma(real a, real b, real c) { return fma(a, b, c); }
real r_add(real a, real b) { return a + b; }
real r_mul(real a, real b) { return a * b; }
real r_div(real a, real b) { return a / b; }
real r_root(real a) { return sqrt(a); }
real r_long(long x) { return convert_double_rte(x); }
real r_float(float x) { return (double)x; }
float r_to_float(real x) { return convert_float_rte(x); }
#else
typedef ulong real;
struct number number_real(real x) { return number_of(x, 53); }
real number_to_real(struct number x) { return bits_of(x, 53); }
real r_bits(ulong bits) { return bits; }
ulong r_to_bits(real x) { return x; }
real r_fma(real a, real b, real c) {
    return number_to_real(number_fma(number_real(a), number_real(b), number_real(c)));
}
real r_add(real a, real b) { return r_fma(a, 0x3ff0000000000000UL, b); }
real r_mul(real a, real b) { return r_fma(a, b, (a ^ b) & 0x8000000000000000UL); }
real r_div(real a, real b) {
    return number_to_real(number_divide(number_real(a), number_real(b)));
}
real r_root(real a) { return number_to_real(number_root(number_real(a))); }
real r_long(long x) { return number_to_real(number_long(x)); }
real r_float(float x) { return number_to_real(number_float(x)); }
float r_to_float(real x) { return number_to_float(number_real(x)); }
#endif
#define R0 r_bits(0x0000000000000000UL)
#define R1 r_bits(0x3ff0000000000000UL)
real r_neg(real x) { return r_bits(r_to_bits(x) ^ 0x8000000000000000UL); }
real r_sub(real a, real b) { return r_add(a, r_neg(b)); }
/* A comparison in integers; false if one is NaN. */
bool r_less(real a, real b) {
    const ulong x = r_to_bits(a), y = r_to_bits(b), infinity = 0x7ff0000000000000UL;
    const ulong size_x = x & 0x7fffffffffffffffUL, size_y = y & 0x7fffffffffffffffUL;
    if (size_x > infinity || size_y > infinity || (size_x | size_y) == 0) return false;
    if (x >> 63 != y >> 63) return x >> 63 != 0;
    return x >> 63 ? size_x > size_y : size_x < size_y;
}

/* ---- float32 ---- */

#ifdef TL_INTEGERS
float f_fma(float a, float b, float c) {
    return number_to_float(number_fma(number_float(a), number_float(b), number_float(c)));
}
float f_add(float a, float b) { return f_fma(a, 1.0f, b); }
float f_mul(float a, float b) {
    return f_fma(a, b, as_float((as_uint(a) ^ as_uint(b)) & 0x80000000u));
}
float f_long(long x) { return number_to_float(number_long(x)); }
#else
float f_fma(float a, float b, float c) { return fma(a, b, c); }
float f_add(float a, float b) { return a + b; }
float f_mul(float a, float b) { return a * b; }
float f_long(long x) { return convert_float_rte(x); }
#endif
#ifdef TL_DIVIDE
float f_div(float a, float b) { return a / b; }
#else
// not through float64: compilers narrow (float)((double)a / b) to a division in float32
float f_div(float a, float b) {
    return number_to_float(number_divide(number_float(a), number_float(b)));
}
#endif
float f_neg(float a) { return as_float(as_uint(a) ^ 0x80000000u); }
float f_sub(float a, float b) { return f_add(a, f_neg(b)); }
bool f_is_nan(float a) { return (as_uint(a) & 0x7fffffffu) > 0x7f800000u; }
/* A comparison in integers; false if one is NaN. */
bool f_less(float a, float b) {
    const uint x = as_uint(a), y = as_uint(b);
    const uint size_x = x & 0x7fffffffu, size_y = y & 0x7fffffffu;
    if (size_x > 0x7f800000u || size_y > 0x7f800000u || (size_x | size_y) == 0) return false;
    if (x >> 31 != y >> 31) return x >> 31 != 0;
    return x >> 31 ? size_x > size_y : size_x < size_y;
}

/* A float16, in integers: its denormals are normal as float32. */
float f_half(ushort h) {
    const uint sign = (uint)(h & 0x8000u) << 16, rest = h & 0x7fffu;
    if (rest >= 0x7c00u) return as_float(sign | 0x7f800000u | (rest & 0x3ffu) << 13);
    if (rest >= 0x400u) return as_float(sign | ((rest << 13) + 0x38000000u));
    if (rest == 0) return as_float(sign);
    const uint zeros = clz(rest); // rest 2^-24
    return as_float(sign | (134 - zeros) << 23 | ((rest << (zeros - 8)) & 0x7fffffu));
}
