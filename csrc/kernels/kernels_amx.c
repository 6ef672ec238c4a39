/*
 * kernels_amx.c - avx512bf16, and prompts of quantized weights with the tiles of AMX. The bits are
 * those of avx512vnni: a tile adds integers, and what follows is the same arithmetic.
 *
 * Rows are unpacked into panels, as in avx512vnni. The digits of 16 tokens are the rows of one
 * tile, the panel is the other. Exact mode multiplies the sub-scales of K types into the weights
 * first. These are then words, of which the tiles multiply the low and the high bytes, and a whole
 * chunk of 256 values is one sum.
 */
#include "kernels/kernels.h"

#if TL_X86

TL_TARGET_BEGIN("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c,amx-tile,amx-int8")

#include "kernels/simd/amx.h"

// clang-format off
#include "kernels/template/format_template.h"
#include "kernels/template/panel_template.h"
#include "kernels/template/tile_template.h"
#include "kernels/template/tile_dot4_template.h"
#include "kernels/template/pack_template.h"
#include "kernels/template/pack_fast_template.h"
#include "kernels/template/gemm_exact_template.h"
// clang-format on

#define TOKENS 16 // of a tile
#define PANELS 4  // so many panels are multiplied by a tile of tokens before the next one is read

static struct tl_kernels others[2]; // avx512bf16, exact and fast; fast has all formats

/* ---- packed activations ---- */

/* One chunk of 16 tokens, exact; see struct record. */
struct exact_tile {
    int8_t digits[3][TOKENS][TL_CHUNK];
    int32_t sums[8 * TOKENS * 2];
    int32_t pairs[4 * TOKENS * 2];
    double dx[TOKENS];
    float blocks[8 * TOKENS];
};

/* The same in fast mode; see struct fast_record. */
struct fast_tile {
    int8_t digits[TOKENS][TL_CHUNK];
    float scale[8][TOKENS];
    float sum[8][TOKENS];
    int32_t pairs[8][TOKENS];
};

static void pack_exact(const float *x, size_t n, size_t t, struct exact_tile *to) {
    _Alignas(64) int32_t memory[512];
    const struct record one = record_at(memory, true, 1, 0);
    v16i X[16];
    const double dx = round_chunk(x, n, X);
    pack_record(true, X, dx, 1, 0, one);
    for (size_t i = 0; i < 64; i++) {
        for (size_t p = 0; p < 3; p++) memcpy(&to->digits[p][t][4 * i], &one.digits[3 * i + p], 4);
    }
    for (size_t g = 0; g < 8; g++) memcpy(&to->sums[2 * (g * TOKENS + t)], &one.sums[2 * g], 8);
    for (size_t g = 0; g < 4; g++) memcpy(&to->pairs[2 * (g * TOKENS + t)], &one.pairs[2 * g], 8);
    for (size_t b = 0; b < 8; b++) to->blocks[b * TOKENS + t] = one.blocks[b];
    to->dx[t] = one.dx[0];
}

static void pack_fast(const float *x, size_t n, size_t t, struct fast_tile *to) {
    _Alignas(64) int32_t memory[256];
    const struct fast_record one = fast_record_at(memory, true, 1, 0);
    fast_pack_record(LAYOUT_FAST_BYTES, x, n, 1, 0, one);
    memcpy(to->digits[t], one.digits, TL_CHUNK);
    for (int b = 0; b < 8; b++) {
        to->scale[b][t] = one.scale[b];
        to->sum[b][t] = one.sum[b];
        to->pairs[b][t] = one.pairs[b];
    }
}

static bool is_mine(int format) {
    return format == FORMAT_AMX || format == FORMAT_FAST_AMX;
}

static size_t tile_bytes_of(bool fast) {
    return fast ? sizeof(struct fast_tile) : sizeof(struct exact_tile);
}

static size_t amx_pack_bytes(int format, size_t cols, size_t tokens) {
    if (!is_mine(format)) return others[1].pack_bytes(format, cols, tokens);
    return size_product(round_up(cols, TL_CHUNK) / TL_CHUNK, round_up(tokens, TOKENS) / TOKENS,
                        tile_bytes_of(format == FORMAT_FAST_AMX));
}

static void amx_pack(int format, const float *x, size_t cols, size_t tokens, size_t first,
                     size_t last, void *packed) {
    const size_t chunks = round_up(cols, TL_CHUNK) / TL_CHUNK;
    const float zero[TL_CHUNK] = {0};
    if (!is_mine(format)) {
        others[1].pack(format, x, cols, tokens, first, last, packed);
        return;
    }
    // the call that packs the last token also fills the last tile with zeros
    const size_t end = last == tokens ? round_up(tokens, TOKENS) : last;
    for (size_t t = first; t < end; t++) {
        for (size_t c = 0; c < chunks; c++) {
            const size_t n = TL_MIN(cols - c * TL_CHUNK, (size_t)TL_CHUNK);
            const size_t at = t / TOKENS * chunks + c;
            const float *part = t < tokens ? x + (t - first) * cols + c * TL_CHUNK : zero;
            if (format == FORMAT_AMX) {
                pack_exact(part, n, t % TOKENS, (struct exact_tile *)packed + at);
            } else {
                pack_fast(part, n, t % TOKENS, (struct fast_tile *)packed + at);
            }
        }
    }
}

/* ---- weights: from bytes that are not negative to signed ones ---- */

static void make_signed(struct panel *panel, int offset) {
    const v16i n = v16i_set1((int32_t)((uint32_t)offset * 0x01010101u));
    if (offset == 0) return;
    for (int i = 0; i < 64; i++) {
        for (int v = 0; v < PANEL_ROWS; v += 16) {
            int32_t *at = &panel->weights[i][v];
            v16i_store(at, v16i_sub_bytes(v16i_load(at), n));
        }
    }
}

/* Multiplies the sub-scales into the weights, which become 256 times vector 64 + i plus vector i:
   signed bytes. */
static void multiply_scales(struct panel *panel, int offset, bool wide) {
    const v16i low_bytes = v16i_set1(0x00ff00ff), n = twice(v16i_set1(offset));
    const v16i half = v16i_set1(0x00800080);
    for (int i = 0; i < 64; i++) {
        for (int v = 0; v < PANEL_ROWS; v += 16) {
            const v16i scale = twice(v16i_load(&panel->u.k.scale[wide ? i / 8 * 2 : i / 4][v]));
            const v16i x = v16i_load(&panel->weights[i][v]);
            const v16i even = v16i_sub_words(v16i_and(x, low_bytes), n);
            const v16i odd = v16i_sub_words(v16i_srl_words(x, 8), n);
            const v16i a = v16i_mul_words(even, scale), b = v16i_mul_words(odd, scale);
            v16i_store(&panel->weights[i][v], v16i_or_and(v16i_sll_words(b, 8), a, low_bytes));
            v16i_store(&panel->weights[64 + i][v],
                       v16i_or_and(v16i_srl_words(v16i_add_words(a, half), 8),
                                   v16i_add_words(b, half), v16i_set1((int32_t)0xff00ff00u)));
        }
    }
}

/* ---- products ---- */

/* Panels of one chunk, and that chunk of all tokens. The sums are (tiles, panels, TOKENS,
   PANEL_ROWS). */
struct task {
    const struct panel *panels;
    size_t panel_count;
    const char *x; // struct exact_tile or fast_tile
    size_t stride; // bytes from one tile of tokens to the next
    size_t tiles;
    struct traits traits;
    void *sums;
};

/* A part of a task: a tile of tokens times 16 rows, those from v on of a panel. The first rows of
   all panels come before the next tokens. */
struct place {
    const struct panel *panel;
    const void *x;
    int v;
};

TL_INLINE struct place first_place(const struct task *task) {
    return (struct place){task->panels, task->x, 0};
}

TL_INLINE void next_place(const struct task *task, struct place *at) {
    at->v = 16 - at->v;
    if (at->v != 0) return;
    if (++at->panel == task->panels + task->panel_count) {
        at->panel = task->panels;
        at->x = (const char *)at->x + task->stride;
    }
}

TL_INLINE size_t places_of(const struct task *task) {
    return task->tiles * task->panel_count * 2;
}

/* Where the sums of place number i are. */
TL_INLINE size_t sums_of(size_t i) {
    return i / 2 * TOKENS * PANEL_ROWS + i % 2 * 16;
}

typedef int32_t tile_of_sums[TOKENS][16];

#define LOAD_DIGITS(tile, from) _tile_loadd(tile, from, TL_CHUNK)
#define LOAD_WEIGHTS(from) _tile_loadd(7, from, PANEL_ROWS * 4)

/* A chunk, exact: the sum of 256^i sums[i]. Product i + j is of byte i of the weights and digit j
   of the tokens. */
static inline void multiply_chunk(const struct panel *panel, const struct exact_tile *x, int v,
                                  tile_of_sums sums[4]) {
    TILE_MEMORY_IS_READ();
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (int k = 0; k < 4; k++) {
        LOAD_WEIGHTS(&panel->weights[16 * k][v]);
        LOAD_DIGITS(4, &x->digits[0][0][64 * k]);
        _tile_dpbssd(0, 4, 7);
        LOAD_DIGITS(5, &x->digits[1][0][64 * k]);
        _tile_dpbssd(1, 5, 7);
        LOAD_DIGITS(6, &x->digits[2][0][64 * k]);
        _tile_dpbssd(2, 6, 7);
        LOAD_WEIGHTS(&panel->weights[64 + 16 * k][v]);
        _tile_dpbssd(3, 6, 7);
        _tile_dpbssd(1, 4, 7);
        _tile_dpbssd(2, 5, 7);
    }
    _tile_stored(0, sums[0], 64);
    _tile_stored(1, sums[1], 64);
    _tile_stored(2, sums[2], 64);
    _tile_stored(3, sums[3], 64);
}

/* out (tokens, PANEL_ROWS) += the chunk; see tile_add_k. */
static inline void add_chunk(const struct panel *panel, const struct exact_tile *x, int v,
                             const struct traits traits, const tile_of_sums sums[4], double *out) {
    const struct record r = {.sums = (int32_t *)(uintptr_t)x->sums,
                             .pairs = (int32_t *)(uintptr_t)x->pairs};
    const v16d d = v16d_from_f32(v16_load(panel->u.k.d + v));
    const v16d dmin = v16d_from_f32(v16_load(panel->u.k.dmin + v));
    for (int t = 0; t < TOKENS; t++) {
        const double dx = x->dx[t];
        double *at = out + t * PANEL_ROWS;
        // both are below 2^31, for weights times sub-scales are at most 4096
        const v16i low = v16i_add(v16i_sll(v16i_load(sums[1][t]), 8), v16i_load(sums[0][t]));
        const v16i high = v16i_add(v16i_sll(v16i_load(sums[3][t]), 8), v16i_load(sums[2][t]));
        const v16d total = v16d_fma(v16d_from_i32(high), v16d_set1(65536), v16d_from_i32(low));
        v16d sum = v16d_fma(v16d_mul(d, v16d_set1(dx)), total, v16d_load(at));
        if (traits.has_min) {
            const v16d mins = tile_mins(panel, v / 16, &r, t, TOKENS, traits.wide);
            sum = v16d_fma(v16d_mul(dmin, v16d_set1(-dx)), mins, sum);
        }
        v16d_store(at, sum);
    }
}

static void exact_k(const struct task *task) {
    _Alignas(64) tile_of_sums part[4];
    const size_t places = places_of(task);
    struct place at = first_place(task);
    for (size_t i = 0; i < places; i++, next_place(task, &at)) {
        multiply_chunk(at.panel, at.x, at.v, part);
        add_chunk(at.panel, at.x, at.v, task->traits, part, (double *)task->sums + sums_of(i));
    }
}

/* Exact sums of block b of the other types: sums[p] of digit p. */
static inline void multiply_block(const struct panel *panel, const struct exact_tile *x, int v,
                                  int b, tile_of_sums sums[3]) {
    TILE_MEMORY_IS_READ();
    LOAD_WEIGHTS(&panel->weights[8 * b][v]);
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    LOAD_DIGITS(4, &x->digits[0][0][32 * b]);
    _tile_dpbssd(0, 4, 7);
    LOAD_DIGITS(5, &x->digits[1][0][32 * b]);
    _tile_dpbssd(1, 5, 7);
    LOAD_DIGITS(6, &x->digits[2][0][32 * b]);
    _tile_dpbssd(2, 6, 7);
    _tile_stored(0, sums[0], 64);
    _tile_stored(1, sums[1], 64);
    _tile_stored(2, sums[2], 64);
}

/* See tile_add_32. */
static void exact_32(const struct task *task) {
    _Alignas(64) tile_of_sums part[3];
    const size_t places = places_of(task);
    struct place at = first_place(task);
    for (size_t i = 0; i < places; i++, next_place(task, &at)) {
        const struct exact_tile *x = at.x;
        double *out = (double *)task->sums + sums_of(i);
        v16 u[TOKENS];
        TL_UNROLL(16)
        for (int t = 0; t < TOKENS; t++) u[t] = v16_set1(0);
        for (int b = 0; b < 8; b++) {
            multiply_block(at.panel, x, at.v, b, part);
            const v16 d = v16_load(&at.panel->u.b.d[b][at.v]);
            const v16 m = v16_load(&at.panel->u.b.m[b][at.v]);
            TL_UNROLL(16)
            for (int t = 0; t < TOKENS; t++) {
                v16i digit[3];
                for (int p = 0; p < 3; p++) digit[p] = v16i_load(part[p][t]);
                u[t] = v16_fma(digits_to_f32(true, digit), d, u[t]);
                if (!task->traits.has_min) continue;
                u[t] = v16_fma(v16_set1(x->blocks[b * TOKENS + t]), m, u[t]);
            }
        }
        TL_UNROLL(16)
        for (int t = 0; t < TOKENS; t++, out += PANEL_ROWS) {
            v16d_store(out, v16d_fma(v16d_from_f32(u[t]), v16d_set1(x->dx[t]), v16d_load(out)));
        }
    }
}

/* ---- fast mode ---- */

/*
 * Sums start from the bits of BIAS, so that they are float32 numbers: BIAS plus the sum, which is
 * below 2^22. To subtract it is faster than to convert.
 */
#define BIAS 0x1.8p23f
#define BIAS_BITS 0x4b400000
#define FOUR(x)                                                                                    \
    { x, x, x, x }
#define BIAS_ROW                                                                                   \
    { FOUR(BIAS_BITS), FOUR(BIAS_BITS), FOUR(BIAS_BITS), FOUR(BIAS_BITS) }
#define BIAS_ROWS BIAS_ROW, BIAS_ROW, BIAS_ROW, BIAS_ROW
static const _Alignas(64) int32_t bias_tile[TOKENS][4][4] = {BIAS_ROWS, BIAS_ROWS, BIAS_ROWS,
                                                             BIAS_ROWS};

/* The sums of block b of 32 values; with `groups` of its two groups of 16. */
TL_INLINE void multiply_fast(const struct panel *panel, const struct fast_tile *x, int v, int b,
                             const bool groups, tile_of_sums sums[2]) {
    TILE_MEMORY_IS_READ();
    LOAD_WEIGHTS(&panel->weights[8 * b][v]);
    LOAD_DIGITS(4, &x->digits[0][32 * b]);
    _tile_loadd(0, bias_tile, 64);
    _tile_dpbssd(0, 4, 7);
    _tile_stored(0, sums[0], 64);
    if (!groups) return;
    LOAD_WEIGHTS(&panel->weights[8 * b + 4][v]);
    LOAD_DIGITS(5, &x->digits[0][32 * b + 16]);
    _tile_loadd(1, bias_tile, 64);
    _tile_dpbssd(1, 5, 7);
    _tile_stored(1, sums[1], 64);
}

/* total += block b; see fast_add_k. All but the last operation are exact: a sum times its sub-scale
   is below 2^24. */
TL_INLINE void add_fast_k(const struct panel *panel, const struct fast_tile *x, int v, int b,
                          const bool groups, const tile_of_sums sums[2], v16 total[TOKENS]) {
    const v16 first = v16_from_i32(v16i_load(&panel->u.k.scale[2 * b][v]));
    const v16 second = v16_from_i32(v16i_load(&panel->u.k.scale[groups ? 2 * b + 1 : 2 * b][v]));
    const v16 minus = v16_mul(first, v16_set1(-BIAS));
    TL_UNROLL(16)
    for (int t = 0; t < TOKENS; t++) {
        v16 s = v16_fma(v16_load_f32(sums[0][t]), first, minus);
        if (groups) {
            s = v16_fma(v16_sub(v16_load_f32(sums[1][t]), v16_set1(BIAS)), second, s);
        }
        total[t] = v16_fma(s, v16_set1(x->scale[b][t]), total[t]);
    }
}

/* The minima of a chunk; see fast_add_k. */
TL_INLINE void add_fast_mins(const struct panel *panel, const struct fast_tile *x, int v,
                             const bool groups, float *out) {
    const v16 dmin = v16_load(panel->u.k.dmin + v);
    v16 mins[TOKENS];
    TL_UNROLL(16)
    for (int t = 0; t < TOKENS; t++) mins[t] = v16_set1(0);
    for (int b = 0; b < 8; b++) {
        const v16i min = v16i_load(&panel->u.k.min[b][v]);
        const v16 same = v16_from_i32(v16i_and(min, v16i_set1(0xffff)));
        TL_UNROLL(16)
        for (int t = 0; t < TOKENS; t++) {
            if (groups) {
                const v16i both = v16i_dot2(v16i_set1(0), min, v16i_set1(x->pairs[b][t]));
                mins[t] = v16_fma(v16_from_i32(both), v16_set1(x->scale[b][t]), mins[t]);
            } else {
                mins[t] = v16_fma(same, v16_set1(x->sum[b][t]), mins[t]);
            }
        }
    }
    TL_UNROLL(16)
    for (int t = 0; t < TOKENS; t++) {
        float *at = out + t * PANEL_ROWS;
        v16_store(at, v16_fma(dmin, v16_mul(mins[t], v16_set1(-1)), v16_load(at)));
    }
}

/* total += block b; see fast_add_32. */
TL_INLINE void add_fast_32(const struct panel *panel, const struct fast_tile *x, int v, int b,
                           const bool has_min, const tile_of_sums sums, v16 total[TOKENS]) {
    const v16 d = v16_load(&panel->u.b.d[b][v]), m = v16_load(&panel->u.b.m[b][v]);
    TL_UNROLL(16)
    for (int t = 0; t < TOKENS; t++) {
        const v16 s = v16_sub(v16_load_f32(sums[t]), v16_set1(BIAS));
        const v16 scaled = v16_mul(s, v16_set1(x->scale[b][t]));
        total[t] = v16_fma(scaled, d, total[t]);
        if (has_min) total[t] = v16_fma(m, v16_set1(x->sum[b][t]), total[t]);
    }
}

TL_INLINE void fast_tiles(const struct task *task, const bool k, const bool groups) {
    _Alignas(64) tile_of_sums part[8][2];
    const size_t places = places_of(task);
    struct place at = first_place(task);
    for (size_t i = 0; i < places; i++, next_place(task, &at)) {
        float *out = (float *)task->sums + sums_of(i);
        v16 total[TOKENS];
        TL_UNROLL(16)
        for (int t = 0; t < TOKENS; t++) {
            total[t] = k ? v16_set1(0) : v16_load(out + t * PANEL_ROWS);
        }
        for (int b = 0; b < 8; b++) multiply_fast(at.panel, at.x, at.v, b, groups, part[b]);
        for (int b = 0; b < 8; b++) {
            if (k) {
                add_fast_k(at.panel, at.x, at.v, b, groups, part[b], total);
            } else {
                add_fast_32(at.panel, at.x, at.v, b, task->traits.has_min, part[b][0], total);
            }
        }
        const v16 d = k ? v16_load(at.panel->u.k.d + at.v) : v16_set1(0);
        TL_UNROLL(16)
        for (int t = 0; t < TOKENS; t++) {
            float *to = out + t * PANEL_ROWS;
            v16_store(to, k ? v16_fma(d, total[t], v16_load(to)) : total[t]);
        }
        if (k && task->traits.has_min) add_fast_mins(at.panel, at.x, at.v, groups, out);
    }
}

/* ---- matrices ---- */

/* Whether the tiles multiply this type. Those of MXFP4 and NVFP4 have sums of other widths. */
static bool has_tiles(const struct tl_type_info *type) {
    const enum tl_type id = type_id(type);
    return type->kind != TL_KIND_FLOAT && int_in_bytes(type) && id != TL_TYPE_MXFP4 &&
           id != TL_TYPE_NVFP4;
}

/* From how many tokens on the tiles are faster. Exact sums of K types come from whole chunks; those
   of groups of 16 values leave most of a tile's products unused. */
static size_t least_tokens(const struct tl_type_info *type, bool fast) {
    const bool k = is_k(type_id(type));
    if (!fast) return k ? 12 : 24;
    return k && !traits_of(type_id(type)).wide ? 64 : 48;
}

static bool uses_tiles(const struct tl_type_info *type, size_t tokens, bool fast) {
    return has_tiles(type) && tokens >= least_tokens(type, fast);
}

static int amx_format(const struct tl_type_info *type, size_t tokens) {
    return uses_tiles(type, tokens, false) ? FORMAT_AMX : others[0].format(type, tokens);
}

static int amx_format_fast(const struct tl_type_info *type, size_t tokens) {
    return uses_tiles(type, tokens, true) ? FORMAT_FAST_AMX : others[1].format(type, tokens);
}

static size_t amx_scratch(const struct tl_matrix *w, int format, size_t tokens) {
    if (!is_mine(format)) return others[1].scratch(w, format, tokens);
    tokens = round_up(TL_MIN(tokens, (size_t)TOKENS_AT_ONCE), TOKENS);
    return PANELS * (sizeof(struct panel) + tokens * PANEL_ROWS * sizeof(double));
}

static void write_sums(const struct task *task, bool fast, size_t tokens, size_t rows, float *y,
                       size_t y_stride) {
    for (size_t t = 0; t < tokens; t++) {
        for (size_t r = 0; r < rows; r += 16) {
            const size_t tile = t / TOKENS * task->panel_count + r / PANEL_ROWS;
            const size_t at = (tile * TOKENS + t % TOKENS) * PANEL_ROWS + r % PANEL_ROWS;
            const v16 sums = fast ? v16_load((const float *)task->sums + at)
                                  : v16_from_f64(v16d_load((const double *)task->sums + at));
            if (rows - r >= 16) {
                v16_store(y + t * y_stride + r, sums);
            } else {
                v16_store_part(y + t * y_stride + r, rows - r, sums);
            }
        }
    }
}

static void multiply_tiles(const struct tl_matrix *w, bool fast, size_t row0, size_t row1,
                           const void *packed, size_t tokens, float *y, size_t y_stride,
                           void *scratch) {
    const size_t chunks = round_up(w->cols, TL_CHUNK) / TL_CHUNK;
    const bool k = is_k(type_id(w->type));
    struct panel *panels = scratch;
    struct task task = {.panels = panels,
                        .stride = chunks * tile_bytes_of(fast),
                        .tiles = round_up(tokens, TOKENS) / TOKENS,
                        .traits = traits_of(type_id(w->type)),
                        .sums = panels + PANELS};
    const bool groups = k && !task.traits.wide;
    const size_t sum_bytes = fast ? sizeof(float) : sizeof(double);
    tiles_begin(fast ? (groups ? 16 : 32) : (k ? 64 : 32));
    for (size_t row = row0; row < row1; row += PANELS * PANEL_ROWS) {
        const size_t rows = TL_MIN(row1 - row, (size_t)PANELS * PANEL_ROWS);
        task.panel_count = (rows + PANEL_ROWS - 1) / PANEL_ROWS;
        memset(task.sums, 0, task.tiles * TOKENS * task.panel_count * PANEL_ROWS * sum_bytes);
        for (size_t c = 0; c < chunks; c++) {
            for (size_t i = 0; i < task.panel_count; i++) {
                tl_panel_fill_avx512vnni(w, row + i * PANEL_ROWS, row1, c, panels + i);
                if (k && !fast) {
                    multiply_scales(panels + i, task.traits.offset, task.traits.wide);
                } else {
                    make_signed(panels + i, task.traits.offset);
                }
            }
            task.x = (const char *)packed + c * tile_bytes_of(fast);
            if (!fast) {
                (k ? exact_k : exact_32)(&task);
            } else if (groups) {
                fast_tiles(&task, true, true);
            } else if (k) {
                fast_tiles(&task, true, false);
            } else {
                fast_tiles(&task, false, false);
            }
        }
        write_sums(&task, fast, tokens, rows, y + row, y_stride);
    }
    _tile_release();
}

static void amx_matmul(const struct tl_matrix *w, int format, size_t row0, size_t row1,
                       const void *packed, size_t tokens, float *y, size_t y_stride,
                       void *scratch) {
    if (!is_mine(format)) {
        others[1].matmul(w, format, row0, row1, packed, tokens, y, y_stride, scratch);
        return;
    }
    for (size_t t = 0; t < tokens; t += TOKENS_AT_ONCE) {
        const char *part = (const char *)packed + amx_pack_bytes(format, w->cols, t);
        multiply_tiles(w, format == FORMAT_FAST_AMX, row0, row1, part,
                       TL_MIN(tokens - t, (size_t)TOKENS_AT_ONCE), y + t * y_stride, y_stride,
                       scratch);
    }
}

void tl_kernels_init_amx(struct tl_kernels *k, bool fast) {
    tl_kernels_init_avx512bf16(k, fast);
    others[fast] = *k;
    k->rows_at_once = PANELS * PANEL_ROWS;
    k->format = fast ? amx_format_fast : amx_format;
    k->pack_bytes = amx_pack_bytes;
    k->pack = amx_pack;
    k->scratch = amx_scratch;
    k->matmul = amx_matmul;
}

TL_TARGET_END

#endif
