/*
 * forward.c - one call: its chunks, the walk over the steps, and the rows whose logits are wanted.
 *
 * The bits of the results do not depend on the size of the chunks. With edits the chunk is the
 * whole call, because an edit sees all tokens at once.
 */
#include "forward/forward.h"

#include "base/fpu.h"
#include "forward/device_run.h"
#include "forward/ops.h"
#include "forward/pass.h"
#include "forward/recurrent.h"
#include "forward/rope.h"
#include "forward/workspace.h"

#include <string.h>

static int run_steps(struct run *r, size_t first, size_t end) {
    for (size_t i = first; i < end; i += r->p->steps[i].together) {
        const struct tl_step *s = &r->p->steps[i];
        TL_TRY(r->device != NULL ? device_region(r, s) : tl_ops[s->op].run(r, s));
    }
    return TL_OK;
}

/* One past the last step, from `first` on, that is captured or edited; `first` if there is none. */
static size_t watched_end(const struct run *r, size_t first) {
    size_t end = r->p->n;
    while (end > first && !pass_captured(r, &r->p->steps[end - 1]) &&
           !pass_edited(r, &r->p->steps[end - 1])) {
        end--;
    }
    return end;
}

/* Copies the wanted rows of every value that steps from `at` on read from steps before it. */
static int gather(struct run *r, size_t at, const size_t *rows, size_t count) {
    float *to = r->gathered;
    size_t gathered = 0;
    for (size_t i = at; i < r->p->n; i++) {
        for (int j = 0; j < r->p->steps[i].n_in; j++) {
            const size_t in = r->p->steps[i].in[j], width = r->p->steps[in].width;
            const float *from = r->values[in];
            // a value in r->gathered has been copied already
            bool done;
            if (in >= at || (from >= r->gathered && from < to)) continue;
            TL_TRY(device_gather(r, in, gathered++, rows, count, &done));
            for (size_t row = 0; row < count && !done; row++) {
                memcpy(to + row * width, from + (rows[row] - r->row0) * width,
                       width * sizeof(float));
            }
            r->values[in] = to;
            to += count * width;
        }
    }
    return TL_OK;
}

/*
 * Runs the steps after the blocks. Up to the last one that is captured or edited they run on all
 * rows, and from there on only on the rows whose logits are wanted.
 */
static int run_last_steps(struct run *r) {
    const size_t first = r->p->first[r->p->layers], n = r->n;
    const size_t width = r->p->steps[r->p->n - 1].width;
    const size_t cut = watched_end(r, first);
    size_t wanted, count;
    workspace_wanted(r, r->row0, n, &wanted, &count);
    const size_t *rows = r->call->rows + wanted;
    r->logits = r->call->logits + wanted * width;
    TL_TRY(run_steps(r, first, cut));
    if (cut == r->p->n) {
        TL_TRY(device_to_host(r, r->p->n - 1));
        for (size_t i = 0; i < count; i++) {
            memcpy(r->logits + i * width, r->values[r->p->n - 1] + (rows[i] - r->row0) * width,
                   width * sizeof(float));
        }
        return TL_OK;
    }
    if (count == 0) return TL_OK;
    TL_TRY(gather(r, cut, rows, count));
    r->n = count;
    TL_TRY(run_steps(r, cut, r->p->n));
    r->n = n;
    return TL_OK;
}

/* Finds the rows of each piece that are rows [row0, row0 + n) of the call. */
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
    const struct tl_plan *p = r->p;
    size_t at = 0;
    find_spans(r, row0, n);
    TL_TRY(rope_angles(r));
    TL_TRY(device_chunk(r));
    if (r->call->resid != NULL) {
        at = p->first[r->call->first_layer];
        r->values[p->resume[r->call->first_layer]] = r->call->resid + row0 * p->width;
        device_given(r, p->resume[r->call->first_layer]);
    }
    TL_TRY(run_steps(r, at, p->first[r->call->first_layer]));
    for (size_t layer = r->call->first_layer; layer < p->layers; layer++) {
        TL_TRY(run_steps(r, p->first[layer], p->first[layer + 1]));
        if (r->call->progress != NULL) *r->call->progress += n;
    }
    return run_last_steps(r);
}

static int check_pieces(struct run *r) {
    const size_t limit = r->p->max_context, vocab = r->p->vocab_size;
    for (size_t i = 0; i < r->n_pieces; i++) {
        const struct tl_piece *p = &r->pieces[i];
        if (p->n == 0) return tl_fail(r->err, TL_EARG, "tokens is empty; expected at least one");
        if (p->n > limit || p->session->n > limit - p->n) {
            return tl_fail(r->err, TL_EARG,
                           "%zu tokens after %zu go beyond the context length of %zu; load with a "
                           "larger max_context to allow it",
                           p->n, p->session->n, limit);
        }
        if (r->p->whole && p->session->n > 0) {
            return tl_fail(r->err, TL_EARG,
                           "a session of this model cannot be continued, because each token sees "
                           "the later ones; expected all tokens in one call");
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

static int check_start(const struct run *r) {
    const struct tl_call *call = r->call;
    if (call->resid == NULL && call->first_layer != 0) {
        return tl_fail(r->err, TL_EARG, "first_layer is %zu without resid; expected 0",
                       call->first_layer);
    }
    if (call->first_layer > r->p->layers) {
        return tl_fail(r->err, TL_EARG, "first_layer is %zu; expected 0 to %zu", call->first_layer,
                       r->p->layers);
    }
    if (call->resid != NULL && r->p->resume[call->first_layer] == TL_NO_STEP) {
        return tl_fail(r->err, TL_EARG,
                       "a call cannot start at layer %zu: it reads more than the residual stream",
                       call->first_layer);
    }
    return TL_OK;
}

/* Copies the states of steps that the call does not run. */
static void carry_states(struct run *r) {
    const size_t first = r->call->resid != NULL ? r->p->first[r->call->first_layer] : 0;
    for (size_t i = 0; i < first; i++) {
        const struct tl_step *s = &r->p->steps[i];
        if (!recurrent_op(s->op)) continue;
        for (size_t j = 0; j < r->n_pieces; j++) {
            tl_session_carry_state(r->pieces[j].session, s->number);
        }
    }
}

static int forward(struct run *r) {
    int status = check_start(r);
    size_t reserved = 0;
    if (status == TL_OK) status = check_pieces(r);
    if (status != TL_OK) return status;
    for (; reserved < r->n_pieces && status == TL_OK; reserved++) {
        status = tl_session_reserve(r->pieces[reserved].session, r->pieces[reserved].n, r->err);
    }
    if (status == TL_OK) carry_states(r);
    if (status == TL_OK) status = workspace_make(r);
    if (status == TL_OK) status = device_begin(r);
    for (size_t row = 0; row < r->rows && status == TL_OK; row += r->chunk) {
        status = run_chunk(r, row, TL_MIN(r->chunk, r->rows - row));
    }
    status = device_end(r, status);
    for (size_t i = 0; i < reserved; i++) {
        struct tl_session *s = r->pieces[i].session;
        if (status == TL_OK) {
            tl_session_commit(s, r->pieces[i].tokens, r->pieces[i].n);
        } else {
            tl_session_cancel(s);
        }
    }
    return status;
}

int tl_forward(const struct tl_plan *p, const struct tl_piece *pieces, size_t n_pieces,
               const struct tl_call *call, struct tl_error *err) {
    struct run r = {
        .p = p, .k = p->kernels, .pieces = pieces, .n_pieces = n_pieces, .call = call, .err = err};
    const uint64_t fpu = tl_fpu_enter();
    const int status = forward(&r);
    tl_fpu_leave(fpu);
    return status;
}

int tl_forward_bytes(const struct tl_plan *p, size_t tokens, int threads, size_t *cache,
                     size_t *work, struct tl_error *err) {
    const size_t last = tokens - 1;
    struct tl_session session = {.plan = p};
    const struct tl_piece piece = {.session = &session, .n = tokens};
    const struct tl_call call = {.threads = threads, .rows = &last, .n_rows = 1};
    struct run r = {.p = p,
                    .k = p->kernels,
                    .pieces = &piece,
                    .n_pieces = 1,
                    .call = &call,
                    .err = err,
                    .rows = tokens,
                    .max_keys = tokens};
    if (tokens == 0 || tokens > p->max_context) {
        return tl_fail(err, TL_EARG, "tokens is %zu; expected 1 to %zu", tokens, p->max_context);
    }
    if (!tl_session_bytes_of(p, tokens, cache)) {
        return tl_fail(err, TL_ENOMEM, "the cache of %zu tokens is too large", tokens);
    }
    return workspace_plan(&r, work);
}
