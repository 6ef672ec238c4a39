/* router.cl - which experts a token uses, and with which weights; forward/router.c is the CPU's. */

/* What an expert is chosen by; NaN counts as -inf. */
float choice_of(__global const float *probs, __global const float *bias, int expert) {
    const float x = bias != 0 ? f_add(probs[expert], bias[expert]) : probs[expert];
    return f_is_nan(x) ? -INFINITY : x;
}

/* Whether `a`, of number i, comes after `b`, of number j: of equals the lower number is first. */
bool comes_after(float a, int i, float b, int j) { return f_less(a, b) || (!f_less(b, a) && j < i); }

/* Bit g: the experts of group g may be chosen. */
ulong kept_groups(__global const float *probs, __global const float *bias, int size, int groups,
                  int used, int best) {
    float scores[64];
    ulong kept = 0;
    for (int g = 0; g < groups; g++) {
        float first = -INFINITY, second = -INFINITY;
        for (int e = g * size; e < (g + 1) * size; e++) {
            const float x = choice_of(probs, bias, e);
            if (f_less(first, x)) {
                second = first;
                first = x;
            } else if (f_less(second, x)) {
                second = x;
            }
        }
        scores[g] = best == 1 ? first : f_add(first, second);
        if (f_is_nan(scores[g])) scores[g] = -INFINITY;
    }
    for (int g = 0; g < groups; g++) {
        int before = 0;
        for (int h = 0; h < groups; h++) before += comes_after(scores[g], g, scores[h], h);
        if (before < used) kept |= 1UL << g;
    }
    return kept;
}

/* Ids (tokens, used) of probs (tokens, experts): each item counts the experts before its own.
   global: (experts, tokens) */
__kernel void route_ids(int experts, int used, int groups, int groups_used, int best,
                        __global const float *probs, __global const float *bias,
                        __global float *y) {
    const int expert = (int)get_global_id(0), size = experts / groups;
    int before = 0;
    if (expert >= experts) return;
    probs += get_global_id(1) * experts;
    const ulong kept = groups > 1 ? kept_groups(probs, bias, size, groups, groups_used, best) : 1;
    const float mine = choice_of(probs, bias, expert);
    if ((kept >> expert / size & 1) == 0) return;
    for (int e = 0; e < experts; e++) {
        if (kept >> e / size & 1) before += comes_after(mine, expert, choice_of(probs, bias, e), e);
    }
    if (before < used) y[get_global_id(1) * used + before] = f_long(expert);
}

/* An id as an index. The host has checked ids that an edit may have changed; but whatever they
   are, no memory of another buffer is read. */
int index_of(float id, int experts) { return id >= 0.0f && id < (float)experts ? (int)id : 0; }

/* ROUTE_* of router.h */
enum { NOT_FROM_LOGITS, SOFTMAX_OF_CHOSEN, MIXER };

/* The weight of a rank in the sparse mixer. */
float mixer_weight(__global const float *logits, int experts, __global const float *ids, int rank) {
    const real top = r_float(logits[index_of(ids[rank], experts)]);
    const real gap = r_bits(0x3f947ae147ae147bUL); // 0.02
    real sum = R0;
    for (int e = 0; e < experts; e++) {
        const real x = r_float(logits[e]), large = r_less(top, r_size(x)) ? r_size(x) : top;
        bool before = false;
        for (int i = 0; i < rank; i++) before |= index_of(ids[i], experts) == e;
        if (!before && !r_less(gap, r_div(r_sub(top, x), large))) {
            sum = r_add(sum, r_exp(r_sub(x, top)));
        }
    }
    return r_to_float(r_div(R1, sum));
}

/* Weights (tokens, used): the probabilities of the ids, divided by their sum if `normalized`. */
__kernel void route_weights(ulong tokens, int experts, int used, int normalized, int made,
                            __global const float *probs, __global const float *ids,
                            __global float *y) {
    const size_t token = get_global_id(0);
    real sum = R0;
    if (token >= tokens) return;
    probs += token * experts;
    ids += token * used;
    y += token * used;
    for (int i = 0; i < used; i++) {
        y[i] = made == MIXER ? mixer_weight(probs, experts, ids, i)
                             : probs[index_of(ids[i], experts)];
        sum = r_add(sum, r_float(y[i]));
    }
    sum = r_add(sum, r_bits(0x3bc79ca10c924223UL)); // 1e-20
    for (int i = 0; i < used && normalized; i++) y[i] = r_to_float(r_div(r_float(y[i]), sum));
}

/*
 * Sorts pairs of a token and an expert by the expert, for the matmuls of experts. The ids become
 * integers in `chosen` (pairs); without ids, pair i has expert i mod `used`. Of `order` (room),
 * each `together` places hold pairs of one expert, or -1 behind them. counts: (experts).
 * One work-group.
 */
__kernel void sort_pairs(ulong pairs, ulong room, int experts, int used, int together,
                         __global const float *ids, __global int *chosen) {
    const int lane = (int)get_local_id(0), lanes = (int)get_local_size(0);
    __global int *order = chosen + pairs, *counts = order + room;
    for (size_t i = lane; i < pairs; i += lanes) {
        chosen[i] = ids != 0 ? index_of(ids[i], experts) : (int)(i % used);
    }
    for (size_t i = lane; i < room; i += lanes) order[i] = -1;
    barrier(CLK_GLOBAL_MEM_FENCE);
    for (int e = lane; e < experts; e += lanes) {
        int count = 0;
        for (size_t i = 0; i < pairs; i++) count += chosen[i] == e;
        counts[e] = (count + together - 1) / together * together;
    }
    barrier(CLK_GLOBAL_MEM_FENCE);
    for (int e = 0, at = 0; lane == 0 && e < experts; e++) {
        const int count = counts[e];
        counts[e] = at;
        at += count;
    }
    barrier(CLK_GLOBAL_MEM_FENCE);
    for (int e = lane; e < experts; e += lanes) {
        int at = counts[e];
        for (size_t i = 0; i < pairs; i++) {
            if (chosen[i] == e) order[at++] = (int)i;
        }
    }
}

/* y (pairs, size) times the scale of the pair's expert, plus `size` of its `all` biases from
   `first` on; each only if it is given. */
__kernel void finish_experts(ulong n, ulong size, ulong first, ulong all,
                             __global const int *chosen, __global const float *scale,
                             __global const float *bias, __global float *y) {
    const size_t i = get_global_id(0);
    if (i >= n) return;
    const size_t expert = chosen[i / size];
    float x = y[i];
    if (scale != 0) x = f_mul(x, scale[expert]);
    if (bias != 0) x = f_add(x, bias[expert * all + first + i % size]);
    y[i] = x;
}
