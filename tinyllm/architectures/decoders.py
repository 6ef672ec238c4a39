"""Builders of encoders and decoders that belong together, as in T5.

The encoder runs once for a source. After its blocks it makes the keys and values with which each
block of the decoder attends to the source. For the decoder these are tensors, `source`.
"""

from __future__ import annotations

from .builder import Builder
from .plan import Number

__all__ = ["block", "head", "last_source", "made", "source"]


def made(layer: int) -> tuple[str, str]:
    """Return the taps of the encoder that a block of the decoder attends to."""
    return f"dec.blk.{layer}.cross_attn_k", f"dec.blk.{layer}.cross_attn_v"


def source(layer: int) -> tuple[str, str]:
    """Return the tensors of these keys (H, S, Dh) and values (H, Dv, S), of S source tokens."""
    return f"source.{layer}.keys.weight", f"source.{layer}.values.weight"


def last_source(b: Builder, x: str) -> None:
    """End with the encoder's norm, and what the decoder's blocks attend to. (T, D) -> (T, D)."""
    y = b.norm("output_norm", x, "final_norm", weights="enc.output_norm.weight")
    heads = b.config.heads if isinstance(b.config.heads, int) else b.config.heads[-1]
    count = b.number("heads", heads, "attention.head_count")
    for layer in range(b.keys.integer("decoder_block_count", b.config.layers)):
        for tap, size in zip(made(layer), b.head_sizes(), strict=True):
            b.linear(tap, y, size, count)
    b.same("output_embd", y)


def block(b: Builder, x: str) -> str:
    """Build self-attention, attention to the source, and a feed-forward network.

    (T, D) -> (T, D). Each branch begins with a norm and is added to the stream (Raffel et al. 2019,
    "T5", arXiv:1910.10683).
    """
    x = b.same("resid_pre", x)
    mixed = b.give_role(b.arch.mixer(b, b.norm("attn_norm", x, "attn_input")), "attn_add")
    x = b.add("resid_mid", x, mixed)
    x = b.add("resid_mid_cross", x, _cross_attention(b, b.norm("cross_attn_norm", x)))
    out = b.give_role(b.arch.ffn(b, b.norm("ffn_norm", x, "ffn_input")), "ffn_add")
    return b.add("resid_post", x, out, "resid_post")


def _cross_attention(b: Builder, x: str) -> str:
    """Build attention to the source, without biases by distance. (T, D) -> (T, D)."""
    heads = b.number("heads", b.of_layer(b.config.heads), "attention.head_count")
    size, value_size = b.head_sizes()
    keys, values = source(b.layer)
    length = Number("size", b.rows(keys.removesuffix(".weight"), axis=1), "tokens of the source")
    q = b.linear("cross_attn_q", x, size, heads)
    scores = b.head_linear("cross_attn_scores", q, length, weight=keys)
    probs = b.add_step(
        "route_probs",
        "cross_attn_probs",
        (scores,),
        numbers=(Number("function", 0, "row: softmax"),),
        shape=b.shape(scores),
        heads=True,
    )
    mix = b.head_linear("cross_attn_mix", probs, value_size, weight=values)
    return b.linear("cross_attn_output", mix, b.width, part=("cross_attn_o", 0, 0))


def head(b: Builder, x: str) -> None:
    """End with the decoder's norm and the logits. (T, D) -> (T, V)."""
    b.output(b.norm("output_norm", x, "final_norm", weights="dec.output_norm.weight"))
