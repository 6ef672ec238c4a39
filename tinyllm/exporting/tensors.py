"""The tensors of a GGUF file under the names and in the layouts of a Hugging Face checkpoint.

Names and layouts are those of the rows that convert checkpoints (`tinyllm.conversion.table`), read
backwards. A change of layout that only moves values is inverted by moving indices.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from .._core import Weight
from ..conversion.config import CheckpointConfig
from ..conversion.family import Family, Target, To
from ..conversion.layouts import Change, Shape
from ..errors import UnsupportedError
from ..files.arrays import Array
from .row import Row

__all__ = ["Exported", "exported"]

#: Tensors that are numbers of the config there.
_COMPUTED = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")

#: Names that have no prefix.
_HEADS = ("lm_head", "embed_out")


class Exported(NamedTuple):
    """A tensor of a checkpoint.

    Attributes
    ----------
    shape : tuple of int
    types : tuple of str
        The types of the GGUF tensors that it is made of.
    read : callable
        Reads the tensor and returns it as a float32 array.
    """

    shape: tuple[int, ...]
    types: tuple[str, ...]
    read: Callable[[], Array]


class _Choice(NamedTuple):
    """A tensor of a checkpoint, with ``*`` for numbers of experts, and what it becomes."""

    pattern: str
    targets: tuple[To, ...]


def exported(
    weights: Mapping[str, Weight],
    family: Family,
    row: Row,
    config: CheckpointConfig,
    layers: int,
) -> dict[str, Exported]:
    """Return the tensors of a checkpoint by name.

    Parameters
    ----------
    weights : mapping of str to Weight
        The tensors of the GGUF file.
    family : Family
        How checkpoints of the architecture are converted.
    row : Row
        How the architecture is exported.
    config : CheckpointConfig
        The config of the checkpoint.
    layers : int
        The number of blocks. Tensors of further blocks, which are drafts, are left out.

    Returns
    -------
    dict of str to Exported

    Raises
    ------
    tinyllm.UnsupportedError
        If a tensor has no place in the checkpoint.
    """
    names = {**family.names, **(family.more_names(config) if family.more_names else {})}
    choices = list(_choices(names, row))
    result: dict[str, Exported] = {}
    unknown: list[str] = []
    for block, group in _blocks(weights, layers):
        left = dict(group)
        for choice in choices:
            parts = [left.get(target.name) for target in choice.targets]
            if any(part is None for part in parts):
                continue
            whole = [part for part in parts if part is not None]
            for target in choice.targets:
                del left[target.name]
            for name, tensor in _tensors(choice, whole, config):
                result[_full(name, block, row)] = tensor
        prefix = "" if block is None else f"blk.{block}."
        unknown += [f"{prefix}{name}" for name in left]
    if unknown:
        raise UnsupportedError(
            f"{row.cls} of Hugging Face has no place for {', '.join(unknown[:5])}"
            + (f" and {len(unknown) - 5} more" if len(unknown) > 5 else "")
        )
    return result


def _full(name: str, block: int | None, row: Row) -> str:
    if block is not None:
        return f"{row.prefix}{row.blocks}.{block}.{name}"
    return name if name.rpartition(".")[0] in _HEADS else f"{row.prefix}{name}"


def _blocks(
    weights: Mapping[str, Weight], layers: int
) -> Iterator[tuple[int | None, dict[str, Weight]]]:
    """Yield the tensors outside of blocks, and those of each block, by their names there."""
    groups: dict[int | None, dict[str, Weight]] = {None: {}}
    groups.update((i, {}) for i in range(layers))
    for name, weight in weights.items():
        match = re.fullmatch(r"blk\.(\d+)\.(.*)", name)
        if match is None and name not in _COMPUTED:
            groups[None][name] = weight
        elif match is not None and int(match[1]) < layers:
            groups[int(match[1])][match[2]] = weight
    yield from groups.items()


def _choices(names: Mapping[str, Target], row: Row) -> Iterator[_Choice]:
    """Yield what a row of the conversion has names for, the likeliest first.

    A class has its own names after those that it shares with others. Tensors of single experts
    come before those of all experts: every version of transformers reads them.
    """
    entries = [
        (name, target)
        for name, target in reversed(list(names.items()))
        if not name.startswith(row.without)
    ]
    entries.sort(key=lambda entry: "*" not in entry[0])
    for name, target in entries:
        group = (target,) if isinstance(target, str | To) else target
        targets = tuple(To(to) if isinstance(to, str) else to for to in group)
        if targets[0].name.endswith((".weight", ".bias")):
            yield _Choice(name, targets)
        else:
            for suffix in (".weight", ".bias"):
                whole = tuple(To(to.name + suffix, to.change) for to in targets)
                yield _Choice(name + suffix, whole)


def _tensors(
    choice: _Choice, weights: Sequence[Weight], config: CheckpointConfig
) -> Iterator[tuple[str, Exported]]:
    changes = [target.change for target in choice.targets]
    types = tuple(weight.type for weight in weights)
    if "*" not in choice.pattern:
        shapes = [weight.shape for weight in weights]
        shape = _source_shape(choice.pattern, shapes, changes, config)
        yield choice.pattern, Exported(shape, types, _reader(weights, None, shape, changes, config))
        return
    shapes = [weight.shape[1:] for weight in weights]
    shape = _source_shape(choice.pattern, shapes, changes, config)
    for i in range(weights[0].shape[0]):
        name = choice.pattern.replace("*", str(i))
        yield name, Exported(shape, types, _reader(weights, i, shape, changes, config))


def _reader(
    weights: Sequence[Weight],
    index: int | None,
    shape: Shape,
    changes: Sequence[Change | None],
    config: CheckpointConfig,
) -> Callable[[], Array]:
    def read() -> Array:
        arrays = [weight.numpy() if index is None else weight.numpy(index) for weight in weights]
        for weight in weights:
            weight.forget()
        return _restored(arrays, shape, changes, config)

    return read


# ---- layouts ----


def _source_shape(
    name: str,
    shapes: Sequence[Shape],
    changes: Sequence[Change | None],
    config: CheckpointConfig,
) -> Shape:
    """Return the shape of which the changes make these shapes."""
    size = sum(math.prod(shape) for shape in shapes)
    for candidate in _candidates(shapes[0], len(shapes)):
        try:
            made = [c.shape(candidate, config) if c else candidate for c in changes]
        except (ValueError, IndexError):
            continue
        if math.prod(candidate) == size and made == list(shapes):
            return candidate
    raise UnsupportedError(f"{name} has a layout that cannot be turned back")


def _candidates(shape: Shape, parts: int) -> Iterator[Shape]:
    swapped = (*shape[:-2], *shape[:-3:-1])
    for base in dict.fromkeys((shape, swapped)):
        if parts == 1:
            yield base
        for axis in range(len(base)) if parts > 1 else ():
            yield (*base[:axis], base[axis] * parts, *base[axis + 1 :])


def _restored(
    arrays: Sequence[Array],
    shape: Shape,
    changes: Sequence[Change | None],
    config: CheckpointConfig,
) -> Array:
    """Return the array of which the changes make these arrays."""
    if len(arrays) == 1 and changes[0] is None:
        return arrays[0]
    if len(arrays) == 1 and changes[0] is not None and changes[0].undo is not None:
        return np.ascontiguousarray(changes[0].undo(arrays[0]))
    result = np.empty(math.prod(shape), np.float32)
    places = np.arange(math.prod(shape)).reshape(shape)
    for array, change in zip(arrays, changes, strict=True):
        moved = change.apply(places, config) if change is not None else places
        if moved.dtype != places.dtype or moved.shape != array.shape:
            raise UnsupportedError("a layout changes values in a way that cannot be turned back")
        result[moved.reshape(-1)] = array.reshape(-1)
    return result.reshape(shape)
