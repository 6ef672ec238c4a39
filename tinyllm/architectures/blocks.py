"""Builders of blocks, and of the whole model around them."""

from __future__ import annotations

from .builder import Builder

__all__ = [
    "model",
    "normed_embedding",
    "one_branch",
    "parallel",
    "parallel_by_key",
    "parallel_by_norms",
    "serial",
    "some_branches",
]


def serial(b: Builder, x: str) -> str:
    """Build y = x + mixer(norm(x)), then y + ffn(norm(y)). (T, D) -> (T, D).

    This is the block of Llama, Touvron et al. 2023 (arXiv:2302.13971). A branch may also end with a
    norm, and may have a factor.
    """
    x = b.same("resid_pre", x)
    mixed = b.arch.mixer(b, _before(b, "attn_norm", x, "attn_input"))
    mixed = b.residual("attn", _after(b, "post_attention_norm", mixed))
    middle = b.add("resid_mid", x, b.give_role(mixed, "attn_add"))
    out = b.arch.ffn(b, _before(b, b.arch.ffn_norm, middle, "ffn_input"))
    out = b.residual("ffn", _after(b, "post_ffw_norm", out))
    return b.add("resid_post", middle, b.give_role(out, "ffn_add"), "resid_post")


def parallel(b: Builder, x: str) -> str:
    """Build x + (mixer(norm(x)) + ffn(norm(x))). (T, D) -> (T, D).

    Wang and Komatsuzaki 2021, GPT-J (github.com/kingoflolz/mesh-transformer-jax). The branches
    read one norm, or the feed-forward network has ``ffn_norm``, or attention has ``attn_norm_2``.
    """
    x = b.same("resid_pre", x)
    first = b.norm("attn_norm", x, "attn_input")
    attn_input = ffn_input = first
    if b.has("attn_norm_2"):
        attn_input = b.norm("attn_norm_2", x, "attn_input")
    if b.has(b.arch.ffn_norm):
        ffn_input = b.norm(b.arch.ffn_norm, x, "ffn_input")
    else:
        b.give_role(ffn_input, "ffn_input")
    mixed = b.give_role(b.residual("attn", b.arch.mixer(b, attn_input)), "attn_add")
    out = b.give_role(b.residual("ffn", b.arch.ffn(b, ffn_input)), "ffn_add")
    return b.add("resid_post", x, b.add("branches", mixed, out), "resid_post")


def parallel_by_key(b: Builder, x: str) -> str:
    """Build a parallel block, unless ``use_parallel_residual`` is false. (T, D) -> (T, D)."""
    return (parallel if b.keys.flag("use_parallel_residual", True) else serial)(b, x)


def parallel_by_norms(b: Builder, x: str) -> str:
    """Build a serial block, or a parallel one if the file has one norm only. (T, D) -> (T, D)."""
    return (serial if b.has("ffn_norm") else parallel)(b, x)


def one_branch(b: Builder, x: str) -> str:
    """Build y = x + branch(norm(x)), where the branch is a mixer or a feed-forward network.

    (T, D) -> (T, D). A block has a feed-forward network if the file states a width of it.
    """
    x = b.same("resid_pre", x)
    kind = "ffn" if b.of_layer(b.config.ffn_width) else "attn"
    build = b.arch.ffn if kind == "ffn" else b.arch.mixer
    out = build(b, b.norm("attn_norm", x, f"{kind}_input"))
    out = b.give_role(b.residual(kind, out), f"{kind}_add")
    return b.add("resid_post", x, out, "resid_post")


def some_branches(b: Builder, x: str) -> str:
    """Build a serial block without the branches that the file leaves out. (T, D) -> (T, D).

    A block has no mixer if it has 0 heads, and no feed-forward network if its width is 0
    (Bercovich et al. 2024, "Puzzle", arXiv:2411.19146).
    """
    x = b.same("resid_pre", x)
    mixer, ffn = b.of_layer(b.config.heads), b.of_layer(b.config.ffn_width)
    if mixer:
        mixed = b.arch.mixer(b, b.norm("attn_norm", x, "attn_input"))
        last = "resid_mid" if ffn else "resid_post"
        x = b.add(last, x, b.give_role(mixed, "attn_add"), "" if ffn else last)
    if ffn:
        out = b.give_role(b.arch.ffn(b, b.norm(b.arch.ffn_norm, x, "ffn_input")), "ffn_add")
        x = b.add("resid_post", x, out, "resid_post")
    return x if mixer or ffn else b.same("resid_post", x)


def normed_embedding(b: Builder) -> str:
    """Build the embedding and its norm. -> (T, D)."""
    return b.norm("token_embd_norm", b.embedding())


def _before(b: Builder, tap: str, x: str, role: str) -> str:
    """Add the norm at the begin of a branch, if the architecture has one."""
    return b.norm(tap, x, role) if b.arch.pre_norms else b.give_role(x, role)


def _after(b: Builder, tap: str, x: str) -> str:
    """Add the norm at the end of a branch, if the architecture has one."""
    return b.norm(tap, x) if b.arch.post_norms else x


def model(b: Builder) -> None:
    """Build a whole model: embedding, blocks, final norm and logits."""
    c = b.config
    x = b.arch.embedding(b) if b.arch.embedding else b.embedding()
    for b.layer in range(c.layers):
        x = b.arch.block(b, x)
    b.layer = c.layers
    if b.arch.head:
        b.arch.head(b, x)
    else:
        b.output(b.norm(b.arch.output_norm, x, "final_norm"))
