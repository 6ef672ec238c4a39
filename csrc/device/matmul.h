/*
 * matmul.h - matrices in the memory of a device, their rows, and their products with activations.
 *
 * The weights stay in the blocks of their type. A matrix that is larger than the largest buffer of
 * the device is cut by rows.
 */
#ifndef TL_DEVICE_MATMUL_H
#define TL_DEVICE_MATMUL_H

#include "device/device.h"
#include "kernels/kernels.h"

/* Rows [first, first + rows) of a matrix. */
struct tl_matrix_part {
    void *buffer; // owns
    size_t first, rows;
};

struct tl_device_matrix {
    struct tl_matrix shape;       // its data stay where they are on the host
    struct tl_matrix_part *parts; // owns
    size_t n_parts;
};

/* Whether there is a kernel for matrices of a type. */
bool tl_device_knows_type(const struct tl_type_info *type);

/* Copies a matrix to the device. */
int tl_device_matrix_new(struct tl_queue *q, const struct tl_matrix *m,
                         struct tl_device_matrix *out, struct tl_error *err);
void tl_device_matrix_free(struct tl_device *d, struct tl_device_matrix *m);

/* y (tokens, cols): the rows of m that `chosen` names, int32 of the device. */
int tl_device_rows(struct tl_queue *q, const struct tl_device_matrix *m, const void *chosen,
                   size_t tokens, void *y, struct tl_error *err);

/* Activations as the matmuls of quantized types read them. All zeros: no memory yet. */
struct tl_packed {
    bool fast;                  // for fast mode
    struct tl_room words, sums; // of fast mode: bytes
    struct tl_room exponents;   // of fast mode: scales
};

void tl_packed_free(struct tl_device *d, struct tl_packed *p);

/* Packs x (tokens, cols), for all types that are not floats and for the mode of packed->fast. */
int tl_device_pack(struct tl_queue *q, const void *x, size_t cols, size_t tokens,
                   struct tl_packed *packed, struct tl_error *err);

/* y (tokens, rows) = x (tokens, cols) times the rows of m; x is packed unless m has floats. */
int tl_device_matmul(struct tl_queue *q, const struct tl_device_matrix *m, const void *x,
                     const struct tl_packed *packed, size_t tokens, void *y, struct tl_error *err);

/* Pairs of a token and one of its `used` experts. */
struct tl_device_pairs {
    size_t pairs, experts, used;
    bool own;              // each pair has its own activations; else those of a token are shared
    size_t together;       // pairs of a work-group
    size_t room;           // places of the sorted pairs: see sort_pairs in router.cl
    struct tl_room sorted; // ints: the expert of each pair, the sorted pairs, a count per expert
};

/* Sorts the pairs by their expert. ids: the expert of each pair as float32; NULL: pair i has expert
   i mod `used`. The caller has set the numbers before `together`. */
int tl_device_sort_pairs(struct tl_queue *q, const void *ids, struct tl_device_pairs *pairs,
                         struct tl_error *err);

/* As tl_device_matmul, y (pairs, size): the matrix of expert e is `size` rows of m from row
   e * all + first on. */
int tl_device_matmul_experts(struct tl_queue *q, const struct tl_device_matrix *m, const void *x,
                             const struct tl_packed *packed, const struct tl_device_pairs *pairs,
                             size_t first, size_t size, size_t all, void *y, struct tl_error *err);

#endif
