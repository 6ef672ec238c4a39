/*
 * automaton.h - which bytes, and which tokens of a vocabulary, may come next under a grammar.
 *
 * tinyllm/grammar/automaton.py makes the program and says what its nodes mean. The same matching in
 * readable Python is tinyllm/grammar/matcher.py; the tests compare the two.
 *
 * A state is a set of stacks of nodes. Every set is stored once and has a number, so the successors
 * of a state are computed once and then looked up: the automaton is built lazily.
 */
#ifndef TL_AUTOMATON_H
#define TL_AUTOMATON_H

#include "base/base.h"
#include "text/trie.h"

enum tl_automaton_op {
    TL_AUTOMATON_BYTE,
    TL_AUTOMATON_SPLIT,
    TL_AUTOMATON_CALL,
    TL_AUTOMATON_END,
    TL_AUTOMATON_TOKEN, // b is a token; low is 1 for any token but b
};

struct tl_automaton_node {
    uint8_t op, low, high;
    int32_t a, b;
};

/* Grows while it is used, so only one thread at a time may use it. */
struct tl_automaton;

/* Copies the nodes. trie may be NULL, else it must outlive the automaton. */
int tl_automaton_new(const struct tl_automaton_node *nodes, size_t n, size_t root,
                     const struct tl_trie *trie, struct tl_automaton **out, struct tl_error *err);
void tl_automaton_free(struct tl_automaton *m);

/* The state before any text. 0 is the state of a text that does not match. */
uint32_t tl_automaton_start(const struct tl_automaton *m);

/* *out is the state after n more bytes. TL_EARG if there is no such state; TL_ENOSUP if the text
   can be read in too many ways at once. */
int tl_automaton_advance(struct tl_automaton *m, uint32_t state, const uint8_t *bytes, size_t n,
                         uint32_t *out, struct tl_error *err);

/* The same for a token, which is a node of its own or some bytes; its n bytes may be none. */
int tl_automaton_accept(struct tl_automaton *m, uint32_t state, uint32_t token,
                        const uint8_t *bytes, size_t n, uint32_t *out, struct tl_error *err);

struct tl_automaton_facts {
    bool complete;     // the text may end here
    int32_t node;      // one of the nodes that wait; -1 if nothing may follow
    uint32_t bytes[8]; // a bit for each byte that may follow
};

int tl_automaton_look(struct tl_automaton *m, uint32_t state, struct tl_automaton_facts *out,
                      struct tl_error *err);

/* mask[i] = whether piece i may come next; n is the number of pieces of the trie. */
int tl_automaton_mask(struct tl_automaton *m, uint32_t state, uint8_t *mask, size_t n,
                      struct tl_error *err);

/* Bytes of memory, and states so far. */
size_t tl_automaton_nbytes(const struct tl_automaton *m);
size_t tl_automaton_n_states(const struct tl_automaton *m);

#endif
