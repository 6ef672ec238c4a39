/* forward.h - running the tokens of several sessions through a plan. */
#ifndef TL_FORWARD_H
#define TL_FORWARD_H

#include "forward/session.h"

/* Tokens of one session. Several pieces run together: a ragged batch. */
struct tl_piece {
    struct tl_session *session;
    const int32_t *tokens;
    size_t n;               // >= 1
    float *const *matrices; // (matrices of the plan) captures (H, n, S), each may be NULL; or NULL
};

/*
 * Called on the calling thread after a step that is edited. It may change `values`, which later
 * steps read: all T rows of the call, with piece -1, or the matrix (H, n, S) of one piece.
 * A result other than 0 stops the call.
 */
typedef int tl_edit_fn(void *user, size_t step, int piece, float *values);

/* The arguments of a call. Its T rows are the tokens of all pieces, one piece after another. */
struct tl_call {
    int threads;             // at most this many, >= 1
    const size_t *rows;      // (n_rows) the rows whose logits are wanted, in rising order
    size_t n_rows;           //
    float *logits;           // (n_rows, V) output
    float *const *captures;  // (steps) arrays with T rows, each may be NULL; or NULL
    const uint8_t *edits;    // (steps) not 0: the step is edited; or NULL. The last step is edited
                             // in the array that captures it, scores or softmax in the arrays
                             // that capture them, both of which every piece must then have
    tl_edit_fn *edit;        // called for these steps
    void *edit_user;         //
    int (*poll)(void *user); // called often on the calling thread; not 0: stop; may be NULL
    void *poll_user;         //
    size_t *progress;        // counts the finished layers times rows, for poll; may be NULL
    size_t first_layer;      // the call starts here ...
    const float *resid;      // ... from this residual stream (T, D) instead of the embedding;
                             // NULL: from the tokens, and first_layer is 0
};

/*
 * Appends the tokens of each piece to its session and computes their values. If the call fails, or
 * a callback stops it, every session is as before. No two pieces may have the same session.
 */
int tl_forward(const struct tl_plan *p, const struct tl_piece *pieces, size_t n_pieces,
               const struct tl_call *call, struct tl_error *err);

/* Computes the bytes of the kv cache and of the buffers for a prompt of `tokens` tokens. */
int tl_forward_bytes(const struct tl_plan *p, size_t tokens, int threads, size_t *cache,
                     size_t *work, struct tl_error *err);

#endif
