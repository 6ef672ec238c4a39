"""The known mistakes of engines, one decorated function each.

They come from the diaries and bug reports of people who wrote an engine. Mistakes in unpacking
quantized weights are in `misread`, those of tokenizers in `texts`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from ..architectures.plan import FUNCTIONS, ForwardPlan
from ..reference.ops import rope_frequencies, visible_keys
from . import misread as misread  # enters its mistakes, too
from .catalogue import CATALOGUE, Candidate, Fault, Site, Variant, candidates, fault
from .replay import MASKED, Array, Call

__all__ = ["CATALOGUE", "Candidate", "Fault", "candidates"]


def _named(*variants: tuple[str, Any]) -> Callable[[ForwardPlan, int, int], list[Variant]]:
    """Return a function that returns variants."""
    return lambda plan, tokens, prompt: [Variant(text, value) for text, value in variants]


# ---- rotary position embedding ----


def _turned(call: Call, x: Array, change: Callable[[Array, Array], tuple[Array, Array]]) -> Array:
    """Return x rotated with changed cosines and sines."""
    numbers = dict(call.numbers)
    layout = numbers.pop("layout")
    frequencies, magnitude = rope_frequencies(call.weights[0], **numbers)
    angles = call.inputs[1][:, np.newaxis, np.newaxis] * frequencies
    cos, sin = change(magnitude * np.cos(angles), magnitude * np.sin(angles))
    n = len(frequencies)
    first, second = (slice(0, 2 * n, 2), slice(1, 2 * n, 2))
    if layout == 1:
        first, second = slice(0, n), slice(n, 2 * n)
    y = np.array(x, np.float64)
    y[..., first] = x[..., first] * cos - x[..., second] * sin
    y[..., second] = x[..., first] * sin + x[..., second] * cos
    return y


@fault(
    "rope_pairing",
    "rope",
    "RoPE rotates the wrong pairs of values: {}.",
    "Pair the values of a head as this model does.",
    where=lambda site, value: site.step.number("layout") == value,
    variants=_named(
        ("it takes j and j + n/2 together, and this model 2j and 2j + 1", 0),
        ("it takes 2j and 2j + 1 together, and this model j and j + n/2", 1),
    ),
)
def _rope_pairing(call: Call, value: Any) -> Array:
    return call.run(layout=1 - value)


@fault(
    "rope_cos_sin_swapped",
    "rope",
    "RoPE uses the cosine where the sine belongs, and the sine where the cosine belongs.",
    "Compute x0 cos - x1 sin and x0 sin + x1 cos. At position 0 nothing may change.",
)
def _rope_cos_sin_swapped(call: Call, value: Any) -> Array:
    return _turned(call, call.inputs[0], lambda cos, sin: (sin, cos))


@fault(
    "rope_direction",
    "rope",
    "RoPE turns in the wrong direction: the sign of the sine is wrong.",
    "Compute x0 cos - x1 sin and x0 sin + x1 cos.",
)
def _rope_direction(call: Call, value: Any) -> Array:
    return _turned(call, call.inputs[0], lambda cos, sin: (cos, -sin))


def _queries_and_keys(plan: ForwardPlan, tokens: int, prompt: int) -> list[Variant]:
    return [
        Variant("queries and keys", ("_q_rope", "_k_rope")),
        Variant("queries", ("_q_rope",)),
        Variant("keys", ("_k_rope",)),
    ]


@fault(
    "rope_missing",
    "rope",
    "RoPE is missing: {} are not rotated by their positions.",
    "Rotate queries and keys before the scores.",
    where=lambda site, value: site.step.tap.endswith(value),
    variants=_queries_and_keys,
)
def _rope_missing(call: Call, value: Any) -> Array:
    return call.inputs[0]


BASES = (10000.0, 500000.0, 1e6, 1e5, 1e4 / 4, 5e6, 1e7, 1e3, 25e4, 15e4)


@fault(
    "rope_base",
    "rope",
    "RoPE has the base {}.",
    "Read the base from the file: the key rope.freq_base.",
    where=lambda site, value: abs(site.step.number("base") / value - 1) > 1e-3,
    variants=_named(*((f"{base:.6g}", base) for base in BASES)),
)
def _rope_base(call: Call, value: Any) -> Array:
    return call.run(base=value)


@fault(
    "rope_frequency_exponent",
    "rope",
    "The frequencies of RoPE are base^(-j/n), and not base^(-2j/n).",
    "Frequency j of a head with n rotated values is base^(-2j/n).",
)
def _rope_frequency_exponent(call: Call, value: Any) -> Array:
    return call.run(base=math.sqrt(call.numbers["base"]))


@fault(
    "rope_applied_to_values",
    "mix linear",
    "RoPE rotates the values, too, and not only queries and keys.",
    "Leave the values as they are projected.",
    where=lambda site, value: (
        _key_rope(site.plan, site.step) is not None
        if site.step.op == value == "mix"
        else site.step.op == value and "values" in site.step.roles and _block_rope(site) is not None
    ),
    variants=_named(("", "mix"), ("", "linear")),
)
def _rope_applied_to_values(call: Call, value: Any) -> Array:
    places = np.arange(len(call.inputs[0]))
    if value == "linear":
        rope = next(
            step.tap
            for step in call.plan
            if step.op == "rope" and step.layer == call.step.layer and step.tap.endswith("_k_rope")
        )
        return call.other(rope, call.run(), places)
    rope = _key_rope(call.plan, call.step) or ""
    probs, values = call.inputs
    return call.run([probs, call.other(rope, values, np.arange(len(values)))])


def _keys(plan: ForwardPlan, mix: Any) -> str:
    """Return the keys that belong to the values of a mix."""
    return plan[plan[mix.reads[0]].reads[0]].reads[1]


def _key_rope(plan: ForwardPlan, mix: Any) -> str | None:
    """Return the step that rotates these keys, if values can be rotated in the same way."""
    step = plan[_keys(plan, mix)]
    fits = step.op == "rope" and step.shape == plan[mix.reads[1]].shape
    return step.tap if fits else None


def _block_rope(site: Site) -> str | None:
    for step in site.plan:
        if step.layer == site.step.layer and step.op == "rope" and step.tap.endswith("_k_rope"):
            return step.tap if step.shape == site.step.shape else None
    return None


@fault(
    "rope_after_cache",
    "scores",
    "The cache holds keys from before RoPE, so rotated queries meet keys without rotation.",
    "Rotate a key before it is stored, or rotate all keys when they are read.",
    where=lambda site, value: site.reads(1).op == "rope",
)
def _rope_after_cache(call: Call, value: Any) -> Array:
    return call.run([call.inputs[0], call.value(call.plan[call.step.reads[1]].reads[0])])


# ---- positions ----


def _positions(call: Call, positions: Array) -> Array:
    """Return a step run at other positions."""
    if call.step.op == "embed":
        positions = np.clip(positions, 0, int(call.numbers["vocabulary"]) - 1)
    at = call.step.reads.index("positions")
    return call.run([*call.inputs[:at], positions, *call.inputs[at + 1 :]])


def _reads_positions(site: Site, value: Any) -> bool:
    return "positions" in site.step.reads


@fault(
    "position_off_by_one",
    "rope embed temper",
    "Positions are off by one: they begin at {}.",
    "The first token has position 0.",
    where=_reads_positions,
    variants=_named(("1", 1), ("-1", -1)),
)
def _position_off_by_one(call: Call, value: Any) -> Array:
    return _positions(call, call.inputs[call.step.reads.index("positions")] + value)


def _restarts(plan: ForwardPlan, tokens: int, prompt: int) -> list[Variant]:
    sizes = [2**i for i in range(1, 10) if 2**i < tokens]
    found = [Variant("at every token, so that all of them are 0", ("every", 1))] * (tokens > 1)
    if 0 < prompt < tokens:
        found += [Variant("at the first generated token", ("at", prompt))]
    found += [Variant(f"after each {size} tokens", ("every", size)) for size in sizes]
    places = [p for p in range(1, tokens) if p not in sizes and p != prompt][:64]
    return found + [Variant(f"at token {p}", ("at", p), near=True) for p in places]


@fault(
    "position_restarts",
    "rope embed temper",
    "Positions begin again at 0 {}.",
    "A token's position counts all tokens before it, those of earlier calls included.",
    where=_reads_positions,
    variants=_restarts,
)
def _position_restarts(call: Call, value: Any) -> Array:
    kind, number = value
    places = call.inputs[call.step.reads.index("positions")]
    if kind == "every":
        return _positions(call, places % number)
    return _positions(call, np.where(places < number, places, places - number))


# ---- keys, values and their cache ----


@fault(
    "keys_as_values",
    "mix",
    "Attention sums up keys where it should sum up values.",
    "The probabilities weigh the values: read the value cache there.",
    where=lambda site, value: (
        site.plan[_keys(site.plan, site.step)].shape == site.reads(1).shape
        and (value == "keys" or site.plan[_keys(site.plan, site.step)].op == "rope")
    ),
    variants=_named(("", "keys"), ("", "before RoPE")),
)
def _keys_as_values(call: Call, value: Any) -> Array:
    keys = _keys(call.plan, call.step)
    if value == "before RoPE":
        keys = call.plan[keys].reads[0]
    return call.run([call.inputs[0], call.value(keys)])


@fault(
    "kv_head_modulo",
    "scores mix",
    "Query head h uses kv head h mod K. It should use h div (H / K).",
    "Consecutive query heads share a kv head.",
    where=lambda site, value: 1 < site.reads(1).shape[0] < site.step.shape[0],
)
def _kv_head_modulo(call: Call, value: Any) -> Array:
    heads = call.step.shape[0]
    shared = call.inputs[1]
    return call.run([call.inputs[0], shared[:, np.arange(heads) % shared.shape[1]]])


@fault(
    "cache_off_by_one",
    "scores mix",
    "The cache is read one place too early: position s finds key and value of position s - 1.",
    "Write keys and values to the place of their position, and before they are read.",
    where=lambda site, value: site.tokens > 1,
)
def _cache_off_by_one(call: Call, value: Any) -> Array:
    x = call.inputs[1]
    return call.run([call.inputs[0], np.concatenate([np.zeros_like(x[:1]), x[:-1]])])


@fault(
    "cache_overwritten",
    "scores mix",
    "Every token writes its key and value to the same place of the cache, so earlier ones are lost "
    "and their places hold zeros.",
    "The place in the cache is that of the token's position.",
    where=lambda site, value: site.tokens > 1,
)
def _cache_overwritten(call: Call, value: Any) -> Array:
    first, shared = (np.asarray(x, np.float64) for x in call.inputs)
    heads, t = call.step.shape[0], len(call.inputs[1])
    shared = np.repeat(shared, heads // shared.shape[1], axis=1)  # (T, H, n)
    if call.step.op == "mix":  # the only value lies at place 0
        y: Array = first[:, :, 0].T[:, :, np.newaxis] * shared
        return y
    scores = call.run([call.inputs[0], np.zeros_like(call.inputs[1])])
    scores = np.asarray(scores, np.float64)
    own = np.einsum("thd,thd->ht", first, shared) * call.numbers["factor"]
    if cap := call.numbers.get("cap"):
        own = cap * np.tanh(own / cap)
    shown = scores[:, :, 0] > MASKED
    scores[:, :, 0] = np.where(shown, own, scores[:, :, 0])
    return scores.reshape(heads, t, t)


# ---- scores and probabilities ----


@fault(
    "attention_scale_missing",
    "scores",
    "Scores are not divided by the square root of the head size.",
    "Multiply the scores by the factor that the plan of the model states.",
    where=lambda site, value: abs(site.step.number("factor") - 1) > 1e-6,
)
def _attention_scale_missing(call: Call, value: Any) -> Array:
    return call.run(factor=1.0)


@fault(
    "attention_scale_full_width",
    "scores",
    "Scores are divided by the square root of the size of all heads together.",
    "Divide by the square root of the size of one head.",
    where=lambda site, value: site.step.shape[0] > 1,
)
def _attention_scale_full_width(call: Call, value: Any) -> Array:
    return call.run(factor=1 / math.sqrt(math.prod(call.inputs[0].shape[1:])))


@fault(
    "causal_mask_missing",
    "scores",
    "The causal mask is missing: tokens attend to later tokens.",
    "Set the scores of later tokens to -inf before the softmax.",
    where=lambda site, value: site.step.number("mask") <= 2 and site.tokens > 1,
)
def _causal_mask_missing(call: Call, value: Any) -> Array:
    return call.run(mask=4.0)


@fault(
    "causal_mask_off_by_one",
    "scores",
    "The causal mask is off by one: {}.",
    "A token attends to itself and to the tokens before it.",
    where=lambda site, value: site.step.number("mask") <= 2 and site.tokens > 1,
    variants=_named(
        ("a token sees the next one", 1), ("a token after the first does not see itself", -1)
    ),
)
def _causal_mask_off_by_one(call: Call, value: Any) -> Array:
    scores = call.run(mask=4.0)
    t = scores.shape[1]
    q, k = np.arange(t)[:, np.newaxis], np.arange(t)
    seen = visible_keys(t, t, call.numbers["mask"], call.numbers["window"])
    early = seen | (k > q)  # the other end of a window stays
    return np.where(early & (k <= np.maximum(q + value, 0)), scores, -np.inf)


@fault(
    "softmax_axis",
    "softmax",
    "The softmax runs over the wrong axis: {}.",
    "The probabilities of one query add up to 1 over the keys.",
    variants=_named(("over the queries", 1), ("over the heads", 0)),
    where=lambda site, value: site.tokens > 1 and (value or site.step.shape[0] > 1),
)
def _softmax_axis(call: Call, value: Any) -> Array:
    scores = np.asarray(call.inputs[0], np.float64)
    with np.errstate(all="ignore"):
        e = np.exp(scores - scores.max(axis=value, keepdims=True))
        e = np.where(scores > MASKED, e, 0.0)
        total = e.sum(axis=value, keepdims=True)
        y: Array = np.divide(e, total, out=np.zeros_like(e), where=total > 0)
    return y


@fault(
    "window_off_by_one",
    "scores",
    "The window of attention is {}.",
    "A window of n tokens holds the token itself and the n - 1 before it.",
    where=lambda site, value: (
        site.step.number("mask") == 1 and site.tokens > site.step.number("window") + min(value, 0)
    ),
    variants=_named(("one token too long", 1), ("one token too short", -1)),
)
def _window_off_by_one(call: Call, value: Any) -> Array:
    return call.run(window=call.numbers["window"] + value)


@fault(
    "window_ignored",
    "scores",
    "The window of attention is ignored: tokens attend to all earlier tokens.",
    "Some blocks of this model see only the last tokens.",
    where=lambda site, value: (
        site.step.number("mask") == 1 and site.tokens > site.step.number("window")
    ),
)
def _window_ignored(call: Call, value: Any) -> Array:
    return call.run(mask=0.0)


@fault(
    "attention_softcap_missing",
    "scores",
    "The soft cap of attention scores is missing.",
    "A score s becomes cap * tanh(s / cap) before the mask.",
    where=lambda site, value: site.step.number("cap") > 0,
)
def _attention_softcap_missing(call: Call, value: Any) -> Array:
    return call.run(cap=0.0)


@fault(
    "sink_missing",
    "softmax",
    "The attention sink of each head is missing.",
    "Add exp(sink) to the sum of the softmax.",
    where=lambda site, value: site.step.weights[0] is not None,
)
def _sink_missing(call: Call, value: Any) -> Array:
    return call.run(weights=[None])


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
    variants=_named(
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
    variants=_named(("they are used as w - 1", -1.0), ("1 is added a second time", 1.0)),
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


_BRANCHES = _named(
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
        {"queries", "keys"} & set(site.step.roles) and _rotated(site) and site.step.shape[1] % 2 == 0
    ),
    variants=_named(
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
        return q == k == v
    return k == v and site.step.tap != parts[0].tap


@fault(
    "qkv_split_order",
    "linear",
    "The rows of attn_qkv are split in the wrong order: {}.",
    "attn_qkv holds the rows of all queries, then of all keys, then of all values.",
    where=lambda site, value: _splits(site, value),
    variants=_named(
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
        variants=_named(*((f.replace("_", " "), FUNCTIONS.index(f)) for f in functions)),
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


