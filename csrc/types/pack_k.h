/* pack_k.h - sub-scales under one float scale, for the types whose values have no offset. */
#ifndef TL_PACK_K_H
#define TL_PACK_K_H

#include "types/lanes.h"

/* A scale d, rounded to float16, and lo <= sub <= hi, so that x - d * sub * level is small. */
void tl_fit_sub_scales(const struct tl_lanes *s, const struct tl_levels *levels, float lo, float hi,
                       float *d, int *sub);

#endif
