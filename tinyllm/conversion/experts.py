"""Decoders whose feed-forward networks are experts."""

from __future__ import annotations

import dataclasses

import numpy as np

from ..errors import UnsupportedError
from .config import CheckpointConfig
from .dense import (
    COMMAND_R,
    LLAMA,
    PHI3,
    QWEN2,
    deepstack_keys,
    granite_mamba,
    granite_scales,
    hunyuan_base,
)
from .family import (
    EXPERTS,
    LLAMA_NAMES,
    MIXTRAL_EXPERTS,
    PERMUTED,
    SHARED_EXPERT,
    Family,
    Keys,
    LayerTensors,
    Target,
    To,
    copied,
    fixed,
)
from .keys import (
    SHARED_COUNTS,
    SIGMOID,
    SOFTMAX,
    every_window,
    experts,
    rope_sections,
    routed,
    uniform,
    window,
    yarn_attn_factor,
)
from .layouts import columns, flattened, in_groups, rows, then, transposed

__all__ = ["EXPERT_MODELS", "GRANITE_EXPERTS"]

#: Experts as Granite names them: gate and up in one tensor.
GRANITE_EXPERTS: dict[str, Target] = {
    "block_sparse_moe.router.layer": "ffn_gate_inp",
    "block_sparse_moe.input_linear": (
        To("ffn_gate_exps", rows(0, 2, -2)),
        To("ffn_up_exps", rows(1, 2, -2)),
    ),
    "block_sparse_moe.output_linear": "ffn_down_exps",
    "shared_mlp.input_linear": (
        To("ffn_gate_shexp", rows(0, 2)),
        To("ffn_up_shexp", rows(1, 2)),
    ),
    "shared_mlp.output_linear": "ffn_down_shexp",
}

#: Experts whose matrices are (in, out), gate and up in one tensor.
_TRANSPOSED_EXPERTS: dict[str, Target] = {
    "mlp.experts.gate_up_proj": (
        To("ffn_gate_exps.weight", then(transposed, rows(0, 2, -2))),
        To("ffn_up_exps.weight", then(transposed, rows(1, 2, -2))),
    ),
    "mlp.experts.down_proj": To("ffn_down_exps.weight", transposed),
}

#: gpt-oss: rows of gate and up alternate.
_GPT_OSS_EXPERTS: dict[str, Target] = {
    "mlp.router": "ffn_gate_inp",
    "mlp.experts.gate_up_proj": (
        To("ffn_gate_exps.weight", then(columns(0, 2), transposed)),
        To("ffn_up_exps.weight", then(columns(1, 2), transposed)),
    ),
    "mlp.experts.gate_up_proj_bias": (
        To("ffn_gate_exps.bias", columns(0, 2)),
        To("ffn_up_exps.bias", columns(1, 2)),
    ),
    "mlp.experts.down_proj": To("ffn_down_exps.weight", transposed),
    "mlp.experts.down_proj_bias": "ffn_down_exps.bias",
}


def _inner_width(config: CheckpointConfig) -> Keys:
    return {"expert_feed_forward_length": config.integer("intermediate_size")}


def _shared_width(config: CheckpointConfig) -> Keys:
    width = config.get("shared_intermediate_size")
    return {"expert_shared_feed_forward_length": width} if width else {}


def _shared_by_count(config: CheckpointConfig) -> Keys:
    """Return the width of the shared experts, which run as one."""
    count = uniform(config, *SHARED_COUNTS, default=0)
    width = uniform(config, "moe_intermediate_size", default=0)
    return {"expert_shared_feed_forward_length": count * width} if count and width else {}


def _cohere_widths(config: CheckpointConfig) -> Keys:
    width = config.integer("intermediate_size")
    keys: Keys = {"expert_feed_forward_length": width}
    if count := config.integer(*SHARED_COUNTS, default=0):
        if config.get("shared_expert_combination_strategy", default="average") != "average":
            raise UnsupportedError(
                "shared_expert_combination_strategy of config.json is not average, which is the "
                "only one of GGUF's cohere2moe"
            )
        keys["expert_shared_feed_forward_length"] = width * count
    if config.get("prefix_dense_intermediate_size") is not None:
        keys["feed_forward_length"] = config.integer("prefix_dense_intermediate_size")
    return keys


def _minimax_rotated(config: CheckpointConfig) -> Keys:
    rotated = config.get("rotary_dim")
    return {} if rotated is None else {"rope.dimension_count": config.integer("rotary_dim")}


def _ernie_step(config: CheckpointConfig) -> Keys:
    return {"interleave_moe_layer_step": config.integer("moe_layer_interval", default=1)}


def _hunyuan_shared(config: CheckpointConfig) -> Keys:
    count = uniform(config, *SHARED_COUNTS, default=1)
    return {"expert_shared_feed_forward_length": config.integer("intermediate_size") * count}


def _llama4_keys(config: CheckpointConfig) -> Keys:
    keys: Keys = {
        "feed_forward_length": config.integer("intermediate_size_mlp"),
        "expert_feed_forward_length": config.integer("intermediate_size"),
        "interleave_moe_layer_step": config.integer("interleave_moe_layer_step", default=1),
        "expert_gating_func": SIGMOID,
    }
    if config.get("attention_chunk_size") is not None:
        keys["attention.chunk_size"] = config.integer("attention_chunk_size")
    if config.get("attn_temperature_tuning"):
        keys["attention.temperature_scale"] = config.number("attn_scale", default=0.1)
        keys["attention.temperature_length"] = config.integer("floor_scale", default=8192)
    return keys


def _phimoe_epsilon(config: CheckpointConfig) -> Keys:
    """Return the epsilon of LayerNorm, which the config calls that of RMSNorm."""
    return {"attention.layer_norm_epsilon": config.number("rms_norm_eps")}


def _laguna_keys(config: CheckpointConfig) -> Keys:
    heads = config.get("num_attention_heads_per_layer") or config.layers * [config.heads]
    return {
        "attention.head_count": np.array(heads, np.int32),
        "rope.dimension_count_swa": int(
            config.head_size * config.rope("sliding_attention").rotated
        ),
    }


def _mimo_keys(config: CheckpointConfig) -> Keys:
    return {
        "attention.value_length": config.integer("v_head_dim"),
        "attention.layer_norm_rms_epsilon": config.number("rms_norm_eps", "layernorm_epsilon"),
    }


def _kv_heads_of_layers(config: CheckpointConfig, tensors: LayerTensors) -> Keys:
    """Return the number of kv heads of each layer, from the rows of its keys."""
    rows_of = [tensors.get((i, "self_attn.k_proj.weight")) for i in range(config.layers)]
    counts = [0 if stored is None else stored.shape[0] // config.head_size for stored in rows_of]
    return {"attention.head_count_kv": np.array(counts, np.int32)}


def _inner(config: CheckpointConfig, name: str) -> CheckpointConfig:
    values = config.get(name, default={})
    return CheckpointConfig(values if isinstance(values, dict) else {})


def _dbrx_experts(config: CheckpointConfig) -> int:
    return _inner(config, "ffn_config").integer("moe_num_experts")


def _dbrx_keys(config: CheckpointConfig) -> Keys:
    attention, ffn = _inner(config, "attn_config"), _inner(config, "ffn_config")
    keys: Keys = {
        "feed_forward_length": ffn.integer("ffn_hidden_size"),
        "attention.head_count_kv": attention.integer("kv_n_heads"),
        "attention.layer_norm_epsilon": 1e-5,
        "rope.freq_base": attention.number("rope_theta", default=config.rope().base),
        "expert_count": ffn.integer("moe_num_experts"),
        "expert_used_count": ffn.integer("moe_top_k"),
    }
    if attention.get("clip_qkv") is not None:
        keys["attention.clamp_kqv"] = attention.number("clip_qkv")
    return keys


QWEN2MOE = dataclasses.replace(
    QWEN2,
    classes=("Qwen2MoeForCausalLM",),
    names={**LLAMA_NAMES, **EXPERTS, **SHARED_EXPERT},
    keys=(*QWEN2.keys, experts(usual_norm=False)),
)

#: The rows, by ``general.architecture``. Mixtral is a llama: its row is among the dense ones.
EXPERT_MODELS: dict[str, Family] = {
    "qwen2moe": QWEN2MOE,
    "qwen3moe": dataclasses.replace(
        QWEN2MOE,
        classes=("Qwen3MoeForCausalLM",),
        keys=(*QWEN2.keys, experts(usual_norm=True)),
    ),
    "qwen3vlmoe": dataclasses.replace(
        QWEN2MOE,
        classes=("Qwen3VLMoeForConditionalGeneration",),
        names={**QWEN2MOE.names, **_TRANSPOSED_EXPERTS},
        keys=(*QWEN2.keys, experts(usual_norm=True), rope_sections, deepstack_keys),
    ),
    "olmoe": Family(
        classes=("OlmoeForCausalLM",),
        names={**LLAMA_NAMES, **EXPERTS},
        keys=(
            yarn_attn_factor,
            experts(usual_norm=False),
            copied(attention__clamp_kqv="clip_qkv"),
        ),
    ),
    "granitemoe": dataclasses.replace(
        LLAMA,
        classes=(
            "GraniteMoeForCausalLM",
            "GraniteMoeSharedForCausalLM",
            "GraniteMoeHybridForCausalLM",
        ),
        names={**LLAMA_NAMES, **PERMUTED, **GRANITE_EXPERTS},
        keys=(yarn_attn_factor, granite_scales, experts(), _shared_width),
        when=lambda config: not granite_mamba(config),
    ),
    "gpt-oss": Family(
        classes=("GptOssForCausalLM",),
        names={
            **LLAMA_NAMES,
            **_GPT_OSS_EXPERTS,
            "post_attention_layernorm": "post_attention_norm",
            "self_attn.sinks": "attn_sinks.weight",
        },
        keys=(window(2), yarn_attn_factor, experts(), _inner_width),
    ),
    "deepseek": dataclasses.replace(
        LLAMA,
        classes=("DeepseekForCausalLM",),
        names={**LLAMA_NAMES, **PERMUTED, **EXPERTS, **SHARED_EXPERT},
        keys=(routed(SOFTMAX),),
    ),
    "glm4moe": Family(
        classes=("Glm4MoeForCausalLM",),
        names={
            **LLAMA_NAMES,
            **EXPERTS,
            **SHARED_EXPERT,
            "post_attention_layernorm": "post_attention_norm",
        },
        keys=(routed(SIGMOID, norm=True),),
        defaults={"partial_rotary_factor": 0.5},
    ),
    "cohere2moe": dataclasses.replace(
        COMMAND_R,
        classes=("Cohere2MoeForCausalLM",),
        names={**LLAMA_NAMES, **EXPERTS, **SHARED_EXPERT},
        keys=(*COMMAND_R.keys, every_window, routed(SIGMOID, norm=False), _cohere_widths),
    ),
    "exaone-moe": Family(
        classes=("ExaoneMoeForCausalLM", "ExaoneMoEForCausalLM"),
        names={
            **LLAMA_NAMES,
            **EXPERTS,
            **SHARED_EXPERT,
            "mlp.e_score_correction_bias": "exp_probs_b.bias",
        },
        keys=(window(), yarn_attn_factor, routed(SIGMOID, norm=True), _shared_by_count),
    ),
    "minimax-m2": Family(
        classes=("MiniMaxM2ForCausalLM",),
        names={
            **LLAMA_NAMES,
            **MIXTRAL_EXPERTS,
            "block_sparse_moe.e_score_correction_bias": "exp_probs_b.bias",
        },
        keys=(experts(), fixed(expert_gating_func=SIGMOID), _inner_width, _minimax_rotated),
    ),
    "dots1": Family(
        classes=("Dots1ForCausalLM",),
        names={**LLAMA_NAMES, **EXPERTS, **SHARED_EXPERT},
        keys=(window(), yarn_attn_factor, routed(SIGMOID, norm=True)),
    ),
    "ernie4_5-moe": Family(
        classes=("Ernie4_5_MoeForCausalLM",),
        names={
            **LLAMA_NAMES,
            **EXPERTS,
            **SHARED_EXPERT,
            "mlp.moe_statics.e_score_correction_bias": To("exp_probs_b.bias", flattened),
        },
        keys=(routed(SOFTMAX), _shared_by_count, _ernie_step),
    ),
    "hunyuan-moe": Family(
        classes=("HunYuanMoEV1ForCausalLM",),
        names={
            **LLAMA_NAMES,
            **EXPERTS,
            **SHARED_EXPERT,
            "self_attn.query_layernorm": "attn_q_norm",
            "self_attn.key_layernorm": "attn_k_norm",
            "mlp.gate.wg": "ffn_gate_inp",
        },
        keys=(hunyuan_base, routed(SOFTMAX), _hunyuan_shared),
    ),
    "hy_v3": Family(
        classes=("HYV3ForCausalLM",),
        names={
            **LLAMA_NAMES,
            **EXPERTS,
            **SHARED_EXPERT,
            "mlp.router.gate": "ffn_gate_inp",
            "mlp.expert_bias": "exp_probs_b",
        },
        keys=(routed(SIGMOID, norm=True), _shared_by_count),
    ),
    "llama4": Family(
        classes=("Llama4ForCausalLM", "Llama4ForConditionalGeneration"),
        names={
            **LLAMA_NAMES,
            "feed_forward.gate_proj": "ffn_gate",
            "feed_forward.up_proj": "ffn_up",
            "feed_forward.down_proj": "ffn_down",
            "feed_forward.router": "ffn_gate_inp",
            "feed_forward.experts.gate_up_proj": _TRANSPOSED_EXPERTS["mlp.experts.gate_up_proj"],
            "feed_forward.experts.down_proj": _TRANSPOSED_EXPERTS["mlp.experts.down_proj"],
            "feed_forward.shared_expert.gate_proj": "ffn_gate_shexp",
            "feed_forward.shared_expert.up_proj": "ffn_up_shexp",
            "feed_forward.shared_expert.down_proj": "ffn_down_shexp",
        },
        keys=(experts(), _llama4_keys),
    ),
    "phimoe": dataclasses.replace(
        PHI3,
        classes=("PhimoeForCausalLM", "PhiMoEForCausalLM"),
        names={**LLAMA_NAMES, **MIXTRAL_EXPERTS},
        keys=(*PHI3.keys, experts(), _phimoe_epsilon),
    ),
    "afmoe": Family(
        classes=("AfmoeForCausalLM",),
        names={
            **LLAMA_NAMES,
            **EXPERTS,
            **SHARED_EXPERT,
            "post_attention_layernorm": "post_attention_norm",
            "pre_mlp_layernorm": "ffn_norm",
            "post_mlp_layernorm": "post_ffw_norm",
            "self_attn.gate_proj": "attn_gate",
            "mlp.router.gate": "ffn_gate_inp",
            "mlp.expert_bias": "exp_probs_b.bias",
        },
        keys=(window(4), yarn_attn_factor, routed(SIGMOID, norm=True)),
    ),
    "mellum": dataclasses.replace(
        QWEN2MOE,
        classes=("MellumForCausalLM",),
        keys=(every_window, yarn_attn_factor, experts(usual_norm=True)),
    ),
    "laguna": Family(
        classes=("LagunaForCausalLM",),
        names={
            **LLAMA_NAMES,
            **EXPERTS,
            **SHARED_EXPERT,
            "self_attn.g_proj": "attn_gate",
            "mlp.experts.e_score_correction_bias": "exp_probs_b.bias",
        },
        keys=(
            window(4, first_global=True),
            yarn_attn_factor,
            routed(SIGMOID, norm=True),
            experts(),
            _laguna_keys,
        ),
    ),
    "mimo2": Family(
        classes=("MiMoV2FlashForCausalLM", "MiMoV2ForCausalLM"),
        names={
            **LLAMA_NAMES,
            **EXPERTS,
            "self_attn.attention_sink_bias": "attn_sinks.weight",
        },
        keys=(
            every_window,
            routed(SIGMOID, norm=True),
            copied(attention__value_scale="attention_value_scale"),
            _mimo_keys,
        ),
        tensor_keys=_kv_heads_of_layers,
        defaults={"layernorm_epsilon": 1e-5},
    ),
    "dbrx": Family(
        classes=("DbrxForCausalLM",),
        names={
            "wte": "token_embd",
            "norm_f": "output_norm",
            "lm_head": "output",
            "norm_attn_norm.norm_1": "attn_norm",
            "norm_attn_norm.attn.Wqkv": "attn_qkv",
            "norm_attn_norm.attn.out_proj": "attn_output",
            "norm_attn_norm.norm_2": "attn_output_norm",
            "ffn.router.layer": "ffn_gate_inp",
            "ffn.experts.mlp.w1": To("ffn_gate_exps.weight", in_groups(_dbrx_experts)),
            "ffn.experts.mlp.v1": To("ffn_up_exps.weight", in_groups(_dbrx_experts)),
            "ffn.experts.mlp.w2": To(
                "ffn_down_exps.weight", then(in_groups(_dbrx_experts), transposed)
            ),
        },
        keys=(_dbrx_keys,),
    ),
}
