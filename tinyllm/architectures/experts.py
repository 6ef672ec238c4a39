"""Builders of feed-forward networks that are mixtures of experts."""

from __future__ import annotations

from ..errors import UnsupportedError, wrong
from .builder import Builder
from .feed_forward import gated, gated_of, plain
from .plan import UNUSED, Number

__all__ = [
    "chosen_experts",
    "early_router",
    "experts",
    "experts_averaged",
    "experts_beside_block",
    "experts_by_tensor",
    "experts_with_gated_shared",
    "experts_with_weighted_input",
    "gated_or_experts",
    "is_dense",
    "plain_or_experts",
]

#: Where the weights of the chosen experts come from, by the key ``expert_gating_func``: the
#: softmax or the sigmoid of the router's logits, or the softmax of the chosen logits.
_FUNCTIONS = {1: "softmax", 2: "sigmoid", 3: "softmax_of_chosen"}


def gated_or_experts(b: Builder, x: str) -> str:
    """Build experts if the file states a number of them, else a gated network. (T, D) -> (T, D)."""
    return experts(b, x) if b.keys.integer("expert_count", 0, least=0) else gated(b, x)


def experts(b: Builder, x: str) -> str:
    """Build the weighted sum of a few of many gated networks, the experts. (T, D) -> (T, D).

    Shazeer et al. 2017, "Outrageously Large Neural Networks" (arXiv:1701.06538), equation 1. If the
    file states the width of a shared expert, which all tokens use, its value is added (Dai et al.
    2024, "DeepSeekMoE", arXiv:2401.06066, section 3.2).
    """
    if is_dense(b):
        return gated(b, x)
    logits = _router(b, x)
    shared = _shared(b, x, _shared_width(b, 0))
    latent = b.keys.integer("moe_latent_size", 0, least=0)
    if latent:  # the experts work in this width
        size = b.number("size", latent, "moe_latent_size")
        chosen = chosen_experts(b, b.linear("ffn_latent_down", x, size), logits, size)
        chosen = b.linear("ffn_latent_up", chosen, b.width)
    else:
        chosen = chosen_experts(b, x, logits)
    return b.add("ffn_out", chosen, shared) if shared else chosen


def plain_or_experts(b: Builder, x: str) -> str:
    """Build experts in every ``moe_every_n_layers``-th block, else a plain network."""
    step = b.keys.integer("moe_every_n_layers", 0, least=0)
    if not step or b.layer % step != 1:
        return plain(b, x)
    return chosen_experts(b, x, _router(b, x))


def early_router(b: Builder, x: str) -> str:
    """Build a serial block whose router reads what enters the block. (T, D) -> (T, D).

    Song et al. 2025, "SmallThinker" (arXiv:2507.20984).
    """
    x = b.same("resid_pre", x)
    logits = _router(b, x)
    mixed = b.arch.mixer(b, b.norm("attn_norm", x, "attn_input"))
    middle = b.add("resid_mid", x, b.give_role(mixed, "attn_add"))
    out = chosen_experts(b, b.norm("ffn_norm", middle, "ffn_input"), logits)
    return b.add("resid_post", middle, b.give_role(out, "ffn_add"), "resid_post")


def experts_beside_block(b: Builder, x: str) -> str:
    """Build a serial block, plus experts that read what enters it. (T, D) -> (T, D).

    Snowflake 2024, "Arctic" (github.com/Snowflake-Labs/snowflake-arctic).
    """
    x = b.same("resid_pre", x)
    mixed = b.arch.mixer(b, b.norm("attn_norm", x, "attn_input"))
    middle = b.add("resid_mid", x, b.give_role(mixed, "attn_add"))
    out = gated_of(b, b.norm("ffn_norm", middle, "ffn_input"), b.width)
    y = b.add("resid_ffn", middle, b.give_role(out, "ffn_add"))
    normed = b.norm("ffn_norm_exps", x)
    return b.add("resid_post", y, chosen_experts(b, normed, _router(b, normed)), "resid_post")


def experts_by_tensor(b: Builder, x: str) -> str:
    """Build experts in blocks that have a router, else a gated network. (T, D) -> (T, D)."""
    return (experts if b.optional("ffn_gate_inp.weight") else gated)(b, x)


def experts_with_weighted_input(b: Builder, x: str) -> str:
    """Build an expert that reads x times its weight, plus a shared one. (T, D) -> (T, D).

    Llama 4 (Meta, llama-models, models/llama4/moe.py). Each token uses one expert.
    """
    if is_dense(b):
        return gated(b, x)
    logits = _router(b, x)
    ids, weights = _choice(b, logits)
    if b.shape(ids) != (1,):
        raise UnsupportedError(
            f"{b.keys.prefix}expert_used_count is {b.shape(ids)[0]}; this version supports 1 in "
            f"the architecture {b.config.architecture}"
        )
    shared = _shared(b, x, _shared_width(b, int(_width(b).value)))
    weighted = b.act("ffn_weighted", weights, x, role="", function="identity")
    own = b.heads("ffn_weighted_exps", weighted, 1, b.config.width)
    down = _experts_of(b, own, ids, b.width)
    return b.add("ffn_out", b.heads("ffn_moe", down, 0, b.config.width), shared)


def experts_averaged(b: Builder, x: str) -> str:
    """Build `experts`, with half of their sum where there is a shared expert. (T, D) -> (T, D)."""
    y = experts(b, x)
    halved = b.step(y).family == "ffn_out"
    return b.scaled("ffn_averaged", y, 0.5, "row: the average") if halved else y


def experts_with_gated_shared(b: Builder, x: str) -> str:
    """Build `experts` with a shared expert times the sigmoid of a gate. (T, D) -> (T, D).

    Qwen Team 2024, "Qwen2 Technical Report" (arXiv:2407.10671), section 2.2.2.
    """
    if is_dense(b):
        return gated(b, x)
    logits = _router(b, x)
    gate = b.linear("ffn_gate_inp_shexp", x, Number("size", 1, "row: one gate"))
    shared = _shared(b, x, _shared_width(b, b.of_layer(b.config.ffn_width)))
    shared = b.act("ffn_shexp", gate, shared, role="", function="sigmoid")
    return b.add("ffn_out", chosen_experts(b, x, logits), shared)


def is_dense(b: Builder) -> bool:
    """Whether the current block has no experts: one of the first ones, or between two that have."""
    first: int = b.keys.integer("leading_dense_block_count", 0, least=0)
    step: int = b.keys.integer("interleave_moe_layer_step", 1, least=0) or 1
    return b.layer < first or (b.layer + 1) % step != 0


def _router(b: Builder, x: str) -> str:
    """Build the router's logits, one per expert."""
    count = b.keys.integer("expert_count")
    return b.linear("ffn_gate_inp", x, b.number("size", count, "expert_count"), role="router")


def _shared_width(b: Builder, default: int) -> Number:
    """Return the width of all shared experts together; 0 if there are none."""
    several = b.keys.integer("expert_shared_count", 0, least=0)
    rule = "rule: as dense"
    if several:
        default, rule = several * int(_width(b).value), "rule: number of shared experts"
    width = b.keys.integer("expert_shared_feed_forward_length", default, least=0)
    return b.number("size", width, "expert_shared_feed_forward_length", rule)


def _shared(b: Builder, x: str, width: Number) -> str:
    """Build the expert that all tokens use; "" if there is none."""
    if not width.value:
        return ""
    if b.arch.gated_experts:
        gate, up = b.linear("ffn_gate_shexp", x, width), b.linear("ffn_up_shexp", x, width)
        hidden = b.clamped_act("ffn_act_shexp", gate, up, "swiglu_clamp_shexp")
    else:
        hidden = b.unary("ffn_act_shexp", b.arch.act, b.linear("ffn_up_shexp", x, width))
    return b.linear("ffn_down_shexp", hidden, b.width)


def chosen_experts(b: Builder, x: str, logits: str, size: Number | None = None) -> str:
    """Build the weighted sum of the values of the chosen experts. (T, n) -> (T, size or D)."""
    ids, weights = _choice(b, logits)
    down = _experts_of(b, x, ids, size or b.width)
    return b.add_step("weighted_sum", "ffn_moe", (down, weights), shape=b.shape(down)[1:])


def _experts_of(b: Builder, x: str, ids: str, size: Number) -> str:
    """Build the values of the chosen experts. (T, n) or (T, U, n) -> (T, U, size)."""
    if b.arch.gated_experts:
        gate = _matmul(b, "ffn_gate_exps", x, ids, _width(b))
        up = _matmul(b, "ffn_up_exps", x, ids, _width(b))
        hidden = b.clamped_act("ffn_act_exps", gate, up, "swiglu_clamp_exp", "ffn_hidden")
    else:
        up = _matmul(b, "ffn_up_exps", x, ids, _width(b))
        hidden = b.unary("ffn_act_exps", b.arch.act, up, role="ffn_hidden")
    return _matmul(b, "ffn_down_exps", hidden, ids, size)


def _width(b: Builder) -> Number:
    key = "expert_feed_forward_length"
    width = b.keys.integer(key, b.of_layer(b.config.ffn_width) or ...)
    return b.number("size", width, key, "rule: feed_forward_length")


def _choice(b: Builder, logits: str) -> tuple[str, str]:
    """Build the choice of experts; returns their ids and their weights."""
    used = _used(b)
    scores, function, source = logits, *_function(b)
    if function not in ("softmax_of_chosen", "sparse_mixer"):
        scores = b.add_step(
            "route_probs",
            "ffn_expert_probs",
            (logits,),
            numbers=(Number("function", ("softmax", "sigmoid").index(function), source),),
            shape=b.shape(logits),
            role="router_probs",
        )
    ids = b.add_step(
        "route_ids",
        "ffn_expert_ids",
        (scores,),
        weights=(b.optional("exp_probs_b.bias") or b.optional("exp_probs_b"),),
        numbers=(used, *_groups(b)),
        shape=(int(used.value),),
        role="expert_ids",
    )
    return ids, _weights(b, scores, ids, function, source)


def _used(b: Builder) -> Number:
    count, used = b.keys.integer("expert_count"), b.keys.integer("expert_used_count")
    if used > count:
        raise wrong(f"{b.keys.prefix}expert_used_count", used, f"at most {count}, expert_count")
    return b.number("used", used, "expert_used_count")


def _function(b: Builder) -> tuple[str, str]:
    """Return where weights come from, one of `_FUNCTIONS`, and what says so."""
    key = "expert_gating_func"
    number = b.keys.integer(key, 0, least=0)
    function = _FUNCTIONS.get(number) if number else b.arch.routing
    if function is None:
        raise UnsupportedError(
            f"{b.keys.prefix}{key} is {number}; this version supports 1 (softmax), 2 (sigmoid) and "
            "3 (softmax of the chosen)"
        )
    return function, b.number("function", 0, key, f"row: {function}").source


def _groups(b: Builder) -> tuple[Number, Number, Number]:
    """Return how many groups of experts there are, how many are used, and what their score sums."""
    count = b.keys.integer("expert_group_count", 1, least=0) or 1
    used = b.keys.integer("expert_group_used_count", count, least=0) or count
    experts, chosen = b.keys.integer("expert_count"), b.keys.integer("expert_used_count")
    if experts % count or used > count or chosen > used * (experts // count):
        raise wrong(
            f"{b.keys.prefix}expert_group_count",
            f"{count}, of which {used} are used",
            f"groups of equal size of the {experts} experts, with {chosen} in those that are used",
        )
    largest = b.arch.latent and _function(b)[0] == "softmax"  # DeepSeek-V2; V3 sums two
    if count == used:  # then groups change nothing
        return Number("groups", 1, UNUSED), Number("groups_used", 1, UNUSED), _best(1, UNUSED)
    return (
        b.number("groups", count, "expert_group_count"),
        b.number("groups_used", used, "expert_group_used_count"),
        _best(1 if largest else min(2, experts // count), "row: 1" if largest else "rule: 2"),
    )


def _best(value: int, source: str) -> Number:
    return Number("group_best", value, source)


def _weights(b: Builder, scores: str, ids: str, function: str, source: str) -> str:
    """Build the weights of the chosen experts."""
    softmax = 2 if function == "sparse_mixer" else int(function == "softmax_of_chosen")
    normalize = not softmax and b.keys.flag("expert_weights_norm", b.arch.normalize)
    row = f"row: {b.arch.normalize}"
    scale = b.key("scale", "expert_weights_scale", 1.0, "rule: 1")
    return b.add_step(
        "route_weights",
        "ffn_expert_weights",
        (scores, ids),
        numbers=(
            b.number("normalize", normalize, "expert_weights_norm", UNUSED if softmax else row),
            Number("softmax", softmax, source if softmax else UNUSED),
            scale if scale.value else scale._replace(value=1.0),  # 0 stands for no scale
        ),
        shape=b.shape(ids),
        role="expert_weights",
    )


def _matmul(b: Builder, tap: str, x: str, ids: str, size: Number) -> str:
    """Build products with the matrices of the chosen experts. (T, n) or (T, U, n) -> (T, U, m).

    Gate and up may lie in one tensor, ``ffn_gate_up_exps``, gate first.
    """
    if b.optional("ffn_gate.0.weight"):
        raise UnsupportedError(
            "the file has a tensor for each expert, as files from before April 2024; convert the "
            "model again"
        )
    stem, first, rows, source = tap, 0.0, size.value, UNUSED
    if tap != "ffn_down_exps" and b.optional("ffn_gate_up_exps.weight"):
        stem, rows, source = "ffn_gate_up_exps", 2 * size.value, "part of ffn_gate_up_exps.weight"
        first = 0.0 if tap == "ffn_gate_exps" else size.value
    return b.add_step(
        "experts",
        tap,
        (x, ids),
        weights=(
            b.tensor(f"{stem}.weight"),
            b.tensor(f"{stem}.bias") if tap in b.arch.biases else b.optional(f"{stem}.bias"),
            b.optional(f"{stem}.scale"),
        ),
        numbers=(size, Number("first", first, source), Number("rows", rows, source)),
        shape=(b.shape(ids)[0], int(size.value)),
    )
