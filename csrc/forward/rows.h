/* rows.h - ops that move values without computing: see rows.c. */
#ifndef TL_ROWS_H
#define TL_ROWS_H

#include "forward/ops.h"
#include "forward/pass.h"

int embed_check(const struct tl_op_check *c, struct tl_step *s);
/* The row of the table for token t of a span. */
size_t embed_row(const struct tl_step *s, const struct span *span, size_t t);
int embed_run(struct run *r, const struct tl_step *s);
int same_check(const struct tl_op_check *c, struct tl_step *s);
int same_run(struct run *r, const struct tl_step *s);
int shape_check(const struct tl_op_check *c, struct tl_step *s);
int slice_check(const struct tl_op_check *c, struct tl_step *s);
int slice_run(struct run *r, const struct tl_step *s);
int concat_check(const struct tl_op_check *c, struct tl_step *s);
int concat_run(struct run *r, const struct tl_step *s);

#endif
