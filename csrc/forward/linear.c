/*
 * linear.c - matmuls: x W^T + b for consecutive steps of one input.
 *
 * The steps read the same activations. Those whose types use the same packed format share one
 * packed copy and one parallel region.
 */
#include "forward/linear.h"

#include <string.h>

/* Multiplications of one task at most. Ctrl-C waits until the running tasks end, so they are kept
   short enough that the delay is not noticed. */
#define TASK_WORK 30000000

struct pack {
    const float *x;
    size_t cols, tokens;
    int format;
};

static void pack_some(struct run *r, const void *arg, size_t first, size_t last) {
    const struct pack *p = arg;
    r->k->pack(p->format, p->x + first * p->cols, p->cols, p->tokens, first, last, r->packed);
}

struct matmul {
    const struct tl_step *step;
    float *y;             // (tokens, rows of the matrix)
    size_t rows_per_task; // a multiple of TL_ROW_STEP
    size_t tasks;
};

/* Matmuls that share packed activations, in one parallel region. */
struct group {
    struct run *r;
    struct pack pack;
    size_t number; // of the groups of this call, from 1
    struct matmul members[TL_MAX_GROUP];
    size_t first_task[TL_MAX_GROUP + 1];
    int n;
    const struct tl_matrix *next; // the matrix that is read after these, or NULL
};

/*
 * The packed activations that this thread reads. Every thread packs those of a single token for
 * itself, which is faster than waiting for another thread and for its cache lines.
 */
static const void *packed_of(const struct group *g, int thread) {
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

/* Rows of the matrix per task. */
static size_t task_rows(const struct run *r, const struct tl_matrix *w, size_t tokens) {
    const size_t threads = (size_t)r->call->threads, work = w->rows * w->cols * tokens;
    size_t parts = threads == 1 ? 1 : threads * 6;
    parts = TL_MAX(parts, TL_MIN(work / TASK_WORK, w->rows / r->k->rows_at_once));
    return ((w->rows + parts - 1) / parts + TL_ROW_STEP - 1) / TL_ROW_STEP * TL_ROW_STEP;
}

/*
 * The first row of a task. Tasks are numbered so that each thread, if all run at the same speed,
 * walks through its own range of rows from start to end. Then the rows that it prefetches are the
 * rows that it needs next.
 */
static size_t task_row(const struct run *r, const struct matmul *m, size_t task) {
    const size_t threads = (size_t)r->call->threads;
    if (m->tasks % threads == 0) task = task % threads * (m->tasks / threads) + task / threads;
    return task * m->rows_per_task;
}

static void matmul_task(const struct group *g, const struct matmul *m, size_t task, int thread) {
    const struct run *r = g->r;
    const struct tl_matrix *w = &m->step->matrix;
    const float *bias = m->step->vectors[1], *scale = m->step->vectors[2];
    const size_t row0 = task_row(r, m, task), row1 = TL_MIN(row0 + m->rows_per_task, w->rows);
    if (row0 >= row1) return;
    r->k->matmul(w, g->pack.format, row0, row1, packed_of(g, thread), g->pack.tokens, m->y, w->rows,
                 r->scratch + (size_t)thread * r->thread_bytes);
    for (size_t t = 0; t < g->pack.tokens && (bias != NULL || scale != NULL); t++) {
        float *y = m->y + t * w->rows + row0;
        if (scale != NULL) r->k->unary(TL_FN_SCALE, scale[0], y, y, row1 - row0);
        if (bias != NULL) r->k->add(y, bias + row0, y, row1 - row0);
    }
}

void linear_prefetch(const struct run *r, const struct tl_matrix *w, int thread) {
    struct matmul m = {.rows_per_task = task_rows(r, w, 1)};
    size_t row;
    m.tasks = (w->rows + m.rows_per_task - 1) / m.rows_per_task;
    row = task_row(r, &m, (size_t)thread);
    if (row >= w->rows) return;
    r->k->prefetch(w, r->k->format(w->type, 1), row, TL_MIN(row + m.rows_per_task, w->rows));
}

static void group_task(void *arg, size_t task, int thread) {
    struct group *g = arg;
    const size_t left = g->first_task[g->n] - task;
    int i = 0;
    while (i + 1 < g->n && task >= g->first_task[i + 1]) i++;
    matmul_task(g, &g->members[i], task - g->first_task[i], thread);
    if (g->next != NULL && left <= (size_t)g->r->call->threads) {
        linear_prefetch(g->r, g->next, thread);
    }
}

int linear_run(struct run *r, const struct tl_step *s) {
    const size_t n = s->together, rows = r->n;
    const float *x = pass_in(r, s, 0);
    bool finished[TL_MAX_GROUP] = {false};
    float *y[TL_MAX_GROUP];
    for (size_t i = 0; i < n; i++) y[i] = pass_out(r, s + i);
    for (size_t i = 0; i < n; i++) {
        const struct tl_matrix *w = &s[i].matrix;
        struct group g = {.r = r,
                          .pack = {x, w->cols, rows, r->k->format(w->type, rows)},
                          .next = rows == 1 ? s->next : NULL};
        if (finished[i]) continue;
        g.number = ++r->groups;
        if (rows > 1) TL_TRY(pass_rows(r, rows, w->cols * 4, pack_some, &g.pack));
        for (size_t j = i; j < n; j++) {
            const struct tl_matrix *other = &s[j].matrix;
            struct matmul *m = &g.members[g.n];
            if (finished[j] || r->k->format(other->type, rows) != g.pack.format) continue;
            m->step = &s[j];
            m->y = y[j];
            m->rows_per_task = task_rows(r, other, rows);
            m->tasks = (other->rows + m->rows_per_task - 1) / m->rows_per_task;
            g.first_task[g.n + 1] = g.first_task[g.n] + m->tasks;
            g.n++;
            finished[j] = true;
        }
        TL_TRY(pass_tasks(r, g.first_task[g.n], group_task, &g));
    }
    for (size_t i = 0; i < n; i++) TL_TRY(pass_done(r, &s[i], y[i]));
    return TL_OK;
}

void linear_plan(struct run *r, const struct tl_step *s, size_t rows) {
    const struct tl_matrix *w = &s->matrix;
    const int format = r->k->format(w->type, rows);
    size_t *bytes = rows == 1 ? &r->pack_one_bytes : &r->pack_bytes;
    *bytes = TL_MAX(*bytes, r->k->pack_bytes(format, w->cols, rows));
    r->thread_bytes = TL_MAX(r->thread_bytes, r->k->scratch(w, format, rows));
}

/* ---- check ---- */

/*
 * reads: x; weights: (rows, values of x), bias (rows) or None, scale (1) or None; numbers: heads,
 * size, first row, rows of the tensor.
 * The matrix has heads * size rows and the value is (heads, size); with 0 heads it has `size` rows
 * and the value is (size). The tensor may be (heads, size, values of x). The matrix is the rows of
 * the tensor from the first row on; 0 rows of the tensor: the tensor has no others. A bias has a
 * value per row of the matrix or of the tensor.
 */
int linear_check(const struct tl_op_check *c, struct tl_step *s) {
    const struct tl_step *x = op_read(c, s, 0);
    const char *name;
    size_t heads = 0, size = 0, first = 0, all = 0, rows;
    TL_TRY(op_rows(c, s, 0, 0));
    TL_TRY(op_name(c, 0, &name));
    TL_TRY(op_size(c, s, 0, 0, &heads));
    TL_TRY(op_size(c, s, 1, 1, &size));
    TL_TRY(op_size(c, s, 2, 0, &first));
    TL_TRY(op_size(c, s, 3, 0, &all));
    rows = TL_MAX(heads, 1) * size;
    if (all == 0) all = rows;
    if (first + rows > all) {
        return tl_fail(c->err, TL_EARG,
                       "step %zu (linear): %zu rows from %zu on; expected at most %zu in all",
                       c->plan->n, rows, first, all);
    }
    if (heads > 1 && all == rows && tl_weights_axes(c->weights, name) == 3) {
        TL_TRY(tl_weights_experts(c->weights, name, heads, size, x->width, &s->matrix, c->err));
    } else {
        TL_TRY(tl_weights_matrix(c->weights, name, all, x->width, &s->matrix, c->err));
    }
    s->matrix.data += first * s->matrix.row_bytes;
    s->matrix.rows = rows;
    s->value = TL_VALUE_ROWS;
    if (heads > 0) s->axes[s->n_axes++] = heads;
    s->axes[s->n_axes++] = size;
    TL_TRY(op_vector(c, s, 2, 1));
    name = c->spec->weights[1];
    if (name == NULL || all == rows || !tl_weights_has_size(c->weights, name, all)) {
        return op_vector(c, s, 1, rows);
    }
    TL_TRY(op_vector(c, s, 1, all));
    memmove(s->vectors[1], s->vectors[1] + first, rows * sizeof(float));
    return TL_OK;
}
