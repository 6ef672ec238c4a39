/*
 * function_template.h - functions of one value, such as activations, and their loops over arrays.
 *
 * docs/numerics.md section 3 defines them.
 *
 * Needs:   simd/<set>.h
 * Defines: v16_exp, function_unary, function_gated
 */

#ifndef LONG_INLINE
#define LONG_INLINE TL_INLINE
#endif

/*
 * exp, error below 1 ulp; 0 below -86.6, inf above 88.72.
 * exp(x) = 2^n exp(r), |r| <= ln(2)/2, by the Taylor series of degree 7; 1.5 * 2^23 rounds to
 * an integer when added. 2^(n-1) * 2 instead of 2^n, so that n = 128 does not overflow early.
 */
LONG_INLINE v16 v16_exp(v16 x) {
    const v16 magic = v16_set1(12582912.0f), two = v16_set1(2.0f);
    v16 shifted = v16_fma(x, v16_set1(1.44269504f), magic);
    v16 n = v16_sub(shifted, magic);
    v16 r = v16_fma(n, v16_set1(-0x1.62e430p-1f), x);
    v16 p = v16_set1(1.0f / 5040);
    r = v16_fma(n, v16_set1(0x1.05c610p-29f), r);
    p = v16_fma(p, r, v16_set1(1.0f / 720));
    p = v16_fma(p, r, v16_set1(1.0f / 120));
    p = v16_fma(p, r, v16_set1(1.0f / 24));
    p = v16_fma(p, r, v16_set1(1.0f / 6));
    p = v16_fma(p, r, v16_set1(0.5f));
    p = v16_fma(p, r, v16_set1(1.0f));
    p = v16_fma(p, r, v16_set1(1.0f));
    p = v16_mul(v16_mul(p, v16_pow2(v16_sub(shifted, v16_set1(1.0f)))), two);
    p = v16_if_less(x, v16_set1(-86.6f), v16_set1(0.0f), p);
    return v16_if_less(v16_set1(88.72f), x, v16_set1(INFINITY), p);
}

TL_INLINE v16 v16_negative(v16 x) {
    return v16_sub(v16_set1(0.0f), x);
}

/* low, x or high; NaN for NaN */
TL_INLINE v16 v16_clamp(v16 x, v16 low, v16 high) {
    x = v16_if_less(x, low, low, x);
    return v16_if_less(high, x, high, x);
}

TL_INLINE v16 v16_sigmoid(v16 x) {
    const v16 one = v16_set1(1.0f);
    return v16_div(one, v16_add(one, v16_exp(v16_negative(x))));
}

TL_INLINE v16 v16_silu(v16 x) {
    return v16_div(x, v16_add(v16_set1(1.0f), v16_exp(v16_negative(x))));
}

/* x (1 + tanh(u)) / 2 = x / (1 + exp(-2 u)), u = sqrt(2 / pi) (x + 0.044715 x^3) */
LONG_INLINE v16 v16_gelu_tanh(v16 x) {
    const v16 cube = v16_mul(v16_mul(x, x), x);
    const v16 u = v16_mul(v16_fma(cube, v16_set1(0.044715f), x), v16_set1(-1.5957691f));
    return v16_div(x, v16_add(v16_set1(1.0f), v16_exp(u)));
}

/* The polynomials are those of tanhf and erff in the Cephes library (Moshier). */
LONG_INLINE v16 v16_tanh(v16 x) {
    const v16 zero = v16_set1(0.0f), one = v16_set1(1.0f), two = v16_set1(2.0f);
    const v16 a = v16_max(x, v16_negative(x)), z = v16_mul(x, x);
    v16 p = v16_set1(-5.70498872745e-3f), t;
    p = v16_fma(p, z, v16_set1(2.06390887954e-2f));
    p = v16_fma(p, z, v16_set1(-5.37397155531e-2f));
    p = v16_fma(p, z, v16_set1(1.33314422036e-1f));
    p = v16_fma(p, z, v16_set1(-3.33332819422e-1f));
    p = v16_fma(v16_mul(p, z), x, x);
    t = v16_sub(one, v16_div(two, v16_add(v16_exp(v16_add(a, a)), one)));
    t = v16_if_less(x, zero, v16_negative(t), t);
    return v16_if_less(a, v16_set1(0.625f), p, t);
}

/* The standard normal distribution function: erfc(-x / sqrt(2)) / 2. */
LONG_INLINE v16 v16_normal(v16 x) {
    const v16 half = v16_set1(0.5f), one = v16_set1(1.0f);
    const v16 t = v16_mul(x, v16_set1(0.70710678f)), a = v16_max(t, v16_negative(t));
    const v16 z = v16_mul(t, t), q = v16_div(one, a), y = v16_mul(q, q);
    v16 erf = v16_set1(7.853861353153693e-5f), near = v16_set1(2.326819970068386e-2f);
    v16 far = v16_set1(-1.047766399936249e+1f), tail;
    erf = v16_fma(erf, z, v16_set1(-8.010193625184903e-4f));
    erf = v16_fma(erf, z, v16_set1(5.188327685732524e-3f));
    erf = v16_fma(erf, z, v16_set1(-2.685381193529856e-2f));
    erf = v16_fma(erf, z, v16_set1(1.128358514861418e-1f));
    erf = v16_fma(erf, z, v16_set1(-3.761262582423300e-1f));
    erf = v16_fma(erf, z, v16_set1(1.128379165726710f));
    erf = v16_mul(erf, t); // for a < 1
    near = v16_fma(near, y, v16_set1(-1.387039388740657e-1f));
    near = v16_fma(near, y, v16_set1(3.687424674597105e-1f));
    near = v16_fma(near, y, v16_set1(-5.824733027278666e-1f));
    near = v16_fma(near, y, v16_set1(6.210004621745983e-1f));
    near = v16_fma(near, y, v16_set1(-4.944515323274145e-1f));
    near = v16_fma(near, y, v16_set1(3.404879937665872e-1f));
    near = v16_fma(near, y, v16_set1(-2.741127028184656e-1f));
    near = v16_fma(near, y, v16_set1(5.638259427386472e-1f));
    far = v16_fma(far, y, v16_set1(1.297719955372516e+1f));
    far = v16_fma(far, y, v16_set1(-7.495518717768503f));
    far = v16_fma(far, y, v16_set1(2.921019019210786f));
    far = v16_fma(far, y, v16_set1(-1.015265279202700f));
    far = v16_fma(far, y, v16_set1(4.218463358204948e-1f));
    far = v16_fma(far, y, v16_set1(-2.820767439740514e-1f));
    far = v16_fma(far, y, v16_set1(5.641895067754075e-1f));
    // erfc(a) for a >= 1
    tail = v16_mul(v16_mul(v16_exp(v16_negative(z)), q), v16_if_less(a, v16_set1(2.0f), near, far));
    tail = v16_mul(half, tail);
    tail = v16_if_less(t, v16_set1(0.0f), tail, v16_sub(one, tail));
    return v16_if_less(a, one, v16_fma(half, erf, half), tail);
}

/* Up to 16 of n values that are left. */
TL_INLINE v16 v16_load_some(const float *p, size_t n) {
    return n >= 16 ? v16_load(p) : v16_load_part(p, n);
}

TL_INLINE void v16_store_some(float *p, size_t n, v16 x) {
    if (n >= 16) {
        v16_store(p, x);
    } else {
        v16_store_part(p, n, x);
    }
}

/*
 * The loops of a function: unary_<name>, y = f(x), and gated_<name>, y = f(x) * up. `f` is the
 * value for x, and may use `parameter`, p in every lane. Each function is written out on its own,
 * because a choice among inlined functions takes the compiler minutes.
 */
#define FUNCTION(name, f)                                                                          \
    static void unary_##name(float p, const float *from, float *y, size_t n) {                     \
        const v16 zero = v16_set1(0.0f), parameter = v16_set1(p);                                  \
        (void)zero, (void)parameter;                                                               \
        for (size_t i = 0; i < n; i += 16) {                                                       \
            v16 x = v16_load_some(from + i, n - i);                                                \
            v16_store_some(y + i, n - i, (f));                                                     \
        }                                                                                          \
    }                                                                                              \
    static void gated_##name(float p, const float *from, const float *up, float *y, size_t n) {    \
        const v16 zero = v16_set1(0.0f), parameter = v16_set1(p);                                  \
        (void)zero, (void)parameter;                                                               \
        for (size_t i = 0; i < n; i += 16) {                                                       \
            v16 x = v16_load_some(from + i, n - i), u = v16_load_some(up + i, n - i);              \
            v16_store_some(y + i, n - i, v16_mul((f), u));                                         \
        }                                                                                          \
    }

FUNCTION(identity, x)
FUNCTION(silu, v16_silu(x))
FUNCTION(gelu_tanh, v16_gelu_tanh(x))
FUNCTION(gelu_erf, v16_mul(x, v16_normal(x)))
FUNCTION(sigmoid, v16_sigmoid(x))
FUNCTION(relu, v16_if_less(x, zero, zero, x))
FUNCTION(relu2, v16_mul(v16_if_less(x, zero, zero, x), v16_if_less(x, zero, zero, x)))
FUNCTION(soft_cap, v16_mul(parameter, v16_tanh(v16_mul(x, v16_set1(1.0f / p)))))
FUNCTION(clamp, v16_clamp(x, v16_negative(parameter), parameter))
FUNCTION(scale, v16_mul(x, parameter))

#undef FUNCTION

static void gated_oai(float alpha, float limit, const float *gate, const float *up, float *y,
                      size_t n) {
    const v16 top = v16_set1(limit), one = v16_set1(1.0f), slope = v16_set1(-alpha);
    for (size_t i = 0; i < n; i += 16) {
        v16 g = v16_load_some(gate + i, n - i), u = v16_load_some(up + i, n - i), e;
        g = v16_if_less(top, g, top, g);
        e = v16_exp(v16_mul(g, slope));
        u = v16_clamp(u, v16_negative(top), top);
        v16_store_some(y + i, n - i, v16_mul(v16_div(g, v16_add(one, e)), v16_add(u, one)));
    }
}

#define FUNCTIONS(kind)                                                                            \
    {                                                                                              \
        [TL_FN_IDENTITY] = kind##_identity, [TL_FN_SILU] = kind##_silu,                            \
        [TL_FN_GELU_TANH] = kind##_gelu_tanh, [TL_FN_GELU_ERF] = kind##_gelu_erf,                  \
        [TL_FN_SIGMOID] = kind##_sigmoid, [TL_FN_RELU] = kind##_relu,                              \
        [TL_FN_RELU2] = kind##_relu2, [TL_FN_SOFT_CAP] = kind##_soft_cap,                          \
        [TL_FN_CLAMP] = kind##_clamp, [TL_FN_SCALE] = kind##_scale, [TL_FN_OAI] = kind##_identity, \
    }

static void function_unary(enum tl_function f, float p, const float *x, float *y, size_t n) {
    static void (*const functions[])(float, const float *, float *, size_t) = FUNCTIONS(unary);
    functions[f](p, x, y, n);
}

static void function_gated(enum tl_function f, float alpha, float limit, const float *gate,
                           const float *up, float *y, size_t n) {
    static void (*const functions[])(float, const float *, const float *, float *, size_t) =
        FUNCTIONS(gated);
    if (f == TL_FN_OAI) {
        gated_oai(alpha, limit, gate, up, y, n);
    } else {
        functions[f](alpha, gate, up, y, n);
    }
}

#undef FUNCTIONS
