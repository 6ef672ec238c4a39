/*
 * unpack.h - a function per quantized type; types.c puts them into its table.
 *
 * Each unpacks `blocks` whole blocks, at most 256 values, and zeroes the rest of *out.
 */
#ifndef TL_UNPACK_H
#define TL_UNPACK_H

#include "types/types.h"

typedef void tl_unpack_fn(const uint8_t *src, size_t blocks, struct tl_chunk *out);

/* unpack_legacy.c */
tl_unpack_fn tl_unpack_q4_0, tl_unpack_q4_1, tl_unpack_q5_0, tl_unpack_q5_1;
tl_unpack_fn tl_unpack_q8_0, tl_unpack_q8_1;

/* unpack_k.c */
tl_unpack_fn tl_unpack_q2_k, tl_unpack_q3_k, tl_unpack_q4_k, tl_unpack_q5_k, tl_unpack_q6_k;
tl_unpack_fn tl_unpack_q8_k;

/* unpack_codebook.c */
tl_unpack_fn tl_unpack_iq4_nl, tl_unpack_iq4_xs, tl_unpack_mxfp4, tl_unpack_nvfp4;

/*
 * Half of a float of eight bits without a sign: four of exponent, three of fraction (ue4m3 of
 * ggml). As in ggml, 127, the NaN of such floats, is zero, and the highest bit is ignored.
 */
float tl_half_of_e4m3(uint8_t x);

/* unpack_grid.c */
tl_unpack_fn tl_unpack_iq1_s, tl_unpack_iq1_m, tl_unpack_iq2_xxs, tl_unpack_iq2_xs;
tl_unpack_fn tl_unpack_iq2_s, tl_unpack_iq3_xxs, tl_unpack_iq3_s;

/* unpack_ternary.c */
tl_unpack_fn tl_unpack_q1_0, tl_unpack_q2_0, tl_unpack_tq1_0, tl_unpack_tq2_0;

#endif
