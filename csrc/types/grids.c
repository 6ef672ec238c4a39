/* grids.c - makes the values of the codebooks from their codes. */
#include "types/grids.h"

#include "base/os.h"

const int8_t tl_levels_iq1[3] = {-1, 0, 1};
const int8_t tl_levels_iq2[3] = {8, 25, 43};
const int8_t tl_levels_iq3_xxs[8] = {4, 12, 20, 28, 36, 44, 52, 62};
const int8_t tl_levels_iq3_s[8] = {1, 3, 5, 7, 9, 11, 13, 15};

static struct tl_grids grids;

static void spread_8(const uint16_t *codes, size_t n, const int8_t *levels, int8_t (*out)[8]) {
    for (size_t i = 0; i < n; i++) {
        for (int j = 0; j < 8; j++) out[i][j] = levels[codes[i] >> 2 * j & 3];
    }
}

static void spread_4(const uint16_t *codes, size_t n, const int8_t *levels, int8_t (*out)[4]) {
    for (size_t i = 0; i < n; i++) {
        for (int j = 0; j < 4; j++) out[i][j] = levels[codes[i] >> 4 * j & 7];
    }
}

static void make_grids(void) {
    spread_8(tl_codes_iq1, TL_ARRAY_LEN(grids.iq1), tl_levels_iq1, grids.iq1);
    spread_8(tl_codes_iq2_xxs, TL_ARRAY_LEN(grids.iq2_xxs), tl_levels_iq2, grids.iq2_xxs);
    spread_8(tl_codes_iq2_xs, TL_ARRAY_LEN(grids.iq2_xs), tl_levels_iq2, grids.iq2_xs);
    spread_8(tl_codes_iq2_s, TL_ARRAY_LEN(grids.iq2_s), tl_levels_iq2, grids.iq2_s);
    spread_4(tl_codes_iq3_xxs, TL_ARRAY_LEN(grids.iq3_xxs), tl_levels_iq3_xxs, grids.iq3_xxs);
    spread_4(tl_codes_iq3_s, TL_ARRAY_LEN(grids.iq3_s), tl_levels_iq3_s, grids.iq3_s);
}

const struct tl_grids *tl_grids(void) {
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, make_grids);
    return &grids;
}
