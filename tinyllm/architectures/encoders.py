"""Builders of encoders: BERT's embedding and block, and models that end without logits."""

from __future__ import annotations

from .builder import Builder

__all__ = [
    "embedding",
    "last_encoder_norm",
    "last_norm",
    "last_stream",
    "post_norm_block",
    "pre_norm_block",
]


def embedding(b: Builder) -> str:
    """Build the sum of the embeddings of token, type and position, and its norm. -> (T, D).

    Devlin et al. 2018, "BERT" (arXiv:1810.04805). All tokens have the first type.
    """
    x = b.embed("token_embd", b.config.vocab_size)
    if b.has("token_types"):
        x = b.add("embd_types", x, b.embed("token_types", b.rows("token_types"), index=2))
    if b.has("position_embd"):
        x = b.add("embd_positions", x, b.embed("position_embd", b.config.context_length, index=1))
    return b.give_role(b.norm("token_embd_norm", x), "embedding")


def post_norm_block(b: Builder, x: str) -> str:
    """Build y = norm(x + mixer(x)), then norm(y + ffn(y)). (T, D) -> (T, D).

    This is the block of Vaswani et al. 2017 (arXiv:1706.03762).
    """
    x = b.give_role(b.same("resid_pre", x), "attn_input")
    mixed = b.give_role(b.arch.mixer(b, x), "attn_add")
    again = b.has("attn_norm_2")
    y = b.norm("attn_output_norm", b.add("resid_mid", x, mixed), "" if again else "ffn_input")
    if again:  # the stream is added once more
        y = b.norm("attn_norm_2", b.add("resid_again", y, x), "ffn_input")
    out = b.give_role(b.arch.ffn(b, y), "ffn_add")
    return b.same("resid_post", b.norm("layer_output_norm", b.add("resid_ffn", y, out)))


def pre_norm_block(b: Builder, x: str) -> str:
    """Build y = x + mixer(norm(x)), then y + ffn(norm(y)). (T, D) -> (T, D).

    The first block may lack the norm of its mixer, because the embedding has one.
    """
    x = b.same("resid_pre", x)
    mixed = b.norm("attn_norm", x, "attn_input") if b.has("attn_norm") else x
    if mixed == x:
        b.give_role(x, "attn_input")
    middle = b.add("resid_mid", x, b.give_role(b.arch.mixer(b, mixed), "attn_add"))
    out = b.give_role(b.arch.ffn(b, b.norm("ffn_norm", middle, "ffn_input")), "ffn_add")
    return b.add("resid_post", middle, out, "resid_post")


def last_norm(b: Builder, x: str) -> None:
    """End with the final norm. (T, D) -> (T, D)."""
    b.norm("output_norm", x, "final_norm")


def last_encoder_norm(b: Builder, x: str) -> None:
    """End with the final norm of an encoder, ``enc.output_norm``. (T, D) -> (T, D)."""
    b.norm("output_norm", x, "final_norm", weights="enc.output_norm.weight")


def last_stream(b: Builder, x: str) -> None:
    """End with the stream, which the last block has normalized. (T, D) -> (T, D)."""
    b.give_role(b.same("output_embd", x), "final_norm")
