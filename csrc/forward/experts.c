/*
 * experts.c - matmuls with the matrices of the experts that were chosen for each token.
 *
 * A pair is a token and one of its experts. Pairs are sorted by expert, so that the matrix of an
 * expert is read once for all tokens that use it. A job is some pairs of one expert: their
 * activations are packed together, and multiplied by the matrices of all steps of the region. Jobs
 * run in waves, whose packed activations fit into the buffer.
 *
 * The heads of attention that have a matrix each are experts that every token uses, in their order.
 */
#include "forward/experts.h"

#include "forward/linear.h"
#include "forward/router.h"

#include <math.h>
#include <string.h>

/* Steps of one region at most: gate and up. */
#define MOST_STEPS 2

/* Jobs of one wave, and pairs of one job at most. */
#define MOST_JOBS 128
#define MOST_PAIRS 512

/* Packed activations of a wave: enough to keep all threads busy. */
#define WAVE_BYTES ((size_t)8 << 20)

/* Results of a task before they go to their places: about what fits the second-level cache. */
#define RESULT_FLOATS 65536

#define TASKS_PER_THREAD 6
#define TASK_WORK 3e7 // multiplications of one task at most, as in linear.c

/* ---- check ---- */

/*
 * reads: x (cols) or (U, cols), ids; weights: (E, rows, cols), bias (E, rows) or None, scale (E) or
 * None; numbers: size, first row, rows; value (U, size). The matrix of an expert is `size` rows of
 * its part of the tensor, from the first row on.
 */
static int check_matrices(const struct tl_op_check *c, struct tl_step *s, size_t experts,
                          size_t used) {
    const struct tl_step *x = op_read(c, s, 0);
    size_t size = 0, first = 0, rows = 0;
    const char *name;
    TL_TRY(op_name(c, 0, &name));
    TL_TRY(op_size(c, s, 0, 1, &size));
    TL_TRY(op_size(c, s, 1, 0, &first));
    TL_TRY(op_size(c, s, 2, 1, &rows));
    if (first + size > rows) {
        return tl_fail(c->err, TL_EARG,
                       "step %zu (%s): %zu rows from %zu on; expected at most %zu in all",
                       c->plan->n, c->spec->op, size, first, rows);
    }
    TL_TRY(tl_weights_experts(c->weights, name, experts, rows, x->axes[x->n_axes - 1], &s->matrix,
                              c->err));
    s->matrix.rows = size;
    s->matrix.data += first * s->matrix.row_bytes;
    s->value = TL_VALUE_ROWS;
    s->axes[0] = used;
    s->axes[1] = size;
    s->n_axes = 2;
    name = c->spec->weights[1];
    if (name != NULL) {
        const size_t axes[2] = {experts, rows};
        TL_TRY(tl_weights_array(c->weights, name, axes, 2, &s->vectors[1], c->err));
    }
    return op_vector(c, s, 2, experts);
}

int experts_check(const struct tl_op_check *c, struct tl_step *s) {
    const struct tl_step *x = op_read(c, s, 0);
    size_t experts = 0, used = 0;
    TL_TRY(op_rows(c, s, 0, 1));
    TL_TRY(router_read(c, s, 1, &experts, &used));
    if (x->n_axes > 2 || (x->n_axes == 2 && x->axes[0] != used)) {
        return tl_op_wrong(c, "its reads do not match; expected (T, n) or (T, U, n)");
    }
    return check_matrices(c, s, experts, used);
}

/*
 * reads: x (H, cols); weights and numbers: as experts, with a matrix for each head; value (H,
 * size).
 */
int head_linear_check(const struct tl_op_check *c, struct tl_step *s) {
    const struct tl_step *x = op_read(c, s, 0);
    TL_TRY(op_rows(c, s, 0, 2));
    if (x->n_axes != 2) return tl_op_wrong(c, "its read does not match; expected (T, H, n)");
    return check_matrices(c, s, x->axes[0], x->axes[0]);
}

bool experts_share(const struct tl_step *a, const struct tl_step *b) {
    return a->in[0] == b->in[0] && a->in[1] == b->in[1] && a->matrix.type == b->matrix.type;
}

/* ---- run ---- */

/* Pairs of one expert, whose activations are packed together. */
struct job {
    size_t expert;
    size_t first, n;   // of the sorted pairs
    int format;        //
    size_t packed;     // offset of the packed activations
    size_t row;        // pairs in the jobs of this wave before it
    size_t first_task; //
    size_t rows_per_task[MOST_STEPS];
};

/* What all tasks of a wave share. */
struct wave {
    struct run *r;
    const struct tl_step *steps;
    size_t n_steps;
    float *y[MOST_STEPS]; // (pairs, size)
    const float *x;       // (tokens, cols) or (pairs, cols)
    size_t cols, used;
    bool own;                     // each pair has its own activations
    const struct tl_matrix *next; // the matrix that is read after these, or NULL
    struct job *jobs;
    size_t n_jobs;
    size_t tasks;
    size_t number; // of the groups of this call: see packed_one in pass.h
};

/* Sorts the pairs of this chunk by expert: those of expert e are pairs[first[e] .. first[e + 1]).
 */
static void sort_pairs(struct run *r, size_t experts, size_t pairs) {
    size_t *first = r->expert_first;
    memset(first, 0, (experts + 1) * sizeof(*first));
    for (size_t i = 0; i < pairs; i++) first[r->expert_ids[i] + 1]++;
    for (size_t e = 0; e < experts; e++) first[e + 1] += first[e];
    for (size_t i = 0; i < pairs; i++) r->expert_pairs[first[r->expert_ids[i]]++] = i;
    for (size_t e = experts; e > 0; e--) first[e] = first[e - 1];
    first[0] = 0;
}

static const float *activations(const struct wave *w, size_t pair) {
    return w->x + (w->own ? pair : pair / w->used) * w->cols;
}

/* Packs the activations of pairs [first, last) of the wave. */
static void pack_pairs(struct run *r, const void *arg, size_t first, size_t last) {
    const struct wave *w = arg;
    const struct job *job = w->jobs;
    for (size_t i = first; i < last; i++) {
        while (i >= job->row + job->n) job++;
        const size_t at = i - job->row;
        r->k->pack(job->format, activations(w, r->expert_pairs[job->first + at]), w->cols, job->n,
                   at, at + 1, r->packed + job->packed);
    }
}

/* As in linear.c: every thread packs the activations of a single token for itself. */
static const void *packed_of(const struct wave *w, const struct job *job, int thread) {
    struct run *r = w->r;
    struct stamp *stamp = &r->stamps[thread];
    uint8_t *packed = r->packed_one + (size_t)thread * r->pack_one_bytes;
    const size_t number = w->number + (w->own ? (size_t)(job - w->jobs) : 0);
    if (r->n > 1) return r->packed + job->packed;
    if (stamp->group != number) {
        r->k->pack(job->format, activations(w, r->expert_pairs[job->first]), w->cols, 1, 0, 1,
                   packed);
        stamp->group = number;
    }
    return packed;
}

/* Multiplies rows [row0, row1) of one step's matrix. */
static void multiply(const struct wave *w, const struct job *job, size_t step, size_t row0,
                     size_t row1, int thread) {
    const struct run *r = w->r;
    const struct tl_step *s = &w->steps[step];
    const size_t size = s->matrix.rows, n = row1 - row0, at = (size_t)s->numbers[1] + row0;
    const size_t all = (size_t)s->numbers[2];
    const float *bias = s->vectors[1], *scale = s->vectors[2];
    uint8_t *scratch = r->scratch + (size_t)thread * r->thread_bytes;
    float *results = (float *)(void *)scratch;
    struct tl_matrix part = s->matrix;
    const size_t *pairs = r->expert_pairs + job->first;
    const bool direct = job->n == 1;
    part.data += (job->expert * all + row0) * part.row_bytes;
    part.rows = n;
    if (direct) results = w->y[step] + pairs[0] * size + row0;
    r->k->matmul(&part, job->format, 0, n, packed_of(w, job, thread), job->n, results, n,
                 scratch + RESULT_FLOATS * sizeof(float));
    for (size_t i = 0; i < job->n; i++) {
        float *y = results + i * n;
        if (scale != NULL) r->k->unary(TL_FN_SCALE, scale[job->expert], y, y, n);
        if (bias != NULL) r->k->add(y, bias + job->expert * all + at, y, n);
        if (!direct) memcpy(w->y[step] + pairs[i] * size + row0, y, n * sizeof(float));
    }
}

static size_t tasks_of(const struct job *job, const struct tl_step *s, size_t step) {
    return (s->matrix.rows + job->rows_per_task[step] - 1) / job->rows_per_task[step];
}

static void wave_task(void *arg, size_t task, int thread) {
    struct wave *w = arg;
    const struct job *job = w->jobs;
    const size_t left = w->tasks - task;
    size_t step = 0;
    while (job + 1 < w->jobs + w->n_jobs && task >= job[1].first_task) job++;
    task -= job->first_task;
    while (task >= tasks_of(job, &w->steps[step], step)) {
        task -= tasks_of(job, &w->steps[step], step);
        step++;
    }
    const size_t rows = w->steps[step].matrix.rows, row0 = task * job->rows_per_task[step];
    multiply(w, job, step, row0, TL_MIN(row0 + job->rows_per_task[step], rows), thread);
    if (w->next != NULL && left <= (size_t)w->r->call->threads) {
        linear_prefetch(w->r, w->next, thread);
    }
}

/* Cuts the jobs of a wave into tasks and runs them. */
static int run_wave(struct wave *w) {
    struct run *r = w->r;
    const struct job *last = &w->jobs[w->n_jobs - 1];
    const double threads = r->call->threads;
    double all = 0;
    w->tasks = 0;
    for (size_t i = 0; i < w->n_steps; i++) {
        all += (double)w->steps[i].matrix.rows * (double)w->cols * (double)(last->row + last->n);
    }
    for (size_t j = 0; j < w->n_jobs; j++) {
        struct job *job = &w->jobs[j];
        job->first_task = w->tasks;
        for (size_t i = 0; i < w->n_steps; i++) {
            const double rows = (double)w->steps[i].matrix.rows;
            const double work = rows * (double)w->cols * (double)job->n;
            const double share = threads == 1 ? all : all / (threads * TASKS_PER_THREAD);
            const double parts = ceil(work / TL_MIN(share, TASK_WORK));
            size_t n = ((size_t)ceil(rows / parts) + TL_ROW_STEP - 1) / TL_ROW_STEP * TL_ROW_STEP;
            if (job->n > 1) n = TL_MIN(n, RESULT_FLOATS / job->n / TL_ROW_STEP * TL_ROW_STEP);
            job->rows_per_task[i] = n;
            w->tasks += tasks_of(job, &w->steps[i], i);
        }
    }
    if (r->n > 1) TL_TRY(pass_rows(r, last->row + last->n, w->cols * 4, pack_pairs, w));
    w->number = r->groups + 1;
    r->groups += w->own ? w->n_jobs : 1;
    return pass_tasks(r, w->tasks, wave_task, w);
}

/* How many of `left` pairs of an expert make the next job: their packed activations must fit. */
static size_t job_pairs(const struct wave *w, size_t left, int *format, size_t *bytes) {
    const struct tl_kernels *k = w->r->k;
    for (size_t n = TL_MIN(left, MOST_PAIRS);; n = (n + 1) / 2) {
        *format = k->format(w->steps->matrix.type, n);
        *bytes = (k->pack_bytes(*format, w->cols, n) + 63) / 64 * 64;
        if (n == 1 || *bytes <= w->r->pack_bytes) return n;
    }
}

int experts_run(struct run *r, const struct tl_step *s) {
    const struct tl_step *x = &r->p->steps[s->in[0]];
    const bool heads = s->op == TL_OP_HEAD_LINEAR;
    const size_t used = s->axes[0], pairs = r->n * used;
    const size_t experts = heads ? used : r->p->steps[r->p->steps[s->in[1]].in[0]].width;
    struct job jobs[MOST_JOBS];
    struct wave w = {.r = r,
                     .steps = s,
                     .n_steps = s->together,
                     .x = pass_in(r, s, 0),
                     .cols = s->matrix.cols,
                     .used = used,
                     .own = x->n_axes == 2,
                     .next = r->n == 1 ? s->next : NULL,
                     .jobs = jobs};
    size_t bytes = 0, e = 0;
    if (!heads) TL_TRY(router_ids(r, s, 1));
    for (size_t i = 0; heads && i < pairs; i++) r->expert_ids[i] = (uint32_t)(i % used);
    sort_pairs(r, experts, pairs);
    for (size_t i = 0; i < w.n_steps; i++) w.y[i] = pass_out(r, s + i);
    for (size_t at = 0; at < pairs;) {
        struct job job = {.first = at};
        size_t size;
        while (r->expert_first[e + 1] <= at) e++;
        job.expert = e;
        job.n = job_pairs(&w, r->expert_first[e + 1] - at, &job.format, &size);
        if (w.n_jobs == MOST_JOBS || (w.n_jobs > 0 && r->n > 1 && bytes + size > r->pack_bytes)) {
            TL_TRY(run_wave(&w));
            w.n_jobs = bytes = 0;
            continue;
        }
        job.packed = bytes;
        job.row = w.n_jobs > 0 ? at - w.jobs[0].first : 0;
        w.jobs[w.n_jobs++] = job;
        bytes += size;
        at += job.n;
    }
    TL_TRY(run_wave(&w));
    for (size_t i = 0; i < w.n_steps; i++) TL_TRY(pass_done(r, s + i, w.y[i]));
    return TL_OK;
}

/* ---- plan ---- */

void experts_plan(struct run *r, const struct tl_step *s, size_t rows) {
    const struct tl_matrix *m = &s->matrix;
    const size_t used = s->axes[0], most = TL_MIN(rows, MOST_PAIRS);
    const int one = r->k->format(m->type, 1), many = r->k->format(m->type, most);
    const size_t one_bytes = r->k->pack_bytes(one, m->cols, 1);
    size_t bytes, scratch = r->k->scratch(m, one, 1);
    if (s->op == TL_OP_HEAD_LINEAR) {
        if (!tl_mul_size(rows, used, &bytes)) bytes = SIZE_MAX; // which cannot be allocated
        r->pairs = TL_MAX(r->pairs, bytes);
        r->experts = TL_MAX(r->experts, used);
    }
    if (rows == 1) {
        r->pack_one_bytes = TL_MAX(r->pack_one_bytes, one_bytes);
    } else {
        // of one expert that all tokens use; and if they use several, as much as a wave needs
        bytes = (TL_MAX(r->k->pack_bytes(many, m->cols, most), one_bytes) + 63) / 64 * 64;
        if (bytes < WAVE_BYTES) bytes = TL_MIN(bytes * TL_MIN(used, 64), WAVE_BYTES);
        r->pack_bytes = TL_MAX(r->pack_bytes, bytes);
        for (size_t n = 2; n <= most; n = n < most ? TL_MIN(2 * n, most) : n + 1) {
            scratch = TL_MAX(scratch, r->k->scratch(m, r->k->format(m->type, n), n));
        }
    }
    r->thread_bytes = TL_MAX(r->thread_bytes, RESULT_FLOATS * sizeof(float) + scratch);
}
