/*
 * compare_sets.c - compares every entry of struct tl_kernels in every set with scalar, bit for bit.
 * Every array lies between two inaccessible pages.
 *
 * It covers what the Python tests cannot: the functions besides the matmuls, packed activations and
 * scratch memory, instruction sets translated by SIMDe, and another processor under an emulator.
 * The run_*.sh build and run it. The arguments are the sets that must be available, worst first.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "kernels/kernels.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

static uint64_t state = 88172645463325252u;
static int compared, different;

static uint32_t random_bits(void) {
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return (uint32_t)(state >> 16);
}

static float random_float(void) {
    float sum = 0;
    for (int i = 0; i < 4; i++) sum += (float)(random_bits() & 0xffffff) / 0x1p23f - 1;
    return sum;
}

/* ---- memory between two inaccessible pages ---- */

enum { CANARY = 0xa5 };

struct region {
    uint8_t *map, *data;
    size_t bytes, inside, page;
};

static struct region regions[64];
static size_t region_count;
static bool at_end; // data touches the page after it, not the page before it

static void *guarded(size_t bytes, size_t align) {
    struct region *r = &regions[region_count++];
    r->page = (size_t)sysconf(_SC_PAGESIZE);
    r->inside = TL_MAX((bytes + r->page - 1) / r->page, 1) * r->page;
    r->bytes = bytes;
    r->map = mmap(NULL, r->inside + 2 * r->page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (region_count == TL_ARRAY_LEN(regions) || r->map == MAP_FAILED ||
        mprotect(r->map + r->page, r->inside, PROT_READ | PROT_WRITE) != 0) {
        perror("guarded");
        exit(2);
    }
    r->data = r->map + r->page + (at_end ? (r->inside - bytes) / align * align : 0);
    memset(r->map + r->page, CANARY, r->inside);
    return r->data;
}

static float *floats(size_t n) {
    return guarded(n * sizeof(float), sizeof(float));
}

static float *random_floats(size_t n) {
    float *x = floats(n);
    for (size_t i = 0; i < n; i++) x[i] = random_float();
    return x;
}

/* Frees all regions after the first `count`; checks that nothing beside the data was written. */
static void release(const char *what, size_t count) {
    while (region_count > count) {
        struct region *r = &regions[--region_count];
        uint8_t *start = r->map + r->page;
        for (size_t i = 0; i < r->inside; i++) {
            if (start + i >= r->data && start + i < r->data + r->bytes) continue;
            if (start[i] == CANARY) continue;
            printf("%s: a byte %s the data was written\n", what,
                   start + i < r->data ? "before" : "after");
            different++;
            break;
        }
        munmap(r->map, r->inside + 2 * r->page);
    }
}

/* ---- comparing ---- */

static bool same(float a, float b) {
    return isnan(a) ? isnan(b) : memcmp(&a, &b, sizeof(a)) == 0;
}

static void compare(const char *set, const char *what, const float *got, const float *expected,
                    size_t n) {
    compared++;
    for (size_t i = 0; i < n; i++) {
        if (same(got[i], expected[i])) continue;
        printf("%s, %s: [%zu] is %a; scalar has %a\n", set, what, i, (double)got[i],
               (double)expected[i]);
        different++;
        return;
    }
}

/* Checks that nothing was written here since the memory was allocated. */
static void compare_untouched(const char *set, const char *what, const float *y, size_t n) {
    const uint8_t *bytes = (const uint8_t *)y;
    for (size_t i = 0; i < n * sizeof(float); i++) {
        if (bytes[i] == CANARY) continue;
        printf("%s, %s: wrote outside its rows\n", set, what);
        different++;
        return;
    }
}

/* ---- matmuls ---- */

/* Random bits, but no float16 and no float that is not finite. */
static void random_weights(const struct tl_type_info *type, uint8_t *data, size_t bytes) {
    for (size_t i = 0; i < bytes; i++) data[i] = (uint8_t)random_bits();
    if (type->kind == TL_KIND_FLOAT) {
        size_t size = (size_t)type->bytes;
        for (size_t i = size - 1; i < bytes; i += size) data[i] &= 0xbb;
        return;
    }
    // exponents of halves are in bytes that are also quants: clearing a bit is harmless there
    for (size_t i = 0; i < bytes; i++) {
        if (random_bits() % 8 != 0) data[i] &= 0xbf;
    }
}

/* Multiplies the rows from row0 on; y is (tokens, rows + gap). Packs the tokens in two parts, as
   two threads would. */
static void run_matmul(const struct tl_kernels *k, const struct tl_matrix *w, size_t row0,
                       const float *x, size_t tokens, float *y, size_t y_stride) {
    const int format = k->format(w->type, tokens);
    void *packed = guarded(k->pack_bytes(format, w->cols, tokens), 64);
    void *scratch = guarded(k->scratch(w, format, tokens), 64);
    if (format < 0 || format >= TL_FORMATS) different++;
    k->pack(format, x + tokens / 2 * w->cols, w->cols, tokens, tokens / 2, tokens, packed);
    k->pack(format, x, w->cols, tokens, 0, tokens / 2, packed);
    k->matmul(w, format, row0, w->rows, packed, tokens, y, y_stride, scratch);
}

/* ---- fast mode with dot products of bfloat16, in plain C (docs/numerics.md, section 4) ---- */

static float flush(float x) {
    return isnormal(x) || !isfinite(x) ? x : copysignf(0, x);
}

static float from_bf16(uint32_t bits) {
    float x;
    bits <<= 16;
    memcpy(&x, &bits, sizeof(x));
    return x;
}

static float round_bf16(float x) {
    uint32_t bits;
    x = flush(x);
    memcpy(&bits, &x, sizeof(bits));
    return isnan(x) ? x : from_bf16((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

static float dot_bf16(const uint16_t *w, const float *x, size_t n) {
    float y = 0;
    for (size_t first = 0; first < n; first += 8192) {
        for (size_t lane = 0; lane < 16; lane++) {
            float s = 0;
            for (size_t k = first + 2 * lane; k < TL_MIN(first + 8192, n); k += 32) {
                for (size_t i = TL_MIN(k + 2, n); i-- > k;) { // the second of a pair first
                    s = flush(fmaf(flush(from_bf16(w[i])), round_bf16(x[i]), s));
                }
            }
            y += s;
        }
    }
    return y;
}

static void matmul_bf16(const struct tl_matrix *w, const float *x, size_t tokens, float *y,
                        size_t y_stride) {
    uint16_t *row = malloc(w->row_bytes);
    if (row == NULL) exit(2);
    for (size_t r = 0; r < w->rows; r++) {
        memcpy(row, w->data + r * w->row_bytes, w->row_bytes);
        for (size_t t = 0; t < tokens; t++) {
            y[t * y_stride + r] = dot_bf16(row, x + t * w->cols, w->cols);
        }
    }
    free(row);
}

static void compare_matmul(const struct tl_type_info *type, size_t rows, size_t cols,
                           size_t tokens) {
    const size_t row0 = rows > TL_ROW_STEP ? TL_ROW_STEP : 0, stride = rows + 5;
    const size_t n = (tokens - 1) * stride + rows;
    struct tl_matrix w = {.type = type, .rows = rows, .cols = cols};
    tl_type_row_bytes(type, cols, &w.row_bytes);
    uint8_t *data = guarded(rows * w.row_bytes, 1);
    float *x = random_floats(tokens * cols);
    random_weights(type, data, rows * w.row_bytes);
    w.data = data;
    if (tokens > 2) x[cols + cols / 2] = NAN;
    for (int fast = 0; fast < 2; fast++) {
        const size_t outside = region_count;
        const struct tl_kernels *scalar = tl_kernels_find("scalar"), *k;
        float *expected = floats(n), *want = floats(n);
        run_matmul(fast ? scalar->fast : scalar, &w, 0, x, tokens, expected, stride);
        if (type == tl_type_find(TL_TYPE_BF16)) matmul_bf16(&w, x, tokens, want, stride);
        for (size_t i = 0; (k = tl_kernels_at(i)) != NULL; i++) {
            const size_t mark = region_count;
            float *y = floats(n);
            const bool pairs = fast && type == tl_type_find(TL_TYPE_BF16) &&
                               (strcmp(k->name, "avx512bf16") == 0 || strcmp(k->name, "amx") == 0);
            char what[96];
            snprintf(what, sizeof(what), "%s %s, %zu x %zu, %zu tokens", fast ? "fast" : "exact",
                     type->name, rows, cols, tokens);
            run_matmul(fast ? k->fast : k, &w, row0, x, tokens, y, stride);
            for (size_t t = 0; t < tokens; t++) {
                compare_untouched(k->name, what, y + t * stride, row0);
                if (t + 1 < tokens) compare_untouched(k->name, what, y + t * stride + rows, 5);
                // there int16 digits are as fast, so fast mode uses them and is more accurate
                if (fast && strcmp(type->name, "Q8_0") == 0 &&
                    (strcmp(k->name, "avx2") == 0 || strcmp(k->name, "avx512") == 0)) {
                    continue;
                }
                compare(k->name, what, y + t * stride + row0,
                        (pairs ? want : expected) + t * stride + row0, rows - row0);
            }
            release(what, mark);
        }
        release("matmul", outside);
    }
    release(type->name, 0);
}

/* Reads rows as numbers, which must touch only their blocks and the output. */
static void read_rows(const struct tl_type_info *type) {
    for (size_t blocks = 1; blocks < 12; blocks++) {
        const size_t n = blocks * (size_t)type->items;
        uint8_t *data = guarded(blocks * (size_t)type->bytes, 1);
        float *narrow = floats(n), *rounded = floats(n);
        double *wide = guarded(n * sizeof(double), sizeof(double));
        random_weights(type, data, blocks * (size_t)type->bytes);
        tl_type_to_f32(type, data, narrow, n);
        tl_type_to_f64(type, data, wide, n);
        for (size_t i = 0; i < n; i++) rounded[i] = (float)wide[i];
        compare("float64", type->name, rounded, narrow, n);
        release(type->name, 0);
    }
}

/* ---- the other functions ---- */

static void compare_norms(const struct tl_kernels *k, const struct tl_kernels *scalar,
                          const float *x, const float *weight, size_t n, float *y,
                          float *expected) {
    for (int i = 0; i < 2; i++) {
        const double divisor = i == 0 ? (double)n : 1.0;
        const float *w = i == 0 ? weight : NULL, *b = i == 0 ? x : NULL;
        float got[3] = {k->norm_scale(x, n, divisor, 1e-5f), k->norm_mean(x, n), 0};
        float want[3] = {scalar->norm_scale(x, n, divisor, 1e-5f), scalar->norm_mean(x, n), 0};
        got[2] = k->layer_scale(x, n, want[1], 1e-5f);
        want[2] = scalar->layer_scale(x, n, want[1], 1e-5f);
        compare(k->name, "norm_scale, norm_mean, layer_scale", got, want, 3);
        k->norm_apply(x, w, n, want[0], y);
        scalar->norm_apply(x, w, n, want[0], expected);
        compare(k->name, "norm_apply", y, expected, n);
        k->layer_apply(x, w, b, n, want[1], want[2], y);
        scalar->layer_apply(x, w, b, n, want[1], want[2], expected);
        compare(k->name, "layer_apply", y, expected, n);
    }
}

static void compare_vectors(const struct tl_kernels *k, const struct tl_kernels *scalar) {
    static const size_t lengths[] = {1, 15, 16, 17, 100, 256, 1000};
    for (size_t i = 0; i < TL_ARRAY_LEN(lengths); i++) {
        const size_t n = lengths[i];
        float *a = random_floats(n), *b = random_floats(n), *y = floats(n), *expected = floats(n);
        for (size_t j = 0; j < n; j += 7) a[j] *= 40;
        compare_norms(k, scalar, a, b, n, y, expected);
        for (int f = 0; f < TL_FN_COUNT; f++) {
            k->gated((enum tl_function)f, 1.7f, 3, a, b, y, n);
            scalar->gated((enum tl_function)f, 1.7f, 3, a, b, expected, n);
            compare(k->name, "gated", y, expected, n);
            k->unary((enum tl_function)f, 2.5f, a, y, n);
            scalar->unary((enum tl_function)f, 2.5f, a, expected, n);
            compare(k->name, "unary", y, expected, n);
        }
        for (int sink = 0; sink < 2; sink++) {
            k->attn_softmax(a, n, sink ? 1.5f : -INFINITY, y);
            scalar->attn_softmax(a, n, sink ? 1.5f : -INFINITY, expected);
            compare(k->name, "attn_softmax", y, expected, n);
        }
        k->add(a, b, y, n);
        scalar->add(a, b, expected, n);
        compare(k->name, "add", y, expected, n);
        k->add(a, b, a, n);
        compare(k->name, "add to the first", a, expected, n);
        for (size_t m = 1; m <= n && m <= 100; m = 3 * m + 2) { // m rows, a shorter than n
            k->weighted_sum(a, b, m, n / m, y);
            scalar->weighted_sum(a, b, m, n / m, expected);
            compare(k->name, "weighted_sum", y, expected, n / m);
        }
        release("a vector", 0);
    }
}

static uint8_t *random_bytes(size_t n, size_t align) {
    uint8_t *x = guarded(n, align);
    for (size_t i = 0; i < n; i++) x[i] = (uint8_t)random_bits();
    return x;
}

/* Keys and values of 16 positions that are stored with fewer bits. */
static void compare_widening(const struct tl_kernels *k, const struct tl_kernels *scalar) {
    static const size_t sizes[] = {1, 16, 31, 32, 33, 48, 64, 80, 192};
    for (size_t i = 0; i < TL_ARRAY_LEN(sizes); i++) {
        const size_t size = sizes[i], n = 16 * size, padded = (size + 15) / 16 * 16;
        const uint8_t *halves = random_bytes(2 * n, 2), *bytes = random_bytes(16 * padded, 1);
        const uint8_t *scales = random_bytes((padded + 31) / 32 * 32, 2);
        float *y = floats(16 * padded), *expected = floats(16 * padded);
        k->widen_f16(halves, n, y);
        scalar->widen_f16(halves, n, expected);
        compare(k->name, "widen_f16", y, expected, n);
        k->widen_q8_keys(scales, bytes, size, y);
        scalar->widen_q8_keys(scales, bytes, size, expected);
        compare(k->name, "widen_q8_keys", y, expected, n);
        k->widen_q8_values(scales, bytes, padded, y);
        scalar->widen_q8_values(scales, bytes, padded, expected);
        compare(k->name, "widen_q8_values", y, expected, 16 * padded);
        release("stored keys and values", 0);
    }
}

static void compare_rope(const struct tl_kernels *k, const struct tl_kernels *scalar) {
    static const size_t shapes[][3] = {
        {1, 2, 2}, {3, 64, 64}, {2, 20, 12}, {5, 80, 64}, {2, 16, 0}};
    for (size_t i = 0; i < TL_ARRAY_LEN(shapes); i++) {
        const size_t heads = shapes[i][0], size = shapes[i][1], rot = shapes[i][2];
        float *x = random_floats(heads * size), *cos_sin = random_floats(rot);
        float *y = floats(heads * size), *expected = floats(heads * size);
        k->rope_pairs(x, y, heads, size, rot, cos_sin);
        scalar->rope_pairs(x, expected, heads, size, rot, cos_sin);
        compare(k->name, "rope_pairs", y, expected, heads * size);
        k->rope_halves(x, y, heads, size, rot, cos_sin);
        scalar->rope_halves(x, expected, heads, size, rot, cos_sin);
        compare(k->name, "rope_halves", y, expected, heads * size);
        release("rope", 0);
    }
}

/*
 * Query i sees the keys before keys - (queries - 1 - i) * step, and of those the last `window`. The
 * cache after the last key, and the probabilities of keys that a query does not see, can hold
 * anything: here, NaN.
 */
static void compare_attention(const struct tl_kernels *k, const struct tl_kernels *scalar,
                              size_t queries, size_t step, size_t keys, size_t window, size_t size,
                              size_t value_stride) {
    const size_t blocks = (keys + TL_BLOCK - 1) / TL_BLOCK, row = blocks * TL_BLOCK;
    const size_t stride = row + 16, mix_stride = value_stride + 7;
    const float *key_blocks[8], *value_blocks[8];
    float *q = random_floats(queries * size);
    float *scores = floats((queries - 1) * stride + row), *expected = floats(row);
    float *probs = floats((queries - 1) * stride + keys);
    float *mix = floats((queries - 1) * mix_stride + value_stride), *want = floats(value_stride);
    struct tl_range seen[64];
    char what[128];
    snprintf(what, sizeof(what),
             "attention, %zu queries, %zu keys of %zu, values of %zu, step %zu, window %zu",
             queries, keys, size, value_stride, step, window);
    for (size_t b = 0; b < blocks; b++) {
        float *kb = random_floats(size * TL_BLOCK), *vb = random_floats(TL_BLOCK * value_stride);
        for (size_t p = 0; p < TL_BLOCK; p++) {
            if (b * TL_BLOCK + p < keys) continue;
            for (size_t d = 0; d < size; d++) kb[p / 16 * 16 * size + d * 16 + p % 16] = NAN;
            for (size_t d = 0; d < value_stride; d++) vb[p * value_stride + d] = NAN;
        }
        key_blocks[b] = kb;
        value_blocks[b] = vb;
    }
    for (size_t j = 0; j < (queries - 1) * stride + keys; j++) probs[j] = NAN;
    k->attn_scores(q, queries, key_blocks, size, keys, 0.125f, scores, stride);
    for (size_t i = 0; i < queries; i++) { // the bits are those of a query alone
        const size_t end = keys - (queries - 1 - i) * step, first = end > window ? end - window : 0;
        seen[i] = (struct tl_range){first, end};
        scalar->attn_scores(q + i * size, 1, key_blocks, size, end, 0.125f, expected, row);
        compare(k->name, what, scores + i * stride, expected, end);
        for (size_t j = 0; j < first; j++) scores[i * stride + j] = -INFINITY;
        k->attn_softmax(scores + i * stride, end, -INFINITY, probs + i * stride);
        for (size_t j = 0; j < first; j++) probs[i * stride + j] = NAN;
    }
    k->attn_mix(probs, stride, queries, seen, value_blocks, value_stride, mix, mix_stride);
    for (size_t i = 0; i < queries; i++) {
        scalar->attn_mix(probs + i * stride, stride, 1, seen + i, value_blocks, value_stride, want,
                         value_stride);
        compare(k->name, what, mix + i * mix_stride, want, value_stride);
        if (i + 1 == queries) continue;
        compare_untouched(k->name, what, mix + i * mix_stride + value_stride, 7);
        compare_untouched(k->name, what, scores + i * stride + row, 16);
    }
    release(what, 0);
}

static void compare_conv(const struct tl_kernels *k, const struct tl_kernels *scalar, size_t n,
                         size_t taps) {
    const float *rows[8];
    float *weights = random_floats(n * taps), *bias = random_floats(n);
    float *y = floats(n), *expected = floats(n);
    for (size_t j = 0; j < taps; j++) rows[j] = random_floats(n);
    for (int biased = 0; biased < 2; biased++) {
        k->conv(rows, taps, weights, biased ? bias : NULL, y, n);
        scalar->conv(rows, taps, weights, biased ? bias : NULL, expected, n);
        compare(k->name, "conv", y, expected, n);
    }
    release("conv", 0);
}

/* Some columns of a state: the columns beside them stay as they are, and other slices of columns
   give the same bits. */
static void compare_delta(const struct tl_kernels *k, const struct tl_kernels *scalar,
                          size_t key_size, size_t n) {
    const size_t stride = n + 3, all = (key_size - 1) * stride + n;
    struct tl_delta d = {.key_size = key_size, .stride = stride, .factor = 0.25f};
    float *from = random_floats(all), *v = random_floats(n), *to = floats(all), *y = floats(n);
    float *want_to = floats(all), *want = floats(n), *cut = floats(n);
    d.q = random_floats(key_size);
    d.k = random_floats(key_size);
    d.decay = 0.9f;
    d.beta = 0.7f;
    k->delta(&d, from, to, v, y, n);
    scalar->delta(&d, from, want_to, v, want, n);
    compare(k->name, "delta", y, want, n);
    for (size_t i = 0; i < key_size; i++) {
        compare(k->name, "delta's state", to + i * stride, want_to + i * stride, n);
        if (i + 1 < key_size) compare_untouched(k->name, "delta", to + i * stride + n, 3);
    }
    for (size_t c = 0, some; c < n; c += some) {
        some = TL_MIN(n - c, (size_t)5);
        k->delta(&d, from + c, want_to + c, v + c, cut + c, some);
    }
    compare(k->name, "delta in slices", cut, want, n);
    k->delta(&d, from, from, v, y, n);
    compare(k->name, "delta in place", y, want, n);
    compare(k->name, "delta's state in place", from, to, n);
    release("delta", 0);
}

static void compare_operations(void) {
    const struct tl_kernels *scalar = tl_kernels_find("scalar"), *k;
    for (size_t i = 0; (k = tl_kernels_at(i)) != NULL; i++) {
        compare_vectors(k, scalar);
        compare_widening(k, scalar);
        compare_rope(k, scalar);
        compare_conv(k, scalar, 1, 2);
        compare_conv(k, scalar, 80, 3);
        compare_conv(k, scalar, 77, 4);
        compare_conv(k, scalar, 16, 8);
        compare_delta(k, scalar, 1, 1);
        compare_delta(k, scalar, 8, 8);
        compare_delta(k, scalar, 128, 64);
        compare_delta(k, scalar, 33, 101);
        compare_delta(k, scalar, 64, 176);
        compare_attention(k, scalar, 1, 1, 1, 1, 2, 16);
        compare_attention(k, scalar, 1, 1, 257, 257, 80, 80);
        compare_attention(k, scalar, 5, 1, 300, 300, 20, 32);
        compare_attention(k, scalar, 7, 1, 512, 512, 64, 64);
        compare_attention(k, scalar, 13, 1, 13, 13, 33, 48);
        compare_attention(k, scalar, 14, 1, 601, 601, 64, 112);
        compare_attention(k, scalar, 8, 0, 300, 300, 64, 64);
        compare_attention(k, scalar, 3, 0, 17, 17, 128, 16);
        compare_attention(k, scalar, 1, 1, 700, 100, 64, 64);
        compare_attention(k, scalar, 13, 1, 601, 100, 20, 112);
        compare_attention(k, scalar, 14, 1, 520, 5, 33, 48);
        compare_attention(k, scalar, 8, 0, 800, 300, 64, 64);
    }
}

static int list_sets(int count, char **names) {
    const struct tl_kernels *k;
    int i = 0;
    for (; (k = tl_kernels_at((size_t)i)) != NULL; i++) printf("%s ", k->name);
    printf("\n");
    for (int j = 0; j < count; j++) {
        if (i == count && strcmp(tl_kernels_at((size_t)j)->name, names[j]) == 0) continue;
        printf("these are not the sets that the arguments name\n");
        return 1;
    }
    return 0;
}

int main(int argc, char **argv) {
    static const size_t shapes[][3] = {{1, 32, 1},    {33, 256, 1}, {17, 288, 2},   {40, 512, 3},
                                       {5, 1280, 7},  {64, 800, 6}, {75, 2304, 13}, {3, 4448, 12},
                                       {75, 288, 66}, {170, 32, 50}};
    if (list_sets(argc - 1, argv + 1) != 0) return 1;
    for (int end = 0; end < 2; end++) {
        at_end = end != 0;
        for (uint32_t id = 0; id < TL_TYPE_COUNT; id++) {
            const struct tl_type_info *type = tl_type_find(id);
            if (type == NULL || type->kind < TL_KIND_FLOAT) continue;
            for (size_t i = 0; i < TL_ARRAY_LEN(shapes); i++) {
                size_t items = (size_t)type->items, cols = shapes[i][1];
                cols = items == 1 ? cols + 5 : (cols + items - 1) / items * items;
                compare_matmul(type, shapes[i][0], cols, shapes[i][2]);
            }
            read_rows(type);
        }
        compare_operations();
    }
    printf("%d comparisons, %d different\n", compared, different);
    return compared > 1000 && different == 0 ? 0 : 1;
}
