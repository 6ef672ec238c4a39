"""Builders of token mixers with a state: short convolutions and gated delta nets."""

from __future__ import annotations

import math

from ..errors import wrong
from .builder import Builder
from .mixers import attention, gated_attention
from .plan import Number

__all__ = [
    "conv_or_attention",
    "convolution",
    "delta_net",
    "delta_or_attention",
    "short_convolution",
]


def conv_or_attention(b: Builder, x: str) -> str:
    """Build attention where the file states kv heads, else a short convolution."""
    return (attention if b.of_layer(b.config.kv_heads) else short_convolution)(b, x)


def short_convolution(b: Builder, x: str) -> str:
    """Build the gated short convolution of LFM2. (T, D) -> (T, D).

    A projection gives b, c and x. The convolution runs over the last tokens of b * x, and c is
    the gate of its result (Amini et al. 2025, arXiv:2511.23404).
    """
    n = b.config.width
    parts = b.linear("shortconv.in_proj", x, Number("size", 3 * n, "rule: 3 times the width"))
    first, last, x = (
        b.cut(f"shortconv.{name}", parts, 0, i * n, n) for i, name in enumerate("bcx")
    )
    x = b.act("shortconv.bx", first, x, role="", function="identity")
    y = convolution(b, "shortconv.conv", x, "shortconv.l_cache")
    y = b.act("shortconv.gated", last, y, role="", function="identity")
    return b.linear("shortconv.out_proj", y, b.number("size", n, "embedding_length"))


def delta_or_attention(b: Builder, x: str) -> str:
    """Build gated attention in every ``full_attention_interval``-th block, else a delta net.

    The key ``attention.recurrent_layers`` may say instead which blocks have a delta net.
    """
    key, blocks = "attention.recurrent_layers", b.keys.integer("block_count")
    interval = b.keys.integer("full_attention_interval", 4)
    usual = tuple((i + 1) % interval != 0 for i in range(blocks))
    recurrent = b.keys.flags(key, blocks, usual)[b.layer]
    return (delta_net if recurrent else gated_attention)(b, x)


def delta_net(b: Builder, x: str) -> str:
    """Build a gated delta net. (T, D) -> (T, D).

    Yang et al. 2024, "Gated Delta Networks" (arXiv:2412.06464), as in Qwen3-Next. Its value heads
    are a multiple of its key heads: consecutive ones share a key head, or those with the same
    remainder (`Arch.tiled`).
    """
    size, heads, key_heads = (
        b.number(name, b.keys.integer(key), key)
        for name, key in (
            ("size", "ssm.state_size"),
            ("heads", "ssm.time_step_rank"),
            ("heads", "ssm.group_count"),
        )
    )
    k, v, n = int(key_heads.value), int(heads.value), int(size.value)
    if v % k:
        raise wrong(f"{b.keys.prefix}ssm.time_step_rank", v, f"a multiple of the {k} key heads")
    inner = b.keys.integer("ssm.inner_size")
    if inner != v * n:
        raise wrong(
            f"{b.keys.prefix}ssm.inner_size", inner, f"{v} heads of {n} values, which are {v * n}"
        )
    qkv = b.linear("attn_qkv", x, size, Number("heads", 2 * k + v, "rule: of q, k and v"))
    y = b.unary("ssm_conv1d_act", "silu", convolution(b, "ssm_conv1d", qkv, "ssm.conv_kernel"))
    queries = b.norm("ssm_q_norm", b.cut("ssm_q", y, 0, 0, k), kind="unit", weights=False)
    keys = b.norm("ssm_k_norm", b.cut("ssm_k", y, 0, k, k), kind="unit", weights=False)
    values = b.cut("ssm_v", y, 0, 2 * k, v)
    gate = b.linear("attn_gate", x, size, heads)
    alpha, beta = _alpha_and_beta(b, x, heads, key_heads)
    decay = b.add_step(
        "decay",
        "ssm_decay",
        (alpha,),
        weights=(b.tensor("ssm_a"), b.tensor("ssm_dt.bias")),
        shape=b.shape(alpha),
    )
    mix = b.add_step(
        "delta",
        "ssm_mix",
        (queries, keys, values, decay, b.unary("ssm_beta_sigmoid", "sigmoid", beta)),
        numbers=(
            Number("tiled", b.arch.tiled, "row"),
            Number("factor", 1 / math.sqrt(n), "rule: 1/sqrt(head size)"),
        ),
        shape=(v, n),
        heads=True,
    )
    y = b.act("ssm_gated", gate, b.norm("ssm_norm", mix), role="", function="silu")
    return b.linear("ssm_out", y, b.width)


def _alpha_and_beta(b: Builder, x: str, heads: Number, key_heads: Number) -> tuple[str, str]:
    """Add what the decay and the step size of each value head are made from.

    A file has a matrix for each, or ``ssm_ba``, where those of a key head's value heads follow
    each other, beta first.
    """
    if not b.optional("ssm_ba.weight"):
        size = heads._replace(name="size")
        return b.linear("ssm_alpha", x, size), b.linear("ssm_beta", x, size)
    n = int(heads.value // key_heads.value)
    both = b.linear("ssm_ba", x, Number("size", 2 * n, "rule: beta and alpha"), key_heads)
    return b.cut("ssm_alpha", both, 1, n, n), b.cut("ssm_beta", both, 1, 0, n)


def convolution(b: Builder, tap: str, x: str, key: str) -> str:
    """Add the convolution of each channel over the last tokens."""
    return b.add_step(
        "conv",
        tap,
        (x,),
        weights=(b.tensor(f"{tap}.weight"), b.optional(f"{tap}.bias")),
        numbers=(b.number("taps", b.keys.integer(key), key),),
        shape=b.shape(x),
        heads=b.step(x).heads,
    )
