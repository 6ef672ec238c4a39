/* weights.c - finds the tensors of a model by name, and checks their shapes and types. */
#include "model/weights.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int by_name(const void *a, const void *b) {
    const struct tl_tensor *const *x = a, *const *y = b;
    return strcmp((*x)->name, (*y)->name);
}

int tl_weights_init(struct tl_weights *w, const struct tl_tensor *tensors, size_t n,
                    struct tl_error *err) {
    w->n = n;
    w->sorted = calloc(n ? n : 1, sizeof(*w->sorted));
    if (w->sorted == NULL) return tl_fail(err, TL_ENOMEM, "no memory for a list of %zu tensors", n);
    for (size_t i = 0; i < n; i++) w->sorted[i] = &tensors[i];
    qsort(w->sorted, n, sizeof(*w->sorted), by_name);
    for (size_t i = 1; i < n; i++) {
        const char *name = w->sorted[i]->name;
        if (name[0] == 0 || strcmp(w->sorted[i - 1]->name, name) != 0) continue;
        tl_weights_free(w);
        return tl_fail(err, TL_EARG, "two tensors are named '%s'; expected one", name);
    }
    return TL_OK;
}

void tl_weights_free(struct tl_weights *w) {
    free(w->sorted);
    w->sorted = NULL;
}

const struct tl_tensor *tl_weights_find(const struct tl_weights *w, const char *name) {
    const struct tl_tensor key = {.name = name}, *wanted = &key, **hit;
    hit = bsearch(&wanted, w->sorted, w->n, sizeof(*w->sorted), by_name);
    return hit != NULL ? *hit : NULL;
}

bool tl_weights_has_size(const struct tl_weights *w, const char *name, size_t n) {
    const struct tl_tensor *t = tl_weights_find(w, name);
    return t != NULL && t->n_dims == 1 && t->dims[0] == n;
}

int tl_weights_axes(const struct tl_weights *w, const char *name) {
    const struct tl_tensor *t = tl_weights_find(w, name);
    return t != NULL ? t->n_dims : 0;
}

static int missing(const char *name, struct tl_error *err) {
    char field[130];
    snprintf(field, sizeof(field), "tensor '%.90s'", name);
    return tl_fail_format(err, field, UINT64_MAX, "missing", "the model to have it");
}

/* Shapes in messages are in NumPy's order, rows first. */
static int wrong_shape(const struct tl_tensor *t, const size_t *axes, int n_axes,
                       struct tl_error *err) {
    char shape[100] = "", expected[100] = "", field[130];
    size_t used = 0;
    snprintf(field, sizeof(field), "the shape of tensor '%.90s'", t->name);
    for (int i = t->n_dims - 1; i >= 0 && used < sizeof(shape); i--) {
        used += (size_t)snprintf(shape + used, sizeof(shape) - used, "%s%llu",
                                 i == t->n_dims - 1 ? "" : ", ", (unsigned long long)t->dims[i]);
    }
    used = 0;
    for (int i = 0; i < n_axes && used < sizeof(expected); i++) {
        used += (size_t)snprintf(expected + used, sizeof(expected) - used, "%s%zu",
                                 i == 0 ? "" : ", ", axes[i]);
    }
    return tl_fail_format(err, field, UINT64_MAX, shape, "%s", expected);
}

/* Finds a tensor and checks its shape. */
static int find(const struct tl_weights *w, const char *name, const size_t *axes, int n_axes,
                const struct tl_tensor **out, struct tl_error *err) {
    const struct tl_tensor *t = tl_weights_find(w, name);
    if (t == NULL) return missing(name, err);
    // writers of files leave out leading axes of one
    while (n_axes > t->n_dims && n_axes > 1 && axes[0] == 1) axes++, n_axes--;
    if (t->n_dims != n_axes) return wrong_shape(t, axes, n_axes, err);
    for (int i = 0; i < n_axes; i++) {
        if (t->dims[n_axes - 1 - i] != axes[i]) return wrong_shape(t, axes, n_axes, err);
    }
    *out = t;
    return TL_OK;
}

int tl_weights_array(const struct tl_weights *w, const char *name, const size_t *axes, int n_axes,
                     float **out, struct tl_error *err) {
    const size_t cols = axes[n_axes - 1];
    const struct tl_tensor *t = NULL;
    size_t bytes, row_bytes, rows = 1; // their product is that of the tensor, which fits size_t
    int status = find(w, name, axes, n_axes, &t, err);
    *out = NULL;
    if (status != TL_OK) return status;
    if (!tl_type_row_bytes(t->type, cols, &row_bytes)) {
        return tl_fail(err, TL_ENOSUP, "tensor '%s' has type %s, which cannot be read as numbers",
                       name, t->type->name);
    }
    for (int i = 0; i + 1 < n_axes; i++) rows *= axes[i];
    if (tl_mul_size(cols, sizeof(float), &bytes) && tl_mul_size(bytes, rows, &bytes)) {
        *out = tl_alloc(bytes);
    }
    if (*out == NULL) return tl_fail(err, TL_ENOMEM, "no memory for tensor '%s'", name);
    for (size_t i = 0; i < rows; i++) {
        tl_type_to_f32(t->type, t->data + i * row_bytes, *out + i * cols, cols);
    }
    return TL_OK;
}

int tl_weights_vector(const struct tl_weights *w, const char *name, size_t n, float **out,
                      struct tl_error *err) {
    const struct tl_tensor *t = tl_weights_find(w, name);
    const size_t column[2] = {n, 1};
    if (t != NULL && t->n_dims == 2 && t->dims[0] == 1) {
        return tl_weights_array(w, name, column, 2, out, err);
    }
    return tl_weights_array(w, name, &n, 1, out, err);
}

/* A matrix with all rows of a tensor, whose shape has been checked. */
static int take_matrix(const struct tl_tensor *t, size_t rows, size_t cols, struct tl_matrix *out,
                       struct tl_error *err) {
    const size_t axes[2] = {rows, cols};
    if (t->type->kind < TL_KIND_FLOAT) {
        return tl_fail(err, TL_ENOSUP,
                       "tensor '%s' has type %s, which tinyllm cannot run; convert it to F32",
                       t->name, t->type->name);
    }
    *out = (struct tl_matrix){.type = t->type, .data = t->data, .rows = rows, .cols = cols};
    if (!tl_type_row_bytes(t->type, cols, &out->row_bytes)) return wrong_shape(t, axes, 2, err);
    return TL_OK;
}

int tl_weights_matrix(const struct tl_weights *w, const char *name, size_t rows, size_t cols,
                      struct tl_matrix *out, struct tl_error *err) {
    const size_t axes[2] = {rows, cols};
    const struct tl_tensor *t = tl_weights_find(w, name);
    const bool vector = rows == 1 && t != NULL && t->n_dims == 1; // one row, stored as a vector
    int status = find(w, name, vector ? axes + 1 : axes, vector ? 1 : 2, &t, err);
    return status != TL_OK ? status : take_matrix(t, rows, cols, out, err);
}

int tl_weights_experts(const struct tl_weights *w, const char *name, size_t experts, size_t rows,
                       size_t cols, struct tl_matrix *out, struct tl_error *err) {
    const size_t axes[3] = {experts, rows, cols};
    const struct tl_tensor *t = NULL;
    size_t all = 0;
    int status = find(w, name, axes, 3, &t, err);
    if (status != TL_OK) return status;
    if (!tl_mul_size(experts, rows, &all)) return wrong_shape(t, axes, 3, err);
    return take_matrix(t, all, cols, out, err);
}
