/* automaton_mask.c - which tokens of a vocabulary may follow a state. */
#include "base/os.h"
#include "text/automaton_state.h"

#include <stdlib.h>
#include <string.h>

enum {
    MIN_SUBTREE = 8,   // nodes of a subtree that are worth a look ahead
    MAX_LOOKS = 20000, // steps of all looks ahead of one mask
    NO_ROOM = 255,     // the texts that may follow do not depend on their length alone
    NOT_KNOWN = 254,
};

/* Pieces that may follow a state, as was found without a walk. */
struct taken {
    const uint64_t *bits;       // NULL: none
    const struct tl_trie *rest; // the tree of the pieces that are still to be walked
    int tree;                   // its number
};

static void set_bits(const struct tl_trie *t, uint32_t node, uint64_t *bits) {
    for (uint32_t i = 0; i < t->n_ids[node]; i++) {
        const uint32_t id = t->ids[t->first_id[node] + i];
        bits[id / 64] |= (uint64_t)1 << id % 64;
    }
}

static void set_subtree_bits(const struct tl_trie *t, uint32_t node, uint64_t *bits) {
    uint32_t first, last;
    tl_trie_subtree_ids(t, node, &first, &last);
    for (uint32_t i = first; i < last; i++) bits[t->ids[i] / 64] |= (uint64_t)1 << t->ids[i] % 64;
}

/* What is known about the texts that may follow a state; NULL without memory. */
static struct ahead *ahead_of(struct tl_automaton *m, uint32_t state) {
    struct ahead *ahead = m->sets[state].ahead;
    if (ahead != NULL) return ahead;
    ahead = malloc(sizeof *ahead);
    if (ahead == NULL) return NULL;
    memset(ahead->good, 0, sizeof ahead->good);
    memset(ahead->bad, UINT8_MAX, sizeof ahead->bad);
    ahead->room = NOT_KNOWN;
    m->cached += sizeof *ahead;
    return m->sets[state].ahead = ahead;
}

/*
 * Whether all plain texts of n bytes may follow a state. Says no where the answer is not known
 * within MAX_LOOKS steps.
 */
static bool takes_text(struct tl_automaton *m, uint32_t state, uint8_t unit, uint8_t n) {
    struct tl_error ignored;
    struct ahead *ahead;
    if (n == 0) return true;
    ahead = ahead_of(m, state);
    if (ahead == NULL) return false;
    if (n <= ahead->good[unit]) return true;
    if (n >= ahead->bad[unit]) return false;
    for (size_t i = 0; i < m->n_text[unit]; i++) {
        const struct text_step *step = &m->text[unit][i];
        uint32_t after;
        if (++m->looks > MAX_LOOKS) return false;
        if (tl_automaton_next(m, state, m->member[step->class], &after, &ignored) < 0 ||
            after == NOTHING || !takes_text(m, after, step->unit, (uint8_t)(n - 1))) {
            if (m->looks <= MAX_LOOKS) ahead->bad[unit] = n;
            return false;
        }
    }
    ahead->good[unit] = n;
    return true;
}

/*
 * How many characters of plain text may follow a state, whatever they are, where none may follow
 * more. NO_ROOM if that is not so, or if a stack may become empty before; NOT_KNOWN if there are
 * more than `most`, or too many steps. `unit` says which bytes of a character are missing.
 */
static uint8_t room_of(struct tl_automaton *m, uint32_t state, uint8_t unit, uint8_t most) {
    const uint8_t one = unit == TL_TEXT_BOUNDARY;
    struct ahead *ahead = one ? ahead_of(m, state) : NULL;
    uint8_t room = NOT_KNOWN;
    if (m->sets[state].has_empty) return NO_ROOM;
    if (one && (ahead == NULL || ahead->room != NOT_KNOWN)) {
        return ahead == NULL ? NOT_KNOWN : ahead->room;
    }
    for (size_t i = 0; i < m->n_text[unit] && room != NO_ROOM; i++) {
        const struct text_step *step = &m->text[unit][i];
        struct tl_error ignored;
        uint32_t after;
        uint8_t found = one ? 0 : NO_ROOM;
        if (++m->looks > MAX_LOOKS ||
            tl_automaton_next(m, state, m->member[step->class], &after, &ignored) < 0)
            return NOT_KNOWN;
        if (after != NOTHING) {
            found = most < one ? NOT_KNOWN : room_of(m, after, step->unit, most - one);
            if (found == NOT_KNOWN) return NOT_KNOWN;
            if (found != NO_ROOM) found += one;
        }
        room = i == 0 || found == room ? found : NO_ROOM;
    }
    if (one) ahead->room = room;
    return room;
}

/*
 * Walks over the subtree of node `from`, starting in `state`. Sets the bits of the pieces that
 * still match. If `mask` is not NULL, adds to it the nodes where a stack became empty.
 */
static int walk(struct tl_automaton *m, const struct tl_trie *t, uint32_t from, uint32_t state,
                uint64_t *bits, struct mask *mask, struct tl_error *err) {
    const uint32_t top = t->depth[from];
    uint32_t *path = m->path;
    size_t capacity = mask != NULL ? mask->n_out : 0;
    uint32_t node = from + 1;
    path[top] = state;
    while (node < t->end[from]) {
        const uint32_t depth = t->depth[node], before = path[depth - 1];
        uint32_t after;
        const int status = tl_automaton_next(m, before, t->byte[node], &after, err);
        if (status < 0) return status;
        if (after == NOTHING) {
            node = t->end[node];
            continue;
        }
        if (mask != NULL && m->sets[after].has_empty) {
            if (!tl_reserve((void **)&mask->out, &capacity, (size_t)mask->n_out + 1,
                            sizeof *mask->out)) {
                return tl_automaton_no_memory(err);
            }
            mask->out[mask->n_out++] = node;
        }
        if (t->height[node] <= TL_TEXT_SHORT && t->end[node] - node >= MIN_SUBTREE &&
            takes_text(m, after, t->unit[node], t->height[node])) {
            set_subtree_bits(t, node, bits);
            node = t->end[node];
            continue;
        }
        set_bits(t, node, bits);
        path[depth] = after;
        node = m->sets[after].n == 0 ? t->end[node] : node + 1;
    }
    return TL_OK;
}

/* Sets the bits of the tokens that the TOKEN nodes of a state name. */
static void set_tokens(const struct tl_automaton *m, uint32_t state, uint64_t *bits) {
    const size_t n = m->trie->n_pieces;
    for (uint32_t i = 0; i < m->sets[state].n; i++) {
        const struct tl_automaton_node *node = &m->nodes[m->pairs[m->sets[state].first + i].at];
        const size_t token = (size_t)node->b;
        if (node->op != TL_AUTOMATON_TOKEN) continue;
        if (node->low == 0) {
            if (token < n) bits[token / 64] |= (uint64_t)1 << token % 64;
            continue;
        }
        for (size_t id = 0; id < n; id++) {
            if (id != token) bits[id / 64] |= (uint64_t)1 << id % 64;
        }
    }
}

/* Finds pieces that follow a state without a walk; false if there are none. */
static bool find_taken(struct tl_automaton *m, uint32_t state, struct taken *out) {
    const struct tl_trie *t = m->trie;
    for (int kind = 0; kind < TL_TEXT_KINDS; kind++) {
        const struct tl_short_text *text = &t->texts[kind];
        if (takes_text(m, state, text->unit, TL_TEXT_SHORT)) {
            *out = (struct taken){text->bits, text->rest, 1 + kind};
            return true;
        }
        if (text->unit == TL_TEXT_BOUNDARY) { // but it may take shorter ones
            const uint8_t room = room_of(m, state, TL_TEXT_BOUNDARY, TL_TEXT_SHORT);
            if (room == 0 || room >= TL_TEXT_SHORT) continue;
            *out = (struct taken){t->few[room], t->unplain, TREES - 1};
            return true;
        }
    }
    return false;
}

/*
 * The mask of a state whose stacks end below their first node: computed once. What is `taken` is
 * left out.
 */
static int local_mask(struct tl_automaton *m, uint32_t state, const struct taken *taken,
                      const struct mask **out, struct tl_error *err) {
    const size_t words = (m->trie->n_pieces + 63) / 64;
    struct taken own = *taken;
    struct mask *mask = m->sets[state].local[taken->tree];
    int status;
    if (mask == NULL) {
        mask = calloc(1, sizeof *mask + words * sizeof *mask->bits);
        if (mask == NULL) return tl_automaton_no_memory(err);
        // most pieces are plain text, and a JSON string takes all of it
        if (taken->bits == NULL && find_taken(m, state, &own)) {
            memcpy(mask->bits, own.bits, words * sizeof *mask->bits);
        }
        mask->trie = own.rest;
        set_tokens(m, state, mask->bits);
        status = walk(m, mask->trie, 0, state, mask->bits, mask, err);
        if (status < 0) {
            tl_automaton_free_mask(mask);
            return status;
        }
        m->sets[state].local[taken->tree] = mask;
        m->cached += sizeof *mask + words * sizeof *mask->bits + mask->n_out * sizeof *mask->out;
    }
    *out = mask;
    return TL_OK;
}

/*
 * Adds the mask of the stacks of a state that have the set `below` below their first node.
 *
 * The walk from these nodes alone does not depend on what is below them, so all callers of a rule
 * share it. Only where the rule ends in the middle of a piece, the rest of the piece is walked with
 * what is below. What is `taken` is left out.
 */
static int add_group(struct tl_automaton *m, uint32_t state, uint32_t below,
                     const struct taken *taken, uint64_t *bits, struct tl_error *err) {
    const size_t words = (m->trie->n_pieces + 63) / 64;
    const struct mask *mask = NULL;
    struct pair *group = malloc(m->sets[state].n * sizeof *group);
    uint32_t local, after;
    size_t n = 0;
    int status;
    if (group == NULL) return tl_automaton_no_memory(err);
    for (uint32_t i = 0; i < m->sets[state].n; i++) {
        const struct pair p = m->pairs[m->sets[state].first + i];
        if (p.below == below) group[n++] = (struct pair){p.at, EMPTY};
    }
    status = tl_automaton_intern(m, group, n, false, &local, err);
    free(group);
    if (status == TL_OK) status = local_mask(m, local, taken, &mask, err);
    if (status < 0) return status;
    for (size_t w = 0; w < words; w++) bits[w] |= mask->bits[w];
    if (below == EMPTY || mask->n_out == 0) return TL_OK;
    status = tl_automaton_popped(m, below, &after, err);
    for (uint32_t i = 0; i < mask->n_out && status == TL_OK; i++) {
        if (m->sets[after].n > 0) {
            status = walk(m, mask->trie, mask->out[i], after, bits, NULL, err);
        }
    }
    return status;
}

/* One byte of the mask per bit. */
static void spread_bits(const struct tl_automaton *m, const uint64_t *bits, uint8_t *mask,
                        size_t n) {
    size_t i = 0;
    for (; i + 8 <= n; i += 8) memcpy(mask + i, m->spread[bits[i / 64] >> i % 64 & 0xFF], 8);
    for (; i < n; i++) mask[i] = bits[i / 64] >> i % 64 & 1;
}

int tl_automaton_mask(struct tl_automaton *m, uint32_t state, uint8_t *mask, size_t n,
                      struct tl_error *err) {
    int status = tl_automaton_check_state(m, state, err);
    struct taken taken;
    uint64_t *bits;
    if (status < 0) return status;
    if (m->trie == NULL || n != m->trie->n_pieces) {
        return tl_fail(err, TL_EARG, "the mask has %zu entries; expected %zu, as many as pieces", n,
                       m->trie == NULL ? (size_t)0 : m->trie->n_pieces);
    }
    tl_automaton_trim(m);
    m->looks = 0;
    taken = (struct taken){.rest = m->trie};
    bits = calloc((n + 63) / 64 + 1, sizeof *bits);
    if (bits == NULL) return tl_automaton_no_memory(err);
    // all groups together may take all plain text, and none alone: as where some characters of a
    // string are a rule of their own
    for (uint32_t i = 1; i < m->sets[state].n; i++) {
        const struct pair *pairs = m->pairs + m->sets[state].first;
        if (pairs[i].below == pairs[0].below) continue;
        if (find_taken(m, state, &taken)) memcpy(bits, taken.bits, (n + 63) / 64 * sizeof *bits);
        break;
    }
    for (uint32_t i = 0; i < m->sets[state].n && status == TL_OK; i++) {
        const struct pair *pairs = m->pairs + m->sets[state].first;
        bool new = true;
        for (uint32_t j = 0; j < i && new; j++) new = pairs[j].below != pairs[i].below;
        if (new) status = add_group(m, state, pairs[i].below, &taken, bits, err);
    }
    if (status == TL_OK) spread_bits(m, bits, mask, n);
    free(bits);
    return status;
}
