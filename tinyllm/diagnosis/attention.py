"""Mistakes in attention: positions, keys and values and their cache, scores, probabilities."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from ..architectures.plan import ForwardPlan, Step
from ..reference.ops import rope_frequencies, visible_keys
from .catalogue import Site, Variant, fault, named
from .replay import MASKED, Array, Call

__all__ = ["BASES"]


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
    variants=named(
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
    variants=named(*((f"{base:.6g}", base) for base in BASES)),
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
    variants=named(("", "mix"), ("", "linear")),
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


def _keys(plan: ForwardPlan, mix: Step) -> str:
    """Return the keys that belong to the values of a mix."""
    return plan[plan[mix.reads[0]].reads[0]].reads[1]


def _key_rope(plan: ForwardPlan, mix: Step) -> str | None:
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
    variants=named(("1", 1), ("-1", -1)),
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
    variants=named(("", "keys"), ("", "before RoPE")),
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
    variants=named(
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
    variants=named(("over the queries", 1), ("over the heads", 0)),
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
    variants=named(("one token too long", 1), ("one token too short", -1)),
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
    "alibi_missing",
    "scores",
    "ALiBi is missing: scores do not fall with the distance of a key.",
    "Subtract the distance times the slope of the head.",
    where=lambda site, value: any(n.name == "alibi" and n.value for n in site.step.numbers),
)
def _alibi_missing(call: Call, value: Any) -> Array:
    return call.run(alibi=0.0)


@fault(
    "sink_missing",
    "softmax",
    "The attention sink of each head is missing.",
    "Add exp(sink) to the sum of the softmax.",
    where=lambda site, value: site.step.weights[0] is not None,
)
def _sink_missing(call: Call, value: Any) -> Array:
    return call.run(weights=[None])
