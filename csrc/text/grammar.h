/*
 * grammar.h - the expressions of a grammar, and the program of an automaton that they become.
 *
 * tinyllm/grammar/expr.py says what the expressions mean. Here each has a number, and equal ones
 * have the same number, so what two rules share is built once.
 */
#ifndef TL_GRAMMAR_H
#define TL_GRAMMAR_H

#include "base/base.h"
#include "text/automaton.h"

/* The kinds of expressions, and what their parts are. */
enum tl_expr_kind {
    TL_EXPR_TEXT,    // bytes
    TL_EXPR_CHARS,   // first and last code point of each range
    TL_EXPR_SEQ,     // expressions
    TL_EXPR_ALT,     // expressions
    TL_EXPR_REPEAT,  // expression, low, high; high -1: without a limit
    TL_EXPR_RULE,    // rule; 1 if it is called, however small it is
    TL_EXPR_MACHINE, // states; for each: 1 if it is an end, edges, and for each: expression, state
    TL_EXPR_TOKEN,   // token, 1 for any token but this one
    TL_EXPR_KINDS,
};

struct tl_grammar;

int tl_grammar_new(size_t n_rules, struct tl_grammar **out, struct tl_error *err);
void tl_grammar_free(struct tl_grammar *g);

/* *out is the number of an expression. Those in its parts were added before. */
int tl_grammar_add(struct tl_grammar *g, enum tl_expr_kind kind, const int32_t *parts, size_t n,
                   uint32_t *out, struct tl_error *err);

/* Each rule needs an expression before tl_grammar_build. */
int tl_grammar_set_rule(struct tl_grammar *g, size_t rule, uint32_t expr, struct tl_error *err);

/*
 * ends[i], of n_rules, is whether rule i matches some text. *whole is whether every expression
 * does; else alternatives, edges and repetitions that do not are left out. *fine is whether no rule
 * is left-recursive.
 */
int tl_grammar_check(struct tl_grammar *g, uint8_t *ends, bool *whole, bool *fine,
                     struct tl_error *err);

struct tl_program {
    const struct tl_automaton_node *nodes; // (n_nodes), of the grammar
    const int32_t *owners;                 // (n_nodes) the rule of each node
    size_t n_nodes, root;
};

/*
 * The program of a rule, once for each grammar. TL_ENOSUP if it has more than max_nodes nodes;
 * *failed is then the rule where that was seen.
 */
int tl_grammar_build(struct tl_grammar *g, size_t root, size_t max_nodes, struct tl_program *out,
                     size_t *failed, struct tl_error *err);

#endif
