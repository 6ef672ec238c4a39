"""Builders of token mixers such as attention, the first branch of a block."""

from __future__ import annotations

from .builder import Builder

__all__ = ["attention"]


def attention(b: Builder, x: str) -> str:
    """Build grouped-query attention with RoPE. (T, D) -> (T, D).

    Attention: Vaswani et al. 2017 (arXiv:1706.03762). Grouped queries: Ainslie et al. 2023
    (arXiv:2305.13245). RoPE: Su et al. 2021 (arXiv:2104.09864). Norms of queries and keys: Dehghani
    et al. 2023 (arXiv:2302.05442).
    """
    q, k, v = projections(b, x)
    q, k = b.head_norm("attn_q_norm", q), b.head_norm("attn_k_norm", k)
    if b.arch.rope != "none" and b.arch.rotated(b):
        q, k = b.rope("attn_q_rope", q), b.rope("attn_k_rope", k)
    q = b.temper("attn_q_temper", q)
    b.cache(k, v)
    mix = b.attend(q, k, v)
    width = b.number("size", b.config.width, "embedding_length")
    return b.linear("attn_output", mix, width, role="attn_project")


def projections(b: Builder, x: str) -> tuple[str, str, str]:
    """Build queries (T, H, Dh), keys (T, K, Dh) and values (T, K, Dv) from one input.

    The file has a matrix for each, or ``attn_qkv`` with the rows of all three. The key
    ``attention.clamp_kqv`` bounds their values.
    """
    c = b.config
    heads = b.number("heads", b.of_layer(c.heads), "attention.head_count")
    kv_heads = b.number(
        "heads", b.of_layer(c.kv_heads), "attention.head_count_kv", "rule: as queries"
    )
    size = b.number("size", c.head_size, "attention.key_length", "rule: width / heads")
    value_size = b.number("size", c.value_size, "attention.value_length", "rule: as keys")
    shapes = ((heads, size, "queries"), (kv_heads, size, "keys"), (kv_heads, value_size, "values"))
    rows = [int(h.value * s.value) for h, s, _ in shapes]
    clamp = b.key("parameter", "attention.clamp_kqv", 0.0)
    made = []
    for i, (tap, (h, s, role)) in enumerate(
        zip(("attn_q", "attn_k", "attn_v"), shapes, strict=True)
    ):
        part = None
        if b.optional("attn_qkv.weight"):
            part = ("attn_qkv", sum(rows[:i]), sum(rows))
        y = b.linear(tap, x, s, h, role, part)
        made.append(b.unary(f"{tap}_clamp", "clamp", y, clamp) if clamp.value else y)
    return made[0], made[1], made[2]
