/* router.h - the ops that choose experts for each token, and that sum their results. */
#ifndef TL_ROUTER_H
#define TL_ROUTER_H

#include "forward/ops.h"
#include "forward/pass.h"

int route_probs_check(const struct tl_op_check *c, struct tl_step *s);
int route_probs_run(struct run *r, const struct tl_step *s);
int route_ids_check(const struct tl_op_check *c, struct tl_step *s);
int route_ids_run(struct run *r, const struct tl_step *s);
int route_weights_check(const struct tl_op_check *c, struct tl_step *s);
int route_weights_run(struct run *r, const struct tl_step *s);
int weighted_sum_check(const struct tl_op_check *c, struct tl_step *s);
int weighted_sum_run(struct run *r, const struct tl_step *s);

/* Number 0 of route_probs, and number 1 of route_weights: how weights are made from logits. */
enum { ROUTE_SOFTMAX, ROUTE_SIGMOID };
enum { ROUTE_NOT_FROM_LOGITS, ROUTE_SOFTMAX_OF_CHOSEN, ROUTE_MIXER };

/* Checks that read i is a step of route_ids, whose experts and ranks are then *experts and *used.
 */
int router_read(const struct tl_op_check *c, const struct tl_step *s, int i, size_t *experts,
                size_t *used);

/*
 * Copies the ids that read i of a step holds for this chunk into r->expert_ids. TL_EARG if an edit
 * has made them something else than different experts per token. Steps index memory only with the
 * copy, because the values belong to the caller where they are captured.
 */
int router_ids(struct run *r, const struct tl_step *s, int i);

/* Enlarges the planned buffers for a step of route_ids with `rows` rows. */
void router_plan(struct run *r, const struct tl_step *s, size_t rows);

#endif
