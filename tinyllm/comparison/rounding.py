"""The rounding that two runs may have: which error still counts as equal.

Rounding is not the same everywhere: where large values cancel, a small error becomes a large one.
So the model runs once more with each value rounded as the other program rounds it, and what this
changes, by tap and token, is what rounding explains.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ..architectures.plan import FUNCTIONS
from ..base.numeric import Float32, Float64
from ..display.histogram import sample
from ..model import Model
from ..trace.edits import apply
from ..trace.taps import is_matrix
from ..trace.trace import Trace
from .measure import Measure, measure
from .read import Dump

__all__ = ["FLOAT32", "TIMES", "Rounding", "noise", "rounding_of"]

#: An error counts as rounding up to so many times what the model's own rounded run has.
TIMES = 8.0


class Rounding(NamedTuple):
    """How a program rounds.

    Attributes
    ----------
    tolerance : float
        The error that counts as equal wherever it is.
    kind : str
        ``"float32"``, ``"float16"``, ``"bfloat16"`` or ``"8 bits"``, or two of them with ``or``.
    reason : str
        Why it is that.
    """

    tolerance: float
    kind: str
    reason: str


FLOAT32 = Rounding(1e-5, "float32", "both sides compute in float32")

#: What llama.cpp rounds activations to, by the type of the matrices.
_LLAMA_CPP = {
    "F32": FLOAT32,
    "F16": Rounding(5e-3, "float16", "llama.cpp rounds activations to float16"),
    "BF16": Rounding(2e-2, "bfloat16", "llama.cpp rounds activations to bfloat16"),
}
_GELU = Rounding(5e-3, "float16", "llama.cpp takes gelu from a table of float16")
_EIGHT = Rounding(5e-2, "8 bits", "llama.cpp rounds activations to 8 bits for these weights")


def rounding_of(a: Trace, b: Trace, found: Mapping[str, Measure], model: Model | None) -> Rounding:
    """Return the coarser rounding of two sides.

    Parameters
    ----------
    a, b : Trace
    found : mapping of str to Measure
        Their differences by tap, in the order of execution. They tell where a side does not.
    model : Model or None

    Returns
    -------
    Rounding

    Examples
    --------
    >>> import tinyllm as tl
    >>> from tinyllm.comparison.rounding import rounding_of
    >>> t = tl.load().trace("ROMEO:", "output")
    >>> rounding_of(t, t, {}, None).tolerance
    1e-05
    """
    sides = [side for side in (_of_side(each, model) for each in (a, b)) if side is not None]
    known = max(sides, default=FLOAT32)
    if len(sides) == 2 or known.tolerance > FLOAT32.tolerance:
        return known
    return _measured(found, model)


def _of_side(side: Trace, model: Model | None) -> Rounding | None:
    """Return how one side rounds, or None if that is not known."""
    if not isinstance(side, Dump):
        if side.model is None:
            return None
        if side.model.mode == "fast":
            return _EIGHT._replace(reason="mode='fast' rounds activations to 8 bits")
        return FLOAT32
    if side.dialect == "llama.cpp" and model is not None:
        found = _LLAMA_CPP.get(_usual_type(model), _EIGHT)
        return max(found, _GELU) if _has_gelu(model) else found
    return _stored(side) or (FLOAT32 if side.exact else None)


def _has_gelu(model: Model) -> bool:
    return any(
        FUNCTIONS[int(step.number("function"))].startswith("gelu")
        for step in model.steps
        if step.op in ("act", "unary")
    )


def _usual_type(model: Model) -> str:
    """Return the tensor type of most weights of the matrices."""
    sizes: Counter[str] = Counter()
    for step in model.steps:
        if step.op in ("linear", "experts") and step.weights[0]:
            weight = model.weights[step.weights[0]]
            sizes[weight.type] += math.prod(weight.shape)
    return sizes.most_common(1)[0][0] if sizes else "F32"


def _stored(side: Dump) -> Rounding | None:
    """Return the rounding of values that are all float16 or bfloat16, or None."""
    parts = [sample(array, 4096) for array in (*side.values(), *side.tails.values())]
    values = np.concatenate([part[part != 0] for part in parts]).astype(np.float32)
    if values.size < 64 or (values == np.round(values)).all():
        return None
    if not (values.view(np.uint32) & 0xFFFF).any():
        return Rounding(2e-2, "bfloat16", "the values of one side are bfloat16")
    with np.errstate(over="ignore"):
        if (values.astype(np.float16) == values).all():
            return Rounding(5e-3, "float16", "the values of one side are float16")
    return None


def _measured(found: Mapping[str, Measure], model: Model | None) -> Rounding:
    """Return the rounding that the first differences look like.

    Rounding is in the matrices, whose inputs agree much better than their outputs. If no inputs are
    there, it is the first tap that differs at all.
    """
    middle = {name: float(np.median(each.by_token)) for name, each in found.items()}
    blocks: dict[int, list[float]] = {}
    if model is not None:
        for name, error in middle.items():
            step = model.steps[name]
            inputs = [middle[read] for read in step.reads if read in middle]
            if step.op == "linear" and inputs:
                new = error if max(inputs) < 0.2 * error else 0.0
                blocks.setdefault(step.layer, []).append(new)
    errors = next(iter(blocks.values()), [error for error in middle.values() if error > 0][:1])
    floor = max((error for error in errors if error < 2.5e-2), default=0.0)
    if floor < 2e-6:
        return FLOAT32._replace(reason="as for float32 on both sides")
    kind = "float16" if floor < 5e-4 else "bfloat16 or 8 bits"
    tolerance = min(8 * floor, _EIGHT.tolerance)
    return Rounding(
        tolerance, kind, f"the first matrices differ by {floor:.2g}, which looks like rounding"
    )


# ---- the model's own run with that rounding ----


def _float32(x: Float32) -> Float32:
    """Return values with an error of a few units in the last place."""
    wobble = np.random.default_rng(0).uniform(-3e-7, 3e-7, x.shape)
    return (x * (1 + wobble)).astype(np.float32)


def _float16(x: Float32) -> Float32:
    limit = np.float32(65504)
    rounded: Float32 = np.clip(x, -limit, limit).astype(np.float16).astype(np.float32)
    return rounded


def _bfloat16(x: Float32) -> Float32:
    bits = x.view(np.uint32)
    bits = (bits + 0x7FFF + (bits >> 16 & 1)) & np.uint32(0xFFFF0000)
    rounded: Float32 = bits.astype(np.uint32).view(np.float32)
    return rounded


def _eight_bits(x: Float32, block: int) -> Float32:
    """Return values rounded to 8 bits in blocks, as ggml's Q8_0 (32) and Q8_K (256)."""
    rows = x.reshape(len(x), -1)
    padded = np.pad(rows, ((0, 0), (0, -rows.shape[1] % block))).reshape(len(x), -1, block)
    scale = np.abs(padded).max(-1, keepdims=True) / 127
    scale[scale == 0] = 1
    rounded = (np.round(padded / scale) * scale).reshape(len(x), -1)
    result: Float32 = rounded[:, : rows.shape[1]].reshape(x.shape).astype(np.float32)
    return result


def _block(model: Model, tap: str) -> int:
    """Return in blocks of how many values ggml rounds what matrices read: by their types."""
    types = (
        model.weights[str(step.weights[0])].type
        for step in model.steps
        if step.op in ("linear", "experts") and step.reads[0] == tap
    )
    return 256 if any("_K" in name or name.startswith("IQ") for name in types) else 32


def noise(model: Model, ids: npt.ArrayLike, names: Sequence[str], kind: str) -> dict[str, Float64]:
    """Return what a rounding changes in a model's own run.

    Parameters
    ----------
    model : Model
    ids : array_like of int
        The tokens.
    names : sequence of str
        Taps.
    kind : str
        As `Rounding.kind`.

    Returns
    -------
    dict of str to numpy.ndarray of float64, shape (T,)
        The relative error of each token.

    Examples
    --------
    >>> import tinyllm as tl
    >>> from tinyllm.comparison.rounding import noise
    >>> error = noise(tl.load(), [5, 7, 9], ["output"], "8 bits")["output"]
    >>> bool((error > 1e-3).all() and (error < 0.1).all())
    True
    """
    if kind == "8 bits":  # only what matrices read
        steps = [model.steps[s.reads[0]] for s in model.steps if s.op in ("linear", "experts")]
        blocks = {s.tap: _block(model, s.tap) for s in steps}
    else:
        steps = [step for step in model.steps if step.visible]
        blocks = {}
    functions = {"float32": _float32, "float16": _float16, "bfloat16": _bfloat16}

    def rounding(x: Float32, name: str) -> Float32:
        return _eight_bits(x, blocks[name]) if blocks else functions[kind](x)

    taps = dict.fromkeys(s.tap for s in steps if not s.matrix and s.op != "route_ids")
    exact = model.trace(ids, names)
    rounded = model.trace(ids, names, edits=apply(list(taps), rounding))
    return {
        name: measure(exact[name], rounded[name], is_matrix(name), model.steps[name].heads).by_token
        for name in names
    }
