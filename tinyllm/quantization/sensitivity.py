"""How much the rounding of each matrix changes the next-token probabilities of a model.

A matrix W is rounded to W + D. Its outputs at a token change by D x, and with e the gradient of a
log-probability by these outputs, the log-probability changes by e D x. The Kullback-Leibler
divergence is to second order half the mean square of this change, where the predicted token is
drawn from the model's own probabilities: the Fisher information (Martens 2020, "New insights and
perspectives on the natural gradient method", section 5). One backward pass gives e for the
predictions of all tokens. The changes at different tokens count as independent.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from .. import _core
from .._core import Weight
from ..analysis.gradients import gradients
from ..architectures.plan import Step
from ..base.numeric import Float32, Float64
from ..base.progress import Progress
from ..runtime.runner import Runner
from .packing import CHUNK, pack

__all__ = ["Use", "divergence", "names_read", "observe"]

_WINDOW = 256  # tokens of a backward pass
_ROWS = 512  # tokens whose inputs and gradients are kept
_BYTES = 1 << 29  # of a backward pass, and of all that is kept

#: The ops that read matrices.
_OPS = ("linear", "experts", "head_linear", "embed")


@dataclasses.dataclass
class Use:
    """What a step multiplies with a matrix, and the gradients of its outputs, at n tokens.

    Attributes
    ----------
    first, size : int
        The rows of each matrix of the tensor that the step uses.
    inputs : (uses, columns) float32 array or None
        None for an embedding, whose rows are looked up.
    slopes : (uses, size) float32 array
        Derivatives by the outputs.
    tokens : (uses,) integer array
        Which of the n tokens each use belongs to.
    picks : (uses,) integer array or None
        The matrix of each use: an expert or a head. For an embedding, the row. None: all rows of
        the tensor are one matrix.
    n : int
    """

    first: int
    size: int
    inputs: Float32 | None
    slopes: Float32
    tokens: npt.NDArray[np.int64]
    picks: npt.NDArray[np.int64] | None
    n: int


def _reading(model: Runner) -> list[Step]:
    return [step for step in model.steps if step.op in _OPS and step.weights[0] is not None]


def names_read(model: Runner) -> set[str]:
    """Return the tensors that `observe` gives uses of.

    Parameters
    ----------
    model : Model

    Returns
    -------
    set of str
    """
    return {str(step.weights[0]) for step in _reading(model)}


def observe(model: Runner, ids: npt.NDArray[np.int32], progress: bool) -> dict[str, list[Use]]:
    """Run a text forward and backward, and return the uses of each matrix.

    Parameters
    ----------
    model : Model
    ids : (T,) int32 array
    progress : bool
        Whether to show a progress bar.

    Returns
    -------
    dict of str to list of Use
        By the names of tensors. One entry for each step that reads the tensor.

    Raises
    ------
    ValueError
        If the model has no logits.
    tinyllm.UnsupportedError
        If the gradient of an operation is not implemented.
    """
    steps = _reading(model)
    width = 4 * sum(_width(model, step) for step in steps if step.layer < model.config.layers)
    head = 4 * sum(_width(model, step) for step in steps if step.layer >= model.config.layers)
    window = min(_fit(width + head, _WINDOW), int(model.core.config["max_context"]), len(ids))
    count = max(len(ids) // window, 1)
    random = np.random.default_rng(0)
    sampled = _Sampled(random)
    parts: dict[str, list[Use]] = {step.tap: [] for step in steps}
    with Progress(count, "measuring gradients", progress) as bar:
        for i in range(count):
            chunk = ids[i * window : (i + 1) * window]
            slopes = gradients(model, chunk, sampled, [step.tap for step in steps])
            reads = {name for step in steps for name in _values(step)}
            values = model.trace(chunk, sorted(reads))
            order = random.permutation(len(chunk))
            for step in steps:
                bytes_of = head if step.layer >= model.config.layers else width
                rows = np.sort(order[: max(_fit(bytes_of, _ROWS) // count, 1)])
                parts[step.tap].append(_use(model, step, chunk, values, slopes, rows))
            bar.add(1)
    found: dict[str, list[Use]] = {}
    for step in steps:
        found.setdefault(str(step.weights[0]), []).append(_joined(parts.pop(step.tap)))
    return found


def _joined(parts: Sequence[Use]) -> Use:
    """Return the uses of several windows as one."""
    starts = np.cumsum([0, *(use.n for use in parts)])
    tokens = [use.tokens + start for use, start in zip(parts, starts, strict=False)]

    def all_of(name: str) -> Any:
        values = [getattr(use, name) for use in parts]
        return None if values[0] is None else np.concatenate(values)

    return dataclasses.replace(
        parts[0],
        inputs=all_of("inputs"),
        slopes=all_of("slopes"),
        tokens=np.concatenate(tokens),
        picks=all_of("picks"),
        n=int(starts[-1]),
    )


def _fit(size: int, most: int) -> int:
    """Return how many tokens with values of that many bytes are taken: at least 16."""
    return max(min(most, _BYTES // max(size, 1)), min(most, 16))


def _values(step: Step) -> tuple[str, ...]:
    """Return the taps that the formula of a step's use needs."""
    if step.op == "embed":
        return ()
    return step.reads[:2] if step.op == "experts" else step.reads[:1]


def _width(model: Runner, step: Step) -> int:
    read = 0 if step.op == "embed" else math.prod(model.steps[step.reads[0]].shape)
    return read + math.prod(step.shape)


class _Sampled:
    """The sum of the log-probabilities of tokens that are drawn from the probabilities."""

    def __init__(self, random: np.random.Generator) -> None:
        self._random = random

    def __call__(self, logits: Float32) -> tuple[float, Float32]:
        slope = np.empty_like(logits)
        for row, out in zip(logits, slope, strict=True):
            p = _core.softmax(row)
            sums = np.cumsum(p)
            drawn = int(np.searchsorted(sums, self._random.uniform(0, sums[-1]), side="right"))
            out[:] = -p
            out[min(drawn, len(p) - 1)] += 1
        return 0.0, slope


def _use(
    model: Runner,
    step: Step,
    ids: npt.NDArray[np.int32],
    values: Any,
    slopes: Any,
    rows: npt.NDArray[np.int64],
) -> Use:
    numbers = {number.name: int(number.value) for number in step.numbers}
    slope = slopes[step.tap][rows].reshape(len(rows), -1)
    size, picks = slope.shape[1], None
    tokens = np.arange(len(rows))
    if step.op == "embed":
        index = numbers.get("index", 0)
        picks = (ids, np.arange(len(ids)), np.zeros(len(ids)))[index][rows].astype(np.int64)
        return Use(0, size, None, slope, tokens, picks, len(rows))
    x = values[step.reads[0]][rows]
    if step.op == "linear":
        inputs = x.reshape(len(rows), -1)
    else:
        size = step.shape[-1]
        per_token = step.shape[0]
        if step.op == "experts":
            picks = values[step.reads[1]][rows].reshape(-1).astype(np.int64)
        else:
            picks = np.tile(np.arange(per_token), len(rows))
        x = x.reshape(len(rows), -1, x.shape[-1])
        inputs = np.broadcast_to(x, (len(rows), per_token, x.shape[-1])).reshape(-1, x.shape[-1])
        slope = slope.reshape(-1, size)
        tokens = np.repeat(tokens, per_token)
    first = numbers.get("first", 0)
    slope = slope * _scale(model, step, first, size, picks)
    return Use(first, size, np.ascontiguousarray(inputs), slope, tokens, picks, len(rows))


def _scale(
    model: Runner, step: Step, first: int, size: int, picks: npt.NDArray[np.int64] | None
) -> Any:
    """Return the factor of the outputs, where the file has one."""
    name = step.weights[2] if len(step.weights) > 2 else None
    if name is None:
        return np.float32(1)
    scale = model.weights[name].numpy().reshape(-1)
    if picks is not None and scale.size > 1:
        return scale[picks][:, np.newaxis]
    return scale if scale.size in (1, size) else scale[first : first + size]


def divergence(weight: Weight, kind: str, importance: Float32 | None, uses: Sequence[Use]) -> float:
    """Return the divergence, in nats per token, that rounding one tensor to a type causes.

    Parameters
    ----------
    weight : Weight
    kind : str
        The type.
    importance : (matrices, columns) float32 array or None
        As it is used to quantize the tensor.
    uses : sequence of Use
        The uses of the tensor: see `observe`. Without any, the result is 0.

    Returns
    -------
    float
    """
    if not uses:
        return 0.0
    changes = [np.zeros(use.n) for use in uses]
    rows = weight.shape[-2]
    for first, error in _errors(weight, kind, importance):
        for use, change in zip(uses, changes, strict=True):
            _add(change, use, first, rows, error)
    return math.fsum(0.5 * float(np.mean(change**2)) for change in changes)


def _errors(weight: Weight, kind: str, importance: Float32 | None) -> Iterator[tuple[int, Float32]]:
    """Yield (first row, errors of some rows of one matrix); the tensor's rows are counted on."""
    columns, rows = weight.shape[-1], weight.shape[-2]
    count = math.prod(weight.shape[:-1])
    flat = Weight(weight.name, (count, columns), weight.type, weight.raw.reshape(-1))
    step = max(CHUNK // max(columns, 1), 1)
    for matrix in range(count // max(rows, 1)):
        important = None if importance is None else importance[matrix]
        for start in range(matrix * rows, (matrix + 1) * rows, step):
            values = flat.numpy(slice(start, min(start + step, (matrix + 1) * rows)))
            raw = pack(weight.name, kind, values, important, start)
            yield start, Weight(weight.name, values.shape, kind, raw).numpy() - values
    weight.forget()


def _add(change: Float64, use: Use, first: int, rows: int, error: Float32) -> None:
    """Add the changes that the errors of some rows cause to those of the tokens."""
    end = first + len(error)
    if use.inputs is None:
        assert use.picks is not None
        (there,) = np.nonzero((use.picks >= first) & (use.picks < end))
        parts = (error[use.picks[there] - first] * use.slopes[there]).sum(axis=1, dtype=np.float64)
        np.add.at(change, use.tokens[there], parts)
        return
    matrix = first // rows
    start = use.first if use.picks is None else matrix * rows + use.first
    a, b = max(first, start), min(end, start + use.size)
    if a >= b:
        return
    there = np.arange(len(use.slopes)) if use.picks is None else np.nonzero(use.picks == matrix)[0]
    outputs = use.inputs[there] @ error[a - first : b - first].T
    parts = (outputs * use.slopes[there, a - start : b - start]).sum(axis=1, dtype=np.float64)
    np.add.at(change, use.tokens[there], parts)
