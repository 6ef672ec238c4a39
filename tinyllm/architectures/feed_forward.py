"""Builders of feed-forward networks, the second branch of a block."""

from __future__ import annotations

from .builder import Builder

__all__ = ["gated"]


def gated(b: Builder, x: str) -> str:
    """Build down(silu(gate(x)) * up(x)). (T, D) -> (T, D).

    Shazeer 2020, "GLU Variants Improve Transformer" (arXiv:2002.05202), equation 6.
    """
    c = b.config
    width = b.number("size", b.of_layer(c.ffn_width), "feed_forward_length")
    gate, up = b.linear("ffn_gate", x, width), b.linear("ffn_up", x, width)
    hidden = b.act("ffn_act", gate, up)
    return b.linear("ffn_down", hidden, b.number("size", c.width, "embedding_length"))
