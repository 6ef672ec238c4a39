/* experts.h - matmuls with the matrices of the experts that were chosen for each token. */
#ifndef TL_EXPERTS_H
#define TL_EXPERTS_H

#include "forward/ops.h"
#include "forward/pass.h"

int experts_check(const struct tl_op_check *c, struct tl_step *s);

/* Runs the steps of one region. */
int head_linear_check(const struct tl_op_check *c, struct tl_step *s);

int experts_run(struct run *r, const struct tl_step *s);

/* Whether two steps can share a region: they have one input and one type of weights. */
bool experts_share(const struct tl_step *a, const struct tl_step *b);

/* Enlarges the planned buffers for a step with `rows` rows. */
void experts_plan(struct run *r, const struct tl_step *s, size_t rows);

#endif
