/* trie.c - builds the tree of a vocabulary. */
#include "text/trie.h"

#include <stdlib.h>
#include <string.h>

// The ranges of bytes of well-formed UTF-8: Unicode 15.0, table 3-7.
uint8_t tl_text_next(uint8_t unit, uint8_t byte) {
    static const struct step {
        uint8_t unit, low, high, next;
    } steps[] = {
        {0, 0x20, 0x21, 0},
        {0, 0x23, 0x5B, 0},
        {0, 0x5D, 0x7E, 0}, // ASCII
        {0, 0xC2, 0xDF, 1},
        {0, 0xE1, 0xE1, 2},
        {0, 0xE3, 0xEC, 2}, // the first of 2 or 3 bytes
        {0, 0xEE, 0xEF, 2},
        {0, 0xE0, 0xE0, 4},
        {0, 0xED, 0xED, 5}, // ... that restrict the second
        {0, 0xE2, 0xE2, 8},
        {8, 0x80, 0x80, 9},
        {8, 0x81, 0xBF, 1}, // ... or, here, the third
        {9, 0x80, 0xA7, 0},
        {9, 0xAA, 0xBF, 0}, //
        {0, 0xF1, 0xF3, 3},
        {0, 0xF0, 0xF0, 6},
        {0, 0xF4, 0xF4, 7}, // the first of 4 bytes
        {1, 0x80, 0xBF, 0},
        {2, 0x80, 0xBF, 1},
        {3, 0x80, 0xBF, 2}, // 1, 2 or 3 are missing
        {4, 0xA0, 0xBF, 1},
        {5, 0x80, 0x9F, 1}, // the second of 3
        {6, 0x90, 0xBF, 2},
        {7, 0x80, 0x8F, 2},                     // the second of 4
        {TL_TEXT_WORD, '0', '9', TL_TEXT_WORD}, //
        {TL_TEXT_WORD, 'A', 'Z', TL_TEXT_WORD},
        {TL_TEXT_WORD, 'a', 'z', TL_TEXT_WORD},
        {TL_TEXT_PATH, '!', '!', TL_TEXT_PATH},
        {TL_TEXT_PATH, '$', '$', TL_TEXT_PATH},
        {TL_TEXT_PATH, '&', ';', TL_TEXT_PATH},
        {TL_TEXT_PATH, '=', '=', TL_TEXT_PATH},
        {TL_TEXT_PATH, '?', 'Z', TL_TEXT_PATH},
        {TL_TEXT_PATH, '_', '_', TL_TEXT_PATH},
        {TL_TEXT_PATH, 'a', 'z', TL_TEXT_PATH},
        {TL_TEXT_PATH, '~', '~', TL_TEXT_PATH},
    };
    for (size_t i = 0; i < TL_ARRAY_LEN(steps); i++) {
        const struct step *s = &steps[i];
        if (s->unit == unit && s->low <= byte && byte <= s->high) return s->next;
    }
    return TL_TEXT_NONE;
}

/* A piece while the tree is built. */
struct piece {
    const uint8_t *bytes;
    size_t size;
    uint32_t id;
};

static int compare(const void *left, const void *right) {
    const struct piece *a = left, *b = right;
    const int order = memcmp(a->bytes, b->bytes, TL_MIN(a->size, b->size));
    if (order != 0) return order;
    if (a->size != b->size) return a->size < b->size ? -1 : 1;
    return a->id < b->id ? -1 : 1;
}

static size_t shared_start(const struct piece *a, const struct piece *b) {
    const size_t limit = TL_MIN(a->size, b->size);
    size_t i = 0;
    while (i < limit && a->bytes[i] == b->bytes[i]) i++;
    return i;
}

/* Counts the nodes: a piece adds one per byte that it does not share with the piece before it. */
static bool count_nodes(const struct piece *pieces, size_t n, size_t *out) {
    size_t total = 1;
    for (size_t i = 0; i < n; i++) {
        const size_t shared = i == 0 ? 0 : shared_start(&pieces[i - 1], &pieces[i]);
        if (!tl_add_size(total, pieces[i].size - shared, &total)) return false;
    }
    *out = total;
    return total < UINT32_MAX;
}

/* Ends the deepest open node: its parent learns how far plain text goes on below it. */
static void close_node(struct tl_trie *t, const uint32_t *path, size_t depth, uint32_t end) {
    const uint32_t node = path[depth], parent = path[depth - 1];
    const int above = TL_MIN(t->height[node] + 1, TL_TEXT_NONE);
    t->end[node] = end;
    t->height[parent] = (uint8_t)TL_MAX(t->height[parent], above);
}

static void fill(struct tl_trie *t, const struct piece *pieces, size_t n, uint32_t *path) {
    size_t node = 1;
    size_t open = 0; // the nodes path[1..open] have no `end` yet
    path[0] = 0;
    t->depth[0] = 0;
    t->byte[0] = 0;
    t->unit[0] = TL_TEXT_BOUNDARY;
    for (size_t i = 0; i < n; i++) {
        const struct piece *p = &pieces[i];
        const size_t shared = i == 0 ? 0 : shared_start(p - 1, p);
        for (; open > shared; open--) close_node(t, path, open, (uint32_t)node);
        for (size_t d = shared; d < p->size; d++, node++) {
            t->byte[node] = p->bytes[d];
            t->unit[node] = tl_text_next(t->unit[path[d]], p->bytes[d]);
            t->height[node] = t->unit[node] == TL_TEXT_NONE ? TL_TEXT_NONE : 0;
            t->depth[node] = (uint32_t)(d + 1);
            t->first_id[node] = (uint32_t)i;
            path[d + 1] = (uint32_t)node;
        }
        open = p->size;
        t->ids[i] = p->id;
        t->n_ids[path[p->size]]++;
        if (t->n_ids[path[p->size]] == 1) t->first_id[path[p->size]] = (uint32_t)i;
    }
    for (; open > 0; open--) close_node(t, path, open, (uint32_t)node);
    t->end[0] = (uint32_t)node;
}

/* The tree of the pieces that `text` (NULL: none) does not have. */
static int build(const uint8_t *const *pieces, const size_t *sizes, size_t n, const uint64_t *text,
                 struct tl_trie **out, struct tl_error *err) {
    struct tl_trie *t = NULL;
    struct piece *sorted = NULL;
    uint32_t *path = NULL;
    size_t kept = 0, longest = 0, nodes;
    if (n >= UINT32_MAX / 2) return tl_fail(err, TL_EARG, "%zu pieces are too many", n);
    sorted = malloc(TL_MAX(n, (size_t)1) * sizeof *sorted);
    t = calloc(1, sizeof *t);
    if (sorted == NULL || t == NULL) goto no_memory;
    for (size_t i = 0; i < n; i++) {
        if (sizes[i] == 0 || (text != NULL && (text[i / 64] >> i % 64 & 1) != 0)) continue;
        sorted[kept++] = (struct piece){pieces[i], sizes[i], (uint32_t)i};
        longest = TL_MAX(longest, sizes[i]);
    }
    qsort(sorted, kept, sizeof *sorted, compare);
    if (!count_nodes(sorted, kept, &nodes)) {
        free(sorted);
        tl_trie_free(t);
        return tl_fail(err, TL_EARG, "the pieces have too many bytes");
    }
    t->n = nodes;
    t->n_pieces = n;
    t->n_kept = kept;
    t->longest = longest;
    t->byte = malloc(nodes);
    t->end = malloc(nodes * sizeof *t->end);
    t->depth = malloc(nodes * sizeof *t->depth);
    t->first_id = calloc(nodes, sizeof *t->first_id);
    t->n_ids = calloc(nodes, sizeof *t->n_ids);
    t->ids = malloc(TL_MAX(kept, (size_t)1) * sizeof *t->ids);
    t->unit = malloc(nodes);
    t->height = calloc(nodes, 1);
    path = malloc((longest + 1) * sizeof *path);
    if (t->byte == NULL || t->end == NULL || t->depth == NULL || t->first_id == NULL ||
        t->n_ids == NULL || t->ids == NULL || t->unit == NULL || t->height == NULL ||
        path == NULL) {
        goto no_memory;
    }
    fill(t, sorted, kept, path);
    free(path);
    free(sorted);
    *out = t;
    return TL_OK;
no_memory:
    free(path);
    free(sorted);
    tl_trie_free(t);
    return tl_fail(err, TL_ENOMEM, "no memory for a tree of %zu pieces", n);
}

static bool is_short_text(const uint8_t *bytes, size_t n, uint8_t unit) {
    bool is = n > 0 && n <= TL_TEXT_SHORT;
    for (size_t i = 0; i < n && is; i++) {
        unit = tl_text_next(unit, bytes[i]);
        is = unit != TL_TEXT_NONE;
    }
    return is;
}

/* The characters of a piece that is plain text, of which the last may be cut; 0 if it is not. */
static size_t count_characters(const uint8_t *bytes, size_t n) {
    size_t count = 0;
    uint8_t unit = TL_TEXT_BOUNDARY;
    for (size_t i = 0; i < n; i++) {
        count += unit == TL_TEXT_BOUNDARY;
        unit = tl_text_next(unit, bytes[i]);
        if (unit == TL_TEXT_NONE) return 0;
    }
    return count;
}

/* Finds the pieces of few characters, and builds the tree of those that are not plain text. */
static int find_few(struct tl_trie *t, const uint8_t *const *pieces, const size_t *sizes, size_t n,
                    struct tl_error *err) {
    uint64_t *plain = calloc(n / 64 + 1, sizeof *plain);
    bool ok = plain != NULL;
    int status;
    for (int count = 0; count < TL_TEXT_SHORT; count++) {
        t->few[count] = calloc(n / 64 + 1, sizeof *t->few[count]);
        ok = ok && t->few[count] != NULL;
    }
    if (!ok) {
        free(plain);
        return tl_fail(err, TL_ENOMEM, "no memory for a tree of %zu pieces", n);
    }
    for (size_t i = 0; i < n; i++) {
        const size_t count = count_characters(pieces[i], sizes[i]);
        const uint64_t bit = (uint64_t)1 << i % 64;
        if (count == 0) continue;
        plain[i / 64] |= bit;
        for (size_t more = count; more < TL_TEXT_SHORT; more++) t->few[more][i / 64] |= bit;
    }
    status = build(pieces, sizes, n, plain, &t->unplain, err);
    free(plain);
    return status;
}

int tl_trie_new(const uint8_t *const *pieces, const size_t *sizes, size_t n, struct tl_trie **out,
                struct tl_error *err) {
    static const uint8_t units[TL_TEXT_KINDS] = {TL_TEXT_BOUNDARY, TL_TEXT_PATH, TL_TEXT_WORD};
    struct tl_trie *t = NULL;
    int status = build(pieces, sizes, n, NULL, &t, err);
    for (int kind = 0; kind < TL_TEXT_KINDS && status == TL_OK; kind++) {
        struct tl_short_text *text = &t->texts[kind];
        text->unit = units[kind];
        text->bits = calloc(n / 64 + 1, sizeof *text->bits);
        if (text->bits == NULL) {
            status = tl_fail(err, TL_ENOMEM, "no memory for a tree of %zu pieces", n);
            break;
        }
        for (size_t i = 0; i < n; i++) {
            if (!is_short_text(pieces[i], sizes[i], text->unit)) continue;
            text->bits[i / 64] |= (uint64_t)1 << i % 64;
        }
        status = build(pieces, sizes, n, text->bits, &text->rest, err);
    }
    if (status == TL_OK) status = find_few(t, pieces, sizes, n, err);
    if (status < 0) {
        tl_trie_free(t);
        return status;
    }
    *out = t;
    return TL_OK;
}

void tl_trie_free(struct tl_trie *t) {
    if (t == NULL) return;
    for (int kind = 0; kind < TL_TEXT_KINDS; kind++) {
        free(t->texts[kind].bits);
        tl_trie_free(t->texts[kind].rest);
    }
    for (int count = 0; count < TL_TEXT_SHORT; count++) free(t->few[count]);
    tl_trie_free(t->unplain);
    free(t->byte);
    free(t->end);
    free(t->depth);
    free(t->first_id);
    free(t->n_ids);
    free(t->ids);
    free(t->unit);
    free(t->height);
    free(t);
}

void tl_trie_subtree_ids(const struct tl_trie *t, uint32_t node, uint32_t *first, uint32_t *last) {
    const uint32_t end = t->end[node];
    *first = t->first_id[node];
    *last = end < t->n ? t->first_id[end] : (uint32_t)t->n_kept;
}

size_t tl_trie_n_pieces(const struct tl_trie *t) {
    return t->n_pieces;
}

size_t tl_trie_n_nodes(const struct tl_trie *t) {
    return t->n;
}
