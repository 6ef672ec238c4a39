/*
 * pack_grid.c - the types whose values are entries of a grid: IQ1, IQ2 and IQ3.
 *
 * Block layouts: ggml-common.h of ggml. Magnitudes are levels of the grid times a scale, which is
 * an odd number, one for each 16 or 32 values, times the float scale of the block. The levels of
 * IQ1 have signs, and each 8 or 32 values have one of two tables of them.
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

/* Levels of a family of types, as integers. */
struct level_set {
    int bits;               // of a level in a code: 2, and three levels, or 4, and eight
    const int8_t *table[2]; // the second one is NULL where the signs are stored apart
    float lowest, top;      // magnitudes of the levels
    float unit;             // the float scale in the file is times this
    int most;               // the largest multiple of the float scale
    float first, step;      // of the scales that are tried, times the largest value / top
};

/* Eight times -1, 0 and 1, plus or minus one. */
static const int8_t raised[3] = {-7, 1, 9}, lowered[3] = {-9, -1, 7};

static const struct level_set iq1 = {2, {raised, lowered}, 1, 9, 8, 15, 0.2f, 0.1f};
static const struct level_set iq2 = {2, {tl_levels_iq2}, 8, 43, 8, 31, 0.6f, 0.1f};
static const struct level_set iq3_xxs = {4, {tl_levels_iq3_xxs}, 4, 62, 4, 31, 0.6f, 0.1f};
static const struct level_set iq3_s = {4, {tl_levels_iq3_s}, 1, 15, 1, 31, 0.6f, 0.1f};

/* What one of the types is made of. */
struct grid_type {
    const uint16_t *codes;
    int entries;
    const struct level_set *levels;
    int span;  // values with the same table of levels
    int group; // values of a scale
    bool even; // each eight values have an even number of negative ones
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
    float a[32], w[32];           // a may be negative where `even` forced a sign
    float xq, qq;                 // sums of w a level and w level^2
    uint16_t entry[MOST_ENTRIES]; // with SECOND for the second table of levels
};

#define SECOND 0x8000

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
static float part_costs(const struct grid_type *t, const int8_t *level, const float *a,
                        const float *w, float s, float *cost) {
    float one[4][8], least = 0;
    const int n = t->levels->bits == 2 ? 4 : 2, levels = t->levels->bits == 2 ? 3 : 8;
    for (int j = 0; j < n; j++) {
        for (int l = 0; l < levels; l++) {
            const float y = s * (float)level[l];
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
 * The entry that is nearest to some values for a scale. The search starts with the one at hand, and
 * leaves out the runs that cannot have a better one. Adds its error, less a constant, to *error.
 */
static int nearest_entry(const struct grid_type *t, const struct runs *r, const int8_t *level,
                         const float *a, const float *w, float s, int best, float *error) {
    const int half = t->levels->bits == 2 ? 4 : 2;
    float low[256], high[256];
    const float lowest = part_costs(t, level, a, w, s, low);
    float least;
    part_costs(t, level, a + half, w + half, s, high);
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
    *error += least;
    return best;
}

/* The entries that are nearest to the group for a scale, and their sums. */
static void find_entries(const struct grid_type *t, const struct runs *r, struct group *g,
                         float s) {
    const int each = t->levels->bits == 2 ? 8 : 4, mask = t->levels->bits == 2 ? 3 : 7;
    g->xq = g->qq = 0;
    for (int start = 0; start < t->group; start += t->span) {
        uint16_t *entry = g->entry + start / each, found[2][MOST_ENTRIES];
        float error[2] = {0};
        int table = 0;
        for (int k = 0; k < 2 && t->levels->table[k] != NULL; k++) {
            for (int i = 0; i < t->span; i += each) {
                const int best =
                    nearest_entry(t, r, t->levels->table[k], g->a + start + i, g->w + start + i, s,
                                  entry[i / each] & ~SECOND, error + k);
                found[k][i / each] = (uint16_t)(k == 0 ? best : best | SECOND);
            }
            if (error[k] < error[table]) table = k;
        }
        memcpy(entry, found[table], (size_t)(t->span / each) * sizeof(*entry));
        for (int i = 0; i < t->span; i++) {
            const int code = t->codes[entry[i / each] & ~SECOND];
            const float level =
                (float)t->levels->table[table][code >> t->levels->bits * (i % each) & mask];
            const float w = g->w[start + i];
            g->xq += w * (g->a[start + i] * level);
            g->qq += w * (level * level);
        }
    }
}

/* The error of a group less a constant. */
static float error_of(const struct group *g, float s) {
    return s * (s * g->qq - 2 * g->xq);
}

/* The entries and a scale of its own for a group, as if it were alone. Returns the scale. */
static float fit_group(const struct grid_type *t, const struct runs *r, struct group *g) {
    struct group best;
    float most = 0, scale = 0, least = 0;
    for (int i = 0; i < t->group; i++) {
        const float a = t->levels->table[1] != NULL && g->a[i] < 0 ? -g->a[i] : g->a[i];
        most = a > most ? a : most;
    }
    find_entries(t, r, g, 0);
    best = *g;
    if (most == 0) return 0;
    for (int k = -1; k < 16; k++) {
        // The first ones are candidates: of equal values, all may be at the lowest level. The last
        // ones start from the best of them.
        float s = k < 0    ? most / t->levels->lowest
                  : k < 13 ? most / t->levels->top * (t->levels->first + t->levels->step * (float)k)
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

/* The multiple 1, 3 .. most that is nearest to s / d. */
static int odd_multiple(float s, float d, int most) {
    const float k = (s / d - 1) * 0.5f;
    return k <= 0 ? 1 : k >= (float)(most / 2) ? most : 2 * (int)(k + 0.5f) + 1;
}

/* A float scale for which the errors of all groups, with their entries as they are, are small. */
static float fit_scale(const struct grid_type *t, const struct group *g, const float *scale,
                       int *multiple) {
    const int groups = TL_CHUNK / t->group;
    const float unit = (float)(t->levels->most + 1) / 32;
    float most = 0, best = 0, least = 0;
    for (int i = 0; i < groups; i++) most = scale[i] > most ? scale[i] : most;
    if (most == 0) return 0;
    for (int k = 0; k < 32; k++) {
        const float d = most / (unit * (17 + 0.5f * (float)k));
        int m[16];
        float xq = 0, qq = 0, exact, error;
        for (int i = 0; i < groups; i++) {
            m[i] = odd_multiple(scale[i], d, t->levels->most);
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
    const uint16_t half = tl_f32_to_f16_scale(*d * t->levels->unit);
    *d = tl_f16_to_f32(half) / t->levels->unit;
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
        const int middle = odd_multiple(scale[i], d, t->levels->most);
        struct group best = g[i];
        float least = 0;
        multiple[i] = 0;
        for (int m = TL_MAX(middle - 2, 1); m <= TL_MIN(middle + 2, t->levels->most); m += 2) {
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
 * values (but for IQ1, where `signs` may be NULL), and the entries in order.
 */
static uint16_t fit_block(const struct grid_type *t, const float *x, const float *weight,
                          int *multiple, uint8_t *signs, uint16_t *entry) {
    const int groups = TL_CHUNK / t->group, each = t->levels->bits == 2 ? 8 : 4;
    struct group g[16] = {0};
    struct runs r;
    float scale[16], d, error;
    uint16_t half;
    if (weight == NULL) weight = ones;
    find_runs(t, &r);
    for (int i = 0; i < TL_CHUNK; i += 8) {
        const int b = i / t->group, at = i % t->group;
        memcpy(g[b].w + at, weight + i, 8 * sizeof(*weight));
        if (t->levels->table[1] != NULL) {
            memcpy(g[b].a + at, x + i, 8 * sizeof(*x));
        } else {
            signs[i / 8] = take_signs(x + i, weight + i, t->even, g[b].a + at);
        }
    }
    for (int i = 0; i < groups; i++) {
        multiple[i] = 1;
        scale[i] = fit_group(t, &r, g + i);
    }
    d = fit_scale(t, g, scale, multiple);
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
    static const struct grid_type type = {tl_codes_iq2_xxs, 256, &iq2, 8, 32, true};
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
    static const struct grid_type type = {tl_codes_iq2_xs, 512, &iq2, 8, 16, true};
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
    static const struct grid_type type = {tl_codes_iq2_s, 1024, &iq2, 8, 16, false};
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
    static const struct grid_type type = {tl_codes_iq3_xxs, 256, &iq3_xxs, 4, 32, true};
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
    static const struct grid_type type = {tl_codes_iq3_s, 512, &iq3_s, 4, 32, false};
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

void tl_pack_iq1_s(const float *x, const float *weight, size_t blocks, uint8_t *dst) {
    static const struct grid_type type = {tl_codes_iq1, 2048, &iq1, 32, 32, false};
    int multiple[16];
    uint16_t entry[64];
    if (blocks == 0) return;
    tl_store_u16(dst, fit_block(&type, x, weight, multiple, NULL, entry));
    for (int b = 0; b < 8; b++) {
        uint32_t high = (uint32_t)(multiple[b] / 2) << 12 | (entry[4 * b] & SECOND);
        for (int i = 0; i < 4; i++) {
            dst[2 + 4 * b + i] = (uint8_t)entry[4 * b + i];
            high |= (entry[4 * b + i] >> 8 & 7u) << 3 * i;
        }
        tl_store_u16(dst + 34 + 2 * b, high);
    }
}

void tl_pack_iq1_m(const float *x, const float *weight, size_t blocks, uint8_t *dst) {
    static const struct grid_type type = {tl_codes_iq1, 2048, &iq1, 8, 16, false};
    int multiple[16];
    uint16_t entry[64];
    unsigned d;
    if (blocks == 0) return;
    memset(dst, 0, 56);
    d = fit_block(&type, x, weight, multiple, NULL, entry);
    for (int i = 0; i < 32; i++) {
        const int high = (entry[i] >> 8 & 7) | (entry[i] & SECOND ? 8 : 0);
        dst[i] = (uint8_t)entry[i];
        dst[32 + i / 2] |= (uint8_t)(high << i % 2 * 4);
    }
    for (int i = 0; i < 4; i++) { // four bits of the float scale are above each four multiples
        uint32_t four = (d >> 4 * i & 15) << 12;
        for (int j = 0; j < 4; j++) four |= (uint32_t)(multiple[4 * i + j] / 2) << 3 * j;
        tl_store_u16(dst + 48 + 2 * i, four);
    }
}
