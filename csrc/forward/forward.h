/* forward.h - running the tokens of several sessions through a plan. */
#ifndef TL_FORWARD_H
#define TL_FORWARD_H

#include "forward/session.h"

/* Tokens of one session. Several pieces run together: a ragged batch. */
struct tl_piece {
    struct tl_session *session;
    const int32_t *tokens;
    size_t n;               // >= 1
    float *const *matrices; // (matrices of the plan) arrays (H, n, S) or NULL; or NULL
};

/*
 * Called between two steps, on the calling thread, when a step is edited: `values` is what later
 * steps will read. Rows: all T rows of the call, piece is -1. Matrices: one piece, (H, n, S).
 * Non-zero stops the call.
 */
typedef int tl_edit_fn(void *user, size_t step, int piece, float *values);

struct tl_call {
    int threads;             // at most this many, >= 1
    const size_t *rows;      // (n_rows) rising row numbers of the call whose logits are wanted
    size_t n_rows;           //
    float *logits;           // (n_rows, V)
    float *const *captures;  // (steps) arrays with T rows or NULL; or NULL
    const uint8_t *edits;    // (steps) non-zero: edited; or NULL. Scores, softmax and the last step
                             // are edited in the arrays that capture them
    tl_edit_fn *edit;        //
    void *edit_user;         //
    int (*poll)(void *user); // called often on the calling thread; non-zero stops; may be NULL
    void *poll_user;         //
    size_t *progress;        // counts layers times rows that are done, for poll; may be NULL
    size_t first_layer;      // start here ...
    const float *resid;      // ... from this residual stream (T, D) instead of the embedding;
                             // NULL: from the tokens
};

/*
 * Runs the tokens of all pieces after what their sessions hold, and appends them. If it fails,
 * or a callback stops it, every session is as before. The pieces' sessions differ.
 */
int tl_forward(const struct tl_plan *p, const struct tl_piece *pieces, size_t n_pieces,
               const struct tl_call *call, struct tl_error *err);

/* Bytes of the kv cache and of the buffers of a prompt of `tokens` tokens. */
int tl_forward_bytes(const struct tl_plan *p, size_t tokens, int threads, size_t *cache,
                     size_t *work, struct tl_error *err);

#endif
