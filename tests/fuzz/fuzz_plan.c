/*
 * fuzz_plan.c - random plans of steps, and the forward pass of those that are accepted.
 *
 * A right plan of a tiny model is changed at a few places. tl_plan_new may refuse the result; what
 * it accepts must run: without touching memory that is not its own, and with the same bits however
 * the tokens are cut into calls, threads, sessions and instruction sets, and whatever is captured.
 *
 * With libFuzzer (clang; -DTL_NO_INLINE because the kernels compile for minutes otherwise):
 *   clang -std=gnu11 -g -O1 -DTL_NO_INLINE -DTINYLLM_NO_ASM -ffp-contract=off \
 *       -fsanitize=fuzzer,address,undefined -fno-sanitize-recover=undefined -Icsrc \
 *       -o /tmp/fuzz_plan tests/fuzz/fuzz_plan.c csrc/base/?*.c csrc/types/?*.c csrc/kernels/?*.c \
 *       csrc/model/?*.c csrc/forward/?*.c -lm -lpthread
 *   mkdir -p /tmp/corpus
 *   /tmp/fuzz_plan -max_len=1024 -len_control=0 -max_total_time=600 /tmp/corpus
 *
 * Without it, FUZZ_MAIN makes a program that runs random bytes for some seconds:
 *   /tmp/fuzz_plan SECONDS [SEED]
 * tests/c/run_fuzz.sh builds that from the objects of `setup.py build_ext`.
 */
#include "forward/forward.h"
#include "forward/ops.h"
#include "fuzz_input.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define MOST_STEPS 200
#define MOST_TENSORS 64
#define MOST_TOKENS 1100

static uint64_t runs, accepted; // so far

static struct tl_step_spec steps[MOST_STEPS + 1]; // one to spare, for `change`
static size_t n_steps;

/* Ends the program with the plan if something is not as it must be. */
static void must(bool holds, const char *what) {
    if (holds) return;
    fprintf(stderr, "fuzz_plan: %s\n", what);
    for (size_t i = 0; i < n_steps; i++) {
        const struct tl_step_spec *s = &steps[i];
        fprintf(stderr, "%3zu %3d %s (", i, s->layer, s->op);
        for (int j = 0; j < s->n_reads; j++) fprintf(stderr, " %zu", s->reads[j]);
        for (int j = 0; j < s->n_weights; j++) {
            fprintf(stderr, " %s", s->weights[j] != NULL ? s->weights[j] : "-");
        }
        for (int j = 0; j < s->n_numbers; j++) fprintf(stderr, " %g", s->numbers[j]);
        fprintf(stderr, " )\n");
    }
    abort();
}

static void *array(size_t count, size_t size) {
    static int fill; // differs, so that what nobody writes differs as well
    void *p = malloc(count * size);
    must(p != NULL, "no memory");
    memset(p, ++fill & 0x3f, count * size);
    return p;
}

/* ---- tensors ---- */

static struct tl_tensor tensors[MOST_TENSORS];
static size_t n_tensors;
static bool good_factors; // the tensor "factors" has only positive numbers

/* Small finite numbers, or any bits at all. */
static void fill(const struct tl_type_info *type, uint8_t *data, size_t bytes, bool wild) {
    uint64_t state = 88172645463325252u + take();
    const bool f32 = type == tl_type_find(TL_TYPE_F32), f64 = type == tl_type_find(TL_TYPE_F64);
    for (size_t i = 0; i < bytes; i++) {
        const uint8_t bits = (uint8_t)(next_random(&state) >> 16);
        data[i] = wild ? bits : bits & 0x2f; // halves below 2^-3
    }
    for (size_t i = 0; !wild && f32 && i < bytes / 4; i++) {
        ((float *)(void *)data)[i] = (float)(next_random(&state) >> 40) * 0x1p-23f - 1;
    }
    for (size_t i = 0; !wild && f64 && i < bytes / 8; i++) {
        ((double *)(void *)data)[i] = (double)(next_random(&state) >> 40) * 0x1p-23 - 1;
    }
}

/* A tensor in memory of exactly its size; rows 0: a vector. */
static void tensor(const char *name, enum tl_type wanted, size_t rows, size_t cols) {
    const struct tl_type_info *type = tl_type_find(wanted);
    const bool wild = take() % 32 == 31;
    size_t bytes;
    uint8_t *data;
    if (!tl_type_row_bytes(type, cols, &bytes)) {
        type = tl_type_find(TL_TYPE_F32);
        bytes = cols * 4;
    }
    bytes *= TL_MAX(rows, 1);
    data = array(bytes, 1);
    fill(type, data, bytes, wild);
    tensors[n_tensors++] = (struct tl_tensor){
        .name = name, .type = type, .n_dims = rows ? 2 : 1, .dims = {cols, rows}, .data = data};
}

/* The same for a tensor (experts, rows, cols). */
static void stack(const char *name, enum tl_type wanted, size_t experts, size_t rows, size_t cols) {
    struct tl_tensor *t = &tensors[n_tensors];
    tensor(name, wanted, experts * rows, cols);
    t->n_dims = 3;
    t->dims[1] = rows;
    t->dims[2] = experts;
}

static const enum tl_type matrix_types[] = {
    TL_TYPE_F32,   TL_TYPE_F32,    TL_TYPE_F32,   TL_TYPE_F16,    TL_TYPE_BF16,   TL_TYPE_Q4_0,
    TL_TYPE_Q4_1,  TL_TYPE_Q5_0,   TL_TYPE_Q5_1,  TL_TYPE_Q8_0,   TL_TYPE_Q2_K,   TL_TYPE_Q3_K,
    TL_TYPE_Q4_K,  TL_TYPE_Q5_K,   TL_TYPE_Q6_K,  TL_TYPE_IQ4_NL, TL_TYPE_IQ4_XS, TL_TYPE_MXFP4,
    TL_TYPE_IQ1_M, TL_TYPE_IQ2_XS, TL_TYPE_IQ3_S, TL_TYPE_TQ1_0,  TL_TYPE_NVFP4,  TL_TYPE_Q1_0,
    TL_TYPE_Q8_1,  TL_TYPE_Q8_K};
static const enum tl_type vector_types[] = {TL_TYPE_F32, TL_TYPE_F32, TL_TYPE_F16, TL_TYPE_F64};

/* ---- a right plan ---- */

struct sizes {
    size_t layers, width, heads, kv_heads, key_size, value_size, ffn, vocab;
    size_t experts, used, groups; // 0 experts: none
    size_t taps, state_keys, state_heads, state_key_size, state_value_size;
    bool biases, tied, factors;
};

static struct sizes choose_sizes(void) {
    static const size_t widths[] = {32, 256, 8, 64, 33}, groups[] = {1, 2, 3, 8, 60},
                        heads[] = {2, 4, 8, 16, 20, 32}, inner[] = {32, 256, 40, 1},
                        vocabs[] = {33, 64, 3, 32}, counts[] = {4, 8, 1, 5, 20};
    struct sizes s = {.layers = 1 + below(3), .width = PICK(widths), .kv_heads = 1 + below(3)};
    s.heads = s.kv_heads * PICK(groups);
    s.key_size = PICK(heads);
    s.value_size = below(4) == 0 ? 1 + below(40) : s.key_size;
    s.ffn = PICK(inner);
    s.vocab = PICK(vocabs);
    if (s.heads * s.key_size * s.width > 1 << 14) s.heads = s.kv_heads; // to be quick
    s.taps = 2 + below(4);
    s.state_keys = 1 + below(3);
    s.state_heads = s.state_keys * (1 + below(3));
    s.state_key_size = 1 + below(20);
    s.state_value_size = below(4) == 3 ? 60 + below(20) : 1 + below(20);
    s.biases = below(2) != 0;
    s.tied = below(4) == 3;
    s.factors = below(4) == 3;
    if (below(2) != 0) {
        s.experts = PICK(counts);
        s.used = below(3) == 0 ? s.experts : 1 + below(s.experts);
        s.groups = s.experts % 4 == 0 ? 1 + 3 * below(2) : 1;
    }
    return s;
}

static void make_tensors(const struct sizes *s) {
    const size_t d = s->width, q = s->heads * s->key_size, k = s->kv_heads * s->key_size,
                 v = s->kv_heads * s->value_size, mix = s->heads * s->value_size;
    n_tensors = 0;
    tensor("token_embd", PICK(matrix_types), s->vocab, d);
    tensor("q", PICK(matrix_types), q, d);
    tensor("k", PICK(matrix_types), k, d);
    tensor("v", PICK(matrix_types), v, d);
    tensor("out", PICK(matrix_types), d, mix);
    tensor("gate", PICK(matrix_types), s->ffn, d);
    tensor("up", PICK(matrix_types), s->ffn, d);
    tensor("down", PICK(matrix_types), d, s->ffn);
    tensor("output", PICK(matrix_types), s->vocab, d);
    tensor("norm", PICK(vector_types), 0, d);
    tensor("q_norm", PICK(vector_types), 0, s->key_size);
    tensor("q_bias", PICK(vector_types), 0, q);
    tensor("k_bias", PICK(vector_types), 0, k);
    tensor("v_bias", PICK(vector_types), 0, v);
    tensor("sinks", TL_TYPE_F32, 0, s->heads);
    tensor("factors", TL_TYPE_F32, 0, s->key_size / 2);
    good_factors = below(8) != 7; // the others may be zero, negative or NaN, and are refused
    for (size_t i = 0; good_factors && i < s->key_size / 2; i++) {
        ((float *)(void *)(uintptr_t)tensors[n_tensors - 1].data)[i] = 1 + (float)(i % 7);
    }
    if (s->experts > 0) {
        const enum tl_type type = PICK(matrix_types);
        tensor("router", PICK(matrix_types), s->experts, d);
        tensor("router_bias", PICK(vector_types), 0, s->experts);
        stack("gate_exps", type, s->experts, s->ffn, d);
        stack("up_exps", below(4) == 0 ? PICK(matrix_types) : type, s->experts, s->ffn, d);
        stack("gate_up_exps", PICK(matrix_types), s->experts, 2 * s->ffn, d);
        stack("down_exps", PICK(matrix_types), s->experts, d, s->ffn);
        tensor("gate_exps_bias", PICK(vector_types), s->experts, s->ffn);
        tensor("gate_up_exps_bias", PICK(vector_types), s->experts, 2 * s->ffn);
        tensor("exps_scale", PICK(vector_types), 0, s->experts);
    }
    tensor("taps", TL_TYPE_F32, d, s->taps);
    tensor("taps_bias", PICK(vector_types), 0, d);
    tensor("state_q", PICK(matrix_types), s->state_keys * s->state_key_size, d);
    tensor("state_k", PICK(matrix_types), s->state_keys * s->state_key_size, d);
    tensor("state_v", PICK(matrix_types), s->state_heads * s->state_value_size, d);
    tensor("state_out", PICK(matrix_types), d, s->state_heads * s->state_value_size);
    tensor("alpha", PICK(matrix_types), s->state_heads, d);
    tensor("beta", PICK(matrix_types), s->state_heads, d);
    tensor("ssm_a", PICK(vector_types), 0, s->state_heads);
    tensor("ssm_dt", PICK(vector_types), 0, s->state_heads);
    tensor("integers", TL_TYPE_I32, s->vocab, d); // readable, but not runnable
    tensor("square", PICK(matrix_types), d, d);
    tensor("three", TL_TYPE_F32, s->vocab, d);
    tensors[n_tensors - 1].n_dims = 3;
    tensors[n_tensors - 1].dims[2] = 1;
}

static size_t push(const char *op, int layer, struct tl_step_spec step) {
    const struct tl_op_info *info = tl_ops;
    while (strcmp(info->name, op) != 0) info++;
    step.op = op;
    step.layer = layer;
    step.n_reads = info->reads;
    step.n_weights = info->weights;
    step.n_numbers = info->numbers;
    steps[n_steps] = step;
    return n_steps++;
}

static size_t two(const char *op, int layer, size_t a, size_t b) {
    return push(op, layer, (struct tl_step_spec){.reads = {a, b}});
}

static size_t linear(int layer, size_t x, const char *w, const char *b, size_t heads, size_t size) {
    return push("linear", layer,
                (struct tl_step_spec){
                    .reads = {x}, .weights = {w, b}, .numbers = {(double)heads, (double)size}});
}

static size_t norm(int layer, size_t x, const char *w) {
    const size_t scale =
        push("norm_scale", layer, (struct tl_step_spec){.reads = {x}, .numbers = {1e-5, 0, 1}});
    return push("norm", layer, (struct tl_step_spec){.reads = {x, scale}, .weights = {w}});
}

static size_t layer_norm(int layer, size_t x) {
    const size_t mean = push("norm_mean", layer, (struct tl_step_spec){.reads = {x}});
    const size_t scale =
        push("layer_scale", layer, (struct tl_step_spec){.reads = {x, mean}, .numbers = {1e-5}});
    return push("layer_norm", layer,
                (struct tl_step_spec){.reads = {x, mean, scale},
                                      .weights = {"norm", below(2) == 0 ? "norm" : NULL}});
}

/* Functions, factors, and halves of a value that are put together again. */
static size_t elementwise(int layer, size_t x, size_t width) {
    const double half = (double)(width / 2);
    size_t a, b;
    x = push("unary", layer,
             (struct tl_step_spec){.reads = {x}, .numbers = {(double)below(TL_FN_OAI), 1.5}});
    x = push("scale", layer,
             (struct tl_step_spec){.reads = {x}, .weights = {"norm"}, .numbers = {(double)width}});
    if (below(4) == 3) {
        x = push("xielu", layer, (struct tl_step_spec){.reads = {x}, .numbers = {0.5, 0.4, 1, -1}});
    }
    if (below(4) == 3) {
        x = push("softplus", layer,
                 (struct tl_step_spec){.reads = {x}, .weights = {below(2) ? "norm" : NULL}});
    }
    if (width % 2 != 0) return x;
    a = push("slice", layer, (struct tl_step_spec){.reads = {x}, .numbers = {0, 0, half}});
    b = push("slice", layer, (struct tl_step_spec){.reads = {x}, .numbers = {0, half, half}});
    a = two("add", layer, a, b);
    a = push("norm_scale", layer,
             (struct tl_step_spec){.reads = {a}, .numbers = {1e-5, (double)below(2), 1}});
    return push("act", layer, (struct tl_step_spec){.reads = {a, x}, .numbers = {4}});
}

static size_t rope(int layer, size_t x, const struct sizes *s, bool halves) {
    const double rotated = (double)(s->key_size / 2 * 2);
    return push("rope", layer,
                (struct tl_step_spec){
                    .reads = {x},
                    .weights = {s->factors ? "factors" : NULL},
                    .numbers = {halves, rotated, 1e4, (double)below(3), 4, 64, 32, 1, 1, 1}});
}

static size_t experts(int layer, size_t x, size_t ids, const char *w, const char *bias,
                      const char *scale, size_t size, size_t first, size_t rows) {
    return push("experts", layer,
                (struct tl_step_spec){.reads = {x, ids},
                                      .weights = {w, bias, scale},
                                      .numbers = {(double)size, (double)first, (double)rows}});
}

/* A mixture of experts, with any of what the ops can do. */
static size_t mixture(int layer, size_t x, const struct sizes *s) {
    const bool fused = below(2) != 0, softmax = below(4) == 3;
    const char *bias = s->biases ? fused ? "gate_up_exps_bias" : "gate_exps_bias" : NULL;
    const char *scale = below(4) == 3 ? "exps_scale" : NULL;
    const double size = (double)(s->experts / s->groups);
    const double groups = (double)(s->used + (size_t)size - 1) / size; // that must be used
    size_t probs = linear(layer, x, "router", NULL, 0, s->experts), ids, weights, gate, up;
    if (!softmax) {
        probs = push("route_probs", layer,
                     (struct tl_step_spec){.reads = {probs}, .numbers = {(double)below(2)}});
    }
    ids = push("route_ids", layer,
               (struct tl_step_spec){.reads = {probs},
                                     .weights = {below(2) != 0 ? "router_bias" : NULL},
                                     .numbers = {(double)s->used, (double)s->groups, floor(groups),
                                                 size > 1 ? 1 + (double)below(2) : 1}});
    weights = push("route_weights", layer,
                   (struct tl_step_spec){.reads = {probs, ids},
                                         .numbers = {!softmax && below(2) != 0, softmax, 1.5}});
    gate = experts(layer, x, ids, fused ? "gate_up_exps" : "gate_exps", bias, scale, s->ffn, 0,
                   fused ? 2 * s->ffn : s->ffn);
    up = experts(layer, x, ids, fused ? "gate_up_exps" : "up_exps", bias, NULL, s->ffn,
                 fused ? s->ffn : 0, fused ? 2 * s->ffn : s->ffn);
    gate = two("act", layer, gate, up);
    gate = experts(layer, gate, ids, "down_exps", NULL, scale, s->width, 0, s->width);
    return two("weighted_sum", layer, gate, weights);
}

static size_t attention(int layer, size_t x, const struct sizes *s) {
    const char *const *bias = s->biases ? (const char *const[]){"q_bias", "k_bias", "v_bias"}
                                        : (const char *const[]){NULL, NULL, NULL};
    const bool halves = below(2) != 0;
    size_t y, q, k, v, cache;
    q = linear(layer, x, "q", bias[0], s->heads, s->key_size);
    k = linear(layer, x, "k", bias[1], s->kv_heads, s->key_size);
    v = linear(layer, x, "v", bias[2], s->kv_heads, s->value_size);
    if (below(4) == 3) q = norm(layer, q, "q_norm");
    q = rope(layer, q, s, halves);
    if (below(8) == 7) {
        q = push("temper", layer, (struct tl_step_spec){.reads = {q}, .numbers = {0.5, 3, 1}});
    }
    k = rope(layer, k, s, halves);
    if (below(8) == 7) { // keys and queries of twice the size
        k = two("concat", layer, k, k);
        q = two("concat", layer, q, q);
    }
    cache = two("cache", layer, k, v);
    y = push("scores", layer,
             (struct tl_step_spec){.reads = {q, cache},
                                   .numbers = {0.25, (double)below(below(4) == 3 ? 5 : 3),
                                               (double)(1 + below(9)), below(3) == 2 ? 5.0 : 0.0,
                                               below(4) == 3 ? 8.0 : 0.0}});
    y = push("softmax", layer,
             (struct tl_step_spec){.reads = {y}, .weights = {below(4) == 3 ? "sinks" : NULL}});
    y = two("mix", layer, y, cache);
    return linear(layer, y, "out", NULL, 0, s->width);
}

static size_t convolution(int layer, size_t x, const struct sizes *s) {
    return push("conv", layer,
                (struct tl_step_spec){.reads = {x},
                                      .weights = {"taps", s->biases ? "taps_bias" : NULL},
                                      .numbers = {(double)s->taps}});
}

static size_t delta(int layer, size_t x, const struct sizes *s) {
    size_t y = convolution(layer, x, s), q, k, v, alpha, beta;
    q = linear(layer, y, "state_q", NULL, s->state_keys, s->state_key_size);
    k = linear(layer, y, "state_k", NULL, s->state_keys, s->state_key_size);
    v = linear(layer, y, "state_v", NULL, s->state_heads, s->state_value_size);
    alpha = linear(layer, x, "alpha", NULL, 0, s->state_heads);
    beta = linear(layer, x, "beta", NULL, 0, s->state_heads);
    alpha = push("decay", layer,
                 (struct tl_step_spec){.reads = {alpha}, .weights = {"ssm_a", "ssm_dt"}});
    y = push("delta", layer,
             (struct tl_step_spec){.reads = {q, k, v, alpha, beta},
                                   .numbers = {(double)below(2), 0.25}});
    return linear(layer, y, "state_out", NULL, 0, s->width);
}

static size_t scan(int layer, size_t x, const struct sizes *s) {
    size_t c = linear(layer, x, "state_q", NULL, s->state_keys, s->state_key_size), dt, decay, y;
    const size_t b = linear(layer, x, "state_k", NULL, s->state_keys, s->state_key_size);
    const size_t v = linear(layer, x, "state_v", NULL, s->state_heads, s->state_value_size);
    dt = linear(layer, x, "alpha", NULL, 0, s->state_heads);
    decay =
        push("decay", layer, (struct tl_step_spec){.reads = {dt}, .weights = {"ssm_a", "ssm_dt"}});
    dt = push("softplus", layer, (struct tl_step_spec){.reads = {dt}, .weights = {"ssm_dt"}});
    y = push("scan", layer,
             (struct tl_step_spec){.reads = {v, dt, b, c, decay},
                                   .weights = {below(2) ? "ssm_dt" : NULL}});
    return linear(layer, y, "state_out", NULL, 0, s->width);
}

static size_t block(int layer, size_t x, const struct sizes *s) {
    const size_t mixer = below(5);
    size_t y, gate;
    x = push("same", layer, (struct tl_step_spec){.reads = {x}});
    y = below(4) == 3 ? layer_norm(layer, x) : norm(layer, x, "norm");
    y = mixer == 2   ? convolution(layer, y, s)
        : mixer == 3 ? delta(layer, y, s)
        : mixer == 4 ? scan(layer, y, s)
                     : attention(layer, y, s);
    if (below(4) == 3) y = elementwise(layer, y, s->width);
    x = two("add", layer, x, y);
    y = norm(layer, x, "norm");
    if (s->experts > 0) {
        gate = mixture(layer, y, s);
        if (below(2) == 0) return two("add", layer, x, gate);
        x = two("add", layer, x, gate); // and a shared expert
    }
    gate = linear(layer, y, "gate", NULL, 0, s->ffn);
    y = linear(layer, y, "up", NULL, 0, s->ffn);
    y = push(
        "act", layer,
        (struct tl_step_spec){.reads = {gate, y}, .numbers = {(double)below(TL_FN_COUNT), 1.5, 2}});
    y = linear(layer, y, "down", NULL, 0, s->width);
    return two("add", layer, x, y);
}

static void make_plan(const struct sizes *s) {
    size_t x;
    n_steps = 0;
    x = push("embed", -1,
             (struct tl_step_spec){.weights = {"token_embd"},
                                   .numbers = {(double)s->vocab, (double)s->width}});
    for (size_t i = 0; i < s->layers; i++) x = block((int)i, x, s);
    x = norm((int)s->layers, x, "norm");
    linear((int)s->layers, x, s->tied ? "token_embd" : "output", NULL, 0, s->vocab);
}

/* ---- changes ---- */

static void remove_step(size_t at) {
    n_steps--;
    memmove(steps + at, steps + at + 1, (n_steps - at) * sizeof(*steps));
    for (size_t i = at; i < n_steps; i++) {
        for (int j = 0; j < TL_STEP_READS; j++) steps[i].reads[j] -= steps[i].reads[j] > at;
    }
}

static void insert_step(size_t at, struct tl_step_spec step) {
    if (n_steps == MOST_STEPS) return;
    memmove(steps + at + 1, steps + at, (n_steps - at) * sizeof(*steps));
    n_steps++;
    for (size_t i = at + 1; i < n_steps; i++) {
        for (int j = 0; j < TL_STEP_READS; j++) steps[i].reads[j] += steps[i].reads[j] >= at;
    }
    steps[at] = step;
}

/* A step like some other one that reads any earlier values; perhaps a later step reads it. */
static void graft(void) {
    const size_t at = below(n_steps + 1), later = at + 1;
    struct tl_step_spec step = steps[below(n_steps)];
    step.layer = steps[TL_MIN(at, n_steps - 1)].layer;
    if (below(3) == 0) { // one that fits almost anywhere
        step.op = "same";
        step.n_reads = 1, step.n_weights = step.n_numbers = 0;
    }
    for (int j = 0; at > 0 && j < step.n_reads; j++) {
        if (below(2) == 0 || step.reads[j] >= at) step.reads[j] = at - 1 - below(TL_MIN(at, 24));
    }
    insert_step(at, step);
    if (later >= n_steps || below(2) == 0) return;
    steps[later + below(TL_MIN(n_steps - later, 8))].reads[below(2)] = at;
}

static double any_number(const struct sizes *s) {
    const double numbers[] = {
        NAN,   INFINITY, -INFINITY, -1,  0,       0.5,           1,     2,     3,  4, 1e30, 1e31,
        1e300, -0.0,     1e-300,    4e9, 1 << 24, (1 << 24) + 1, 0.999, 1e-38, 1e9};
    const size_t sizes[] = {s->layers,   s->width,      s->heads, s->kv_heads,
                            s->key_size, s->value_size, s->ffn,   s->vocab};
    return below(2) == 0 ? numbers[below(TL_ARRAY_LEN(numbers))] : (double)PICK(sizes);
}

static void change(const struct sizes *s) {
    struct tl_step_spec *step = &steps[below(n_steps)], other;
    const size_t at = (size_t)(step - steps);
    switch (below(12)) {
    case 0: // any step, also later ones and none
        step->reads[below(TL_STEP_READS)] = below(8) == 0 ? SIZE_MAX - below(3) : below(n_steps);
        break;
    case 1: // an earlier step
        if (at > 0) step->reads[below(2)] = at - 1 - below(TL_MIN(at, 24));
        break;
    case 2:
        step->numbers[below(TL_STEP_NUMBERS)] = any_number(s);
        break;
    case 3:
        step->numbers[below(2)] = any_number(s);
        break;
    case 4:
        step->weights[below(TL_STEP_WEIGHTS)] =
            below(8) == 0 ? (below(2) == 0 ? NULL : "nobody") : tensors[below(n_tensors)].name;
        break;
    case 5:
        step->op = below(16) == 0 ? "nothing" : tl_ops[below(TL_OP_COUNT)].name;
        break;
    case 6: // and with the counts that go with the op
        other = *step;
        push(tl_ops[below(TL_OP_COUNT)].name, step->layer, other);
        *step = steps[--n_steps];
        break;
    case 7:
        step->layer =
            below(8) == 0 ? ((int)below(256) - 128) * (1 << 24) : step->layer + (int)below(3) - 1;
        break;
    case 8:
        step->n_reads = (int)below(TL_STEP_READS + 1);
        step->n_weights = (int)below(TL_STEP_WEIGHTS + 1);
        step->n_numbers = (int)below(TL_STEP_NUMBERS + 1);
        break;
    case 9:
        if (n_steps > 1) remove_step(at);
        break;
    default:
        graft();
    }
}

/* ---- running ---- */

/* Floats per row of the last value. */
static size_t width_of(const struct tl_plan *p) {
    return p->steps[p->n - 1].width;
}

/* What is looked at during a call, and where it starts. */
struct look {
    bool captured[MOST_STEPS], edited[MOST_STEPS];
    float *arrays[MOST_STEPS]; // made by eval; freed by look_free
    float **matrices;          // (pieces, matrices of the plan)
    size_t n_matrices;         // of all pieces
    size_t first_layer;
    const float *resid;
    bool negate; // what edits do; if not, they change nothing
    int polls;   // until the call is stopped; 0: never
};

struct edit {
    const struct tl_plan *plan;
    const struct tl_piece *pieces;
    size_t rows;
    bool negate;
};

static int edit(void *user, size_t step, int piece, float *values) {
    const struct edit *e = user;
    const struct tl_step *s = &e->plan->steps[step];
    size_t n = e->rows * s->width;
    must((piece >= 0) == (s->value == TL_VALUE_MATRIX), "an edit of the wrong kind");
    if (piece >= 0) {
        const struct tl_piece *p = &e->pieces[piece];
        n = s->axes[0] * p->n * (p->session->n + p->n);
    }
    for (size_t i = 0; i < n; i++) values[i] = e->negate ? -values[i] : values[i] * 1;
    return 0;
}

static int poll(void *user) {
    int *left = user;
    return *left > 0 && --*left == 0;
}

static void look_free(struct look *l) {
    for (size_t i = 0; i < MOST_STEPS; i++) free(l->arrays[i]);
    for (size_t i = 0; i < l->n_matrices; i++) free(l->matrices[i]);
    free(l->matrices);
}

/* Arrays for what is captured, of exactly its size. */
static void look_make(struct look *l, const struct tl_plan *p, struct tl_piece *pieces,
                      size_t n_pieces, size_t rows) {
    l->n_matrices = n_pieces * p->n_matrices;
    l->matrices = array(l->n_matrices + 1, sizeof(float *));
    memset(l->matrices, 0, (l->n_matrices + 1) * sizeof(float *));
    l->captured[p->n - 1] |= l->edited[p->n - 1];
    for (size_t i = 0; i < p->n; i++) {
        const struct tl_step *s = &p->steps[i];
        if (s->value == TL_VALUE_NONE) l->captured[i] = l->edited[i] = false;
        if (s->op == TL_OP_SCORES && (l->edited[i] || l->edited[i + 1])) {
            l->captured[i] = l->captured[i + 1] = true;
        }
        if (!l->captured[i]) continue;
        if (s->value == TL_VALUE_ROWS) l->arrays[i] = array(rows * s->width, sizeof(float));
        for (size_t j = 0; s->value == TL_VALUE_MATRIX && j < n_pieces; j++) {
            l->matrices[j * p->n_matrices + s->number] = array(
                s->axes[0] * pieces[j].n * (pieces[j].session->n + pieces[j].n), sizeof(float));
        }
    }
    for (size_t j = 0; j < n_pieces; j++) pieces[j].matrices = l->matrices + j * p->n_matrices;
}

/* Runs the pieces and returns the logits of the rows, which the caller frees; NULL: it failed. */
static float *eval(const struct tl_plan *p, struct tl_piece *pieces, size_t n_pieces, int threads,
                   const size_t *rows, size_t n_rows, struct look *look) {
    size_t total = 0, done = 0;
    int status;
    struct look nothing = {0}, *l = look != NULL ? look : &nothing;
    struct tl_error err;
    for (size_t i = 0; i < n_pieces; i++) total += pieces[i].n;
    struct edit e = {p, pieces, total, l->negate};
    struct tl_call call = {.threads = threads,
                           .rows = rows,
                           .n_rows = n_rows,
                           .logits = array(n_rows * width_of(p) + 1, sizeof(float)),
                           .edit = edit,
                           .edit_user = &e,
                           .poll = poll,
                           .poll_user = &l->polls,
                           .progress = &done,
                           .first_layer = l->first_layer,
                           .resid = l->resid};
    if (look != NULL) {
        bool edits = false;
        look_make(l, p, pieces, n_pieces, total);
        for (size_t i = 0; i < p->n; i++) edits |= l->edited[i];
        call.captures = l->arrays;
        if (edits) call.edits = (const uint8_t *)l->edited;
    }
    status = tl_forward(p, pieces, n_pieces, &call, &err);
    for (size_t i = 0; i < n_pieces; i++) pieces[i].matrices = NULL;
    if (status == TL_OK) return call.logits;
    must(err.status != TL_ENOMEM && err.text[0] != 0, "a call failed for no good reason");
    free(call.logits);
    return NULL;
}

static bool same_floats(const float *a, const float *b, size_t n) {
    for (size_t i = 0; i < n; i++) {
        if (memcmp(&a[i], &b[i], sizeof(*a)) != 0 && !(isnan(a[i]) && isnan(b[i]))) return false;
    }
    return true;
}

static struct tl_session *session(const struct tl_plan *p, const struct tl_session *of) {
    struct tl_error err;
    struct tl_session *s;
    must((of ? tl_session_fork(of, &s, &err) : tl_session_new(p, &s, &err)) == TL_OK, "no session");
    return s;
}

/* What all ways to run a plan are compared with: its tokens in one call. */
struct truth {
    struct tl_plan *p;
    int32_t tokens[MOST_TOKENS];
    size_t rows[MOST_TOKENS];
    size_t n;
    float *logits;
    struct look all; // every value
    bool whole;      // `all` is filled
};

static void expect(const struct truth *t, float *logits, const size_t *rows, size_t n, size_t first,
                   const char *what) {
    const size_t vocab = width_of(t->p);
    must(logits != NULL, what);
    for (size_t i = 0; i < n; i++) {
        must(same_floats(logits + i * vocab, t->logits + (first + rows[i]) * vocab, vocab), what);
    }
    free(logits);
}

/* All tokens in one call, with some values captured and some edited by what changes nothing. */
static void run_looking(struct truth *t, bool everything) {
    struct look own = {0}, *l = everything ? &t->all : &own;
    struct tl_piece piece = {session(t->p, NULL), t->tokens, t->n, NULL};
    const bool edits = below(2) != 0;
    const unsigned density = 1 + (unsigned)below(16);
    for (size_t i = 0; i < t->p->n; i++) {
        l->captured[i] = everything || below(16) < density;
        l->edited[i] = edits && !everything && below(16) < density;
    }
    expect(t, eval(t->p, &piece, 1, 1 + (int)below(4), t->rows, t->n, l), t->rows, t->n, 0,
           "captures change the logits");
    for (size_t i = 0; t->whole && i < t->p->n; i++) {
        if (l->arrays[i] == NULL) continue;
        must(same_floats(l->arrays[i], t->all.arrays[i], t->n * t->p->steps[i].width),
             "captures differ");
    }
    t->whole |= everything;
    if (!everything) look_free(l);
    tl_session_free(piece.session);
}

/* From the residual stream between two blocks. */
static void run_from(struct truth *t) {
    struct look l = {.first_layer = below(t->p->layers + 1)};
    const size_t resume = t->p->resume[l.first_layer];
    struct tl_piece piece = {session(t->p, NULL), t->tokens, t->n, NULL};
    float *logits, nobody;
    for (size_t i = 0; i < t->p->n; i++) l.captured[i] = below(4) == 3;
    l.resid = resume == TL_NO_STEP ? &nobody : t->all.arrays[resume];
    logits = eval(t->p, &piece, 1, 1 + (int)below(3), t->rows, t->n, &l);
    must((logits == NULL) == (resume == TL_NO_STEP), "a start that is right fails, or a wrong one");
    if (logits != NULL) expect(t, logits, t->rows, t->n, 0, "a start in the middle differs");
    look_free(&l);
    tl_session_free(piece.session);
}

/* In parts: a few calls of any length, forks, rewinds, and calls that are stopped. */
static void run_parts(struct truth *t) {
    struct tl_session *s = session(t->p, NULL), *fork;
    for (int left = 12; s->n < t->n && left > 0; left--) {
        const size_t rest = t->n - s->n, half = rest / 2 + 1, before = s->n;
        const size_t n = rest > 24 && below(4) != 3 ? rest - 8 : 1 + below(TL_MIN(half, 9));
        struct tl_piece piece = {s, t->tokens + s->n, n, NULL};
        struct look l = {.negate = true};
        size_t rows[MOST_TOKENS], n_rows = 0;
        for (size_t i = 0; i < n; i++) {
            if (n < 4 || below(3) != 0) rows[n_rows++] = i;
        }
        switch (below(6)) {
        case 3: // the old one goes on after what the fork has written
            fork = session(t->p, s);
            piece.session = fork;
            l.edited[below(t->p->n)] = l.captured[below(t->p->n)] = true;
            free(eval(t->p, &piece, 1, 2, rows, n_rows, &l));
            look_free(&l);
            piece.session = s;
            tl_session_free(fork);
            break;
        case 4: // the fork goes on
            fork = session(t->p, s);
            tl_session_free(s);
            piece.session = s = fork;
            break;
        case 5: // once more
            l.polls = 1 + (int)below(32);
            free(eval(t->p, &piece, 1, 1 + (int)below(3), rows, n_rows, &l));
            look_free(&l);
            piece.n = before - tl_session_rewind(s, below(2) == 0 ? before : below(before + 1));
            piece.tokens = t->tokens + s->n; // what was not kept runs again
            if (piece.n > 0) free(eval(t->p, &piece, 1, 1, rows, 0, NULL));
            piece = (struct tl_piece){s, t->tokens + before, n, NULL};
            break;
        }
        must(s->n == before, "a session has moved");
        expect(t, eval(t->p, &piece, 1, 1 + (int)below(5), rows, n_rows, NULL), rows, n_rows,
               before, "the logits depend on how the tokens are cut into calls");
    }
    tl_session_free(s);
}

/* Back to some length, from where the session goes on; what was not kept of it runs again. */
static void run_rewinds(struct truth *t) {
    struct tl_session *s = session(t->p, NULL);
    for (int i = 0; i < 3; i++) {
        const size_t first = s->n;
        struct tl_piece piece = {s, t->tokens + first, t->n - first, NULL};
        if (i == 0 && t->n > 1) piece.n = 1 + below(t->n - 1);
        expect(t, eval(t->p, &piece, 1, 1 + (int)below(3), t->rows, piece.n, NULL), t->rows,
               piece.n, first, "the logits after a rewind differ");
        if (i > 0) tl_session_rewind(s, t->n - 1 - below(TL_MIN(t->n - 1, 300)));
    }
    tl_session_free(s);
}

/* Two sessions at once: one that holds tokens already, one that begins. */
static void run_batch(struct truth *t) {
    const size_t held = t->p->whole ? 0 : below(t->n), n = t->n - held;
    const size_t m = t->p->whole ? t->n : 1 + below(t->n), vocab = width_of(t->p);
    struct tl_piece pieces[2] = {{session(t->p, NULL), t->tokens, held, NULL},
                                 {session(t->p, NULL), t->tokens, m, NULL}};
    struct look l = {0};
    size_t rows[2 * MOST_TOKENS];
    float *logits;
    for (size_t i = 0; i < n + m; i++) rows[i] = i;
    for (size_t i = 0; i < t->p->n; i++) {
        l.captured[i] = below(8) == 7;
        l.edited[i] = below(8) == 7;
    }
    if (held > 0) free(eval(t->p, pieces, 1, 1, rows, 0, NULL));
    pieces[0].tokens += held, pieces[0].n = n;
    logits = eval(t->p, pieces, 2, 1 + (int)below(4), rows, n + m, &l);
    must(logits != NULL, "a batch fails");
    must(same_floats(logits, t->logits + held * vocab, n * vocab) &&
             same_floats(logits + n * vocab, t->logits, m * vocab),
         "the logits of a batch differ");
    free(logits);
    look_free(&l);
    for (int i = 0; i < 2; i++) tl_session_free(pieces[i].session);
}

/* Another instruction set; fast mode's bits may differ. */
static void run_other_set(struct truth *t) {
    struct tl_piece piece = {session(t->p, NULL), t->tokens, t->n, NULL};
    const struct tl_kernels *best = t->p->kernels, *other;
    size_t sets = 0;
    while (tl_kernels_at(sets) != NULL) sets++;
    other = tl_kernels_at(below(sets));
    if (best->fast != best) {
        t->p->kernels = other;
        expect(t, eval(t->p, &piece, 1, 2, t->rows, t->n, NULL), t->rows, t->n, 0,
               "instruction sets differ");
        t->p->kernels = best;
    }
    tl_session_free(piece.session);
}

static void run_wrong_calls(const struct tl_plan *p) {
    static const int32_t wrong[] = {-1, INT32_MAX, INT32_MIN};
    const int32_t tokens[2] = {0, PICK(wrong)};
    struct tl_piece piece = {session(p, NULL), tokens, below(2) * 2, NULL};
    const size_t counts[] = {0, 1, 5, 1000, p->max_context, p->max_context + 1, SIZE_MAX};
    size_t cache, work;
    struct tl_error err;
    must(eval(p, &piece, 1, 1, &piece.n, 0, NULL) == NULL && piece.session->n == 0,
         "a wrong token");
    tl_forward_bytes(p, PICK(counts), 1 + (int)below(256), &cache, &work, &err);
    tl_session_free(piece.session);
}

static void run_plan(struct tl_plan *p) {
    static struct truth t;
    struct tl_piece piece = {session(p, NULL), t.tokens, 0, NULL};
    const size_t kind = below(64);
    size_t heads = 0;
    bool state = false;
    t = (struct truth){.p = p, .n = 1 + below(20)};
    for (size_t i = 0; i < p->n; i++)
        heads += p->steps[i].op == TL_OP_SCORES ? p->steps[i].axes[0] : 0;
    for (size_t i = 0; i < p->n_caches; i++) state |= p->caches[i].state > 0;
    if (kind >= 62 && heads <= 12) { // long contexts, where they are quick
        t.n = kind == 62 ? 250 + below(300) : 780 + below(MOST_TOKENS - 780);
    } else if (kind >= 48 && state && heads <= 4) { // beyond a kept state
        t.n = 250 + below(300);
    }
    t.n = TL_MIN(t.n, p->max_context);
    piece.n = t.n;
    for (size_t i = 0; i < t.n; i++) {
        t.tokens[i] = (int32_t)((i < 20 ? below(256) : i * 7) % p->vocab_size);
        t.rows[i] = i;
    }
    t.logits = eval(p, &piece, 1, 1, t.rows, t.n, NULL);
    must(t.logits != NULL, "a plan that was accepted does not run");
    tl_session_free(piece.session);
    if (t.n <= 20) {
        run_looking(&t, true);
        run_looking(&t, false);
        run_from(&t);
        run_batch(&t);
        run_other_set(&t);
    }
    if (!p->whole && t.n > 1) run_rewinds(&t);
    if (!p->whole) run_parts(&t);
    run_wrong_calls(p);
    look_free(&t.all);
    free(t.logits);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static const char *const caches[] = {"f32", "f32", "f16", "q8"};
    static const size_t contexts[] = {2000, 2000, 2000, 16, 1, 0, (1 << 30) + 1, 1 << 30};
    struct tl_plan *p = NULL;
    struct tl_error err = {.text = ""};
    struct sizes s;
    int status;
    input = data;
    input_left = size;
    s = choose_sizes();
    const struct tl_plan_options options = {.layers = s.layers + (below(32) == 31),
                                            .max_context = PICK(contexts),
                                            .fast = below(2) != 0,
                                            .cache = PICK(caches)};
    const bool right =
        options.layers == s.layers && options.max_context >= 1 && options.max_context <= 1 << 30;
    const size_t changes = below(6);
    make_tensors(&s);
    make_plan(&s);
    for (size_t i = 0; i < changes; i++) change(&s);
    status = tl_plan_new(&options, steps, n_steps, tensors, n_tensors, &p, &err);
    must((status == TL_OK) == (p != NULL) && (p != NULL || err.text[0] != 0), "no plan, no error");
    must(p != NULL || !right || changes > 0 || (s.factors && !good_factors),
         "a right plan is refused");
    runs++;
    if (p != NULL) {
        accepted++;
        run_plan(p);
    }
    tl_plan_free(p);
    for (size_t i = 0; i < n_tensors; i++) free((void *)(uintptr_t)tensors[i].data);
    return 0;
}

#ifdef FUZZ_MAIN

int main(int argc, char **argv) {
    const time_t end = time(NULL) + (argc > 1 ? strtol(argv[1], NULL, 10) : 10);
    uint64_t state = argc > 2 ? strtoull(argv[2], NULL, 10) : 1;
    while (time(NULL) < end) {
        uint8_t data[1024];
        for (size_t i = 0; i < sizeof(data); i++) data[i] = (uint8_t)(next_random(&state) >> 24);
        LLVMFuzzerTestOneInput(data, next_random(&state) % sizeof(data));
    }
    printf("%llu plans, %llu accepted\n", (unsigned long long)runs, (unsigned long long)accepted);
    return 0;
}

#endif
