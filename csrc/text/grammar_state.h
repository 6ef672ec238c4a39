/* grammar_state.h - what the files of a grammar share: its expressions, rules and nodes. */
#ifndef TL_GRAMMAR_STATE_H
#define TL_GRAMMAR_STATE_H

#include "base/hash.h"
#include "text/grammar.h"

#define NONE UINT32_MAX
#define UNKNOWN_SIZE UINT64_MAX

struct expr {
    uint8_t kind;
    bool has_rules;    // a rule is somewhere in it
    uint16_t depth;    //
    uint32_t first, n; // in grammar.parts
    uint32_t hash;     //
    uint32_t rule;     // the rule that was made of it as a repeated part; NONE if there is none
    uint64_t size;     // about how many nodes it becomes; UNKNOWN_SIZE if not computed
};

struct rule {
    uint32_t expr, start; // its first node; NONE if it is not built yet
    int32_t owner;        // the rule that messages name: itself, or the user of a repeated part
    bool inlined;
    uint64_t size;
};

/* A CALL node whose target is not known yet. */
struct patch {
    uint32_t node, rule;
};

/* The start of an expression that is followed by node `after`. */
struct start {
    uint32_t expr, after, node;
};

struct tl_grammar {
    struct expr *exprs;
    size_t n_exprs, exprs_capacity;
    int32_t *parts;
    size_t n_parts, parts_capacity;
    uint32_t *table; // hash table of expressions, NONE where free
    size_t table_size;
    struct tl_hash_key key;

    struct rule *rules;
    size_t n_rules, rules_capacity;

    struct tl_automaton_node *nodes;
    int32_t *owners;
    uint32_t *marks; // the round in which a node was last seen by split()
    size_t n_nodes, nodes_capacity, owners_capacity, marks_capacity, max_nodes;
    uint32_t round;
    uint32_t *known; // hash table of nodes, NONE where free
    size_t known_size, n_known;
    struct start *built; // hash table; node NONE where free
    size_t built_size, n_built;
    // nodes and starts below this one are not reused: a copy that is moved must be whole
    uint32_t floor;
    struct patch *patches;
    size_t n_patches, patches_capacity;
    uint32_t *stack; // starts of alternatives, a stack of lists
    size_t n_stack, stack_capacity;
    int32_t owner;
    uint32_t end, nowhere; // the END node; a node that leads nowhere, or NONE
    int depth;
};

enum { TL_GRAMMAR_DEPTH = 600 }; // of expressions in each other: their functions call each other

/* The rules, each after those that it refers to; without those that reach a recursion. */
struct order {
    uint32_t *rules;
    size_t n;
    struct reference {
        uint32_t user, used;
    } * references;  // sorted by `used`
    uint32_t *first; // (n_rules + 1) the references to each rule
    size_t n_references, capacity;
};

int tl_grammar_no_memory(struct tl_error *err);

/* Calls visit for each expression among the parts of another one. */
void tl_grammar_each_inner(const struct tl_grammar *g, const struct expr *e,
                           void (*visit)(void *context, uint32_t expr), void *context);

/* TL_EARG if a rule has no expression. */
int tl_grammar_rules_are_there(const struct tl_grammar *g, struct tl_error *err);

/*
 * Orders the rules by their references, or, if `empty` says which expressions match an empty text,
 * by those that a text may start with. The caller frees the order, also after a failure.
 */
int tl_grammar_order(const struct tl_grammar *g, const uint8_t *empty, struct order *out,
                     struct tl_error *err);
void tl_grammar_free_order(struct order *o);

#endif
