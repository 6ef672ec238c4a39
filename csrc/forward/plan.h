/*
 * plan.h - a forward pass as a checked list of steps.
 *
 * A step computes one value from the values of earlier steps and from weights: it is an op with
 * its reads, its tensors and its numbers. Steps are numbered from 0; captures and edits name a
 * step by its number. The steps are not trusted: tl_plan_new derives the shape of every value from
 * them, and compares the tensors with it.
 *
 * T = tokens of a call, D = width, H = heads, K = kv heads, Dh and Dv = size of a head of queries
 * and keys and of values, V = vocabulary. Values are row-major float32.
 */
#ifndef TL_PLAN_H
#define TL_PLAN_H

#include "base/base.h"
#include "device/device.h"
#include "kernels/kernels.h"
#include "model/weights.h"

struct tl_cache_type;  // forward/cache.h
struct tl_plan_device; // forward/device_plan.h

enum tl_op {
    TL_OP_EMBED,
    TL_OP_SAME,
    TL_OP_SHAPE,
    TL_OP_SLICE,
    TL_OP_CONCAT,
    TL_OP_NORM_SCALE,
    TL_OP_NORM,
    TL_OP_NORM_MEAN,
    TL_OP_LAYER_SCALE,
    TL_OP_LAYER_NORM,
    TL_OP_LINEAR,
    TL_OP_ROPE,
    TL_OP_TEMPER,
    TL_OP_CACHE,
    TL_OP_SCORES,
    TL_OP_SOFTMAX,
    TL_OP_MIX,
    TL_OP_ADD,
    TL_OP_COMBINE,
    TL_OP_ADD_SHARED,
    TL_OP_MATCH_RMS,
    TL_OP_SPARSIFY,
    TL_OP_ACT,
    TL_OP_UNARY,
    TL_OP_SCALE,
    TL_OP_SOFTPLUS,
    TL_OP_XIELU,
    TL_OP_EXP,
    TL_OP_ROUTE_PROBS,
    TL_OP_ROUTE_IDS,
    TL_OP_ROUTE_WEIGHTS,
    TL_OP_EXPERTS,
    TL_OP_HEAD_LINEAR,
    TL_OP_WEIGHTED_SUM,
    TL_OP_CONV,
    TL_OP_DECAY,
    TL_OP_DELTA,
    TL_OP_SCAN,
    TL_OP_SCAN_CHANNELS,
    TL_OP_SHIFT,
    TL_OP_WKV,
    TL_OP_COUNT,
};

#define TL_STEP_READS 6
#define TL_STEP_WEIGHTS 3
#define TL_STEP_NUMBERS 12
#define TL_STEP_AXES 3

/* At most this many consecutive matmuls of one input run as one parallel region. */
#define TL_MAX_GROUP 8

#define TL_NO_STEP SIZE_MAX

/* A step as the caller describes it. The check of its op (ops.c) says what the parts mean. */
struct tl_step_spec {
    const char *op;
    int layer; // -1: before the blocks; the number of layers: after them
    size_t reads[TL_STEP_READS];
    int n_reads;
    const char *weights[TL_STEP_WEIGHTS]; // names of tensors, or NULL where the op allows it
    int n_weights;
    double numbers[TL_STEP_NUMBERS];
    int n_numbers;
};

enum tl_value {
    TL_VALUE_ROWS,   // (T, ...): a row of `width` floats per token
    TL_VALUE_MATRIX, // (H, T, S): one array per piece, made in attention; S = positions
    TL_VALUE_NONE,   // a cache: it has no value
};

/* A checked step. */
struct tl_step {
    enum tl_op op;
    int layer;
    size_t in[TL_STEP_READS];
    int n_in;
    struct tl_matrix matrix;         // type NULL where the op has none
    float *vectors[TL_STEP_WEIGHTS]; // owns; NULL where weight i is no vector, or is left out
    double numbers[TL_STEP_NUMBERS];

    enum tl_value value;
    size_t axes[TL_STEP_AXES]; // of a row; a matrix has one, H
    int n_axes;                //
    size_t width;              // their product
    size_t number;             // the number of its rope table, its cache or its matrix

    // how it runs
    size_t slot;                  // of the scratch memory for its value
    size_t together;              // how many steps from this one on run as one region
    const struct tl_matrix *next; // the matrix that is read after this region; NULL: none
};

/*
 * What a step keeps of a context: the keys and values of all positions, as one cache step stores
 * them, or the state after the last position, as a recurrent step leaves it.
 */
struct tl_cache {
    size_t state;              // floats of the state; 0: this is a cache of keys and values
    size_t axes[TL_STEP_AXES]; // of the state
    int n_axes;                //
    size_t kv_heads;
    size_t key_size;
    size_t value_size;
    size_t value_stride; // value_size rounded up to 16
    const struct tl_cache_type *type;
    size_t key_panel, value_panel; // bytes of 16 positions of a head
    size_t keys_bytes;             // of one block of TL_BLOCK positions
    size_t block_bytes;            // of its keys and values together; of a state
};

/* Rope steps with the same frequencies share a table of cos and sin, computed once per chunk. */
struct tl_rope {
    size_t rotated;    // values of a head that are rotated
    double *frequency; // owns; (rotated / 2) the angle per position of each pair
    double magnitude;  // multiplies cos and sin
};

/* Immutable once made, and safe to share between threads. Borrows the tensors' data. */
struct tl_plan {
    const struct tl_kernels *kernels;
    size_t layers;
    size_t max_context; // positions beyond it are an error
    size_t width;       // D, of the embedding
    size_t vocab_size;  // V, rows of the embedding
    bool whole;         // a token sees later ones: a context is one call

    struct tl_step *steps;
    size_t n;
    size_t *first;  // (layers + 1) the first step of each block, and the first one after them
    size_t *resume; // (layers + 1) the only value from before first[i] that is read from there on,
                    // if it is a residual stream (D); else TL_NO_STEP

    const struct tl_cache_type *cache_type;
    struct tl_cache *caches;
    size_t n_caches;
    struct tl_rope *ropes;
    size_t n_ropes;
    size_t n_matrices;

    size_t *slots; // (n_slots) floats per row
    size_t n_slots;
    size_t gathered; // floats per row that gather() of forward.c copies at most

    struct tl_plan_device *device; // owns; device_plan.h. NULL: all steps run on the CPU
};

struct tl_plan_options {
    size_t layers;
    size_t max_context;
    bool fast;                   // rounded activations: docs/numerics.md, section 4
    const char *cache;           // the name of a type of cache.h
    struct tl_device *device;    // where steps run if they can; it must outlive the plan; or NULL
    size_t device_layers;        // only the steps of so many first blocks; SIZE_MAX: all
    const uint8_t *device_steps; // (steps) 0: the step runs on the CPU; NULL: none must. For tests
};

/*
 * Checks the steps and prepares them to run. TL_EFORMAT if a tensor is missing or has another
 * shape, TL_ENOSUP if its type cannot run, TL_EARG if anything else is wrong.
 */
int tl_plan_new(const struct tl_plan_options *options, const struct tl_step_spec *specs, size_t n,
                const struct tl_tensor *tensors, size_t n_tensors, struct tl_plan **out,
                struct tl_error *err);
void tl_plan_free(struct tl_plan *p);

#endif
