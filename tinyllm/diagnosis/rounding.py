"""How far rounding moves the values of a right engine: the noise that is no mistake."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from .replay import HEAVY, Array, Call, Injection, Replay

__all__ = ["ROUNDINGS", "expected"]

#: A value is explained by a rounding if its error is at most this many times that of our own
#: simulation: engines round in other places, and errors of a random kind vary.
SLACK = 3.0


def _bfloat16(x: Array) -> Array:
    """Return float32 values rounded to 8 bits of mantissa, ties to even."""
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32).astype(np.uint64)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000
    y: Array = rounded.astype(np.uint32).view(np.float32).reshape(x.shape)
    return np.where(np.isfinite(x), y, x)


def _float16(x: Array) -> Array:
    with np.errstate(over="ignore"):
        return np.where(np.abs(x) < 65504, x.astype(np.float16).astype(np.float32), x)


def _eight_bits(x: Array) -> Array:
    """Return rows rounded to int8 with a scale for each 256 values, as llama.cpp's Q8_K."""
    rows = np.asarray(x, np.float32).reshape(len(x), -1)
    width = rows.shape[1]
    padded = np.pad(rows, ((0, 0), (0, -width % 256))).reshape(len(rows), -1, 256)
    step = np.abs(padded).max(axis=-1, keepdims=True) / 127
    with np.errstate(all="ignore"):
        q = np.where(step > 0, np.rint(padded / step) * step, padded)
    y: Array = q.reshape(len(rows), -1)[:, :width].reshape(x.shape).astype(np.float32)
    return y


def _everywhere(rounded: Callable[[Array], Array]) -> Callable[[Call], Array]:
    def run(call: Call) -> Array:
        inputs = [x if x.dtype == np.int64 else rounded(x) for x in call.inputs]
        return rounded(np.asarray(call.run(inputs), np.float32))

    return run


def _before_products(rounded: Callable[[Array], Array]) -> Callable[[Call], Array]:
    def run(call: Call) -> Array:
        if call.step.op in ("linear", "experts"):
            return call.run([rounded(call.inputs[0]), *call.inputs[1:]])
        if call.step.op in HEAVY:  # keys and values come from a float16 cache
            return call.run([_float16(np.asarray(x, np.float32)) for x in call.inputs])
        return call.run()

    return run


#: Ops that only choose or copy values.
_EXACT = ("route_ids", "embed", "same", "shape", "slice")

#: Ways to round, from the finest on, and what an engine with them does.
ROUNDINGS: dict[str, Callable[[Call], Array]] = {
    "float16 values or a float16 cache": _everywhere(_float16),
    "bfloat16 values": _everywhere(_bfloat16),
    "activations of 8 bits": _before_products(_eight_bits),
}


def expected(replay: Replay, targets: Any) -> dict[str, dict[str, float]]:
    """Return the errors that each way to round would cause, by its name and by tap.

    Parameters
    ----------
    replay : Replay
    targets : collection of str
        Taps that are known.

    Returns
    -------
    dict of str to dict of str to float
    """
    found = {}
    for name, rounded in ROUNDINGS.items():
        steps = {s.tap: rounded for s in replay.plan if s.visible and s.op not in _EXACT}
        found[name] = replay.distances(Injection(steps), targets)
    return found
