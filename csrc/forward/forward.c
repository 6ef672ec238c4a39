/*
 * forward.c - the forward pass, written around its taps.
 *
 * Every step writes where out() says: into the caller's array when its tap is captured, else
 * into scratch. When the step is complete, done() lets an edit change what the next step reads.
 * The rows (tokens) of all pieces run through the layers together, a chunk at a time; the bits
 * do not depend on the chunk. With edits the chunk is the whole call, because an edit sees all
 * tokens at once.
 */
#include "base/fpu.h"
#include "base/math64.h"
#include "base/pool.h"
#include "forward/pass.h"

#include <string.h>

#define CHUNK_ROWS 512

/* Scores of one attention task: about what fits the second-level cache. */
#define SCORES_BYTES ((size_t)256 << 10)
#define MAX_QUERIES 48

/* Work (in multiplications) from which a loop is handed to the pool, and of one task at most:
   small enough that a task ends well before anybody notices that Ctrl-C waits for it. */
#define PARALLEL_WORK 32768
#define TASK_WORK 30000000

#define MAX_GROUP 3 // matrices that read the same activations: q, k, v

/* ---- the workspace ---- */

struct carver {
    uint8_t *base; // NULL: only measure
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

static void lay_out(struct run *r, struct carver *c) {
    for (int tap = 0; tap < TL_TAP_COUNT; tap++) {
        size_t row = 0;
        for (size_t l = 0; l < r->m->config.layers; l++) {
            row = TL_MAX(row, tl_tap_row(r->m, (enum tl_tap)tap, l));
        }
        // logits go to the caller's array, scores and probs to the threads' scratch
        if (tl_taps[tap].matrix || tap == TL_TAP_OUTPUT) row = 0;
        r->slots[tap] = carve(c, r->chunk, row * sizeof(float));
    }
    r->cos_sin = carve(c, r->chunk, r->m->config.rope_dimension * sizeof(float));
    r->gathered = carve(c, r->chunk, r->m->config.width * sizeof(float));
    r->spans = carve(c, r->n_pieces, sizeof(struct span));
    r->packed = carve(c, 1, r->pack_bytes);
    r->packed_one = carve(c, (size_t)r->call->threads, r->pack_one_bytes);
    r->stamps = carve(c, (size_t)r->call->threads, sizeof(struct stamp));
    r->scratch = carve(c, (size_t)r->call->threads, r->thread_bytes);
    r->shared = carve(c, 1, r->shared_bytes);
}

static void plan_matmul(struct run *r, const struct tl_matrix *w, size_t tokens) {
    const int format = r->k->format(w->type, tokens);
    size_t *bytes = tokens == 1 ? &r->pack_one_bytes : &r->pack_bytes;
    *bytes = TL_MAX(*bytes, r->k->pack_bytes(format, w->cols, tokens));
    r->thread_bytes = TL_MAX(r->thread_bytes, r->k->scratch(w, format, tokens));
}

/* Rows of the chunk at row0 whose logits are wanted: call->rows[first .. first + count). */
static void wanted_rows(const struct run *r, size_t row0, size_t n, size_t *first, size_t *count) {
    size_t i = 0, j;
    while (i < r->call->n_rows && r->call->rows[i] < row0) i++;
    for (j = i; j < r->call->n_rows && r->call->rows[j] < row0 + n; j++) continue;
    *first = i;
    *count = j - i;
}

/* How the rows of the call are cut, and what its buffers take; all of them lie in one block. */
static int plan_workspace(struct run *r, size_t *bytes) {
    struct carver c = {.ok = true};
    size_t planned = 0;
    r->max_keys = (r->max_keys + TL_BLOCK - 1) / TL_BLOCK * TL_BLOCK;
    r->tile = TL_MIN(TL_MAX(SCORES_BYTES / (r->max_keys * sizeof(float)), (size_t)1), MAX_QUERIES);
    r->chunk = r->call->edits != NULL ? r->rows : TL_MIN(r->rows, CHUNK_ROWS);
    for (size_t row0 = 0; row0 < r->rows; row0 += r->chunk) {
        const size_t n = TL_MIN(r->chunk, r->rows - row0);
        size_t first, count;
        wanted_rows(r, row0, n, &first, &count);
        if (tap_captured(r, TL_TAP_OUTPUT, 0)) count = n;
        if (count > 0) plan_matmul(r, &r->m->output.w, count);
        if (n == planned) continue;
        planned = n;
        for (size_t l = 0; l < r->m->config.layers; l++) {
            const struct tl_layer *layer = &r->m->layers[l];
            const struct tl_linear *linear[] = {&layer->q,    &layer->k,  &layer->v,   &layer->out,
                                                &layer->gate, &layer->up, &layer->down};
            for (size_t i = 0; i < TL_ARRAY_LEN(linear); i++) plan_matmul(r, &linear[i]->w, n);
        }
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

/* The first session keeps the block for the next call. */
static int make_workspace(struct run *r) {
    struct tl_session *keeper = r->pieces[0].session;
    struct carver c = {.ok = true};
    size_t bytes;
    int status = plan_workspace(r, &bytes);
    if (status != TL_OK) return status;
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

/* ---- running loops on the pool ---- */

int run_tasks(struct run *r, size_t tasks, tl_task_fn *fn, void *arg) {
    // more tasks than the pool counts are run in several goes
    int status = TL_OK;
    for (size_t i = 0; i < tasks && status == TL_OK; i += TL_MAX_TASKS) {
        status = tl_pool_run(r->call->threads, TL_MIN(tasks - i, TL_MAX_TASKS), fn, arg,
                             r->call->poll, r->call->poll_user);
    }
    if (status != TL_OK) return tl_fail(r->err, TL_ESTOP, "interrupted");
    return TL_OK;
}

typedef void row_fn(struct run *r, const void *arg, size_t first, size_t last);

struct row_loop {
    struct run *r;
    row_fn *fn;
    const void *arg;
    size_t rows, parts;
};

static void row_task(void *arg, size_t task, int thread) {
    const struct row_loop *loop = arg;
    (void)thread;
    loop->fn(loop->r, loop->arg, loop->rows * task / loop->parts,
             loop->rows * (task + 1) / loop->parts);
}

/* fn over all rows of the chunk, `work` operations each. */
static int each_row(struct run *r, size_t rows, size_t work, row_fn *fn, const void *arg) {
    struct row_loop loop = {r, fn, arg, rows, TL_MIN(rows, (size_t)r->call->threads * 4)};
    if (r->call->threads == 1 || rows * work < PARALLEL_WORK || rows == 1) {
        fn(r, arg, 0, rows);
        return TL_OK;
    }
    return run_tasks(r, loop.parts, row_task, &loop);
}

/* ---- taps ---- */

static float *out(struct run *r, enum tl_tap tap, size_t layer) {
    if (!tap_captured(r, tap, layer)) return r->slots[tap];
    return r->call->captures[tap_cell(layer, tap)] + r->row0 * tl_tap_row(r->m, tap, layer);
}

static int done(struct run *r, enum tl_tap tap, size_t layer, float *values) {
    if (!tap_edited(r, tap, layer)) return TL_OK;
    if (r->call->edit(r->call->edit_user, tap, layer, -1, values) == 0) return TL_OK;
    return tl_fail(r->err, TL_ESTOP, "stopped by an edit");
}

/* The next step's name for values that are there already: a copy only if somebody can tell. */
static int rename_tap(struct run *r, enum tl_tap tap, size_t layer, float **values) {
    float *to;
    if (!tap_captured(r, tap, layer) && !tap_edited(r, tap, layer)) return TL_OK;
    to = out(r, tap, layer);
    memcpy(to, *values, r->n * tl_tap_row(r->m, tap, layer) * sizeof(float));
    *values = to;
    return done(r, tap, layer, to);
}

/* ---- steps ---- */

struct group_member {
    const struct tl_linear *linear;
    float *y; // (tokens, rows of the matrix)
    enum tl_tap tap;
};

struct pack {
    const float *x;
    size_t cols, tokens;
    int format;
};

static void pack_rows(struct run *r, const void *arg, size_t first, size_t last) {
    const struct pack *p = arg;
    r->k->pack(p->format, p->x, p->cols, p->tokens, first, last, r->packed);
}

struct matmul {
    const struct group_member *member;
    size_t rows_per_task; // a multiple of TL_ROW_STEP
    size_t tasks;
};

/* Matmuls that share packed activations, in one parallel region. */
struct matmul_group {
    struct run *r;
    struct pack pack;
    size_t number; // of the groups of this call, from 1
    struct matmul members[MAX_GROUP];
    size_t first_task[MAX_GROUP + 1];
    int n;
    const struct tl_matrix *next; // the matrix to be read after these, or NULL
};

/*
 * The activations as this thread reads them. One token's are packed by every thread for itself:
 * that is quicker than to wait for one thread, and for its cache lines.
 */
static const void *packed_of(const struct matmul_group *g, int thread) {
    struct run *r = g->r;
    struct stamp *stamp = &r->stamps[thread];
    uint8_t *packed = r->packed_one + (size_t)thread * r->pack_one_bytes;
    if (g->pack.tokens > 1) return r->packed;
    if (stamp->group != g->number) {
        r->k->pack(g->pack.format, g->pack.x, g->pack.cols, 1, 0, 1, packed);
        stamp->group = g->number;
    }
    return packed;
}

static size_t task_rows(const struct run *r, const struct tl_matrix *w, size_t tokens) {
    const size_t threads = (size_t)r->call->threads, work = w->rows * w->cols * tokens;
    size_t parts = threads == 1 ? 1 : threads * 6;
    parts = TL_MAX(parts, work / TASK_WORK);
    return ((w->rows + parts - 1) / parts + TL_ROW_STEP - 1) / TL_ROW_STEP * TL_ROW_STEP;
}

/*
 * Which rows are a task's. Threads that keep step each walk through a region of their own from its
 * start to its end, so that what they fetch ahead is what they need.
 */
static size_t task_row(const struct run *r, const struct matmul *m, size_t task) {
    const size_t threads = (size_t)r->call->threads;
    if (m->tasks % threads == 0) task = task % threads * (m->tasks / threads) + task / threads;
    return task * m->rows_per_task;
}

static void matmul_task(const struct matmul_group *g, const struct matmul *m, size_t task,
                        int thread) {
    const struct run *r = g->r;
    const struct tl_linear *l = m->member->linear;
    const size_t row0 = task_row(r, m, task), row1 = TL_MIN(row0 + m->rows_per_task, l->w.rows);
    if (row0 >= row1) return;
    r->k->matmul(&l->w, g->pack.format, row0, row1, packed_of(g, thread), g->pack.tokens,
                 m->member->y, l->w.rows, r->scratch + (size_t)thread * r->thread_bytes);
    if (l->bias == NULL) return;
    for (size_t t = 0; t < g->pack.tokens; t++) {
        float *y = m->member->y + t * l->w.rows + row0;
        r->k->add(y, l->bias + row0, y, row1 - row0);
    }
}

/* Asks for the rows that this thread is likely to begin the next matrix with. */
static void fetch_next(const struct matmul_group *g, int thread) {
    const struct run *r = g->r;
    const struct tl_matrix *w = g->next;
    struct matmul m = {.rows_per_task = task_rows(r, w, 1)};
    size_t row;
    m.tasks = (w->rows + m.rows_per_task - 1) / m.rows_per_task;
    row = task_row(r, &m, (size_t)thread);
    if (row >= w->rows) return;
    r->k->prefetch(w, r->k->format(w->type, 1), row, TL_MIN(row + m.rows_per_task, w->rows));
}

static void group_task(void *arg, size_t task, int thread) {
    struct matmul_group *g = arg;
    const size_t left = g->first_task[g->n] - task;
    int i = 0;
    while (i + 1 < g->n && task >= g->first_task[i + 1]) i++;
    matmul_task(g, &g->members[i], task - g->first_task[i], thread);
    if (g->next != NULL && left <= (size_t)g->r->call->threads) fetch_next(g, thread);
}

/* members[i].y = x times members[i].linear, plus bias; x (tokens, cols). */
static int matmul_members(struct run *r, const float *x, size_t tokens,
                          const struct group_member *members, int n, const struct tl_matrix *next) {
    bool finished[MAX_GROUP] = {false};
    for (int i = 0; i < n; i++) {
        const struct tl_matrix *w = &members[i].linear->w;
        struct matmul_group g = {
            .r = r, .pack = {x, w->cols, tokens, r->k->format(w->type, tokens)}, .next = next};
        int status = TL_OK;
        if (finished[i]) continue;
        g.number = ++r->groups;
        if (tokens > 1) status = each_row(r, tokens, w->cols * 4, pack_rows, &g.pack);
        if (status != TL_OK) return status;
        for (int j = i; j < n; j++) {
            const struct tl_matrix *other = &members[j].linear->w;
            struct matmul *m = &g.members[g.n];
            if (finished[j] || r->k->format(other->type, tokens) != g.pack.format) continue;
            m->member = &members[j];
            m->rows_per_task = task_rows(r, other, tokens);
            m->tasks = (other->rows + m->rows_per_task - 1) / m->rows_per_task;
            g.first_task[g.n + 1] = g.first_task[g.n] + m->tasks;
            g.n++;
            finished[j] = true;
        }
        status = run_tasks(r, g.first_task[g.n], group_task, &g);
        if (status != TL_OK) return status;
    }
    return TL_OK;
}

/* The matmuls of one layer's taps, and their edits, in the order given. */
static int linear_step(struct run *r, size_t layer, const float *x, struct group_member *members,
                       int n, const struct tl_linear *next) {
    int status;
    for (int i = 0; i < n; i++) members[i].y = out(r, members[i].tap, layer);
    status = matmul_members(r, x, r->n, members, n, next != NULL && r->n == 1 ? &next->w : NULL);
    for (int i = 0; i < n && status == TL_OK; i++) {
        status = done(r, members[i].tap, layer, members[i].y);
    }
    return status;
}

static void embed_rows(struct run *r, const void *arg, size_t first, size_t last) {
    const struct tl_matrix *w = &r->m->token_embd;
    float *y = *(float *const *)arg;
    for (size_t i = 0; i < r->n_spans; i++) {
        const struct span *s = &r->spans[i];
        for (size_t t = 0; t < s->n; t++) {
            const size_t row = s->row + t;
            if (row < first || row >= last) continue;
            tl_type_to_f32(w->type, w->data + (size_t)s->piece->tokens[s->done + t] * w->row_bytes,
                           y + row * w->cols, w->cols);
        }
    }
}

struct norm {
    const float *x, *weight;
    float *scale, *y;
};

static void norm_scale_rows(struct run *r, const void *arg, size_t first, size_t last) {
    const struct norm *a = arg;
    const size_t n = r->m->config.width;
    for (size_t i = first; i < last; i++) {
        a->scale[i] = r->k->norm_scale(a->x + i * n, n, (float)r->m->config.norm_epsilon);
    }
}

static void norm_apply_rows(struct run *r, const void *arg, size_t first, size_t last) {
    const struct norm *a = arg;
    const size_t n = r->m->config.width;
    for (size_t i = first; i < last; i++) {
        r->k->norm_apply(a->x + i * n, a->weight, n, a->scale[i], a->y + i * n);
    }
}

static int norm_step(struct run *r, size_t layer, enum tl_tap scale_tap, enum tl_tap tap,
                     const float *x, const float *weight, float **y) {
    const struct norm a = {x, weight, out(r, scale_tap, layer), out(r, tap, layer)};
    int status = each_row(r, r->n, r->m->config.width, norm_scale_rows, &a);
    if (status == TL_OK) status = done(r, scale_tap, layer, a.scale);
    if (status == TL_OK) status = each_row(r, r->n, r->m->config.width, norm_apply_rows, &a);
    *y = a.y;
    return status == TL_OK ? done(r, tap, layer, a.y) : status;
}

static void angle_rows(struct run *r, const void *arg, size_t first, size_t last) {
    const size_t pairs = r->m->config.rope_dimension / 2;
    (void)arg;
    for (size_t i = 0; i < r->n_spans; i++) {
        const struct span *s = &r->spans[i];
        for (size_t row = TL_MAX(first, s->row); row < TL_MIN(last, s->row + s->n); row++) {
            const double position = (double)(s->position + (row - s->row));
            float *cos_sin = r->cos_sin + row * pairs * 2;
            for (size_t j = 0; j < pairs; j++) {
                double sin_, cos_;
                tl_sincos(position * r->m->rope_frequency[j], &sin_, &cos_);
                cos_sin[2 * j] = (float)(cos_ * r->m->rope_magnitude);
                cos_sin[2 * j + 1] = (float)(sin_ * r->m->rope_magnitude);
            }
        }
    }
}

struct rope {
    const float *x;
    float *y;
    size_t heads, head_size;
};

static void rope_rows(struct run *r, const void *arg, size_t first, size_t last) {
    const struct rope *a = arg;
    const size_t row = a->heads * a->head_size, rot = r->m->config.rope_dimension;
    for (size_t i = first; i < last; i++) {
        r->k->rope_pairs(a->x + i * row, a->y + i * row, a->heads, a->head_size, rot,
                         r->cos_sin + i * rot);
    }
}

static int rope_step(struct run *r, size_t layer, enum tl_tap tap, const float *x, size_t heads,
                     float **y) {
    const struct rope a = {x, out(r, tap, layer), heads, r->m->layers[layer].shape.head_size};
    int status = each_row(r, r->n, heads * a.head_size * 2, rope_rows, &a);
    *y = a.y;
    return status == TL_OK ? done(r, tap, layer, a.y) : status;
}

/* y = fn(a, b), elementwise over rows of `width`. */
struct binary {
    const float *a, *b;
    float *y;
    size_t width;
    void (*fn)(const float *a, const float *b, float *y, size_t n);
};

static void binary_rows(struct run *r, const void *arg, size_t first, size_t last) {
    const struct binary *s = arg;
    const size_t at = first * s->width;
    (void)r;
    s->fn(s->a + at, s->b + at, s->y + at, (last - first) * s->width);
}

static int binary_step(struct run *r, size_t layer, enum tl_tap tap, const float *a, const float *b,
                       void (*fn)(const float *, const float *, float *, size_t), float **y) {
    const struct binary s = {a, b, out(r, tap, layer), tl_tap_row(r->m, tap, layer), fn};
    int status = each_row(r, r->n, s.width * 4, binary_rows, &s);
    *y = s.y;
    return status == TL_OK ? done(r, tap, layer, s.y) : status;
}

/* ---- the architecture ---- */

#define STEP(call)                                                                                 \
    do {                                                                                           \
        int status_ = (call);                                                                      \
        if (status_ != TL_OK) return status_;                                                      \
    } while (0)

/* *x: the residual stream entering the block (n, D); on return the one leaving it. */
static int run_layer(struct run *r, size_t i, float **x) {
    const struct tl_layer *l = &r->m->layers[i];
    struct group_member qkv[] = {
        {&l->q, NULL, TL_TAP_ATTN_Q}, {&l->k, NULL, TL_TAP_ATTN_K}, {&l->v, NULL, TL_TAP_ATTN_V}};
    struct group_member project[] = {{&l->out, NULL, TL_TAP_ATTN_OUTPUT}};
    struct group_member gate_up[] = {{&l->gate, NULL, TL_TAP_FFN_GATE},
                                     {&l->up, NULL, TL_TAP_FFN_UP}};
    struct group_member down[] = {{&l->down, NULL, TL_TAP_FFN_DOWN}};
    const struct tl_linear *after = i + 1 < r->m->config.layers ? &l[1].q : &r->m->output;
    float *normed, *q, *k, *mix, *mid, *act;

    STEP(rename_tap(r, TL_TAP_RESID_PRE, i, x));
    STEP(norm_step(r, i, TL_TAP_ATTN_NORM_SCALE, TL_TAP_ATTN_NORM, *x, l->attn_norm, &normed));
    STEP(linear_step(r, i, normed, qkv, 3, &l->out));
    STEP(rope_step(r, i, TL_TAP_ATTN_Q_ROPE, qkv[0].y, l->shape.heads, &q));
    STEP(rope_step(r, i, TL_TAP_ATTN_K_ROPE, qkv[1].y, l->shape.kv_heads, &k));
    STEP(attention_append(r, i, k, qkv[2].y));
    mix = out(r, TL_TAP_ATTN_MIX, i);
    STEP(attention_run(r, i, q, mix));
    STEP(done(r, TL_TAP_ATTN_MIX, i, mix));
    STEP(linear_step(r, i, mix, project, 1, &l->gate));
    STEP(binary_step(r, i, TL_TAP_RESID_MID, *x, project[0].y, r->k->add, &mid));
    STEP(norm_step(r, i, TL_TAP_FFN_NORM_SCALE, TL_TAP_FFN_NORM, mid, l->ffn_norm, &normed));
    STEP(linear_step(r, i, normed, gate_up, 2, &l->down));
    STEP(binary_step(r, i, TL_TAP_FFN_ACT, gate_up[0].y, gate_up[1].y, r->k->silu_mul, &act));
    STEP(linear_step(r, i, act, down, 1, after));
    return binary_step(r, i, TL_TAP_RESID_POST, mid, down[0].y, r->k->add, x);
}

/* Final norm and logits, of the wanted rows, or of all when a tap here is captured or edited. */
static int run_output(struct run *r, const float *x) {
    static const enum tl_tap taps[] = {TL_TAP_OUTPUT_NORM_SCALE, TL_TAP_OUTPUT_NORM, TL_TAP_OUTPUT};
    const size_t width = r->m->config.width, vocab = r->m->config.vocab_size;
    const bool capture = tap_captured(r, TL_TAP_OUTPUT, 0);
    struct group_member output = {&r->m->output, NULL, TL_TAP_OUTPUT};
    size_t first, count;
    bool all = false;
    float *normed, *logits;

    wanted_rows(r, r->row0, r->n, &first, &count);
    for (size_t i = 0; i < TL_ARRAY_LEN(taps); i++) {
        all = all || tap_captured(r, taps[i], 0) || tap_edited(r, taps[i], 0);
    }
    if (!all && count == 0) return TL_OK;
    logits = r->call->logits + first * vocab;
    if (all) {
        STEP(norm_step(r, 0, TL_TAP_OUTPUT_NORM_SCALE, TL_TAP_OUTPUT_NORM, x, r->m->output_norm,
                       &normed));
        for (size_t i = 0; i < count && !capture; i++) {
            memcpy(r->gathered + i * width, normed + (r->call->rows[first + i] - r->row0) * width,
                   width * sizeof(float));
        }
    } else {
        const size_t n = r->n;
        for (size_t i = 0; i < count; i++) {
            memcpy(r->gathered + i * width, x + (r->call->rows[first + i] - r->row0) * width,
                   width * sizeof(float));
        }
        r->n = count; // the norm runs over the gathered rows
        STEP(norm_step(r, 0, TL_TAP_OUTPUT_NORM_SCALE, TL_TAP_OUTPUT_NORM, r->gathered,
                       r->m->output_norm, &normed));
        r->n = n;
    }
    if (capture) {
        STEP(linear_step(r, 0, normed, &output, 1, NULL));
        for (size_t i = 0; i < count; i++) {
            memcpy(logits + i * vocab, output.y + (r->call->rows[first + i] - r->row0) * vocab,
                   vocab * sizeof(float));
        }
        return TL_OK;
    }
    if (count == 0) return TL_OK;
    output.y = logits;
    return matmul_members(r, all ? r->gathered : normed, count, &output, 1, NULL);
}

/* Which rows of which pieces are rows [row0, row0 + n) of the call. */
static void find_spans(struct run *r, size_t row0, size_t n) {
    size_t start = 0;
    r->row0 = row0;
    r->n = n;
    r->n_spans = 0;
    for (size_t i = 0; i < r->n_pieces; i++) {
        const struct tl_piece *p = &r->pieces[i];
        const size_t first = TL_MAX(row0, start), last = TL_MIN(row0 + n, start + p->n);
        if (first < last) {
            r->spans[r->n_spans++] = (struct span){.piece = p,
                                                   .index = (int)i,
                                                   .row = first - row0,
                                                   .n = last - first,
                                                   .done = first - start,
                                                   .position = p->session->n + (first - start)};
        }
        start += p->n;
    }
}

static int run_chunk(struct run *r, size_t row0, size_t n) {
    const size_t width = r->m->config.width, first = r->call->first_layer;
    float *x;
    find_spans(r, row0, n);
    STEP(each_row(r, n, r->m->config.rope_dimension * 40, angle_rows, NULL));
    if (r->call->resid != NULL) {
        x = r->slots[TL_TAP_RESID_POST];
        memcpy(x, r->call->resid + row0 * width, n * width * sizeof(float));
    } else {
        x = out(r, TL_TAP_TOKEN_EMBD, 0);
        STEP(each_row(r, n, width * 4, embed_rows, &x));
        STEP(done(r, TL_TAP_TOKEN_EMBD, 0, x));
    }
    for (size_t i = first; i < r->m->config.layers; i++) {
        STEP(run_layer(r, i, &x));
        if (r->call->progress != NULL) *r->call->progress += n;
    }
    return run_output(r, x);
}

static int check_pieces(struct run *r) {
    const size_t limit = r->m->config.max_context, vocab = r->m->config.vocab_size;
    for (size_t i = 0; i < r->n_pieces; i++) {
        const struct tl_piece *p = &r->pieces[i];
        if (p->n == 0) return tl_fail(r->err, TL_EARG, "there are no tokens to run");
        if (p->n > limit || p->session->n > limit - p->n) {
            return tl_fail(r->err, TL_EARG,
                           "%zu tokens after %zu go beyond the context length of %zu; load with a "
                           "larger max_context to allow it",
                           p->n, p->session->n, limit);
        }
        for (size_t t = 0; t < p->n; t++) {
            if (p->tokens[t] < 0 || (size_t)p->tokens[t] >= vocab) {
                return tl_fail(r->err, TL_EARG, "tokens[%zu] is %d; the vocabulary has %zu entries",
                               t, (int)p->tokens[t], vocab);
            }
        }
        r->rows += p->n;
        r->max_keys = TL_MAX(r->max_keys, p->session->n + p->n);
    }
    return TL_OK;
}

static int forward(struct run *r) {
    int status = check_pieces(r);
    size_t reserved = 0;
    if (status != TL_OK) return status;
    for (; reserved < r->n_pieces && status == TL_OK; reserved++) {
        status = tl_session_reserve(r->pieces[reserved].session, r->pieces[reserved].n, r->err);
    }
    if (status == TL_OK) status = make_workspace(r);
    for (size_t row = 0; row < r->rows && status == TL_OK; row += r->chunk) {
        status = run_chunk(r, row, TL_MIN(r->chunk, r->rows - row));
    }
    for (size_t i = 0; i < reserved; i++) {
        struct tl_session *s = r->pieces[i].session;
        if (status == TL_OK) {
            s->n += r->pieces[i].n;
        } else {
            tl_session_rewind(s, s->n);
        }
    }
    return status;
}

int tl_forward(const struct tl_model *m, const struct tl_piece *pieces, size_t n_pieces,
               const struct tl_call *call, struct tl_error *err) {
    struct run r = {
        .m = m, .k = m->kernels, .pieces = pieces, .n_pieces = n_pieces, .call = call, .err = err};
    const uint64_t fpu = tl_fpu_enter();
    const int status = forward(&r);
    tl_fpu_leave(fpu);
    return status;
}

int tl_forward_bytes(const struct tl_model *m, size_t tokens, int threads, size_t *cache,
                     size_t *work, struct tl_error *err) {
    const size_t last = tokens - 1;
    struct tl_session session = {.model = m, .n_blocks = (tokens + TL_BLOCK - 1) / TL_BLOCK};
    const struct tl_piece piece = {.session = &session, .n = tokens};
    const struct tl_call call = {.threads = threads, .rows = &last, .n_rows = 1};
    struct run r = {.m = m,
                    .k = m->kernels,
                    .pieces = &piece,
                    .n_pieces = 1,
                    .call = &call,
                    .err = err,
                    .rows = tokens,
                    .max_keys = tokens};
    if (tokens == 0 || tokens > m->config.max_context) {
        return tl_fail(err, TL_EARG, "tokens is %zu; expected 1 to %zu", tokens,
                       m->config.max_context);
    }
    *cache = tl_session_cache_bytes(&session);
    return plan_workspace(&r, work);
}
