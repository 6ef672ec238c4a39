/*
 * pass.h - one call of the forward pass: what the files of forward/ share.
 *
 * The rows (tokens) of all pieces run through the steps together, a chunk at a time. Every step
 * writes where pass_out says: into the caller's array when its value is captured, else into
 * scratch. When the value is complete, pass_done lets an edit change what later steps read.
 */
#ifndef TL_PASS_H
#define TL_PASS_H

#include "forward/forward.h"

/* The rows of one piece that lie in the current chunk. */
struct span {
    const struct tl_piece *piece;
    int index;         // of the piece
    size_t row;        // first row, within the chunk
    size_t n;          // rows
    size_t done;       // rows of the piece before these
    size_t position;   // of the first row, in its session
    size_t first_task; // of attention
};

/* Which group of matmuls a thread has packed activations for; fills a cache line. */
struct stamp {
    size_t group;
    char rest[64 - sizeof(size_t)];
};

/* A call while it runs. */
struct run {
    const struct tl_plan *p;
    const struct tl_kernels *k;
    const struct tl_piece *pieces;
    size_t n_pieces;
    const struct tl_call *call;
    struct tl_error *err;
    size_t rows;           // T, over all pieces
    size_t chunk;          // most rows that run through the layers at once
    size_t max_keys;       // positions of the longest context, rounded up to TL_BLOCK
    size_t tile;           // queries per attention task
    size_t pack_bytes;     // of the packed activations of several tokens
    size_t pack_one_bytes; // of the packed activations of one token, for each thread
    size_t thread_bytes;   // scratch of each thread
    size_t shared_bytes;   // of attention, for all threads
    size_t experts, pairs; // of a token and an expert: most in one step

    // the workspace
    const float **values; // (steps) the value of each step for the current chunk
    float **slots;        // (slots) scratch memory (chunk, floats of the slot)
    float **cos_sin;      // (ropes) (chunk, rotated / 2, 2)
    float *gathered;      // (chunk, p->gathered) rows whose logits are wanted
    float *logits;        // where the last step writes, unless it is captured
    struct span *spans;   // (n_pieces)
    uint8_t *packed;
    uint8_t *packed_one;  // (threads, pack_one_bytes)
    struct stamp *stamps; // (threads)
    uint8_t *scratch;     // (threads, thread_bytes)
    float *shared;        // (shared_bytes)
    uint32_t *expert_ids; // (pairs) checked ids: see router.h
    size_t *expert_seen;  // (experts)
    size_t *expert_pairs; // (pairs) sorted by expert
    size_t *expert_first; // (experts + 1)

    // the current chunk
    size_t row0; // its first row, of all rows
    size_t n;    // rows that the steps work on
    size_t n_spans;

    size_t groups; // of matmuls so far

    struct device_run *device; // device_run.h; NULL: all steps run on the CPU
};

/* Returns from the function around it if `call` fails. */
#define TL_TRY(call)                                                                               \
    do {                                                                                           \
        int status_ = (call);                                                                      \
        if (status_ != TL_OK) return status_;                                                      \
    } while (0)

static inline size_t pass_index(const struct run *r, const struct tl_step *s) {
    return (size_t)(s - r->p->steps);
}

static inline bool pass_captured(const struct run *r, const struct tl_step *s) {
    return r->call->captures != NULL && r->call->captures[pass_index(r, s)] != NULL;
}

static inline bool pass_edited(const struct run *r, const struct tl_step *s) {
    return r->call->edits != NULL && r->call->edits[pass_index(r, s)] != 0;
}

/* The value of a step's i-th read. */
static inline const float *pass_in(const struct run *r, const struct tl_step *s, int i) {
    return r->values[s->in[i]];
}

/* Where a step writes its value for this chunk, and where later steps read it. */
float *pass_out(struct run *r, const struct tl_step *s);

/* Called when the value of a step is complete: runs its edit, if it has one. */
int pass_done(struct run *r, const struct tl_step *s, float *values);

/* Runs tasks on the pool, and polls between them; TL_ESTOP if the poll asks to stop. */
int pass_tasks(struct run *r, size_t tasks, void (*fn)(void *arg, size_t task, int thread),
               void *arg);

/* From this many multiplications on, a loop runs on the pool. */
#define PASS_PARALLEL_WORK 32768

/* Works on rows [first, last) of the chunk. */
typedef void pass_row_fn(struct run *r, const void *arg, size_t first, size_t last);

/* Calls fn for `rows` rows of about `work` multiplications each; on the pool if they are many. */
int pass_rows(struct run *r, size_t rows, size_t work, pass_row_fn *fn, const void *arg);

#endif
