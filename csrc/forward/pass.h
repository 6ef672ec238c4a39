/* pass.h - one call of the forward pass: what forward.c and attention.c share. */
#ifndef TL_RUN_H
#define TL_RUN_H

#include "model/model.h"

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

/* Which matmul a thread's packed activations are for; on a cache line of its own. */
struct stamp {
    size_t group;
    char rest[64 - sizeof(size_t)];
};

struct run {
    const struct tl_model *m;
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
    size_t pack_one_bytes; // of those of one token, which each thread has for itself
    size_t thread_bytes;   // scratch of each thread
    size_t shared_bytes;   // of attention, for all threads

    // the workspace
    float *slots[TL_TAP_COUNT]; // scratch of each tap (chunk, row)
    float *cos_sin;             // (chunk, rope_dimension / 2, 2)
    float *gathered;            // (chunk, D) rows whose logits are wanted
    struct span *spans;         // (n_pieces)
    uint8_t *packed;
    uint8_t *packed_one;  // (threads, pack_one_bytes)
    struct stamp *stamps; // (threads)
    uint8_t *scratch;     // (threads, thread_bytes)
    float *shared;        // (shared_bytes)

    // the current chunk
    size_t row0;
    size_t n;
    size_t n_spans;

    size_t groups; // of matmuls so far
};

static inline size_t tap_cell(size_t layer, enum tl_tap tap) {
    return layer * TL_TAP_COUNT + tap;
}

static inline bool tap_captured(const struct run *r, enum tl_tap tap, size_t layer) {
    return r->call->captures != NULL && r->call->captures[tap_cell(layer, tap)] != NULL;
}

static inline bool tap_edited(const struct run *r, enum tl_tap tap, size_t layer) {
    return r->call->edits != NULL && r->call->edits[tap_cell(layer, tap)] != 0;
}

/* Runs tasks on the pool, polling; TL_ESTOP with *err set when the poll says stop. */
int run_tasks(struct run *r, size_t tasks, void (*fn)(void *arg, size_t task, int thread),
              void *arg);

/* Bytes of scratch that a thread needs for attention. */
size_t attention_scratch(const struct run *r);

/* Bytes that all threads together need for the attention of a single token. */
size_t attention_shared(const struct run *r);

/* Appends the chunk's keys (n, K, Dh) and values (n, K, Dv) to the caches. */
int attention_append(struct run *r, size_t layer, const float *keys, const float *values);

/* q (n, H, Dh) after RoPE -> mix (n, H, Dv), with the caches that hold this chunk already. */
int attention_run(struct run *r, size_t layer, const float *q, float *mix);

#endif
