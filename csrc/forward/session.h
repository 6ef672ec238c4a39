/*
 * session.h - what is kept of one context, for each cache of a plan: blocks of keys and values, or
 * the state of a recurrent step.
 *
 * A state cannot be taken back by some tokens. So a session also keeps the states at the last
 * multiple of TL_BLOCK that it has passed (the kept states), and tl_session_rewind goes back to
 * them, or to the beginning. A call writes new states and leaves the old ones as they are, so that
 * it can fail and forks can share them.
 */
#ifndef TL_SESSION_H
#define TL_SESSION_H

#include "base/os.h"
#include "forward/plan.h"

#include <stdatomic.h>

struct session_device; // forward/device_session.h

/* TL_BLOCK positions of one cache, or a state. Shared between sessions by reference count; never
   moves, and written only while one session holds it. A state can have a copy on a device. */
struct tl_block {
    atomic_int references;
    size_t bytes; // of data, which is from the block cache
    float *data;  // owns; the state, or panels (cache.h) of keys, then of values, (kv_heads,
                  // TL_BLOCK / 16) of each

    struct tl_mutex lock; // of what follows
    struct tl_device *device;
    void *buffer;            // owns; on the device, or NULL
    bool in_data, in_buffer; // where the values are: in one of them or in both
};

/* The states of one cache. Each is one block, or NULL; they may be the same one. */
struct tl_states {
    struct tl_block *now;    // after n positions; NULL if n is 0
    struct tl_block *kept;   // after `kept` positions; NULL if kept is 0
    struct tl_block *next;   // written by the call under way, else NULL
    struct tl_block *spare;  // of no use but for the next call; NULL unless states are on a device
    struct tl_block *marked; // after `mark` positions, written by the call under way, else NULL
};

/* The positions [0, n) are in the cache; it has room for n_blocks * TL_BLOCK. */
struct tl_session {
    const struct tl_plan *plan; // borrows
    size_t n;
    size_t n_blocks; // blocks per cache
    size_t capacity;
    struct tl_block **blocks; // (caches, capacity); NULL in a cache that is a state
    struct tl_states *states; // (caches) NULL in a cache of keys and values
    size_t kept;              // position of the kept states
    size_t mark;              // the call under way copies the states at this position; 0: nowhere
    int32_t *tokens;          // (n) what is at each position; room for all reserved ones
    size_t tokens_capacity;   //
    void *work;               // buffers of the forward pass, kept between calls
    size_t work_bytes;
    struct session_device *device; // owns; device_session.h. NULL: it has run on the CPU only
};

int tl_session_new(const struct tl_plan *p, struct tl_session **out, struct tl_error *err);
/* A session with the same positions; blocks are shared until one of the two writes to them. */
int tl_session_fork(const struct tl_session *s, struct tl_session **out, struct tl_error *err);
/* Keeps the first n <= s->n positions, or fewer if a state after n positions is not known: then
   those up to the kept states, or none. Returns how many. The blocks after them are freed, but an
   encoder's session keeps its blocks, because its next context fills them from the start. */
size_t tl_session_rewind(struct tl_session *s, size_t n);
void tl_session_free(struct tl_session *s);
size_t tl_session_cache_bytes(const struct tl_session *s);
/* What tl_session_cache_bytes gives after n tokens; false if it does not fit into size_t. */
bool tl_session_bytes_of(const struct tl_plan *p, size_t n, size_t *bytes);

/* Makes positions [s->n, s->n + n) of every cache writable, and new states. On failure s is as
   before. */
int tl_session_reserve(struct tl_session *s, size_t n, struct tl_error *err);
/* Ends what tl_session_reserve began: adds n tokens, which have been put at the reserved positions
   from s->n on, or leaves the session as it was. */
void tl_session_commit(struct tl_session *s, const int32_t *tokens, size_t n);
void tl_session_cancel(struct tl_session *s);

/* The state of a cache: after s->n positions (NULL: none, all zeros), the one that the call under
   way writes, which begins with zeros if there was none, and its copy at s->mark. */
float *tl_session_state(const struct tl_session *s, size_t cache);
float *tl_session_next_state(const struct tl_session *s, size_t cache);
float *tl_session_marked(const struct tl_session *s, size_t cache);
/* The call under way copies no states. */
void tl_session_unmark(struct tl_session *s);
/* Keeps the state, for a call that does not run its step. */
void tl_session_carry_state(struct tl_session *s, size_t cache);
/* The panels of keys or values of a head in a block (cache.h): floats if the cache has floats. */
float *tl_session_keys(const struct tl_session *s, size_t cache, size_t head, size_t block);
float *tl_session_values(const struct tl_session *s, size_t cache, size_t head, size_t block);

/* Writes one kv head at positions [position, position + n), which are reserved, from rows of all
   heads: keys (n, kv_heads, key_size), values (n, kv_heads, value_size). */
void tl_session_put(struct tl_session *s, size_t cache, size_t head, size_t position, size_t n,
                    const float *keys, const float *values);
/* Copies the keys and values of all positions of a cache, in the same layout. Those that are on a
   device must have been copied to the host: device_session.h. `wide` is scratch for
   tl_cache_wide floats. */
void tl_session_get(const struct tl_session *s, size_t cache, float *keys, float *values,
                    float *wide);

#endif
