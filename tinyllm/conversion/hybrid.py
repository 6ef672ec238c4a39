"""Decoders whose blocks differ, or with mixers other than attention."""

from __future__ import annotations

import dataclasses
import math
import statistics

import numpy as np

from ..errors import UnsupportedError, wrong
from ..files.arrays import Array
from .config import CheckpointConfig
from .dense import GEMMA3, QWEN2
from .family import (
    EXPERTS,
    LLAMA_NAMES,
    SANDWICH,
    SHARED_EXPERT,
    Family,
    Keys,
    Target,
    To,
    copied,
    shifted,
)
from .keys import SIGMOID, experts, rope_sections, routed, yarn_attn_factor
from .layouts import Change, Shape, negative_exp, squeezed, then, tiled

__all__ = ["HYBRID", "LFM2"]

# ---- short convolutions ----


def _lfm2_keys(config: CheckpointConfig) -> Keys:
    kinds = config.layer_types
    if not kinds:
        chosen = config.get("full_attn_idxs", default=[])
        kinds = ["full_attention" if i in chosen else "conv" for i in range(config.layers)]
    heads = [config.kv_heads if kind == "full_attention" else 0 for kind in kinds]
    return {
        "attention.head_count_kv": np.array(heads, np.int32),
        "shortconv.l_cache": config.integer("conv_L_cache"),
    }


def _lfm2_width(config: CheckpointConfig) -> Keys:
    width = config.integer("block_ff_dim", "intermediate_size")
    if config.get("block_auto_adjust_ff_dim", default=True):
        width = int(config.number("block_ffn_dim_multiplier", default=1.0) * int(2 * width / 3))
        step = config.integer("block_multiple_of", default=256)
        width = step * -(-width // step)
    return {"feed_forward_length": width}


LFM2 = Family(
    classes=("Lfm2ForCausalLM", "LFM2ForCausalLM"),
    names={
        **LLAMA_NAMES,
        "embedding_norm": "token_embd_norm",  # the final norm, in spite of its name
        "operator_norm": "attn_norm",
        "ffn_norm": "ffn_norm",
        "self_attn.q_layernorm": "attn_q_norm",
        "self_attn.k_layernorm": "attn_k_norm",
        "self_attn.out_proj": "attn_output",
        "feed_forward.w1": "ffn_gate",
        "feed_forward.w2": "ffn_down",
        "feed_forward.w3": "ffn_up",
        "conv.conv": To("shortconv.conv", squeezed),
        "conv.in_proj": "shortconv.in_proj",
        "conv.out_proj": "shortconv.out_proj",
    },
    keys=(_lfm2_keys, _lfm2_width),
)

# ---- gated delta net ----


def _key_heads(config: CheckpointConfig) -> int:
    return config.integer("linear_num_key_heads")


def _values_per_key(config: CheckpointConfig) -> int:
    values, keys = config.integer("linear_num_value_heads"), _key_heads(config)
    if keys == 0 or values % keys:
        expected = f"a multiple of the {keys} key heads"
        raise wrong("linear_num_value_heads of config.json", values, expected)
    return values // keys


def _query_and_key_rows(config: CheckpointConfig) -> int:
    return 2 * _key_heads(config) * config.integer("linear_key_head_dim")


def _none(config: CheckpointConfig) -> int:
    return 0


def _delta_sizes(config: CheckpointConfig) -> tuple[int, int, int, int]:
    """Return the number of key heads, and the rows of q, of k, and of v (or z) in a group."""
    size = config.integer("linear_key_head_dim")
    values = _values_per_key(config) * config.integer("linear_value_head_dim")
    return _key_heads(config), size, size, values


def _split_qkvz(array: Array, config: CheckpointConfig) -> list[Array]:
    """Return q, k, v and z of a matrix that has them group after group."""
    groups, q, k, v = _delta_sizes(config)
    grouped = array.reshape(groups, q + k + 2 * v, -1)
    parts = np.split(grouped, [q, q + k, q + k + v], axis=1)
    return [part.reshape(-1, array.shape[-1]) for part in parts]


def _qkv_shape(old: Shape, config: CheckpointConfig) -> Shape:
    groups, q, k, v = _delta_sizes(config)
    return (groups * (q + k + v), *old[1:])


def _z_shape(old: Shape, config: CheckpointConfig) -> Shape:
    groups, _, _, v = _delta_sizes(config)
    return (groups * v, *old[1:])


_QKV = Change(lambda array, config: np.concatenate(_split_qkvz(array, config)[:3]), _qkv_shape)
_Z = Change(lambda array, config: _split_qkvz(array, config)[3], _z_shape)

#: Value heads in Qwen 3.5's order: head h uses key head h mod the number of key heads.
_VALUES = tiled(_key_heads, _values_per_key, _none)
_VALUES_AFTER_KEYS = tiled(_key_heads, _values_per_key, _query_and_key_rows)
_VALUE_COLUMNS = tiled(_key_heads, _values_per_key, _none, axis=1)

_PRE_FFN_NORM: dict[str, Target] = {"post_attention_layernorm": "post_attention_norm"}

_QWEN3NEXT_DELTA: dict[str, Target] = {
    "linear_attn.in_proj_qkvz": (To("attn_qkv", _QKV), To("attn_gate", _Z)),
    "linear_attn.in_proj_ba": "ssm_ba",
    "linear_attn.conv1d": To("ssm_conv1d", squeezed),
    "linear_attn.A_log": To("ssm_a", negative_exp),
    "linear_attn.dt_bias": "ssm_dt.bias",
    "linear_attn.norm": "ssm_norm",
    "linear_attn.out_proj": "ssm_out",
}

_QWEN35_DELTA: dict[str, Target] = {
    "linear_attn.in_proj_qkv": To("attn_qkv", _VALUES_AFTER_KEYS),
    "linear_attn.in_proj_z": To("attn_gate", _VALUES),
    "linear_attn.in_proj_a": To("ssm_alpha", _VALUES),
    "linear_attn.in_proj_b": To("ssm_beta", _VALUES),
    "linear_attn.conv1d": To("ssm_conv1d", then(squeezed, _VALUES_AFTER_KEYS)),
    "linear_attn.A_log": To("ssm_a", then(_VALUES, negative_exp)),
    "linear_attn.dt_bias": To("ssm_dt.bias", _VALUES),
    "linear_attn.norm": "ssm_norm",
    "linear_attn.out_proj": To("ssm_out", _VALUE_COLUMNS),
}


def _delta_keys(config: CheckpointConfig) -> Keys:
    values = config.integer("linear_num_value_heads")
    interval = config.integer("full_attention_interval", default=4)
    kinds = config.layer_types
    if kinds and "full_attention" in kinds:
        interval = kinds.index("full_attention") + 1
    usual = [(i + 1) % interval == 0 for i in range(config.layers)]
    if kinds and [kind == "full_attention" for kind in kinds] != usual:
        raise UnsupportedError(
            "layer_types of config.json has full attention at irregular layers; GGUF has one "
            "interval for it"
        )
    return {
        "ssm.conv_kernel": config.integer("linear_conv_kernel_dim"),
        "ssm.state_size": config.integer("linear_key_head_dim"),
        "ssm.group_count": _key_heads(config),
        "ssm.time_step_rank": values,
        "ssm.inner_size": values * config.integer("linear_value_head_dim"),
        "full_attention_interval": interval,
    }


def _qwen35_sections(config: CheckpointConfig) -> Keys:
    if "mrope_section" in config.rope():
        return rope_sections(config)
    return {"rope.dimension_sections": np.array([11, 11, 10, 0], np.int32)}


_PARTIAL = {"partial_rotary_factor": 0.25}

QWEN3NEXT = dataclasses.replace(
    QWEN2,
    classes=("Qwen3NextForCausalLM",),
    names={
        **shifted({**LLAMA_NAMES, **_PRE_FFN_NORM}),
        **EXPERTS,
        **SHARED_EXPERT,
        **_QWEN3NEXT_DELTA,
    },
    keys=(yarn_attn_factor, experts(usual_norm=True), _delta_keys),
    defaults=_PARTIAL,
)

QWEN35 = dataclasses.replace(
    QWEN3NEXT,
    classes=("Qwen3_5ForCausalLM", "Qwen3_5ForConditionalGeneration"),
    names={**shifted({**LLAMA_NAMES, **_PRE_FFN_NORM}), **_QWEN35_DELTA},
    keys=(yarn_attn_factor, _delta_keys, _qwen35_sections),
)

# ---- Gemma 4 ----


def _gemma4_keys(config: CheckpointConfig) -> Keys:
    local = [kind == "sliding_attention" for kind in config.layer_types]
    size = config.head_size
    whole = config.integer("global_head_dim", default=size)
    shared = config.integer("num_kv_shared_layers", default=0)
    keys: Keys = {
        "attention.sliding_window": config.integer("sliding_window"),
        "attention.sliding_window_pattern": local,
        "attention.shared_kv_layers": shared,
        "attention.key_length": whole,
        "attention.value_length": whole,
        "attention.key_length_swa": size,
        "attention.value_length_swa": size,
        "embedding_length_per_layer_input": config.integer(
            "hidden_size_per_layer_input", default=0
        ),
        "rope.dimension_count": whole,  # rope_freqs says what is not rotated
        "rope.dimension_count_swa": int(size * config.rope("sliding_attention").rotated),
    }
    if config.get("use_double_wide_mlp"):
        width = config.integer("intermediate_size")
        first = config.layers - shared
        widths = [width if i < first else 2 * width for i in range(config.layers)]
        keys["feed_forward_length"] = np.array(widths, np.int32)
    full = config.get("num_global_key_value_heads")
    if full is not None:
        counts = [
            config.kv_heads if here else config.integer("num_global_key_value_heads")
            for here in local
        ]
        keys["attention.head_count_kv"] = np.array(counts, np.int32)
    return keys


#: Embeddings that each layer has of its own.
_PER_LAYER: dict[str, Target] = {
    "embed_tokens_per_layer": "per_layer_token_embd",
    "per_layer_model_projection": "per_layer_model_proj",
    "per_layer_projection_norm": "per_layer_proj_norm",
    "per_layer_input_gate": "inp_gate",
    "per_layer_projection": "proj",
    "post_per_layer_input_norm": "post_norm",
}

GEMMA4 = dataclasses.replace(
    GEMMA3,
    classes=(
        "Gemma4ForCausalLM",
        "Gemma4ForConditionalGeneration",
        "Gemma4UnifiedForConditionalGeneration",
    ),
    names={
        **LLAMA_NAMES,
        **SANDWICH,
        **_PER_LAYER,
        "layer_scalar": "layer_output_scale.weight",
        "pre_feedforward_layernorm_2": "pre_ffw_norm_2",
        "post_feedforward_layernorm_1": "post_ffw_norm_1",
        "post_feedforward_layernorm_2": "post_ffw_norm_2",
        "router.proj": "ffn_gate_inp",
        "router.scale": "ffn_gate_inp.scale",
        "router.per_expert_scale": "ffn_down_exps.scale",
        "experts.gate_up_proj": "ffn_gate_up_exps.weight",
        "experts.down_proj": "ffn_down_exps.weight",
    },
    keys=(
        copied(final_logit_softcapping="final_logit_softcapping"),
        experts(),
        _gemma4_keys,
    ),
    defaults={"tie_word_embeddings": True},
)

# ---- Gemma 3n ----


def _gemma3n_keys(config: CheckpointConfig) -> Keys:
    pattern = config.get("activation_sparsity_pattern", default=[0.0] * config.layers)
    normal = statistics.NormalDist()
    sparsity = [normal.inv_cdf(share) if 0 < share < 1 else -math.inf for share in pattern]
    return {
        "attention.sliding_window": config.integer("sliding_window"),
        "attention.sliding_window_pattern": [
            kind == "sliding_attention" for kind in config.layer_types
        ],
        "attention.shared_kv_layers": config.integer("num_kv_shared_layers"),
        "altup.active_idx": config.integer("altup_active_idx"),
        "altup.num_inputs": config.integer("altup_num_inputs"),
        "embedding_length_per_layer_input": config.integer("hidden_size_per_layer_input"),
        "activation_sparsity_scale": np.array(sparsity, np.float32),
    }


GEMMA3N = dataclasses.replace(
    GEMMA4,
    classes=("Gemma3nForCausalLM", "Gemma3nForConditionalGeneration"),
    names={
        **LLAMA_NAMES,
        **SANDWICH,
        **_PER_LAYER,
        "altup_projections.*": "altup_proj",
        "altup_unembed_projections.*": "altup_unembd_proj",
        "altup.correct_output_scale": "altup_correct_scale.weight",
        "altup.correction_coefs": "altup_correct_coef",
        "altup.modality_router": "altup_router",
        "altup.prediction_coefs": "altup_predict_coef",
        "altup.router_norm": "altup_router_norm",
        "laurel.linear_left": "laurel_l",
        "laurel.linear_right": "laurel_r",
        "laurel.post_laurel_norm": "laurel_post_norm",
    },
    keys=(copied(final_logit_softcapping="final_logit_softcapping"), _gemma3n_keys),
)

#: The rows, by ``general.architecture``.
HYBRID: dict[str, Family] = {
    "lfm2": LFM2,
    "lfm2moe": dataclasses.replace(
        LFM2,
        classes=("Lfm2MoeForCausalLM",),
        names={
            **LFM2.names,
            "feed_forward.gate": "ffn_gate_inp",
            "feed_forward.expert_bias": "exp_probs_b.bias",
            "feed_forward.experts.*.w1": "ffn_gate_exps",
            "feed_forward.experts.*.w2": "ffn_down_exps",
            "feed_forward.experts.*.w3": "ffn_up_exps",
        },
        keys=(_lfm2_keys, routed(SIGMOID, norm=True)),
    ),
    "qwen3next": QWEN3NEXT,
    "qwen35": QWEN35,
    "qwen35moe": dataclasses.replace(
        QWEN35,
        classes=("Qwen3_5MoeForCausalLM", "Qwen3_5MoeForConditionalGeneration"),
        names={**QWEN35.names, **EXPERTS, **SHARED_EXPERT},
        keys=(*QWEN35.keys, experts(usual_norm=True)),
    ),
    "gemma4": GEMMA4,
    "gemma3n": GEMMA3N,
}
