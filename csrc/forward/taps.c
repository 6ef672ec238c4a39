/* taps.c - the names and shapes of the inner values, in the order in which they come to be. */
#include "model/model.h"

const struct tl_tap_info tl_taps[TL_TAP_COUNT] = {
    [TL_TAP_TOKEN_EMBD] = {"token_embd", false, false, {TL_AXIS_D}},
    [TL_TAP_RESID_PRE] = {"resid_pre", true, false, {TL_AXIS_D}},
    [TL_TAP_ATTN_NORM_SCALE] = {"attn_norm_scale", true, false, {TL_AXIS_END}},
    [TL_TAP_ATTN_NORM] = {"attn_norm", true, false, {TL_AXIS_D}},
    [TL_TAP_ATTN_Q] = {"attn_q", true, false, {TL_AXIS_H, TL_AXIS_DH}},
    [TL_TAP_ATTN_K] = {"attn_k", true, false, {TL_AXIS_K, TL_AXIS_DH}},
    [TL_TAP_ATTN_V] = {"attn_v", true, false, {TL_AXIS_K, TL_AXIS_DV}},
    [TL_TAP_ATTN_Q_ROPE] = {"attn_q_rope", true, false, {TL_AXIS_H, TL_AXIS_DH}},
    [TL_TAP_ATTN_K_ROPE] = {"attn_k_rope", true, false, {TL_AXIS_K, TL_AXIS_DH}},
    [TL_TAP_ATTN_SCORES] = {"attn_scores", true, true, {TL_AXIS_H, TL_AXIS_S}},
    [TL_TAP_ATTN_PROBS] = {"attn_probs", true, true, {TL_AXIS_H, TL_AXIS_S}},
    [TL_TAP_ATTN_MIX] = {"attn_mix", true, false, {TL_AXIS_H, TL_AXIS_DV}},
    [TL_TAP_ATTN_OUTPUT] = {"attn_output", true, false, {TL_AXIS_D}},
    [TL_TAP_RESID_MID] = {"resid_mid", true, false, {TL_AXIS_D}},
    [TL_TAP_FFN_NORM_SCALE] = {"ffn_norm_scale", true, false, {TL_AXIS_END}},
    [TL_TAP_FFN_NORM] = {"ffn_norm", true, false, {TL_AXIS_D}},
    [TL_TAP_FFN_GATE] = {"ffn_gate", true, false, {TL_AXIS_F}},
    [TL_TAP_FFN_UP] = {"ffn_up", true, false, {TL_AXIS_F}},
    [TL_TAP_FFN_ACT] = {"ffn_act", true, false, {TL_AXIS_F}},
    [TL_TAP_FFN_DOWN] = {"ffn_down", true, false, {TL_AXIS_D}},
    [TL_TAP_RESID_POST] = {"resid_post", true, false, {TL_AXIS_D}},
    [TL_TAP_OUTPUT_NORM_SCALE] = {"output_norm_scale", false, false, {TL_AXIS_END}},
    [TL_TAP_OUTPUT_NORM] = {"output_norm", false, false, {TL_AXIS_D}},
    [TL_TAP_OUTPUT] = {"output", false, false, {TL_AXIS_V}},
};

size_t tl_tap_axis(const struct tl_model *m, enum tl_axis axis, size_t layer) {
    const struct tl_layer_shape *s = &m->config.shapes[layer];
    switch (axis) {
    case TL_AXIS_D:
        return m->config.width;
    case TL_AXIS_H:
        return s->heads;
    case TL_AXIS_K:
        return s->kv_heads;
    case TL_AXIS_DH:
        return s->head_size;
    case TL_AXIS_DV:
        return s->value_size;
    case TL_AXIS_F:
        return s->ffn_width;
    case TL_AXIS_V:
        return m->config.vocab_size;
    default:
        return 1; // S belongs to a call, not to the model
    }
}

size_t tl_tap_row(const struct tl_model *m, enum tl_tap tap, size_t layer) {
    size_t n = 1;
    for (int i = 0; i < 3 && tl_taps[tap].axes[i] != TL_AXIS_END; i++) {
        n *= tl_tap_axis(m, tl_taps[tap].axes[i], layer);
    }
    return n;
}
