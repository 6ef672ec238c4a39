/*
 * optimizer.h - what a training step does besides the two passes: the loss, dropout, new weights.
 *
 * No result depends on the number of threads: a sum belongs to one thread, and its parts are added
 * in order.
 */
#ifndef TL_OPTIMIZER_H
#define TL_OPTIMIZER_H

#include "kernels/kernels.h"

/*
 * losses[i] = -log p of target i, in nats, and gradient (rows, vocab) = scale * its derivative by
 * the logits (rows, vocab). A target below 0 is masked: its loss and gradient are 0. `gradient` may
 * be NULL. Targets are below `vocab`.
 */
struct tl_loss {
    const float *logits;
    const int32_t *targets;
    size_t rows, vocab;
    float scale;
    double *losses;
    float *gradient;
};

int tl_loss_run(const struct tl_kernels *k, const struct tl_loss *l, int threads,
                struct tl_error *err);

/*
 * Dropout (Srivastava et al. 2014, jmlr.org/papers/v15/srivastava14a.html): sets values to 0 with
 * probability `rate`, and divides the others by 1 - rate. Whether value i is dropped depends only
 * on `key` and first + i, so the same call drops the same values of a gradient. Value i takes half
 * of output i / 2 of SplitMix64 (Steele, Lea and Flood 2014, doi:10.1145/2660193.2660195) with the
 * seed `key`.
 */
struct tl_dropout {
    float *x;
    size_t n;
    uint64_t key, first;
    double rate; // 0 to below 1
};

int tl_dropout_run(const struct tl_dropout *d, int threads, struct tl_error *err);

/* The sum of the squares of n values. */
double tl_sum_squares(const float *x, size_t n);

/*
 * AdamW (Loshchilov and Hutter 2019, arXiv:1711.05101), as PyTorch computes it:
 *   w = w (1 - rate decay),  m = beta1 m + (1 - beta1) g,  v = beta2 v + (1 - beta2) g^2
 *   w = w - rate / (1 - beta1^step) m / (sqrt(v) / sqrt(1 - beta2^step) + epsilon)
 */
struct tl_adamw {
    double rate, beta1, beta2, epsilon;
    double scale;  // multiplies the gradients: clipping
    uint64_t step; // from 1
};

/* One array of weights, its gradient and its moments. */
struct tl_adamw_item {
    float *w, *m, *v;
    const float *g;
    size_t n;
    double decay;
};

int tl_adamw_run(const struct tl_adamw *a, const struct tl_adamw_item *items, size_t n, int threads,
                 struct tl_error *err);

/*
 * Muon (Jordan et al. 2024, kellerjordan.github.io/posts/muon): momentum, Nesterov's, whose matrix
 * is made nearly orthogonal by five steps of a Newton-Schulz iteration of degree 5:
 *   m = m + (1 - momentum) (g - m),  u = g + momentum (m - g)
 *   w = w (1 - rate decay) - rate sqrt(max(1, rows / cols)) orthogonal(u)
 */
struct tl_muon {
    double rate, momentum;
    double scale; // multiplies the gradients
};

/* A matrix (rows, cols), its gradient and its momentum. */
struct tl_muon_item {
    float *w, *m;
    const float *g;
    size_t rows, cols;
    double decay;
};

int tl_muon_run(const struct tl_kernels *k, const struct tl_muon *a,
                const struct tl_muon_item *items, size_t n, int threads, struct tl_error *err);

#endif
