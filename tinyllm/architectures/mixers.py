"""Builders of token mixers such as attention, the first branch of a block."""

from __future__ import annotations

from .builder import Builder
from .plan import Number

__all__ = [
    "attention",
    "attention_or_matrix",
    "gated_attention",
    "output_gated_attention",
    "projections",
]


def attention(b: Builder, x: str) -> str:
    """Build grouped-query attention with RoPE. (T, D) -> (T, D).

    Attention: Vaswani et al. 2017 (arXiv:1706.03762). Grouped queries: Ainslie et al. 2023
    (arXiv:2305.13245). RoPE: Su et al. 2021 (arXiv:2104.09864). Norms of queries and keys: Dehghani
    et al. 2023 (arXiv:2302.05442).
    """
    return _attend(b, *projections(b, x))


def attention_or_matrix(b: Builder, x: str) -> str:
    """Build attention, or a product with ``attn_output`` where the file states 0 kv heads."""
    if b.of_layer(b.config.kv_heads):
        return attention(b, x)
    return b.linear("attn_output", x, b.width)


def gated_attention(b: Builder, x: str) -> str:
    """Build attention whose result has a gate. (T, D) -> (T, D).

    The rows of ``attn_q`` hold the query and then the gate of each head. The result of a head is
    multiplied by the gate's sigmoid (Qiu et al. 2025, arXiv:2505.06708).
    """
    both, k, v = projections(b, x, gated=True)
    size = int(b.head_sizes()[0].value)
    q = b.cut("attn_query", both, 1, 0, size, "queries")
    return _attend(b, q, k, v, b.cut("attn_gate", both, 1, size, size))


def output_gated_attention(b: Builder, x: str) -> str:
    """Build attention whose result has a gate of its own matrix, ``attn_gate``. (T, D) -> (T, D).

    The gate has a value for each value of the result, or for each head of it.
    """
    q, k, v = projections(b, x)
    heads, value_size = b.shape(q)[0], b.shape(v)[1]
    size, count = Number("size", value_size, "rule: as values"), Number("heads", heads, "rule")
    if b.rows(b.tensor("attn_gate"), heads) == heads:
        gate = b.linear("attn_gate", x, count._replace(name="size"))
    else:
        gate = b.linear("attn_gate", x, size, count)
    return _attend(b, q, k, v, gate)


def _attend(b: Builder, q: str, k: str, v: str, gate: str = "") -> str:
    rotate = b.arch.rope != "none" and b.arch.rotated(b)
    if not b.arch.late_qk_norm:
        q, k = b.head_norm("attn_q_norm", q), b.head_norm("attn_k_norm", k)
    if rotate:
        q, k = b.rope("attn_q_rope", q), b.rope("attn_k_rope", k)
    if b.arch.late_qk_norm and (rotate or b.arch.qk_norm != "plain"):
        q, k = b.head_norm("attn_q_norm", q), b.head_norm("attn_k_norm", k)
    if not (rotate and any(b.arch.temperature)):
        q = b.temper("attn_q_temper", q)
    factor = b.key("parameter", "attention.value_scale", 1.0)
    if factor.value not in (0.0, 1.0):
        v = b.unary("attn_v_scaled", "scale", v, factor)
    b.cache(k, v)
    mix = b.attend(q, k, v)
    if gate:
        mix = b.gate_by("attn_gated", b.arch.gate, gate, mix)
    if b.has("attn_sub_norm"):
        mix = b.norm("attn_sub_norm", mix, kind="row")
    part = None
    if b.optional("attn_output.weight") is None and b.optional("attn_o.weight"):
        part = ("attn_o", 0, 0)
    return b.linear("attn_output", mix, b.width, role="attn_project", part=part)


def projections(b: Builder, x: str, gated: bool = False) -> tuple[str, str, str]:
    """Build queries (T, H, Dh), keys (T, K, Dh) and values (T, K, Dv) from one input.

    With `gated`, each head of the queries is followed by its gate, (T, H, 2 Dh).

    The file has a matrix for each, or ``attn_qkv`` with the rows of all three. The key
    ``attention.clamp_kqv`` bounds their values.
    """
    c = b.config
    heads = b.number("heads", b.of_layer(c.heads), "attention.head_count")
    kv_heads = b.number(
        "heads", b.of_layer(c.kv_heads), "attention.head_count_kv", "rule: as queries"
    )
    size, value_size = b.head_sizes()
    query = (heads, size, "queries")
    if gated:
        query = (heads, Number("size", 2 * size.value, "rule: query and gate"), "")
    shapes = (query, (kv_heads, size, "keys"), (kv_heads, value_size, "values"))
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
