/* back_linear.c - the gradient of a matmul y = scale (x W^T) + bias. */
#include "training/back_pass.h"

#include "base/block_cache.h"

#include <string.h>

/* Lists the rows whose gradient is not all zeros; returns how many. */
static size_t busy_rows(const float *dy, size_t rows, size_t width, size_t *list) {
    size_t n = 0;
    for (size_t i = 0; i < rows; i++) {
        size_t j = 0;
        while (j < width && dy[i * width + j] == 0) j++;
        if (j < width) list[n++] = i;
    }
    return n;
}

/* dx of the listed rows only, which is added to those of all rows. */
static int some_rows(struct back *b, const struct tl_step *s, const float *dy, const size_t *list,
                     size_t n, float *dx) {
    const size_t cols = s->matrix.cols, bytes = n * (s->width + cols) * sizeof(float);
    float *packed = tl_block_cache_take(bytes), *sums;
    int status;
    if (packed == NULL) return tl_fail(b->err, TL_ENOMEM, "no memory for %zu bytes", bytes);
    sums = packed + n * s->width;
    for (size_t i = 0; i < n; i++) {
        memcpy(packed + i * s->width, dy + list[i] * s->width, s->width * sizeof(float));
    }
    status = back_gemm(b, &(struct tl_gemm){.m = n,
                                            .n = cols,
                                            .k = s->width,
                                            .a = packed,
                                            .a_row = s->width,
                                            .a_col = 1,
                                            .weights = &s->matrix,
                                            .c = sums,
                                            .c_row = cols});
    for (size_t i = 0; i < n && status == TL_OK; i++) {
        b->k->add(dx + list[i] * cols, sums + i * cols, dx + list[i] * cols, cols);
    }
    tl_block_cache_give(packed, bytes);
    return status;
}

static int by_input(struct back *b, const struct tl_step *s, const float *dy) {
    const size_t bytes = b->rows * sizeof(size_t);
    size_t *list = tl_block_cache_take(bytes), n;
    float *dx;
    bool fresh;
    int status = TL_OK;
    if (list == NULL) return tl_fail(b->err, TL_ENOMEM, "no memory for %zu rows", b->rows);
    n = busy_rows(dy, b->rows, s->width, list);
    if (n < b->rows) { // of a single logit, for example
        status = back_into(b, s, 0, &dx, NULL);
        if (status == TL_OK && dx != NULL) status = some_rows(b, s, dy, list, n, dx);
    } else {
        status = back_into(b, s, 0, &dx, &fresh);
        if (status == TL_OK && dx != NULL) {
            const struct tl_gemm g = {.m = b->rows,
                                      .n = s->matrix.cols,
                                      .k = s->width,
                                      .a = dy,
                                      .a_row = s->width,
                                      .a_col = 1,
                                      .weights = &s->matrix,
                                      .c = dx,
                                      .c_row = s->matrix.cols,
                                      .add = !fresh};
            status = back_gemm(b, &g);
        }
    }
    tl_block_cache_give(list, bytes);
    return status;
}

int linear_back(struct back *b, const struct tl_step *s) {
    const size_t bytes = b->rows * s->width * sizeof(float);
    const float *scale = s->vectors[2], *dy = back_dy(b, s), *x;
    float *dw = back_weight(b, s, 0), *dbias = back_weight(b, s, 1), *scaled = NULL;
    int status = TL_OK;
    if (dbias != NULL) TL_TRY(back_columns(b, dy, s->width, dbias));
    if (scale != NULL) {
        scaled = tl_block_cache_take(bytes);
        if (scaled == NULL) return tl_fail(b->err, TL_ENOMEM, "no memory for %zu bytes", bytes);
        b->k->unary(TL_FN_SCALE, scale[0], dy, scaled, b->rows * s->width);
        dy = scaled;
    }
    if (dw != NULL) status = back_value(b, s, 0, &x);
    if (dw != NULL && status == TL_OK) {
        const struct tl_gemm g = {.m = s->width,
                                  .n = s->matrix.cols,
                                  .k = b->rows,
                                  .a = dy,
                                  .a_row = 1,
                                  .a_col = s->width,
                                  .b = x,
                                  .b_row = s->matrix.cols,
                                  .b_col = 1,
                                  .c = dw,
                                  .c_row = s->matrix.cols,
                                  .add = true};
        status = back_gemm(b, &g);
    }
    if (status == TL_OK) status = by_input(b, s, dy);
    tl_block_cache_give(scaled, bytes);
    return status;
}
