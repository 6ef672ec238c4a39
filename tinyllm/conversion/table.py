"""What the checkpoints of each architecture need: one row each.

The rows say what llama.cpp's converter does (github.com/ggml-org/llama.cpp, conversion/): the keys
beyond the common ones, the names of tensors, and which of them change their layout.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from ..errors import UnsupportedError
from .config import CheckpointConfig
from .keys import attention_scale, rope_sections, window, yarn_attn_factor
from .layouts import Change, heads, kv_heads, permuted, plus_one, transposed, ungrouped

__all__ = ["FAMILIES", "Family", "To"]

Keys = dict[str, Any]


class To(NamedTuple):
    """A GGUF tensor that is made from a tensor of the checkpoint.

    Attributes
    ----------
    name : str
        The name in GGUF, without ``blk.N.`` and, if the tensor has one, without its suffix.
    change : Change or None
        How the layout changes.
    """

    name: str
    change: Change | None = None


Target = str | To | tuple[To, ...]


@dataclasses.dataclass(frozen=True)
class Family:
    """How the checkpoints of one GGUF architecture are converted.

    Attributes
    ----------
    classes : tuple of str
        Names of the Hugging Face classes.
    names : mapping of str to str, To or tuple of To
        From names in the checkpoint to names in GGUF. Names are without the prefix of the model
        and of the block. A name without ``weight`` or ``bias`` stands for both. ``*`` stands for
        a number, such as that of an expert: these tensors are stacked into one. A tuple makes
        several tensors of one.
    keys : tuple of callable
        Each gives keys from the config. They replace the common ones; None removes a key.
    rope : bool
        Whether queries and keys are rotated.
    defaults : mapping of str to object
        Values for keys that published configs leave out.
    skipped : tuple of str
        Names of tensors that are left out, as in `names`.
    when : callable or None
        If several architectures have the same class: whether a config belongs to this one.
    """

    classes: tuple[str, ...]
    names: Mapping[str, Target]
    keys: tuple[Callable[[CheckpointConfig], Keys], ...] = ()
    rope: bool = True
    defaults: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    skipped: tuple[str, ...] = ()
    when: Callable[[CheckpointConfig], bool] | None = None


# ---- names ----

#: The names of a Llama, which most architectures share.
LLAMA_NAMES: dict[str, Target] = {
    "embed_tokens": "token_embd",
    "norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}

#: Queries and keys whose rows are reordered.
PERMUTED: dict[str, Target] = {
    "self_attn.q_proj": To("attn_q", permuted(heads)),
    "self_attn.k_proj": To("attn_k", permuted(kv_heads)),
}

#: Norms after the branches.
POST_NORMS: dict[str, Target] = {
    "post_attention_layernorm": "post_attention_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}

#: Norms before and after the branches.
SANDWICH: dict[str, Target] = {**POST_NORMS, "pre_feedforward_layernorm": "ffn_norm"}


def shifted(names: Mapping[str, Target]) -> dict[str, Target]:
    """Return names whose norms get 1 added: their weights are stored minus 1."""
    return {
        name: To(target, plus_one) if isinstance(target, str) and "norm" in target else target
        for name, target in names.items()
    }


# ---- keys ----


def fixed(**keys: Any) -> Callable[[CheckpointConfig], Keys]:
    """Return a function that gives always these keys. ``__`` stands for a dot."""
    return lambda config: {name.replace("__", "."): value for name, value in keys.items()}


def copied(**names: str) -> Callable[[CheckpointConfig], Keys]:
    """Return a function that copies numbers from the config. ``__`` stands for a dot."""

    def keys(config: CheckpointConfig) -> Keys:
        pairs = ((ours, config.get(theirs)) for ours, theirs in names.items())
        return {
            ours.replace("__", "."): float(config.number(names[ours]))
            for ours, value in pairs
            if value is not None
        }

    return keys


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


def _deepstack_keys(config: CheckpointConfig) -> Keys:
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
    classes=("LlamaForCausalLM", "LLaMAForCausalLM", "LlamaModel", "MistralForCausalLM"),
    names={**LLAMA_NAMES, **PERMUTED},
    keys=(window(), yarn_attn_factor),
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

COMMAND_R = Family(
    classes=("CohereForCausalLM",),
    names=LLAMA_NAMES,
    keys=(copied(logit_scale="logit_scale"), fixed(rope__scaling__type="none")),
    defaults={"tie_word_embeddings": True},
)

#: The rows, by ``general.architecture``.
FAMILIES: dict[str, Family] = {
    "llama": LLAMA,
    "mistral3": dataclasses.replace(
        LLAMA,
        classes=("Ministral3ForCausalLM", "Mistral3ForConditionalGeneration"),
        keys=(window(), _mistral3_keys),
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
        keys=(*QWEN2.keys, rope_sections, _deepstack_keys),
    ),
    "gemma": GEMMA,
    "gemma2": GEMMA2,
    "gemma3": dataclasses.replace(
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
    ),
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
        keys=(_falcon_keys,),
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
