/*
 * pack_grid.c - the types whose values are entries of a grid: IQ2 and IQ3.
 *
 * Block layouts: ggml-common.h of ggml. Magnitudes are levels of the grid times a scale, which is
 * an odd number, one for each 16 or 32 values, times the float scale of the block.
 *
 * For a given scale the best entry of a grid is found by comparing all of them. The error of an
 * entry is a sum of two parts, one for each byte of its code, and each part has a table. The scales
 * follow as in lanes.h: a row of candidates, least squares, and the same two steps again.
 */
#include "types/pack.h"

#include "base/load.h"
#include "base/store.h"
#include "types/grids.h"

#include <string.h>

/* What one of the types is made of. */
struct grid_type {
    const uint16_t *codes;
    int entries;
    const int8_t *levels;
    int bits;   // of a level in a code: 2, and three levels, or 4, and eight
    int group;  // values of a scale
    bool even;  // each eight values have an even number of negative ones
    float unit; // the float scale in the file, for the levels as integers
};

/* The codes of a grid are sorted: runs of them have the same high byte. */
struct runs {
    int count;
    int high[256], start[257];
};

static void find_runs(const struct grid_type *t, struct runs *r) {
    r->count = 0;
    for (int k = 0; k < t->entries; k++) {
        if (k > 0 && t->codes[k] >> 8 == t->codes[k - 1] >> 8) continue;
        r->high[r->count] = t->codes[k] >> 8;
        r->start[r->count++] = k;
    }
    r->start[r->count] = t->entries;
}

/* The most entries that a group of 32 values has. */
#define MOST_ENTRIES 8

/* A group of 16 or 32 values, as magnitudes, and what was found for it. */
struct group {
    float a[32], w[32]; // a may be negative where `even` forced a sign
    float xq, qq;       // sums of w a level and w level^2
    uint16_t entry[MOST_ENTRIES];
};

static const float ones[TL_CHUNK] = {
#define FOUR 1, 1, 1, 1
#define SIXTEEN FOUR, FOUR, FOUR, FOUR
    SIXTEEN, SIXTEEN, SIXTEEN, SIXTEEN, SIXTEEN, SIXTEEN, SIXTEEN, SIXTEEN,
    SIXTEEN, SIXTEEN, SIXTEEN, SIXTEEN, SIXTEEN, SIXTEEN, SIXTEEN, SIXTEEN};

/* Magnitudes of eight values, and their signs as bits. */
static uint8_t take_signs(const float *x, const float *w, bool even, float *a) {
    unsigned signs = 0;
    int negative = 0, cheapest = 0;
    float cost = 0;
    for (int i = 0; i < 8; i++) {
        const bool minus = x[i] < 0;
        a[i] = minus ? -x[i] : x[i];
        signs |= (unsigned)minus << i;
        negative += minus;
        if (i == 0 || w[i] * a[i] < cost) {
            cost = w[i] * a[i];
            cheapest = i;
        }
    }
    // The lowest level is above zero: a wrong sign costs 4 w a level.
    if (even && negative % 2 != 0) {
        signs ^= 1u << cheapest;
        a[cheapest] = -a[cheapest];
    }
    return (uint8_t)signs;
}

/* The error of half an entry, less a constant, at each of its codes. Returns the least one. */
static float part_costs(const struct grid_type *t, const float *a, const float *w, float s,
                        float *cost) {
    float one[4][8], least = 0;
    const int n = t->bits == 2 ? 4 : 2, levels = t->bits == 2 ? 3 : 8;
    for (int j = 0; j < n; j++) {
        for (int l = 0; l < levels; l++) {
            const float y = s * (float)t->levels[l];
            one[j][l] = w[j] * (y * (y - 2 * a[j]));
        }
    }
    if (n == 2) {
        for (int k = 0; k < 64; k++) {
            const float sum = one[0][k & 7] + one[1][k >> 3];
            cost[(k & 7) + 2 * (k & 56)] = sum;
            least = k == 0 || sum < least ? sum : least;
        }
        return least;
    }
    for (int k = 0; k < 9; k++) {
        const float low = one[2][k % 3] + one[3][k / 3];
        const int code = k % 3 << 4 | k / 3 << 6;
        for (int m = 0; m < 9; m++) {
            const float sum = low + (one[0][m % 3] + one[1][m / 3]);
            cost[code | m % 3 | m / 3 << 2] = sum;
            least = (k == 0 && m == 0) || sum < least ? sum : least;
        }
    }
    return least;
}

/*
 * The entries that are nearest to the group for a scale, and their sums. The search starts with
 * the entries at hand. It leaves out the runs that cannot have a better one.
 */
static void find_entries(const struct grid_type *t, const struct runs *r, struct group *g,
                         float s) {
    const int each = t->bits == 2 ? 8 : 4, mask = t->bits == 2 ? 3 : 7;
    g->xq = g->qq = 0;
    for (int start = 0; start < t->group; start += each) {
        const float *a = g->a + start, *w = g->w + start;
        float low[256], high[256];
        const float lowest = part_costs(t, a, w, s, low);
        int best = g->entry[start / each];
        float least;
        part_costs(t, a + each / 2, w + each / 2, s, high);
        least = low[t->codes[best] & 255] + high[t->codes[best] >> 8];
        for (int k = 0; k < r->count; k++) {
            const float rest = high[r->high[k]];
            if (lowest + rest >= least) continue;
            for (int i = r->start[k]; i < r->start[k + 1]; i++) {
                const float cost = low[t->codes[i] & 255] + rest;
                if (cost < least) {
                    least = cost;
                    best = i;
                }
            }
        }
        g->entry[start / each] = (uint16_t)best;
        for (int i = 0; i < each; i++) {
            const float level = (float)t->levels[t->codes[best] >> t->bits * i & mask];
            g->xq += w[i] * (a[i] * level);
            g->qq += w[i] * (level * level);
        }
    }
}

/* The error of a group less a constant. */
static float error_of(const struct group *g, float s) {
    return s * (s * g->qq - 2 * g->xq);
}

/* The entries and a scale of its own for a group, as if it were alone. Returns the scale. */
static float fit_group(const struct grid_type *t, const struct runs *r, struct group *g) {
    const float top = (float)t->levels[t->bits == 2 ? 2 : 7];
    struct group best;
    float most = 0, scale = 0, least = 0;
    for (int i = 0; i < t->group; i++) most = g->a[i] > most ? g->a[i] : most;
    find_entries(t, r, g, 0);
    best = *g;
    if (most == 0) return 0;
    for (int k = -1; k < 16; k++) {
        // The first ones are candidates: of equal values, all may be at the lowest level. The last
        // ones start from the best of them.
        float s = k < 0    ? most / (float)t->levels[0]
                  : k < 13 ? most / top * (0.6f + 0.1f * (float)k)
                           : scale;
        find_entries(t, r, g, s);
        if (g->xq > 0) s = g->xq / g->qq;
        if (error_of(g, s) < least) {
            least = error_of(g, s);
            scale = s;
            best = *g;
        } else if (k >= 13) {
            break;
        }
    }
    *g = best;
    return scale;
}

/* The multiple 1, 3 .. 31 that is nearest to s / d. */
static int odd_multiple(float s, float d) {
    const float k = (s / d - 1) * 0.5f;
    return k <= 0 ? 1 : k >= 15 ? 31 : 2 * (int)(k + 0.5f) + 1;
}

/* A float scale for which the errors of all groups, with their entries as they are, are small. */
static float fit_scale(const struct group *g, const float *scale, int groups, int *multiple) {
    float most = 0, best = 0, least = 0;
    for (int i = 0; i < groups; i++) most = scale[i] > most ? scale[i] : most;
    if (most == 0) return 0;
    for (int k = 0; k < 32; k++) {
        const float d = most / (17 + 0.5f * (float)k);
        int m[16];
        float xq = 0, qq = 0, exact, error;
        for (int i = 0; i < groups; i++) {
            m[i] = odd_multiple(scale[i], d);
            xq += (float)m[i] * g[i].xq;
            qq += (float)(m[i] * m[i]) * g[i].qq;
        }
        exact = xq / qq;
        error = exact * (exact * qq - 2 * xq);
        if (error < least) {
            least = error;
            best = exact;
            memcpy(multiple, m, (size_t)groups * sizeof(*m));
        }
    }
    return best;
}

/* The float scale as it is in the file; *d is what the levels are multiplied with. */
static uint16_t stored(const struct grid_type *t, float *d) {
    const uint16_t half = tl_f32_to_f16_scale(*d * t->unit);
    *d = tl_f16_to_f32(half) / t->unit;
    return half;
}

/*
 * The multiples of d near the scales, and the entries, that are best for the groups. Returns the
 * best float scale for these; *error is what it would be with d, less a constant.
 */
static float choose_multiples(const struct grid_type *t, const struct runs *r, struct group *g,
                              const float *scale, float d, int *multiple, float *error) {
    float xq = 0, qq = 0;
    *error = 0;
    if (d == 0) return 0;
    for (int i = 0; i < TL_CHUNK / t->group; i++) {
        const int middle = odd_multiple(scale[i], d);
        struct group best = g[i];
        float least = 0;
        multiple[i] = 0;
        for (int m = TL_MAX(middle - 2, 1); m <= TL_MIN(middle + 2, 31); m += 2) {
            const float s = d * (float)m;
            find_entries(t, r, g + i, s);
            if (multiple[i] == 0 || error_of(g + i, s) < least) {
                least = error_of(g + i, s);
                multiple[i] = m;
                best = g[i];
            }
        }
        g[i] = best;
        *error += least;
        xq += (float)multiple[i] * best.xq;
        qq += (float)(multiple[i] * multiple[i]) * best.qq;
    }
    return xq > 0 ? xq / qq : d;
}

/*
 * Packs 256 values: the scale as float16, the odd multiples of it, a byte of signs for each eight
 * values, and the entries in order.
 */
static uint16_t fit_block(const struct grid_type *t, const float *x, const float *weight,
                          int *multiple, uint8_t *signs, uint16_t *entry) {
    const int groups = TL_CHUNK / t->group, each = t->bits == 2 ? 8 : 4;
    struct group g[16] = {0};
    struct runs r;
    float scale[16], d, error;
    uint16_t half;
    if (weight == NULL) weight = ones;
    find_runs(t, &r);
    for (int i = 0; i < TL_CHUNK; i += 8) {
        const int b = i / t->group, at = i % t->group;
        memcpy(g[b].w + at, weight + i, 8 * sizeof(*weight));
        signs[i / 8] = take_signs(x + i, weight + i, t->even, g[b].a + at);
    }
    for (int i = 0; i < groups; i++) {
        multiple[i] = 1;
        scale[i] = fit_group(t, &r, g + i);
    }
    d = fit_scale(g, scale, groups, multiple);
    for (int i = 0; i < groups; i++) scale[i] = d * (float)multiple[i];
    d = choose_multiples(t, &r, g, scale, d, multiple, &error);
    half = stored(t, &d);
    choose_multiples(t, &r, g, scale, d, multiple, &error);
    if (!(error < 0)) half = 0; // values below the smallest scale
    for (int i = 0; i < groups; i++) {
        memcpy(entry + i * (t->group / each), g[i].entry,
               (size_t)(t->group / each) * sizeof(*entry));
    }
    return half;
}

/* Four signs of eight values, seven bits each, below a multiple: what tl_even_signs reads. */
static uint32_t signs_and_multiple(const uint8_t *signs, int multiple) {
    uint32_t word = (uint32_t)(multiple / 2) << 28;
    for (int i = 0; i < 4; i++) word |= (uint32_t)(signs[i] & 127) << 7 * i;
    return word;
}

/* Multiples of 16 values in four bits each. */
static void store_multiples(const int *multiple, int count, uint8_t *dst) {
    for (int i = 0; i < count; i += 2) {
        *dst++ = (uint8_t)(multiple[i] / 2 | multiple[i + 1] / 2 << 4);
    }
}

void tl_pack_iq2_xxs(const float *x, const float *weight, size_t blocks, uint8_t *dst) {
    static const struct grid_type type = {tl_codes_iq2_xxs, 256, tl_levels_iq2, 2, 32, true, 8};
    int multiple[16];
    uint8_t signs[32];
    uint16_t entry[64];
    if (blocks == 0) return;
    tl_store_u16(dst, fit_block(&type, x, weight, multiple, signs, entry));
    dst += 2;
    for (int b = 0; b < 8; b++, dst += 8) {
        for (int i = 0; i < 4; i++) dst[i] = (uint8_t)entry[4 * b + i];
        tl_store_u32(dst + 4, signs_and_multiple(signs + 4 * b, multiple[b]));
    }
}

void tl_pack_iq2_xs(const float *x, const float *weight, size_t blocks, uint8_t *dst) {
    static const struct grid_type type = {tl_codes_iq2_xs, 512, tl_levels_iq2, 2, 16, true, 8};
    int multiple[16];
    uint8_t signs[32];
    uint16_t entry[64];
    if (blocks == 0) return;
    tl_store_u16(dst, fit_block(&type, x, weight, multiple, signs, entry));
    for (int i = 0; i < 32; i++) {
        tl_store_u16(dst + 2 + 2 * i, entry[i] | (uint32_t)(signs[i] & 127) << 9);
    }
    store_multiples(multiple, 16, dst + 66);
}

void tl_pack_iq2_s(const float *x, const float *weight, size_t blocks, uint8_t *dst) {
    static const struct grid_type type = {tl_codes_iq2_s, 1024, tl_levels_iq2, 2, 16, false, 8};
    int multiple[16];
    uint8_t signs[32];
    uint16_t entry[64];
    if (blocks == 0) return;
    memset(dst, 0, 82);
    tl_store_u16(dst, fit_block(&type, x, weight, multiple, signs, entry));
    for (int i = 0; i < 32; i++) {
        dst[2 + i] = (uint8_t)entry[i];
        dst[34 + i] = signs[i];
        dst[66 + i / 4] |= (uint8_t)(entry[i] >> 8 << 2 * (i % 4));
    }
    store_multiples(multiple, 16, dst + 74);
}

void tl_pack_iq3_xxs(const float *x, const float *weight, size_t blocks, uint8_t *dst) {
    static const struct grid_type type = {tl_codes_iq3_xxs, 256, tl_levels_iq3_xxs, 4, 32, true, 4};
    int multiple[16];
    uint8_t signs[32];
    uint16_t entry[64];
    if (blocks == 0) return;
    tl_store_u16(dst, fit_block(&type, x, weight, multiple, signs, entry));
    for (int i = 0; i < 64; i++) dst[2 + i] = (uint8_t)entry[i];
    for (int b = 0; b < 8; b++) {
        tl_store_u32(dst + 66 + 4 * b, signs_and_multiple(signs + 4 * b, multiple[b]));
    }
}

void tl_pack_iq3_s(const float *x, const float *weight, size_t blocks, uint8_t *dst) {
    static const struct grid_type type = {tl_codes_iq3_s, 512, tl_levels_iq3_s, 4, 32, false, 1};
    int multiple[16];
    uint8_t signs[32];
    uint16_t entry[64];
    if (blocks == 0) return;
    memset(dst, 0, 110);
    tl_store_u16(dst, fit_block(&type, x, weight, multiple, signs, entry));
    for (int i = 0; i < 64; i++) {
        dst[2 + i] = (uint8_t)entry[i];
        dst[66 + i / 8] |= (uint8_t)(entry[i] >> 8 << i % 8);
    }
    memcpy(dst + 74, signs, 32);
    store_multiples(multiple, 8, dst + 106);
}
