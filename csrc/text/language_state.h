/* language_state.h - what the files of a language share: its positions, classes and states. */
#ifndef TL_LANGUAGE_STATE_H
#define TL_LANGUAGE_STATE_H

#include "text/grammar_state.h"
#include "text/language.h"

#include <string.h>

enum {
    MAX_POSITIONS = 100000, // of all expressions together
    LIST = UINT32_MAX,      // the `set` of a node that reads nothing
    FINAL = 0,              // the node after the whole text
    DEAD = UINT32_MAX,      // the state of a condition that cannot hold any more
    LAST_POINT = 0x10FFFF,
};

/* A position in an expression: reads a character of a set, or leads to each of some nodes. */
struct position {
    uint32_t set;      // LIST: it reads nothing
    uint32_t after, n; // the next node; of a list, where it is in `links`, and its length
};

/* Distinct rows of `width` words, with a number each. */
struct rows {
    uint32_t *words;
    size_t n, capacity, width;
    uint32_t *table; // NONE where free
    size_t table_size;
};

/* Distinct sorted sets of positions: the states of an expression. */
struct subsets {
    uint32_t *members;
    size_t n_members, members_capacity;
    struct subset {
        uint32_t first, n, hash;
    } * sets;
    size_t n, capacity;
    uint32_t *table;
    size_t table_size;
};

/* A condition while it is followed: `onward[s][c]` is the state after class c in state s. */
struct part {
    struct tl_condition of;
    uint32_t first; // the position, or the state, where it starts
    uint32_t **onward;
    size_t n_onward, onward_capacity;
    struct subsets states;
};

struct edge {
    uint32_t label, to;
};

struct tl_language {
    const struct tl_grammar *g;
    struct tl_hash_key key;
    struct position *positions;
    size_t n_positions, positions_capacity;
    uint32_t *links;
    size_t n_links, links_capacity;
    uint32_t *stack; // starts of alternatives, a stack of lists
    size_t n_stack, stack_capacity;

    // sets of characters: those of expressions, then single code points, then the surrogates
    uint32_t *set_of;    // (n_exprs) the set of an expression of characters; NONE
    uint32_t *set_exprs; // (n_set_exprs)
    size_t n_set_exprs, set_exprs_capacity;
    uint32_t *points; // sorted code points, each a set
    size_t n_points, points_capacity;
    size_t n_sets, set_words;

    struct rows classes; // the sets that hold each class, as bits
    uint32_t *pieces;    // first, last, class: all code points but the surrogates, in order
    size_t n_pieces, pieces_capacity;

    struct part *parts;
    size_t n_parts, needed, row_items;
    struct rows states; // a state of each part
    struct rows labels; // classes, as bits
    struct edge *edges;
    size_t n_edges, edges_capacity;
    uint32_t *first_edge; // (states + 1)
    size_t first_edge_capacity;

    uint32_t *marks; // (n_positions) the round in which a position was last seen
    uint32_t round;
    uint32_t *found, *waiting; // (n_positions)
    int32_t *ranges;           // of the label that was asked for last
    size_t ranges_capacity;
};

#define RESERVE(items, capacity, n) tl_reserve((void **)&(items), &(capacity), (n), sizeof *(items))

static inline uint32_t *tl_rows_at(const struct rows *r, size_t i) {
    return r->words + i * r->width;
}

static inline bool tl_bit(const uint32_t *bits, uint32_t i) {
    return bits[i / 32] >> i % 32 & 1;
}

/* *out is the number of a row, which is added if it is new; false without memory. */
bool tl_rows_find(const struct tl_hash_key *key, struct rows *r, const uint32_t *row,
                  uint32_t *out);
void tl_rows_free(struct rows *r);

int tl_language_no_memory(struct tl_error *err);

/* *out is the position where an expression starts that ends the text. */
int tl_language_read(struct tl_language *l, uint32_t expr, uint32_t *out, struct tl_error *err);

/* The condition tells this character apart, although it is in no expression. */
int tl_language_add_point(struct tl_language *l, uint32_t point, struct tl_error *err);

/* Finds the classes of characters, after all expressions were read. */
int tl_language_find_classes(struct tl_language *l, struct tl_error *err);

/* The class of a single code point of an expression. */
uint32_t tl_language_class_of(const struct tl_language *l, uint32_t point);

int tl_compare_u32(const void *left, const void *right);

#endif
