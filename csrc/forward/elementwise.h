/* elementwise.h - ops that compute each value from values at the same place: see elementwise.c. */
#ifndef TL_ELEMENTWISE_H
#define TL_ELEMENTWISE_H

#include "forward/ops.h"

int add_check(const struct tl_op_check *c, struct tl_step *s);
int add_run(struct run *r, const struct tl_step *s);
int act_check(const struct tl_op_check *c, struct tl_step *s);
int act_run(struct run *r, const struct tl_step *s);
int unary_check(const struct tl_op_check *c, struct tl_step *s);
int unary_run(struct run *r, const struct tl_step *s);
int scale_check(const struct tl_op_check *c, struct tl_step *s);
int scale_run(struct run *r, const struct tl_step *s);
int softplus_check(const struct tl_op_check *c, struct tl_step *s);
int softplus_run(struct run *r, const struct tl_step *s);
int exp_check(const struct tl_op_check *c, struct tl_step *s);
int exp_run(struct run *r, const struct tl_step *s);
int xielu_check(const struct tl_op_check *c, struct tl_step *s);
int xielu_run(struct run *r, const struct tl_step *s);
int temper_check(const struct tl_op_check *c, struct tl_step *s);
int temper_run(struct run *r, const struct tl_step *s);
/* The factor of a temper step with these numbers at a position. */
float temper_factor(const double *numbers, size_t position);

#endif
