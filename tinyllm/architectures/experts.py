"""Builders of feed-forward networks that are mixtures of experts."""

from __future__ import annotations

from .builder import Builder
from .feed_forward import gated
from .plan import UNUSED, Number

__all__ = ["experts", "gated_or_experts", "gated_shared_experts", "is_sparse"]


def is_sparse(b: Builder) -> bool:
    """Return whether the file says that the current block has experts."""
    count: int = getattr(b.config, "expert_count", 0)
    return count > 0 and b.layer >= b.config.dense_layers


def gated_or_experts(b: Builder, x: str) -> str:
    """Build experts where the file has them, else a gated network. (T, D) -> (T, D)."""
    return experts(b, x) if is_sparse(b) else gated(b, x)


def gated_shared_experts(b: Builder, x: str) -> str:
    """Build experts, plus a shared expert times a gate of its own. (T, D) -> (T, D).

    Qwen Team 2024, "Qwen1.5-MoE": sigmoid(w x) * shared(x) + the weighted sum of the experts.
    """
    if not is_sparse(b):
        return gated(b, x)
    gate = b.linear("ffn_gate_inp_shexp", x, Number("size", 1, "row: one gate"))
    chosen = _chosen(b, x)
    shared = b.gate("ffn_shexp", gate, _shared(b, x), "sigmoid")
    return b.add("ffn_out", chosen, shared)


def experts(b: Builder, x: str) -> str:
    """Build the weighted sum of a few experts, plus a shared one if there is one. (T, D) -> (T, D).

    Shazeer et al. 2017, "Outrageously Large Neural Networks" (arXiv:1701.06538), equation 1.
    Shared experts: Dai et al. 2024, "DeepSeekMoE" (arXiv:2401.06066), section 3.2.
    """
    chosen = _chosen(b, x)
    if not b.config.expert_shared_width:
        return chosen
    return b.add("ffn_out", chosen, _shared(b, x))


def _chosen(b: Builder, x: str) -> str:
    """Build the router, its experts, and their weighted sum."""
    c = b.config
    width = b.number(
        "size", c.expert_width, "expert_feed_forward_length", "rule: columns of ffn_down_exps"
    )
    ids, weights = _route(b, x)
    gate = _matmul(b, "ffn_gate_exps", x, ids, width)
    up = _matmul(b, "ffn_up_exps", x, ids, width)
    hidden = b.act("ffn_act_exps", gate, up)
    down = _matmul(b, "ffn_down_exps", hidden, ids, b.number("size", c.width, "embedding_length"))
    return b.add_step("weighted_sum", "ffn_moe", (down, weights), shape=(c.width,))


def _route(b: Builder, x: str) -> tuple[str, str]:
    """Build the choice of experts; returns their ids and their weights."""
    c, row = b.config, b.arch.routing
    count = b.number("size", c.expert_count, "expert_count")
    used = b.number("used", c.expert_used, "expert_used_count")
    function = c.expert_function or row.function
    scores = b.give_role(b.linear("ffn_gate_inp", x, count), "router_logits")
    if function != "softmax_of_chosen":
        kind = b.number(
            "function",
            ("softmax", "sigmoid").index(function),
            "expert_gating_func",
            f"row: {row.function}",
        )
        scores = b.add_step(
            "route_probs", "ffn_expert_probs", (scores,), numbers=(kind,), shape=b.shape(scores)
        )
    bias = b.optional("exp_probs_b.bias") or b.optional("exp_probs_b")
    groups = c.expert_groups > 1
    best = Number("group_best", row.group_best, f"row: {row.group_best}" if groups else UNUSED)
    ids = b.add_step(
        "route_ids",
        "ffn_expert_ids",
        (scores,),
        weights=(bias,),
        numbers=(
            used,
            b.number("groups", c.expert_groups, "expert_group_count", "" if groups else UNUSED),
            b.number(
                "groups_used",
                c.expert_groups_used,
                "expert_group_used_count",
                "" if groups else UNUSED,
            ),
            best,
        ),
        shape=(c.expert_used,),
        roles=("expert_ids",),
    )
    own = c.expert_normalize
    softmax = function == "softmax_of_chosen"
    weights = b.add_step(
        "route_weights",
        "ffn_expert_weights",
        (scores, ids),
        numbers=(
            b.number(
                "normalize",
                not softmax and (row.normalize if own is None else own),
                "expert_weights_norm",
                f"row: {row.normalize}",
            ),
            b.number("softmax", softmax, "expert_gating_func", f"row: {row.function}"),
            b.number("scale", c.expert_scale, "expert_weights_scale", "rule"),
        ),
        shape=(c.expert_used,),
        roles=("expert_weights",),
    )
    return ids, weights


def _matmul(b: Builder, tap: str, x: str, ids: str, size: Number) -> str:
    """Build the products with the matrices of the chosen experts. (T, n) or (T, U, n) -> (T, U, m).

    Gate and up may lie in one tensor, ``ffn_gate_up_exps``, gate first.
    """
    tensor, first, rows = tap, 0.0, size.value
    fused = b.optional("ffn_gate_up_exps.weight")
    if fused is not None and tap in ("ffn_gate_exps", "ffn_up_exps"):
        tensor, rows = "ffn_gate_up_exps", 2 * size.value
        first = 0.0 if tap == "ffn_gate_exps" else size.value
    source = "rule: half of ffn_gate_up_exps" if tensor != tap else UNUSED
    return b.add_step(
        "experts",
        tap,
        (x, ids),
        weights=(
            b.name(f"{tensor}.weight"),
            b.optional(f"{tensor}.bias"),
            b.optional(f"{tensor}.scale"),
        ),
        numbers=(size, Number("first", first, source), Number("rows", rows, source)),
        shape=(b.config.expert_used, int(size.value)),
    )


def _shared(b: Builder, x: str) -> str:
    """Build the expert that all tokens use."""
    c = b.config
    width = b.number(
        "size",
        c.expert_shared_width,
        "expert_shared_feed_forward_length",
        "rule: columns of ffn_down_shexp",
    )
    gate, up = b.linear("ffn_gate_shexp", x, width), b.linear("ffn_up_shexp", x, width)
    hidden = b.act("ffn_act_shexp", gate, up)
    return b.linear("ffn_down_shexp", hidden, b.number("size", c.width, "embedding_length"))
