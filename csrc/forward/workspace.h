/* workspace.h - the buffers of one call, which lie in one block. */
#ifndef TL_WORKSPACE_H
#define TL_WORKSPACE_H

#include "forward/pass.h"

/* How the rows of the call are cut, and the bytes of its buffers. r->rows and r->max_keys are set.
 */
int workspace_plan(struct run *r, size_t *bytes);

/* Plans the buffers and makes them; the first session keeps the block for the next call. */
int workspace_make(struct run *r);

/* Rows of the chunk at row0 whose logits are wanted: call->rows[first .. first + count). */
void workspace_wanted(const struct run *r, size_t row0, size_t n, size_t *first, size_t *count);

#endif
