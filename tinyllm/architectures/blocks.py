"""Builders of blocks, and of the whole model around them."""

from __future__ import annotations

from .builder import Builder

__all__ = ["model", "serial"]


def serial(b: Builder, x: str) -> str:
    """Build y = x + mixer(norm(x)), then y + ffn(norm(y)). (T, D) -> (T, D).

    This is the block of Llama, Touvron et al. 2023 (arXiv:2302.13971).
    """
    x = b.same("resid_pre", x)
    mixed = b.arch.mixer(b, b.norm("attn_norm", x, "attn_input"))
    middle = b.add("resid_mid", x, b.give_role(mixed, "attn_add"))
    out = b.arch.ffn(b, b.norm("ffn_norm", middle, "ffn_input"))
    return b.add("resid_post", middle, b.give_role(out, "ffn_add"), "resid_post")


def model(b: Builder) -> None:
    """Build a whole model: embedding, blocks, final norm and logits."""
    c = b.config
    x = b.embed()
    for b.layer in range(c.layers):
        x = b.arch.block(b, x)
    b.layer = c.layers
    x = b.norm("output_norm", x, "final_norm")
    b.output(x)
