/* pass.c - where steps write their values, and parallel loops over rows and tasks. */
#include "forward/pass.h"

#include "base/pool.h"

float *pass_out(struct run *r, const struct tl_step *s) {
    const size_t i = pass_index(r, s);
    float *to;
    if (pass_captured(r, s)) {
        to = r->call->captures[i] + r->row0 * s->width;
    } else {
        to = i + 1 < r->p->n ? r->slots[s->slot] : r->logits;
    }
    r->values[i] = to;
    return to;
}

int pass_done(struct run *r, const struct tl_step *s, float *values) {
    if (!pass_edited(r, s)) return TL_OK;
    if (r->call->edit(r->call->edit_user, pass_index(r, s), -1, values) == 0) return TL_OK;
    return tl_fail(r->err, TL_ESTOP, "stopped by an edit");
}

int pass_tasks(struct run *r, size_t tasks, tl_task_fn *fn, void *arg) {
    if (tl_pool_run_all(r->call->threads, tasks, fn, arg, r->call->poll, r->call->poll_user) !=
        TL_OK) {
        return tl_fail(r->err, TL_ESTOP, "interrupted");
    }
    return TL_OK;
}

struct row_loop {
    struct run *r;
    pass_row_fn *fn;
    const void *arg;
    size_t rows, parts;
};

static void row_task(void *arg, size_t task, int thread) {
    const struct row_loop *loop = arg;
    (void)thread;
    loop->fn(loop->r, loop->arg, loop->rows * task / loop->parts,
             loop->rows * (task + 1) / loop->parts);
}

int pass_rows(struct run *r, size_t rows, size_t work, pass_row_fn *fn, const void *arg) {
    struct row_loop loop = {r, fn, arg, rows, TL_MIN(rows, (size_t)r->call->threads * 4)};
    if (r->call->threads == 1 || rows * work < PASS_PARALLEL_WORK || rows == 1) {
        fn(r, arg, 0, rows);
        return TL_OK;
    }
    return pass_tasks(r, loop.parts, row_task, &loop);
}
