/*
 * pack_ternary.c - the types of one or two bits without a codebook: Q1_0, Q2_0, TQ1_0 and TQ2_0.
 *
 * Block layouts: ggml-common.h of ggml. Their scale belongs to 64 to 256 values and there are few
 * multiples of it, so that the best scale is found exactly.
 */
#include "types/pack.h"

#include "base/load.h"
#include "base/store.h"

#include <stdlib.h>
#include <string.h>

/* Where the nearest multiple of a value grows by one, as the scale becomes smaller. */
struct step {
    float scale;
    int value, to; // x[value] becomes `to` times the scale, with the sign of x
};

/* The largest scale first; all differ in this order, so every sort gives the same. */
static int by_scale(const void *a, const void *b) {
    const struct step *p = a, *q = b;
    if (p->scale != q->scale) return p->scale > q->scale ? -1 : 1;
    return p->value != q->value ? p->value - q->value : p->to - q->to;
}

/*
 * The scale d with the smallest sum of w (x - d q)^2, where q is the nearest of -below .. above.
 * As d goes from infinity to zero, the q change one after another. Between two changes the best d
 * is xq / qq (least squares), which takes xq^2 / qq off the error. *gain is the largest of these.
 */
static double best_scale(const float *x, const float *weight, int n, int below, int above,
                         double *gain) {
    struct step steps[2 * TL_CHUNK];
    size_t count = 0;
    double xq = 0, qq = 0, d = 0;
    *gain = 0;
    for (int i = 0; i < n; i++) {
        const float a = x[i] < 0 ? -x[i] : x[i];
        const int last = x[i] < 0 ? below : above;
        if (a == 0) continue;
        for (int to = 1; to <= last; to++) {
            steps[count++] = (struct step){a / ((float)to - 0.5f), i, to};
        }
    }
    qsort(steps, count, sizeof(*steps), by_scale);
    for (size_t k = 0; k < count; k++) {
        const struct step *s = steps + k;
        const double w = weight == NULL ? 1 : (double)weight[s->value];
        const double a = x[s->value] < 0 ? -(double)x[s->value] : (double)x[s->value];
        xq += w * a;
        qq += w * (2 * s->to - 1);
        if (xq * xq > *gain * qq) {
            *gain = xq * xq / qq;
            d = xq / qq;
        }
    }
    return d;
}

/* The nearest multiple of d of a value, between -below and above. */
static int nearest_multiple(float x, float d, int below, int above) {
    int q = 0;
    if (d == 0) return 0;
    if (d < 0) {
        x = -x;
        d = -d;
    }
    while (q < above && x > d * ((float)q + 0.5f)) q++;
    while (q > -below && x < d * ((float)q - 0.5f)) q--;
    return q;
}

/* A scale as float16; *d is what it stands for. */
static uint16_t rounded_scale(double exact, float *d) {
    const uint16_t half = tl_f32_to_f16_scale((float)exact);
    *d = tl_f16_to_f32(half);
    return half;
}

void tl_pack_q1_0(const float *x, const float *weight, size_t blocks, uint8_t *dst) {
    for (; blocks > 0; blocks--, x += 128, dst += 18) {
        double sum = 0, weights = 0;
        memset(dst, 0, 18);
        for (int i = 0; i < 128; i++) {
            const double w = weight == NULL ? 1 : (double)weight[i];
            sum += w * (x[i] < 0 ? -(double)x[i] : (double)x[i]);
            weights += w;
            if (x[i] >= 0) dst[2 + i / 8] |= (uint8_t)(1 << i % 8);
        }
        tl_store_u16(dst, tl_f32_to_f16((float)(sum / weights))); // 0, where it is too small
        if (weight != NULL) weight += 128;
    }
}

/* The multiples are -1 to 2, so the sign of the scale matters. */
void tl_pack_q2_0(const float *x, const float *weight, size_t blocks, uint8_t *dst) {
    for (; blocks > 0; blocks--, x += 64, dst += 18) {
        double plus, minus;
        const double up = best_scale(x, weight, 64, 1, 2, &plus);
        const double down = best_scale(x, weight, 64, 2, 1, &minus);
        float d;
        memset(dst, 0, 18);
        tl_store_u16(dst, rounded_scale(plus >= minus ? up : -down, &d));
        for (int i = 0; i < 64; i++) {
            dst[2 + i / 4] |= (uint8_t)((nearest_multiple(x[i], d, 1, 2) + 1) << 2 * (i % 4));
        }
        if (weight != NULL) weight += 64;
    }
}

/* 256 digits 0, 1 or 2 for the values -d, 0 and d. */
static uint16_t ternary(const float *x, const float *weight, uint8_t *digits) {
    double gain;
    float d;
    const uint16_t half = rounded_scale(best_scale(x, weight, TL_CHUNK, 1, 1, &gain), &d);
    for (int i = 0; i < TL_CHUNK; i++) {
        digits[i] = (uint8_t)(nearest_multiple(x[i], d, 1, 1) + 1);
    }
    return half;
}

void tl_pack_tq2_0(const float *x, const float *weight, size_t blocks, uint8_t *dst) {
    uint8_t digits[TL_CHUNK];
    if (blocks == 0) return;
    tl_store_u16(dst + 64, ternary(x, weight, digits));
    for (int i = 0; i < 64; i++) {
        const uint8_t *q = digits + i / 32 * 128 + i % 32;
        dst[i] = (uint8_t)(q[0] | q[32] << 2 | q[64] << 4 | q[96] << 6);
    }
}

/*
 * `count` bytes hold five digits each, or four and a zero: the number 0.abcde in base 3, in units
 * of 1/256 and rounded up (unpack_ternary.c).
 */
static const uint8_t *put_digits(const uint8_t *q, int count, int digits, uint8_t *dst) {
    for (int i = 0; i < count; i++) {
        int number = 0;
        for (int n = 0; n < 5; n++) number = 3 * number + (n < digits ? q[n * count + i] : 0);
        dst[i] = (uint8_t)((number * 256 + 242) / 243);
    }
    return q + count * digits;
}

void tl_pack_tq1_0(const float *x, const float *weight, size_t blocks, uint8_t *dst) {
    uint8_t digits[TL_CHUNK];
    const uint8_t *q = digits;
    if (blocks == 0) return;
    tl_store_u16(dst + 52, ternary(x, weight, digits));
    q = put_digits(q, 32, 5, dst);
    q = put_digits(q, 16, 5, dst + 32);
    put_digits(q, 4, 4, dst + 48);
}
