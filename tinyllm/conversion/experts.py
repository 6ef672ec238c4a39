"""Decoders whose feed-forward networks are experts."""

from __future__ import annotations

import dataclasses

from .config import CheckpointConfig
from .dense import LLAMA, QWEN2, deepstack_keys, granite_scales
from .family import EXPERTS, LLAMA_NAMES, PERMUTED, SHARED_EXPERT, Family, Keys, Target, To, copied
from .keys import experts, rope_sections, window, yarn_attn_factor
from .layouts import columns, rows, then, transposed

__all__ = ["EXPERT_MODELS"]

_GRANITE_EXPERTS: dict[str, Target] = {
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
        classes=("GraniteMoeForCausalLM", "GraniteMoeSharedForCausalLM"),
        names={**LLAMA_NAMES, **PERMUTED, **_GRANITE_EXPERTS},
        keys=(yarn_attn_factor, granite_scales, experts(), _shared_width),
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
}
