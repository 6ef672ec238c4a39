/* scan.h - the state space models of Mamba, and RWKV's recurrence: see scan.c. */
#ifndef TL_SCAN_H
#define TL_SCAN_H

#include "forward/ops.h"

int scan_check(const struct tl_op_check *c, struct tl_step *s);
int scan_run(struct run *r, const struct tl_step *s);
int scan_channels_check(const struct tl_op_check *c, struct tl_step *s);
int scan_channels_run(struct run *r, const struct tl_step *s);
int wkv_check(const struct tl_op_check *c, struct tl_step *s);
int wkv_run(struct run *r, const struct tl_step *s);

#endif
