/* encoder.c - the inner loops of SPM and of byte-level BPE: texts to ids. */
#include "text/encoder.h"

#include "base/hash.h"
#include "base/os.h"

#include <string.h>

enum { MAX_PRETOKENIZERS = 8, CACHED_WORD = 48 };
#define NO_SYMBOL UINT32_MAX

/* A text that can occur while a word is merged: a token, or an intermediate result of merges. */
struct symbol {
    size_t start; // in the arena
    uint32_t size;
    int32_t token; // -1: not in the vocabulary
    double order;  // SPM: -score
    bool weak;
};

struct slot {
    uint32_t hash, symbol; // the symbol's number + 1; 0: empty
};

struct pair {
    uint32_t left, right; // numbers of symbols + 1; 0: empty
    uint32_t rank, merged;
};

struct tl_encoder {
    enum tl_encoder_kind kind;
    bool ignore_merges, cut_at_spaces;
    int32_t byte_ids[256];
    int32_t n_tokens;
    uint32_t n_merges;
    size_t longest; // bytes of the longest symbol
    struct tl_hash_key hash_key;

    uint8_t *arena; // owns
    size_t arena_n, arena_capacity;
    struct symbol *symbols; // owns
    size_t n_symbols, symbols_capacity;
    struct slot *slots; // owns; a power of two, at most half full
    size_t n_slots;
    struct pair *pairs; // owns; a power of two, at most half full
    size_t n_pairs, pairs_used;
    uint32_t byte_symbols[256]; // BPE_BYTES

    struct tl_pretokenizer *pretokenizers[MAX_PRETOKENIZERS]; // owns
    size_t n_pretokenizers;
};

/* ---- memory ---- */

static int reserve(void **items, size_t *capacity, size_t wanted, size_t item_size,
                   struct tl_error *err) {
    if (tl_reserve(items, capacity, wanted, item_size)) return TL_OK;
    return tl_fail(err, TL_ENOMEM, "no memory for %zu tokens", wanted);
}

static int add_id(struct tl_ids *ids, int32_t id, struct tl_error *err) {
    if (ids->n == ids->capacity) {
        void *items = ids->at;
        if (reserve(&items, &ids->capacity, ids->n + 1, sizeof *ids->at, err) < 0) {
            return err->status;
        }
        ids->at = items;
    }
    ids->at[ids->n++] = id;
    return TL_OK;
}

void tl_ids_free(struct tl_ids *ids) {
    tl_free(ids->at);
    memset(ids, 0, sizeof *ids);
}

/* ---- texts to symbols ---- */

static uint32_t hash_text(const struct tl_encoder *e, const uint8_t *text, size_t size) {
    return (uint32_t)tl_hash_bytes(&e->hash_key, text, size);
}

static uint32_t find_symbol(const struct tl_encoder *e, const uint8_t *text, size_t size) {
    const size_t mask = e->n_slots - 1;
    uint32_t hash;
    if (size > e->longest) return NO_SYMBOL;
    hash = hash_text(e, text, size);
    for (size_t i = hash & mask; e->slots[i].symbol != 0; i = (i + 1) & mask) {
        const struct symbol *s = &e->symbols[e->slots[i].symbol - 1];
        if (e->slots[i].hash == hash && s->size == size &&
            memcmp(e->arena + s->start, text, size) == 0) {
            return e->slots[i].symbol - 1;
        }
    }
    return NO_SYMBOL;
}

static void put_slot(struct slot *slots, size_t n_slots, uint32_t hash, uint32_t symbol) {
    size_t i = hash & (n_slots - 1);
    while (slots[i].symbol != 0) i = (i + 1) & (n_slots - 1);
    slots[i].hash = hash;
    slots[i].symbol = symbol + 1;
}

static int grow_slots(struct tl_encoder *e, size_t n, struct tl_error *err) {
    size_t bytes;
    struct slot *slots = tl_mul_size(n, sizeof *slots, &bytes) ? tl_alloc(bytes) : NULL;
    if (slots == NULL) return tl_fail(err, TL_ENOMEM, "no memory for a vocabulary");
    memset(slots, 0, bytes);
    for (size_t i = 0; i < e->n_slots; i++) {
        const struct slot *s = &e->slots[i];
        if (s->symbol != 0) put_slot(slots, n, s->hash, s->symbol - 1);
    }
    tl_free(e->slots);
    e->slots = slots;
    e->n_slots = n;
    return TL_OK;
}

/* Finds or makes the symbol of a text. */
static int intern(struct tl_encoder *e, const uint8_t *text, size_t size, uint32_t *out,
                  struct tl_error *err) {
    void *arena = e->arena, *symbols = e->symbols;
    struct symbol *s;
    size_t wanted;
    *out = find_symbol(e, text, size);
    if (*out != NO_SYMBOL) return TL_OK;
    if (size > UINT32_MAX / 4 || e->n_symbols >= UINT32_MAX / 4 ||
        !tl_add_size(e->arena_n, size, &wanted)) {
        return tl_fail(err, TL_EARG, "the vocabulary is too large");
    }
    if (2 * (e->n_symbols + 1) > e->n_slots && grow_slots(e, e->n_slots * 2, err) < 0)
        return err->status;
    if (reserve(&arena, &e->arena_capacity, wanted, 1, err) < 0) return err->status;
    e->arena = arena;
    if (reserve(&symbols, &e->symbols_capacity, e->n_symbols + 1, sizeof *s, err) < 0) {
        return err->status;
    }
    e->symbols = symbols;
    memcpy(e->arena + e->arena_n, text, size);
    s = &e->symbols[e->n_symbols];
    s->start = e->arena_n;
    s->size = (uint32_t)size;
    s->token = -1;
    s->order = 0;
    s->weak = false;
    e->arena_n = wanted;
    *out = (uint32_t)e->n_symbols++;
    put_slot(e->slots, e->n_slots, hash_text(e, text, size), *out);
    if (size > e->longest) e->longest = size;
    return TL_OK;
}

/*
 * Decodes GPT-2's byte alphabet: 0x21..0x7E, 0xA1..0xAC and 0xAE..0xFF stand for themselves, U+0100
 * and the characters after it for the other bytes in order. False if another character occurs.
 */
static bool from_alphabet(const uint8_t *text, size_t size, uint8_t *out, size_t *out_size) {
    size_t n = 0;
    for (size_t i = 0; i < size; i++) {
        uint32_t code = text[i];
        if (code >= 0x80) {
            if ((code & 0xE0) != 0xC0 || i + 1 >= size || (text[i + 1] & 0xC0) != 0x80) {
                return false;
            }
            code = (code & 0x1F) << 6 | (text[++i] & 0x3Fu);
        }
        if (code >= 0x100) {
            code -= 0x100;
            if (code <= 0x20) {
            } else if (code < 0x43) {
                code += 0x7F - 0x21; // 0x7F..0xA0
            } else if (code == 0x43) {
                code = 0xAD;
            } else {
                return false;
            }
        } else if (!((code >= 0x21 && code <= 0x7E) || (code >= 0xA1 && code != 0xAD))) {
            return false;
        }
        out[n++] = (uint8_t)code;
    }
    *out_size = n;
    return true;
}

/* ---- building ---- */

static size_t pair_place(const struct tl_encoder *e, const struct pair *pairs, size_t n_pairs,
                         uint32_t left, uint32_t right) {
    const uint64_t both = (uint64_t)left << 32 | right;
    size_t i = (size_t)tl_hash_word(&e->hash_key, 0, both) & (n_pairs - 1);
    while (pairs[i].left != 0 && (pairs[i].left != left + 1 || pairs[i].right != right + 1)) {
        i = (i + 1) & (n_pairs - 1);
    }
    return i;
}

static int grow_pairs(struct tl_encoder *e, size_t n, struct tl_error *err) {
    size_t bytes;
    struct pair *pairs = tl_mul_size(n, sizeof *pairs, &bytes) ? tl_alloc(bytes) : NULL;
    if (pairs == NULL) return tl_fail(err, TL_ENOMEM, "no memory for the merges");
    memset(pairs, 0, bytes);
    for (size_t i = 0; i < e->n_pairs; i++) {
        const struct pair *p = &e->pairs[i];
        if (p->left != 0) pairs[pair_place(e, pairs, n, p->left - 1, p->right - 1)] = *p;
    }
    tl_free(e->pairs);
    e->pairs = pairs;
    e->n_pairs = n;
    return TL_OK;
}

/* A power of two, more than 2 * n. */
static size_t table_size(size_t n) {
    size_t size = 1024;
    while (size / 2 <= n && size < SIZE_MAX / 4) size *= 2;
    return size;
}

int tl_encoder_new(enum tl_encoder_kind kind, const int32_t byte_ids[256], size_t n_tokens,
                   size_t n_merges, struct tl_encoder **out, struct tl_error *err) {
    struct tl_encoder *e = tl_alloc(sizeof *e);
    *out = NULL;
    if (e == NULL) return tl_fail(err, TL_ENOMEM, "no memory for a tokenizer");
    memset(e, 0, sizeof *e);
    e->kind = kind;
    e->hash_key = tl_hash_new_key();
    memcpy(e->byte_ids, byte_ids, sizeof e->byte_ids);
    if (grow_slots(e, table_size(n_tokens), err) < 0 ||
        grow_pairs(e, table_size(n_merges), err) < 0) {
        tl_encoder_free(e);
        return err->status;
    }
    for (int b = 0; b < 256; b++) {
        const uint8_t byte = (uint8_t)b;
        e->byte_symbols[b] = NO_SYMBOL;
        if (kind == TL_ENCODER_BPE_BYTES && intern(e, &byte, 1, &e->byte_symbols[b], err) < 0) {
            tl_encoder_free(e);
            return err->status;
        }
    }
    *out = e;
    return TL_OK;
}

void tl_encoder_free(struct tl_encoder *e) {
    if (e == NULL) return;
    for (size_t i = 0; i < e->n_pretokenizers; i++) tl_pretokenizer_free(e->pretokenizers[i]);
    tl_free(e->pairs);
    tl_free(e->slots);
    tl_free(e->symbols);
    tl_free(e->arena);
    tl_free(e);
}

void tl_encoder_ignore_merges(struct tl_encoder *e) {
    e->ignore_merges = true;
}

void tl_encoder_cut_at_spaces(struct tl_encoder *e) {
    e->cut_at_spaces = true;
}

/* The symbol of a text of the vocabulary; NO_SYMBOL if no input can contain it. */
static int intern_spelling(struct tl_encoder *e, const char *text, size_t size, uint32_t *out,
                           struct tl_error *err) {
    uint8_t small[256], *raw = small;
    size_t n = size;
    int status = TL_OK;
    *out = NO_SYMBOL;
    if (e->kind != TL_ENCODER_BPE_BYTES) return intern(e, (const uint8_t *)text, size, out, err);
    if (size > sizeof small) raw = tl_alloc(size);
    if (raw == NULL) return tl_fail(err, TL_ENOMEM, "no memory for a token");
    if (from_alphabet((const uint8_t *)text, size, raw, &n)) status = intern(e, raw, n, out, err);
    if (raw != small) tl_free(raw);
    return status;
}

int tl_encoder_add_token(struct tl_encoder *e, const char *text, size_t size, double score,
                         bool weak, struct tl_error *err) {
    const int32_t id = e->n_tokens;
    uint32_t at = NO_SYMBOL;
    if (id == INT32_MAX) return tl_fail(err, TL_EARG, "the vocabulary is too large");
    e->n_tokens++;
    if (size == 0) return TL_OK;
    if (intern_spelling(e, text, size, &at, err) < 0) return err->status;
    if (at != NO_SYMBOL) {
        struct symbol *s = &e->symbols[at];
        if (s->token < 0 || (s->weak && !weak)) {
            s->token = id;
            s->order = -score;
            s->weak = weak;
        }
    }
    return TL_OK;
}

int tl_encoder_add_merge(struct tl_encoder *e, const char *text, size_t size,
                         struct tl_error *err) {
    const char *space = size > 1 ? memchr(text + 1, ' ', size - 1) : NULL;
    const uint32_t rank = e->n_merges;
    uint32_t left, right, merged = NO_SYMBOL;
    uint8_t small[256], *both = small;
    size_t place, sizes;
    int status;
    if (space == NULL || space + 1 == text + size) {
        return tl_fail(err, TL_EFORMAT, "a merge must be two parts with a space between them");
    }
    if (rank == UINT32_MAX - 1) return tl_fail(err, TL_EARG, "too many merges");
    e->n_merges++;
    if (intern_spelling(e, text, (size_t)(space - text), &left, err) < 0) return err->status;
    if (intern_spelling(e, space + 1, (size_t)(text + size - space - 1), &right, err) < 0) {
        return err->status;
    }
    if (left == NO_SYMBOL || right == NO_SYMBOL) return TL_OK;

    sizes = (size_t)e->symbols[left].size + e->symbols[right].size;
    if (sizes > sizeof small) both = tl_alloc(sizes);
    if (both == NULL) return tl_fail(err, TL_ENOMEM, "no memory for a merge");
    memcpy(both, e->arena + e->symbols[left].start, e->symbols[left].size);
    memcpy(both + e->symbols[left].size, e->arena + e->symbols[right].start,
           e->symbols[right].size);
    status = intern(e, both, sizes, &merged, err);
    if (both != small) tl_free(both);
    if (status < 0) return status;

    if (2 * (e->pairs_used + 1) > e->n_pairs && grow_pairs(e, e->n_pairs * 2, err) < 0)
        return err->status;
    place = pair_place(e, e->pairs, e->n_pairs, left, right);
    if (e->pairs[place].left == 0) {
        e->pairs[place] = (struct pair){left + 1, right + 1, rank, merged};
        e->pairs_used++;
    }
    return TL_OK;
}

int tl_encoder_add_pretokenizer(struct tl_encoder *e, struct tl_pretokenizer *s,
                                struct tl_error *err) {
    if (e->n_pretokenizers == MAX_PRETOKENIZERS) {
        tl_pretokenizer_free(s);
        return tl_fail(err, TL_EARG, "more than %d expressions", MAX_PRETOKENIZERS);
    }
    e->pretokenizers[e->n_pretokenizers++] = s;
    return TL_OK;
}

/* ---- merging ---- */

/* A piece of a word, in a doubly linked list; merged into its left neighbour, it has size 0. */
struct node {
    size_t start, size;     // in the word
    uint32_t symbol;        // BPE
    uint32_t before, after; // indexes of its neighbours
};

/* Two neighbours that can merge. */
struct candidate {
    double order;
    uint32_t left;
    uint32_t merged;
    size_t left_size, right_size; // at the time; if one has changed, the candidate is stale
};

struct work {
    const struct tl_encoder *e;
    const uint8_t *word;
    struct node *nodes; // owns
    size_t nodes_capacity;
    struct candidate *heap; // owns
    size_t n_heap, heap_capacity;
};

static bool sooner(const struct candidate *a, const struct candidate *b) {
    return a->order != b->order ? a->order < b->order : a->left < b->left;
}

static int push_candidate(struct work *w, const struct candidate *c, struct tl_error *err) {
    void *items = w->heap;
    size_t i = w->n_heap;
    if (reserve(&items, &w->heap_capacity, i + 1, sizeof *w->heap, err) < 0) return err->status;
    w->heap = items;
    w->n_heap++;
    while (i > 0 && sooner(c, &w->heap[(i - 1) / 2])) {
        w->heap[i] = w->heap[(i - 1) / 2];
        i = (i - 1) / 2;
    }
    w->heap[i] = *c;
    return TL_OK;
}

static struct candidate pop_candidate(struct work *w) {
    const struct candidate top = w->heap[0], last = w->heap[--w->n_heap];
    size_t i = 0, child;
    while ((child = 2 * i + 1) < w->n_heap) {
        if (child + 1 < w->n_heap && sooner(&w->heap[child + 1], &w->heap[child])) child++;
        if (!sooner(&w->heap[child], &last)) break;
        w->heap[i] = w->heap[child];
        i = child;
    }
    w->heap[i] = last;
    return top;
}

/* Adds the pair of two neighbours to the heap if it merges. */
static int consider(struct work *w, uint32_t left, uint32_t right, struct tl_error *err) {
    const struct tl_encoder *e = w->e;
    const struct node *a = &w->nodes[left], *b = &w->nodes[right];
    struct candidate c = {0, left, NO_SYMBOL, a->size, b->size};
    if (e->kind == TL_ENCODER_SPM) {
        const uint32_t found = find_symbol(e, w->word + a->start, a->size + b->size);
        if (found == NO_SYMBOL || e->symbols[found].token < 0) return TL_OK;
        c.order = e->symbols[found].order;
        c.merged = found;
    } else {
        const struct pair *p;
        if (a->symbol == NO_SYMBOL || b->symbol == NO_SYMBOL) return TL_OK;
        p = &e->pairs[pair_place(e, e->pairs, e->n_pairs, a->symbol, b->symbol)];
        if (p->left == 0) return TL_OK;
        c.order = p->rank;
        c.merged = p->merged;
    }
    return push_candidate(w, &c, err);
}

static size_t lead_size(uint8_t lead) {
    return lead < 0xC0 ? 1 : lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : 4;
}

static int start_nodes(struct work *w, size_t size, size_t *count, struct tl_ids *out,
                       struct tl_error *err) {
    const struct tl_encoder *e = w->e;
    void *items = w->nodes;
    size_t n = 0;
    if (reserve(&items, &w->nodes_capacity, size, sizeof *w->nodes, err) < 0) return err->status;
    w->nodes = items;
    for (size_t at = 0; at < size;) {
        struct node *node = &w->nodes[n];
        const uint8_t byte = w->word[at];
        node->start = at;
        if (e->kind == TL_ENCODER_BPE_BYTES) {
            node->size = 1;
            node->symbol = e->byte_symbols[byte];
        } else {
            node->size = TL_MIN(lead_size(byte), size - at);
            node->symbol = find_symbol(e, w->word + at, node->size);
        }
        at += node->size;
        if (e->kind == TL_ENCODER_BPE_BYTES && e->symbols[node->symbol].token < 0) {
            // as in Hugging Face's BPE: a byte that is not a token takes no part in merges
            out->dropped[byte >> 3] |= (uint8_t)(1u << (byte & 7));
            continue;
        }
        node->before = (uint32_t)n - 1;
        node->after = (uint32_t)n + 1;
        n++;
    }
    *count = n;
    return TL_OK;
}

static int add_bytes(const struct tl_encoder *e, const uint8_t *text, size_t size,
                     struct tl_ids *out, struct tl_error *err) {
    for (size_t i = 0; i < size; i++) {
        const int32_t id = e->byte_ids[text[i]];
        if (id < 0) {
            out->dropped[text[i] >> 3] |= (uint8_t)(1u << (text[i] & 7));
        } else if (add_id(out, id, err) < 0) {
            return err->status;
        }
    }
    return TL_OK;
}

/* The ids of one word. */
static int merge_word(struct work *w, const uint8_t *word, size_t size, struct tl_ids *out,
                      struct tl_error *err) {
    const struct tl_encoder *e = w->e;
    size_t count = 0;
    if (e->ignore_merges) {
        const uint32_t whole = find_symbol(e, word, size);
        if (whole != NO_SYMBOL && e->symbols[whole].token >= 0) {
            return add_id(out, e->symbols[whole].token, err);
        }
    }
    if (size >= UINT32_MAX) return tl_fail(err, TL_EARG, "a word of %zu bytes is too long", size);
    w->word = word;
    w->n_heap = 0;
    if (start_nodes(w, size, &count, out, err) < 0) return err->status;
    for (size_t i = 0; i + 1 < count; i++) {
        if (consider(w, (uint32_t)i, (uint32_t)i + 1, err) < 0) return err->status;
    }
    while (w->n_heap > 0) {
        const struct candidate c = pop_candidate(w);
        struct node *a = &w->nodes[c.left], *b;
        // nodes only grow or vanish, so equal sizes mean that nothing has changed
        if (a->size != c.left_size || a->after >= count) continue;
        b = &w->nodes[a->after];
        if (b->size != c.right_size) continue;
        a->size += b->size;
        a->symbol = c.merged;
        b->size = 0;
        a->after = b->after;
        if (a->after < count) w->nodes[a->after].before = c.left;
        if (a->before < count && consider(w, a->before, c.left, err) < 0) return err->status;
        if (a->after < count && consider(w, c.left, a->after, err) < 0) return err->status;
    }
    for (size_t i = 0; i < count; i = w->nodes[i].after) {
        const struct node *node = &w->nodes[i];
        const struct symbol *symbol = node->symbol == NO_SYMBOL ? NULL : &e->symbols[node->symbol];
        const uint8_t *bytes = symbol == NULL ? word + node->start : e->arena + symbol->start;
        const int status = symbol != NULL && symbol->token >= 0
                               ? add_id(out, symbol->token, err)
                               : add_bytes(e, bytes, node->size, out, err);
        if (status < 0) return status;
    }
    return TL_OK;
}

/* ---- whole texts ---- */

/* A word that occurred earlier in the text: its ids are in the output already. */
struct seen {
    size_t word, ids; // where each starts
    uint32_t hash, n_ids;
    uint16_t size; // of the word; 0: empty
};

static int run_words(const struct tl_encoder *e, const uint8_t *text, const struct tl_ends *ends,
                     struct tl_ids *out, struct tl_error *err) {
    struct work w = {.e = e};
    struct seen *seen = NULL;
    size_t n_seen = 0, start = 0;
    int status = TL_OK;
    if (ends->n >= 64) { // in a shorter text the cache costs more than it saves
        for (n_seen = 256; n_seen < ends->n / 4 && n_seen < 1u << 15;) n_seen *= 2;
        seen = tl_alloc(n_seen * sizeof *seen);
        if (seen == NULL) return tl_fail(err, TL_ENOMEM, "no memory for the words of a text");
        memset(seen, 0, n_seen * sizeof *seen);
    }
    for (size_t i = 0; i < ends->n && status == TL_OK; start = ends->at[i++]) {
        const size_t size = ends->at[i] - start, first = out->n;
        struct seen *place = NULL;
        uint32_t hash = 0;
        if (size == 0) continue;
        if (seen != NULL && size <= CACHED_WORD) {
            hash = hash_text(e, text + start, size);
            place = &seen[hash & (n_seen - 1)];
            if (place->size == size && place->hash == hash &&
                memcmp(text + place->word, text + start, size) == 0) {
                for (uint32_t k = 0; k < place->n_ids && status == TL_OK; k++) {
                    status = add_id(out, out->at[place->ids + k], err);
                }
                continue;
            }
        }
        status = merge_word(&w, text + start, size, out, err);
        if (place != NULL) {
            *place = (struct seen){start, first, hash, (uint32_t)(out->n - first), (uint16_t)size};
        }
    }
    tl_free(seen);
    tl_free(w.nodes);
    tl_free(w.heap);
    return status;
}

/* Adds the ends of SPM's words: before each run of U+2581 (E2 96 81), except at the start. */
static int cut_at_spaces(const uint8_t *text, size_t n, struct tl_ends *ends,
                         struct tl_error *err) {
    bool after_space = true;
    for (size_t at = 0; at < n;) {
        const bool space =
            n - at >= 3 && text[at] == 0xE2 && text[at + 1] == 0x96 && text[at + 2] == 0x81;
        if (space && !after_space && tl_ends_add(ends, at, err) < 0) return err->status;
        after_space = space;
        at += space ? 3 : 1;
    }
    return tl_ends_add(ends, n, err);
}

static int cut(const struct tl_encoder *e, const uint8_t *text, size_t n, struct tl_ends *ends,
               struct tl_error *err) {
    struct tl_pretokenizer_stack stack = {0};
    struct tl_ends next = {0};
    int status;
    if (e->cut_at_spaces) return cut_at_spaces(text, n, ends, err);
    status = tl_ends_add(ends, n, err);
    for (size_t i = 0; i < e->n_pretokenizers && status == TL_OK; i++) {
        struct tl_ends before;
        size_t start = 0;
        next.n = 0;
        for (size_t k = 0; k < ends->n && status == TL_OK; start = ends->at[k++]) {
            status = tl_pretokenizer_run(e->pretokenizers[i], text, start, ends->at[k], &next,
                                         &stack, err);
        }
        before = *ends;
        *ends = next;
        next = before;
    }
    tl_ends_free(&next);
    tl_pretokenizer_stack_free(&stack);
    return status;
}

/* Checks the lead and continuation bytes, so that no character ends outside the text. */
static bool is_utf8(const uint8_t *text, size_t n) {
    for (size_t at = 0; at < n;) {
        size_t size = lead_size(text[at]);
        if (text[at] < 0x80) {
            at++;
            continue;
        }
        if (text[at] < 0xC0 || text[at] >= 0xF8 || size > n - at) return false;
        for (at++; size > 1; size--, at++) {
            if ((text[at] & 0xC0) != 0x80) return false;
        }
    }
    return true;
}

int tl_encoder_run(const struct tl_encoder *e, const uint8_t *text, size_t n,
                   const struct tl_ends *ends, struct tl_ids *out, struct tl_error *err) {
    struct tl_ends own = {0};
    int status = TL_OK;
    if (n == 0) return TL_OK;
    if (e->kind != TL_ENCODER_SPM && !is_utf8(text, n)) {
        return tl_fail(err, TL_EARG, "the text is not UTF-8");
    }
    if (ends == NULL) status = cut(e, text, n, &own, err);
    if (status == TL_OK) status = run_words(e, text, ends != NULL ? ends : &own, out, err);
    tl_ends_free(&own);
    return status;
}
