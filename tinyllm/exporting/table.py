"""What exporting an architecture needs beyond the row of its conversion: the values of its config.

Names of values are those of the config classes of transformers
(github.com/huggingface/transformers, src/transformers/models/).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..errors import UnsupportedError
from .row import ABSENT, Row, Source

__all__ = ["ROWS", "find_row"]

Values = dict[str, Any]


def _rms(source: Source) -> Values:
    return {"rms_norm_eps": source.config.norm_epsilon, "hidden_act": "silu"}


def _biases(source: Source) -> Values:
    return {
        "attention_bias": source.has("attn_q.bias"),
        "mlp_bias": source.has("ffn_up.bias"),
    }


def _windows(source: Source) -> Values:
    """Return a sliding window that some layers have."""
    some = source.window()
    return {
        "sliding_window": some,
        "layer_types": source.layer_types(),
        "use_sliding_window": some is not None,
    }


def _experts(source: Source) -> Values:
    values: Values = {
        "num_experts": source.get("expert_count"),
        "num_experts_per_tok": source.get("expert_used_count"),
        "moe_intermediate_size": source.get("expert_feed_forward_length"),
    }
    if values["moe_intermediate_size"] is None:
        values["moe_intermediate_size"] = next(
            weight.shape[-2]
            for name, weight in source.weights.items()
            if name.endswith("ffn_up_exps.weight")
        )
    return values


def _all(*parts: Callable[[Source], Values]) -> Callable[[Source], Values]:
    return lambda source: {key: v for part in parts for key, v in part(source).items()}


def _fixed(**values: Any) -> Callable[[Source], Values]:
    return lambda source: dict(values)


def _mixtral(source: Source) -> Values:
    return {
        "num_local_experts": source.get("expert_count"),
        "num_experts_per_tok": source.get("expert_used_count"),
        "sliding_window": source.window(),
    }


def _qwen_experts(norm: bool) -> Callable[[Source], Values]:
    return lambda source: {
        "norm_topk_prob": bool(source.get("expert_weights_norm", norm)),
        "decoder_sparse_step": 1,
        "mlp_only_layers": source.dense_layers(),
    }


def _shared_expert(source: Source) -> Values:
    weight = next(w for n, w in source.weights.items() if n.endswith("ffn_up_shexp.weight"))
    return {"shared_expert_intermediate_size": weight.shape[0]}


def _gemma(source: Source) -> Values:
    return {
        "rms_norm_eps": source.config.norm_epsilon,
        "hidden_activation": "gelu_pytorch_tanh",
        "hidden_act": "gelu_pytorch_tanh",
        "attention_bias": False,
    }


def _gemma_scale(source: Source) -> Values:
    scale = source.number(0, "scores", "factor") or 1.0
    return {"query_pre_attn_scalar": _rounded(scale**-2)}


def _rounded(value: float) -> float:
    """Return a number that went through float32 as what it was meant to be."""
    short = float(f"{value:.6g}")
    return int(short) if short.is_integer() else short


def _gemma2(source: Source) -> Values:
    return {
        "attn_logit_softcapping": source.get("attn_logit_softcapping"),
        "final_logit_softcapping": source.get("final_logit_softcapping"),
        "sliding_window": source.window(),
        "layer_types": source.layer_types(),
    }


def _gemma3(source: Source) -> Values:
    rope = source.rope()
    local = next(
        (
            base
            for i, size in enumerate(source.windows())
            if size and (base := source.number(i, "rope", "base")) is not None
        ),
        10000.0,
    )
    return {
        "final_logit_softcapping": source.get("final_logit_softcapping"),
        "attn_logit_softcapping": None,
        "sliding_window": source.window(),
        "layer_types": source.layer_types(),
        "rope_local_base_freq": local,
        "rope_scaling": ABSENT,
        "rope_parameters": {
            "full_attention": rope,
            "sliding_attention": {"rope_theta": local, "rope_type": "default"},
        },
    }


def _phi3(source: Source) -> Values:
    original = source.get("rope.scaling.original_context_length", source.config.context_length)
    return {
        "sliding_window": source.window(),
        "original_max_position_embeddings": original,
        "head_dim": ABSENT,
    }


def _granite(source: Source) -> Values:
    return {
        "attention_multiplier": source.get("attention.scale", source.config.head_size**-0.5),
        "embedding_multiplier": source.get("embedding_scale", 1.0),
        "residual_multiplier": source.get("residual_scale", 1.0),
        "logits_scaling": source.get("logit_scale", 1.0),
    }


def _smollm3(source: Source) -> Values:
    rotated = {step.layer for step in source.plan if step.op == "rope"}
    return {"no_rope_layers": [int(i in rotated) for i in range(source.config.layers)]}


def _olmo3(source: Source) -> Values:
    rope = source.rope()
    local = {"rope_theta": source.config.rope_base, "rope_type": "default"}
    return {
        "rope_scaling": ABSENT,
        "rope_parameters": {"full_attention": rope, "sliding_attention": local},
    }


def _olmo(source: Source) -> Values:
    return {"clip_qkv": source.get("attention.clamp_kqv"), "rms_norm_eps": ABSENT}


def _own_names(source: Source) -> Values:
    """Return the values that a class shares whose names are its own for the others."""
    kept = ("vocab_size", "tie_word_embeddings", "bos_token_id", "eos_token_id", "pad_token_id")
    return {name: v if name in kept else ABSENT for name, v in source.common().items()}


def _gpt2(source: Source) -> Values:
    config = source.config
    return _own_names(source) | {
        "n_embd": config.width,
        "n_layer": config.layers,
        "n_head": source.one("heads"),
        "n_positions": config.context_length,
        "n_ctx": config.context_length,
        "n_inner": source.one("ffn_width"),
        "layer_norm_epsilon": config.norm_epsilon,
        "activation_function": "gelu_new",
    }


def _falcon(source: Source) -> Values:
    config, kv_heads = source.config, source.one("kv_heads")
    two_norms = source.has("attn_norm_2.weight")
    new = two_norms or 1 < kv_heads < source.one("heads")
    return {
        "layer_norm_epsilon": config.norm_epsilon,
        "activation": "gelu",
        "ffn_hidden_size": source.one("ffn_width"),
        "bias": source.has("attn_qkv.bias"),
        "alibi": False,
        "parallel_attn": True,
        "new_decoder_architecture": new,
        "num_ln_in_parallel_attn": (2 if two_norms else 1) if new else None,
        "multi_query": kv_heads == 1,
        "num_kv_heads": kv_heads,
        **dict.fromkeys(("num_key_value_heads", "head_dim", "intermediate_size"), ABSENT),
    }


def _bloom(source: Source) -> Values:
    config = source.config
    return _own_names(source) | {
        "hidden_size": config.width,
        "n_layer": config.layers,
        "n_head": source.one("heads"),
        "seq_length": config.context_length,
        "layer_norm_epsilon": config.norm_epsilon,
        "apply_residual_connection_post_layernorm": False,
    }


def _mpt(source: Source) -> Values:
    config = source.config
    bias = source.get("attention.max_alibi_bias", 0.0)
    return _own_names(source) | {
        "d_model": config.width,
        "n_layers": config.layers,
        "n_heads": source.one("heads"),
        "max_seq_len": config.context_length,
        "expansion_ratio": source.one("ffn_width") // config.width,
        "layer_norm_epsilon": config.norm_epsilon,
        "no_bias": not source.has("attn_qkv.bias"),
        "attn_config": {
            "alibi": bool(bias),
            "alibi_bias_max": round(bias),
            "clip_qkv": source.get("attention.clamp_kqv"),
        },
    }


def _layer_norm(name: str) -> Callable[[Source], Values]:
    return lambda source: {name: source.config.norm_epsilon}


def _starcoder2(source: Source) -> Values:
    return {
        "hidden_act": "gelu_pytorch_tanh",
        "use_bias": source.has("attn_q.bias"),
        "sliding_window": source.window(),
    }


def _stablelm(source: Source) -> Values:
    return {
        "hidden_act": "silu",
        "use_qkv_bias": source.has("attn_q.bias"),
        "qk_layernorm": source.has("attn_q_norm.weight"),
        "use_parallel_residual": bool(source.get("use_parallel_residual", True)),
    }


def _cohere(source: Source) -> Values:
    return {
        "hidden_act": "silu",
        "logit_scale": source.get("logit_scale"),
        "use_qk_norm": source.has("attn_q_norm.weight"),
        "attention_bias": source.has("attn_q.bias"),
    }


def _gptneox(source: Source) -> Values:
    return {
        "hidden_act": "gelu",
        "use_parallel_residual": bool(source.get("use_parallel_residual", True)),
        "rotary_pct": source.config.rope_dimension / source.config.head_size,
        "attention_bias": source.has("attn_qkv.bias"),
        "head_dim": ABSENT,
    }


_LLAMA = _all(_rms, _biases)
_QWEN2 = _all(_rms, _windows)
_OLMO2 = _all(_rms, _biases)

#: The rows, by ``general.architecture``. The first that fits is taken.
ROWS: dict[str, tuple[Row, ...]] = {
    "llama": (
        Row(
            "MixtralForCausalLM",
            "mixtral",
            _all(_rms, _mixtral),
            when=lambda source: bool(source.get("expert_count")),
        ),
        Row(
            "MistralForCausalLM",
            "mistral",
            _all(_rms, lambda source: {"sliding_window": source.window()}),
            when=lambda source: source.window() is not None,
        ),
        Row("LlamaForCausalLM", "llama", _LLAMA),
    ),
    "qwen2": (Row("Qwen2ForCausalLM", "qwen2", _QWEN2),),
    "qwen3": (Row("Qwen3ForCausalLM", "qwen3", _all(_QWEN2, _biases)),),
    "gemma": (Row("GemmaForCausalLM", "gemma", _gemma),),
    "gemma2": (Row("Gemma2ForCausalLM", "gemma2", _all(_gemma, _gemma_scale, _gemma2)),),
    "gemma3": (Row("Gemma3ForCausalLM", "gemma3_text", _all(_gemma, _gemma_scale, _gemma3)),),
    "phi3": (Row("Phi3ForCausalLM", "phi3", _all(_rms, _phi3)),),
    "granite": (
        Row("GraniteForCausalLM", "granite", _all(_LLAMA, _granite), without=("shared_mlp.",)),
    ),
    "smollm3": (Row("SmolLM3ForCausalLM", "smollm3", _all(_LLAMA, _windows, _smollm3)),),
    "olmo": (Row("OlmoForCausalLM", "olmo", _all(_LLAMA, _olmo)),),
    "olmo2": (
        Row(
            "Olmo3ForCausalLM",
            "olmo3",
            _all(_OLMO2, _windows, _olmo3),
            when=lambda source: source.window() is not None,
        ),
        Row("Olmo2ForCausalLM", "olmo2", _OLMO2),
    ),
    "gpt2": (Row("GPT2LMHeadModel", "gpt2", _gpt2, prefix="transformer.", blocks="h"),),
    "falcon": (
        Row(
            "FalconForCausalLM",
            "falcon",
            _falcon,
            prefix="transformer.",
            blocks="h",
            without=("input_layernorm",),
            when=lambda source: source.has("attn_norm_2.weight"),
        ),
        Row(
            "FalconForCausalLM",
            "falcon",
            _falcon,
            prefix="transformer.",
            blocks="h",
            without=("ln_mlp", "ln_attn"),
        ),
    ),
    "bloom": (Row("BloomForCausalLM", "bloom", _bloom, prefix="transformer.", blocks="h"),),
    "mpt": (
        Row(
            "MptForCausalLM",
            "mpt",
            _mpt,
            prefix="transformer.",
            blocks="blocks",
            without=("wpe", "attn.q_ln", "attn.k_ln"),
        ),
    ),
    "starcoder2": (
        Row(
            "Starcoder2ForCausalLM",
            "starcoder2",
            _all(_layer_norm("norm_epsilon"), _starcoder2),
        ),
    ),
    "stablelm": (
        Row("StableLmForCausalLM", "stablelm", _all(_layer_norm("layer_norm_eps"), _stablelm)),
    ),
    "command-r": (
        Row("CohereForCausalLM", "cohere", _all(_layer_norm("layer_norm_eps"), _cohere)),
    ),
    "cohere2": (
        Row(
            "Cohere2ForCausalLM", "cohere2", _all(_layer_norm("layer_norm_eps"), _cohere, _windows)
        ),
    ),
    "phi2": (
        Row(
            "PhiForCausalLM",
            "phi",
            _all(_layer_norm("layer_norm_eps"), _fixed(hidden_act="gelu_new", head_dim=ABSENT)),
        ),
    ),
    "gptneox": (
        Row(
            "GPTNeoXForCausalLM",
            "gpt_neox",
            _all(_layer_norm("layer_norm_eps"), _gptneox),
            prefix="gpt_neox.",
        ),
    ),
    "qwen2moe": (
        Row(
            "Qwen2MoeForCausalLM",
            "qwen2_moe",
            _all(_QWEN2, _experts, _qwen_experts(False), _shared_expert),
            without=("mlp.shared_experts.", "mlp.shared_mlp."),
        ),
    ),
    "qwen3moe": (
        Row(
            "Qwen3MoeForCausalLM",
            "qwen3_moe",
            _all(_QWEN2, _biases, _experts, _qwen_experts(True)),
        ),
    ),
    "olmoe": (
        Row(
            "OlmoeForCausalLM",
            "olmoe",
            _all(
                _rms,
                _experts,
                lambda source: {
                    "norm_topk_prob": bool(source.get("expert_weights_norm", False)),
                    "clip_qkv": source.get("attention.clamp_kqv"),
                    "moe_intermediate_size": ABSENT,
                    "intermediate_size": _experts(source)["moe_intermediate_size"],
                    "attention_bias": source.has("attn_q.bias"),
                },
            ),
        ),
    ),
    "ernie4_5": (
        Row(
            "Ernie4_5ForCausalLM",
            "ernie4_5",
            _all(_rms, lambda source: {"use_bias": source.has("attn_q.bias")}),
        ),
    ),
    "seed_oss": (
        Row(
            "SeedOssForCausalLM",
            "seed_oss",
            _all(
                _LLAMA,
                lambda source: {"attention_out_bias": source.has("attn_output.bias")},
            ),
        ),
    ),
    "glm4": (
        Row(
            "Glm4ForCausalLM",
            "glm4",
            _all(_rms, lambda source: {"attention_bias": source.has("attn_q.bias")}),
        ),
    ),
    "chatglm": (
        Row(
            "GlmForCausalLM",
            "glm",
            _all(_rms, lambda source: {"attention_bias": source.has("attn_q.bias")}),
        ),
    ),
    "exaone4": (Row("Exaone4ForCausalLM", "exaone4", _all(_rms, _windows)),),
    "arcee": (Row("ArceeForCausalLM", "arcee", _all(_LLAMA, _fixed(hidden_act="relu2"))),),
    "hunyuan-dense": (Row("HunYuanDenseV1ForCausalLM", "hunyuan_v1_dense", _all(_rms, _biases)),),
}


def find_row(source: Source) -> Row:
    """Return the row of a file.

    Parameters
    ----------
    source : Source

    Returns
    -------
    Row

    Raises
    ------
    tinyllm.UnsupportedError
        If the table has no row for the architecture.
    """
    name = source.config.architecture
    for row in ROWS.get(name, ()):
        if row.when is None or row.when(source):
            return row
    raise UnsupportedError(
        f"the architecture {name} cannot be exported: the table has no Hugging Face config for it; "
        f"this version exports {', '.join(ROWS)}"
    )
