"""Builders of feed-forward networks, the second branch of a block."""

from __future__ import annotations

from .builder import Builder
from .plan import Number

__all__ = ["fused", "gated", "plain"]


def _width(b: Builder) -> Number:
    return b.number("size", b.of_layer(b.config.ffn_width), "feed_forward_length")


def _down(b: Builder, hidden: str) -> str:
    return b.linear("ffn_down", hidden, b.width)


def gated(b: Builder, x: str) -> str:
    """Build down(f(gate(x)) * up(x)), where f is the activation. (T, D) -> (T, D).

    Shazeer 2020, "GLU Variants Improve Transformer" (arXiv:2002.05202), equation 6.
    """
    width = _width(b)
    gate, up = b.linear("ffn_gate", x, width), b.linear("ffn_up", x, width)
    return _down(b, b.act("ffn_act", gate, up))


def fused(b: Builder, x: str) -> str:
    """Build the same as `gated` from one matrix ``ffn_up`` with the rows of the gate first."""
    width = _width(b)
    if b.optional("ffn_gate.weight"):
        return gated(b, x)
    size = int(width.value)
    gate = b.linear("ffn_gate", x, width, part=("ffn_up", 0, 2 * size))
    up = b.linear("ffn_up", x, width, part=("ffn_up", size, 2 * size))
    return _down(b, b.act("ffn_act", gate, up))


def plain(b: Builder, x: str) -> str:
    """Build down(f(up(x))), where f is the activation. (T, D) -> (T, D)."""
    up = b.linear("ffn_up", x, _width(b))
    hidden = b.unary("ffn_act", b.arch.act, up, role="ffn_hidden")
    return _down(b, hidden)
