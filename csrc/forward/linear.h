/* linear.h - matmuls: neighbouring ones of one input as one parallel region. */
#ifndef TL_LINEAR_H
#define TL_LINEAR_H

#include "forward/pass.h"

/* Runs the linear steps of one region. */
int linear_run(struct run *r, const struct tl_step *s);

/* Enlarges the buffers of the workspace for the matmul of a step with that many rows. */
void linear_plan(struct run *r, const struct tl_step *s, size_t rows);

#endif
