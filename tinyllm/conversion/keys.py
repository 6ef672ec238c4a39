"""GGUF keys, and the tensors of RoPE factors, from the config of a checkpoint.

Keys are returned without the prefix ``<architecture>.``. Names and defaults are those of llama.cpp
(conversion/base.py). Where that converter loses what Hugging Face computes, a key that llama.cpp
also reads says it: ``attention.scale``, ``attention.sliding_window``, ``rope.scaling.attn_factor``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from ..base.numeric import Float32
from ..errors import UnsupportedError, wrong
from .config import CheckpointConfig, Rope

__all__ = [
    "SHARED_COUNTS",
    "SIGMOID",
    "SOFTMAX",
    "attention_scale",
    "common_keys",
    "dense_first",
    "every_window",
    "experts",
    "rope_factors",
    "rope_sections",
    "routed",
    "uniform",
    "window",
]

Keys = dict[str, Any]

_CONTEXT = ("max_position_embeddings", "n_positions", "n_ctx", "max_sequence_length", "max_seq_len")
_FFN = ("intermediate_size", "ffn_hidden_size", "n_inner", "ffn_dim")


def common_keys(config: CheckpointConfig, rope: bool = True) -> Keys:
    """Return the keys that every architecture has.

    Parameters
    ----------
    config : CheckpointConfig
    rope : bool
        Whether the architecture rotates queries and keys.

    Returns
    -------
    dict of str to object

    Examples
    --------
    >>> from tinyllm.conversion.config import CheckpointConfig
    >>> from tinyllm.conversion.keys import common_keys
    >>> config = CheckpointConfig(
    ...     {"n_layer": 1, "n_positions": 16, "n_embd": 8, "n_head": 2, "vocab_size": 10}
    ... )
    >>> common_keys(config, rope=False)["attention.key_length"]
    4
    """
    keys: Keys = {
        "block_count": config.layers,
        "context_length": config.integer(*_CONTEXT),
        "embedding_length": config.width,
        "attention.head_count": config.heads,
        "attention.head_count_kv": config.kv_heads,
        "attention.key_length": config.head_size,
        "attention.value_length": config.head_size,
        "vocab_size": config.integer("vocab_size"),
    }
    width = config.get(*_FFN)
    if isinstance(width, list):
        keys["feed_forward_length"] = np.array(width, np.int32)
    elif width is not None:
        keys["feed_forward_length"] = config.integer(*_FFN)
    if config.get("rms_norm_eps", "norm_eps") is not None:
        keys["attention.layer_norm_rms_epsilon"] = config.number("rms_norm_eps", "norm_eps")
    names = ("layer_norm_eps", "layer_norm_epsilon", "norm_epsilon")
    if config.get(*names) is not None:
        keys["attention.layer_norm_epsilon"] = config.number(*names)
    return {**keys, **(_rope_keys(config) if rope else {})}


# ---- RoPE ----


def _rope_keys(config: CheckpointConfig) -> Keys:
    rope = config.rope()
    keys: Keys = {
        "rope.dimension_count": int(config.head_size * rope.rotated),
        "rope.freq_base": rope.base,
    }
    stored = config.get("rope_parameters", "rope_scaling", default={})
    if "sliding_attention" in stored or config.rope("sliding_attention").base != rope.base:
        keys["rope.freq_base_swa"] = config.rope("sliding_attention").base
    if rope.type == "linear":
        keys["rope.scaling.type"] = "linear"
        keys["rope.scaling.factor"] = _number(rope, "factor")
    elif rope.type == "yarn":
        keys.update(_yarn_keys(config, rope))
    elif rope.type in ("longrope", "su"):
        keys["rope.scaling.type"] = "longrope"
        keys["rope.scaling.original_context_length"] = original_context(config, rope)
        keys["rope.scaling.attn_factor"] = _longrope_attention_factor(config, rope)
    elif rope.type not in ("default", "llama3", "dynamic", "proportional", "mrope"):
        # dynamic changes nothing within the trained context; llama3 and proportional have factors
        raise UnsupportedError(f"the RoPE type of the checkpoint is {rope.type!r}")
    return keys


def _number(rope: Rope, name: str, default: float | None = None) -> float:
    value = rope.get(name)
    value = default if value is None else value
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise wrong(f"{name} of rope_parameters", value, "a number")
    return float(value)


def original_context(config: CheckpointConfig, rope: Rope) -> int:
    """Return the context length before RoPE was scaled."""
    name = "original_max_position_embeddings"
    return int(_number(rope, name, config.integer(name, *_CONTEXT)))


def _yarn_keys(config: CheckpointConfig, rope: Rope) -> Keys:
    factor = _number(rope, "factor")
    keys: Keys = {
        "rope.scaling.type": "yarn",
        "rope.scaling.factor": factor,
        "rope.scaling.original_context_length": original_context(config, rope),
    }
    names = {
        "extrapolation_factor": "yarn_ext_factor",
        "attention_factor": "yarn_attn_factor",
        "beta_fast": "yarn_beta_fast",
        "beta_slow": "yarn_beta_slow",
    }
    for theirs, ours in names.items():
        if rope.get(theirs) is not None:
            keys[f"rope.scaling.{ours}"] = _number(rope, theirs)
    return keys


def yarn_magnitude(factor: float, multiplier: float = 1.0) -> float:
    """Return the factor of queries and keys that YaRN derives from its scaling factor."""
    return 1.0 if factor <= 1 else 0.1 * multiplier * math.log(factor) + 1.0


def yarn_attention_factor(rope: Rope) -> float:
    """Return the factor of cosines and sines, as transformers computes it."""
    factor = _number(rope, "factor")
    if rope.get("attention_factor") is not None:
        return _number(rope, "attention_factor")
    if rope.get("mscale") and rope.get("mscale_all_dim"):
        top = yarn_magnitude(factor, _number(rope, "mscale"))
        return top / yarn_magnitude(factor, _number(rope, "mscale_all_dim"))
    return yarn_magnitude(factor)


def yarn_attn_factor(config: CheckpointConfig, computed: float | None = None) -> Keys:
    """Return ``rope.scaling.attn_factor`` where YaRN's own factor is another than the checkpoint's.

    Parameters
    ----------
    config : CheckpointConfig
    computed : float, optional
        The factor that llama.cpp computes without the key. Default: ``1 + 0.1 ln(factor)``.
    """
    rope = config.rope()
    if rope.type != "yarn":
        return {}
    if computed is None:
        computed = yarn_magnitude(_number(rope, "factor"))
    ratio = yarn_attention_factor(rope) / computed
    return {} if abs(ratio - 1) < 1e-6 else {"rope.scaling.attn_factor": ratio}


def _longrope_attention_factor(config: CheckpointConfig, rope: Rope) -> float:
    if rope.get("attention_factor") is not None:
        return _number(rope, "attention_factor")
    original = original_context(config, rope)
    scale = config.integer(*_CONTEXT) / original
    if rope.get("short_mscale") is not None:  # Phi-3.5-MoE
        return _number(rope, "short_mscale")
    return math.sqrt(1 + math.log(scale) / math.log(original)) if scale > 1 else 1.0


def rope_factors(config: CheckpointConfig) -> dict[str, Float32]:
    """Return the tensors that hold factors of RoPE's frequencies: divisors, in GGUF.

    Parameters
    ----------
    config : CheckpointConfig

    Returns
    -------
    dict of str to numpy.ndarray
        ``rope_freqs.weight`` for Llama 3.1's scaling, ``rope_factors_long.weight`` and
        ``rope_factors_short.weight`` for longrope, ``rope_freqs.weight`` with very large
        divisors for the part that Gemma 4 does not rotate, else empty.
    """
    rope = config.rope()
    size = int(config.head_size * rope.rotated)
    if rope.type == "proportional":
        whole = config.integer("global_head_dim", default=config.head_size) // 2
        rotated = int(whole * rope.rotated)
        factors = np.full(whole, 1e30, np.float32)  # such frequencies turn nothing
        factors[:rotated] = 1
        return {"rope_freqs.weight": factors}
    if rope.type == "llama3":
        return {"rope_freqs.weight": _llama3_factors(rope, size)}
    if rope.type not in ("longrope", "su"):
        return {}
    found = {}
    for kind in ("long", "short"):
        values = rope.get(f"{kind}_factor")
        if not isinstance(values, list) or len(values) != size // 2:
            expected = f"a list of {size // 2} numbers"
            raise wrong(f"{kind}_factor of rope_parameters", values, expected)
        found[f"rope_factors_{kind}.weight"] = np.array(values, np.float32)
    return found


def _llama3_factors(rope: Rope, size: int) -> Float32:
    """Return Llama 3.1's divisors (github.com/meta-llama/llama-models, apply_scaling).

    Frequencies that turn more than high_freq_factor times in the original context stay, those that
    turn less than low_freq_factor times are divided by the factor; between them it is interpolated.
    """
    factor = _number(rope, "factor", 8.0)
    low, high = _number(rope, "low_freq_factor", 1.0), _number(rope, "high_freq_factor", 4.0)
    context = _number(rope, "original_max_position_embeddings", 8192)
    frequency = rope.base ** (-np.arange(0, size, 2) / size)
    turns = context * frequency / (2 * np.pi)
    smooth = np.clip((turns - low) / (high - low), 0, 1)
    return (1 / ((1 - smooth) / factor + smooth)).astype(np.float32)


def rope_sections(config: CheckpointConfig) -> Keys:
    """Return the sections of multimodal RoPE: frequencies of time, height and width, and 0."""
    sections = config.rope().get("mrope_section")
    if not isinstance(sections, list) or not all(type(n) is int for n in sections):
        raise wrong("mrope_section of rope_parameters", sections, "a list of integers")
    return {"rope.dimension_sections": np.array([*sections, 0, 0, 0, 0][:4], np.int32)}


# ---- attention ----


def window(period: int = 0, first_global: bool = False) -> Any:
    """Return a function that gives the keys of a sliding window.

    Parameters
    ----------
    period : int
        llama.cpp's pattern of the architecture: every layer of this period is global, the others
        have the window. 0: it has none, and the pattern is written where layers differ.
    first_global : bool
        Whether the global layer is the first of each period instead of the last.
    """

    def keys(config: CheckpointConfig) -> Keys:
        size = config.get("sliding_window")
        if not size or config.get("use_sliding_window", default=True) is False:
            return {}
        local = [kind == "sliding_attention" for kind in config.layer_types]
        if local and not any(local):
            return {}
        found: Keys = {"attention.sliding_window": config.integer("sliding_window")}
        at = 0 if first_global else period - 1
        usual = [period == 0 or i % period != at for i in range(config.layers)]
        if local and local != usual:
            found["attention.sliding_window_pattern"] = local
        return found

    return keys


def every_window(config: CheckpointConfig) -> Keys:
    """Return the keys of a sliding window, always with the pattern of the layers."""
    if not config.get("sliding_window"):
        return {}
    local = [kind == "sliding_attention" for kind in config.layer_types]
    pattern = {"attention.sliding_window_pattern": local} if local else {}
    return {"attention.sliding_window": config.integer("sliding_window"), **pattern}


def attention_scale(config: CheckpointConfig) -> Keys:
    """Return the factor of scores of the gemma family, ``query_pre_attn_scalar ** -0.5``."""
    scalar = config.number("query_pre_attn_scalar", default=config.head_size)
    if not scalar > 0:
        raise wrong("query_pre_attn_scalar of config.json", scalar, "a positive number")
    return {"attention.scale": scalar**-0.5}


# ---- experts ----

_EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
_USED = ("num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_k", "top_k_experts")


def experts(usual_norm: bool | None = None) -> Callable[[CheckpointConfig], Keys]:
    """Return a function that gives the keys of experts.

    Parameters
    ----------
    usual_norm : bool, optional
        Whether llama.cpp divides the weights of the chosen experts by their sum in this
        architecture. The key is written where the checkpoint does the opposite.

    Returns
    -------
    callable
    """

    def keys(config: CheckpointConfig) -> Keys:
        if not config.get(*_EXPERTS):
            return {}
        found: Keys = {
            "expert_count": config.integer(*_EXPERTS),
            "expert_used_count": config.integer(*_USED),
        }
        sizes = {
            "expert_feed_forward_length": "moe_intermediate_size",
            "expert_shared_feed_forward_length": "shared_expert_intermediate_size",
        }
        for ours, theirs in sizes.items():
            if config.get(theirs) is not None:
                found[ours] = config.integer(theirs)
        norm = config.get("norm_topk_prob")
        if usual_norm is not None and norm is not None and bool(norm) != usual_norm:
            found["expert_weights_norm"] = bool(norm)
        return found

    return keys


#: llama.cpp's numbers of the functions that turn a router's outputs into scores.
SOFTMAX, SIGMOID = 1, 2

#: Names of the number of shared experts.
SHARED_COUNTS = (
    "n_shared_experts",
    "num_shared_experts",
    "moe_num_shared_experts",
    "num_shared_expert",
)
_SCALES = (
    "routed_scaling_factor",
    "route_scale",
    "router_scaling_factor",
    "moe_routed_scaling_factor",
)
_DENSE_FIRST = ("first_k_dense_replace", "num_dense_layers", "moe_layer_start_index")


def uniform(config: CheckpointConfig, *names: str, default: int | None = None) -> int:
    """Return an integer, or the one that a list with one per layer repeats."""
    value = config.get(*names)
    if isinstance(value, list) and value and all(item == value[0] for item in value):
        return CheckpointConfig({names[0]: value[0]}).integer(names[0])
    return config.integer(*names, default=default)


def dense_first(config: CheckpointConfig) -> int:
    """Return the number of layers before the first one with experts."""
    kinds = config.get("mlp_layer_types")
    if isinstance(kinds, list) and config.get(*_DENSE_FIRST) is None:
        return next((i for i, kind in enumerate(kinds) if kind != "dense"), len(kinds))
    return config.integer(*_DENSE_FIRST, default=0)


def routed(gating: int, norm: bool | None = None) -> Callable[[CheckpointConfig], Keys]:
    """Return a function that gives the keys of experts of DeepSeek's kind.

    Parameters
    ----------
    gating : int
        `SOFTMAX` or `SIGMOID`. The config's own word replaces it.
    norm : bool, optional
        Whether the weights of the chosen experts are divided by their sum, if the config leaves it
        out. None: the key is written where the config says it.

    Returns
    -------
    callable
    """

    def keys(config: CheckpointConfig) -> Keys:
        if not config.get(*_EXPERTS):
            return {}
        word = config.get("scoring_func", "score_function", "moe_router_activation_func")
        found: Keys = {
            "expert_count": uniform(config, *_EXPERTS),
            "expert_used_count": uniform(config, *_USED),
            "expert_gating_func": {"softmax": SOFTMAX, "sigmoid": SIGMOID}.get(word, gating),
            "leading_dense_block_count": dense_first(config),
        }
        if config.get("moe_intermediate_size") is not None:
            found["expert_feed_forward_length"] = uniform(config, "moe_intermediate_size")
        if config.get(*SHARED_COUNTS) is not None:
            found["expert_shared_count"] = uniform(config, *SHARED_COUNTS)
        if config.get(*_SCALES) is not None:
            found["expert_weights_scale"] = config.number(*_SCALES)
        told = config.get("norm_topk_prob", "route_norm", default=norm)
        if told is not None:
            found["expert_weights_norm"] = bool(told)
        for ours, theirs in (("count", "n_group"), ("used_count", "topk_group")):
            if config.get(theirs) is not None:
                found[f"expert_group_{ours}"] = config.integer(theirs)
        return found

    return keys
