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
tl_unpack_fn tl_unpack_q4_0, tl_unpack_q4_1, tl_unpack_q5_0, tl_unpack_q5_1, tl_unpack_q8_0;

/* unpack_k.c */
tl_unpack_fn tl_unpack_q2_k, tl_unpack_q3_k, tl_unpack_q4_k, tl_unpack_q5_k, tl_unpack_q6_k;

/* unpack_codebook.c */
tl_unpack_fn tl_unpack_iq4_nl, tl_unpack_iq4_xs, tl_unpack_mxfp4;

#endif
