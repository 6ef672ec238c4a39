"""The types of a model's tensors for a size, chosen so that its predictions change least.

llama.cpp's mixes are fixed rules. Here the divergence that each type of each tensor causes is
estimated (`sensitivity`), and the sum over the tensors is made small within the size: from the
smallest types on, the step to a larger type with the largest gain per byte comes first. That is
the greedy solution of the linear relaxation of the multiple-choice knapsack problem (Kellerer,
Pferschy and Pisinger 2004, "Knapsack Problems", section 11.2).
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from .. import _core
from ..base.checks import choice, positive
from ..base.numeric import Float32
from ..base.progress import Progress
from ..display.table import Table
from ..evaluation.scoring import Divergence
from ..runtime.prompt import token_ids
from ..runtime.runner import Runner
from .imatrix import Imatrix
from .mixes import ALIASES, MIXES, choose_types, fitting, is_matrix, pattern_type
from .sensitivity import divergence, names_read, observe

__all__ = ["TensorChoice", "TypeChoice", "choose_for_size", "split_text"]

#: The types to choose from, where the rows of a tensor are made of blocks of 256, and elsewhere.
_BLOCKS = ("Q2_K", "Q3_K", "IQ4_XS", "Q4_K", "Q5_K", "Q6_K", "Q8_0")
_OTHERS = ("MXFP4", "IQ4_NL", "NVFP4", "Q4_1", "Q5_0", "Q5_1", "Q8_0")

#: Types that take long to write and change little from four bits on. Below, those between the
#: neighbours of the type that a tensor has without them are tried then.
_SLOW = ("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S")
_SLOW_OTHERS = ("Q2_0",)

#: The largest type, which is one to choose from where the size lets it.
_LARGEST = "F16"

#: The type of matrices that are used in a way that is not measured.
_UNKNOWN = "Q8_0"

_TOKENS = 1024  # most tokens to measure on, and most tokens to check the result on


class _Point(NamedTuple):
    """A type of a tensor: its size in bytes, and the divergence that it causes."""

    nbytes: int
    kl: float
    type: str


@dataclasses.dataclass(frozen=True)
class TensorChoice:
    """The type of one tensor, and what its neighbours would have given.

    Attributes
    ----------
    name : str
    type : str
    values, nbytes : int
        The number of values, and their size.
    kl : float
        The estimated KL divergence that this tensor causes, in nats per token.
    smaller, larger : (str, int, float) or None
        The next smaller and the next larger type, their size in bytes, and their divergence.

    Examples
    --------
    >>> from tinyllm.quantization.target import TensorChoice
    >>> TensorChoice("w", "Q4_K", 256, 144, 0.001, None, ("Q5_K", 176, 0.0003)).bits
    4.5
    """

    name: str
    type: str
    values: int
    nbytes: int
    kl: float
    smaller: tuple[str, int, float] | None
    larger: tuple[str, int, float] | None

    @property
    def bits(self) -> float:
        """Bits per weight."""
        return 8 * self.nbytes / max(self.values, 1)


@dataclasses.dataclass(frozen=True, repr=False)
class TypeChoice:
    """The types that `tinyllm.quantize` chose for a size; printing it shows a table.

    Attributes
    ----------
    tensors : list of TensorChoice
        The quantized matrices, in the order of the file.
    target : float
        The size that was asked for, in bits per weight of these matrices.
    price : float
        The smallest gain for which a larger type was taken: nats per token and byte. A step to a
        larger type that gains less was not taken.
    measured : Divergence
        The KL divergence of the written file from the model, on the last quarter of the text,
        which the choice has not seen.

    Examples
    --------
    >>> import tinyllm as tl
    >>> text = "To be, or not to be, that is the question: whether 'tis nobler in the mind"
    >>> choice = tl.quantize("demo", "small.gguf", target_bits=4.5, text=text)
    >>> choice.bits <= 4.5, choice.types["blk.3.attn_v.weight"] in ("Q4_K", "Q5_K", "Q6_K", "Q8_0")
    (True, True)
    """

    tensors: list[TensorChoice]
    target: float
    price: float
    measured: Divergence | None = None

    @property
    def types(self) -> dict[str, str]:
        """The type of each matrix by its name: an argument for ``quantize(types=...)``."""
        return {tensor.name: tensor.type for tensor in self.tensors}

    @property
    def nbytes(self) -> int:
        """The size of the matrices."""
        return sum(tensor.nbytes for tensor in self.tensors)

    @property
    def bits(self) -> float:
        """Bits per weight of the matrices."""
        return 8 * self.nbytes / max(sum(tensor.values for tensor in self.tensors), 1)

    @property
    def estimate(self) -> float:
        """The estimated KL divergence: the sum over the matrices."""
        return math.fsum(tensor.kl for tensor in self.tensors)

    def table(self, by: str = "kind") -> Table:
        """Return a table with the choice and its reasons.

        Parameters
        ----------
        by : str
            ``"kind"``: a row for all tensors with the same name in all blocks. ``"tensor"``: a row
            for each, with the next smaller and the next larger type and what they would change.

        Returns
        -------
        Table

        Raises
        ------
        ValueError
            If `by` is something else.
        """
        choice("by", by, ("kind", "tensor"))
        if by == "tensor":
            return self._by_tensor()
        groups: dict[str, list[TensorChoice]] = {}
        for tensor in self.tensors:
            groups.setdefault(re.sub(r"^blk\.\d+\.", "blk.*.", tensor.name), []).append(tensor)
        rows = []
        for name, group in groups.items():
            counts: dict[str, int] = {}
            for tensor in sorted(group, key=lambda tensor: tensor.bits):
                counts[tensor.type] = counts.get(tensor.type, 0) + 1
            kinds = ", ".join(
                kind if len(counts) == 1 else f"{n} {kind}" for kind, n in counts.items()
            )
            kl = math.fsum(tensor.kl for tensor in group)
            values = sum(tensor.values for tensor in group)
            bits = 8 * sum(tensor.nbytes for tensor in group) / max(values, 1)
            rows.append((name, kinds, f"{bits:.2f}", f"{kl:.2e}", f"{kl / self._whole:.0%}"))
        return Table(("tensors", "types", "bits", "KL", "of all"), rows)

    @property
    def _whole(self) -> float:
        return self.estimate or 1.0

    def _by_tensor(self) -> Table:
        rows = []
        for tensor in self.tensors:
            cells = [tensor.name, tensor.type, f"{tensor.bits:.2f}", f"{tensor.kl:.2e}"]
            for other in (tensor.smaller, tensor.larger):
                cells.append("" if other is None else f"{other[0]} {other[2] - tensor.kl:+.2e}")
            rows.append(tuple(cells))
        return Table(("tensor", "type", "bits", "KL", "smaller", "larger"), rows)

    def __str__(self) -> str:
        return f"{self.table()}\n{self._summary()}"

    def _summary(self) -> str:
        found = f"{self.bits:.3f} bits per weight, estimated KL {self.estimate:.4g}"
        return found if self.measured is None else f"{found}, measured {self.measured.mean:.4g}"

    def __repr__(self) -> str:
        return f"<tinyllm.TypeChoice: {len(self.tensors)} tensors, {self._summary()}>"

    def _repr_html_(self) -> str:
        return self.table().html(caption=repr(self))


def split_text(
    model: Runner, text: Any, parse_special: bool = False
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
    """Return the tokens to measure on, and those to check on: the last quarter of the text.

    Parameters
    ----------
    model : Model
    text : str, bytes or ids
    parse_special : bool

    Returns
    -------
    two int32 arrays
        At most 1024 tokens each.

    Raises
    ------
    ValueError
        If the text has less than 16 tokens, or an id is not in the vocabulary.
    """
    ids = token_ids(text, model.tokenizer, "text", parse_special)
    if len(ids) < 16:
        raise ValueError(f"text has {len(ids)} tokens; expected at least 16, better some thousand")
    cut = len(ids) - len(ids) // 4
    return ids[: min(cut, _TOKENS)], ids[cut:][:_TOKENS]


def choose_for_size(
    model: Runner,
    ids: npt.NDArray[np.int32],
    target: float | str,
    *,
    imatrix: Imatrix | None = None,
    types: Mapping[str, str] | None = None,
    progress: bool = True,
) -> TypeChoice:
    """Choose the types of a model's matrices for a size.

    Parameters
    ----------
    model : Model
        With the weights that are to be quantized.
    ids : (T,) int32 array
        Tokens to measure on.
    target : float or str
        Bits per weight of the matrices, or a mix: the size that its types have.
    imatrix, types, progress
        As for `tinyllm.quantize`.

    Returns
    -------
    TypeChoice

    Raises
    ------
    ValueError
        If the smallest types are too large, or if the model has no logits.
    tinyllm.UnsupportedError
        If the gradient of an operation is not implemented.
    """
    weights = {n: w for n, w in model.weights.items() if is_matrix(n, w.shape)}
    if not weights:
        raise ValueError("the model has no matrix that can be quantized")
    values = sum(math.prod(weight.shape) for weight in weights.values())
    budget = _budget(model, target, imatrix is not None, values)
    used = names_read(model)
    kinds, slow = {}, {}
    for name, weight in weights.items():
        wanted = pattern_type(name, types or {}) or ("" if name in used else _UNKNOWN)
        kinds[name] = _candidates(weight.shape[-1], 8 * budget / values, wanted)
        tried = _SLOW if weight.shape[-1] % 256 == 0 else _SLOW_OTHERS
        few = 8 * budget < 4 * values and not wanted
        slow[name] = [kind for kind in tried if few and fitting(kind, weight.shape[-1]) == kind]
    least = sum(
        min(_size(kind, math.prod(weights[name].shape)) for kind in (*kinds[name], *slow[name]))
        for name in kinds
    )
    if least > budget:
        raise ValueError(
            f"target_bits is {target!r}, {8 * budget / values:.4g} bits per weight; expected at "
            f"least {8 * least / values:.4g}, the smallest types"
        )
    uses = observe(model, ids, progress)

    def measured(name: str, names: Sequence[str]) -> list[_Point]:
        weight = weights[name]
        importance = _importance(imatrix, name, weight.shape)
        return [
            _Point(
                _size(kind, math.prod(weight.shape)),
                divergence(weight, kind, importance, uses.get(name, ())),
                kind,
            )
            for kind in names
        ]

    points: dict[str, list[_Point]] = {}
    with Progress(values, "measuring types", progress) as bar:
        for name, weight in weights.items():
            points[name] = _hull(measured(name, kinds[name]))
            bar.add(math.prod(weight.shape))
    chosen, _ = _solve(points, budget)
    with Progress(values, "measuring small types", progress) as bar:
        for name, weight in weights.items():
            near = _between(points[name], chosen[name], slow[name], math.prod(weight.shape))
            points[name] = _hull([*points[name], *measured(name, near)])
            bar.add(math.prod(weight.shape))
    chosen, price = _solve(points, budget)
    return TypeChoice(
        [
            TensorChoice(
                name,
                options[i].type,
                math.prod(weights[name].shape),
                options[i].nbytes,
                options[i].kl,
                _neighbour(options, i - 1),
                _neighbour(options, i + 1),
            )
            for name, options in points.items()
            for i in (chosen[name],)
        ],
        8 * budget / values,
        price,
    )


def _budget(model: Runner, target: float | str, imatrix: bool, values: int) -> int:
    """Return the size in bytes that a target means."""
    if not isinstance(target, str):
        return int(min(positive("target_bits", target), 32.0) / 8 * values)
    mix = ALIASES.get(target.upper(), target.upper())
    if mix not in MIXES:
        raise ValueError(
            f"target_bits is {target!r}; expected a number or one of {', '.join(MIXES)}"
        )
    tensors = {name: (weight.shape, weight.type) for name, weight in model.weights.items()}
    found = choose_types(model.metadata, tensors, mix, imatrix=imatrix)
    return sum(
        _size(found[name], math.prod(shape))
        for name, (shape, _) in tensors.items()
        if is_matrix(name, shape)
    )


def _candidates(columns: int, bits: float, wanted: str) -> list[str]:
    """Return the types to choose from for rows of that length, or only the wanted one."""
    if wanted:
        return [fitting(wanted, columns)]
    kinds = _BLOCKS if columns % 256 == 0 else _OTHERS
    fit = [kind for kind in kinds if fitting(kind, columns) == kind]
    largest = [_LARGEST] if bits > 8 or not fit else []
    return fit + largest


def _between(options: Sequence[_Point], i: int, kinds: Sequence[str], values: int) -> list[str]:
    """Return the types whose size is between the neighbours of option i, or below the first."""
    low = options[i - 1].nbytes if i > 0 else 0
    high = options[min(i + 1, len(options) - 1)].nbytes
    return [kind for kind in kinds if low < _size(kind, values) < high]


def _size(kind: str, values: int) -> int:
    _, items, nbytes, _ = _core.tensor_types()[kind]
    return values // items * nbytes


def _importance(imatrix: Imatrix | None, name: str, shape: tuple[int, ...]) -> Float32 | None:
    if imatrix is None or name not in imatrix.sums:
        return None
    return imatrix.importance(name, math.prod(shape[:-2]), shape[-1])


def _neighbour(options: list[_Point], i: int) -> tuple[str, int, float] | None:
    if not 0 <= i < len(options):
        return None
    return options[i].type, options[i].nbytes, options[i].kl


def _gain(small: _Point, large: _Point) -> float:
    """Return the divergence that a larger type saves per byte."""
    return (small.kl - large.kl) / (large.nbytes - small.nbytes)


def _hull(points: Any) -> list[_Point]:
    """Return the points on the lower convex hull, from the smallest to the least divergence."""
    hull: list[_Point] = []
    for point in sorted(points):
        if hull and point.kl >= hull[-1].kl:
            continue
        while len(hull) > 1 and _gain(hull[-2], hull[-1]) <= _gain(hull[-1], point):
            hull.pop()
        hull.append(point)
    return hull


def _solve(points: Mapping[str, list[_Point]], budget: int) -> tuple[dict[str, int], float]:
    """Return which point of each tensor is taken, and the gain per byte of the last step."""
    chosen = dict.fromkeys(points, 0)
    total = sum(options[0].nbytes for options in points.values())
    steps = sorted(
        (-_gain(options[i], options[i + 1]), name, i)
        for name, options in points.items()
        for i in range(len(options) - 1)
    )
    price, full = math.inf, set()
    for gain, name, i in steps:
        more = points[name][i + 1].nbytes - points[name][i].nbytes
        if name in full or total + more > budget:
            full.add(name)
            continue
        chosen[name], total, price = i + 1, total + more, -gain
    return chosen, price
