/* ops.h - the table of ops: what a step of each kind needs, how it is checked and how it runs. */
#ifndef TL_OPS_H
#define TL_OPS_H

#include "forward/plan.h"

struct run; // forward/pass.h

/* What a row of an op's value depends on. */
enum tl_scope {
    TL_SCOPE_ROW,     // on the same row of its inputs
    TL_SCOPE_CONTEXT, // on its token or position too, or on positions before it
};

/* What a check may use. The step's reads and counts have been checked. */
struct tl_op_check {
    struct tl_plan *plan; // the steps before this one are complete
    const struct tl_step_spec *spec;
    const struct tl_weights *weights;
    struct tl_error *err;
};

/* An op: how many reads, weights and numbers its steps have, and its functions. */
struct tl_op_info {
    const char *name;
    int reads, weights, numbers;
    enum tl_scope scope;
    /* Loads the tensors and derives the shape of the value. */
    int (*check)(const struct tl_op_check *c, struct tl_step *s);
    /* Runs the region that begins with this step. NULL: never the first of its region. */
    int (*run)(struct run *r, const struct tl_step *s);
    /* The same on a device; NULL: the CPU runs it. All steps of the region can run there. */
    int (*run_device)(struct run *r, const struct tl_step *s);
};

/* ---- for checks: they fail with a message that names the step and its op ---- */

/* The step of read i. */
const struct tl_step *op_read(const struct tl_op_check *c, const struct tl_step *s, int i);

/* Fails with TL_EARG and a message that names the step and its op. */
int tl_op_wrong(const struct tl_op_check *c, const char *what);

/* Reads number i of the step as a size, at least `least`. */
int op_size(const struct tl_op_check *c, const struct tl_step *s, int i, size_t least, size_t *out);
/* Checks that number i is from least to most. */
int op_number(const struct tl_op_check *c, const struct tl_step *s, int i, double least,
              double most);
/* The name of weight i, which the op requires. */
int op_name(const struct tl_op_check *c, int i, const char **name);
/* Loads weight i as a vector of n values, if it is given. */
int op_vector(const struct tl_op_check *c, struct tl_step *s, int i, size_t n);
/* Checks that read i has rows of at least n_axes axes. */
int op_rows(const struct tl_op_check *c, struct tl_step *s, int i, int n_axes);

/* Gives the value of s the first n_axes axes of another value. */
void op_shape(struct tl_step *s, const struct tl_step *from, int n_axes);
/* Whether the axes of a begin with those of b; both have rows. */
bool op_begins_with(const struct tl_step *a, const struct tl_step *b);
bool op_same_shape(const struct tl_step *a, const struct tl_step *b);

extern const struct tl_op_info tl_ops[TL_OP_COUNT];

#endif
