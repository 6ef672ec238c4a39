/* math64.c - float64 exp, log, sin and cos with the same bits on every machine. */
#include "base/math64.h"

#include "base/base.h"

#include <math.h>
#include <string.h>

/* Adding and subtracting 1.5 * 2^52 rounds to an integer, ties to even. */
static const double round_magic = 6755399441055744.0;

static double from_bits(uint64_t bits) {
    double x;
    memcpy(&x, &bits, 8);
    return x;
}

static uint64_t to_bits(double x) {
    uint64_t bits;
    memcpy(&bits, &x, 8);
    return bits;
}

static double pow2(int n) { // -1022 <= n <= 1023
    return from_bits((uint64_t)(n + 1023) << 52);
}

double tl_exp(double x) {
    // exp(x) = 2^n exp(r), |r| <= ln(2)/2; the rest of the Taylor series is below 4e-18 there
    static const double inverse_factorial[] = {
        1.0,
        1.0,
        1.0 / 2,
        1.0 / 6,
        1.0 / 24,
        1.0 / 120,
        1.0 / 720,
        1.0 / 5040,
        1.0 / 40320,
        1.0 / 362880,
        1.0 / 3628800,
        1.0 / 39916800,
        1.0 / 479001600,
        1.0 / 6227020800,
    };
    double n, r, p;
    int half;
    if (x != x) return x;
    if (x > 709.79) return INFINITY;
    if (x < -745.2) return 0.0;
    n = (x * 1.4426950408889634 + round_magic) - round_magic;
    r = fma(-n, 0x1.62e42fefa39efp-1, x);
    r = fma(-n, 0x1.abc9e3b39803fp-56, r);
    p = inverse_factorial[13];
    for (int i = 12; i >= 0; i--) p = fma(p, r, inverse_factorial[i]);
    half = (int)n / 2; // two factors: 2^n alone may be subnormal or too large
    return p * pow2(half) * pow2((int)n - half);
}

double tl_log(double x) {
    // x = m 2^e with m near 1; log m = 2 atanh(f), f = (m - 1) / (m + 1), |f| < 0.172
    uint64_t bits = to_bits(x);
    int e = 0;
    double m, f, f2, p;
    if (x != x || x == INFINITY) return x;
    if (x == 0) return -INFINITY;
    if (x < 0) return NAN;
    if (bits >> 52 == 0) { // subnormal
        bits = to_bits(x * 0x1p54);
        e = -54;
    }
    e += (int)(bits >> 52) - 1023;
    m = from_bits((bits & 0xfffffffffffffull) | 0x3ff0000000000000ull);
    if (m > 1.4142135623730951) {
        m *= 0.5;
        e++;
    }
    f = (m - 1) / (m + 1);
    f2 = f * f;
    p = 0;
    for (int k = 23; k >= 3; k -= 2) p = fma(p, f2, 1.0 / k);
    p = p * f2 * f; // atanh(f) - f
    return fma(e, 0x1.62e42fefa39efp-1, 2 * f + (2 * p + e * 0x1.abc9e3b39803fp-56));
}

double tl_softplus(double x) {
    return (x > 0 ? x : 0.0) + tl_log(1 + tl_exp(-fabs(x)));
}

void tl_sincos(double x, double *sin_out, double *cos_out) {
    // x = q pi/2 + r, |r| <= pi/4, with pi/2 in three parts; then both Taylor series
    double q, r, r2, s, c;
    if (!(fabs(x) <= 1e9)) {
        *sin_out = *cos_out = NAN;
        return;
    }
    q = (x * 0.6366197723675814 + round_magic) - round_magic;
    r = fma(-q, 0x1.921fb54442d18p+0, x);
    r = fma(-q, 0x1.1a62633145c07p-54, r);
    r = fma(-q, -0x1.f1976b7ed8fbcp-110, r);
    r2 = r * r;
    s = 0;
    c = 0;
    // the terms down from 1/17! and 1/18!; the rest of each series is below 1e-19
    {
        static const double sin_terms[] = {
            -1.0 / 6,        1.0 / 120,        -1.0 / 5040,          1.0 / 362880,
            -1.0 / 39916800, 1.0 / 6227020800, -1.0 / 1307674368000, 1.0 / 355687428096000};
        static const double cos_terms[] = {-1.0 / 2,
                                           1.0 / 24,
                                           -1.0 / 720,
                                           1.0 / 40320,
                                           -1.0 / 3628800,
                                           1.0 / 479001600,
                                           -1.0 / 87178291200,
                                           1.0 / 20922789888000,
                                           -1.0 / 6402373705728000};
        for (int i = (int)TL_ARRAY_LEN(sin_terms) - 1; i >= 0; i--) s = fma(s, r2, sin_terms[i]);
        for (int i = (int)TL_ARRAY_LEN(cos_terms) - 1; i >= 0; i--) c = fma(c, r2, cos_terms[i]);
    }
    s = fma(s * r2, r, r);
    c = fma(c, r2, 1.0);
    switch ((int64_t)q & 3) {
    case 0:
        *sin_out = s, *cos_out = c;
        break;
    case 1:
        *sin_out = c, *cos_out = -s;
        break;
    case 2:
        *sin_out = -s, *cos_out = -c;
        break;
    default:
        *sin_out = -c, *cos_out = s;
        break;
    }
}

double tl_sum(const double *x, size_t n) {
    double sum = 0;
    for (size_t i = 0; i < n; i++) sum += x[i];
    return sum;
}

void tl_softmax(const double *x, size_t n, double *p) {
    double max = -INFINITY, sum;
    for (size_t i = 0; i < n; i++) max = x[i] > max ? x[i] : max;
    if (max == -INFINITY) {
        bool nan = false;
        for (size_t i = 0; i < n; i++) nan |= x[i] != x[i];
        for (size_t i = 0; i < n; i++) p[i] = nan ? NAN : 0.0;
        return;
    }
    for (size_t i = 0; i < n; i++) p[i] = tl_exp(x[i] - max);
    sum = tl_sum(p, n);
    for (size_t i = 0; i < n; i++) p[i] /= sum;
}
