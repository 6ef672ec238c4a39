/*
 * trie.h - the pieces of a vocabulary as a prefix tree, for the automaton.
 *
 * Nodes are stored in depth-first order. So a walk is one pass over the arrays, and skipping a
 * subtree is one jump. Node 0 is the root, before any byte.
 */
#ifndef TL_TRIE_H
#define TL_TRIE_H

#include "base/base.h"

/*
 * Plain text is UTF-8 without the bytes below 32, 127, the quotation mark and the backslash: what
 * a JSON string holds without escapes. U+2028 and U+2029 are left out too, as patterns with a dot
 * do not match them. Most of a vocabulary is plain. A unit says which bytes may continue it:
 * TL_TEXT_BOUNDARY between two characters, others inside one.
 *
 * What many formats and patterns take: TL_TEXT_WORD is for texts of ASCII letters and digits,
 * TL_TEXT_PATH for those of the characters that a path of a URI holds unescaped, "/" and "?".
 */
enum {
    TL_TEXT_BOUNDARY,
    TL_TEXT_WORD = 10,
    TL_TEXT_PATH,
    TL_TEXT_UNITS,
    TL_TEXT_NONE = 255,
    TL_TEXT_SHORT = 16,
    TL_TEXT_KINDS = 3,
};

/* The unit after a byte; TL_TEXT_NONE if the byte does not continue the text. */
uint8_t tl_text_next(uint8_t unit, uint8_t byte);

/* The pieces of at most TL_TEXT_SHORT bytes that are a text of one kind, and the others. */
struct tl_short_text {
    uint8_t unit;         // before the first byte
    uint64_t *bits;       // owns; bit i % 64 of word i / 64: piece i is such a text
    struct tl_trie *rest; // owns; the tree of the other pieces, with their numbers
};

/* Immutable; any number of automata and threads may share it. */
struct tl_trie {
    size_t n, n_pieces, longest;
    size_t n_kept;      // pieces that are not empty
    uint8_t *byte;      // the last byte of the node
    uint32_t *end;      // the first node that is not below it
    uint32_t *depth;    // bytes from the root
    uint32_t *first_id; // where its pieces start in ids
    uint32_t *n_ids;    // how many pieces end here
    uint32_t *ids;
    uint8_t *unit; // the unit after the bytes of the node; TL_TEXT_NONE if they are not plain text
    uint8_t *height; // bytes below it if all there is plain text; else TL_TEXT_NONE
    struct tl_short_text texts[TL_TEXT_KINDS]; // largest first; the rests have none

    // owns; the pieces that are plain text of at most i characters, of which the last may be cut
    uint64_t *few[TL_TEXT_SHORT];
    struct tl_trie *unplain; // owns; the tree of the pieces that are not plain text
};

/* The pieces of a subtree: ids[*first] to ids[*last - 1]. */
void tl_trie_subtree_ids(const struct tl_trie *trie, uint32_t node, uint32_t *first,
                         uint32_t *last);

/* Piece i is the sizes[i] bytes at pieces[i], which are copied. Empty pieces are left out. */
int tl_trie_new(const uint8_t *const *pieces, const size_t *sizes, size_t n, struct tl_trie **out,
                struct tl_error *err);
void tl_trie_free(struct tl_trie *trie);
size_t tl_trie_n_pieces(const struct tl_trie *trie);
size_t tl_trie_n_nodes(const struct tl_trie *trie);

#endif
