/*
 * pack.h - a function per tensor type that rounds floats to its blocks; types.c puts them into its
 * table beside the functions that unpack.
 *
 * Each packs `blocks` whole blocks, at most 256 values, so that the sum of weight * error^2 is
 * small. Weights are positive, or NULL, if no importance is known. Every operation is one IEEE
 * operation in a fixed order, so the bytes are the same on every machine.
 */
#ifndef TL_PACK_H
#define TL_PACK_H

#include "types/types.h"

typedef void tl_pack_fn(const float *x, const float *weight, size_t blocks, uint8_t *dst);

/* pack_legacy.c */
tl_pack_fn tl_pack_f32, tl_pack_f16, tl_pack_bf16;
tl_pack_fn tl_pack_q4_0, tl_pack_q4_1, tl_pack_q5_0, tl_pack_q5_1, tl_pack_q8_0;

/* pack_k.c */
tl_pack_fn tl_pack_q2_k, tl_pack_q3_k, tl_pack_q4_k, tl_pack_q5_k, tl_pack_q6_k;

/* pack_codebook.c */
tl_pack_fn tl_pack_iq4_nl, tl_pack_iq4_xs, tl_pack_mxfp4, tl_pack_nvfp4;

/* The largest value of NVFP4: twice 6 times the largest scale. */
#define TL_NVFP4_LIMIT 2688.0f

/* pack_ternary.c */
tl_pack_fn tl_pack_q1_0, tl_pack_q2_0, tl_pack_tq1_0, tl_pack_tq2_0;

/* pack_grid.c */
tl_pack_fn tl_pack_iq1_s, tl_pack_iq1_m;
tl_pack_fn tl_pack_iq2_xxs, tl_pack_iq2_xs, tl_pack_iq2_s, tl_pack_iq3_xxs, tl_pack_iq3_s;

#endif
