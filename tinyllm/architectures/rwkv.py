"""Builders of RWKV-7: time mixing, with a state for each head, and channel mixing.

Peng et al. 2025, "RWKV-7 Goose" (arXiv:2503.14456), section 4.
"""

from __future__ import annotations

from ..errors import wrong
from .builder import Builder
from .plan import Number

__all__ = ["channel_mix", "time_mix"]

#: Each channel of a state keeps exp(-0.606531 sigmoid(w)); the number is exp(-1/2), as the authors
#: round it.
_DECAY = Number("factor", -0.606531, "row")

#: The epsilon of the norm of each head, 64e-5, whatever the size of a head.
_HEAD_EPSILON = Number("epsilon", 64e-5, "row")


def time_mix(b: Builder, x: str) -> str:
    """Build the time mixing of RWKV-7. (T, D) -> (T, D).

    A head has a state of (N, N) values. Each token makes it decay by channels, takes out a part of
    what lies under one key, and adds a value under another key.
    """
    key, width = "wkv.head_size", b.width
    size = b.number("size", b.keys.integer(key), key)
    d, n = int(width.value), int(size.value)
    if d % n:
        raise wrong(f"{b.keys.prefix}{key}", n, f"a divisor of the width, {d}")
    names = "rwkvag"[: 6 if b.has("time_mix_g1") else 5]
    shifted = _shift(b, "time_mix_lerp_fused", x, len(names))
    part = {name: b.cut(f"time_mix_x{name}", shifted, 0, i, 1) for i, name in enumerate(names)}
    r = b.linear("time_mix_receptance", part["r"], width)
    k = b.linear("time_mix_key", part["k"], width)
    v = b.linear("time_mix_value", part["v"], width)
    w = _low_rank(b, "w", part["w"], "decay", "tanh")
    decay = b.exp("time_mix_decay", b.unary("time_mix_w", "sigmoid", w), _DECAY)
    rate = b.unary("time_mix_a", "sigmoid", _low_rank(b, "a", part["a"], "iclr"))
    if b.layer > 0:
        v = _with_first_values(b, v, part["v"])
    removed = b.weighted("time_mix_k_k", k, "time_mix_k_k", each=True)
    k = _replaced_keys(b, k, rate)
    heads = {
        name: b.heads(f"time_mix_{name}_heads", value, d // n, n, named=True)
        for name, value in zip(
            ("r", "w", "k", "v", "kk", "a"), (r, decay, k, v, removed, rate), strict=True
        )
    }
    heads["kk"] = b.norm(
        "time_mix_kk",
        heads["kk"],
        kind="unit",
        weights=False,
        epsilon=Number("epsilon", 1e-24, "row"),
    )
    mix = b.add_step("wkv", "wkv", tuple(heads.values()), shape=(d // n, n), heads=True)
    if b.has("time_mix_ln"):
        mix = b.norm("time_mix_ln", mix, kind="layer", covers=2, epsilon=_HEAD_EPSILON)
    mix = b.add("time_mix_out", mix, _bonus(b, r, k, heads["v"]))
    mix = b.heads("time_mix_flat", mix, 0, d)
    if b.has("time_mix_g1"):
        gate = _low_rank(b, "g", part["g"], "gate", "sigmoid")
        mix = b.act("time_mix_gated", gate, mix, role="", function="identity")
    return b.linear("time_mix_output", mix, width)


def _shift(b: Builder, tap: str, x: str, parts: int = 0) -> str:
    """Add mixtures of each token with the one before it. (T, D) -> (T, parts, D), or (T, D)."""
    return b.add_step(
        "shift",
        tap,
        (x,),
        weights=(b.tensor(f"{tap}.weight"),),
        numbers=(Number("parts", parts, "rule: one for each projection"),),
        shape=(parts, *b.shape(x)) if parts else b.shape(x),
    )


def _low_rank(b: Builder, name: str, x: str, rank: str, function: str = "") -> str:
    """Add W2 f(W1 x), plus the bias W0 where the part has one. (T, D) -> (T, D)."""
    key = f"attention.{rank}_lora_rank"
    tap = f"time_mix_{name}"
    inner = b.linear(f"{tap}1", x, b.number("size", b.keys.integer(key), key))
    if function == "tanh":
        inner = b.unary(f"{tap}1_tanh", "soft_cap", inner, Number("parameter", 1, "row: tanh"))
    elif function:
        inner = b.unary(f"{tap}1_{function}", function, inner)
    return b.linear(f"{tap}2", inner, b.width, bias="" if name == "g" else f"{tap}0.weight")


def _difference(b: Builder, tap: str, x: str, y: str) -> str:
    """Add x - y."""
    return b.add(tap, x, b.scaled(f"{tap}_negative", y, -1, "rule: a difference"))


def _with_first_values(b: Builder, v: str, x: str) -> str:
    """Add the mixture of the values with those of the first block. (T, D) -> (T, D)."""
    gate = _low_rank(b, "v", x, "value_residual_mix")
    change = _difference(b, "time_mix_v_difference", "blk.0.time_mix_value", v)
    change = b.act("time_mix_v_residual", gate, change, role="", function="sigmoid")
    return b.add("time_mix_v", v, change)


def _replaced_keys(b: Builder, k: str, rate: str) -> str:
    """Add the keys under which values are added, k (1 + (rate - 1) k_a). (T, D) -> (T, D)."""
    part = b.weighted("time_mix_k_a", k, "time_mix_k_a", each=True)
    kept = b.act("time_mix_k_rate", rate, part, role="", function="identity")
    return b.add("time_mix_k", k, _difference(b, "time_mix_k_change", kept, part))


def _bonus(b: Builder, r: str, k: str, v: str) -> str:
    """Add the values times the sum of r k r_k over each head, (T, D), (T, D), (T, H, N)."""
    heads, n = b.shape(v)
    product = b.act("time_mix_rk", r, k, role="", function="identity")
    product = b.weighted("time_mix_r_k", product, "time_mix_r_k", each=True)
    product = b.heads("time_mix_r_k_heads", product, heads, n, named=True)
    mean = b.add_step("norm_mean", "time_mix_r_k_mean", (product,), shape=(heads,), heads=True)
    total = b.scaled("time_mix_r_k_sum", mean, n, "rule: size of a head")
    return b.act("time_mix_bonus", total, v, role="", function="identity")


def channel_mix(b: Builder, x: str) -> str:
    """Build value(relu(key(mixture of x and the token before))^2). (T, D) -> (T, D)."""
    size = b.number("size", b.of_layer(b.config.ffn_width), "feed_forward_length")
    hidden = b.linear("channel_mix_key", _shift(b, "channel_mix_lerp_k", x), size)
    hidden = b.unary("channel_mix_act", "relu2", hidden, role="ffn_hidden")
    return b.linear("channel_mix_value", hidden, b.width)
