/* functions.cl - functions of one float; function_template.h has the same for the CPU. */

float f_max(float a, float b) { return f_less(b, a) ? a : b; } // b if one of them is NaN

float f_exp(float x) {
    const float shifted = f_fma(x, 1.44269504f, 12582912.0f);
    const float n = f_sub(shifted, 12582912.0f);
    float r = f_fma(n, -0x1.62e430p-1f, x), p = 1.0f / 5040;
    r = f_fma(n, 0x1.05c610p-29f, r);
    p = f_fma(p, r, 1.0f / 720);
    p = f_fma(p, r, 1.0f / 120);
    p = f_fma(p, r, 1.0f / 24);
    p = f_fma(p, r, 1.0f / 6);
    p = f_fma(p, r, 0.5f);
    p = f_fma(p, r, 1.0f);
    p = f_fma(p, r, 1.0f);
    // 2^(n - 1): the low bits of the shifted number are n
    p = f_mul(p, as_float((as_uint(f_sub(shifted, 1.0f)) << 23) + 0x3f800000u));
    p = f_mul(p, 2.0f);
    if (f_less(x, -86.6f)) p = 0.0f;
    if (f_less(88.72f, x)) p = INFINITY;
    return p;
}

float f_clamp(float x, float low, float high) {
    if (f_less(x, low)) x = low;
    return f_less(high, x) ? high : x;
}

float f_tanh(float x) {
    const float a = f_max(x, f_sub(0.0f, x)), z = f_mul(x, x);
    float p = -5.70498872745e-3f, t;
    p = f_fma(p, z, 2.06390887954e-2f);
    p = f_fma(p, z, -5.37397155531e-2f);
    p = f_fma(p, z, 1.33314422036e-1f);
    p = f_fma(p, z, -3.33332819422e-1f);
    p = f_fma(f_mul(p, z), x, x);
    t = f_sub(1.0f, f_div(2.0f, f_add(f_exp(f_add(a, a)), 1.0f)));
    if (f_less(x, 0.0f)) t = f_sub(0.0f, t);
    return f_less(a, 0.625f) ? p : t;
}

/* The standard normal distribution function. */
float f_normal(float x) {
    const float t = f_mul(x, 0.70710678f), a = f_max(t, f_sub(0.0f, t));
    const float z = f_mul(t, t), q = f_div(1.0f, a), y = f_mul(q, q);
    float erf = 7.853861353153693e-5f, near = 2.326819970068386e-2f;
    float far = -1.047766399936249e+1f, tail;
    erf = f_fma(erf, z, -8.010193625184903e-4f);
    erf = f_fma(erf, z, 5.188327685732524e-3f);
    erf = f_fma(erf, z, -2.685381193529856e-2f);
    erf = f_fma(erf, z, 1.128358514861418e-1f);
    erf = f_fma(erf, z, -3.761262582423300e-1f);
    erf = f_fma(erf, z, 1.128379165726710f);
    erf = f_mul(erf, t);
    near = f_fma(near, y, -1.387039388740657e-1f);
    near = f_fma(near, y, 3.687424674597105e-1f);
    near = f_fma(near, y, -5.824733027278666e-1f);
    near = f_fma(near, y, 6.210004621745983e-1f);
    near = f_fma(near, y, -4.944515323274145e-1f);
    near = f_fma(near, y, 3.404879937665872e-1f);
    near = f_fma(near, y, -2.741127028184656e-1f);
    near = f_fma(near, y, 5.638259427386472e-1f);
    far = f_fma(far, y, 1.297719955372516e+1f);
    far = f_fma(far, y, -7.495518717768503f);
    far = f_fma(far, y, 2.921019019210786f);
    far = f_fma(far, y, -1.015265279202700f);
    far = f_fma(far, y, 4.218463358204948e-1f);
    far = f_fma(far, y, -2.820767439740514e-1f);
    far = f_fma(far, y, 5.641895067754075e-1f);
    tail = f_mul(f_mul(f_exp(f_sub(0.0f, z)), q), f_less(a, 2.0f) ? near : far);
    tail = f_mul(0.5f, tail);
    if (!f_less(t, 0.0f)) tail = f_sub(1.0f, tail);
    return f_less(a, 1.0f) ? f_fma(0.5f, erf, 0.5f) : tail;
}

/* enum tl_function of kernels.h */
enum {
    FN_IDENTITY,
    FN_SILU,
    FN_GELU_TANH,
    FN_GELU_ERF,
    FN_SIGMOID,
    FN_RELU,
    FN_RELU2,
    FN_SOFT_CAP,
    FN_CLAMP,
    FN_SCALE,
    FN_OAI,
};

/* x divided by 1 + exp(e): what silu, gelu_tanh and sigmoid share */
float f_over(float x, float e) { return f_div(x, f_add(1.0f, f_exp(e))); }

/* `inverse` is 1 / parameter, rounded. */
float f_apply(int function, float parameter, float inverse, float x) {
    const float positive = f_less(x, 0.0f) ? 0.0f : x;
    switch (function) {
    case FN_SILU:
        return f_over(x, f_sub(0.0f, x));
    case FN_GELU_TANH:
        return f_over(x, f_mul(f_fma(f_mul(f_mul(x, x), x), 0.044715f, x), -1.5957691f));
    case FN_GELU_ERF:
        return f_mul(x, f_normal(x));
    case FN_SIGMOID:
        return f_over(1.0f, f_sub(0.0f, x));
    case FN_RELU:
        return positive;
    case FN_RELU2:
        return f_mul(positive, positive);
    case FN_SOFT_CAP:
        return f_mul(parameter, f_tanh(f_mul(x, inverse)));
    case FN_CLAMP:
        return f_clamp(x, f_sub(0.0f, parameter), parameter);
    case FN_SCALE:
        return f_mul(x, parameter);
    default:
        return x;
    }
}

/* ---- float64: base/math64.c has the same for the CPU ---- */

#define R_HALF r_bits(0x3fe0000000000000UL)
#define R_ROUND r_bits(0x4338000000000000UL) // 1.5 2^52: adding it rounds to an integer
#define R_LOG2_E r_bits(0x3ff71547652b82feUL)
#define R_LN2 r_bits(0x3fe62e42fefa39efUL)
#define R_LN2_LOW r_bits(0x3c7abc9e3b39803fUL)

/* 1 / k! for k = 0 .. 13 */
__constant ulong inverse_factorials[14] = {
    0x3ff0000000000000UL, 0x3ff0000000000000UL, 0x3fe0000000000000UL, 0x3fc5555555555555UL,
    0x3fa5555555555555UL, 0x3f81111111111111UL, 0x3f56c16c16c16c17UL, 0x3f2a01a01a01a01aUL,
    0x3efa01a01a01a01aUL, 0x3ec71de3a556c734UL, 0x3e927e4fb7789f5cUL, 0x3e5ae64567f544e4UL,
    0x3e21eed8eff8d898UL, 0x3de6124613a86d09UL};

/* 1 / k for k = 3, 5 .. 23 */
__constant ulong inverse_odds[11] = {
    0x3fd5555555555555UL, 0x3fc999999999999aUL, 0x3fc2492492492492UL, 0x3fbc71c71c71c71cUL,
    0x3fb745d1745d1746UL, 0x3fb3b13b13b13b14UL, 0x3fb1111111111111UL, 0x3fae1e1e1e1e1e1eUL,
    0x3faaf286bca1af28UL, 0x3fa8618618618618UL, 0x3fa642c8590b2164UL};

bool r_is_nan(real x) { return (r_to_bits(x) & 0x7fffffffffffffffUL) > 0x7ff0000000000000UL; }
real r_size(real x) { return r_bits(r_to_bits(x) & 0x7fffffffffffffffUL); }
real r_power(int n) { return r_bits((ulong)(n + 1023) << 52); } // 2^n, -1022 <= n <= 1023

real r_exp(real x) {
    const real shifted = r_add(r_mul(x, R_LOG2_E), R_ROUND), n = r_sub(shifted, R_ROUND);
    const int whole = (int)(uint)r_to_bits(shifted); // its low bits are n
    real r, p = r_bits(inverse_factorials[13]);
    if (r_is_nan(x)) return x;
    if (r_less(r_bits(0x40862e51eb851eb8UL), x)) return r_bits(0x7ff0000000000000UL); // 709.79
    if (r_less(x, r_bits(0xc08749999999999aUL))) return R0; // -745.2
    r = r_fma(r_neg(n), R_LN2, x);
    r = r_fma(r_neg(n), R_LN2_LOW, r);
    for (int i = 12; i >= 0; i--) p = r_fma(p, r, r_bits(inverse_factorials[i]));
    // two factors: 2^n alone may be subnormal or too large
    return r_mul(r_mul(p, r_power(whole / 2)), r_power(whole - whole / 2));
}

/* log(x) for x from 1 to 2, or NaN */
real r_log(real x) {
    int e = (int)(r_to_bits(x) >> 52) - 1023;
    real m = r_bits((r_to_bits(x) & 0xfffffffffffffUL) | 0x3ff0000000000000UL), f, f2, p = R0;
    if (r_is_nan(x)) return x;
    if (r_less(r_bits(0x3ff6a09e667f3bcdUL), m)) { // the root of 2
        m = r_mul(m, R_HALF);
        e++;
    }
    f = r_div(r_sub(m, R1), r_add(m, R1));
    f2 = r_mul(f, f);
    for (int i = 10; i >= 0; i--) p = r_fma(p, f2, r_bits(inverse_odds[i]));
    p = r_mul(r_mul(p, f2), f);
    return r_fma(r_long(e), R_LN2,
                 r_add(r_add(f, f), r_add(r_add(p, p), r_mul(r_long(e), R_LN2_LOW))));
}

/* log(1 + exp(x)) */
real r_softplus(real x) {
    const real positive = r_less(R0, x) ? x : R0;
    return r_add(positive, r_log(r_add(R1, r_exp(r_neg(r_size(x))))));
}
