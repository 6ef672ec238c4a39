/*
 * lanes.h - the search for scales, for all groups of 256 values side by side.
 *
 * A group of 16 values is a lane. A group of 32 is two lanes, l and l + 8, whose sums are added.
 * An inner loop goes over the 16 lanes, so compilers make vectors of it without changing the order
 * of any sum.
 */
#ifndef TL_LANES_H
#define TL_LANES_H

#include "types/types.h"

#define TL_LANES 16

/* The values of 16 lanes: item i of lane l is at [16 * i + l]. */
struct tl_lanes {
    float x[TL_CHUNK];
    float w[TL_CHUNK];
    float wx[TL_CHUNK];
    float sum_w[TL_LANES];  // of the group
    float sum_wx[TL_LANES]; //
    float mean[TL_LANES];   // what was subtracted from each x; 0 before tl_lanes_center
    bool wide;              // groups of 32 values
};

/* What a scale is multiplied by: lo, lo + 1, .. hi, or the values of a codebook. */
struct tl_levels {
    float lo, hi;
    float span,
        step;  // of the candidates: the largest value is at lo or hi, times 1 - span + k * step
    int count; // k < count
    const float *step_at; // codebooks, in ascending order: the middle between two values, and
    const float *rise;    // the difference of them; NULL for integers
    int steps;
};

/* Reads n values, at most 256; the others are zero. `wide`: groups of 32 values. */
void tl_lanes_load(struct tl_lanes *s, const float *x, const float *weight, size_t n, bool wide);

/* The multiples of the scales that are nearest to the values, in the order of the values. */
void tl_lanes_round(const struct tl_lanes *s, const struct tl_levels *levels, const float *scale,
                    int8_t *q);

/* Scales that make the error of x - scale * q small, any sign. */
void tl_lanes_scales(const struct tl_lanes *s, const struct tl_levels *levels, float *scale);

/*
 * The sums over each group, for its nearest multiples q of a scale: of w x q, and of w q^2. So the
 * error of the group is a constant - 2 scale xq + scale^2 qq.
 */
void tl_lanes_sums(const struct tl_lanes *s, const struct tl_levels *levels, const float *scale,
                   float *xq, float *qq);

/* ---- a scale and an offset ---- */

/* Subtracts from each group its weighted mean. */
void tl_lanes_center(struct tl_lanes *s);

/* The best scale and offset of x - scale * q - offset with 0 <= q <= top; `below`: offset <= 0. */
void tl_lanes_affine(const struct tl_lanes *s, float top, bool below, float *scale, float *offset);

/* The sums over each group for the nearest q: of w x q, w q and w q^2. x is centered. */
struct tl_affine_sums {
    float xq[TL_LANES], q[TL_LANES], qq[TL_LANES];
};
void tl_lanes_affine_sums(const struct tl_lanes *s, float top, const float *scale,
                          const float *offset, struct tl_affine_sums *out);

/* The error of each group less a constant, for these sums of some q. */
void tl_lanes_affine_error(const struct tl_lanes *s, const struct tl_affine_sums *sums,
                           const float *scale, const float *offset, float *error);

void tl_lanes_affine_round(const struct tl_lanes *s, float top, const float *scale,
                           const float *offset, int8_t *q);

#endif
