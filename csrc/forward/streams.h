/* streams.h - ops of models whose blocks pass on several streams: see streams.c. */
#ifndef TL_STREAMS_H
#define TL_STREAMS_H

#include "forward/ops.h"

int combine_check(const struct tl_op_check *c, struct tl_step *s);
int combine_run(struct run *r, const struct tl_step *s);
int add_shared_check(const struct tl_op_check *c, struct tl_step *s);
int add_shared_run(struct run *r, const struct tl_step *s);
int match_rms_check(const struct tl_op_check *c, struct tl_step *s);
int match_rms_run(struct run *r, const struct tl_step *s);
int sparsify_check(const struct tl_op_check *c, struct tl_step *s);
int sparsify_run(struct run *r, const struct tl_step *s);

#endif
