/* recurrent.h - ops whose value depends on a state: short convolution and gated delta rule. */
#ifndef TL_RECURRENT_H
#define TL_RECURRENT_H

#include "forward/ops.h"

int conv_check(const struct tl_op_check *c, struct tl_step *s);
int conv_run(struct run *r, const struct tl_step *s);
int decay_check(const struct tl_op_check *c, struct tl_step *s);
int decay_run(struct run *r, const struct tl_step *s);
int delta_check(const struct tl_op_check *c, struct tl_step *s);
int delta_run(struct run *r, const struct tl_step *s);

#endif
