"""Models with layers of Mamba, alone or between layers of attention."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

import numpy as np

from ..errors import UnsupportedError, wrong
from ..files.arrays import Array
from .config import CheckpointConfig
from .dense import GRANITE_DENSE, LLAMA, granite_mamba, granite_scales
from .experts import GRANITE_EXPERTS
from .family import EXPERTS, LLAMA_NAMES, PERMUTED, SHARED_EXPERT, Family, Keys, Target, To
from .keys import SIGMOID, experts, routed, yarn_attn_factor
from .layouts import Change, column, in_groups, negative_exp, scaled, squeezed, then

__all__ = ["RECURRENT"]

#: llama.cpp's context of models without positions.
_ANY_LENGTH = 1 << 20


def _under(prefix: str, names: Mapping[str, Target]) -> dict[str, Target]:
    return {f"{prefix}.{name}": target for name, target in names.items()}


_BACKBONE: dict[str, Target] = {
    "embeddings": "token_embd",
    "norm_f": "output_norm",
    "lm_head": "output",
    "norm": "attn_norm",
}

#: Mamba-1: a decay for each channel and state.
_MAMBA1: dict[str, Target] = {
    "in_proj": "ssm_in",
    "conv1d": To("ssm_conv1d", squeezed),
    "conv1d.bias": "ssm_conv1d.bias",
    "x_proj": "ssm_x",
    "dt_proj": "ssm_dt",
    "A_log": To("ssm_a", negative_exp),
    "D": "ssm_d",
    "out_proj": "ssm_out",
}


def _groups(config: CheckpointConfig) -> int:
    return config.integer("n_groups", "mamba_n_groups", default=1)


#: Mamba-2: a decay for each head; the norm works in groups.
_MAMBA2: dict[str, Target] = {
    "in_proj": "ssm_in",
    "conv1d": To("ssm_conv1d", squeezed),
    "conv1d.bias": "ssm_conv1d.bias",
    "dt_bias": "ssm_dt.bias",
    "A_log": To("ssm_a", then(negative_exp, column)),
    "D": To("ssm_d", column),
    "norm": To("ssm_norm", in_groups(_groups)),
    "out_proj": "ssm_out",
}


def _pure_keys(config: CheckpointConfig) -> Keys:
    return {
        "block_count": config.layers,
        "context_length": _ANY_LENGTH,
        "embedding_length": config.width,
        "feed_forward_length": 0,
        "attention.head_count": 0,
        "vocab_size": config.integer("vocab_size"),
        "ssm.conv_kernel": config.integer("conv_kernel", "d_conv", default=4),
        "attention.layer_norm_rms_epsilon": config.number(
            "layer_norm_epsilon", "rms_norm_eps", default=1e-5
        ),
    }


def _mamba1_keys(config: CheckpointConfig) -> Keys:
    inner = config.integer("intermediate_size", "d_inner", default=2 * config.width)
    normed = config.get("model_type") == "falcon_mamba"
    keys: Keys = {
        "ssm.inner_size": inner,
        "ssm.state_size": config.integer("state_size", "d_state", default=16),
        "ssm.time_step_rank": config.integer(
            "time_step_rank", "dt_rank", default=-(-config.width // 16)
        ),
        "ssm.dt_b_c_rms": normed,
    }
    epsilon = config.get("mixer_rms_eps")
    if normed and epsilon is not None and epsilon != config.get("layer_norm_epsilon"):
        # llama.cpp has one epsilon and no such key; its effect is small
        keys["ssm.dt_b_c_rms_epsilon"] = config.number("mixer_rms_eps")
    return keys


def _mamba2_keys(config: CheckpointConfig) -> Keys:
    inner = config.integer("expand", default=2) * config.width
    size = config.integer("head_dim", default=64)
    return {
        "ssm.inner_size": inner,
        "ssm.state_size": config.integer("state_size", "d_state", default=128),
        "ssm.time_step_rank": config.integer("num_heads", default=inner // max(size, 1)),
        "ssm.group_count": _groups(config),
    }


# ---- attention in some layers ----


def _heads_where(attention: list[bool], config: CheckpointConfig) -> Keys:
    counts = [config.kv_heads if here else 0 for here in attention]
    return {"attention.head_count_kv": np.array(counts, np.int32)}


def _jamba_keys(config: CheckpointConfig) -> Keys:
    offset, period = config.integer("attn_layer_offset"), config.integer("attn_layer_period")
    if period == 0:
        raise wrong("attn_layer_period of config.json", period, "a positive number")
    attention = [i >= offset and (i - offset) % period == 0 for i in range(config.layers)]
    return {
        **_heads_where(attention, config),
        "ssm.conv_kernel": config.integer("mamba_d_conv", default=4),
        "ssm.inner_size": config.integer("mamba_expand", default=2) * config.width,
        "ssm.state_size": config.integer("mamba_d_state", default=16),
        "ssm.time_step_rank": config.integer("mamba_dt_rank", default=-(-config.width // 16)),
        "attention.layer_norm_rms_epsilon": config.number("rms_norm_eps", default=1e-6),
    }


def _granite_keys(config: CheckpointConfig) -> Keys:
    attention = [kind in ("attention", "full_attention") for kind in config.layer_types]
    heads = config.integer("mamba_n_heads")
    keys: Keys = {
        **_heads_where(attention, config),
        "ssm.conv_kernel": config.integer("mamba_d_conv"),
        "ssm.state_size": config.integer("mamba_d_state"),
        "ssm.group_count": _groups(config),
        "ssm.inner_size": heads * config.integer("mamba_d_head"),
        "ssm.time_step_rank": heads,
        "rope.scaling.finetuned": config.get("position_embedding_type") == "rope",
    }
    width = config.get("shared_intermediate_size")
    if width and config.get("num_local_experts"):
        keys["expert_shared_feed_forward_length"] = width
    elif width:
        keys["feed_forward_length"] = width
    return keys


def _granite_names(config: CheckpointConfig) -> Mapping[str, Target]:
    return GRANITE_EXPERTS if config.get("num_local_experts") else GRANITE_DENSE


# ---- Nemotron-H: one mixer in each block ----

_LETTERS = {
    "mamba": "M",
    "linear_attention": "M",
    "attention": "*",
    "full_attention": "*",
    "mlp": "-",
    "moe": "E",
}


def _nemotron_pattern(config: CheckpointConfig) -> str:
    pattern = config.get("hybrid_override_pattern", "layers_block_type")
    if isinstance(pattern, list):
        pattern = "".join(_LETTERS.get(str(kind), "?") for kind in pattern)
    if not isinstance(pattern, str) or set(pattern) - set("M*-E"):
        expected = "a word of M, *, - and E, one letter for each layer"
        raise wrong("hybrid_override_pattern of config.json", pattern, expected)
    return pattern


def _nemotron_keys(config: CheckpointConfig) -> Keys:
    pattern = _nemotron_pattern(config)
    heads = config.integer("mamba_num_heads")
    widths = {"-": config.integer("intermediate_size")}
    if "E" in pattern:
        widths["E"] = config.integer("moe_intermediate_size")
    epsilon = config.number("layer_norm_epsilon", "rms_norm_eps", default=1e-5)
    return {
        **_heads_where([kind == "*" for kind in pattern], config),
        "feed_forward_length": np.array([widths.get(kind, 0) for kind in pattern], np.int32),
        "ssm.conv_kernel": config.integer("conv_kernel", "mamba_d_conv", default=4),
        "ssm.state_size": config.integer("ssm_state_size"),
        "ssm.group_count": _groups(config),
        "ssm.inner_size": heads * config.integer("mamba_head_dim"),
        "ssm.time_step_rank": heads,
        # llama.cpp's loaders want one or the other
        "attention.layer_norm_rms_epsilon": epsilon,
        "attention.layer_norm_epsilon": epsilon,
    }


def _nemotron_expert_keys(config: CheckpointConfig) -> Keys:
    keys: Keys = {
        **routed(SIGMOID, norm=True)(config),
        "expert_shared_feed_forward_length": config.integer("moe_shared_expert_intermediate_size"),
        "leading_dense_block_count": None,
    }
    if config.get("moe_latent_size") is not None:
        keys["moe_latent_size"] = config.integer("moe_latent_size")
    return keys


def _has_experts(config: CheckpointConfig) -> bool:
    return "E" in _nemotron_pattern(config)


_ATTENTION: dict[str, Target] = {
    name.removeprefix("self_attn."): target
    for name, target in {**LLAMA_NAMES, **PERMUTED}.items()
    if name.startswith("self_attn.")
}
_FFN: dict[str, Target] = {
    name.removeprefix("mlp."): target
    for name, target in {**LLAMA_NAMES, **EXPERTS, **SHARED_EXPERT}.items()
    if name.startswith("mlp.")
}

NEMOTRON_H = Family(
    classes=("NemotronHForCausalLM",),
    names={
        **_BACKBONE,
        **_under("mixer", {**_ATTENTION, **_FFN, **_MAMBA2}),
        "mixer.fc1_latent_proj": "ffn_latent_down",
        "mixer.fc2_latent_proj": "ffn_latent_up",
    },
    keys=(_nemotron_keys,),
    rope=False,
    when=lambda config: not _has_experts(config),
)

# ---- Falcon-H1: both mixers in each block, with multipliers, which go into the weights ----


def _factor(*names: str) -> Callable[[CheckpointConfig], float]:
    def product(config: CheckpointConfig) -> float:
        result = 1.0
        for name in names:
            result *= config.number(name, default=1.0)
        return result

    return product


def _mlp_factor(index: int) -> Callable[[CheckpointConfig], float]:
    return lambda config: float(config.get("mlp_multipliers", default=[1.0, 1.0])[index])


def _scaled_parts(array: Array, config: CheckpointConfig) -> Array:
    """Multiply the five parts of Mamba's input projection: z, x, B, C and dt."""
    inner = config.integer("mamba_d_ssm")
    state = _groups(config) * config.integer("mamba_d_state")
    sizes = (inner, inner, state, state, array.shape[0] - 2 * (inner + state))
    factors = config.get("ssm_multipliers", default=[1.0] * 5)
    of_row = np.repeat(np.array(factors, np.float32), sizes)
    of_row *= np.float32(_factor("ssm_in_multiplier")(config))
    product: Array = array * of_row[:, np.newaxis]
    return product


def _falcon_keys(config: CheckpointConfig) -> Keys:
    if config.get("tie_word_embeddings") and (
        config.get("embedding_multiplier", default=1.0)
        != config.get("lm_head_multiplier", default=1.0)
    ):
        raise UnsupportedError(
            "the embedding of the checkpoint is its output matrix, with another multiplier; GGUF "
            "has the multipliers in the weights"
        )
    inner, size = config.integer("mamba_d_ssm"), config.integer("mamba_d_head")
    return {
        "ssm.conv_kernel": config.integer("mamba_d_conv"),
        "ssm.state_size": config.integer("mamba_d_state"),
        "ssm.group_count": _groups(config),
        "ssm.inner_size": inner,
        "ssm.time_step_rank": config.integer("mamba_n_heads", default=inner // max(size, 1)),
    }


_IN = "attention_in_multiplier"

FALCON_H1 = Family(
    classes=("FalconH1ForCausalLM",),
    names={
        **LLAMA_NAMES,
        **_under("mamba", _MAMBA2),
        "embed_tokens": To("token_embd", scaled(_factor("embedding_multiplier"))),
        "lm_head": To("output", scaled(_factor("lm_head_multiplier"))),
        "final_layernorm": "output_norm",
        "pre_ff_layernorm.weight": "ffn_norm",  # without a suffix, as llama.cpp reads it
        "self_attn.q_proj": To("attn_q", scaled(_factor(_IN))),
        "self_attn.k_proj": To("attn_k", scaled(_factor(_IN, "key_multiplier"))),
        "self_attn.v_proj": To("attn_v", scaled(_factor(_IN))),
        "self_attn.o_proj": To("attn_output", scaled(_factor("attention_out_multiplier"))),
        "feed_forward.gate_proj": To("ffn_gate", scaled(_mlp_factor(0))),
        "feed_forward.up_proj": "ffn_up",
        "feed_forward.down_proj": To("ffn_down", scaled(_mlp_factor(1))),
        "mamba.in_proj": To("ssm_in", Change(_scaled_parts)),
        "mamba.out_proj": To("ssm_out", scaled(_factor("ssm_out_multiplier"))),
    },
    keys=(yarn_attn_factor, _falcon_keys),
)

#: The rows, by ``general.architecture``.
RECURRENT: dict[str, Family] = {
    "mamba": Family(
        classes=("MambaForCausalLM", "MambaLMHeadModel", "FalconMambaForCausalLM"),
        names={**_BACKBONE, **_under("mixer", _MAMBA1)},
        keys=(_pure_keys, _mamba1_keys),
        common=False,
        rope=False,
    ),
    "mamba2": Family(
        classes=("Mamba2ForCausalLM",),
        names={**_BACKBONE, **_under("mixer", _MAMBA2)},
        keys=(_pure_keys, _mamba2_keys),
        common=False,
        rope=False,
    ),
    "jamba": Family(
        classes=("JambaForCausalLM",),
        names={
            **LLAMA_NAMES,
            **_under("mamba", _MAMBA1),
            "final_layernorm": "output_norm",
            "pre_ff_layernorm": "ffn_norm",
            "mamba.dt_layernorm": "ssm_dt_norm",
            "mamba.b_layernorm": "ssm_b_norm",
            "mamba.c_layernorm": "ssm_c_norm",
            "feed_forward.gate_proj": "ffn_gate",
            "feed_forward.up_proj": "ffn_up",
            "feed_forward.down_proj": "ffn_down",
            "feed_forward.router": "ffn_gate_inp",
            "feed_forward.experts.*.gate_proj": "ffn_gate_exps",
            "feed_forward.experts.*.up_proj": "ffn_up_exps",
            "feed_forward.experts.*.down_proj": "ffn_down_exps",
        },
        keys=(experts(), _jamba_keys),
        rope=False,
    ),
    "nemotron_h": NEMOTRON_H,
    "nemotron_h_moe": dataclasses.replace(
        NEMOTRON_H, keys=(_nemotron_keys, _nemotron_expert_keys), when=_has_experts
    ),
    "granitehybrid": dataclasses.replace(
        LLAMA,
        classes=("GraniteMoeHybridForCausalLM",),
        names={**LLAMA_NAMES, **PERMUTED, **_under("mamba", _MAMBA2)},
        keys=(yarn_attn_factor, granite_scales, experts(), _granite_keys),
        more_names=_granite_names,
        when=granite_mamba,
    ),
    "falcon-h1": FALCON_H1,
}
