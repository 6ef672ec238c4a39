/*
 * kernels.h - one table of functions per instruction set.
 *
 * Every table gives the same bits; docs/numerics.md defines the arithmetic. A set is two files:
 * simd/<set>.h with all its facts (vectors, operations, tile sizes), and kernels_<set>.c, which
 * opens a target region, includes the facts and chooses its templates. A row in sets[] of
 * dispatch.c adds the set.
 */
#ifndef TL_KERNELS_H
#define TL_KERNELS_H

#include "base/base.h"
#include "base/target.h"
#include "types/types.h"

#if defined(__x86_64__) || defined(_M_X64)
#define TL_X86 1
#elif defined(__aarch64__) || defined(_M_ARM64)
#define TL_ARM 1
#endif

/* TL_NO_INLINE: for sanitizer builds, which take many minutes when everything is inlined. */
#if defined(__GNUC__) && !defined(TL_NO_INLINE)
#define TL_INLINE static inline __attribute__((always_inline))
#else
#define TL_INLINE static inline
#endif

/* For a large function that is called often enough to be inlined and seldom enough not to be. */
#if defined(__GNUC__)
#define TL_OUTLINE static __attribute__((noinline))
#else
#define TL_OUTLINE static
#endif

/* Unrolls the loop that follows, which has a constant number of rounds, at most n. Not in the test
   build with SIMDe: gcc 12 at -O1 unrolls some of its calls wrongly. */
#if defined(TL_SIMDE)
#define TL_UNROLL(n)
#elif defined(__clang__)
#define TL_UNROLL(n) TL_PRAGMA(unroll n)
#else
#define TL_UNROLL(n) TL_PRAGMA(GCC unroll n)
#endif

struct panel; // template/panel_template.h

/* A matrix as the file stores it: `rows` rows of `cols` values, any alignment. */
struct tl_matrix {
    const struct tl_type_info *type;
    const uint8_t *data; // borrows; (rows, row_bytes)
    size_t rows;
    size_t cols;
    size_t row_bytes;
};

/* The rows of a matmul are divided among threads in multiples of this. */
#define TL_ROW_STEP 32

/* Positions per block of the kv cache and of the sums of attention (docs/numerics.md). */
#define TL_BLOCK 256

/* One token of the gated delta rule, for one head (docs/numerics.md). */
struct tl_delta {
    const float *q, *k; // (key_size)
    size_t key_size;    // Dk, rows of the state
    size_t stride;      // floats from one row of the state to the next
    float decay, beta, factor;
};

/* Indices from first to end - 1. */
struct tl_range {
    size_t first, end;
};

/* Functions of one value. */
enum tl_function {
    TL_FN_IDENTITY,
    TL_FN_SILU,
    TL_FN_GELU_TANH, // the approximation of GELU with tanh
    TL_FN_GELU_ERF,  // GELU
    TL_FN_SIGMOID,
    TL_FN_RELU,
    TL_FN_RELU2,    // the square of RELU
    TL_FN_SOFT_CAP, // p tanh(x / p); p is the parameter
    TL_FN_CLAMP,    // -p, x or p
    TL_FN_SCALE,    // p x
    TL_FN_OAI,      // gated only: g sigmoid(alpha g) (u + 1), g at most `limit`, |u| too
    TL_FN_COUNT,
};

struct tl_kernels {
    const char *name; // "scalar", "avx2", ...

    /*
     * The same set with the matmul of fast mode (docs/numerics.md, section 4): deterministic, but
     * its bits may differ between sets.
     */
    const struct tl_kernels *fast;

    /*
     * Matmul, y[t * y_stride + r] = sum_k w[r][k] * x[t][k].
     * The activations are packed first, into the layout that this set uses for the type and the
     * number of tokens. Matrices with the same format can share one packed copy.
     *   format       a small number below TL_FORMATS that names the layout
     *   pack_bytes   the size of the packed copy of (tokens, cols) activations
     *   pack         packs tokens [first, last), the rows of x; disjoint ranges may run in parallel
     *   scratch      bytes of scratch that each thread needs in matmul (may be 0)
     *   matmul       rows [row0, row1) for all tokens; row0 is a multiple of TL_ROW_STEP
     *   prefetch     prefetches what matmul of these rows reads first
     *   rows_at_once fewer rows in a call of matmul for a prompt are slower
     * The kind of the matrix's type is FLOAT or a quantized one.
     */
    size_t rows_at_once;
    int (*format)(const struct tl_type_info *type, size_t tokens);
    size_t (*pack_bytes)(int format, size_t cols, size_t tokens);
    void (*pack)(int format, const float *x, size_t cols, size_t tokens, size_t first, size_t last,
                 void *packed);
    size_t (*scratch)(const struct tl_matrix *w, int format, size_t tokens);
    void (*matmul)(const struct tl_matrix *w, int format, size_t row0, size_t row1,
                   const void *packed, size_t tokens, float *y, size_t y_stride, void *scratch);
    void (*prefetch)(const struct tl_matrix *w, int format, size_t row0, size_t row1);

    // the rest of the forward pass: ops_template.h, docs/numerics.md section 3

    /*
     * Norms in steps; a weight or bias may be NULL.
     *   norm_scale   1 / sqrt(sum of x^2 / divisor + epsilon); divisor n: RMS norm, 1: L2 norm
     *   norm_apply   x * scale * weight
     *   norm_mean    the mean
     *   layer_scale  1 / sqrt(mean of (x - mean)^2 + epsilon)
     *   layer_apply  (x - mean) * scale * weight + bias
     */
    float (*norm_scale)(const float *x, size_t n, double divisor, float epsilon);
    void (*norm_apply)(const float *x, const float *weight, size_t n, float scale, float *y);
    float (*norm_mean)(const float *x, size_t n);
    float (*layer_scale)(const float *x, size_t n, float mean, float epsilon);
    void (*layer_apply)(const float *x, const float *weight, const float *bias, size_t n,
                        float mean, float scale, float *y);
    void (*add)(const float *a, const float *b, float *y, size_t n); // y may be a or b
    /* y = f(x); y may be x. */
    void (*unary)(enum tl_function f, float parameter, const float *x, float *y, size_t n);
    /* y = f(gate) * up; y may be one of the two. */
    void (*gated)(enum tl_function f, float alpha, float limit, const float *gate, const float *up,
                  float *y, size_t n);
    /* y (width) = the sum of the n rows of x (n, width), each times its weight. */
    void (*weighted_sum)(const float *x, const float *weights, size_t n, size_t width, float *y);
    /*
     * x, y: (heads, head_size); cos_sin: (rot / 2, 2). Which values form a pair:
     *   rope_pairs   values 2j and 2j + 1, for 2j < rot
     *   rope_halves  values j and j + rot / 2, for j < rot / 2
     */
    void (*rope_pairs)(const float *x, float *y, size_t heads, size_t head_size, size_t rot,
                       const float *cos_sin);
    void (*rope_halves)(const float *x, float *y, size_t heads, size_t head_size, size_t rot,
                        const float *cos_sin);

    /*
     * Attention of `queries` queries over one head of keys and values. Query i sees the keys
     * seen[i].first to seen[i].end - 1. blocks[b] holds positions b * TL_BLOCK ... : keys as
     * (TL_BLOCK / 16, head_size, 16), values as (TL_BLOCK, value_stride), value_stride a multiple
     * of 16 and zero-padded. attn_scores   q: (queries, head_size); scores[i * stride + j] for j <
     * keys rounded up to TL_BLOCK; scores of keys that the query does not see are undefined
     *   attn_softmax  one query, n keys, those that it does not see with the score -inf; `sink` is
     *                 the score of no key, -inf without one; probs may be scores
     *   attn_mix      mix: (queries, mix_stride), all value_stride columns are written
     */
    void (*attn_scores)(const float *q, size_t queries, const float *const *blocks,
                        size_t head_size, size_t keys, float scale, float *scores, size_t stride);
    void (*attn_softmax)(const float *scores, size_t n, float sink, float *probs);
    void (*attn_mix)(const float *probs, size_t probs_stride, size_t queries,
                     const struct tl_range *seen, const float *const *blocks, size_t value_stride,
                     float *mix, size_t mix_stride);

    /*
     * Keys and values that are stored with fewer bits, as floats (forward/cache.h); exact.
     *   widen_f16        n float16, a multiple of 16
     *   widen_q8_keys    bytes (size, 16) with scales (blocks of 32 rows, 16)
     *   widen_q8_values  bytes (16, size), size a multiple of 16, with scales (blocks of 32
     *                    columns, 16 rows)
     */
    void (*widen_f16)(const void *from, size_t n, float *to);
    void (*widen_q8_keys)(const void *scales, const uint8_t *from, size_t size, float *to);
    void (*widen_q8_values)(const void *scales, const uint8_t *from, size_t size, float *to);

    // mixers with a state: recurrent_template.h

    /* One token of a short convolution over n channels: rows[j] holds the n values of the token
       taps - 1 - j before it; weights (taps, n); bias (n) or NULL. */
    void (*conv)(const float *const *rows, size_t taps, const float *weights, const float *bias,
                 float *y, size_t n);
    /* n columns of the state of a head: reads the state `from`, writes `to`, which may be the same,
       and y (n); v is (n). */
    void (*delta)(const struct tl_delta *d, const float *from, float *to, const float *v, float *y,
                  size_t n);
};

#define TL_FORMATS 15

/*
 * The set to use: the one that TINYLLM_ISA names, else the best that this CPU can run. NULL, with
 * *err set, if TINYLLM_ISA names a set that is unknown or that this CPU cannot run.
 */
const struct tl_kernels *tl_kernels_best(struct tl_error *err);

/* The i-th set that this CPU can run, worst first; NULL past the end. For tests and tl.cpu(). */
const struct tl_kernels *tl_kernels_at(size_t i);

/* The set of that name, or NULL if it is unknown or this CPU cannot run it. For tests. */
const struct tl_kernels *tl_kernels_find(const char *name);

/* Each kernels_<set>.c defines one: it fills in everything except name and fast. `fast`: for fast
   mode. */
void tl_kernels_init_plain(struct tl_kernels *k, bool fast);
void tl_kernels_init_scalar(struct tl_kernels *k, bool fast);
void tl_kernels_init_avx2(struct tl_kernels *k, bool fast);
void tl_kernels_init_avx512(struct tl_kernels *k, bool fast);
void tl_kernels_init_avx512vnni(struct tl_kernels *k, bool fast);
void tl_kernels_init_avx512bf16(struct tl_kernels *k, bool fast);
void tl_kernels_init_amx(struct tl_kernels *k, bool fast);
void tl_kernels_init_neon(struct tl_kernels *k, bool fast);

/* fill_panel of avx512vnni, whose panels amx uses. */
void tl_panel_fill_avx512vnni(const struct tl_matrix *w, size_t row, size_t end, size_t chunk,
                              struct panel *panel);

#endif
