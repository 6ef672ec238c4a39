"""Builders of token mixers such as attention, the first branch of a block."""

from __future__ import annotations

from .builder import Builder

__all__ = ["attention"]


def attention(b: Builder, x: str) -> str:
    """Build causal grouped-query attention with RoPE. (T, D) -> (T, D).

    Attention: Vaswani et al. 2017 (arXiv:1706.03762). Grouped queries: Ainslie et al. 2023
    (arXiv:2305.13245). RoPE: Su et al. 2021 (arXiv:2104.09864).
    """
    c = b.config
    heads = b.number("heads", b.of_layer(c.heads), "attention.head_count")
    kv_heads = b.number(
        "heads", b.of_layer(c.kv_heads), "attention.head_count_kv", "rule: as queries"
    )
    size = b.number("size", c.head_size, "attention.key_length", "rule: width / heads")
    value_size = b.number("size", c.value_size, "attention.value_length", "rule: as keys")
    q = b.linear("attn_q", x, size, heads, "queries")
    k = b.linear("attn_k", x, size, kv_heads, "keys")
    v = b.linear("attn_v", x, value_size, kv_heads, "values")
    q, k = b.rope("attn_q_rope", q), b.rope("attn_k_rope", k)
    b.cache(k, v)
    mix = b.attend(q, k, v)
    width = b.number("size", c.width, "embedding_length")
    return b.linear("attn_output", mix, width, role="attn_project")
