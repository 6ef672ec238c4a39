/*
 * lanes.c - the search for scales, for all groups of 256 values side by side.
 *
 * Given the integers, the best scale is a quotient of two sums (least squares). Given the scale,
 * the best integers are the nearest ones. So a search tries a row of scales, computes for each of
 * them the integers and the best scale of these, and keeps the one with the smallest error. The
 * same two steps then repeat from there, and never make the error larger.
 */
#include "types/lanes.h"

#include "base/target.h"

#include <string.h>

#define EACH_LANE for (int l = 0; l < TL_LANES; l++)

/* To an integer, ties to even, for |x| < 2^22. */
static inline float nearest(float x) {
    return (x + 12582912.0f) - 12582912.0f;
}

static inline float clamp(float x, float lo, float hi) {
    x = x > lo ? x : lo;
    return x < hi ? x : hi;
}

/* 1 / x, or 0 where that is not finite. */
static inline float inverse(float x) {
    const float magnitude = x < 0 ? -x : x;
    return magnitude > 1e-37f ? 1.0f / x : 0.0f;
}

/* Where the 16 values of a lane start. */
static inline int start_of(bool wide, int lane) {
    return 16 * (wide ? lane % 8 * 2 + lane / 8 : lane);
}

static inline void fold(bool wide, float *sum) {
    if (!wide) return;
    for (int l = 0; l < 8; l++) sum[l] = sum[l + 8] = sum[l] + sum[l + 8];
}

/* ---- the sums, once per instruction set ---- */

#define LANES_SET(name) base_##name
#include "types/lanes_template.h"
#undef LANES_SET

#if defined(__GNUC__) && defined(__x86_64__)

TL_TARGET_BEGIN("avx2")
#define LANES_SET(name) avx2_##name
#include "types/lanes_template.h"
#undef LANES_SET
TL_TARGET_END

#define CHOOSE(name) (__builtin_cpu_supports("avx2") ? avx2_##name : base_##name)
#else
#define CHOOSE(name) base_##name
#endif

/* For 1 / scale. */
static void level_sums(const struct tl_lanes *s, const struct tl_levels *levels, const float *inv,
                       float *xq, float *qq) {
    if (levels->step_at != NULL) {
        CHOOSE(codebook_sums)(s, levels, inv, xq, qq);
    } else {
        CHOOSE(integer_sums)(s, levels, inv, xq, qq);
    }
    fold(s->wide, xq);
    fold(s->wide, qq);
}

static void affine_sums(const struct tl_lanes *s, float top, const float *inv, const float *from,
                        struct tl_affine_sums *out) {
    CHOOSE(affine_sums)(s, top, inv, from, out);
    fold(s->wide, out->xq);
    fold(s->wide, out->q);
    fold(s->wide, out->qq);
}

static void sum_up(struct tl_lanes *s) {
    float sum_w[TL_LANES] = {0}, sum_wx[TL_LANES] = {0};
    for (int i = 0; i < 16; i++) {
        EACH_LANE {
            sum_w[l] += s->w[16 * i + l];
            sum_wx[l] += s->wx[16 * i + l];
        }
    }
    fold(s->wide, sum_w);
    fold(s->wide, sum_wx);
    memcpy(s->sum_w, sum_w, sizeof(sum_w));
    memcpy(s->sum_wx, sum_wx, sizeof(sum_wx));
}

void tl_lanes_load(struct tl_lanes *s, const float *x, const float *weight, size_t n, bool wide) {
    float all_x[TL_CHUNK], all_w[TL_CHUNK];
    if (n < TL_CHUNK) {
        memcpy(all_x, x, n * sizeof(*x));
        memcpy(all_w, weight, n * sizeof(*x));
        for (size_t i = n; i < TL_CHUNK; i++) all_x[i] = 0, all_w[i] = 1;
        x = all_x;
        weight = all_w;
    }
    EACH_LANE {
        const int at = start_of(wide, l);
        for (int i = 0; i < 16; i++) {
            s->x[16 * i + l] = x[at + i];
            s->w[16 * i + l] = weight[at + i];
        }
    }
    for (int i = 0; i < TL_CHUNK; i++) s->wx[i] = s->w[i] * s->x[i];
    s->wide = wide;
    memset(s->mean, 0, sizeof(s->mean));
    sum_up(s);
}

/* ---- multiples of a scale ---- */

void tl_lanes_sums(const struct tl_lanes *s, const struct tl_levels *levels, const float *scale,
                   float *xq, float *qq) {
    float inv[TL_LANES];
    EACH_LANE inv[l] = inverse(scale[l]);
    level_sums(s, levels, inv, xq, qq);
}

/* The value of each group with the largest magnitude. */
static void extremes(const struct tl_lanes *s, float *most) {
    float size[TL_LANES] = {0};
    EACH_LANE most[l] = 0;
    for (int i = 0; i < 16; i++) {
        EACH_LANE {
            const float x = s->x[16 * i + l], a = x < 0 ? -x : x;
            most[l] = a > size[l] ? x : most[l];
            size[l] = a > size[l] ? a : size[l];
        }
    }
    if (!s->wide) return;
    for (int l = 0; l < 8; l++) {
        most[l] = most[l + 8] = size[l + 8] > size[l] ? most[l + 8] : most[l];
    }
}

void tl_lanes_scales(const struct tl_lanes *s, const struct tl_levels *levels, float *scale) {
    float most[TL_LANES], inv[TL_LANES], xq[TL_LANES], qq[TL_LANES], gain[TL_LANES] = {0};
    extremes(s, most);
    EACH_LANE scale[l] = 0;
    for (int k = 0; k < 2 * levels->count + 2; k++) {
        if (k < 2 * levels->count) {
            const float end = k % 2 == 0 ? levels->lo : levels->hi;
            const float at = end * (1 - levels->span + (float)(k / 2) * levels->step);
            EACH_LANE inv[l] = at * inverse(most[l]);
        } else {
            EACH_LANE inv[l] = inverse(scale[l]);
        }
        level_sums(s, levels, inv, xq, qq);
        EACH_LANE {
            const float best = xq[l] * inverse(qq[l]), now = xq[l] * best;
            scale[l] = now > gain[l] ? best : scale[l];
            gain[l] = now > gain[l] ? now : gain[l];
        }
    }
}

void tl_lanes_round(const struct tl_lanes *s, const struct tl_levels *levels, const float *scale,
                    int8_t *out) {
    float inv[TL_LANES], y[TL_LANES], q[TL_LANES];
    EACH_LANE inv[l] = inverse(scale[l]);
    for (int i = 0; i < 16; i++) {
        EACH_LANE y[l] = s->x[16 * i + l] * inv[l];
        if (levels->step_at != NULL) {
            base_look_up(levels, y, q);
        } else {
            EACH_LANE q[l] = nearest(clamp(y[l], levels->lo, levels->hi));
        }
        EACH_LANE out[start_of(s->wide, l) + i] = (int8_t)q[l];
    }
}

/* ---- a scale and an offset ---- */

void tl_lanes_center(struct tl_lanes *s) {
    float mean[TL_LANES];
    EACH_LANE mean[l] = s->sum_wx[l] * inverse(s->sum_w[l]);
    for (int i = 0; i < 16; i++) {
        EACH_LANE {
            s->x[16 * i + l] -= mean[l];
            s->wx[16 * i + l] = s->w[16 * i + l] * s->x[16 * i + l];
        }
    }
    EACH_LANE s->mean[l] += mean[l];
    sum_up(s);
}

void tl_lanes_affine_sums(const struct tl_lanes *s, float top, const float *scale,
                          const float *offset, struct tl_affine_sums *out) {
    float inv[TL_LANES], from[TL_LANES];
    EACH_LANE {
        inv[l] = inverse(scale[l]);
        from[l] = offset[l] - s->mean[l];
    }
    affine_sums(s, top, inv, from, out);
}

void tl_lanes_affine_error(const struct tl_lanes *s, const struct tl_affine_sums *sums,
                           const float *scale, const float *offset, float *error) {
    EACH_LANE {
        const float a = scale[l], b = offset[l] - s->mean[l];
        error[l] = a * (a * sums->qq[l] - 2 * sums->xq[l] + 2 * b * sums->q[l]) +
                   b * (b * s->sum_w[l] - 2 * s->sum_wx[l]);
    }
}

/* The best scale and offset for sums of some q. */
static void solve(const struct tl_lanes *s, const struct tl_affine_sums *sums, bool below,
                  float *scale, float *offset) {
    EACH_LANE {
        const float w = s->sum_w[l], q = sums->q[l], qq = sums->qq[l], xq = sums->xq[l];
        const float x = s->sum_wx[l], limit = -s->mean[l];
        const float det = w * qq - q * q;
        float a = (w * xq - q * x) * inverse(det), b = (x - a * q) * inverse(w);
        if (below && b > limit) {
            b = limit;
            a = (xq - b * q) * inverse(qq);
        }
        scale[l] = a;
        offset[l] = b + s->mean[l];
    }
}

void tl_lanes_affine(const struct tl_lanes *s, float top, bool below, float *scale, float *offset) {
    float lo[TL_LANES], hi[TL_LANES], inv[TL_LANES], from[TL_LANES], best[TL_LANES];
    memcpy(lo, s->x, sizeof(lo));
    memcpy(hi, s->x, sizeof(hi));
    for (int i = 1; i < 16; i++) {
        EACH_LANE {
            const float x = s->x[16 * i + l];
            lo[l] = x < lo[l] ? x : lo[l];
            hi[l] = x > hi[l] ? x : hi[l];
        }
    }
    for (int l = 0; s->wide && l < 8; l++) {
        lo[l] = lo[l + 8] = lo[l] < lo[l + 8] ? lo[l] : lo[l + 8];
        hi[l] = hi[l + 8] = hi[l] > hi[l + 8] ? hi[l] : hi[l + 8];
    }
    EACH_LANE {
        const float limit = -s->mean[l];
        if (below && lo[l] > limit) lo[l] = limit;
        if (below && hi[l] < limit) hi[l] = limit;
        scale[l] = 0;
        offset[l] = below && s->mean[l] > 0 ? 0 : s->mean[l];
        best[l] = (offset[l] - s->mean[l]) * (offset[l] - s->mean[l]) * s->sum_w[l];
    }
    for (int k = 0; k < 24; k++) {
        struct tl_affine_sums sums;
        float a[TL_LANES], b[TL_LANES], error[TL_LANES];
        if (k < 21) {
            const float extra = (float)(k / 3) * 0.3f - 0.6f;
            const float shift = (float)(k % 3) * 0.5f * extra;
            EACH_LANE {
                const float step = (hi[l] - lo[l]) * inverse(top + extra);
                inv[l] = inverse(step);
                from[l] = lo[l] + shift * step;
            }
        } else {
            EACH_LANE {
                inv[l] = inverse(scale[l]);
                from[l] = offset[l] - s->mean[l];
            }
        }
        affine_sums(s, top, inv, from, &sums);
        solve(s, &sums, below, a, b);
        tl_lanes_affine_error(s, &sums, a, b, error);
        EACH_LANE {
            const bool better = error[l] < best[l] && a[l] > 0;
            scale[l] = better ? a[l] : scale[l];
            offset[l] = better ? b[l] : offset[l];
            best[l] = better ? error[l] : best[l];
        }
    }
}

void tl_lanes_affine_round(const struct tl_lanes *s, float top, const float *scale,
                           const float *offset, int8_t *out) {
    float inv[TL_LANES], from[TL_LANES];
    EACH_LANE {
        inv[l] = inverse(scale[l]);
        from[l] = offset[l] - s->mean[l];
    }
    for (int i = 0; i < 16; i++) {
        EACH_LANE {
            const float q = nearest(clamp((s->x[16 * i + l] - from[l]) * inv[l], 0, top));
            out[start_of(s->wide, l) + i] = (int8_t)q;
        }
    }
}
