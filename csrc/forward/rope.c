/*
 * rope.c - rotary position embedding.
 *
 * RoPE: Su et al. 2021 (arXiv:2104.09864). YaRN: Peng et al. 2023 (arXiv:2309.00071), as ggml's
 * rope_yarn computes it. Llama 3.1's scaling is given as one divisor per pair in rope_freqs.weight.
 */
#include "forward/rope.h"

#include "base/math64.h"

#include <float.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

/* The numbers of a rope step. */
enum {
    HALVES,           // 0: the pairs are (2j, 2j + 1); 1: they are (j, j + rotated / 2)
    ROTATED,          // the first values of a head, which are rotated; the others are copied
    BASE,             //
    SCALING,          // enum scaling
    FACTOR,           // linear and YaRN
    ORIGINAL_CONTEXT, // YaRN
    BETA_FAST,        //
    BETA_SLOW,        //
    EXT_FACTOR,       // YaRN: weight of the unscaled frequencies where they are kept
    MAGNITUDE,        // multiplies cos and sin
    ROUNDED,          // YaRN: whether the range of interpolated pairs is rounded outwards, 0 or 1
};

enum scaling { SCALING_NONE, SCALING_LINEAR, SCALING_YARN };

/* frequency[j] is the angle of pair j per position; `divisors` may be NULL. */
static void frequencies(const double *numbers, const float *divisors, struct tl_rope *rope) {
    const double pi = 3.14159265358979323846, log_base = tl_log(numbers[BASE]);
    const double n = numbers[ROTATED], factor = numbers[FACTOR];
    double low = 0, high = 0;
    rope->magnitude = numbers[MAGNITUDE];
    if (numbers[SCALING] == SCALING_YARN) {
        // the pairs that turn beta_fast and beta_slow times within the original context
        const double context = numbers[ORIGINAL_CONTEXT];
        low = n * tl_log(context / (numbers[BETA_FAST] * 2 * pi)) / (2 * log_base);
        high = n * tl_log(context / (numbers[BETA_SLOW] * 2 * pi)) / (2 * log_base);
        if (numbers[ROUNDED] != 0) low = floor(low), high = ceil(high);
        low = TL_MAX(low, 0.0);
        high = TL_MIN(high, n - 1);
        rope->magnitude *= 1.0 + 0.1 * tl_log(factor);
    }
    for (size_t j = 0; j < rope->rotated / 2; j++) {
        double f = tl_exp(-(2.0 * (double)j / n) * log_base);
        if (divisors != NULL) f /= (double)divisors[j];
        if (numbers[SCALING] == SCALING_LINEAR) f /= factor;
        if (numbers[SCALING] == SCALING_YARN) {
            double y = ((double)j - low) / TL_MAX(0.001, high - low);
            double ramp = (1.0 - TL_MIN(1.0, TL_MAX(0.0, y))) * numbers[EXT_FACTOR];
            f = f / factor * (1.0 - ramp) + f * ramp;
        }
        rope->frequency[j] = f;
    }
}

static bool same_rope(const struct tl_rope *a, const struct tl_rope *b) {
    return a->rotated == b->rotated && memcmp(&a->magnitude, &b->magnitude, sizeof(double)) == 0 &&
           memcmp(a->frequency, b->frequency, a->rotated / 2 * sizeof(double)) == 0;
}

/* reads: x (heads, size); weights: divisors (rotated / 2) or None; numbers: above; value as x. */
int rope_check(const struct tl_op_check *c, struct tl_step *s) {
    static const char *const names[MAGNITUDE + 1] = {
        [BASE] = "the base",
        [FACTOR] = "the scaling factor",
        [ORIGINAL_CONTEXT] = "the original context",
        [BETA_FAST] = "beta_fast",
        [BETA_SLOW] = "beta_slow",
        [EXT_FACTOR] = "ext_factor",
        [MAGNITUDE] = "the magnitude",
    };
    struct tl_plan *p = c->plan;
    const struct tl_step *x = &p->steps[s->in[0]];
    const double *numbers = s->numbers;
    struct tl_rope *rope = &p->ropes[p->n_ropes];
    float *divisors = NULL;
    if (x->value != TL_VALUE_ROWS || x->n_axes != 2) {
        return tl_fail(c->err, TL_EARG, "step %zu (rope) reads step %zu; expected heads", p->n,
                       s->in[0]);
    }
    if (!(numbers[HALVES] == 0 || numbers[HALVES] == 1)) {
        return tl_fail(c->err, TL_EARG, "step %zu (rope): its layout is %g; expected 0 or 1", p->n,
                       numbers[HALVES]);
    }
    if (!(numbers[SCALING] == SCALING_NONE || numbers[SCALING] == SCALING_LINEAR ||
          numbers[SCALING] == SCALING_YARN)) {
        return tl_fail(c->err, TL_EARG, "step %zu (rope): its scaling is %g; expected 0, 1 or 2",
                       p->n, numbers[SCALING]);
    }
    if (!(numbers[ROTATED] >= 0 && numbers[ROTATED] <= (double)x->axes[1]) ||
        fmod(numbers[ROTATED], 2) != 0) {
        return tl_fail(c->err, TL_EARG,
                       "step %zu (rope): it rotates %g values; expected an even number up to the "
                       "head size, %zu",
                       p->n, numbers[ROTATED], x->axes[1]);
    }
    for (int i = 0; i <= MAGNITUDE; i++) {
        if (names[i] == NULL || (numbers[i] > 0 && numbers[i] <= 1e30)) continue;
        return tl_fail(c->err, TL_EARG, "step %zu (rope): %s is %g; expected a positive number",
                       p->n, names[i], numbers[i]);
    }
    rope->rotated = (size_t)numbers[ROTATED];
    if (c->spec->weights[0] != NULL) {
        TL_TRY(tl_weights_vector(c->weights, c->spec->weights[0], rope->rotated / 2, &divisors,
                                 c->err));
    }
    for (size_t j = 0; divisors != NULL && j < rope->rotated / 2; j++) {
        char value[40];
        if (divisors[j] > 0 && divisors[j] <= FLT_MAX) continue;
        snprintf(value, sizeof(value), "%g at %zu", (double)divisors[j], j);
        tl_free(divisors);
        return tl_fail_format(c->err, c->spec->weights[0], UINT64_MAX, value, "positive numbers");
    }
    rope->frequency = tl_alloc(rope->rotated / 2 * sizeof(double));
    if (rope->frequency == NULL) {
        tl_free(divisors);
        return tl_fail(c->err, TL_ENOMEM, "no memory for %zu RoPE frequencies", rope->rotated / 2);
    }
    frequencies(numbers, divisors, rope);
    tl_free(divisors);
    while (!same_rope(&p->ropes[s->number], rope)) s->number++;
    if (s->number < p->n_ropes) {
        tl_free(rope->frequency);
        rope->frequency = NULL;
    } else {
        p->n_ropes++;
    }
    s->value = TL_VALUE_ROWS;
    s->n_axes = 2;
    memcpy(s->axes, x->axes, sizeof(s->axes));
    return TL_OK;
}

/* Whether another piece of the chunk has all positions of span i: the first one, which often begins
   where all begin. */
static bool same_angles(const struct run *r, size_t i) {
    const struct span *first = &r->spans[0], *s = &r->spans[i];
    return i > 0 && s->position >= first->position &&
           s->position + s->n <= first->position + first->n;
}

static void angle_rows(struct run *r, const void *arg, size_t first, size_t last) {
    const struct tl_rope *rope = arg;
    const size_t pairs = rope->rotated / 2;
    float *table = r->cos_sin[rope - r->p->ropes];
    for (size_t i = 0; i < r->n_spans; i++) {
        const struct span *s = &r->spans[i];
        if (same_angles(r, i)) continue;
        for (size_t row = TL_MAX(first, s->row); row < TL_MIN(last, s->row + s->n); row++) {
            const double position = (double)(s->position + (row - s->row));
            float *cos_sin = table + row * pairs * 2;
            for (size_t j = 0; j < pairs; j++) {
                double sin_, cos_;
                tl_sincos(position * rope->frequency[j], &sin_, &cos_);
                cos_sin[2 * j] = (float)(cos_ * rope->magnitude);
                cos_sin[2 * j + 1] = (float)(sin_ * rope->magnitude);
            }
        }
    }
}

int rope_angles(struct run *r) {
    for (size_t i = 0; i < r->p->n_ropes; i++) {
        const struct tl_rope *rope = &r->p->ropes[i];
        float *table = r->cos_sin[i];
        TL_TRY(pass_rows(r, r->n, rope->rotated * 40, angle_rows, rope));
        for (size_t j = 0; j < r->n_spans; j++) {
            const struct span *first = &r->spans[0], *s = &r->spans[j];
            if (!same_angles(r, j)) continue;
            memcpy(table + s->row * rope->rotated,
                   table + (first->row + (s->position - first->position)) * rope->rotated,
                   s->n * rope->rotated * sizeof(float));
        }
    }
    return TL_OK;
}

struct rotation {
    const struct tl_step *s;
    const float *x, *cos_sin;
    float *y;
    size_t rotated;
};

static void rotate_rows(struct run *r, const void *arg, size_t first, size_t last) {
    const struct rotation *a = arg;
    const size_t width = a->s->width;
    void (*rotate)(const float *, float *, size_t, size_t, size_t, const float *) =
        a->s->numbers[HALVES] != 0 ? r->k->rope_halves : r->k->rope_pairs;
    for (size_t i = first; i < last; i++) {
        rotate(a->x + i * width, a->y + i * width, a->s->axes[0], a->s->axes[1], a->rotated,
               a->cos_sin + i * a->rotated);
    }
}

int rope_run(struct run *r, const struct tl_step *s) {
    const struct rotation a = {s, pass_in(r, s, 0), r->cos_sin[s->number], pass_out(r, s),
                               r->p->ropes[s->number].rotated};
    TL_TRY(pass_rows(r, r->n, s->width * 2, rotate_rows, &a));
    return pass_done(r, s, a.y);
}
