"""`diff_weights`: the tensors of two files, compared by name."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from .. import _core
from .._core import Weight
from ..base.progress import Progress
from ..display.table import Table
from ..files.model_file import open_file
from ..runtime.runner import Runner

__all__ = ["TensorDifference", "WeightDifference", "diff_weights"]

#: Values that are dequantized at a time.
_CHUNK = 1 << 21


@dataclasses.dataclass(frozen=True)
class TensorDifference:
    """How a tensor of one file differs from that of another.

    Attributes
    ----------
    name : str
    types : tuple of str
        The two tensor types.
    shape : tuple of int
    max : float
        The largest absolute difference of two values.
    rms : float
        The root of the mean squared difference.
    relative : float
        The norm of the difference, divided by the norm of the first tensor.
    cosine : float
        The cosine of the angle between the two tensors, as vectors of all their values.
    same : bool
        Whether all values are equal. NaN equals NaN.

    Examples
    --------
    >>> import tinyllm as tl
    >>> tl.quantize("demo", "small.gguf", "Q8_0", types={"*ffn_up.weight": "Q4_0"})
    >>> worst = tl.diff_weights("demo", "small.gguf").tensors[0]
    >>> worst.name.endswith("ffn_up.weight"), worst.types[1], worst.relative > 0.01
    (True, 'Q4_0', True)
    """

    name: str
    types: tuple[str, str]
    shape: tuple[int, ...]
    max: float
    rms: float
    relative: float
    cosine: float
    same: bool


@dataclasses.dataclass(frozen=True, repr=False)
class WeightDifference:
    """The result of `diff_weights`; printing it shows a table.

    Attributes
    ----------
    tensors : list of TensorDifference
        The tensors that both files have in the same shape, the largest relative difference first.
    only_a, only_b : list of str
        Names of tensors that only one file has.
    shapes : dict of str to tuple
        The two shapes of tensors that have different ones.

    Examples
    --------
    >>> import tinyllm as tl
    >>> tl.diff_weights("demo", "demo").same
    True
    """

    tensors: list[TensorDifference]
    only_a: list[str]
    only_b: list[str]
    shapes: dict[str, tuple[tuple[int, ...], tuple[int, ...]]]

    @property
    def same(self) -> bool:
        """Whether both files have the same tensors with the same values."""
        aside = self.only_a or self.only_b or self.shapes
        return not aside and all(tensor.same for tensor in self.tensors)

    def table(self) -> Table:
        """Return a table with one row per tensor, the largest relative difference first.

        Returns
        -------
        Table
        """
        none = ("", "", "", "")
        rows = [
            (name, "other shapes", f"{first} / {second}", *none)
            for name, (first, second) in self.shapes.items()
        ]
        rows += [(name, "only in the first", "", *none) for name in self.only_a]
        rows += [(name, "only in the second", "", *none) for name in self.only_b]
        for t in self.tensors:
            kinds = t.types[0] if t.types[0] == t.types[1] else " / ".join(t.types)
            numbers = (f"{t.max:.3g}", f"{t.rms:.3g}", f"{t.relative:.3g}", f"{t.cosine:.7f}")
            shown = ("same", "", "", "") if t.same else numbers
            rows.append((t.name, kinds, str(t.shape), *shown))
        return Table(("tensor", "types", "shape", "max", "rms", "relative", "cosine"), rows)

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain dicts, lists and numbers, for JSON.

        NaN and infinity, which JSON does not have, become None.

        Returns
        -------
        dict of str to object
        """
        values = dataclasses.asdict(self)
        for tensor in values["tensors"]:
            for name, value in tensor.items():
                if isinstance(value, float) and not math.isfinite(value):
                    tensor[name] = None
        return {"same": self.same, **values}

    def __str__(self) -> str:
        return str(self.table())

    def __repr__(self) -> str:
        differing = sum(not tensor.same for tensor in self.tensors)
        return (
            f"<tinyllm.WeightDifference: {differing} of {len(self.tensors)} tensors differ, "
            f"{len(self.only_a)} only in the first, {len(self.only_b)} only in the second>"
        )

    def _repr_html_(self) -> str:
        return self.table().html()


def diff_weights(
    a: Runner | str | os.PathLike[str],
    b: Runner | str | os.PathLike[str],
    *,
    progress: bool = True,
) -> WeightDifference:
    """Compare the tensors of two models by name.

    Quantized tensors are compared by the values that they stand for. A few rows are in memory at a
    time. Sums are in float64.

    Parameters
    ----------
    a, b : Model or str or os.PathLike
        Models or their files: GGUF, in shards or not, or llama2.c checkpoints.
    progress : bool
        Whether to show a progress bar if it takes long.

    Returns
    -------
    WeightDifference

    Raises
    ------
    tinyllm.UnsupportedError
        If two tensors have different types of which tinyllm cannot read one.
    tinyllm.FormatError
        If a file is damaged.
    OSError
        If a file cannot be read.

    Examples
    --------
    >>> import tinyllm as tl
    >>> tl.quantize("demo", "small.gguf", "Q4_0")
    >>> found = tl.diff_weights("demo", "small.gguf")
    >>> found.same, found.tensors[0].cosine > 0.99
    (False, True)
    """
    first, second = _weights(a), _weights(b)
    both = [name for name in first if name in second]
    shapes = {
        name: (first[name].shape, second[name].shape)
        for name in both
        if first[name].shape != second[name].shape
    }
    pairs = [(first[name], second[name]) for name in both if name not in shapes]
    with Progress(sum(math.prod(w.shape) for w, _ in pairs), "comparing weights", progress) as bar:
        tensors = [_difference(*pair, bar) for pair in pairs]
    # what is not a number comes first
    tensors.sort(key=lambda t: -t.relative if math.isfinite(t.relative) else -math.inf)
    return WeightDifference(
        tensors,
        [name for name in first if name not in second],
        [name for name in second if name not in first],
        shapes,
    )


def _weights(model: Runner | str | os.PathLike[str]) -> Mapping[str, Weight]:
    return model.weights if isinstance(model, Runner) else open_file(model).weights


def _difference(a: Weight, b: Weight, bar: Progress) -> TensorDifference:
    types = _core.tensor_types()
    if a.type == b.type and not types[a.type][3]:  # only its bytes can be read
        same = bool(np.array_equal(a.raw, b.raw))
        value = 0.0 if same else math.nan
        return TensorDifference(a.name, (a.type, b.type), a.shape, value, value, value, 1.0, same)
    most, squares, norm_a, norm_b, product, same = 0.0, 0.0, 0.0, 0.0, 0.0, True
    columns = a.shape[-1] if a.shape else 1
    rows = math.prod(a.shape[:-1])
    flat_a, flat_b = (Weight(w.name, (rows, columns), w.type, w.raw.reshape(-1)) for w in (a, b))
    step = max(_CHUNK // max(columns, 1), 1)
    for start in range(0, rows, step):
        part = slice(start, start + step)
        x, y = (flat.numpy(part, "float64").reshape(-1) for flat in (flat_a, flat_b))
        same = same and bool(np.array_equal(x, y, equal_nan=True))
        with np.errstate(invalid="ignore", over="ignore"):
            difference = x - y
            most = float(np.maximum(most, np.abs(difference).max(initial=0)))
            squares += float(difference @ difference)
            product += float(x @ y)
            norm_a += float(x @ x)
            norm_b += float(y @ y)
        a.forget()  # large files would fill the memory
        b.forget()
        bar.add(x.size)
    a.check()
    b.check()
    return TensorDifference(
        a.name,
        (a.type, b.type),
        a.shape,
        most,
        math.sqrt(squares / max(rows * columns, 1)),
        _ratio(math.sqrt(squares), math.sqrt(norm_a)),
        1.0 if same else _ratio(product, math.sqrt(norm_a) * math.sqrt(norm_b)),
        same,
    )


def _ratio(a: float, b: float) -> float:
    if b == 0:
        return 0.0 if a == 0 else math.inf
    return a / b
