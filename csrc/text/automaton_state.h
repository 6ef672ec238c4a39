/* automaton_state.h - what the files of the automaton share: its sets, states and masks. */
#ifndef TL_AUTOMATON_STATE_H
#define TL_AUTOMATON_STATE_H

#include "base/hash.h"
#include "text/automaton.h"

enum {
    NOTHING = 0,               // the set without a stack: the text does not match
    EMPTY = 1,                 // the set of only the empty stack: the text is complete
    MEMO = 4096,               // unions of two sets that are remembered
    TREES = 2 + TL_TEXT_KINDS, // that are walked: of all pieces, and those of struct taken
};

#define UNKNOWN UINT32_MAX

/* The stacks that start with node `at` and go on with a stack of the set `below`. */
struct pair {
    uint32_t at, below;
};

/*
 * A set of stacks: pairs sorted by (at, below). The nodes of a state are BYTE and TOKEN nodes. The
 * nodes of a set that is `below` a pair are return addresses.
 */
struct set {
    uint32_t first, n; // in automaton.pairs
    uint32_t hash;
    bool has_empty; // the empty stack is one of them
    // owns; or NULL: the next state by byte class, UNKNOWN if not computed, and then, in bytes, the
    // group of each class: the same nodes match all classes of a group
    uint32_t *onward;
    struct ahead *ahead;       // owns; or NULL
    uint32_t popped;           // the state after a return to this set; UNKNOWN if not computed
    struct mask *local[TREES]; // own; or NULL: the mask over the pieces of each tree
};

/* How far any plain text may go on from a state, by the unit of the text there. */
struct ahead {
    uint8_t good[TL_TEXT_UNITS]; // this many bytes may follow, whatever they are
    uint8_t bad[TL_TEXT_UNITS];  // not every text of this many bytes may
    uint8_t room;                // see room_of()
};

/* The result of a walk over the tree from a state. */
struct mask {
    const struct tl_trie *trie; // the tree that was walked
    uint32_t *out;              // owns; nodes of the tree where a stack became empty
    uint32_t n_out;
    uint64_t bits[]; // bit i % 64 of word i / 64: piece i may come next
};

struct tl_automaton {
    struct tl_automaton_node *nodes;
    size_t n_nodes;
    const struct tl_trie *trie;
    uint8_t class_of[256], member[256]; // of each byte its class; of each class a byte
    size_t n_classes;
    struct text_step {
        uint8_t class, unit; // a class of bytes that continue plain text, and the unit after it
    } text[TL_TEXT_UNITS][256];
    size_t n_text[TL_TEXT_UNITS];
    size_t looks; // steps of the looks ahead since the mask was begun
    uint32_t start;

    struct set *sets;
    size_t n_sets, sets_capacity;
    struct pair *pairs;
    size_t n_pairs, pairs_capacity;
    uint32_t *table; // hash table of set numbers, UNKNOWN where free
    size_t table_size;

    struct pair *work; // pairs still to follow; `seen` holds all that were added to it
    size_t n_work, work_capacity;
    struct pair *found; // the nodes of the state that is being made
    size_t n_found, found_capacity;
    bool found_empty;
    size_t merged; // pairs merged since begin()
    struct seen {
        struct pair pair;
        uint32_t round;
    } * seen;
    size_t seen_size, n_seen;
    uint32_t round;
    struct {
        uint32_t a, b, result;
    } memo[MEMO];

    uint32_t *path;         // states along a walk
    size_t cached;          // bytes of `onward` tables and masks
    uint8_t spread[256][8]; // the bits of a byte, the lowest first
    struct tl_hash_key hash_key;
};

int tl_automaton_no_memory(struct tl_error *err);
int tl_automaton_check_state(const struct tl_automaton *m, uint32_t state, struct tl_error *err);

/* The number of the set of these sorted pairs. `pairs` does not point into the automaton. */
int tl_automaton_intern(struct tl_automaton *m, const struct pair *pairs, size_t n, bool has_empty,
                        uint32_t *out, struct tl_error *err);

/* The state after the rule above the set `below` has returned to it. */
int tl_automaton_popped(struct tl_automaton *m, uint32_t below, uint32_t *out,
                        struct tl_error *err);

/* The state after a byte, if it is not in the table of the state. */
int tl_automaton_find_next(struct tl_automaton *m, uint32_t state, uint8_t byte, uint32_t *out,
                           struct tl_error *err);

static inline int tl_automaton_next(struct tl_automaton *m, uint32_t state, uint8_t byte,
                                    uint32_t *out, struct tl_error *err) {
    const uint32_t *onward = m->sets[state].onward;
    *out = onward == NULL ? UNKNOWN : onward[m->class_of[byte]];
    return *out != UNKNOWN ? TL_OK : tl_automaton_find_next(m, state, byte, out, err);
}

/* Frees what can be computed again, if it is much. */
void tl_automaton_trim(struct tl_automaton *m);
void tl_automaton_free_mask(struct mask *mask);

#endif
