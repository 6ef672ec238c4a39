/*
 * language.h - regular languages of texts: all conditions at once, as one automaton.
 *
 * A condition reads the text one character at a time. The automaton of several is found by
 * following them at once. Characters that no condition tells apart form a class and are followed
 * together.
 */
#ifndef TL_LANGUAGE_H
#define TL_LANGUAGE_H

#include "base/base.h"
#include "text/grammar.h"

enum tl_condition_kind {
    TL_CONDITION_MATCHES,  // a text of `expr`, or, if not positive, any other text
    TL_CONDITION_LENGTH,   // `low` to `high` characters
    TL_CONDITION_MULTIPLE, // a decimal number, without an exponent, that is a multiple, or is not
    TL_CONDITION_KINDS,
};

struct tl_condition {
    enum tl_condition_kind kind;
    bool positive;
    uint32_t expr;            // of the grammar; without rules and tokens
    uint32_t low, high;       // high UINT32_MAX: without a limit
    uint32_t modulus, places; // a multiple of modulus / 10^places; both are small
};

enum { TL_LANGUAGE_FREE = 30 }; // the largest number of free conditions

struct tl_language;

/*
 * Follows `needed` conditions, which hold for every text, and after them n - needed free ones.
 * TL_ENOSUP if that takes more than max_states states. The grammar must outlive the language.
 */
int tl_language_new(const struct tl_grammar *g, const struct tl_condition *conditions,
                    size_t needed, size_t n, size_t max_states, struct tl_language **out,
                    struct tl_error *err);
void tl_language_free(struct tl_language *l);

/* The sets of characters of the edges: ranges of first and last code points, 2 * *n numbers. */
size_t tl_language_n_labels(const struct tl_language *l);
int tl_language_label(struct tl_language *l, size_t label, const int32_t **ranges, size_t *n,
                      struct tl_error *err);

/* The texts for which exactly these of the free conditions hold: bit i is free condition i. */
struct tl_language_machine {
    uint32_t holds;
    size_t n_states, n_edges, n_ends;
    int32_t (*edges)[3]; // owns; state, label, next state; sorted by state
    int32_t *ends;       // owns
};

/*
 * The automata of all combinations that have a text; every state leads to an end, and the start is
 * state 0. The caller frees each, and the list.
 */
int tl_language_machines(const struct tl_language *l, struct tl_language_machine **out, size_t *n,
                         struct tl_error *err);
void tl_language_free_machines(struct tl_language_machine *machines, size_t n);

#endif
