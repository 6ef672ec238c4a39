/*
 * router.c - the ops that choose experts for each token, and that sum their results.
 *
 * E experts, U of them used for each token, in ranks 0 .. U - 1. Ids are whole numbers as float32.
 * The comment of each check lists what a step of its op reads, its weights, its numbers and its
 * value. docs/numerics.md defines the arithmetic.
 */
#include "forward/router.h"

#include "base/math64.h"

#include <math.h>
#include <string.h>

#define MOST_GROUPS 64

int router_read(const struct tl_op_check *c, const struct tl_step *s, int i, size_t *experts,
                size_t *used) {
    const struct tl_step *ids = op_read(c, s, i);
    if (ids->op != TL_OP_ROUTE_IDS) {
        return tl_fail(c->err, TL_EARG, "step %zu (%s): read %d is wrong; expected a route_ids",
                       c->plan->n, c->spec->op, i);
    }
    *experts = c->plan->steps[ids->in[0]].width;
    *used = ids->axes[0];
    return TL_OK;
}

int router_ids(struct run *r, const struct tl_step *s, int i) {
    const struct tl_step *step = &r->p->steps[s->in[i]];
    const size_t used = step->width, experts = r->p->steps[step->in[0]].width;
    const float *ids = pass_in(r, s, i);
    memset(r->expert_seen, 0, experts * sizeof(*r->expert_seen));
    for (size_t t = 0; t < r->n; t++) {
        for (size_t rank = 0; rank < used; rank++) {
            const float id = ids[t * used + rank];
            const bool whole = id >= 0 && id < (float)experts && id == floorf(id);
            if (!whole || r->expert_seen[(size_t)id] == t + 1) {
                return tl_fail(r->err, TL_EARG,
                               "step %zu (route_ids): the ids of token %zu hold %g; expected %zu "
                               "different whole numbers from 0 to %zu",
                               s->in[i], r->row0 + t, (double)id, used, experts - 1);
            }
            r->expert_seen[(size_t)id] = t + 1;
            r->expert_ids[t * used + rank] = (uint32_t)id;
        }
    }
    return TL_OK;
}

void router_plan(struct run *r, const struct tl_step *s, size_t rows) {
    size_t pairs;
    if (!tl_mul_size(rows, s->width, &pairs)) pairs = SIZE_MAX; // which cannot be allocated
    r->pairs = TL_MAX(r->pairs, pairs);
    r->experts = TL_MAX(r->experts, r->p->steps[s->in[0]].width);
}

/* ---- route_probs: from logits to probabilities, along the last axis ---- */

/* reads: logits (..., E); numbers: 0 for softmax, 1 for sigmoid; value (..., E). */
int route_probs_check(const struct tl_op_check *c, struct tl_step *s) {
    const struct tl_step *x = op_read(c, s, 0);
    size_t kind = 0;
    TL_TRY(op_rows(c, s, 0, 1));
    TL_TRY(op_number(c, s, 0, ROUTE_SOFTMAX, ROUTE_SIGMOID));
    TL_TRY(op_size(c, s, 0, 0, &kind));
    op_shape(s, x, x->n_axes);
    return TL_OK;
}

struct route {
    const float *x, *bias;
    float *y;
    size_t experts, used;
    const struct tl_step *step;
};

static void probs_rows(struct run *r, const void *arg, size_t first, size_t last) {
    const struct route *a = arg;
    const size_t n = a->experts;
    for (size_t t = first; t < last; t++) {
        if (a->step->numbers[0] == ROUTE_SOFTMAX) {
            r->k->attn_softmax(a->x + t * n, n, -INFINITY, a->y + t * n);
        } else {
            r->k->unary(TL_FN_SIGMOID, 0, a->x + t * n, a->y + t * n, n);
        }
    }
}

int route_probs_run(struct run *r, const struct tl_step *s) {
    const size_t n = s->axes[s->n_axes - 1];
    const struct route a = {.x = pass_in(r, s, 0), .y = pass_out(r, s), .experts = n, .step = s};
    TL_TRY(pass_rows(r, r->n * (s->width / n), n * 16, probs_rows, &a));
    return pass_done(r, s, a.y);
}

/* ---- route_ids: the experts with the largest probabilities ---- */

/*
 * reads: probs (E) or logits; weights: (E), which are added for the choice only, or None; numbers:
 * U, groups, groups used, how many of a group's best experts its score sums (1 or 2); value (U), by
 * falling probability.
 */
int route_ids_check(const struct tl_op_check *c, struct tl_step *s) {
    const struct tl_step *x = op_read(c, s, 0);
    size_t used = 0, groups = 0, groups_used = 0, best = 0;
    TL_TRY(op_rows(c, s, 0, 1));
    if (x->n_axes != 1) return tl_op_wrong(c, "its read has several axes; expected (T, E)");
    TL_TRY(op_size(c, s, 0, 1, &used));
    TL_TRY(op_size(c, s, 1, 1, &groups));
    TL_TRY(op_size(c, s, 2, 1, &groups_used));
    TL_TRY(op_size(c, s, 3, 1, &best));
    if (groups > MOST_GROUPS || x->width % groups != 0 || groups_used > groups ||
        used > groups_used * (x->width / groups) || best > TL_MIN(x->width / groups, 2)) {
        return tl_fail(
            c->err, TL_EARG,
            "step %zu (route_ids): %zu of %zu experts, from %zu of %zu groups by the best "
            "%zu, cannot be chosen; expected at most %d groups of equal size, and "
            "enough experts in them",
            c->plan->n, used, x->width, groups_used, groups, best, MOST_GROUPS);
    }
    s->value = TL_VALUE_ROWS;
    s->axes[0] = used;
    s->n_axes = 1;
    return op_vector(c, s, 0, x->width);
}

/* What an expert is chosen by; NaN counts as -inf, so that every order is total. */
static float choice_of(const struct route *a, const float *probs, size_t expert) {
    const float x = a->bias != NULL ? probs[expert] + a->bias[expert] : probs[expert];
    return x == x ? x : -INFINITY;
}

/*
 * The `count` experts from `first` on with the largest choice, by falling choice; of equals the
 * lower id comes first. `best` holds those found so far, *n of them.
 */
static void choose(const struct route *a, const float *probs, size_t first, size_t end,
                   size_t count, float *best, size_t *n) {
    for (size_t e = first; e < end; e++) {
        const float x = choice_of(a, probs, e);
        size_t at = *n;
        while (at > 0 && x > choice_of(a, probs, (size_t)best[at - 1])) at--;
        if (at == count) continue;
        if (*n < count) ++*n;
        memmove(best + at + 1, best + at, (*n - at - 1) * sizeof(*best));
        best[at] = (float)e;
    }
}

/* Marks the groups whose experts may be chosen. */
static void choose_groups(const struct route *a, const float *probs, bool *kept) {
    const size_t groups = (size_t)a->step->numbers[1], used = (size_t)a->step->numbers[2];
    const size_t best = (size_t)a->step->numbers[3], size = a->experts / groups;
    float scores[MOST_GROUPS];
    for (size_t g = 0; g < groups; g++) {
        float first = -INFINITY, second = -INFINITY, score;
        for (size_t e = g * size; e < (g + 1) * size; e++) {
            const float x = choice_of(a, probs, e);
            if (x > first) {
                second = first, first = x;
            } else if (x > second) {
                second = x;
            }
        }
        score = best == 1 ? first : first + second;
        scores[g] = score == score ? score : -INFINITY;
    }
    for (size_t g = 0; g < groups; g++) {
        size_t before = 0;
        for (size_t h = 0; h < groups; h++) {
            before += scores[h] > scores[g] || (scores[h] == scores[g] && h < g);
        }
        kept[g] = before < used;
    }
}

static void ids_rows(struct run *r, const void *arg, size_t first, size_t last) {
    const struct route *a = arg;
    const size_t groups = (size_t)a->step->numbers[1], size = a->experts / groups;
    (void)r;
    for (size_t t = first; t < last; t++) {
        const float *probs = a->x + t * a->experts;
        bool kept[MOST_GROUPS] = {true};
        size_t n = 0;
        if (groups > 1) choose_groups(a, probs, kept);
        for (size_t g = 0; g < groups; g++) {
            if (!kept[g]) continue;
            choose(a, probs, g * size, (g + 1) * size, a->used, a->y + t * a->used, &n);
        }
    }
}

int route_ids_run(struct run *r, const struct tl_step *s) {
    const size_t experts = r->p->steps[s->in[0]].width;
    const struct route a = {.x = pass_in(r, s, 0),
                            .bias = s->vectors[0],
                            .y = pass_out(r, s),
                            .experts = experts,
                            .used = s->width,
                            .step = s};
    TL_TRY(pass_rows(r, r->n, experts * 8, ids_rows, &a));
    return pass_done(r, s, a.y);
}

/* ---- route_weights: the factors of the chosen experts ---- */

#define MIXER_GAP 0.02 // twice the noise in training

/*
 * reads: probs (E) or logits, ids; numbers: whether the weights are divided by their sum, whether
 * they are made from logits (1: the softmax of what is chosen, 2: as in the sparse mixer), and a
 * factor; value (U).
 */
int route_weights_check(const struct tl_op_check *c, struct tl_step *s) {
    size_t experts = 0, used = 0;
    TL_TRY(op_rows(c, s, 0, 1));
    TL_TRY(router_read(c, s, 1, &experts, &used));
    if (op_read(c, s, 0)->n_axes != 1 || op_read(c, s, 0)->width != experts) {
        return tl_op_wrong(c, "its reads do not match; expected the probs of the same experts");
    }
    TL_TRY(op_number(c, s, 0, 0, 1));
    TL_TRY(op_number(c, s, 1, 0, ROUTE_MIXER));
    TL_TRY(op_number(c, s, 2, -1e30, 1e30));
    if (s->numbers[1] != (int)s->numbers[1]) {
        return tl_op_wrong(c, "the way its weights are made is not a whole number");
    }
    if (s->numbers[0] != 0 && s->numbers[1] != 0) {
        return tl_op_wrong(c, "its weights are both a softmax and divided by a sum; expected one");
    }
    op_shape(s, op_read(c, s, 1), 1);
    return TL_OK;
}

/*
 * The weight of a rank in the sparse mixer: the share of its expert in the softmax of those that
 * come after the ranks before it, without those that are far below it (Liu et al. 2024,
 * arXiv:2409.12136).
 */
static float mixer_weight(const float *logits, size_t experts, const uint32_t *ids, size_t rank) {
    const double top = logits[ids[rank]];
    double sum = 0;
    for (size_t e = 0; e < experts; e++) {
        const double x = logits[e], large = fabs(x) > top ? fabs(x) : top;
        bool before = false;
        for (size_t i = 0; i < rank; i++) before |= ids[i] == e;
        if (!before && !((top - x) / large > MIXER_GAP)) sum += tl_exp(x - top);
    }
    return (float)(1 / sum);
}

struct weights {
    const float *probs;
    float *y;
    size_t experts, used;
    bool sum;
    int made; // from logits
    float factor;
};

static void weights_rows(struct run *r, const void *arg, size_t first, size_t last) {
    const struct weights *a = arg;
    for (size_t t = first; t < last; t++) {
        const float *probs = a->probs + t * a->experts;
        const uint32_t *ids = r->expert_ids + t * a->used;
        float *y = a->y + t * a->used;
        double sum = 0;
        for (size_t i = 0; i < a->used; i++) {
            y[i] = a->made == ROUTE_MIXER ? mixer_weight(probs, a->experts, ids, i) : probs[ids[i]];
            sum += (double)y[i];
        }
        if (a->made == ROUTE_SOFTMAX_OF_CHOSEN) r->k->attn_softmax(y, a->used, -INFINITY, y);
        for (size_t i = 0; i < a->used && a->sum; i++) y[i] = (float)((double)y[i] / (sum + 1e-20));
        for (size_t i = 0; i < a->used && a->factor != 1; i++) y[i] = y[i] * a->factor;
    }
}

int route_weights_run(struct run *r, const struct tl_step *s) {
    const struct weights a = {.probs = pass_in(r, s, 0),
                              .y = pass_out(r, s),
                              .experts = r->p->steps[s->in[0]].width,
                              .used = s->width,
                              .sum = s->numbers[0] != 0,
                              .made = (int)s->numbers[1],
                              .factor = (float)s->numbers[2]};
    TL_TRY(router_ids(r, s, 1));
    TL_TRY(pass_rows(r, r->n, s->width * 8, weights_rows, &a));
    return pass_done(r, s, a.y);
}

/* ---- weighted_sum: over the chosen experts ---- */

/* reads: x (U, D), weights (U); value (D). */
int weighted_sum_check(const struct tl_op_check *c, struct tl_step *s) {
    const struct tl_step *x = op_read(c, s, 0), *w = op_read(c, s, 1);
    TL_TRY(op_rows(c, s, 0, 2));
    TL_TRY(op_rows(c, s, 1, 1));
    if (x->n_axes != 2 || w->n_axes != 1 || w->axes[0] != x->axes[0]) {
        return tl_op_wrong(c, "its reads do not match; expected (T, U, D) and (T, U)");
    }
    s->value = TL_VALUE_ROWS;
    s->axes[0] = x->axes[1];
    s->n_axes = 1;
    return TL_OK;
}

struct sum {
    const float *x, *w;
    float *y;
    size_t used, width;
};

static void sum_rows(struct run *r, const void *arg, size_t first, size_t last) {
    const struct sum *a = arg;
    for (size_t t = first; t < last; t++) {
        r->k->weighted_sum(a->x + t * a->used * a->width, a->w + t * a->used, a->used, a->width,
                           a->y + t * a->width);
    }
}

int weighted_sum_run(struct run *r, const struct tl_step *s) {
    const size_t used = r->p->steps[s->in[1]].width;
    const struct sum a = {pass_in(r, s, 0), pass_in(r, s, 1), pass_out(r, s), used, s->width};
    TL_TRY(pass_rows(r, r->n, used * s->width, sum_rows, &a));
    return pass_done(r, s, a.y);
}
