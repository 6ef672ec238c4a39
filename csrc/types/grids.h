/*
 * grids.h - the codebooks of IQ1, IQ2 and IQ3: ggml's grids, whose entries are 8 or 4 values.
 *
 * A code is an entry in 16 bits: value i of IQ1 and IQ2 is the level that the bits 2 i and 2 i + 1
 * name, value i of IQ3 the level that the bits 4 i to 4 i + 3 name. Levels and grids:
 * ggml-common.h of ggml (iq1s_grid, iq2xxs_grid and so on).
 */
#ifndef TL_GRIDS_H
#define TL_GRIDS_H

#include "base/base.h"

extern const uint16_t tl_codes_iq1[2048]; // IQ1_S and IQ1_M
extern const uint16_t tl_codes_iq2_xxs[256], tl_codes_iq2_xs[512];
extern const uint16_t tl_codes_iq2_s[1024 + 1]; // one more, because gathers read four bytes
extern const uint16_t tl_codes_iq3_xxs[256], tl_codes_iq3_s[512];

extern const int8_t tl_levels_iq1[3], tl_levels_iq2[3];
extern const int8_t tl_levels_iq3_xxs[8], tl_levels_iq3_s[8];

/* The same entries as values. */
struct tl_grids {
    int8_t iq1[2048][8];
    int8_t iq2_xxs[256][8], iq2_xs[512][8], iq2_s[1024][8];
    int8_t iq3_xxs[256][4], iq3_s[512][4];
};

/* Never changes; made at the first call. */
const struct tl_grids *tl_grids(void);

/*
 * Signs of eight values, of which seven are stored: the number of negative values is even
 * (ksigns_iq2xs of ggml). Bit i: value i is negative.
 */
static inline unsigned tl_even_signs(unsigned seven) {
    unsigned odd = seven ^ seven >> 4;
    odd ^= odd >> 2;
    odd ^= odd >> 1;
    return seven | (odd & 1) << 7;
}

#endif
