/* ops.c - the table of ops, and what their checks share. */
#include "forward/ops.h"

#include "forward/attention.h"
#include "forward/device_ops.h"
#include "forward/elementwise.h"
#include "forward/experts.h"
#include "forward/linear.h"
#include "forward/norm.h"
#include "forward/recurrent.h"
#include "forward/rope.h"
#include "forward/router.h"
#include "forward/rows.h"
#include "forward/scan.h"
#include "forward/streams.h"

#include <math.h>
#include <string.h>

#define MAX_DIMENSION (1 << 24)

const struct tl_step *op_read(const struct tl_op_check *c, const struct tl_step *s, int i) {
    return &c->plan->steps[s->in[i]];
}

int tl_op_wrong(const struct tl_op_check *c, const char *what) {
    return tl_fail(c->err, TL_EARG, "step %zu (%s): %s", c->plan->n, c->spec->op, what);
}

int op_size(const struct tl_op_check *c, const struct tl_step *s, int i, size_t least,
            size_t *out) {
    const double x = s->numbers[i];
    if (!(x >= (double)least && x <= MAX_DIMENSION) || x != floor(x)) {
        return tl_fail(c->err, TL_EARG, "step %zu (%s): number %d is %g; expected %zu to %d",
                       c->plan->n, c->spec->op, i, x, least, MAX_DIMENSION);
    }
    *out = (size_t)x;
    return TL_OK;
}

int op_number(const struct tl_op_check *c, const struct tl_step *s, int i, double least,
              double most) {
    const double x = s->numbers[i];
    if (x >= least && x <= most) return TL_OK;
    return tl_fail(c->err, TL_EARG, "step %zu (%s): number %d is %g; expected %g to %g", c->plan->n,
                   c->spec->op, i, x, least, most);
}

int op_name(const struct tl_op_check *c, int i, const char **name) {
    *name = c->spec->weights[i];
    return *name != NULL ? TL_OK : tl_op_wrong(c, "its weight is None; expected a name");
}

int op_vector(const struct tl_op_check *c, struct tl_step *s, int i, size_t n) {
    if (c->spec->weights[i] == NULL) return TL_OK;
    return tl_weights_vector(c->weights, c->spec->weights[i], n, &s->vectors[i], c->err);
}

int op_rows(const struct tl_op_check *c, struct tl_step *s, int i, int n_axes) {
    const struct tl_step *x = op_read(c, s, i);
    if (x->value != TL_VALUE_ROWS || x->n_axes < n_axes) {
        return tl_op_wrong(c, n_axes == 0 ? "its read has no rows; expected (T, ...)"
                                          : "its read has too few axes");
    }
    return TL_OK;
}

void op_shape(struct tl_step *s, const struct tl_step *from, int n_axes) {
    s->value = TL_VALUE_ROWS;
    s->n_axes = n_axes;
    memcpy(s->axes, from->axes, (size_t)n_axes * sizeof(*s->axes));
}

bool op_begins_with(const struct tl_step *a, const struct tl_step *b) {
    return a->value == TL_VALUE_ROWS && b->value == TL_VALUE_ROWS && a->n_axes >= b->n_axes &&
           memcmp(a->axes, b->axes, (size_t)b->n_axes * sizeof(*a->axes)) == 0;
}

bool op_same_shape(const struct tl_step *a, const struct tl_step *b) {
    return a->n_axes == b->n_axes && op_begins_with(a, b);
}

/* One row per op. The gradients of ops have a table in training/back.c. */
const struct tl_op_info tl_ops[TL_OP_COUNT] = {
    // name, reads, weights, numbers, scope, check, run, run_device
    [TL_OP_EMBED] = {"embed", 0, 1, 3, TL_SCOPE_CONTEXT, embed_check, embed_run, embed_run_device},
    [TL_OP_SAME] = {"same", 1, 0, 0, TL_SCOPE_ROW, same_check, same_run, same_run_device},
    [TL_OP_SHAPE] = {"shape", 1, 0, 2, TL_SCOPE_ROW, shape_check, same_run, same_run_device},
    [TL_OP_SLICE] = {"slice", 1, 0, 3, TL_SCOPE_ROW, slice_check, slice_run, slice_run_device},
    [TL_OP_CONCAT] = {"concat", 2, 0, 0, TL_SCOPE_ROW, concat_check, concat_run, concat_run_device},
    [TL_OP_NORM_SCALE] = {"norm_scale", 1, 0, 3, TL_SCOPE_ROW, norm_scale_check, norm_scale_run,
                          norm_scale_run_device},
    [TL_OP_NORM] = {"norm", 2, 1, 1, TL_SCOPE_ROW, norm_check, norm_run, norm_run_device},
    [TL_OP_NORM_MEAN] = {"norm_mean", 1, 0, 0, TL_SCOPE_ROW, norm_mean_check, norm_mean_run,
                         norm_mean_run_device},
    [TL_OP_LAYER_SCALE] = {"layer_scale", 2, 0, 1, TL_SCOPE_ROW, layer_scale_check, layer_scale_run,
                           layer_scale_run_device},
    [TL_OP_LAYER_NORM] = {"layer_norm", 3, 2, 1, TL_SCOPE_ROW, layer_norm_check, layer_norm_run,
                          layer_norm_run_device},
    [TL_OP_LINEAR] = {"linear", 1, 3, 4, TL_SCOPE_ROW, linear_check, linear_run, linear_run_device},
    [TL_OP_ROPE] = {"rope", 1, 1, 11, TL_SCOPE_CONTEXT, rope_check, rope_run, rope_run_device},
    [TL_OP_TEMPER] = {"temper", 1, 0, 3, TL_SCOPE_CONTEXT, temper_check, temper_run,
                      temper_run_device},
    [TL_OP_CACHE] = {"cache", 2, 0, 0, TL_SCOPE_CONTEXT, cache_check, cache_run, cache_run_device},
    [TL_OP_SCORES] = {"scores", 2, 1, 6, TL_SCOPE_CONTEXT, scores_check, attention_run,
                      attention_run_device},
    [TL_OP_SOFTMAX] = {"softmax", 1, 1, 0, TL_SCOPE_CONTEXT, softmax_check, NULL,
                       attention_run_device},
    [TL_OP_MIX] = {"mix", 2, 0, 0, TL_SCOPE_CONTEXT, mix_check, NULL, attention_run_device},
    [TL_OP_ADD] = {"add", 2, 0, 0, TL_SCOPE_ROW, add_check, add_run, add_run_device},
    [TL_OP_COMBINE] = {"combine", 2, 0, 0, TL_SCOPE_ROW, combine_check, combine_run,
                       combine_run_device},
    [TL_OP_ADD_SHARED] = {"add_shared", 2, 0, 0, TL_SCOPE_ROW, add_shared_check, add_shared_run,
                          add_shared_run_device},
    [TL_OP_MATCH_RMS] = {"match_rms", 2, 0, 1, TL_SCOPE_ROW, match_rms_check, match_rms_run,
                         match_rms_run_device},
    [TL_OP_SPARSIFY] = {"sparsify", 3, 0, 1, TL_SCOPE_ROW, sparsify_check, sparsify_run,
                        sparsify_run_device},
    [TL_OP_ACT] = {"act", 2, 0, 3, TL_SCOPE_ROW, act_check, act_run, act_run_device},
    [TL_OP_UNARY] = {"unary", 1, 0, 2, TL_SCOPE_ROW, unary_check, unary_run, unary_run_device},
    [TL_OP_SCALE] = {"scale", 1, 1, 1, TL_SCOPE_ROW, scale_check, scale_run, scale_run_device},
    [TL_OP_SOFTPLUS] = {"softplus", 1, 1, 0, TL_SCOPE_ROW, softplus_check, softplus_run,
                        softplus_run_device},
    [TL_OP_XIELU] = {"xielu", 1, 0, 4, TL_SCOPE_ROW, xielu_check, xielu_run, xielu_run_device},
    [TL_OP_EXP] = {"exp", 1, 0, 1, TL_SCOPE_ROW, exp_check, exp_run, exp_run_device},
    [TL_OP_ROUTE_PROBS] = {"route_probs", 1, 0, 1, TL_SCOPE_ROW, route_probs_check, route_probs_run,
                           route_probs_run_device},
    [TL_OP_ROUTE_IDS] = {"route_ids", 1, 1, 4, TL_SCOPE_ROW, route_ids_check, route_ids_run,
                         route_ids_run_device},
    [TL_OP_ROUTE_WEIGHTS] = {"route_weights", 2, 0, 3, TL_SCOPE_ROW, route_weights_check,
                             route_weights_run, route_weights_run_device},
    [TL_OP_EXPERTS] = {"experts", 2, 3, 3, TL_SCOPE_ROW, experts_check, experts_run,
                       experts_run_device},
    [TL_OP_HEAD_LINEAR] = {"head_linear", 1, 3, 3, TL_SCOPE_ROW, head_linear_check, experts_run,
                           experts_run_device},
    [TL_OP_WEIGHTED_SUM] = {"weighted_sum", 2, 0, 0, TL_SCOPE_ROW, weighted_sum_check,
                            weighted_sum_run, weighted_sum_run_device},
    [TL_OP_CONV] = {"conv", 1, 2, 1, TL_SCOPE_CONTEXT, conv_check, conv_run, conv_run_device},
    [TL_OP_DECAY] = {"decay", 1, 2, 0, TL_SCOPE_ROW, decay_check, decay_run, decay_run_device},
    [TL_OP_DELTA] = {"delta", 5, 0, 2, TL_SCOPE_CONTEXT, delta_check, delta_run, delta_run_device},
    [TL_OP_SCAN] = {"scan", 5, 1, 0, TL_SCOPE_CONTEXT, scan_check, scan_run, scan_run_device},
    [TL_OP_SCAN_CHANNELS] = {"scan_channels", 4, 2, 0, TL_SCOPE_CONTEXT, scan_channels_check,
                             scan_channels_run, scan_channels_run_device},
    [TL_OP_SHIFT] = {"shift", 1, 1, 1, TL_SCOPE_CONTEXT, shift_check, shift_run, shift_run_device},
    [TL_OP_WKV] = {"wkv", 6, 0, 0, TL_SCOPE_CONTEXT, wkv_check, wkv_run, wkv_run_device},
};
