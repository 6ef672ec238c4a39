/* workspace.h - the buffers of one call, in one block of memory. */
#ifndef TL_WORKSPACE_H
#define TL_WORKSPACE_H

#include "forward/pass.h"

/* Decides how the rows are cut into chunks, and the sizes of the buffers; *bytes is their sum.
   Needs r->rows and r->max_keys. */
int workspace_plan(struct run *r, size_t *bytes);

/* Plans and allocates the buffers; the first piece's session keeps them for its next call. */
int workspace_make(struct run *r);

/* Finds the rows of a chunk whose logits are wanted: call->rows[first .. first + count). */
void workspace_wanted(const struct run *r, size_t row0, size_t n, size_t *first, size_t *count);

#endif
