"""LoRA adapters in a plan: the products with A and B become steps of their own.

A step ``X`` whose matrix an adapter changes becomes five:

- ``X.base``: the step as it was;
- ``X.lora_a``: A x;
- ``X.lora_b``: B A x, times ``X.scale`` if the file has such a factor of the matrix;
- ``X.lora``: that times the factor, ``alpha / rank`` times the scale;
- ``X``: the sum of ``X.base`` and ``X.lora``.

So ``X`` is what a model computes whose weights include the change, and every step that reads it is
as before. The steps of a second adapter are ``X.lora_a_2``, ``X.lora_b_2`` and ``X.lora_2``, and
``X.sum`` is the sum before it. The order of the operations is that of ``build_lora_mm`` in
llama.cpp's src/llama-graph.cpp.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from .. import _core
from .._core import Weight
from ..base.numeric import Float64
from ..errors import FormatError, UnsupportedError
from ..files.adapter import Adapter, LowRank
from .plan import FUNCTIONS, UNUSED, ForwardPlan, Number, Step

__all__ = ["Change", "adapted", "matrix_shape", "merged_matrix", "targets"]

_OUTPUT, _EMBEDDING = "output.weight", "token_embd.weight"

#: The roles that stay with the step that has the matrix.
_ROLES = ("attn_project",)


class Change(NamedTuple):
    """What one adapter changes of one tensor.

    Attributes
    ----------
    a, b : str
        Names of tensors.
    rank : int
    factor : Number
        What B A is multiplied by.
    suffix : str
        What the names of the steps end with: ``""``, ``"_2"`` and so on.
    """

    a: str
    b: str
    rank: int
    factor: Number
    suffix: str


def adapted(
    plan: ForwardPlan,
    architecture: str,
    tensors: Mapping[str, Any],
    adapters: Sequence[tuple[Adapter, float]],
) -> tuple[ForwardPlan, dict[str, Weight]]:
    """Return the plan of a model with adapters, and the adapters' tensors by name.

    Parameters
    ----------
    plan : ForwardPlan
        The plan of the model without adapters.
    architecture : str
        The architecture of the model.
    tensors : mapping of str to Weight
        The tensors of the model.
    adapters : sequence of (Adapter, float)
        The adapters and their scales.

    Returns
    -------
    plan : ForwardPlan
    weights : dict of str to Weight
        Named as in the file. The names of a second adapter end with ``_2``, and so on.

    Raises
    ------
    tinyllm.FormatError
        If an adapter belongs to another model. The message names a tensor and both shapes.
    tinyllm.UnsupportedError
        If it changes a tensor of a kind that no adapter can change here.
    """
    changes: dict[str, list[Change]] = {}
    weights: dict[str, Weight] = {}
    steps = targets(plan)
    for number, (adapter, scale) in enumerate(adapters, 1):
        _check_architecture(adapter, architecture)
        suffix = "" if number == 1 else f"_{number}"
        for target, pair in adapter.tensors.items():
            try:
                _check(target, pair, tensors, steps.get(target))
            except (FormatError, UnsupportedError) as error:
                error.path = adapter.path
                raise
            names = f"{target}.lora_a{suffix}", f"{target}.lora_b{suffix}"
            for name, weight in zip(names, pair, strict=True):
                weights[name] = _core.Weight(name, weight.shape, weight.type, weight.raw)
            change = Change(*names, pair.rank, _factor(adapter, target, pair, scale), suffix)
            changes.setdefault(target, []).append(change)
    return ForwardPlan(_steps(plan, changes), plan.layers), weights


def targets(plan: ForwardPlan) -> dict[str, Step]:
    """Return the first step that uses each tensor, by the name under which adapters have it.

    Parameters
    ----------
    plan : ForwardPlan

    Returns
    -------
    dict of str to Step
        Without the steps that look up positions. Only matrices of the ops ``linear``, ``experts``
        and ``embed`` can be changed.

    Examples
    --------
    >>> import tinyllm
    >>> targets(tinyllm.load().steps)["output.weight"].tap
    'output'
    """
    found: dict[str, Step] = {}
    for step in plan:
        name = _target(step)
        if name is not None:
            found.setdefault(name, step)
    return found


def matrix_shape(target: str, tensors: Mapping[str, Weight]) -> tuple[int, ...]:
    """Return the shape of the tensor that an adapter changes.

    Parameters
    ----------
    target : str
        A name in `targets`.
    tensors : mapping of str to Weight

    Returns
    -------
    tuple of int
        At least two axes: a vector is a matrix with one row.
    """
    shape = tensors[_stored(target, tensors)].shape
    return shape if len(shape) > 1 else (1, *shape)


def merged_matrix(
    plan: ForwardPlan, step: Step, weights: Mapping[str, Weight], rows: Any = None
) -> Float64:
    """Return the matrix of a linear step with the changes of adapters: W + factor * B A.

    Parameters
    ----------
    plan : ForwardPlan
    step : Step
        The step that multiplies with W: see `ForwardPlan.projection`.
    weights : mapping of str to Weight
        The tensors of the model and of its adapters.
    rows : slice or array of int, optional
        The rows of the tensor. Default: all.

    Returns
    -------
    numpy.ndarray of float64
    """
    matrix: Float64 = weights[str(step.weights[0])].numpy(rows, dtype="float64")
    tap = step.tap.removesuffix(".base")
    for other in plan:
        if other.op != "unary" or not other.tap.startswith(f"{tap}.lora"):
            continue
        lora_b = plan[other.reads[0]]
        lora_a = plan[lora_b.reads[0]]
        left = weights[str(lora_b.weights[0])].numpy(rows, dtype="float64")
        right = weights[str(lora_a.weights[0])].numpy(dtype="float64")
        matrix = matrix + other.number("parameter") * (left @ right)
    return matrix


def _check_architecture(adapter: Adapter, architecture: str) -> None:
    if adapter.architecture != architecture:
        raise FormatError(
            f"the adapter changes models of the architecture {adapter.architecture!r}, and this "
            f"model has {architecture!r}",
            path=adapter.path,
            field="general.architecture",
            value=adapter.architecture,
            expected=repr(architecture),
        )


def _factor(adapter: Adapter, target: str, pair: LowRank, scale: float) -> Number:
    source = f"alpha {adapter.alpha:g} / rank {pair.rank}" if adapter.alpha else "alpha 0"
    if scale != 1:
        source += f", times {scale:g}"
    return Number("parameter", adapter.factor(target, scale), source)


# ---- what a step does with a matrix ----


def _target(step: Step) -> str | None:
    """Return the name under which adapters have the matrix of a step; None if it has none.

    Without a matrix of its own, the output is the embedding, and both change apart.
    """
    name = step.weights[0] if step.weights else None
    if step.op == "linear" and name == _EMBEDDING:
        return _OUTPUT
    by_token = step.op != "embed" or step.number("index") == 0
    return name if by_token else None


def _stored(target: str, tensors: Mapping[str, Any]) -> str:
    """Return the name of the tensor in the file."""
    return _EMBEDDING if target == _OUTPUT and target not in tensors else target


def _check(target: str, pair: LowRank, tensors: Mapping[str, Any], step: Step | None) -> None:
    """Check that a change fits to a tensor of the model."""
    name = _stored(target, tensors)
    if name not in tensors or step is None:
        raise FormatError(
            f"the adapter changes {target!r}, and the model has no such tensor; the adapter "
            "probably belongs to another model",
            field=target,
            value="missing",
            expected="a tensor of the model",
        )
    shape = matrix_shape(target, tensors)
    expected: tuple[tuple[int, ...], tuple[int, ...]]
    if step.op == "linear":
        *rows, inputs = shape
        outputs = math.prod(rows)
        expected = (pair.rank, inputs), (outputs, pair.rank)
    elif step.op == "experts":
        count, outputs, inputs = shape
        expected = (count, pair.rank, inputs), (count, outputs, pair.rank)
    elif step.op == "embed":
        count, width = shape
        expected = (count, pair.rank), (width, pair.rank)
    else:
        raise UnsupportedError(
            f"the adapter changes {target!r}, which a step {step.op!r} uses; this version "
            "supports changes of matrices, experts and embeddings"
        )
    for weight, wanted in zip(pair, expected, strict=True):
        if weight.shape != wanted:
            raise FormatError(
                f"{weight.name} has shape {weight.shape}, and {name} of the model {shape}; "
                f"expected {wanted}. The adapter probably belongs to another model",
                field=weight.name,
                value=weight.shape,
                expected=str(wanted),
            )


# ---- the steps ----


def _steps(plan: ForwardPlan, changes: Mapping[str, Sequence[Change]]) -> Iterator[Step]:
    """Yield the steps of the plan with all changes.

    Neighbouring steps with one input stay neighbours, and their products with A follow at once, so
    that the core runs them together.
    """
    first = 0
    made: dict[tuple[str, tuple[str, ...]], str] = {}
    while first < len(plan):
        group = _group(plan, first)
        first += len(group)
        found = [changes.get(_target(step) or "", ()) for step in group]
        for step, some in zip(group, found, strict=True):
            yield _base(step) if some else step
        for step, some in zip(group, found, strict=True):
            for change in some:
                if (change.a, step.reads) not in made:
                    lora_a = _lora_a(step, change, made.values())
                    made[change.a, step.reads] = lora_a.tap
                    yield lora_a
        for step, some in zip(group, found, strict=True):
            total = f"{step.tap}.base"
            for i, change in enumerate(some):
                lora_b = _lora_b(step, change, made[change.a, step.reads])
                lora = _scaled(step, change, lora_b.tap)
                last = i + 1 == len(some)
                name = step.tap if last else f"{step.tap}.sum{change.suffix}"
                yield from (lora_b, lora, _sum(step, name, total, lora.tap, last))
                total = name


def _group(plan: ForwardPlan, first: int) -> list[Step]:
    """Return the steps from one on that read the same and have the same op."""
    step, end = plan[first], first + 1
    while (
        step.op in ("linear", "experts")
        and end < len(plan)
        and (plan[end].op, plan[end].reads, plan[end].layer) == (step.op, step.reads, step.layer)
    ):
        end += 1
    return list(plan[first:end])


def _base(step: Step) -> Step:
    roles = tuple(role for role in step.roles if role in _ROLES)
    return dataclasses.replace(step, tap=f"{step.tap}.base", roles=roles)


def _lora_a(step: Step, change: Change, taken: Any) -> Step:
    """Return the product with A. All parts of a fused matrix share it."""
    rank = Number("size", change.rank, f"rank of {change.b}")
    name = f"{step.tap}.lora_a{change.suffix}"
    weights: tuple[str | None, ...] = (change.a, None, None)
    numbers: tuple[Number, ...]
    shape: tuple[int, ...] = (change.rank,)
    if step.op == "embed":
        weights = (change.a,)
        numbers = (step.numbers[0], rank._replace(name="width"), step.numbers[2])
    else:
        if _is_part(step):
            stem = change.a.rpartition(".weight")[0].rpartition(".")[2]
            shared = f"{step.tap.removesuffix(step.family)}{stem}.lora_a{change.suffix}"
            name = name if shared in taken else shared
        if step.op == "linear":
            numbers = (_unused("heads"), rank, _unused("first"), _unused("rows"))
        else:
            numbers = (rank, _unused("first"), Number("rows", change.rank, UNUSED))
            shape = (step.shape[0], change.rank)
    return Step(name, step.op, step.layer, step.reads, weights, numbers, shape)


def _is_part(step: Step) -> bool:
    """Whether the matrix of a step is some rows of a tensor."""
    return step.number("rows") not in (0, *([step.number("size")] if step.op == "experts" else []))


def _lora_b(step: Step, change: Change, lora_a: str) -> Step:
    op, reads, numbers = step.op, (lora_a, *step.reads[1:]), step.numbers
    if op == "embed":
        size = step.numbers[1]._replace(name="size")
        op, reads = "linear", (lora_a,)
        numbers = (_unused("heads"), size, _unused("first"), _unused("rows"))
    tap = f"{step.tap}.lora_b{change.suffix}"
    scale = step.weights[2] if step.op != "embed" else None
    weights = (change.b, None, scale)
    return Step(tap, op, step.layer, reads, weights, numbers, step.shape, step.heads)


def _scaled(step: Step, change: Change, lora_b: str) -> Step:
    function = Number("function", FUNCTIONS.index("scale"), "scale")
    numbers = (function, change.factor)
    tap = f"{step.tap}.lora{change.suffix}"
    return Step(tap, "unary", step.layer, (lora_b,), (), numbers, step.shape, step.heads)


def _sum(step: Step, tap: str, total: str, lora: str, last: bool) -> Step:
    roles = tuple(role for role in step.roles if role not in _ROLES) if last else ()
    return Step(tap, "add", step.layer, (total, lora), (), (), step.shape, step.heads, roles=roles)


def _unused(name: str) -> Number:
    return Number(name, 0, UNUSED)
