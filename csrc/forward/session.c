/* session.c - blocks of keys and values, and states, shared by reference count between forks. */
#include "forward/session.h"

#include "base/block_cache.h"
#include "forward/cache.h"
#include "forward/device_session.h"

#include <stdlib.h>
#include <string.h>

static void release(struct tl_block *b) {
    if (b == NULL || atomic_fetch_sub(&b->references, 1) > 1) return;
    tl_device_free(b->device, b->buffer);
    tl_mutex_destroy(&b->lock);
    tl_block_cache_give(b->data, b->bytes);
    free(b);
}

static struct tl_block *block_new(const struct tl_cache *c) {
    struct tl_block *b = calloc(1, sizeof(*b));
    float *data = tl_block_cache_take(c->block_bytes);
    if (b == NULL || data == NULL) {
        free(b);
        tl_block_cache_give(data, c->block_bytes);
        return NULL;
    }
    // kernels may read positions before they are written; of a state, all of it is written
    if (c->state == 0) memset(data, 0, c->block_bytes);
    atomic_init(&b->references, 1);
    tl_mutex_init(&b->lock);
    b->in_data = true;
    b->bytes = c->block_bytes;
    b->data = data;
    return b;
}

static struct tl_block *share(struct tl_block *b) {
    if (b != NULL) atomic_fetch_add(&b->references, 1);
    return b;
}

/* Puts `with`, whose reference it takes over, in place of a block. */
static void replace(struct tl_block **cell, struct tl_block *with) {
    release(*cell);
    *cell = with;
}

int tl_session_new(const struct tl_plan *p, struct tl_session **out, struct tl_error *err) {
    *out = calloc(1, sizeof(**out));
    if (*out != NULL) (*out)->states = calloc(p->n_caches + 1, sizeof(*(*out)->states));
    if (*out == NULL || (*out)->states == NULL) {
        free(*out);
        *out = NULL;
        return tl_fail(err, TL_ENOMEM, "no memory for a session");
    }
    (*out)->plan = p;
    return TL_OK;
}

static bool has_states(const struct tl_plan *p) {
    for (size_t c = 0; c < p->n_caches; c++) {
        if (p->caches[c].state > 0) return true;
    }
    return false;
}

/* Frees the blocks of positions from n on. */
static void drop_blocks(struct tl_session *s, size_t n) {
    const size_t keep = (n + TL_BLOCK - 1) / TL_BLOCK;
    for (size_t c = 0; c < s->plan->n_caches; c++) {
        for (size_t b = keep; b < s->n_blocks; b++) {
            replace(&s->blocks[c * s->capacity + b], NULL);
        }
    }
    s->n_blocks = TL_MIN(s->n_blocks, keep);
}

size_t tl_session_rewind(struct tl_session *s, size_t n) {
    if (n < s->n && has_states(s->plan)) {
        if (n < s->kept) s->kept = 0;
        n = s->kept;
        for (size_t c = 0; c < s->plan->n_caches; c++) {
            if (n == 0) replace(&s->states[c].kept, NULL);
            replace(&s->states[c].now, share(s->states[c].kept));
        }
    }
    // a context of such a plan is one call, and the next one fills the same blocks
    if (!s->plan->whole) drop_blocks(s, n);
    session_device_rewind(s, n);
    s->n = n;
    return n;
}

void tl_session_free(struct tl_session *s) {
    if (s == NULL) return;
    tl_session_cancel(s);
    s->kept = 0;
    tl_session_rewind(s, 0);
    drop_blocks(s, 0);
    for (size_t c = 0; c < s->plan->n_caches; c++) replace(&s->states[c].spare, NULL);
    free(s->blocks);
    free(s->states);
    free(s->tokens);
    tl_free(s->work);
    session_device_free(s->device);
    free(s);
}

size_t tl_session_cache_bytes(const struct tl_session *s) {
    size_t bytes = 0;
    for (size_t c = 0; c < s->plan->n_caches; c++) {
        const struct tl_cache *cache = &s->plan->caches[c];
        const struct tl_states *states = &s->states[c];
        size_t count = s->n_blocks;
        if (cache->state > 0) {
            count = (states->now != NULL) + (states->kept != NULL && states->kept != states->now);
        }
        bytes += count * cache->block_bytes;
    }
    return bytes;
}

bool tl_session_bytes_of(const struct tl_plan *p, size_t n, size_t *bytes) {
    *bytes = 0;
    for (size_t c = 0; c < p->n_caches; c++) {
        size_t count = (n + TL_BLOCK - 1) / TL_BLOCK, part;
        if (p->caches[c].state > 0) count = n > TL_BLOCK && n % TL_BLOCK != 0 ? 2 : 1;
        if (!tl_mul_size(count, p->caches[c].block_bytes, &part) ||
            !tl_add_size(*bytes, part, bytes)) {
            return false;
        }
    }
    return true;
}

/* Makes room in the table for `wanted` blocks per cache; does not make the blocks. */
static bool grow_table(struct tl_session *s, size_t wanted) {
    const size_t caches = s->plan->n_caches;
    size_t capacity = TL_MAX(s->capacity * 2, TL_MAX(wanted, (size_t)4)), cells;
    struct tl_block **blocks;
    if (wanted <= s->capacity) return true;
    if (!tl_mul_size(capacity, caches, &cells)) return false;
    blocks = calloc(cells ? cells : 1, sizeof(struct tl_block *));
    if (blocks == NULL) return false;
    for (size_t c = 0; c < caches; c++) {
        for (size_t b = 0; b < s->n_blocks; b++) {
            blocks[c * capacity + b] = s->blocks[c * s->capacity + b];
        }
    }
    free(s->blocks);
    s->blocks = blocks;
    s->capacity = capacity;
    return true;
}

static bool grow_tokens(struct tl_session *s, size_t wanted) {
    void *tokens = s->tokens;
    const bool ok = tl_reserve(&tokens, &s->tokens_capacity, wanted, sizeof(*s->tokens));
    s->tokens = tokens;
    return ok;
}

void tl_session_commit(struct tl_session *s, const int32_t *tokens, size_t n) {
    const size_t last = (s->n + n) / TL_BLOCK * TL_BLOCK;
    if (n == 0) {
        tl_session_cancel(s);
        return;
    }
    memcpy(s->tokens + s->n, tokens, n * sizeof(*tokens));
    for (size_t c = 0; c < s->plan->n_caches; c++) {
        struct tl_states *states = &s->states[c];
        if (states->next == NULL) continue;
        if (states->marked != NULL) replace(&states->kept, states->marked);
        if (last == s->n + n) replace(&states->kept, share(states->next));
        // buffers of devices are slow to make
        if (states->now != NULL && states->now->buffer != NULL &&
            atomic_load(&states->now->references) == 1) {
            replace(&states->spare, states->now);
            states->now = NULL;
        }
        replace(&states->now, states->next);
        states->next = states->marked = NULL;
    }
    if (s->mark > 0 || last == s->n + n) s->kept = last;
    s->mark = 0;
    s->n += n;
}

void tl_session_unmark(struct tl_session *s) {
    for (size_t c = 0; c < s->plan->n_caches; c++) replace(&s->states[c].marked, NULL);
    s->mark = 0;
}

void tl_session_cancel(struct tl_session *s) {
    tl_session_unmark(s);
    for (size_t c = 0; c < s->plan->n_caches; c++) replace(&s->states[c].next, NULL);
    drop_blocks(s, s->n);
    session_device_rewind(s, s->n);
}

int tl_session_fork(const struct tl_session *s, struct tl_session **out, struct tl_error *err) {
    struct tl_session *fork;
    int status = tl_session_new(s->plan, out, err);
    if (status != TL_OK) return status;
    fork = *out;
    if (!grow_table(fork, s->n_blocks) || !grow_tokens(fork, s->n)) {
        tl_session_free(fork);
        *out = NULL;
        return tl_fail(err, TL_ENOMEM, "no memory for a session of %zu tokens", s->n);
    }
    for (size_t c = 0; c < s->plan->n_caches; c++) {
        for (size_t b = 0; b < s->n_blocks; b++) {
            fork->blocks[c * fork->capacity + b] = share(s->blocks[c * s->capacity + b]);
        }
        fork->states[c].now = share(s->states[c].now);
        fork->states[c].kept = share(s->states[c].kept);
    }
    tl_session_commit(fork, s->tokens, s->n);
    fork->n_blocks = s->n_blocks;
    fork->kept = s->kept;
    status = session_device_fork(s, fork, err);
    if (status != TL_OK) {
        tl_session_free(fork);
        *out = NULL;
    }
    return status;
}

/* Makes the blocks of a cache of keys and values writable, from `before` to `wanted` new ones. */
static bool reserve_blocks(struct tl_session *s, size_t c, size_t before, size_t wanted) {
    const struct tl_cache *cache = &s->plan->caches[c];
    struct tl_block **row = s->blocks + c * s->capacity;
    // a block that a fork shares is copied before this session writes to it
    for (size_t b = s->n / TL_BLOCK; b < before; b++) {
        struct tl_block *copy;
        if (atomic_load(&row[b]->references) == 1) continue;
        copy = block_new(cache);
        if (copy == NULL) return false;
        memcpy(copy->data, row[b]->data, cache->block_bytes);
        replace(&row[b], copy);
    }
    for (size_t b = before; b < wanted; b++) {
        row[b] = block_new(cache);
        if (row[b] == NULL) return false;
    }
    return true;
}

/* Makes the states that a call writes. */
static bool reserve_states(struct tl_session *s, size_t c) {
    const struct tl_cache *cache = &s->plan->caches[c];
    struct tl_states *states = &s->states[c];
    states->next = states->spare != NULL ? states->spare : block_new(cache);
    states->spare = NULL;
    if (states->next == NULL) return false;
    states->next->in_data = true;
    states->next->in_buffer = false;
    if (states->now == NULL) memset(states->next->data, 0, cache->block_bytes);
    if (s->mark > 0) states->marked = block_new(cache);
    return s->mark == 0 || states->marked != NULL;
}

int tl_session_reserve(struct tl_session *s, size_t n, struct tl_error *err) {
    const size_t wanted = (s->n + n + TL_BLOCK - 1) / TL_BLOCK, before = s->n_blocks;
    const size_t last = (s->n + n) / TL_BLOCK * TL_BLOCK;
    bool ok = grow_table(s, wanted) && grow_tokens(s, s->n + n);
    if (ok) s->n_blocks = TL_MAX(wanted, before);
    // a state at the end of the call needs no copy
    s->mark = last > s->n && last < s->n + n ? last : 0;
    for (size_t c = 0; ok && c < s->plan->n_caches; c++) {
        ok = s->plan->caches[c].state > 0 ? reserve_states(s, c)
                                          : reserve_blocks(s, c, before, wanted);
    }
    if (ok) return TL_OK;
    tl_session_cancel(s);
    return tl_fail(err, TL_ENOMEM, "no memory for the kv cache of %zu tokens", s->n + n);
}

float *tl_session_state(const struct tl_session *s, size_t cache) {
    return s->states[cache].now != NULL ? s->states[cache].now->data : NULL;
}

float *tl_session_next_state(const struct tl_session *s, size_t cache) {
    return s->states[cache].next->data;
}

float *tl_session_marked(const struct tl_session *s, size_t cache) {
    return s->states[cache].marked->data;
}

void tl_session_carry_state(struct tl_session *s, size_t cache) {
    struct tl_states *states = &s->states[cache];
    if (states->now != NULL) replace(&states->next, share(states->now));
    if (states->marked != NULL) replace(&states->marked, share(states->next));
}

/* The bytes of a block, from the one at `at` on. */
static float *part_of(const struct tl_session *s, size_t cache, size_t block, size_t at) {
    return s->blocks[cache * s->capacity + block]->data + at / sizeof(float);
}

float *tl_session_keys(const struct tl_session *s, size_t cache, size_t head, size_t block) {
    const struct tl_cache *c = &s->plan->caches[cache];
    return part_of(s, cache, block, head * (TL_BLOCK / TL_PANEL) * c->key_panel);
}

float *tl_session_values(const struct tl_session *s, size_t cache, size_t head, size_t block) {
    const struct tl_cache *c = &s->plan->caches[cache];
    return part_of(s, cache, block, c->keys_bytes + head * (TL_BLOCK / TL_PANEL) * c->value_panel);
}

/* The panel that holds a position, of the panels of a block. */
static uint8_t *panel_at(float *panels, size_t position, size_t bytes) {
    return (uint8_t *)(void *)panels + position % TL_BLOCK / TL_PANEL * bytes;
}

void tl_session_put(struct tl_session *s, size_t cache, size_t head, size_t position, size_t n,
                    const float *keys, const float *values) {
    const struct tl_cache *c = &s->plan->caches[cache];
    for (size_t i = 0; i < n; i++) {
        const size_t at = position + i, block = at / TL_BLOCK, row = i * c->kv_heads + head;
        float *k = tl_session_keys(s, cache, head, block);
        float *v = tl_session_values(s, cache, head, block);
        tl_cache_put_key(c, panel_at(k, at, c->key_panel), at % TL_PANEL, keys + row * c->key_size);
        tl_cache_put_value(c, panel_at(v, at, c->value_panel), at % TL_PANEL,
                           values + row * c->value_size);
    }
}

void tl_session_get(const struct tl_session *s, size_t cache, float *keys, float *values,
                    float *wide) {
    const struct tl_cache *c = &s->plan->caches[cache];
    const struct tl_kernels *k = s->plan->kernels;
    for (size_t head = 0; head < c->kv_heads; head++) {
        for (size_t at = 0; at < s->n; at += TL_PANEL) {
            float *panels = tl_session_keys(s, cache, head, at / TL_BLOCK);
            const float *from = tl_cache_keys(k, c, panel_at(panels, at, c->key_panel), wide);
            for (size_t i = 0; i < TL_MIN(s->n - at, (size_t)TL_PANEL); i++) {
                float *to = keys + ((at + i) * c->kv_heads + head) * c->key_size;
                for (size_t d = 0; d < c->key_size; d++) to[d] = from[TL_PANEL * d + i];
            }
            panels = tl_session_values(s, cache, head, at / TL_BLOCK);
            from = tl_cache_values(k, c, panel_at(panels, at, c->value_panel), wide);
            for (size_t i = 0; i < TL_MIN(s->n - at, (size_t)TL_PANEL); i++) {
                memcpy(values + ((at + i) * c->kv_heads + head) * c->value_size,
                       from + i * c->value_stride, c->value_size * sizeof(float));
            }
        }
    }
}
