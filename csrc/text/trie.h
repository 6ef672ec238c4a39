/*
 * trie.h - the pieces of a vocabulary as a prefix tree, for the automaton.
 *
 * Nodes are stored in depth-first order. So a walk is one pass over the arrays, and skipping a
 * subtree is one jump. Node 0 is the root, before any byte.
 */
#ifndef TL_TRIE_H
#define TL_TRIE_H

#include "base/base.h"

/* Immutable; any number of automata and threads may share it. */
struct tl_trie {
    size_t n, n_pieces, longest;
    uint8_t *byte;      // the last byte of the node
    uint32_t *end;      // the first node that is not below it
    uint32_t *depth;    // bytes from the root
    uint32_t *first_id; // where its pieces start in ids
    uint32_t *n_ids;    // how many pieces end here
    uint32_t *ids;
};

/* Piece i is the sizes[i] bytes at pieces[i], which are copied. Empty pieces are left out. */
int tl_trie_new(const uint8_t *const *pieces, const size_t *sizes, size_t n, struct tl_trie **out,
                struct tl_error *err);
void tl_trie_free(struct tl_trie *trie);
size_t tl_trie_n_pieces(const struct tl_trie *trie);
size_t tl_trie_n_nodes(const struct tl_trie *trie);

#endif
