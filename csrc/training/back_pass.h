/*
 * back_pass.h - one backward pass: what the files of training/ share.
 *
 * The function of an op reads the gradient of its step, and adds to those of the values that the
 * step reads. Sums over rows are divided among tasks by columns, never by rows, so the bits depend
 * on no number of threads.
 */
#ifndef TL_BACK_PASS_H
#define TL_BACK_PASS_H

#include "base/pool.h"
#include "forward/ops.h"
#include "forward/pass.h"
#include "training/back.h"
#include "training/gemm.h"
#include "training/loops.h"

/* A call while it runs. */
struct back {
    const struct tl_plan *p;
    const struct tl_kernels *k;
    const struct tl_back_call *call;
    struct tl_error *err;
    tl_gemm_fn *gemm;
    const struct tl_loops *loops;
    size_t rows;      // T, over all pieces
    size_t longest;   // tokens of the longest piece
    size_t *starts;   // (pieces) the first row of each
    bool *needed;     // (steps) whether the gradient of a value is of use
    float **grads;    // (steps) NULL: no gradient so far, or given back
    float **cos_sin;  // (ropes) (longest, rotated / 2, 2); NULL: not made yet
    uint8_t *scratch; // (threads, thread_bytes)
    size_t thread_bytes;
};

/* The gradient of a step's value. */
static inline float *back_dy(const struct back *b, const struct tl_step *s) {
    return b->grads[s - b->p->steps];
}

static inline const struct tl_step *back_step(const struct back *b, const struct tl_step *s,
                                              int i) {
    return &b->p->steps[s->in[i]];
}

/* The value of read i; TL_EARG if it was not given. */
int back_value(const struct back *b, const struct tl_step *s, int i, const float **out);

/*
 * The gradient of read i, to which the caller adds; NULL if it is of no use. With `fresh`, the
 * array may be new and not cleared: then *fresh is true, and the caller sets all of it.
 */
int back_into(struct back *b, const struct tl_step *s, int i, float **out, bool *fresh);

/* Adds the step's own gradient to that of read i. Moved, it may become the other one. */
int back_copy(struct back *b, const struct tl_step *s, int i);
int back_move(struct back *b, const struct tl_step *s, int i);

/* Makes the step's gradient one that may be changed: what is the caller's is copied. */
int back_own(struct back *b, const struct tl_step *s);

/* Where the derivative by weight i is added; NULL if it is not wanted. */
static inline float *back_weight(const struct back *b, const struct tl_step *s, int i) {
    const size_t step = (size_t)(s - b->p->steps);
    return b->call->weights != NULL ? b->call->weights[step * TL_STEP_WEIGHTS + (size_t)i] : NULL;
}

/* The piece of a row, and the row's position in it. */
size_t back_position(const struct back *b, size_t row, size_t *piece);

int back_tasks(struct back *b, size_t tasks, tl_task_fn *fn, void *arg);

/* Works on items [first, last). */
typedef void back_range_fn(struct back *b, const void *arg, size_t first, size_t last);

/* Calls fn for `items` items of about `work` multiplications each; on the pool if they are many. */
int back_ranges(struct back *b, size_t items, size_t work, back_range_fn *fn, const void *arg);

/* The product, divided among the threads. */
int back_gemm(struct back *b, const struct tl_gemm *g);

/* Columns of which a task computes the sums: it reads whole lines of memory. */
#define BACK_COLUMNS 32

/* Adds the sums of the columns of x (rows, n) to `to`. */
int back_columns(struct back *b, const float *x, size_t n, float *to);

typedef int back_fn(struct back *b, const struct tl_step *s);

back_fn embed_back, same_back, slice_back; // back_rows.c
back_fn norm_scale_back, norm_back, norm_mean_back, layer_scale_back,
    layer_norm_back;                                                           // back_norm.c
back_fn linear_back;                                                           // back_linear.c
back_fn add_back, act_back, unary_back, scale_back, temper_back, rope_back;    // back_elementwise.c
back_fn concat_back, conv_back, shift_back;                                    // back_rows.c
back_fn route_probs_back, route_weights_back, experts_back, weighted_sum_back; // back_experts.c
back_fn softplus_back, xielu_back, exp_back;                                   // back_elementwise.c
back_fn decay_back, delta_back;                                                // back_recurrent.c
back_fn scan_back, scan_channels_back, wkv_back;                               // back_scan.c
back_fn combine_back, add_shared_back, match_rms_back, sparsify_back;          // back_streams.c
back_fn mix_back;                                                              // back_attention.c

/* Bytes of scratch that a thread needs for attention. */
size_t back_attention_scratch(const struct back *b);

#endif
