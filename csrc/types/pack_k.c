/*
 * pack_k.c - the K types and IQ4_XS: integer sub-scales under one float scale for each 256 values.
 *
 * Block layouts: ggml-common.h of ggml. First each group gets its own best scale (lanes.h). Then
 * the float scale and the sub-scales that are nearest to these are improved in turn: for a fixed
 * float scale, each group tries the sub-scales beside its own; for fixed integers, the best float
 * scale is a quotient of sums.
 */
#include "types/pack.h"

#include "base/load.h"
#include "base/store.h"
#include "types/lanes.h"
#include "types/pack_k.h"

#include <string.h>

#define EACH_LANE for (int l = 0; l < TL_LANES; l++)

static float to_f16(float x) {
    return tl_f16_to_f32(tl_f32_to_f16_scale(x));
}

static float round_between(float x, float lo, float hi) {
    x = x > lo ? x : lo;
    x = x < hi ? x : hi;
    return (x + 12582912.0f) - 12582912.0f;
}

/* Sums over lanes; two lanes of a wide group have the same value, which makes no difference. */
static double total(const float *value) {
    double sum = 0;
    EACH_LANE sum += (double)value[l];
    return sum;
}

/*
 * Least squares makes the rounded values a little too small: their error points against the values.
 * So the errors of the sums that the model computes from them add up. A larger scale makes up for
 * it, at the price of a slightly larger squared error. docs/quantization.md has measurements.
 */
float tl_grow(const struct tl_lanes *s, const float *scale, const float *offset, const int8_t *q) {
    float xx[TL_LANES], xy[TL_LANES];
    double ratio;
    tl_lanes_products(s, scale, offset, q, xx, xy);
    ratio = total(xy) > 0 ? total(xx) / total(xy) : 1;
    return (float)TL_MAX(1, TL_MIN(ratio, 1.25));
}

/* ---- scales without offsets ---- */

struct fit {
    float d;             // rounded to float16
    float sub[TL_LANES]; // integers
    float xq[TL_LANES], qq[TL_LANES];
    float error[TL_LANES]; // less a constant
};

static void measure(const struct tl_lanes *s, const struct tl_levels *levels, struct fit *f) {
    float scale[TL_LANES];
    EACH_LANE scale[l] = f->d * f->sub[l];
    tl_lanes_sums(s, levels, scale, f->xq, f->qq);
    EACH_LANE f->error[l] = scale[l] * (scale[l] * f->qq[l] - 2 * f->xq[l]);
}

/* Tries the sub-scale beside each of them, on both sides. */
static void improve_sub(const struct tl_lanes *s, const struct tl_levels *levels, float lo,
                        float hi, struct fit *f) {
    const struct fit start = *f;
    for (int k = 0; k < 2; k++) {
        struct fit now = start;
        EACH_LANE now.sub[l] = round_between(start.sub[l] + (k == 0 ? 1.0f : -1.0f), lo, hi);
        measure(s, levels, &now);
        EACH_LANE {
            if (now.error[l] < f->error[l]) {
                f->sub[l] = now.sub[l];
                f->xq[l] = now.xq[l];
                f->qq[l] = now.qq[l];
                f->error[l] = now.error[l];
            }
        }
    }
}

void tl_fit_sub_scales(const struct tl_lanes *s, const struct tl_levels *levels, float lo, float hi,
                       float *d, int *sub) {
    float scale[TL_LANES], most = 0;
    struct fit best;
    tl_lanes_scales(s, levels, scale);
    EACH_LANE {
        const float a = scale[l] < 0 ? -scale[l] : scale[l], b = most < 0 ? -most : most;
        if (a > b) most = scale[l];
    }
    // the largest scale becomes lo, which is one further from 0 than hi
    best.d = to_f16(most / lo);
    EACH_LANE best.sub[l] = best.d == 0 ? 0 : round_between(scale[l] / best.d, lo, hi);
    measure(s, levels, &best);
    improve_sub(s, levels, lo, hi, &best);
    for (int round = 0; round < 2; round++) {
        double xq = 0, qq = 0;
        struct fit now = best;
        EACH_LANE {
            xq += (double)(best.sub[l] * best.xq[l]);
            qq += (double)(best.sub[l] * best.sub[l] * best.qq[l]);
        }
        if (!(qq > 0)) break;
        now.d = to_f16((float)(xq / qq));
        if (now.d == best.d) break;
        measure(s, levels, &now);
        improve_sub(s, levels, lo, hi, &now);
        if (!(total(now.error) < total(best.error))) break;
        best = now;
    }
    *d = best.d;
    EACH_LANE sub[l] = (int)best.sub[l];
}

/* ---- scales and minima ---- */

struct affine_fit {
    float d, dmin;                           // rounded to float16
    float sub[TL_LANES], min[TL_LANES];      // integers
    float scale[TL_LANES], offset[TL_LANES]; // what they stand for
    struct tl_affine_sums sums;
    float error[TL_LANES]; // less a constant
};

static void measure_affine(const struct tl_lanes *s, float top, struct affine_fit *f) {
    EACH_LANE {
        f->scale[l] = f->d * f->sub[l];
        f->offset[l] = -f->dmin * f->min[l];
    }
    tl_lanes_affine_sums(s, top, f->scale, f->offset, &f->sums);
    tl_lanes_affine_error(s, &f->sums, f->scale, f->offset, f->error);
}

/* The integer of each minimum that is best for the q of the sums. */
static void best_min(const struct tl_lanes *s, float limit, struct affine_fit *f) {
    EACH_LANE {
        const float rest = s->sum_wx[l] - f->scale[l] * f->sums.q[l];
        const float offset = rest / s->sum_w[l] + s->mean[l];
        f->min[l] = f->dmin == 0 ? 0 : round_between(-offset / f->dmin, 0, limit);
    }
}

static void keep_better(struct affine_fit *f, const struct affine_fit *now) {
    EACH_LANE {
        if (now->error[l] < f->error[l]) {
            f->sub[l] = now->sub[l];
            f->min[l] = now->min[l];
            f->scale[l] = now->scale[l];
            f->offset[l] = now->offset[l];
            f->sums.xq[l] = now->sums.xq[l];
            f->sums.q[l] = now->sums.q[l];
            f->sums.qq[l] = now->sums.qq[l];
            f->error[l] = now->error[l];
        }
    }
}

static void improve_affine(const struct tl_lanes *s, float top, float limit, struct affine_fit *f) {
    const struct affine_fit start = *f;
    for (int k = -1; k <= 1; k++) {
        struct affine_fit now = start;
        EACH_LANE now.sub[l] = round_between(start.sub[l] + (float)k, 0, limit);
        if (k != 0) measure_affine(s, top, &now);
        best_min(s, limit, &now);
        measure_affine(s, top, &now);
        keep_better(f, &now);
    }
}

/* The float scales that are best for the integers; false if there are none. */
static bool solve_affine(const struct tl_lanes *s, const struct affine_fit *f, float *d,
                         float *dmin) {
    double aa = 0, ab = 0, bb = 0, ax = 0, bx = 0, det;
    EACH_LANE {
        const double a = (double)f->sub[l], b = -(double)f->min[l], mean = (double)s->mean[l];
        const double q = (double)f->sums.q[l], w = (double)s->sum_w[l];
        aa += a * a * (double)f->sums.qq[l];
        ab += a * b * q;
        bb += b * b * w;
        ax += a * ((double)f->sums.xq[l] + mean * q);
        bx += b * ((double)s->sum_wx[l] + mean * w);
    }
    det = aa * bb - ab * ab;
    if (bb == 0) {
        if (!(aa > 0)) return false;
        *d = (float)(ax / aa);
        *dmin = f->dmin;
        return true;
    }
    if (!(det > 0)) return false;
    *d = (float)((ax * bb - bx * ab) / det);
    *dmin = (float)((bx * aa - ax * ab) / det);
    return *d > 0 && *dmin >= 0;
}

static void fit_minima(struct tl_lanes *s, float top, float limit, struct affine_fit *best) {
    float scale[TL_LANES], offset[TL_LANES], most = 0, least = 0;
    tl_lanes_center(s);
    tl_lanes_affine(s, top, true, scale, offset);
    EACH_LANE {
        most = scale[l] > most ? scale[l] : most;
        least = offset[l] < least ? offset[l] : least;
    }
    best->d = to_f16(most / limit);
    best->dmin = to_f16(-least / limit);
    EACH_LANE {
        best->sub[l] = best->d == 0 ? 0 : round_between(scale[l] / best->d, 0, limit);
        best->min[l] = best->dmin == 0 ? 0 : round_between(-offset[l] / best->dmin, 0, limit);
    }
    measure_affine(s, top, best);
    improve_affine(s, top, limit, best);
    for (int round = 0; round < 2; round++) {
        struct affine_fit now = *best;
        if (!solve_affine(s, best, &now.d, &now.dmin)) break;
        now.d = to_f16(now.d);
        now.dmin = to_f16(now.dmin);
        if (now.d == best->d && now.dmin == best->dmin) break;
        measure_affine(s, top, &now);
        improve_affine(s, top, limit, &now);
        if (!(total(now.error) < total(best->error))) break;
        *best = now;
    }
}

/* Fits, rounds, and lets the scales grow. */
static void round_minima(struct tl_lanes *s, float top, float limit, struct affine_fit *f,
                         int8_t *q) {
    float factor;
    fit_minima(s, top, limit, f);
    tl_lanes_affine_round(s, top, f->scale, f->offset, q);
    factor = tl_grow(s, f->scale, f->offset, q);
    f->d *= factor;
    f->dmin *= factor;
}

/* ---- layouts ---- */

void tl_pack_q2_k(const float *x, const float *weight, size_t blocks, uint8_t *dst) {
    struct tl_lanes s;
    struct affine_fit f;
    int8_t q[TL_CHUNK];
    if (blocks == 0) return;
    tl_lanes_load(&s, x, weight, TL_CHUNK, false);
    round_minima(&s, 3, 15, &f, q);
    EACH_LANE dst[l] = (uint8_t)((int)f.sub[l] | (int)f.min[l] << 4);
    for (int half = 0; half < 2; half++) {
        const int8_t *p = q + 128 * half;
        for (int i = 0; i < 32; i++) {
            dst[16 + 32 * half + i] =
                (uint8_t)(p[i] | p[i + 32] << 2 | p[i + 64] << 4 | p[i + 96] << 6);
        }
    }
    tl_store_u16(dst + 80, tl_f32_to_f16_scale(f.d));
    tl_store_u16(dst + 82, tl_f32_to_f16_scale(f.dmin));
}

static const struct tl_levels levels_3 = {-4, 3, 0.30f, 0.10f, 7, NULL, NULL, 0};
static const struct tl_levels levels_6 = {-32, 31, 0.04f, 0.01f, 8, NULL, NULL, 0};

/* Q3_K and Q6_K: rounds a chunk to q with the sub-scales sub, from low to high; returns d. */
static float pack_sub_scales(const float *x, const float *weight, const struct tl_levels *levels,
                             float low, float high, int8_t *q, int *sub) {
    struct tl_lanes s;
    float scale[TL_LANES], d;
    tl_lanes_load(&s, x, weight, TL_CHUNK, false);
    tl_fit_sub_scales(&s, levels, low, high, &d, sub);
    EACH_LANE scale[l] = d * (float)sub[l];
    tl_lanes_round(&s, levels, scale, q);
    return d * tl_grow(&s, scale, NULL, q);
}

void tl_pack_q3_k(const float *x, const float *weight, size_t blocks, uint8_t *dst) {
    int8_t q[TL_CHUNK];
    int sub[TL_LANES];
    float d;
    if (blocks == 0) return;
    d = pack_sub_scales(x, weight, &levels_3, -32, 31, q, sub);
    memset(dst, 0, 108);
    for (int i = 0; i < TL_CHUNK; i++) {
        const int half = i / 128, j = i % 128 / 32, at = i % 32, value = q[i] + 4;
        dst[at] |= (uint8_t)(value >> 2 << (4 * half + j));
        dst[32 + 32 * half + at] |= (uint8_t)((value & 3) << (2 * j));
    }
    // six bits: the low four in bytes 0 to 7, two scales each; the high two in bytes 8 to 11
    EACH_LANE {
        const int value = sub[l] + 32;
        dst[96 + l % 8] |= (uint8_t)((value & 15) << (l / 8 * 4));
        dst[104 + l % 4] |= (uint8_t)(value >> 4 << (l / 4 * 2));
    }
    tl_store_u16(dst + 108, tl_f32_to_f16_scale(d));
}

/* Q4_K and Q5_K: eight six-bit scales and minima in 12 bytes, each for 32 values. */
static void store_scales_k4(const struct affine_fit *f, uint8_t *p) {
    memset(p, 0, 12);
    for (int j = 0; j < 8; j++) {
        const int scale = (int)f->sub[j], min = (int)f->min[j];
        if (j < 4) {
            p[j] |= (uint8_t)scale;
            p[j + 4] |= (uint8_t)min;
        } else {
            p[j + 4] = (uint8_t)((scale & 15) | (min & 15) << 4);
            p[j - 4] |= (uint8_t)(scale >> 4 << 6);
            p[j] |= (uint8_t)(min >> 4 << 6);
        }
    }
}

static void pack_k4(const float *x, const float *weight, float top, uint8_t *dst, int8_t *q) {
    struct tl_lanes s;
    struct affine_fit f;
    tl_lanes_load(&s, x, weight, TL_CHUNK, true);
    round_minima(&s, top, 63, &f, q);
    tl_store_u16(dst, tl_f32_to_f16_scale(f.d));
    tl_store_u16(dst + 2, tl_f32_to_f16_scale(f.dmin));
    store_scales_k4(&f, dst + 4);
}

static void store_low_k4(const int8_t *q, uint8_t *qs) {
    for (int c = 0; c < 4; c++) {
        for (int i = 0; i < 32; i++) {
            qs[32 * c + i] = (uint8_t)((q[64 * c + i] & 15) | (q[64 * c + 32 + i] & 15) << 4);
        }
    }
}

void tl_pack_q4_k(const float *x, const float *weight, size_t blocks, uint8_t *dst) {
    int8_t q[TL_CHUNK];
    if (blocks == 0) return;
    pack_k4(x, weight, 15, dst, q);
    store_low_k4(q, dst + 16);
}

void tl_pack_q5_k(const float *x, const float *weight, size_t blocks, uint8_t *dst) {
    int8_t q[TL_CHUNK];
    if (blocks == 0) return;
    pack_k4(x, weight, 31, dst, q);
    memset(dst + 16, 0, 32);
    for (int i = 0; i < TL_CHUNK; i++) dst[16 + i % 32] |= (uint8_t)(q[i] >> 4 << i / 32);
    store_low_k4(q, dst + 48);
}

void tl_pack_q6_k(const float *x, const float *weight, size_t blocks, uint8_t *dst) {
    int8_t q[TL_CHUNK];
    int sub[TL_LANES];
    float d;
    if (blocks == 0) return;
    d = pack_sub_scales(x, weight, &levels_6, -128, 127, q, sub);
    for (int half = 0; half < 2; half++) {
        const int8_t *p = q + 128 * half;
        uint8_t *low = dst + 64 * half, *high = dst + 128 + 32 * half;
        for (int i = 0; i < 32; i++) {
            const int a = p[i] + 32, b = p[i + 32] + 32, c = p[i + 64] + 32, e = p[i + 96] + 32;
            low[i] = (uint8_t)((a & 15) | (c & 15) << 4);
            low[i + 32] = (uint8_t)((b & 15) | (e & 15) << 4);
            high[i] = (uint8_t)(a >> 4 | b >> 4 << 2 | c >> 4 << 4 | e >> 4 << 6);
        }
    }
    EACH_LANE dst[192 + l] = (uint8_t)(int8_t)sub[l];
    tl_store_u16(dst + 208, tl_f32_to_f16_scale(d));
}
