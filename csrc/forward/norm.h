/* norm.h - RMS norm, L2 norm and LayerNorm: see norm.c. */
#ifndef TL_NORM_H
#define TL_NORM_H

#include "forward/ops.h"

int norm_scale_check(const struct tl_op_check *c, struct tl_step *s);
int norm_scale_run(struct run *r, const struct tl_step *s);
int norm_check(const struct tl_op_check *c, struct tl_step *s);
int norm_run(struct run *r, const struct tl_step *s);
int norm_mean_check(const struct tl_op_check *c, struct tl_step *s);
int norm_mean_run(struct run *r, const struct tl_step *s);
int layer_scale_check(const struct tl_op_check *c, struct tl_step *s);
int layer_scale_run(struct run *r, const struct tl_step *s);
int layer_norm_check(const struct tl_op_check *c, struct tl_step *s);
int layer_norm_run(struct run *r, const struct tl_step *s);

#endif
