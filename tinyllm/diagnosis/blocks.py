"""Mistakes outside attention: norms, matrices, residual stream, feed-forward networks, experts."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..architectures.plan import FUNCTIONS, ForwardPlan
from .catalogue import Site, Variant, fault, named
from .replay import Array, Call

__all__ = ["EPSILONS"]


# ---- norms ----


def _pre_norm(plan: ForwardPlan, layer: int, role: str) -> str | None:
    """Return the norm that a branch of a block reads, or None."""
    if not plan.has_role(role, layer):
        return None
    tap = plan.role(role, layer)
    return tap if plan[tap].op in ("norm", "layer_norm") else None


def _again(call: Call, norm: str, x: Array) -> Array:
    """Return a norm of another value, with its statistics."""
    step = call.plan[norm]
    if step.op == "layer_norm":
        mean = call.other(step.reads[1], x)
        return call.other(norm, x, mean, call.other(step.reads[2], x, mean))
    return call.other(norm, x, call.other(step.reads[1], x))


EPSILONS = (1e-5, 1e-6, 0.0, 1e-12, 1e-8, 1e-7, 1e-4, 1e-3)


@fault(
    "norm_epsilon",
    "norm_scale layer_scale",
    "The epsilon of the norms is {}.",
    "Read epsilon from the file, and add it to the mean square before the root.",
    where=lambda site, value: (
        value == "outside" or abs(site.step.number("epsilon") - value) > 1e-9 + 1e-3 * value
    ),
    variants=named(
        *((f"{value:g}", value) for value in EPSILONS),
        ("added after the root, not before it", "outside"),
    ),
)
def _norm_epsilon(call: Call, value: Any) -> Array:
    with np.errstate(divide="ignore"):
        if value == "outside":
            y: Array = 1 / (1 / call.run(epsilon=0.0) + call.numbers["epsilon"])
            return y
        return call.run(epsilon=value)


def _has_weight(site: Site, value: Any) -> bool:
    return site.step.weights[0] is not None


@fault(
    "norm_weight_missing",
    "norm layer_norm",
    "Norms are not multiplied by their weight.",
    "Multiply the normalized values by the weight of the norm.",
    where=_has_weight,
)
def _norm_weight_missing(call: Call, value: Any) -> Array:
    return call.run(weights=[None, *call.weights[1:]])


@fault(
    "norm_weight_twice",
    "norm layer_norm",
    "Norms are multiplied by their weight twice.",
    "Multiply the normalized values by the weight once.",
    where=_has_weight,
)
def _norm_weight_twice(call: Call, value: Any) -> Array:
    weight, *rest = call.weights
    return call.run(weights=[None if weight is None else weight * weight, *rest])


@fault(
    "norm_weight_plus_one_missing",
    "norm layer_norm",
    "The weights of the norms lack 1: {}.",
    "Weights in GGUF files are used as they are. Where a checkpoint stores w - 1, add 1.",
    where=_has_weight,
    variants=named(("they are used as w - 1", -1.0), ("1 is added a second time", 1.0)),
)
def _norm_weight_plus_one_missing(call: Call, value: Any) -> Array:
    weight, *rest = call.weights
    return call.run(weights=[None if weight is None else weight + value, *rest])


@fault(
    "norm_mean_subtracted",
    "norm_scale norm",
    "The norms subtract the mean. This model has RMSNorm, which does not.",
    "Divide by the root of the mean square only.",
    where=lambda site, value: (
        (site.step if site.step.op == "norm_scale" else site.reads(1)).number("kind") == 0
        and (site.step if site.step.op == "norm_scale" else site.reads(1)).number("axes") == 1
    ),
)
def _norm_mean_subtracted(call: Call, value: Any) -> Array:
    x = np.asarray(call.inputs[0], np.float64)
    return call.run([x - x.mean(axis=-1, keepdims=True), *call.inputs[1:]])


@fault(
    "norm_mean_kept",
    "norm_mean",
    "The norms do not subtract the mean. This model has LayerNorm, which does.",
    "Subtract the mean before the division by the standard deviation.",
)
def _norm_mean_kept(call: Call, value: Any) -> Array:
    return np.zeros_like(call.run())


def _branches(role: str) -> str:
    return "attn_input" if role == "resid_mid" else "ffn_input"


_BRANCHES = named(
    ("in both branches", ("resid_mid", "resid_post")),
    ("after attention", ("resid_mid",)),
    ("after the feed-forward network", ("resid_post",)),
)


def _joins(site: Site, value: Any) -> bool:
    """Whether a step adds one of some branches to the residual stream."""
    return site.step.family in value and site.step.layer >= 0


@fault(
    "norm_before_residual",
    "add",
    "The residual connection adds the normalized stream instead of the stream, {}.",
    "Keep the stream from before the norm, and add the branch to it.",
    where=lambda site, value: (
        _joins(site, value)
        and _pre_norm(site.plan, site.step.layer, _branches(site.step.family)) is not None
    ),
    variants=_BRANCHES,
)
def _norm_before_residual(call: Call, value: Any) -> Array:
    norm = _pre_norm(call.plan, call.step.layer, _branches(call.step.family))
    return call.run([call.value(norm or ""), call.inputs[1]])


@fault(
    "final_norm_missing",
    "norm layer_norm",
    "The norm after the last block is missing.",
    "Normalize the residual stream before the output matrix.",
    where=lambda site, value: "final_norm" in site.step.roles,
)
def _final_norm_missing(call: Call, value: Any) -> Array:
    return call.inputs[0]


@fault(
    "qk_norm_after_rope",
    "rope",
    "Queries and keys are rotated before their norm. This model normalizes them first.",
    "Apply the norm of queries and keys before RoPE.",
    where=lambda site, value: site.reads(0).op in ("norm", "layer_norm"),
)
def _qk_norm_after_rope(call: Call, value: Any) -> Array:
    norm = call.step.reads[0]
    raw = call.value(call.plan[norm].reads[0])
    return _again(call, norm, call.run([raw, call.inputs[1]]))


# ---- matrices ----


def _transposed(matrix: Array) -> Array:
    """Return what a reader makes of a matrix if it takes its two dimensions in the other order."""
    rows, columns = matrix.shape
    return np.ascontiguousarray(matrix).reshape(columns, rows).T


def _families(plan: ForwardPlan, tokens: int, prompt: int) -> list[Variant]:
    """Return all matrices of the blocks, and each kind of matrix alone."""
    kinds = dict.fromkeys(s.family for s in plan if s.op == "linear" and 0 <= s.layer < plan.layers)
    return [Variant("all matrices", None), *(Variant(kind, kind) for kind in kinds)]


@fault(
    "weight_dimension_order",
    "linear",
    "The dimensions of weights are taken in the wrong order ({}).",
    "A file lists the dimensions of a tensor from the fastest one on: a matrix of the dimensions "
    "(in, out) has rows of `in` values, one row for each output.",
    where=lambda site, value: (
        0 <= site.step.layer < site.plan.layers
        and len(site.tensors[site.step.weights[0] or ""].shape) == 2
        and (value is None or site.step.family == value)
    ),
    variants=_families,
)
def _weight_dimension_order(call: Call, value: Any) -> Array:
    weight, *rest = call.weights
    return call.run(weights=[None if weight is None else _transposed(weight), *rest])


def _is_output(site: Site) -> bool:
    return site.last and site.step.op == "linear"


@fault(
    "output_weight_dimension_order",
    "linear",
    "The dimensions of the output matrix are taken in the wrong order.",
    "The output matrix has a row for each token of the vocabulary.",
    where=lambda site, value: _is_output(site),
)
def _output_weight_dimension_order(call: Call, value: Any) -> Array:
    return _weight_dimension_order(call, None)


@fault(
    "embedding_dimension_order",
    "embed",
    "The dimensions of the embedding are taken in the wrong order.",
    "The embedding has a row for each token: row i begins at value i times the width.",
    where=lambda site, value: site.step.family == "token_embd",
)
def _embedding_dimension_order(call: Call, value: Any) -> Array:
    table = call.weights[0]
    return call.run(weights=[None if table is None else _transposed(table)])


@fault(
    "tied_embedding_missed",
    "linear",
    "The output matrix was not loaded. In this file it is the embedding, under its name.",
    "If a file has no output.weight, use token_embd.weight.",
    where=lambda site, value: _is_output(site) and site.step.weights[0] == "token_embd.weight",
)
def _tied_embedding_missed(call: Call, value: Any) -> Array:
    return np.zeros_like(call.run())


@fault(
    "output_weight_ignored",
    "linear",
    "The output matrix is the embedding. This file has an output matrix of its own.",
    "Use output.weight.",
    where=lambda site, value: (
        _is_output(site)
        and site.step.weights[0] == "output.weight"
        and site.tensors["output.weight"].shape == site.tensors["token_embd.weight"].shape
    ),
)
def _output_weight_ignored(call: Call, value: Any) -> Array:
    return call.run(weights=[call.weight("token_embd.weight"), *call.weights[1:]])


def _bias_kinds(plan: ForwardPlan, tokens: int, prompt: int) -> list[Variant]:
    kinds = dict.fromkeys(s.family for s in plan if s.op == "linear" and s.weights[1])
    return [
        Variant("all matrices", "linear"),
        Variant("the norms", "layer_norm"),
        *(Variant(kind, kind) for kind in kinds if len(kinds) > 1),
    ]


@fault(
    "bias_missing",
    "linear layer_norm",
    "The bias of {} is missing.",
    "Add the tensor with the name of the weight and the ending .bias.",
    where=lambda site, value: (
        site.step.weights[1] is not None and value in (site.step.op, site.step.family)
    ),
    variants=_bias_kinds,
)
def _bias_missing(call: Call, value: Any) -> Array:
    weight, _, *rest = call.weights
    return call.run(weights=[weight, None, *rest])


@fault(
    "qk_permutation",
    "linear",
    "The rows of the query and key matrices are in another order: {}.",
    "The converter to GGUF reorders these rows for models of Llama's kind. Use them with the RoPE "
    "that belongs to their order, or undo it.",
    where=lambda site, value: (
        not {"queries", "keys"}.isdisjoint(site.step.roles)
        and _rotated(site)
        and site.step.shape[1] % 2 == 0
    ),
    variants=named(
        ("as in Hugging Face's checkpoints, halves", "halves"),
        ("reordered once too often, pairs", "pairs"),
    ),
)
def _qk_permutation(call: Call, value: Any) -> Array:
    y = call.run()
    t, heads, size = y.shape
    axes = (size // 2, 2) if value == "halves" else (2, size // 2)
    return y.reshape(t, heads, *axes).swapaxes(2, 3).reshape(t, heads, size)


def _rotated(site: Site) -> bool:
    return any(step.op == "rope" and step.layer == site.step.layer for step in site.plan)


def _split(plan: ForwardPlan, layer: int) -> list[Any]:
    """Return the steps of a block that read a part of ``attn_qkv``: queries, keys, values."""
    roles = ("queries", "keys", "values")
    if not all(plan.has_role(role, layer) for role in roles):
        return []
    steps = [plan[plan.role(role, layer)] for role in roles]
    fused = all(s.op == "linear" and "attn_qkv" in (s.weights[0] or "") for s in steps)
    return steps if fused else []


def _splits(site: Site, value: Any) -> bool:
    """Whether a step reads a part of ``attn_qkv`` that can be mistaken for another one."""
    parts = _split(site.plan, site.step.layer)
    if site.step.tap not in [part.tap for part in parts]:
        return False
    q, k, v = (part.shape for part in parts)
    if value == "by head":
        return bool(q == k == v)
    return bool(k == v and site.step.tap != parts[0].tap)


@fault(
    "qkv_split_order",
    "linear",
    "The rows of attn_qkv are split in the wrong order: {}.",
    "attn_qkv holds the rows of all queries, then of all keys, then of all values.",
    where=lambda site, value: _splits(site, value),
    variants=named(
        ("head by head instead of part by part", "by head"),
        ("keys and values are exchanged", "swapped"),
    ),
)
def _qkv_split_order(call: Call, value: Any) -> Array:
    parts = _split(call.plan, call.step.layer)
    mine = [part.tap for part in parts].index(call.step.tap)
    heads, size = parts[mine].shape
    if value == "swapped":
        return call.run(first=parts[3 - mine].number("first"))
    rows = np.arange(heads * 3 * size).reshape(heads, 3, size)[:, mine].ravel()
    weight, bias, *rest = call.weights
    if weight is None:
        return call.run()
    bias = None if bias is None else bias[rows]
    return call.run(weights=[weight[rows], bias, *rest], first=0.0, rows=float(len(rows)))


def _string_order(plan: ForwardPlan) -> list[int]:
    """Return which block stands at each place if the names are sorted as texts."""
    return sorted(range(plan.layers), key=str)


def _other_layer(call: Call) -> list[str | None]:
    layer = call.step.layer
    instead = _string_order(call.plan)[layer]
    start, other = f"blk.{layer}.", f"blk.{instead}."
    return [
        other + name.removeprefix(start) if name and name.startswith(start) else name
        for name in call.step.weights
    ]


@fault(
    "layer_order_shuffled",
    "linear norm layer_norm experts",
    "The blocks are in the order of their names as texts: 10 comes before 2.",
    "Sort the blocks by their number.",
    where=lambda site, value: (
        0 <= site.step.layer < site.plan.layers
        and (other := _string_order(site.plan)[site.step.layer]) != site.step.layer
        and all(
            name is None
            or name.replace(f"blk.{site.step.layer}.", f"blk.{other}.", 1) in site.tensors
            for name in site.step.weights
        )
    ),
)
def _layer_order_shuffled(call: Call, value: Any) -> Array:
    return call.run(weights=[call.weight(name) for name in _other_layer(call)])


# ---- the residual stream ----


@fault(
    "residual_missing",
    "add",
    "The residual connection is missing {}.",
    "Add the branch to the stream instead of replacing the stream.",
    where=_joins,
    variants=_BRANCHES,
)
def _residual_missing(call: Call, value: Any) -> Array:
    return call.inputs[1]


@fault(
    "residual_twice",
    "add",
    "The residual stream is added twice {}.",
    "Add the branch to the stream once.",
    where=_joins,
    variants=_BRANCHES,
)
def _residual_twice(call: Call, value: Any) -> Array:
    return call.run([2 * call.inputs[0], call.inputs[1]])


def _is_parallel(plan: ForwardPlan, layer: int) -> bool:
    return any(step.family == "branches" and step.layer == layer for step in plan)


@fault(
    "parallel_residual_serial",
    "linear",
    "The feed-forward network reads the stream after attention. In this model the two branches "
    "read the same stream.",
    "Give both branches of a block its input.",
    where=lambda site, value: (
        site.step.family.startswith("ffn_")
        and _pre_norm(site.plan, site.step.layer, "ffn_input") in site.step.reads
        and _is_parallel(site.plan, site.step.layer)
    ),
)
def _parallel_residual_serial(call: Call, value: Any) -> Array:
    layer = call.step.layer
    stream = call.value(call.plan.role("resid_pre", layer))
    stream = stream + call.value(call.plan.role("attn_add", layer))
    return call.run([_again(call, call.plan.role("ffn_input", layer), stream)])


# ---- feed-forward networks ----


def _hidden(site: Site, value: Any = None) -> bool:
    return "ffn_hidden" in site.step.roles or site.step.family.startswith("ffn_act")


@fault(
    "gate_up_swapped",
    "act",
    "Gate and up are exchanged: the activation is applied to up.",
    "The activation belongs to ffn_gate, and ffn_up is the factor.",
    where=lambda site, value: _hidden(site) and site.reads(0).shape == site.reads(1).shape,
)
def _gate_up_swapped(call: Call, value: Any) -> Array:
    return call.run(call.inputs[::-1])


@fault(
    "activation_on_up",
    "act",
    "The activation is applied to up, and the gate is the factor.",
    "The activation belongs to ffn_gate, and ffn_up is the factor.",
    where=lambda site, value: _hidden(site) and site.reads(0).shape == site.reads(1).shape,
)
def _activation_on_up(call: Call, value: Any) -> Array:
    return call.run(call.inputs[::-1])


def _activation(name: str, label: str, *functions: str) -> None:
    """Enter a mistake: an activation other than that of the model."""

    @fault(
        name,
        "act unary",
        f"The activation is {label}.",
        "Use the activation of the architecture, which the plan of the model states.",
        where=lambda site, value: _hidden(site) and int(site.step.number("function")) != value,
        variants=named(*((f.replace("_", " "), FUNCTIONS.index(f)) for f in functions)),
    )
    def wrong(call: Call, value: Any) -> Array:
        return call.run(function=float(value))


_activation("activation_gelu", "GELU ({})", "gelu_tanh", "gelu")
_activation("activation_relu", "ReLU", "relu")
_activation("activation_silu", "SiLU", "silu")


# ---- before and after the blocks ----


@fault(
    "embedding_scale_missing",
    "unary",
    "The embedding is not multiplied by its factor.",
    "Multiply the rows of the embedding by the factor that the plan of the model states.",
    where=lambda site, value: site.step.tap == "embd_scaled",
)
def _embedding_scale_missing(call: Call, value: Any) -> Array:
    return call.inputs[0]


@fault(
    "logit_softcap_missing",
    "unary",
    "The soft cap of the logits is missing.",
    "A logit x becomes cap * tanh(x / cap).",
    where=lambda site, value: (
        "logits" in site.step.roles
        and FUNCTIONS[int(site.step.number("function"))] == "soft_cap"
    ),
)  # fmt: skip
def _logit_softcap_missing(call: Call, value: Any) -> Array:
    return call.inputs[0]


@fault(
    "logits_of_previous_token",
    "linear unary",
    "The logits are those of the previous token.",
    "Use the last row of the residual stream to choose the next token.",
    where=lambda site, value: "logits" in site.step.roles and site.tokens > 1,
)
def _logits_of_previous_token(call: Call, value: Any) -> Array:
    y = call.run()
    return np.concatenate([y[:1], y[:-1]])


# ---- experts ----


@fault(
    "router_not_renormalized",
    "route_weights",
    "The weights of the chosen experts are not divided by their sum.",
    "Divide them by their sum.",
    where=lambda site, value: site.step.number("normalize") == 1,
)
def _router_not_renormalized(call: Call, value: Any) -> Array:
    return call.run(normalize=0.0)


@fault(
    "router_renormalized",
    "route_weights",
    "The weights of the chosen experts are divided by their sum. In this model they are not.",
    "Use the probabilities as they are.",
    where=lambda site, value: (
        site.step.number("normalize") == 0 and site.step.number("softmax") == 0
    ),
)
def _router_renormalized(call: Call, value: Any) -> Array:
    return call.run(normalize=1.0)


@fault(
    "router_bias_in_weights",
    "route_weights",
    "The bias of the router is part of the experts' weights. It belongs to their choice only.",
    "Take the weights from the probabilities without the bias.",
    where=lambda site, value: site.reads(1).weights[0] is not None,
)
def _router_bias_in_weights(call: Call, value: Any) -> Array:
    bias = call.weight(call.plan[call.step.reads[1]].weights[0])
    return call.run([call.inputs[0] + bias, call.inputs[1]])


@fault(
    "shared_expert_missing",
    "add",
    "The shared expert is missing.",
    "Add the expert that all tokens use.",
    where=lambda site, value: site.step.family == "ffn_out" and "shexp" in site.step.reads[1],
)
def _shared_expert_missing(call: Call, value: Any) -> Array:
    return call.inputs[0]


# ---- the delta rule ----


@fault(
    "delta_head_order",
    "delta",
    "Value heads use the wrong key heads.",
    "Value head h uses key head h mod Hk, or h div (Hv / Hk): the plan of the model says which.",
    where=lambda site, value: 1 < site.reads(1).shape[0] < site.step.shape[0],
)
def _delta_head_order(call: Call, value: Any) -> Array:
    return call.run(tiled=1 - call.numbers["tiled"])


@fault(
    "gate_after_norm",
    "act",
    "The norm comes after the gate. In this model the gate comes after the norm.",
    "Normalize first, and then multiply by the activated gate.",
    where=lambda site, value: site.step.family == "ssm_gated" and site.reads(1).op == "norm",
)
def _gate_after_norm(call: Call, value: Any) -> Array:
    norm = call.step.reads[1]
    raw = call.value(call.plan[norm].reads[0])
    return _again(call, norm, call.run([call.inputs[0], raw]))
