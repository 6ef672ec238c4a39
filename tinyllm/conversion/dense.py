"""Decoders whose blocks are attention and a dense feed-forward network."""

from __future__ import annotations

import dataclasses

import numpy as np

from ..errors import UnsupportedError, wrong
from .config import CheckpointConfig
from .family import (
    LLAMA_NAMES,
    MIXTRAL_EXPERTS,
    PERMUTED,
    POST_NORMS,
    SANDWICH,
    Family,
    Keys,
    LayerTensors,
    Target,
    To,
    copied,
    fixed,
    shifted,
)
from .keys import attention_scale, experts, rope_sections, window, yarn_attn_factor
from .layouts import heads, rows, transposed, ungrouped

__all__ = [
    "COMMAND_R",
    "DENSE",
    "GEMMA3",
    "GPT2_NAMES",
    "GRANITE_DENSE",
    "LLAMA",
    "PHI3",
    "QWEN2",
    "deepstack_keys",
    "granite_mamba",
    "granite_scales",
    "hunyuan_base",
]


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


#: The names of GPT-2.
GPT2_NAMES: dict[str, str] = {
    "wte": "token_embd",
    "wpe": "position_embd",
    "ln_f": "output_norm",
    "lm_head": "output",
    "ln_1": "attn_norm",
    "attn.c_attn": "attn_qkv",
    "attn.c_proj": "attn_output",
    "ln_2": "ffn_norm",
    "mlp.c_fc": "ffn_up",
    "mlp.c_proj": "ffn_down",
}

#: Matrices that GPT-2 has as (in, out).
_CONV1D = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")


def _starcoder_keys(config: CheckpointConfig) -> Keys:
    if not config.get("multi_query", default=True):
        raise UnsupportedError(
            "multi_query of config.json is false; GGUF's starcoder has one kv head"
        )
    return {"attention.head_count_kv": 1}


def _bloom_keys(config: CheckpointConfig) -> Keys:
    return {
        "context_length": config.integer("seq_length", default=2048),
        "feed_forward_length": 4 * config.width,
        "attention.head_count_kv": config.heads,
    }


def _mpt_keys(config: CheckpointConfig) -> Keys:
    inner = config.get("attn_config", default={})
    attention = CheckpointConfig(inner if isinstance(inner, dict) else {})
    keys: Keys = {
        "feed_forward_length": config.integer("expansion_ratio", default=4) * config.width,
        "attention.head_count_kv": attention.integer("kv_n_heads", default=config.heads),
        "attention.layer_norm_epsilon": config.number("layer_norm_epsilon", default=1e-5),
        "attention.max_alibi_bias": 0.0,
    }
    if attention.get("clip_qkv") is not None:
        keys["attention.clamp_kqv"] = attention.number("clip_qkv")
    if attention.get("alibi"):
        keys["attention.max_alibi_bias"] = attention.number("alibi_bias_max", default=8)
    return keys


def hunyuan_base(config: CheckpointConfig) -> Keys:
    """Return the base of RoPE with the factor alpha in it (NTK)."""
    rope = config.rope()
    if rope.type != "dynamic" or not rope.get("alpha"):
        return {}
    size = config.head_size
    base = rope.base * float(rope["alpha"]) ** (size / (size - 2))
    return {"rope.freq_base": base, "rope.scaling.type": "none"}


def _nemotron_keys(config: CheckpointConfig) -> Keys:
    return {
        "attention.layer_norm_epsilon": config.number("norm_eps", "layer_norm_eps"),
        "attention.layer_norm_rms_epsilon": None,
    }


def _xielu_keys(config: CheckpointConfig, tensors: LayerTensors) -> Keys:
    """Return the numbers of the activation xIELU, one per layer, which are tensors there."""
    keys: Keys = {}
    for name in ("alpha_n", "alpha_p", "beta", "eps"):
        stored = [tensors.get((i, f"mlp.act_fn.{name}")) for i in range(config.layers)]
        values = [float(array.read().reshape(-1)[0]) for array in stored if array is not None]
        if len(values) != config.layers:
            raise wrong(f"mlp.act_fn.{name}", f"there {len(values)} times", "once per layer")
        keys[f"xielu.{name}"] = np.array(values, np.float32)
    return keys


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


def granite_mamba(config: CheckpointConfig) -> bool:
    """Whether a hybrid Granite has layers of Mamba. Without them it is a plain Granite."""
    return "mamba" in config.layer_types


def _granite_width(config: CheckpointConfig) -> Keys:
    width = config.get("shared_intermediate_size")
    return {"feed_forward_length": width} if width else {}


#: The feed-forward network of a hybrid Granite without experts.
GRANITE_DENSE: dict[str, Target] = {
    "shared_mlp.input_linear": (To("ffn_gate", rows(0, 2)), To("ffn_up", rows(1, 2))),
    "shared_mlp.output_linear": "ffn_down",
}

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

PHI3 = Family(
    classes=("Phi3ForCausalLM", "Phi4ForCausalLMV"),
    names={
        **LLAMA_NAMES,
        "self_attn.qkv_proj": "attn_qkv",
        "mlp.gate_up_proj": "ffn_up",
    },
    keys=(_phi3_keys,),
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
        when=lambda config: config.get("model_type") != "mistral4",
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
    "phi3": PHI3,
    "granite": dataclasses.replace(
        LLAMA,
        classes=("GraniteForCausalLM", "GraniteMoeHybridForCausalLM"),
        names={**LLAMA.names, **GRANITE_DENSE},
        keys=(yarn_attn_factor, granite_scales, _granite_width),
        when=lambda config: not granite_mamba(config) and not config.get("num_local_experts"),
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
            name: To(target, transposed) if name in _CONV1D else target
            for name, target in GPT2_NAMES.items()
        },
        keys=(_four_widths,),
        rope=False,
        defaults={"tie_word_embeddings": True},
        skipped=("attn.bias", "attn.masked_bias"),  # the causal mask
    ),
    "starcoder": Family(
        classes=("GPTBigCodeForCausalLM",),
        names=GPT2_NAMES,
        keys=(_four_widths, _starcoder_keys),
        rope=False,
        defaults={"tie_word_embeddings": True},
        skipped=("attn.bias", "attn.masked_bias"),
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
    "chatglm": Family(
        classes=("GlmForCausalLM",),
        names={**LLAMA_NAMES, "mlp.gate_up_proj": "ffn_up"},
        defaults={"partial_rotary_factor": 0.5},
    ),
    "glm4": Family(
        classes=("Glm4ForCausalLM",),
        names={
            **LLAMA_NAMES,
            "mlp.gate_up_proj": "ffn_up",
            "post_self_attn_layernorm": "post_attention_norm",
            "post_mlp_layernorm": "post_ffw_norm",
        },
        defaults={"partial_rotary_factor": 0.5},
    ),
    "exaone4": Family(
        classes=("Exaone4ForCausalLM",),
        names={**LLAMA_NAMES, **POST_NORMS},
        keys=(window(), yarn_attn_factor),
    ),
    "seed_oss": Family(
        classes=("SeedOssForCausalLM",),
        names={**LLAMA_NAMES, "post_attention_layernorm": "post_attention_norm"},
        keys=(yarn_attn_factor,),
    ),
    "ernie4_5": Family(classes=("Ernie4_5ForCausalLM", "Ernie4_5_ForCausalLM"), names=LLAMA_NAMES),
    "hunyuan-dense": Family(
        classes=("HunYuanDenseV1ForCausalLM",),
        names={
            **LLAMA_NAMES,
            "self_attn.query_layernorm": "attn_q_norm",
            "self_attn.key_layernorm": "attn_k_norm",
        },
        keys=(hunyuan_base,),
    ),
    "apertus": Family(
        classes=("ApertusForCausalLM",),
        names={
            **LLAMA_NAMES,
            "attention_layernorm": "attn_norm",
            "feedforward_layernorm": "ffn_norm",
        },
        tensor_keys=_xielu_keys,
        skipped=("mlp.act_fn.",),
    ),
    "arcee": dataclasses.replace(LLAMA, classes=("ArceeForCausalLM",), keys=(yarn_attn_factor,)),
    "nemotron": Family(
        classes=("NemotronForCausalLM",),
        names=shifted(LLAMA_NAMES),
        keys=(_nemotron_keys,),
        defaults={"partial_rotary_factor": 0.5},
    ),
    "bloom": Family(
        classes=("BloomForCausalLM", "BloomModel"),
        names={
            "word_embeddings": "token_embd",
            "word_embeddings_layernorm": "token_embd_norm",
            "ln_f": "output_norm",
            "lm_head": "output",
            "input_layernorm": "attn_norm",
            "self_attention.query_key_value": To("attn_qkv", ungrouped(heads)),
            "self_attention.dense": "attn_output",
            "post_attention_layernorm": "ffn_norm",
            "mlp.dense_h_to_4h": "ffn_up",
            "mlp.dense_4h_to_h": "ffn_down",
        },
        keys=(_bloom_keys,),
        rope=False,
        defaults={"tie_word_embeddings": True, "max_position_embeddings": 2048},
    ),
    "mpt": Family(
        classes=("MptForCausalLM", "MPTForCausalLM"),
        names={
            "wte": "token_embd",
            "wpe": "position_embd",
            "norm_f": "output_norm",
            "lm_head": "output",
            "norm_1": "attn_norm",
            "attn.Wqkv": "attn_qkv",
            "attn.q_ln": "attn_q_norm",
            "attn.k_ln": "attn_k_norm",
            "attn.out_proj": "attn_output",
            "norm_2": "ffn_norm",
            "ffn.up_proj": "ffn_up",
            "ffn.down_proj": "ffn_down",
        },
        keys=(_mpt_keys,),
        rope=False,
        defaults={"tie_word_embeddings": True},
    ),
    "jais2": Family(classes=("Jais2ForCausalLM",), names=LLAMA_NAMES),
    "bitnet": Family(
        classes=("BitNetForCausalLM", "BitnetForCausalLM"),
        names={
            **LLAMA_NAMES,
            "self_attn.attn_sub_norm": "attn_sub_norm",
            "mlp.ffn_sub_norm": "ffn_sub_norm",
        },
        keys=(fixed(rope__scaling__type="linear", rope__scaling__factor=1.0),),
        defaults={"tie_word_embeddings": True},
    ),
}
