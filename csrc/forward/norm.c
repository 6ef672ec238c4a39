/* norm.c - RMS norm, L2 norm and LayerNorm, in steps. */
#include "forward/norm.h"

#include "forward/pass.h"

#define MAX_EPSILON 0.99

/* ---- checks ---- */

/*
 * reads: x; numbers: epsilon, kind (0: 1 / rms, 1: 1 / length), how many of the last axes make a
 * vector; value: the other axes of x.
 */
int norm_scale_check(const struct tl_op_check *c, struct tl_step *s) {
    const struct tl_step *x = op_read(c, s, 0);
    TL_TRY(op_rows(c, s, 0, 1));
    TL_TRY(op_number(c, s, 0, 0, MAX_EPSILON));
    TL_TRY(op_number(c, s, 1, 0, 1));
    TL_TRY(op_number(c, s, 2, 1, x->n_axes));
    if (s->numbers[1] != (int)s->numbers[1] || s->numbers[2] != (int)s->numbers[2]) {
        return tl_op_wrong(c, "its kind and axes are not whole numbers");
    }
    op_shape(s, x, x->n_axes - (int)s->numbers[2]);
    return TL_OK;
}

/* reads: x; value: x without its last axis. */
int norm_mean_check(const struct tl_op_check *c, struct tl_step *s) {
    const struct tl_step *x = op_read(c, s, 0);
    TL_TRY(op_rows(c, s, 0, 1));
    op_shape(s, x, x->n_axes - 1);
    return TL_OK;
}

/* Checks that read i is a statistic of the vectors of read 0. */
static int check_statistic(const struct tl_op_check *c, struct tl_step *s, int i) {
    const struct tl_step *x = op_read(c, s, 0), *scale = op_read(c, s, i);
    if (op_begins_with(x, scale) && scale->n_axes < x->n_axes) return TL_OK;
    return tl_op_wrong(c, "its statistic does not match its value; expected the first axes of it");
}

/* reads: x, mean; numbers: epsilon; value as the mean. */
int layer_scale_check(const struct tl_op_check *c, struct tl_step *s) {
    const struct tl_step *mean = op_read(c, s, 1);
    TL_TRY(check_statistic(c, s, 1));
    TL_TRY(op_number(c, s, 0, 0, MAX_EPSILON));
    op_shape(s, mean, mean->n_axes);
    return TL_OK;
}

/*
 * Loads the weights of a norm of x whose vectors are the axes from `first_axis` on. Number 0 tells
 * how many of the last axes of x a weight covers; 0: as many as the vectors.
 */
static int load_weights(const struct tl_op_check *c, struct tl_step *s, int first_axis) {
    const struct tl_step *x = op_read(c, s, 0);
    int covers = (int)s->numbers[0];
    size_t n = 1;
    TL_TRY(op_number(c, s, 0, 0, x->n_axes));
    if (covers != s->numbers[0]) return tl_op_wrong(c, "its axes are not a whole number");
    if (covers == 0) covers = x->n_axes - first_axis;
    if (covers < x->n_axes - first_axis) {
        return tl_op_wrong(c, "its weight covers less than its vectors");
    }
    for (int i = x->n_axes - covers; i < x->n_axes; i++) n *= x->axes[i];
    op_shape(s, x, x->n_axes);
    for (int i = 0; i < c->spec->n_weights; i++) {
        if (c->spec->weights[i] == NULL) continue;
        // a weight has the axes of the vectors that it covers, or one axis
        if (covers > x->n_axes - first_axis &&
            !tl_weights_has_size(c->weights, c->spec->weights[i], n)) {
            TL_TRY(tl_weights_array(c->weights, c->spec->weights[i], x->axes + x->n_axes - covers,
                                    covers, &s->vectors[i], c->err));
        } else {
            TL_TRY(op_vector(c, s, i, n));
        }
    }
    s->number = n;
    return TL_OK;
}

/* reads: x, scale; weights: one or None; numbers: see load_weights; value as x. */
int norm_check(const struct tl_op_check *c, struct tl_step *s) {
    TL_TRY(check_statistic(c, s, 1));
    return load_weights(c, s, op_read(c, s, 1)->n_axes);
}

/* reads: x, mean, scale; weights: weight or None, bias or None; numbers: as norm; value as x. */
int layer_norm_check(const struct tl_op_check *c, struct tl_step *s) {
    TL_TRY(check_statistic(c, s, 1));
    if (!op_same_shape(op_read(c, s, 1), op_read(c, s, 2))) {
        return tl_op_wrong(c, "its mean and its scale differ in shape");
    }
    return load_weights(c, s, op_read(c, s, 1)->n_axes);
}

/* ---- runs ---- */

struct norm {
    const float *x, *means, *scales;
    const float *weight, *bias; // or NULL
    float *y;                   // the statistics, or the normalized vectors
    size_t vectors;             // per row
    size_t n;                   // values per vector
    size_t weights;             // values that the weight covers, a multiple of n
    float epsilon;
    bool unit; // L2 norm
};

/* Runs a step whose value is a statistic of each vector. The caller sets what only its rows use. */
static int run_statistic(struct run *r, const struct tl_step *s, struct norm a, pass_row_fn *rows) {
    a.x = pass_in(r, s, 0);
    a.y = pass_out(r, s);
    a.vectors = s->width;
    a.n = r->p->steps[s->in[0]].width / s->width;
    TL_TRY(pass_rows(r, r->n, s->width * a.n, rows, &a));
    return pass_done(r, s, a.y);
}

static void scale_rows(struct run *r, const void *arg, size_t first, size_t last) {
    const struct norm *a = arg;
    const double divisor = a->unit ? 1.0 : (double)a->n;
    for (size_t i = first * a->vectors; i < last * a->vectors; i++) {
        a->y[i] = r->k->norm_scale(a->x + i * a->n, a->n, divisor, a->epsilon);
    }
}

int norm_scale_run(struct run *r, const struct tl_step *s) {
    const struct norm a = {.epsilon = (float)s->numbers[0], .unit = s->numbers[1] != 0};
    return run_statistic(r, s, a, scale_rows);
}

static void mean_rows(struct run *r, const void *arg, size_t first, size_t last) {
    const struct norm *a = arg;
    for (size_t i = first * a->vectors; i < last * a->vectors; i++) {
        a->y[i] = r->k->norm_mean(a->x + i * a->n, a->n);
    }
}

int norm_mean_run(struct run *r, const struct tl_step *s) {
    return run_statistic(r, s, (struct norm){0}, mean_rows);
}

static void layer_scale_rows(struct run *r, const void *arg, size_t first, size_t last) {
    const struct norm *a = arg;
    for (size_t i = first * a->vectors; i < last * a->vectors; i++) {
        a->y[i] = r->k->layer_scale(a->x + i * a->n, a->n, a->means[i], a->epsilon);
    }
}

int layer_scale_run(struct run *r, const struct tl_step *s) {
    const struct norm a = {.epsilon = (float)s->numbers[0], .means = pass_in(r, s, 1)};
    return run_statistic(r, s, a, layer_scale_rows);
}

static void norm_rows(struct run *r, const void *arg, size_t first, size_t last) {
    const struct norm *a = arg;
    for (size_t i = first * a->vectors; i < last * a->vectors; i++) {
        const size_t at = i * a->n % a->weights;
        const float *weight = a->weight != NULL ? a->weight + at : NULL;
        const float *bias = a->bias != NULL ? a->bias + at : NULL;
        const float *x = a->x + i * a->n;
        float *y = a->y + i * a->n;
        if (a->means == NULL) {
            r->k->norm_apply(x, weight, a->n, a->scales[i], y);
        } else {
            r->k->layer_apply(x, weight, bias, a->n, a->means[i], a->scales[i], y);
        }
    }
}

static struct norm norm_of(struct run *r, const struct tl_step *s, int scale) {
    const size_t vectors = r->p->steps[s->in[scale]].width;
    return (struct norm){.x = pass_in(r, s, 0),
                         .scales = pass_in(r, s, scale),
                         .weight = s->vectors[0],
                         .bias = s->vectors[1],
                         .y = pass_out(r, s),
                         .vectors = vectors,
                         .n = s->width / vectors,
                         .weights = s->number};
}

int norm_run(struct run *r, const struct tl_step *s) {
    const struct norm a = norm_of(r, s, 1);
    TL_TRY(pass_rows(r, r->n, s->width, norm_rows, &a));
    return pass_done(r, s, a.y);
}

int layer_norm_run(struct run *r, const struct tl_step *s) {
    struct norm a = norm_of(r, s, 2);
    a.means = pass_in(r, s, 1);
    TL_TRY(pass_rows(r, r->n, s->width, norm_rows, &a));
    return pass_done(r, s, a.y);
}
