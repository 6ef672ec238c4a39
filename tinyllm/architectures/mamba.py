"""Builders of Mamba's state space models, and of mixers that choose between them and attention."""

from __future__ import annotations

from ..errors import wrong
from .builder import Builder
from .mixers import attention
from .plan import Number
from .recurrent import convolution

__all__ = ["attention_and_mamba2", "mamba", "mamba2", "mamba2_or_attention", "mamba_or_attention"]


def mamba_or_attention(b: Builder, x: str) -> str:
    """Build attention where the file states kv heads, else Mamba-1."""
    return (attention if b.of_layer(b.config.kv_heads) else mamba)(b, x)


def mamba2_or_attention(b: Builder, x: str) -> str:
    """Build attention where the file states kv heads, else Mamba-2."""
    return (attention if b.of_layer(b.config.kv_heads) else mamba2)(b, x)


def attention_and_mamba2(b: Builder, x: str) -> str:
    """Build the sum of attention and Mamba-2 of the same values. (T, D) -> (T, D).

    Zuo et al. 2025, "Falcon-H1" (arXiv:2507.22448).
    """
    return b.add("attn_ssm", mamba2(b, x), attention(b, x))


def _number(b: Builder, name: str, key: str) -> Number:
    return b.number(name, b.keys.integer(key), key)


def mamba(b: Builder, x: str) -> str:
    """Build Mamba-1. (T, D) -> (T, D).

    Gu and Dao 2023, "Mamba" (arXiv:2312.00752), section 3.4. Some models have norms of dt, B and C:
    with weights (Jamba), or without if the key ``ssm.dt_b_c_rms`` is true.
    """
    inner = _number(b, "size", "ssm.inner_size")
    states, rank = b.keys.integer("ssm.state_size"), b.keys.integer("ssm.time_step_rank")
    n = int(inner.value)
    both = b.linear("ssm_in", x, Number("size", 2 * n, "rule: values and gate"))
    values, gate = b.cut("ssm_values", both, 0, 0, n), b.cut("ssm_gate", both, 0, n, n)
    conv = convolution(b, "ssm_conv1d", values, "ssm.conv_kernel")
    values = b.unary("ssm_conv1d_act", "silu", conv)
    made = b.linear("ssm_x", values, Number("size", rank + 2 * states, "rule: dt, B and C"))
    dt, inputs, outputs = (
        _normed(b, name, b.cut(f"ssm_{name}_raw", made, 0, first, size))
        for name, first, size in (
            ("dt", 0, rank),
            ("b", rank, states),
            ("c", rank + states, states),
        )
    )
    dt = b.softplus("ssm_dt_softplus", b.linear("ssm_dt", dt, inner))
    mix = b.add_step(
        "scan_channels",
        "ssm_mix",
        (values, dt, inputs, outputs),
        weights=(b.tensor("ssm_a"), b.tensor("ssm_d")),
        shape=(n,),
    )
    mix = b.act("ssm_gated", gate, mix, role="", function="silu")
    return b.linear("ssm_out", mix, b.width)


def _normed(b: Builder, name: str, x: str) -> str:
    """Add the norm of dt, B or C, if there is one."""
    if b.has(f"ssm_{name}_norm"):
        return b.norm(f"ssm_{name}_norm", x)
    if not b.keys.flag("ssm.dt_b_c_rms", False):
        return x
    key = "ssm.dt_b_c_rms_epsilon"
    epsilon = b.key("epsilon", key, b.config.norm_epsilon, "rule: as other norms")
    return b.norm(f"ssm_{name}_norm", x, weights=False, epsilon=epsilon)


def mamba2(b: Builder, x: str) -> str:
    """Build Mamba-2. (T, D) -> (T, D).

    Dao and Gu 2024, "Transformers are SSMs" (arXiv:2405.21060), section 7. The gate comes before
    the norm, which works in groups.
    """
    inner, heads, groups, states = (
        b.keys.integer(f"ssm.{name}")
        for name in ("inner_size", "time_step_rank", "group_count", "state_size")
    )
    if inner % heads or inner % groups or heads % groups:
        raise wrong(
            f"{b.keys.prefix}ssm.inner_size",
            f"{inner}, with {heads} heads and {groups} groups",
            "a multiple of both, and as many heads in each group",
        )
    both = groups * states
    rule = "rule: gate, values, B, C and dt"
    parts = b.linear("ssm_in", x, Number("size", 2 * (inner + both) + heads, rule))
    gate = b.cut("ssm_gate", parts, 0, 0, inner)
    conv = b.cut("ssm_xbc", parts, 0, inner, inner + 2 * both)
    dt = b.cut("ssm_dt", parts, 0, 2 * (inner + both), heads)
    conv = convolution(b, "ssm_conv1d", conv, "ssm.conv_kernel")
    conv = b.unary("ssm_conv1d_act", "silu", conv)
    values, inputs, outputs = (
        b.heads(
            f"ssm_{name}",
            b.cut(f"ssm_{name}_flat", conv, 0, first, n * size),
            n,
            size,
            named=name == "values",
        )
        for name, first, n, size in (
            ("values", 0, heads, inner // heads),
            ("b", inner, groups, states),
            ("c", inner + both, groups, states),
        )
    )
    bias = b.tensor("ssm_dt.bias")
    decay = b.add_step(
        "decay", "ssm_decay", (dt,), weights=(b.tensor("ssm_a"), bias), shape=b.shape(dt)
    )
    mix = b.add_step(
        "scan",
        "ssm_mix",
        (values, b.softplus("ssm_dt_softplus", dt, bias), inputs, outputs, decay),
        weights=(b.tensor("ssm_d"),),
        shape=(heads, inner // heads),
        heads=True,
    )
    mix = b.act("ssm_gated", gate, b.heads("ssm_flat", mix, 0, inner), role="", function="silu")
    if b.has("ssm_norm"):
        mix = b.norm("ssm_norm", b.heads("ssm_groups", mix, groups, inner // groups), covers=2)
    return b.linear("ssm_out", mix, b.width)
