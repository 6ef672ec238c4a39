/*
 * model.h - a checked model, its sessions, and the forward pass.
 *
 * T = tokens of the call, D = width, H = heads, K = kv heads, Dh = head size, F = ffn width,
 * V = vocabulary. Buffers are row-major float32 unless said otherwise.
 */
#ifndef TL_MODEL_H
#define TL_MODEL_H

#include "base/base.h"
#include "kernels/kernels.h"
#include "types/types.h"

/* Every inner value that can be captured or edited. Names and shapes: tl_taps[] in taps.c. */
enum tl_tap {
    TL_TAP_TOKEN_EMBD,
    TL_TAP_RESID_PRE,
    TL_TAP_ATTN_NORM_SCALE,
    TL_TAP_ATTN_NORM,
    TL_TAP_ATTN_Q,
    TL_TAP_ATTN_K,
    TL_TAP_ATTN_V,
    TL_TAP_ATTN_Q_ROPE,
    TL_TAP_ATTN_K_ROPE,
    TL_TAP_ATTN_SCORES,
    TL_TAP_ATTN_PROBS,
    TL_TAP_ATTN_MIX,
    TL_TAP_ATTN_OUTPUT,
    TL_TAP_RESID_MID,
    TL_TAP_FFN_NORM_SCALE,
    TL_TAP_FFN_NORM,
    TL_TAP_FFN_GATE,
    TL_TAP_FFN_UP,
    TL_TAP_FFN_ACT,
    TL_TAP_FFN_DOWN,
    TL_TAP_RESID_POST,
    TL_TAP_OUTPUT_NORM_SCALE,
    TL_TAP_OUTPUT_NORM,
    TL_TAP_OUTPUT,
    TL_TAP_COUNT,
};

/* The axes of a tap after the first, which is T (scores and probs are (H, T, S)). */
enum tl_axis {
    TL_AXIS_END,
    TL_AXIS_D,
    TL_AXIS_H,
    TL_AXIS_K,
    TL_AXIS_DH,
    TL_AXIS_DV,
    TL_AXIS_F,
    TL_AXIS_V,
    TL_AXIS_S
};

struct tl_tap_info {
    const char *name; // without "blk.N."
    bool per_layer;
    bool matrix; // (H, T, S): one array per piece, made in attention
    enum tl_axis axes[3];
};

extern const struct tl_tap_info tl_taps[TL_TAP_COUNT];

enum tl_rope_scaling { TL_ROPE_NONE, TL_ROPE_LINEAR, TL_ROPE_YARN };

struct tl_layer_shape {
    size_t heads;
    size_t kv_heads;
    size_t head_size;  // of queries and keys
    size_t value_size; // of values
    size_t ffn_width;
};

struct tl_config {
    bool fast; // rounded activations: docs/numerics.md, section 4
    size_t layers;
    size_t width;
    size_t vocab_size;
    size_t max_context; // positions beyond it are an error
    double norm_epsilon;
    double attention_scale; // 0: 1 / sqrt(head_size)
    size_t rope_dimension;  // the first values of a head that are rotated; 0: none
    double rope_base;
    enum tl_rope_scaling rope_scaling;
    double rope_factor;            // > 0; linear and YaRN
    double rope_original_context;  // YaRN
    double rope_beta_fast;         //
    double rope_beta_slow;         //
    double rope_attn_factor;       // multiplies cos and sin
    struct tl_layer_shape *shapes; // (layers)
};

/* A named tensor as a file holds it; dims in the file's order, dims[0] is the row. */
struct tl_tensor {
    const char *name;
    const struct tl_type_info *type;
    int n_dims;
    uint64_t dims[4];
    const uint8_t *data;
};

struct tl_linear {
    struct tl_matrix w;
    float *bias; // (rows) or NULL
};

struct tl_layer {
    struct tl_layer_shape shape;
    size_t value_stride;      // value_size rounded up to 16
    size_t keys_bytes;        // of one block of the cache: keys, then values
    float *attn_norm;         // (D)
    struct tl_linear q, k, v; // (H Dh, D), (K Dh, D), (K Dv, D)
    struct tl_linear out;     // (D, H Dv)
    float *ffn_norm;          // (D)
    struct tl_linear gate, up, down;
};

/* Immutable once made, and safe to share between threads. Borrows the tensors' data. */
struct tl_model {
    struct tl_config config;
    const struct tl_kernels *kernels;
    struct tl_layer *layers;
    struct tl_matrix token_embd; // (V, D)
    float *output_norm;          // (D)
    struct tl_linear output;     // (V, D)
    bool tied;
    double *rope_frequency; // (rope_dimension / 2) angle per position
    double rope_magnitude;  // factor of cos and sin
};

/* *config is copied. Unknown tensors are ignored; missing and misshapen ones are errors. */
int tl_model_new(const struct tl_config *config, const struct tl_tensor *tensors, size_t n,
                 struct tl_model **out, struct tl_error *err);
void tl_model_free(struct tl_model *m);

/* The length of an axis in one layer; 1 for S, which belongs to a call. */
size_t tl_tap_axis(const struct tl_model *m, enum tl_axis axis, size_t layer);
/* Floats in one row of a tap (not of scores and probs). */
size_t tl_tap_row(const struct tl_model *m, enum tl_tap tap, size_t layer);

/* ---- sessions: the kv cache of one context ---- */

struct tl_block; // TL_BLOCK positions of one layer, shared between sessions by reference count

struct tl_session {
    const struct tl_model *model; // borrows
    size_t n;                     // positions in the cache
    size_t n_blocks;              // blocks per layer
    size_t capacity;
    struct tl_block **blocks; // (layers, capacity)
    void *work;               // buffers of the forward pass, kept between calls
    size_t work_bytes;
};

int tl_session_new(const struct tl_model *m, struct tl_session **out, struct tl_error *err);
/* A session with the same positions; blocks are shared until one of the two writes to them. */
int tl_session_fork(const struct tl_session *s, struct tl_session **out, struct tl_error *err);
void tl_session_rewind(struct tl_session *s, size_t n); // keeps the first n <= s->n positions
void tl_session_free(struct tl_session *s);
size_t tl_session_cache_bytes(const struct tl_session *s);

/* Makes positions [s->n, s->n + n) of every layer writable. On failure s is as before. */
int tl_session_reserve(struct tl_session *s, size_t n, struct tl_error *err);
/* The keys (kv_heads, TL_BLOCK / 16, head_size, 16) and values (kv_heads, TL_BLOCK, value_stride).
 */
float *tl_session_keys(const struct tl_session *s, size_t layer, size_t block);
float *tl_session_values(const struct tl_session *s, size_t layer, size_t block);

/* Writes one kv head at positions [position, position + n), which are reserved, from rows of all
   heads: keys (n, kv_heads, head_size), values (n, kv_heads, value_size). */
void tl_session_put(struct tl_session *s, size_t layer, size_t head, size_t position, size_t n,
                    const float *keys, const float *values);
/* The keys and values of all positions of a layer, in the same layout. */
void tl_session_get(const struct tl_session *s, size_t layer, float *keys, float *values);

/* ---- the forward pass ---- */

/* Tokens of one session. Several pieces run together: a ragged batch. */
struct tl_piece {
    struct tl_session *session;
    const int32_t *tokens;
    size_t n;             // >= 1
    float *const *scores; // (layers) arrays (H, n, S) or NULL; or NULL
    float *const *probs;  //
};

/*
 * Called between two steps, on the calling thread, when a tap is edited: `values` is what the
 * next step will read. Row taps: all T rows of the call, piece is -1. Scores and probs: one
 * piece, (H, n, S). Non-zero stops the call.
 */
typedef int tl_edit_fn(void *user, enum tl_tap tap, size_t layer, int piece, float *values);

struct tl_call {
    int threads;             // at most this many, >= 1
    const size_t *rows;      // (n_rows) rising row numbers of the call whose logits are wanted
    size_t n_rows;           //
    float *logits;           // (n_rows, V)
    float *const *captures;  // (layers, TL_TAP_COUNT) arrays with T rows or NULL; or NULL.
                             // Taps that belong to no layer are in layer 0.
    const uint8_t *edits;    // (layers, TL_TAP_COUNT) non-zero: edited; or NULL
    tl_edit_fn *edit;        //
    void *edit_user;         //
    int (*poll)(void *user); // called often on the calling thread; non-zero stops; may be NULL
    void *poll_user;         //
    size_t *progress;        // counts layers times rows that are done, for poll; may be NULL
    size_t first_layer;      // start here ...
    const float *resid;      // ... from this residual stream (T, D) instead of the embedding
};

/*
 * Runs the tokens of all pieces after what their sessions hold, and appends them. If it fails,
 * or a callback stops it, every session is as before. The pieces' sessions differ.
 */
int tl_forward(const struct tl_model *m, const struct tl_piece *pieces, size_t n_pieces,
               const struct tl_call *call, struct tl_error *err);

/* Bytes of the kv cache and of the buffers of a prompt of `tokens` tokens. */
int tl_forward_bytes(const struct tl_model *m, size_t tokens, int threads, size_t *cache,
                     size_t *work, struct tl_error *err);

#endif
