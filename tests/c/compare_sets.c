/*
 * compare_sets.c - every kernel set against scalar, bit for bit: matmuls of all types in both
 * modes, and the other steps of the forward pass.
 *
 * For builds that Python does not reach: instruction sets translated by SIMDe, or another
 * processor under an emulator. run_simde.sh and run_aarch64.sh build and run it.
 */
#include "kernels.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

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

static void run_matmul(const struct tl_kernels *k, const struct tl_matrix *w, const float *x,
                       size_t tokens, float *y) {
    int format = k->format(w->type, tokens);
    void *packed = tl_alloc(k->pack_bytes(format, w->cols, tokens));
    void *scratch = tl_alloc(k->scratch(w, format, tokens));
    k->pack(format, x, w->cols, tokens, 0, tokens, packed);
    k->matmul(w, format, 0, w->rows, packed, tokens, y, w->rows, scratch);
    tl_free(packed);
    tl_free(scratch);
}

static void compare_matmul(const struct tl_type_info *type, size_t rows, size_t cols,
                           size_t tokens) {
    struct tl_matrix w = {.type = type, .rows = rows, .cols = cols};
    tl_type_row_bytes(type, cols, &w.row_bytes);
    uint8_t *data = tl_alloc(rows * w.row_bytes);
    float *x = tl_alloc(tokens * cols * sizeof(float));
    float *expected = tl_alloc(tokens * rows * sizeof(float));
    float *y = tl_alloc(tokens * rows * sizeof(float));
    random_weights(type, data, rows * w.row_bytes);
    w.data = data;
    for (size_t i = 0; i < tokens * cols; i++) x[i] = random_float();
    if (tokens > 2) x[cols + cols / 2] = NAN;
    for (int fast = 0; fast < 2; fast++) {
        const struct tl_kernels *scalar = tl_kernels_find("scalar"), *k;
        run_matmul(fast ? scalar->fast : scalar, &w, x, tokens, expected);
        for (size_t i = 0; (k = tl_kernels_at(i)) != NULL; i++) {
            char what[96];
            // there int16 digits are as fast, so fast mode has other, better results
            if (fast && strcmp(type->name, "Q8_0") == 0 &&
                (strcmp(k->name, "avx2") == 0 || strcmp(k->name, "avx512") == 0)) {
                continue;
            }
            snprintf(what, sizeof(what), "%s %s, %zu x %zu, %zu tokens", fast ? "fast" : "exact",
                     type->name, rows, cols, tokens);
            run_matmul(fast ? k->fast : k, &w, x, tokens, y);
            compare(k->name, what, y, expected, tokens * rows);
        }
    }
    tl_free(data);
    tl_free(x);
    tl_free(expected);
    tl_free(y);
}

static void compare_operations(void) {
    enum { N = 1000 };
    static float a[N], b[N], y[N], expected[N];
    const struct tl_kernels *scalar = tl_kernels_find("scalar"), *k;
    for (int i = 0; i < N; i++) {
        a[i] = random_float() * (i % 7 == 0 ? 40.0f : 1.0f);
        b[i] = random_float();
    }
    for (size_t i = 0; (k = tl_kernels_at(i)) != NULL; i++) {
        float scale = k->norm_scale(a, N, 1e-5f), scalar_scale = scalar->norm_scale(a, N, 1e-5f);
        compare(k->name, "norm_scale", &scale, &scalar_scale, 1);
        k->norm_apply(a, b, N, scale, y);
        scalar->norm_apply(a, b, N, scale, expected);
        compare(k->name, "norm_apply", y, expected, N);
        k->silu_mul(a, b, y, N);
        scalar->silu_mul(a, b, expected, N);
        compare(k->name, "silu_mul", y, expected, N);
        k->attn_softmax(a, N - 3, y);
        scalar->attn_softmax(a, N - 3, expected);
        compare(k->name, "attn_softmax", y, expected, N - 3);
    }
}

int main(void) {
    static const size_t shapes[][3] = {{1, 32, 1},   {33, 256, 1}, {17, 288, 2},  {40, 512, 3},
                                       {64, 800, 6}, {5, 1280, 7}, {35, 2304, 13}};
    const struct tl_kernels *k;
    for (size_t i = 0; (k = tl_kernels_at(i)) != NULL; i++) printf("%s ", k->name);
    printf("\n");
    for (uint32_t id = 0; id < TL_TYPE_COUNT; id++) {
        const struct tl_type_info *type = tl_type_find(id);
        if (type == NULL ||
            (type->kind != TL_KIND_FLOAT && type->kind != TL_KIND_K && type->kind != TL_KIND_32)) {
            continue;
        }
        for (size_t i = 0; i < TL_ARRAY_LEN(shapes); i++) {
            size_t items = (size_t)type->items, cols = shapes[i][1];
            cols = items == 1 ? cols + 5 : (cols + items - 1) / items * items;
            compare_matmul(type, shapes[i][0], cols, shapes[i][2]);
        }
    }
    compare_operations();
    printf("%d comparisons, %d different\n", compared, different);
    return compared > 100 && different == 0 ? 0 : 1;
}
