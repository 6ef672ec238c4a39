/* rope.h - rotary position embedding. */
#ifndef TL_ROPE_H
#define TL_ROPE_H

#include "forward/ops.h"
#include "forward/pass.h"

int rope_check(const struct tl_op_check *c, struct tl_step *s);
int rope_run(struct run *r, const struct tl_step *s);

/* Computes cos and sin of all rope tables for the positions of the chunk. */
int rope_angles(struct run *r);

#endif
