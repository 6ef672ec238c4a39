/* workspace.c - the buffers of one call. */
#include "forward/workspace.h"

#include "forward/attention.h"
#include "forward/experts.h"
#include "forward/linear.h"
#include "forward/router.h"

#include <string.h>

#define CHUNK_ROWS 512

/* Cuts buffers from one block of memory, one after another. */
struct carver {
    uint8_t *base; // NULL: only measures
    size_t used;
    bool ok;
};

static void *carve(struct carver *c, size_t count, size_t size) {
    const size_t at = c->used;
    size_t bytes;
    c->ok = c->ok && tl_mul_size(count, size, &bytes) && tl_add_size(bytes, 63, &bytes) &&
            tl_add_size(c->used, bytes & ~(size_t)63, &c->used);
    return c->base != NULL && c->ok ? c->base + at : NULL;
}

/* A table of `n` buffers of r->chunk rows; floats_of gives the floats per row of each. */
static float **carve_table(struct carver *c, const struct run *r, size_t n,
                           size_t (*floats_of)(const struct tl_plan *p, size_t i)) {
    float **table = carve(c, n, sizeof(*table));
    for (size_t i = 0; i < n; i++) {
        size_t bytes;
        c->ok = c->ok && tl_mul_size(floats_of(r->p, i), sizeof(float), &bytes);
        float *buffer = c->ok ? carve(c, r->chunk, bytes) : NULL;
        if (table != NULL) table[i] = buffer;
    }
    return table;
}

static size_t slot_floats(const struct tl_plan *p, size_t i) {
    return p->slots[i];
}

static size_t rope_floats(const struct tl_plan *p, size_t i) {
    return p->ropes[i].rotated;
}

static void lay_out(struct run *r, struct carver *c) {
    const size_t threads = (size_t)r->call->threads;
    r->values = carve(c, r->p->n, sizeof(*r->values));
    r->slots = carve_table(c, r, r->p->n_slots, slot_floats);
    r->cos_sin = carve_table(c, r, r->p->n_ropes, rope_floats);
    r->gathered = carve(c, r->chunk, r->p->gathered * sizeof(float));
    r->spans = carve(c, r->n_pieces, sizeof(struct span));
    r->packed = carve(c, 1, r->pack_bytes);
    r->packed_one = carve(c, threads, r->pack_one_bytes);
    r->stamps = carve(c, threads, sizeof(struct stamp));
    r->scratch = carve(c, threads, r->thread_bytes);
    r->shared = carve(c, 1, r->shared_bytes);
    r->expert_ids = carve(c, r->pairs, sizeof(*r->expert_ids));
    r->expert_seen = carve(c, r->experts, sizeof(*r->expert_seen));
    r->expert_pairs = carve(c, r->pairs, sizeof(*r->expert_pairs));
    r->expert_first = carve(c, r->experts + 1, sizeof(*r->expert_first));
}

void workspace_wanted(const struct run *r, size_t row0, size_t n, size_t *first, size_t *count) {
    size_t i = 0, j;
    while (i < r->call->n_rows && r->call->rows[i] < row0) i++;
    for (j = i; j < r->call->n_rows && r->call->rows[j] < row0 + n; j++) continue;
    *first = i;
    *count = j - i;
}

static void plan_step(struct run *r, const struct tl_step *s, size_t rows) {
    if (s->op == TL_OP_LINEAR) linear_plan(r, s, rows);
    if (s->op == TL_OP_ROUTE_IDS) router_plan(r, s, rows);
    if (s->op == TL_OP_EXPERTS || s->op == TL_OP_HEAD_LINEAR) experts_plan(r, s, rows);
}

/* Plans the matmuls of a chunk of n rows: in the blocks they have all of them, after the blocks
   only the `count` rows whose logits are wanted. */
static void plan_matmuls(struct run *r, size_t n, size_t count) {
    for (size_t i = 0; i < r->p->n; i++) {
        const struct tl_step *s = &r->p->steps[i];
        if (s->layer < (int)r->p->layers) {
            plan_step(r, s, n);
            continue;
        }
        if (count > 0) plan_step(r, s, count);
        if (r->call->captures != NULL || r->call->edits != NULL) plan_step(r, s, n);
    }
}

int workspace_plan(struct run *r, size_t *bytes) {
    struct carver c = {.ok = true};
    size_t planned = 0, planned_count = 0;
    r->max_keys = (r->max_keys + TL_BLOCK - 1) / TL_BLOCK * TL_BLOCK;
    r->tile = NEAR_BYTES / (r->max_keys * sizeof(float));
    r->tile = TL_MIN(TL_MAX(r->tile, (size_t)MIN_QUERIES), (size_t)MAX_QUERIES);
    r->chunk = r->call->edits != NULL || r->p->whole ? r->rows : TL_MIN(r->rows, CHUNK_ROWS);
    for (size_t row0 = 0; row0 < r->rows; row0 += r->chunk) {
        const size_t n = TL_MIN(r->chunk, r->rows - row0);
        size_t first, count;
        workspace_wanted(r, row0, n, &first, &count);
        // a context of 2^30 tokens is two million chunks, nearly all of them alike
        if (n == planned && count == planned_count) continue;
        plan_matmuls(r, n, count);
        planned = n, planned_count = count;
    }
    r->thread_bytes = TL_MAX(r->thread_bytes, attention_scratch(r));
    r->thread_bytes = (r->thread_bytes + 4095) / 4096 * 4096;
    r->shared_bytes = attention_shared(r);
    r->pack_one_bytes = (r->pack_one_bytes + 63) / 64 * 64;

    lay_out(r, &c);
    if (!c.ok) return tl_fail(r->err, TL_ENOMEM, "a call of %zu tokens is too large", r->rows);
    *bytes = c.used;
    return TL_OK;
}

int workspace_make(struct run *r) {
    struct tl_session *keeper = r->pieces[0].session;
    struct carver c = {.ok = true};
    size_t bytes;
    TL_TRY(workspace_plan(r, &bytes));
    if (bytes > keeper->work_bytes) {
        tl_free(keeper->work);
        keeper->work_bytes = 0;
        keeper->work = tl_alloc(bytes);
        if (keeper->work == NULL) {
            return tl_fail(r->err, TL_ENOMEM, "no memory for the %zu bytes of a call of %zu tokens",
                           bytes, r->rows);
        }
        keeper->work_bytes = bytes;
    }
    c.base = keeper->work;
    lay_out(r, &c);
    memset(r->stamps, 0, (size_t)r->call->threads * sizeof(struct stamp));
    return TL_OK;
}
