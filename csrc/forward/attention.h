/* attention.h - the ops that read or write the kv cache. */
#ifndef TL_ATTENTION_H
#define TL_ATTENTION_H

#include "forward/ops.h"
#include "forward/pass.h"

/* Bytes for the scores of one task: about what fits the second-level cache. */
#define NEAR_BYTES ((size_t)256 << 10)

/* Queries per task at most, and at least even if their scores do not fit: otherwise a long context
   would be read from memory again for each one or two of them. */
#define MAX_QUERIES 48
#define MIN_QUERIES 16

/* The keys that the query at position p sees, of a context of n positions. */
enum mask {
    MASK_CAUSAL,    // up to p
    MASK_WINDOW,    // the last `size` ones up to p
    MASK_CHUNK,     // from the last multiple of `size` up to p
    MASK_SYMMETRIC, // at most size / 2 away from p
    MASK_NONE,      // all
};

/* The numbers of a scores step. */
enum {
    SCORES_FACTOR,
    SCORES_MASK,    // enum mask
    SCORES_SIZE,    // of a window or chunk
    SCORES_CAP,     // c tanh(score / c); 0: none
    SCORES_BIAS,    // the largest bias of ALiBi; 0: none
    SCORES_BUCKETS, // of distances, each with a bias per head; 0: none
};

int cache_check(const struct tl_op_check *c, struct tl_step *s);
int scores_check(const struct tl_op_check *c, struct tl_step *s);
int softmax_check(const struct tl_op_check *c, struct tl_step *s);
int mix_check(const struct tl_op_check *c, struct tl_step *s);

/* Biases of each head, by distance, where scores have them. */
#define ATTENTION_BIASES 257

/* ALiBi's factor of the distance, of a head of a scores step. */
float attention_slope(const struct tl_step *scores, size_t head);

/* The keys that the query at a position sees, in a context of n positions once the call is
 * complete.
 */
struct tl_range attention_seen(const struct tl_step *scores, size_t position, size_t n);

/* What is added to the score of a key because of its distance: ALiBi, and the bias of a bucket. */
float attention_bias(const struct tl_step *scores, size_t head, size_t position, size_t key);

/* Appends the chunk's keys and values to the caches of its sessions. */
int cache_run(struct run *r, const struct tl_step *s);

/* Runs scores, softmax and mix: the three steps from `s` on. */
int attention_run(struct run *r, const struct tl_step *s);

/* Bytes of scratch that a thread needs for attention. */
size_t attention_scratch(const struct run *r);

/* Bytes that all threads together need for the attention of a single token. */
size_t attention_shared(struct run *r);

#endif
