/*
 * back.h - the backward pass: derivatives of one number by the values and weights of a plan.
 *
 * The steps are walked from the last one to the first. Each has a gradient, the derivative by its
 * value, which is complete once all steps that read the value have been walked. The pieces are
 * whole contexts: their first tokens are at position 0.
 */
#ifndef TL_BACK_H
#define TL_BACK_H

#include "forward/plan.h"

/* One context of a call. Its arrays of (matrices of the plan) are (H, n, n); each may be NULL. */
struct tl_back_piece {
    const int32_t *tokens;
    size_t n;
    const float *const *matrices; // scores and probs, as the forward pass wrote them
    const float *const *seeds;    // added to their gradients
    float *const *captures;       // where their gradients are wanted
};

/* Turns the gradient of an edited value into that of the value before the edit, in place: that of
   all rows, with piece -1, or the matrix of one piece. Not 0: stop. */
typedef int tl_back_edit_fn(void *user, size_t step, int piece, float *gradient);

struct tl_back_call {
    int threads;
    const struct tl_back_piece *pieces;
    size_t n_pieces;
    const float *const *values; // (steps) with T rows; those that the backward pass reads
    const float *const *seeds;  // (steps) the derivative by each value, directly; NULL: 0
    float *const *captures;     // (steps) where gradients are wanted; NULL
    float *const *weights; // (steps, TL_STEP_WEIGHTS) what the derivatives by weights are added
                           // to: as the step uses the weight, rows first; NULL
    const uint8_t *edits;  // (steps) not 0: the forward pass has edited the value
    tl_back_edit_fn *edit;
    void *edit_user;
    int (*poll)(void *user); // as in struct tl_call
    void *poll_user;
};

/* TL_ENOSUP if the gradient of an op on the way is not known, TL_EARG if a value is missing. */
int tl_backward(const struct tl_plan *p, const struct tl_back_call *call, struct tl_error *err);

#endif
