/* recurrent.h - ops whose value depends on a state: short convolution, token shift, delta rule. */
#ifndef TL_RECURRENT_H
#define TL_RECURRENT_H

#include "forward/ops.h"
#include "forward/pass.h"

/* What all ops with a state share. */

/* Whether the steps of an op have a state. */
bool recurrent_op(enum tl_op op);
/* Adds a state of these axes to the plan and gives it to the step. */
int recurrent_add_state(const struct tl_op_check *c, struct tl_step *s, const size_t *axes,
                        int n_axes);
/* The state before the rows of a span. It may be the same memory as the one after them. */
const float *recurrent_before(const struct tl_step *s, const struct span *span);
/* After how many rows of the span the session keeps a copy of the state; 0: after none. */
size_t recurrent_mark(const struct span *span);

int conv_check(const struct tl_op_check *c, struct tl_step *s);
int conv_run(struct run *r, const struct tl_step *s);
int shift_check(const struct tl_op_check *c, struct tl_step *s);
int shift_run(struct run *r, const struct tl_step *s);
int decay_check(const struct tl_op_check *c, struct tl_step *s);
int decay_run(struct run *r, const struct tl_step *s);
int delta_check(const struct tl_op_check *c, struct tl_step *s);
int delta_run(struct run *r, const struct tl_step *s);

#endif
