/* linear.h - matmuls; consecutive ones of one input run as one parallel region. */
#ifndef TL_LINEAR_H
#define TL_LINEAR_H

#include "forward/ops.h"
#include "forward/pass.h"

int linear_check(const struct tl_op_check *c, struct tl_step *s);

/* Runs the linear steps of one region. */
int linear_run(struct run *r, const struct tl_step *s);

/* Prefetches the rows of a matrix that this thread is likely to start with, for one token. */
void linear_prefetch(const struct run *r, const struct tl_matrix *w, int thread);

/* Enlarges the planned buffers for the matmul of a step with `rows` rows. */
void linear_plan(struct run *r, const struct tl_step *s, size_t rows);

#endif
