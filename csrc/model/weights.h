/*
 * weights.h - finds the tensors of a model by name, and reads them as vectors or matrices.
 *
 * An error names the tensor, its shape and the expected shape.
 */
#ifndef TL_WEIGHTS_H
#define TL_WEIGHTS_H

#include "base/base.h"
#include "kernels/kernels.h"
#include "types/types.h"

/* A named tensor as a file holds it; dims in the file's order, dims[0] is the row. */
struct tl_tensor {
    const char *name;
    const struct tl_type_info *type;
    int n_dims;
    uint64_t dims[4];
    const uint8_t *data;
};

/* Tensors sorted by name. Borrows the tensors. */
struct tl_weights {
    const struct tl_tensor **sorted; // owns
    size_t n;
};

int tl_weights_init(struct tl_weights *w, const struct tl_tensor *tensors, size_t n,
                    struct tl_error *err);
void tl_weights_free(struct tl_weights *w);

/* The tensor of that name, or NULL. */
const struct tl_tensor *tl_weights_find(const struct tl_weights *w, const char *name);

/* Whether the tensor `name` is there and is a vector of n values. */
bool tl_weights_has_size(const struct tl_weights *w, const char *name, size_t n);

/* How many axes the tensor `name` has; 0 if it is not there. */
int tl_weights_axes(const struct tl_weights *w, const char *name);

/* Reads the tensor `name` of that shape, rows first, as float32 values; tl_free frees *out. */
int tl_weights_array(const struct tl_weights *w, const char *name, const size_t *axes, int n_axes,
                     float **out, struct tl_error *err);

/* The same for one axis of n values, or for a column of them, (n, 1). */
int tl_weights_vector(const struct tl_weights *w, const char *name, size_t n, float **out,
                      struct tl_error *err);

/* Finds the tensor `name` as a matrix of a type that matmul accepts; *out borrows its data. */
int tl_weights_matrix(const struct tl_weights *w, const char *name, size_t rows, size_t cols,
                      struct tl_matrix *out, struct tl_error *err);

/* The same for a tensor (experts, rows, cols): *out has all its rows, one expert after another. */
int tl_weights_experts(const struct tl_weights *w, const char *name, size_t experts, size_t rows,
                       size_t cols, struct tl_matrix *out, struct tl_error *err);

#endif
