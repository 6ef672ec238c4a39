/*
 * lookup.h - an index of a growing sequence of tokens: where its last tokens occurred before.
 *
 * Each pair of neighbouring tokens leads to its last place, and each place to the one before with
 * the same hash, as in LZ77 compressors (RFC 1951, section 4). A search looks at a bounded number
 * of places, so its time does not grow with the sequence.
 */
#ifndef TL_LOOKUP_H
#define TL_LOOKUP_H

#include "base/base.h"

/* Matches are not measured beyond this many tokens. */
#define TL_LOOKUP_LONGEST 64

struct tl_lookup;

int tl_lookup_new(struct tl_lookup **out, struct tl_error *err);
void tl_lookup_free(struct tl_lookup *l);
size_t tl_lookup_length(const struct tl_lookup *l);
/* On failure the sequence is as before. */
int tl_lookup_append(struct tl_lookup *l, const int32_t *tokens, size_t n, struct tl_error *err);
/*
 * Returns how many of the last tokens, at least 2 and at most TL_LOOKUP_LONGEST, occurred earlier,
 * or 0 if the last two did not. Writes the n tokens that followed the longest such occurrence, and
 * of equally long ones the last, to `next`. If it runs into the end of the sequence, it goes on
 * with what it wrote: a repetition that has begun is continued.
 */
size_t tl_lookup_find(const struct tl_lookup *l, int32_t *next, size_t n);

#endif
