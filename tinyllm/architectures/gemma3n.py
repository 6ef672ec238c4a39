"""Builders of Gemma 3n: AltUp's streams, LAuReL, and activations that are mostly zero.

Google DeepMind 2025, as in the Hugging Face class ``Gemma3nForCausalLM``. AltUp: Baykal et al. 2023
(arXiv:2301.13310). LAuReL: Menghani et al. 2024 (arXiv:2411.07501).
"""

from __future__ import annotations

import math

from . import gemma4
from .builder import Builder
from .plan import Number

__all__ = ["block", "embedding", "head"]


def _streams(b: Builder) -> tuple[int, int]:
    """Return how many streams there are, and which one the blocks work on."""
    count = b.keys.integer("altup.num_inputs", 4, least=2)
    return count, b.keys.integer("altup.active_idx", 0, most=count - 1, least=0)


def _matched(b: Builder, tap: str, x: str, like: str) -> str:
    """Add x with the root mean square of another value in each vector."""
    epsilon = Number("epsilon", 1e-5, "row")
    return b.add_step("match_rms", tap, (x, like), numbers=(epsilon,), shape=b.shape(x))


def _stacked(b: Builder, tap: str, first: str, others: str) -> str:
    """Add the streams from the first one and the others. (D,) or (1, D), (n, D) -> (n + 1, D)."""
    count, width = b.shape(others)
    first = b.heads(f"{tap}_first", first, 1, width)
    both = b.concat(f"{tap}_flat", first, b.heads(f"{tap}_others", others, 1, count * width))
    return b.heads(tap, both, count + 1, width)


def _one(b: Builder, tap: str, x: str, index: int) -> str:
    """Add one of the streams. (n, D) -> (D,)."""
    return b.heads(tap, b.cut(f"{tap}_stream", x, 0, index, 1), 0, b.config.width)


def embedding(b: Builder) -> str:
    """Build the streams: the embedding, and projections of it. -> (n, D)."""
    x = gemma4.embedding(b)
    others = Number("heads", _streams(b)[0] - 1, "rule: streams")
    projected = b.linear("altup_proj", x, b.width, others)
    return _stacked(b, "altup_streams", x, _matched(b, "altup_proj_matched", projected, x))


def head(b: Builder, x: str) -> None:
    """Build the mean of all streams, projected back, its norm, and the logits. (n, D) -> (V,)."""
    count = _streams(b)[0]
    first = _one(b, "altup_unembd", x, 0)
    rest = b.head_linear("altup_unembd_proj", b.cut("altup_rest", x, 0, 1, count - 1), b.width)
    rest = _matched(b, "altup_unembd_matched", rest, first)
    total = first
    for i in range(count - 1):
        total = b.add(f"altup_sum_{i}", total, _one(b, f"altup_unembd_{i}", rest, i))
    mean = b.scaled("altup_mean", total, 1 / count, "rule: 1/streams")
    b.output(b.norm(b.arch.output_norm, mean, "final_norm"))


def _router(b: Builder, tap: str, x: str) -> str:
    """Build what the coefficients of the streams are made from. (T, D) -> (T, n)."""
    size = Number("size", _streams(b)[0], "rule: streams")
    y = b.norm(f"{tap}_norm", x, weights=b.tensor("altup_router_norm.weight"))
    y = b.scaled(f"{tap}_input", y, 1 / b.config.width, "rule: 1/width")
    y = b.linear(tap, y, size, part=("altup_router", 0, 0))
    return b.unary(f"{tap}_tanh", "soft_cap", y, Number("parameter", 1, "rule: tanh"))


def block(b: Builder, x: str) -> str:
    """Build a block over all streams. (n, D) -> (n, D).

    The streams are predicted from each other. Attention and the feed-forward network read the
    prediction of the active stream. What they change corrects all predictions.
    """
    count, active = _streams(b)
    before = b.give_role(_one(b, "resid_pre", x, active), "resid_pre")
    size = Number("size", count * count, "rule: streams squared")
    made = b.linear("altup_predict_coef", _router(b, "altup_predict", before), size)
    predicted = b.add("altup_predicted", b.combine("altup_mixed", x, made), x)
    y = _one(b, "altup_active", predicted, active)
    branches = _branches(b, y)
    negative = b.scaled("altup_negative", y, -1.0, "rule: the difference")
    change = b.add("altup_change", branches, negative)
    made = b.linear(
        "altup_correct_coef",
        _router(b, "altup_correct", branches),
        Number("size", count, "rule: streams"),
    )
    spread = b.combine("altup_spread", b.heads("altup_change_one", change, 1, b.config.width), made)
    corrected = b.add_shared("altup_shared", spread, change)
    corrected = b.add("altup_corrected", corrected, predicted)
    first = _one(b, "altup_corrected_active", corrected, active)
    if b.optional("altup_correct_scale.weight"):
        first = b.weighted("altup_correct_scale", first, "altup_correct_scale", each=True)
    own = _per_layer_input(b, first)
    rest = b.add_shared("altup_rest", b.cut("altup_others", corrected, 0, 1, count - 1), own)
    after = _stacked(b, "altup_streams", b.cut("altup_kept", corrected, 0, 0, 1), rest)
    b.give_role(_one(b, "resid_post", after, active), "resid_post")
    return after


def _branches(b: Builder, y: str) -> str:
    """Build attention, LAuReL and the feed-forward network. (T, D) -> (T, D)."""
    normed = b.norm("attn_norm", y, "attn_input")
    rank = Number("size", b.rows(b.tensor("laurel_l"), 64), "rows of laurel_l.weight")
    low = b.linear("laurel_l", normed, rank)
    laurel = b.norm("laurel_post_norm", b.linear("laurel_r", low, b.width))
    laurel = b.add("laurel_out", normed, laurel)
    mixed = b.norm("post_attention_norm", gemma4.attention(b, normed))
    both = b.add("laurel_sum", b.add("resid_attn", y, b.give_role(mixed, "attn_add")), laurel)
    middle = b.scaled("resid_mid", both, 1 / math.sqrt(2), "rule: 1/sqrt(2)")
    out = b.norm("post_ffw_norm", _ffn(b, b.norm("ffn_norm", middle, "ffn_input")))
    return b.add("resid_ffn", middle, b.give_role(out, "ffn_add"))


def _ffn(b: Builder, x: str) -> str:
    """Build a gated network, whose gate is zero below a bound in some blocks. (T, D) -> (T, D)."""
    key, blocks = "activation_sparsity_scale", b.keys.integer("block_count", b.config.layers)
    default = (-math.inf,) * blocks
    factor = b.keys.numbers(key, blocks, default, finite=False)[b.layer]
    width = b.number("size", b.of_layer(b.config.ffn_width), "feed_forward_length")
    gate, up = b.linear("ffn_gate", x, width), b.linear("ffn_up", x, width)
    if factor > -math.inf:
        shape = b.shape(gate)
        mean = b.add_step("norm_mean", "ffn_gate_mean", (gate,), shape=shape[:-1])
        scale = b.add_step(
            "layer_scale",
            "ffn_gate_scale",
            (gate, mean),
            numbers=(Number("epsilon", 0, "row"),),
            shape=shape[:-1],
        )
        gate = b.add_step(
            "sparsify",
            "ffn_gate_sparse",
            (gate, mean, scale),
            numbers=(b.number("factor", factor, key),),
            shape=shape,
        )
    return b.linear("ffn_down", b.act("ffn_act", gate, up), b.width)


def _per_layer_input(b: Builder, x: str) -> str:
    """Build what the embedding of this block adds to the streams that are not active. -> (T, D)."""
    size = b.keys.integer("embedding_length_per_layer_input")
    own = b.cut("per_layer_inp", "per_layer_inp", 0, b.layer, 1)
    own = b.heads("per_layer_own", own, 0, size)
    gate = b.linear("inp_gate", x, b.number("size", size, "embedding_length_per_layer_input"))
    own = b.act("inp_act", gate, own, role="")
    return b.norm("post_norm", b.linear("proj", own, b.width))
