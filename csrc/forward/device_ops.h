/* device_ops.h - the functions that run an op on a device: the column run_device of tl_ops. */
#ifndef TL_DEVICE_OPS_H
#define TL_DEVICE_OPS_H

#include "forward/plan.h"

struct run; // forward/pass.h

int embed_run_device(struct run *r, const struct tl_step *s);
int add_run_device(struct run *r, const struct tl_step *s);
int unary_run_device(struct run *r, const struct tl_step *s);
int act_run_device(struct run *r, const struct tl_step *s);
int softplus_run_device(struct run *r, const struct tl_step *s);
int exp_run_device(struct run *r, const struct tl_step *s);
int xielu_run_device(struct run *r, const struct tl_step *s);
int decay_run_device(struct run *r, const struct tl_step *s);
int scale_run_device(struct run *r, const struct tl_step *s);
int temper_run_device(struct run *r, const struct tl_step *s);
int same_run_device(struct run *r, const struct tl_step *s); // and shape
int slice_run_device(struct run *r, const struct tl_step *s);
int concat_run_device(struct run *r, const struct tl_step *s);
int combine_run_device(struct run *r, const struct tl_step *s);
int weighted_sum_run_device(struct run *r, const struct tl_step *s);
int add_shared_run_device(struct run *r, const struct tl_step *s);
int match_rms_run_device(struct run *r, const struct tl_step *s);
int sparsify_run_device(struct run *r, const struct tl_step *s);
int norm_scale_run_device(struct run *r, const struct tl_step *s);
int norm_mean_run_device(struct run *r, const struct tl_step *s);
int layer_scale_run_device(struct run *r, const struct tl_step *s);
int norm_run_device(struct run *r, const struct tl_step *s);
int layer_norm_run_device(struct run *r, const struct tl_step *s);
int linear_run_device(struct run *r, const struct tl_step *s);
int rope_run_device(struct run *r, const struct tl_step *s);

/* device_attention.c */
int cache_run_device(struct run *r, const struct tl_step *s);
int attention_run_device(struct run *r, const struct tl_step *s);
/* Softmax of `vectors` vectors of n values, in their place. */
int device_softmax(struct run *r, const void *values, size_t vectors, size_t n);

/* device_router.c */
int route_probs_run_device(struct run *r, const struct tl_step *s);
int route_ids_run_device(struct run *r, const struct tl_step *s);
int route_weights_run_device(struct run *r, const struct tl_step *s);
int experts_run_device(struct run *r, const struct tl_step *s); // and head_linear

/* device_recurrent.c */
int conv_run_device(struct run *r, const struct tl_step *s);
int shift_run_device(struct run *r, const struct tl_step *s);
int delta_run_device(struct run *r, const struct tl_step *s);
int scan_run_device(struct run *r, const struct tl_step *s);
int scan_channels_run_device(struct run *r, const struct tl_step *s);
int wkv_run_device(struct run *r, const struct tl_step *s);

#endif
