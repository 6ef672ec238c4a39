/* plan.c - checks the steps of a plan and decides how they run. */
#include "forward/plan.h"

#include "forward/cache.h"
#include "forward/device_plan.h"
#include "forward/experts.h"
#include "forward/ops.h"

#include <stdlib.h>
#include <string.h>

/* Limits far above real models, which keep later sums and products inside size_t and int. */
#define MAX_LAYERS 100000
#define MAX_STEPS (1 << 22)
#define MAX_CONTEXT ((size_t)1 << 30)
#define MAX_LAST_STEPS 64 // after the blocks

static int check_options(const struct tl_plan_options *o, size_t n, struct tl_error *err) {
    if (o->layers < 1 || o->layers > MAX_LAYERS) {
        return tl_fail(err, TL_EARG, "layers is %zu; expected 1 to %d", o->layers, MAX_LAYERS);
    }
    if (o->max_context < 1 || o->max_context > MAX_CONTEXT) {
        return tl_fail(err, TL_EARG, "max_context is %zu; expected 1 to %zu", o->max_context,
                       MAX_CONTEXT);
    }
    if (n < 1 || n > MAX_STEPS) {
        return tl_fail(err, TL_EARG, "there are %zu steps; expected 1 to %d", n, MAX_STEPS);
    }
    if (tl_cache_type_find(o->cache) == NULL) {
        return tl_fail(err, TL_EARG, "cache is '%s'; expected 'f32', 'f16' or 'q8'", o->cache);
    }
    if (o->device != NULL && tl_cache_type_find(o->cache)->widen_keys != NULL) {
        return tl_fail(err, TL_ENOSUP,
                       "cache is '%s', and the model runs on a device, which keeps keys and values "
                       "as float32; expected cache 'f32', or the device 'cpu'",
                       o->cache);
    }
    return TL_OK;
}

/* The op of that name, or NULL. */
static const struct tl_op_info *find_op(const char *name) {
    for (int i = 0; i < TL_OP_COUNT; i++) {
        if (strcmp(tl_ops[i].name, name) == 0) return &tl_ops[i];
    }
    return NULL;
}

/* Adds a step: checks what holds for any op, then calls the op's own check. */
static int add_step(struct tl_plan *p, const struct tl_step_spec *spec,
                    const struct tl_weights *weights, struct tl_error *err) {
    const struct tl_op_info *op = find_op(spec->op);
    const int before = p->n > 0 ? p->steps[p->n - 1].layer : -1;
    const struct tl_op_check check = {p, spec, weights, err};
    struct tl_step *s = &p->steps[p->n];
    int status;
    if (op == NULL) {
        return tl_fail(err, TL_EARG, "step %zu: op is '%s'; expected the name of an op", p->n,
                       spec->op);
    }
    if (spec->layer < before || spec->layer > (int)p->layers) {
        return tl_fail(err, TL_EARG, "step %zu (%s): layer is %d; expected %d to %zu", p->n,
                       op->name, spec->layer, before, p->layers);
    }
    if (spec->n_reads != op->reads || spec->n_weights != op->weights ||
        spec->n_numbers != op->numbers) {
        return tl_fail(err, TL_EARG,
                       "step %zu (%s) has %d reads, %d weights and %d numbers; expected %d, %d "
                       "and %d",
                       p->n, op->name, spec->n_reads, spec->n_weights, spec->n_numbers, op->reads,
                       op->weights, op->numbers);
    }
    *s = (struct tl_step){.op = (enum tl_op)(op - tl_ops), .layer = spec->layer, .n_in = op->reads};
    memcpy(s->numbers, spec->numbers, sizeof(s->numbers));
    for (int i = 0; i < op->reads; i++) {
        if (spec->reads[i] >= p->n) {
            return tl_fail(err, TL_EARG, "step %zu (%s) reads step %zu; expected an earlier one",
                           p->n, op->name, spec->reads[i]);
        }
        s->in[i] = spec->reads[i];
    }
    status = op->check(&check, s);
    p->n++; // also on failure, so that tl_plan_free finds what the step owns
    if (status != TL_OK) return status;
    s->width = 1;
    for (int i = 0; i < s->n_axes; i++) {
        if (!tl_mul_size(s->width, s->axes[i], &s->width)) {
            return tl_fail(err, TL_EARG, "step %zu (%s): its value is too large", p->n - 1,
                           op->name);
        }
    }
    return TL_OK;
}

/* Checks the steps as a whole. */
static int check_whole(const struct tl_plan *p, struct tl_error *err) {
    const struct tl_step *last = &p->steps[p->n - 1];
    if (p->vocab_size == 0) {
        return tl_fail(err, TL_EARG, "no step reads the tokens; expected an embed step");
    }
    if (last->layer != (int)p->layers || last->value != TL_VALUE_ROWS || last->n_axes != 1) {
        return tl_fail(err, TL_EARG,
                       "the last step does not give vectors; expected one after the blocks, of "
                       "shape (T, n)");
    }
    if (p->n > MAX_LAST_STEPS && p->steps[p->n - MAX_LAST_STEPS - 1].layer == (int)p->layers) {
        return tl_fail(err, TL_EARG,
                       "there are too many steps after the blocks; expected at most %d",
                       MAX_LAST_STEPS);
    }
    for (size_t i = 0; i < p->n; i++) {
        const struct tl_step *s = &p->steps[i];
        if (s->layer == (int)p->layers && tl_ops[s->op].scope != TL_SCOPE_ROW) {
            return tl_fail(err, TL_EARG,
                           "step %zu (%s) comes after the blocks; expected it in a block", i,
                           tl_ops[s->op].name);
        }
        if (s->op == TL_OP_SCORES &&
            (i + 2 >= p->n || s[1].op != TL_OP_SOFTMAX || s[2].op != TL_OP_MIX ||
             s[1].layer != s->layer || s[2].layer != s->layer)) {
            return tl_fail(err, TL_EARG,
                           "step %zu (scores): expected softmax and mix of the same block after it",
                           i);
        }
    }
    return TL_OK;
}

/* ---- linking: how the steps run ---- */

/* Decides which steps run as one region, and which matrix is read after each. */
static void link_regions(struct tl_plan *p) {
    const struct tl_matrix *next = NULL;
    for (size_t i = 0; i < p->n; i += p->steps[i].together) {
        struct tl_step *s = &p->steps[i];
        size_t n = 1;
        if (s->op == TL_OP_SCORES) n = 3;
        // the steps after the blocks run one by one: forward.c can cut between any two
        while (s->op == TL_OP_LINEAR && s->layer < (int)p->layers && n < TL_MAX_GROUP &&
               i + n < p->n && s[n].op == TL_OP_LINEAR && s[n].layer == s->layer &&
               s[n].in[0] == s->in[0]) {
            n++;
        }
        if (s->op == TL_OP_EXPERTS && s->layer < (int)p->layers && i + 1 < p->n) {
            n += s[1].op == TL_OP_EXPERTS && s[1].layer == s->layer && experts_share(s, s + 1);
        }
        for (size_t j = 0; j < n; j++) s[j].together = n - j;
    }
    for (size_t i = p->n; i-- > 0;) {
        p->steps[i].next = next;
        if (p->steps[i].op == TL_OP_EXPERTS) next = NULL; // which one depends on the token
        // the matrix that a region begins with
        if (p->steps[i].op == TL_OP_LINEAR && (i == 0 || p->steps[i - 1].together == 1)) {
            next = &p->steps[i].matrix;
        }
    }
}

/*
 * Gives each step a slot of scratch memory, which is reused once the value has been read for the
 * last time. A `same` or `shape` step that is neither captured nor edited has no copy of its input,
 * so it keeps the input alive.
 */
static bool link_slots(struct tl_plan *p) {
    size_t *region = calloc(p->n, sizeof(size_t)), *last = calloc(p->n, sizeof(size_t));
    size_t *busy = calloc(p->n, sizeof(size_t)); // the region in which each slot is read last
    const bool ok =
        region != NULL && busy != NULL && (p->slots = calloc(p->n, sizeof(*p->slots))) != NULL;
    for (size_t i = 0, number = 1; ok && i < p->n; number++) {
        for (size_t end = i + p->steps[i].together; i < end; i++) {
            region[i] = last[i] = number;
            for (int j = 0; j < p->steps[i].n_in; j++) last[p->steps[i].in[j]] = number;
        }
    }
    for (size_t i = p->n; ok && i-- > 0;) {
        const struct tl_step *s = &p->steps[i];
        if (s->op == TL_OP_SAME || s->op == TL_OP_SHAPE)
            last[s->in[0]] = TL_MAX(last[s->in[0]], last[i]);
    }
    for (size_t i = 0; ok && i + 1 < p->n; i++) { // the last step writes to the caller's array
        struct tl_step *s = &p->steps[i];
        size_t best = p->n_slots;
        if (s->value != TL_VALUE_ROWS) continue;
        for (size_t j = 0; j < p->n_slots; j++) {
            if (busy[j] >= region[i] || p->slots[j] < s->width) continue;
            if (best == p->n_slots || p->slots[j] < p->slots[best]) best = j;
        }
        if (best == p->n_slots) p->slots[p->n_slots++] = s->width;
        s->slot = best;
        busy[best] = last[i];
    }
    free(region);
    free(last);
    free(busy);
    return ok;
}

/* Lists the steps before `at` whose values are read from `at` on; returns how many. */
static size_t read_from_before(const struct tl_plan *p, size_t at, size_t *found, bool *seen) {
    size_t n = 0;
    memset(seen, 0, p->n * sizeof(*seen));
    for (size_t i = at; i < p->n; i++) {
        for (int j = 0; j < p->steps[i].n_in; j++) {
            const size_t in = p->steps[i].in[j];
            if (in >= at || seen[in]) continue;
            seen[in] = true;
            found[n++] = in;
        }
    }
    return n;
}

/* Finds where a call can begin, and how much the steps after the blocks read from before them. */
static bool link_cuts(struct tl_plan *p) {
    size_t *found = calloc(p->n, sizeof(*found)), readers = 0;
    bool *seen = calloc(p->n, sizeof(*seen));
    const bool ok = found != NULL && seen != NULL &&
                    (p->first = calloc(p->layers + 1, sizeof(size_t))) != NULL &&
                    (p->resume = calloc(p->layers + 1, sizeof(size_t))) != NULL;
    for (size_t i = 0, layer = 0; ok && layer <= p->layers; layer++) {
        while (p->steps[i].layer < (int)layer) i++;
        p->first[layer] = i;
        p->resume[layer] = TL_NO_STEP;
    }
    // walks from the end: found[k] counts the reads of step k by the steps seen so far, and
    // `readers` the steps before i that have any
    for (size_t i = p->n, layer = p->layers + 1; ok && i-- > 0;) {
        const struct tl_step *s = &p->steps[i];
        readers -= found[i] > 0;
        found[i] = 0;
        for (int j = 0; j < s->n_in; j++) readers += found[s->in[j]]++ == 0;
        while (layer > 0 && p->first[layer - 1] == i) {
            layer--;
            for (int j = 0; readers == 1 && j < s->n_in; j++) {
                const struct tl_step *from = &p->steps[s->in[j]];
                if (from->value == TL_VALUE_ROWS && from->n_axes == 1 && from->width == p->width) {
                    p->resume[layer] = s->in[j];
                }
            }
        }
    }
    for (size_t at = ok ? p->first[p->layers] : p->n; at < p->n; at++) {
        const size_t n = read_from_before(p, at, found, seen);
        size_t floats = 0;
        for (size_t i = 0; i < n; i++) floats += p->steps[found[i]].width;
        p->gathered = TL_MAX(p->gathered, floats);
    }
    free(found);
    free(seen);
    return ok;
}

int tl_plan_new(const struct tl_plan_options *options, const struct tl_step_spec *specs, size_t n,
                const struct tl_tensor *tensors, size_t n_tensors, struct tl_plan **out,
                struct tl_error *err) {
    struct tl_weights weights = {0};
    struct tl_plan *p;
    int status = check_options(options, n, err);
    *out = NULL;
    if (status != TL_OK) return status;
    p = calloc(1, sizeof(*p));
    if (p == NULL) return tl_fail(err, TL_ENOMEM, "no memory for a plan");
    p->layers = options->layers;
    p->max_context = options->max_context;
    p->cache_type = tl_cache_type_find(options->cache);
    p->kernels = tl_kernels_best(err);
    p->steps = calloc(n, sizeof(*p->steps));
    p->caches = calloc(n, sizeof(*p->caches));
    p->ropes = calloc(n, sizeof(*p->ropes));
    if (p->kernels == NULL) {
        status = err->status;
    } else if (p->steps == NULL || p->caches == NULL || p->ropes == NULL) {
        status = tl_fail(err, TL_ENOMEM, "no memory for a plan of %zu steps", n);
    } else {
        if (options->fast) p->kernels = p->kernels->fast;
        status = tl_weights_init(&weights, tensors, n_tensors, err);
    }
    for (size_t i = 0; i < n && status == TL_OK; i++) {
        status = add_step(p, &specs[i], &weights, err);
    }
    tl_weights_free(&weights);
    if (status == TL_OK) status = check_whole(p, err);
    if (status == TL_OK) {
        link_regions(p);
        if (!link_slots(p) || !link_cuts(p)) {
            status = tl_fail(err, TL_ENOMEM, "no memory for a plan of %zu steps", n);
        }
    }
    if (status == TL_OK && options->device != NULL) {
        status = device_plan_new(p, options, &p->device, err);
    }
    if (status != TL_OK) {
        tl_plan_free(p);
        return status;
    }
    *out = p;
    return TL_OK;
}

void tl_plan_free(struct tl_plan *p) {
    if (p == NULL) return;
    device_plan_free(p->device);
    for (size_t i = 0; i < p->n; i++) {
        for (int j = 0; j < TL_STEP_WEIGHTS; j++) tl_free(p->steps[i].vectors[j]);
    }
    for (size_t i = 0; i < p->n_ropes; i++) tl_free(p->ropes[i].frequency);
    free(p->steps);
    free(p->caches);
    free(p->ropes);
    free(p->first);
    free(p->resume);
    free(p->slots);
    free(p);
}
