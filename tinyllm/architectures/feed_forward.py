"""Builders of feed-forward networks, the second branch of a block."""

from __future__ import annotations

import math

from ..errors import UnsupportedError
from .builder import Builder
from .plan import Number

__all__ = ["fused", "gated", "gated_half", "gated_of", "gated_or_plain", "plain", "xielu"]

#: Activations by their names in Hugging Face.
_ACTIVATIONS = {"gelu": "gelu", "gelu_pytorch_tanh": "gelu_tanh", "silu": "silu"}


def _width(b: Builder) -> Number:
    return b.number("size", b.of_layer(b.config.ffn_width), "feed_forward_length")


def _down(b: Builder, hidden: str) -> str:
    return b.linear("ffn_down", hidden, b.width)


def gated(b: Builder, x: str) -> str:
    """Build down(f(gate(x)) * up(x)), where f is the activation. (T, D) -> (T, D).

    Shazeer 2020, "GLU Variants Improve Transformer" (arXiv:2002.05202), equation 6.
    """
    return gated_of(b, x, _width(b))


def gated_half(b: Builder, x: str) -> str:
    """Build `gated` with half of the width that the file states."""
    width = _width(b)
    return gated_of(b, x, width._replace(value=width.value // 2))


def gated_of(b: Builder, x: str, width: Number) -> str:
    """Build `gated` with another width."""
    gate, up = b.linear("ffn_gate", x, width), b.linear("ffn_up", x, width)
    hidden = b.clamped_act("ffn_act", gate, up, "swiglu_clamp_shexp", "ffn_hidden")
    if b.has("ffn_sub_norm"):
        hidden = b.norm("ffn_sub_norm", hidden)
    return _down(b, hidden)


def fused(b: Builder, x: str) -> str:
    """Build the same as `gated` from one matrix ``ffn_up`` with the rows of the gate first.

    The key ``hidden_activation`` may name the activation.
    """
    named = b.keys.text("hidden_activation", "")
    if named and named not in _ACTIVATIONS:
        expected = ", ".join(_ACTIVATIONS)
        raise UnsupportedError(
            f"{b.keys.prefix}hidden_activation is {named!r}; this version supports {expected}"
        )
    function = _ACTIVATIONS[named] if named else ""
    width = _width(b)
    if b.optional("ffn_gate.weight"):
        return gated(b, x)
    size = int(width.value)
    gate = b.linear("ffn_gate", x, width, part=("ffn_up", 0, 2 * size))
    up = b.linear("ffn_up", x, width, part=("ffn_up", size, 2 * size))
    return _down(b, b.act("ffn_act", gate, up, function=function))


def plain(b: Builder, x: str) -> str:
    """Build down(f(up(x))), where f is the activation. (T, D) -> (T, D)."""
    up = b.linear("ffn_up", x, _width(b))
    hidden = b.unary("ffn_act", b.arch.act, up, role="ffn_hidden")
    return _down(b, hidden)


def gated_or_plain(b: Builder, x: str) -> str:
    """Build a gated network with GELU if the file has a gate, else a plain one with ReLU.

    Raffel et al. 2019, "T5" (arXiv:1910.10683), and its version 1.1.
    """
    width = _width(b)
    up = b.linear("ffn_up", x, width)
    if b.optional("ffn_gate.weight"):
        gate = b.linear("ffn_gate", x, width)
        return _down(b, b.act("ffn_act", gate, up, function="gelu_tanh"))
    return _down(b, b.unary("ffn_act", "relu", up, role="ffn_hidden"))


def xielu(b: Builder, x: str) -> str:
    """Build down(xIELU(up(x))), with the numbers of xIELU for each block. (T, D) -> (T, D).

    Huang and Schlag 2024 (arXiv:2411.13010). The file has the slopes before their softplus.
    """
    blocks = b.keys.integer("block_count")
    stored = {
        name: b.keys.numbers(f"xielu.{name}", blocks)[b.layer]
        for name in ("alpha_p", "alpha_n", "beta", "eps")
    }

    def softplus(value: float) -> float:
        return max(value, 0.0) + math.log1p(math.exp(-abs(value)))

    up = b.linear("ffn_up", x, _width(b))
    hidden = b.add_step(
        "xielu",
        "ffn_act",
        (up,),
        numbers=(
            b.number("alpha_positive", softplus(stored["alpha_p"]), "xielu.alpha_p"),
            b.number(
                "alpha_negative", stored["beta"] + softplus(stored["alpha_n"]), "xielu.alpha_n"
            ),
            b.number("beta", stored["beta"], "xielu.beta"),
            b.number("epsilon", stored["eps"], "xielu.eps"),
        ),
        shape=b.shape(up),
        role="ffn_hidden",
    )
    return _down(b, hidden)
