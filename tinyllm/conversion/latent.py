"""Decoders with multi-head latent attention (MLA).

llama.cpp runs it as attention with one kv head: keys are the compressed values and the rotated
part, and the matrices that expand them are split in two, one for queries and one for results.
"""

from __future__ import annotations

import dataclasses

from ..errors import UnsupportedError
from ..files.arrays import Array
from .config import CheckpointConfig
from .dense import LLAMA
from .family import EXPERTS, LLAMA_NAMES, SHARED_EXPERT, Family, Keys, Target, To
from .keys import SIGMOID, SOFTMAX, routed, window, yarn_attn_factor
from .layouts import Change, Shape

__all__ = ["LATENT"]


def _sizes(config: CheckpointConfig) -> tuple[int, int]:
    """Return the sizes of a head of keys without rotation, and of values."""
    return config.integer("qk_nope_head_dim"), config.integer("v_head_dim")


def _expand_keys(array: Array, config: CheckpointConfig) -> Array:
    keys, values = _sizes(config)
    heads = array.reshape(config.heads, keys + values, array.shape[-1])
    return heads[:, :keys].swapaxes(1, 2)


def _expand_values(array: Array, config: CheckpointConfig) -> Array:
    keys, values = _sizes(config)
    return array.reshape(config.heads, keys + values, array.shape[-1])[:, keys:]


def _keys_shape(old: Shape, config: CheckpointConfig) -> Shape:
    return (config.heads, old[-1], _sizes(config)[0])


def _values_shape(old: Shape, config: CheckpointConfig) -> Shape:
    return (config.heads, _sizes(config)[1], old[-1])


_COMPRESSED: dict[str, Target] = {
    "self_attn.q_a_proj": "attn_q_a",
    "self_attn.q_a_layernorm": "attn_q_a_norm",
    "self_attn.q_b_proj": "attn_q_b",
    "self_attn.kv_a_proj_with_mqa": "attn_kv_a_mqa",
    "self_attn.kv_a_layernorm": "attn_kv_a_norm",
}

_ABSORBED: dict[str, Target] = {
    **_COMPRESSED,
    "self_attn.kv_b_proj": (
        To("attn_k_b", Change(_expand_keys, _keys_shape)),
        To("attn_v_b", Change(_expand_values, _values_shape)),
    ),
}


def _latent_keys(config: CheckpointConfig) -> Keys:
    if config.get("rope_interleave", default=True) is False:
        raise UnsupportedError(
            "rope_interleave of config.json is false; GGUF's deepseek2 rotates neighbours"
        )
    rank, rotated = config.integer("kv_lora_rank"), config.integer("qk_rope_head_dim")
    plain, values = _sizes(config)
    keys: Keys = {
        "attention.head_count_kv": 1,
        "attention.kv_lora_rank": rank,
        "attention.key_length": rank + rotated,
        "attention.value_length": rank,
        "attention.key_length_mla": plain + rotated,
        "attention.value_length_mla": values,
        "rope.dimension_count": rotated,
    }
    if config.get("q_lora_rank") is not None:
        keys["attention.q_lora_rank"] = config.integer("q_lora_rank")
    return keys


def _latent_yarn_keys(config: CheckpointConfig) -> Keys:
    rope = config.rope()
    if rope.type != "yarn" or not rope.get("mscale_all_dim"):
        return yarn_attn_factor(config)
    multiplier = float(rope["mscale_all_dim"])
    # llama.cpp stores it times 0.1 here, and takes the same multiplier for both magnitudes
    return {
        "rope.scaling.yarn_log_multiplier": 0.1 * multiplier,
        **yarn_attn_factor(config, computed=1.0),
    }


def _temperature_keys(config: CheckpointConfig) -> Keys:
    beta = config.rope().get("llama_4_scaling_beta")
    return {"attention.temperature_scale": float(beta)} if beta else {}


def _gating(config: CheckpointConfig) -> Keys:
    sigmoid = any(name.startswith(("DeepseekV3", "Glm4MoeLite")) for name in config.classes)
    return routed(SIGMOID if sigmoid else SOFTMAX)(config)


def _all_dense(config: CheckpointConfig) -> Keys:
    """Return the keys of a model without experts: every layer is dense."""
    if config.get("n_routed_experts"):
        return {}
    return {"leading_dense_block_count": config.layers, "expert_shared_count": 0}


def _is_mistral4(config: CheckpointConfig) -> bool:
    return str(config.get("model_type")) == "mistral4"


DEEPSEEK2 = Family(
    classes=("DeepseekV2ForCausalLM", "DeepseekV3ForCausalLM", "Glm4MoeLiteForCausalLM"),
    names={**LLAMA_NAMES, **EXPERTS, **SHARED_EXPERT, **_ABSORBED},
    keys=(_latent_keys, _latent_yarn_keys, _gating, _all_dense),
    defaults={"rms_norm_eps": 1e-6},
)


def _minicpm_scales(config: CheckpointConfig) -> Keys:
    return {
        "embedding_scale": config.number("scale_emb"),
        "residual_scale": config.number("scale_depth") / config.layers**0.5,
        "logit_scale": config.width / config.number("dim_model_base"),
    }


def _minicpm3_keys(config: CheckpointConfig) -> Keys:
    plain, values = _sizes(config)
    rotated = config.integer("qk_rope_head_dim")
    return {
        "attention.q_lora_rank": config.integer("q_lora_rank"),
        "attention.kv_lora_rank": config.integer("kv_lora_rank"),
        "attention.key_length": plain + rotated,
        "attention.value_length": values,
        "rope.dimension_count": rotated,
    }


#: The rows, by ``general.architecture``; minicpm has plain attention, and minicpm3's scales.
LATENT: dict[str, Family] = {
    "deepseek2": DEEPSEEK2,
    "mistral4": dataclasses.replace(
        DEEPSEEK2,
        classes=("Mistral4ForCausalLM", "Mistral3ForConditionalGeneration"),
        names={
            **DEEPSEEK2.names,
            "mlp.experts.gate_up_proj": "ffn_gate_up_exps.weight",
        },
        keys=(*DEEPSEEK2.keys, _temperature_keys),
        when=_is_mistral4,
    ),
    "minicpm": dataclasses.replace(
        LLAMA,
        classes=("MiniCPMForCausalLM",),
        keys=(window(), yarn_attn_factor, _minicpm_scales),
    ),
    "minicpm3": Family(
        classes=("MiniCPM3ForCausalLM",),
        names={**LLAMA_NAMES, **_COMPRESSED, "self_attn.kv_b_proj": "attn_kv_b"},
        keys=(yarn_attn_factor, _minicpm3_keys, _minicpm_scales),
    ),
}
