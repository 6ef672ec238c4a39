/*
 * lanes_template.h - the sums that a search computes for each candidate. lanes.c includes this once
 * per instruction set, each time with another definition of LANES_SET.
 */

static void LANES_SET(integer_sums)(const struct tl_lanes *s, const struct tl_levels *levels,
                                    const float *inverses, float *out_xq, float *out_qq) {
    float xq[TL_LANES] = {0}, qq[TL_LANES] = {0}, inv[TL_LANES];
    const float lo = levels->lo, hi = levels->hi;
    memcpy(inv, inverses, sizeof(inv));
    for (int i = 0; i < 16; i++) {
        const float *x = s->x + 16 * i, *w = s->w + 16 * i, *wx = s->wx + 16 * i;
        EACH_LANE {
            const float q = nearest(clamp(x[l] * inv[l], lo, hi));
            xq[l] += wx[l] * q;
            qq[l] += w[l] * q * q;
        }
    }
    memcpy(out_xq, xq, sizeof(xq));
    memcpy(out_qq, qq, sizeof(qq));
}

/* The values of a codebook that are nearest to y. */
static inline void LANES_SET(look_up)(const struct tl_levels *levels, const float *y, float *out) {
    float q[TL_LANES];
    EACH_LANE q[l] = levels->lo;
    for (int k = 0; k < levels->steps; k++) {
        const float at = levels->step_at[k], rise = levels->rise[k];
        EACH_LANE q[l] += y[l] > at ? rise : 0.0f;
    }
    memcpy(out, q, sizeof(q));
}

static void LANES_SET(codebook_sums)(const struct tl_lanes *s, const struct tl_levels *levels,
                                     const float *inv, float *out_xq, float *out_qq) {
    float xq[TL_LANES] = {0}, qq[TL_LANES] = {0};
    for (int i = 0; i < 16; i++) {
        const float *x = s->x + 16 * i, *w = s->w + 16 * i, *wx = s->wx + 16 * i;
        float y[TL_LANES], q[TL_LANES];
        EACH_LANE y[l] = x[l] * inv[l];
        LANES_SET(look_up)(levels, y, q);
        EACH_LANE {
            xq[l] += wx[l] * q[l];
            qq[l] += w[l] * q[l] * q[l];
        }
    }
    memcpy(out_xq, xq, sizeof(xq));
    memcpy(out_qq, qq, sizeof(qq));
}

static void LANES_SET(affine_sums)(const struct tl_lanes *s, float top, const float *inverses,
                                   const float *starts, struct tl_affine_sums *out) {
    float xq[TL_LANES] = {0}, sq[TL_LANES] = {0}, qq[TL_LANES] = {0};
    float inv[TL_LANES], from[TL_LANES];
    memcpy(inv, inverses, sizeof(inv));
    memcpy(from, starts, sizeof(from));
    for (int i = 0; i < 16; i++) {
        const float *x = s->x + 16 * i, *w = s->w + 16 * i, *wx = s->wx + 16 * i;
        EACH_LANE {
            const float q = nearest(clamp((x[l] - from[l]) * inv[l], 0, top));
            const float wq = w[l] * q;
            xq[l] += wx[l] * q;
            sq[l] += wq;
            qq[l] += wq * q;
        }
    }
    memcpy(out->xq, xq, sizeof(xq));
    memcpy(out->q, sq, sizeof(sq));
    memcpy(out->qq, qq, sizeof(qq));
}
