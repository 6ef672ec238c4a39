"""Builders of multi-head latent attention (MLA): keys and values of all heads from few values."""

from __future__ import annotations

import math

from ..errors import UnsupportedError, wrong
from .builder import Builder
from .plan import Number

__all__ = ["latent_attention", "latent_attention_of_few", "latent_scale"]


def latent_attention(b: Builder, x: str) -> str:
    """Build multi-head latent attention. (T, D) -> (T, D).

    DeepSeek-AI 2024, "DeepSeek-V2" (arXiv:2405.04434), section 2.1. A head of the queries has a
    part without RoPE and one with it. All heads share the rotated part of the keys. The other part
    and the values are products of ``kv_lora_rank`` values of each token.

    A file with ``attn_k_b`` and ``attn_v_b`` has these products apart: then attention is over the
    few values, which are the only kv head. ``attn_k_b`` moves the queries there, and ``attn_v_b``
    moves the results back. A file with ``attn_kv_b`` has them in one matrix, which expands the keys
    and values of every head.
    """
    key, value = _head_sizes(b)
    rank = b.number("size", b.keys.integer("attention.kv_lora_rank"), "attention.kv_lora_rank")
    rotated, n = b.config.rope_dimension, int(rank.value)
    plain = int(key.value) - rotated
    if plain < 1:
        raise wrong(f"{b.keys.prefix}rope.dimension_count", rotated, f"less than {int(key.value)}")
    heads = b.number("heads", b.of_layer(b.config.heads), "attention.head_count")
    q = _queries(b, x, heads, key)
    q_plain = b.cut("attn_q_nope", q, 1, 0, plain)
    q_rope = b.rope("attn_q_rope", b.cut("attn_q_pe", q, 1, plain, rotated))
    kv = b.linear("attn_kv_a_mqa", x, Number("size", n + rotated, "rule: rank and RoPE"))
    few = _norm(b, "attn_kv_a_norm", b.cut("attn_kv_a", kv, 0, 0, n), "values")
    k_rope = b.heads("attn_k_pe", b.cut("attn_kv_pe", kv, 0, n, rotated), 1, rotated)
    k_rope = b.rope("attn_k_rope", k_rope)
    absorbed = b.optional("attn_k_b.weight") is not None
    if absorbed:
        values = b.heads("attn_kv", few, 1, n)
        q_plain, k_plain = b.head_linear("attn_k_b", q_plain, rank), values
    else:
        size = Number("size", plain + value.value, "rule: keys and values")
        both = b.linear("attn_kv_b", few, size, heads)
        k_plain = b.cut("attn_k_nope", both, 1, 0, plain)
        values = b.cut("attn_v", both, 1, plain, int(value.value))
    queries = b.temper("attn_q_temper", b.concat("attn_queries", q_plain, q_rope))
    keys = b.concat("attn_keys", k_plain, k_rope)
    b.cache(keys, values)
    mix = b.attend(queries, keys, values)
    if absorbed:
        mix = b.head_linear("attn_v_b", mix, value)
    return b.linear("attn_output", mix, b.width, role="attn_project")


def latent_attention_of_few(b: Builder, x: str) -> str:
    """Build latent attention to the keys that an indexer chooses. (T, D) -> (T, D).

    DeepSeek-AI 2025, "DeepSeek-V3.2". In a context of at most as many tokens as it chooses, these
    are all keys. Longer contexts are refused.
    """
    key = "attention.indexer.top_k"
    most = b.keys.integer(key)
    if b.max_context > most:
        raise UnsupportedError(
            f"{b.keys.prefix}{key} is {most}, and the model is loaded for a context of "
            f"{b.max_context} tokens; this version has no indexer, which chooses {most} of them. "
            f"Load it with max_context={most} or less"
        )
    return latent_attention(b, x)


def latent_scale(b: Builder) -> float:
    """Return the factor of scores: 1 / sqrt(key size), times the square of YaRN's magnitude."""
    scale = 1 / math.sqrt(_head_sizes(b)[0].value)
    multiplier = b.keys.number("rope.scaling.yarn_log_multiplier", 0.0)  # times 0.1 in the file
    scaling = b.config.rope_scaling or {}
    if scaling.get("type") == "yarn" and multiplier:
        scale *= float((1 + multiplier * math.log(scaling["factor"])) ** 2)
    return scale


def _head_sizes(b: Builder) -> tuple[Number, Number]:
    """Return the sizes of a head of keys and of values, as they are before they are absorbed."""
    made = []
    for name, default in (("key", b.config.head_size), ("value", b.config.value_size)):
        key = f"attention.{name}_length"
        size = b.keys.integer(f"{key}_mla", default)
        made.append(b.number("size", size, f"{key}_mla", f"{b.keys.prefix}{key}"))
    return made[0], made[1]


def _norm(b: Builder, tap: str, x: str, role: str = "") -> str:
    """Add a norm inside of attention, whose epsilon is not that of other norms."""
    return b.norm(tap, x, role, epsilon=Number("epsilon", 1e-6, "row"))


def _queries(b: Builder, x: str, heads: Number, size: Number) -> str:
    """Build the queries, from x or from few values of it."""
    key = "attention.q_lora_rank"
    rank = b.keys.integer(key, 0, least=0)
    if not rank or b.optional("attn_q.weight"):
        return b.linear("attn_q", x, size, heads, "queries")
    few = b.linear("attn_q_a", x, b.number("size", rank, key))
    return b.linear("attn_q_b", _norm(b, "attn_q_a_norm", few), size, heads, "queries")
