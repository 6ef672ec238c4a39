/*
 * loops.h - the loops of the backward pass over vectors, compiled once per instruction set.
 *
 * Every set gives the same bits: a sum has sixteen lanes of float64, added in order at the end.
 * With `fresh` an array is set, else it is added to.
 */
#ifndef TL_LOOPS_H
#define TL_LOOPS_H

#include "kernels/kernels.h"

/* Vectors of a norm y = (x - mean) * scale * weight + bias. */
struct tl_norm_vectors {
    const float *x, *dy;         // the first value of the first vector
    const float *means, *scales; // of the first vector; means may be NULL
    size_t count;                // of vectors
    size_t stride;               // values from one to the next
    size_t step;                 // means and scales from one to the next
};

struct tl_loops {
    /* to (n) += the sums of the columns of x (rows, n), whose rows are `stride` apart. */
    void (*columns)(const float *x, size_t rows, size_t stride, size_t n, float *to);
    /* to (n) = a * b * c; c may be NULL. */
    void (*product)(const float *a, const float *b, const float *c, size_t n, bool fresh,
                    float *to);
    /* to (n) = factor * (x - mean) */
    void (*shifted)(const float *x, size_t n, float mean, float factor, bool fresh, float *to);
    /* One vector of a norm: dx = dy w scale. sums: of dy w (x - mean), and of dy w. w, dx may be
       NULL. */
    void (*norm)(const float *x, const float *w, const float *dy, size_t n, float mean, float scale,
                 bool fresh, float *dx, double sums[2]);
    /* Adds the derivatives by columns [first, last) of the weight and the bias of a norm. dw or
       dbias may be NULL. */
    void (*norm_weight)(const struct tl_norm_vectors *v, size_t first, size_t last, float *dw,
                        float *dbias);
    /* Of one query, from the gradient of its probs to that of its scores:
       d = probs (d - sum of probs d). */
    void (*softmax)(const float *probs, size_t n, float *d);
    /* The derivative of a function, from y = f(x); s is scratch: sigmoid(x) for SILU, sigmoid of
       what `inner` gives for GELU_TANH. */
    void (*inner)(const float *x, size_t n, float *to);
    void (*slope)(enum tl_function f, float p, const float *x, const float *y, const float *s,
                  size_t n, float *to);
};

/* The loops for the instructions of a set of kernels. */
const struct tl_loops *tl_loops_find(const struct tl_kernels *k);

/* Each gemm_<set>.c defines one. */
extern const struct tl_loops tl_loops_plain, tl_loops_scalar, tl_loops_avx2, tl_loops_avx512,
    tl_loops_neon;

#endif
