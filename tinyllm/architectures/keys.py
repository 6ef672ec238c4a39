"""Checks of the metadata keys that the config does not use but that could change results."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Mapping
from typing import Any

import numpy as np

from ..errors import UnsupportedError, printable

__all__ = ["check_keys"]

#: Keys under ``<architecture>.`` that do not change results, or whose effect other keys decide.
_DESCRIPTIVE = frozenset(
    """
    vocab_size tensor_data_layout embedding_length_out rope.scaling.finetuned
    attention.layer_norm_epsilon attention.layer_norm_rms_epsilon
    attention.key_length_swa attention.value_length_swa rope.dimension_count_swa
    rope.freq_base_swa rope.scale_linear rope.scaling.factor rope.scaling.type
    rope.scaling.original_context_length rope.scaling.attn_factor
    rope.scaling.yarn_attn_factor rope.scaling.yarn_beta_fast rope.scaling.yarn_beta_slow
    rope.scaling.yarn_ext_factor n_deepstack_layers pooling_type classifier.output_labels
    dense_2_feat_in dense_2_feat_out dense_3_feat_in dense_3_feat_out attention.indexer.types
    attention.indexer.head_count attention.indexer.key_length decoder_start_token_id
    token_shift_count
    """.split()
)


def _numbers(value: Any) -> np.ndarray[Any, Any]:
    """Return the numbers of a value; NaN, which equals nothing, if it is not made of numbers."""
    try:
        return np.asarray(value, np.float64)
    except (TypeError, ValueError):
        return np.array(np.nan)


def _zero(value: Any, context: int) -> bool:
    return bool(np.all(_numbers(value) == 0))


def _one(value: Any, context: int) -> bool:
    return bool(np.all(_numbers(value) == 1))


def _unset_or_one(value: Any, context: int) -> bool:
    return _zero(value, context) or _one(value, context)


def _at_least_context(value: Any, context: int) -> bool:
    return _zero(value, context) or bool(np.all(_numbers(value) >= context))


#: Keys that change results, each with a test for values that change nothing. A row that ends with
#: a dot is a prefix of keys. The names are those of llama.cpp, src/llama-arch.cpp.
_CHANGING: dict[str, Callable[[Any, int], bool]] = {
    "attention.causal": _one,
    "attention.clamp_kqv": _zero,
    "attention.max_alibi_bias": _zero,
    "attention.output_scale": _unset_or_one,
    "attention.value_scale": _unset_or_one,
    "attention.sliding_window": _at_least_context,
    "attention.temperature_length": _zero,
    "attention.temperature_scale": _zero,
    "attention.q_lora_rank": _zero,
    "attention.kv_lora_rank": _zero,
    "attention.shared_kv_layers": _zero,
    "attn_logit_softcapping": _zero,
    "final_logit_softcapping": _zero,
    "router_logit_softcapping": _zero,
    "embedding_scale": _unset_or_one,
    "residual_scale": _unset_or_one,
    "logit_scale": _unset_or_one,
    "activation_sparsity_scale": _zero,
    "use_parallel_residual": _zero,
    "swin_norm": _zero,
    "num_loops": _unset_or_one,
    "expert_count": _zero,
    "expert_used_count": _zero,
    "expert_shared_count": _zero,
    "interleave_moe_layer_step": _zero,
    "leading_dense_block_count": _zero,
    "nextn_predict_layers": _zero,
    "rope.scaling.yarn_log_multiplier": _zero,
    "rope.dimension_sections": _zero,
    "ssm.": _zero,
    "wkv.": _zero,
    "altup.": _zero,
}


def check_keys(
    metadata: Mapping[str, Any], architecture: str, used: Collection[str], context: int
) -> None:
    """Check that the keys that were not read do not change the results.

    Parameters
    ----------
    metadata : mapping
        GGUF keys and values.
    architecture : str
        Only keys that begin with ``<architecture>.`` are checked.
    used : collection of str
        The keys that were read, without ``<architecture>.``.
    context : int
        The longest context of the model.

    Raises
    ------
    tinyllm.UnsupportedError
        If the value of a key changes the results.

    Warns
    -----
    UserWarning
        If a key is unknown, so that it may change the results.

    Examples
    --------
    >>> from tinyllm.architectures.keys import check_keys
    >>> check_keys({"llama.logit_scale": 1.0}, "llama", (), 512)
    """
    prefix = f"{architecture}."
    unknown = []
    for key, value in metadata.items():
        name = key.removeprefix(prefix)
        if name == key or name in used or name in _DESCRIPTIVE:
            continue
        group = next((row for row in _CHANGING if row.endswith(".") and name.startswith(row)), name)
        unchanged = _CHANGING.get(group)
        if unchanged is None:
            unknown.append(key)
        elif not unchanged(value, context):
            raise UnsupportedError(
                f"{key} is {value!r:.80}, which changes what the model computes; this version "
                f"does not support it in the architecture {architecture}"
            )
    if unknown:
        warnings.warn(
            "the file has keys that this version does not know: "
            + printable(", ".join(unknown[:5]))
            + (f" and {len(unknown) - 5} more" if len(unknown) > 5 else "")
            + "; the results may be wrong",
            stacklevel=5,  # who called tl.load
        )
