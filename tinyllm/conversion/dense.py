"""Decoders whose blocks are attention and a dense feed-forward network."""

from __future__ import annotations

import dataclasses

from ..errors import UnsupportedError
from .config import CheckpointConfig
from .family import (
    LLAMA_NAMES,
    MIXTRAL_EXPERTS,
    PERMUTED,
    POST_NORMS,
    SANDWICH,
    Family,
    Keys,
    To,
    copied,
    fixed,
    shifted,
)
from .keys import attention_scale, experts, rope_sections, window, yarn_attn_factor
from .layouts import heads, transposed, ungrouped

__all__ = ["DENSE", "GEMMA3", "LLAMA", "QWEN2", "deepstack_keys", "granite_scales"]


def _mistral3_keys(config: CheckpointConfig) -> Keys:
    rope = config.rope()
    if rope.type != "yarn":
        return {}
    keys: Keys = {}
    if rope.get("mscale_all_dim"):
        keys["rope.scaling.yarn_log_multiplier"] = float(rope["mscale_all_dim"])
    if rope.get("llama_4_scaling_beta"):
        keys["attention.temperature_scale"] = float(rope["llama_4_scaling_beta"])
    return keys


def _gpt_neox_keys(config: CheckpointConfig) -> Keys:
    return {
        "attention.head_count_kv": config.heads,
        "use_parallel_residual": bool(config.get("use_parallel_residual", default=True)),
    }


def _four_widths(config: CheckpointConfig) -> Keys:
    """Return the inner width of classes that leave it out."""
    width = config.integer("n_inner", "ffn_hidden_size", default=4 * config.width)
    return {"feed_forward_length": width}


def _stablelm_keys(config: CheckpointConfig) -> Keys:
    return {"use_parallel_residual": bool(config.get("use_parallel_residual", default=True))}


def _falcon_groups(config: CheckpointConfig) -> int:
    if config.get("new_decoder_architecture", default=False):
        return config.kv_heads
    return 1 if config.get("multi_query", default=True) else config.heads


def _falcon_keys(config: CheckpointConfig) -> Keys:
    if config.get("alibi", default=False) or not config.get("parallel_attn", default=True):
        raise UnsupportedError(
            "the checkpoint is a falcon with ALiBi or with one branch after the other; GGUF's "
            "falcon has RoPE and parallel branches"
        )
    return {"attention.head_count_kv": _falcon_groups(config), "tensor_data_layout": "jploski"}


def _smollm3_keys(config: CheckpointConfig) -> Keys:
    rotated = config.get("no_rope_layers", default=[])
    usual = [int((i + 1) % 4 != 0) for i in range(config.layers)]
    if rotated and [int(bool(flag)) for flag in rotated] != usual:
        raise UnsupportedError(
            f"no_rope_layers of config.json is {rotated!r:.80}; GGUF's smollm3 leaves every 4th "
            "layer without RoPE"
        )
    return {}


def deepstack_keys(config: CheckpointConfig) -> Keys:
    """Return the number of layers that get features of images of their own."""
    vision = config.file.get("vision_config")
    layers = vision.get("deepstack_visual_indexes", []) if isinstance(vision, dict) else []
    return {"n_deepstack_layers": len(layers)}


def _phi3_keys(config: CheckpointConfig) -> Keys:
    original = config.integer("original_max_position_embeddings", default=0)
    original = int(config.rope().get("original_max_position_embeddings") or original)
    window_size = config.get("sliding_window") or 0
    keys: Keys = {"attention.sliding_window": window_size}
    return {**keys, "rope.scaling.original_context_length": original} if original else keys


granite_scales = copied(
    attention__scale="attention_multiplier",
    embedding_scale="embedding_multiplier",
    residual_scale="residual_multiplier",
    logit_scale="logits_scaling",
)

# ---- rows ----

LLAMA = Family(
    classes=(
        "LlamaForCausalLM",
        "LLaMAForCausalLM",
        "LlamaModel",
        "MistralForCausalLM",
        "MixtralForCausalLM",
    ),
    names={**LLAMA_NAMES, **PERMUTED, **MIXTRAL_EXPERTS},
    keys=(window(), yarn_attn_factor, experts()),
)

QWEN2 = Family(
    classes=("Qwen2ForCausalLM", "Qwen2Model"),
    names=LLAMA_NAMES,
    keys=(window(), yarn_attn_factor),
)

GEMMA = Family(
    classes=("GemmaForCausalLM",),
    names=shifted(LLAMA_NAMES),
    defaults={"tie_word_embeddings": True},
)

GEMMA2 = dataclasses.replace(
    GEMMA,
    classes=("Gemma2ForCausalLM",),
    names=shifted({**LLAMA_NAMES, **SANDWICH}),
    keys=(
        window(2),
        attention_scale,
        copied(
            attn_logit_softcapping="attn_logit_softcapping",
            final_logit_softcapping="final_logit_softcapping",
        ),
    ),
)

GEMMA3 = dataclasses.replace(
    GEMMA2,
    classes=("Gemma3ForCausalLM", "Gemma3ForConditionalGeneration"),
    keys=(
        window(6),
        attention_scale,
        copied(final_logit_softcapping="final_logit_softcapping"),
    ),
    defaults={
        "tie_word_embeddings": True,
        "max_position_embeddings": 131072,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "query_pre_attn_scalar": 256,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1e6,
        "rope_local_base_freq": 1e4,
        "sliding_window": 4096,
        "vocab_size": 262208,
    },
)

COMMAND_R = Family(
    classes=("CohereForCausalLM",),
    names=LLAMA_NAMES,
    keys=(copied(logit_scale="logit_scale"), fixed(rope__scaling__type="none")),
    defaults={"tie_word_embeddings": True},
)

#: The rows, by ``general.architecture``.
DENSE: dict[str, Family] = {
    "llama": LLAMA,
    "mistral3": dataclasses.replace(
        LLAMA,
        classes=("Ministral3ForCausalLM", "Mistral3ForConditionalGeneration"),
        keys=(window(), _mistral3_keys, experts()),
    ),
    "qwen2": QWEN2,
    "qwen2vl": dataclasses.replace(
        QWEN2,
        classes=(
            "Qwen2VLForConditionalGeneration",
            "Qwen2VLModel",
            "Qwen2_5_VLForConditionalGeneration",
        ),
        keys=(*QWEN2.keys, rope_sections),
    ),
    "qwen3": dataclasses.replace(QWEN2, classes=("Qwen3ForCausalLM", "Qwen3Model")),
    "qwen3vl": dataclasses.replace(
        QWEN2,
        classes=("Qwen3VLForConditionalGeneration",),
        keys=(*QWEN2.keys, rope_sections, deepstack_keys),
    ),
    "gemma": GEMMA,
    "gemma2": GEMMA2,
    "gemma3": GEMMA3,
    "phi3": Family(
        classes=("Phi3ForCausalLM", "Phi4ForCausalLMV"),
        names={
            **LLAMA_NAMES,
            "self_attn.qkv_proj": "attn_qkv",
            "mlp.gate_up_proj": "ffn_up",
        },
        keys=(_phi3_keys,),
    ),
    "granite": dataclasses.replace(
        LLAMA, classes=("GraniteForCausalLM",), keys=(yarn_attn_factor, granite_scales)
    ),
    "smollm3": dataclasses.replace(
        LLAMA,
        classes=("SmolLM3ForCausalLM",),
        keys=(window(), yarn_attn_factor, _smollm3_keys),
    ),
    "olmo": dataclasses.replace(
        LLAMA,
        classes=("OlmoForCausalLM", "OLMoForCausalLM"),
        keys=(
            fixed(attention__layer_norm_epsilon=1e-5),
            copied(attention__clamp_kqv="clip_qkv"),
        ),
    ),
    "olmo2": Family(
        classes=("Olmo2ForCausalLM", "Olmo3ForCausalLM"),
        names={**LLAMA_NAMES, **POST_NORMS},
        keys=(window(), yarn_attn_factor),
    ),
    "gpt2": Family(
        classes=("GPT2LMHeadModel",),
        names={
            "wte": "token_embd",
            "wpe": "position_embd",
            "ln_f": "output_norm",
            "lm_head": "output",
            "ln_1": "attn_norm",
            "attn.c_attn": To("attn_qkv", transposed),
            "attn.c_proj": To("attn_output", transposed),
            "ln_2": "ffn_norm",
            "mlp.c_fc": To("ffn_up", transposed),
            "mlp.c_proj": To("ffn_down", transposed),
        },
        keys=(_four_widths,),
        rope=False,
        defaults={"tie_word_embeddings": True},
        skipped=("attn.bias", "attn.masked_bias"),  # the causal mask
    ),
    "gptneox": Family(
        classes=("GPTNeoXForCausalLM",),
        names={
            "embed_in": "token_embd",
            "final_layer_norm": "output_norm",
            "embed_out": "output",
            "input_layernorm": "attn_norm",
            "attention.query_key_value": To("attn_qkv", ungrouped(heads)),
            "attention.dense": "attn_output",
            "post_attention_layernorm": "ffn_norm",
            "mlp.dense_h_to_4h": "ffn_up",
            "mlp.dense_4h_to_h": "ffn_down",
        },
        keys=(_gpt_neox_keys,),
        skipped=("attention.bias", "attention.masked_bias"),  # the causal mask
    ),
    "phi2": Family(
        classes=("PhiForCausalLM",),
        names={
            **LLAMA_NAMES,
            "final_layernorm": "output_norm",
            "self_attn.dense": "attn_output",
            "mlp.fc1": "ffn_up",
            "mlp.fc2": "ffn_down",
        },
    ),
    "falcon": Family(
        classes=("FalconForCausalLM", "RWForCausalLM"),
        names={
            "word_embeddings": "token_embd",
            "ln_f": "output_norm",
            "lm_head": "output",
            "input_layernorm": "attn_norm",
            "ln_mlp": "attn_norm",
            "ln_attn": "attn_norm_2",
            "self_attention.query_key_value": To("attn_qkv", ungrouped(_falcon_groups)),
            "self_attention.dense": "attn_output",
            "mlp.dense_h_to_4h": "ffn_up",
            "mlp.dense_4h_to_h": "ffn_down",
        },
        keys=(_four_widths, _falcon_keys),
        defaults={"max_position_embeddings": 2048, "tie_word_embeddings": True},
    ),
    "starcoder2": Family(
        classes=("Starcoder2ForCausalLM",),
        names={**LLAMA_NAMES, "mlp.c_fc": "ffn_up", "mlp.c_proj": "ffn_down"},
        keys=(window(), yarn_attn_factor),
    ),
    "stablelm": Family(
        classes=(
            "StableLmForCausalLM",
            "StableLMEpochForCausalLM",
            "LlavaStableLMEpochForCausalLM",
        ),
        names={
            **LLAMA_NAMES,
            "self_attn.q_layernorm.norms.*": "attn_q_norm",
            "self_attn.k_layernorm.norms.*": "attn_k_norm",
        },
        keys=(_stablelm_keys,),
    ),
    "command-r": COMMAND_R,
    "cohere2": dataclasses.replace(
        COMMAND_R,
        classes=("Cohere2ForCausalLM",),
        keys=(*COMMAND_R.keys, window(4)),
    ),
}
