/* lookup.c - the index of a sequence of tokens: a table of pairs and chains of places. */
#include "text/lookup.h"

#include <stdlib.h>
#include <string.h>

/* Places that a search looks at. */
#define PLACES 64

#define NOWHERE UINT32_MAX

/* A place is the position of the second token of a pair. */
struct tl_lookup {
    int32_t *tokens; // (n)
    size_t n, tokens_capacity;
    uint32_t *before; // (indexed) the place before with the same hash, or NOWHERE
    size_t before_capacity;
    size_t indexed; // places below are in the table. The last pair is not: it is what is searched
    uint32_t *last; // (1 << bits) the last place of each hash, or NOWHERE
    unsigned bits;
};

static size_t hash(const struct tl_lookup *l, size_t place) {
    // multiplicative hashing: the upper bits of the product depend on all bits of the pair
    const uint64_t pair =
        (uint64_t)(uint32_t)l->tokens[place - 1] << 32 | (uint32_t)l->tokens[place];
    return (size_t)((pair * UINT64_C(0x9E3779B97F4A7C15) ^ pair >> 29) *
                        UINT64_C(0xBF58476D1CE4E5B9) >>
                    (64 - l->bits));
}

int tl_lookup_new(struct tl_lookup **out, struct tl_error *err) {
    struct tl_lookup *l = calloc(1, sizeof *l);
    if (l != NULL) {
        l->bits = 10;
        l->indexed = 1; // the first token is no pair
        l->last = malloc(sizeof *l->last << l->bits);
    }
    if (l == NULL || l->last == NULL) {
        tl_lookup_free(l);
        return tl_fail(err, TL_ENOMEM, "no memory for an index of tokens");
    }
    memset(l->last, 0xff, sizeof *l->last << l->bits);
    *out = l;
    return TL_OK;
}

void tl_lookup_free(struct tl_lookup *l) {
    if (l == NULL) return;
    free(l->tokens);
    free(l->before);
    free(l->last);
    free(l);
}

size_t tl_lookup_length(const struct tl_lookup *l) {
    return l->n;
}

static void insert(struct tl_lookup *l, size_t place) {
    uint32_t *last = &l->last[hash(l, place)];
    l->before[place] = *last;
    *last = (uint32_t)place;
}

/* A table with about as many entries as there are places, which are inserted again. */
static void grow_table(struct tl_lookup *l) {
    unsigned bits = l->bits;
    uint32_t *last;
    while ((size_t)1 << bits < l->n && bits < 30) bits++;
    if (bits == l->bits) return;
    last = malloc(sizeof *last << bits);
    if (last == NULL) return; // the smaller table is right as well, and slower
    memset(last, 0xff, sizeof *last << bits);
    free(l->last);
    l->last = last;
    l->bits = bits;
    for (size_t place = 1; place < l->indexed; place++) insert(l, place);
}

int tl_lookup_append(struct tl_lookup *l, const int32_t *tokens, size_t n, struct tl_error *err) {
    if (n >= NOWHERE - l->n) {
        return tl_fail(err, TL_EARG, "%zu tokens after %zu are too many for an index", n, l->n);
    }
    if (!tl_reserve((void **)&l->tokens, &l->tokens_capacity, l->n + n, sizeof *l->tokens) ||
        !tl_reserve((void **)&l->before, &l->before_capacity, l->n + n, sizeof *l->before)) {
        return tl_fail(err, TL_ENOMEM, "no memory for an index of %zu tokens", l->n + n);
    }
    if (n > 0) memcpy(l->tokens + l->n, tokens, n * sizeof *tokens);
    l->n += n;
    grow_table(l);
    for (; l->indexed + 1 < l->n; l->indexed++) insert(l, l->indexed);
    return TL_OK;
}

/* How many tokens before and at `place` are those at the end, at most TL_LOOKUP_LONGEST. */
static size_t match(const struct tl_lookup *l, size_t place) {
    const size_t limit = TL_MIN(place + 1, (size_t)TL_LOOKUP_LONGEST);
    size_t i = 0;
    while (i < limit && l->tokens[place - i] == l->tokens[l->n - 1 - i]) i++;
    return i;
}

size_t tl_lookup_find(const struct tl_lookup *l, int32_t *next, size_t n) {
    size_t longest = 1, from = 0;
    uint32_t place;
    if (l->n < 3) return 0;
    place = l->last[hash(l, l->n - 1)];
    for (int i = 0; i < PLACES && place != NOWHERE && longest < TL_LOOKUP_LONGEST; i++) {
        const size_t size = match(l, place);
        if (size > longest) {
            longest = size;
            from = (size_t)place + 1;
        }
        place = l->before[place];
    }
    if (longest < 2) return 0;
    for (size_t i = 0; i < n; i++) {
        next[i] = from + i < l->n ? l->tokens[from + i] : next[from + i - l->n];
    }
    return longest;
}
