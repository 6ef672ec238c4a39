"""Changes of layout between a Hugging Face tensor and its GGUF tensor.

A `Change` is a function of an array, and the shape that it gives, so that a file's header can be
written before any tensor is read. Changes of rows treat weights and biases alike: both have the
outputs as their first axis.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from ..errors import wrong
from ..files.arrays import Array
from .config import CheckpointConfig

__all__ = [
    "Change",
    "Count",
    "Shape",
    "column",
    "columns",
    "flattened",
    "heads",
    "in_groups",
    "kv_heads",
    "negative_exp",
    "permuted",
    "plus_one",
    "rows",
    "scaled",
    "squeezed",
    "then",
    "tiled",
    "transposed",
    "ungrouped",
    "without_first",
]

Shape = tuple[int, ...]
Count = Callable[[CheckpointConfig], int]


class Change(NamedTuple):
    """A change of layout.

    Attributes
    ----------
    apply : callable
        From the array and the config to the changed array.
    shape : callable
        From the shape and the config to the changed shape.
    undo : callable or None
        From a changed array to the array before, for a change of values. A change that only moves
        values is inverted by what it does with indices.
    """

    apply: Callable[[Array, CheckpointConfig], Array]
    shape: Callable[[Shape, CheckpointConfig], Shape] = lambda shape, config: shape
    undo: Callable[[Array], Array] | None = None


def heads(config: CheckpointConfig) -> int:
    """Return the number of query heads."""
    return config.heads


def kv_heads(config: CheckpointConfig) -> int:
    """Return the number of kv heads."""
    return config.kv_heads


def _divided(size: int, parts: int, what: str) -> int:
    if parts < 1 or size % parts:
        raise wrong(what, size, f"a multiple of {parts}")
    return size // parts


def permuted(count: Count) -> Change:
    """Reorder the rows of each head from halves (j, j + n/2) to pairs (2j, 2j + 1).

    Hugging Face rotates value j of a head with value j + n/2. The architectures with this change
    rotate neighbours in llama.cpp.

    Parameters
    ----------
    count : callable
        Gives the number of heads from the config.

    Returns
    -------
    Change

    Examples
    --------
    >>> import numpy as np
    >>> from tinyllm.conversion.config import CheckpointConfig
    >>> from tinyllm.conversion.layouts import permuted
    >>> permuted(lambda config: 2).apply(np.arange(8), CheckpointConfig({}))
    array([0, 2, 1, 3, 4, 6, 5, 7])
    """

    def apply(array: Array, config: CheckpointConfig) -> Array:
        number = count(config)
        half = _divided(array.shape[0], 2 * number, "the number of rows of queries or keys")
        split = array.reshape(number, 2, half, -1)
        return split.swapaxes(1, 2).reshape(array.shape)

    return Change(apply)


def ungrouped(groups: Count) -> Change:
    """Reorder the rows of fused queries, keys and values from group after group to q, k, v.

    Each group holds some query heads, one key head and one value head.

    Parameters
    ----------
    groups : callable
        Gives the number of groups from the config.

    Returns
    -------
    Change

    Examples
    --------
    >>> import numpy as np
    >>> from tinyllm.conversion.config import CheckpointConfig
    >>> from tinyllm.conversion.layouts import ungrouped
    >>> config = CheckpointConfig({"num_attention_heads": 2})
    >>> ungrouped(lambda config: 2).apply(np.arange(6), config)
    array([0, 3, 1, 4, 2, 5])
    """

    def apply(array: Array, config: CheckpointConfig) -> Array:
        number = groups(config)
        queries = _divided(config.heads, number, "the number of heads")
        size = _divided(
            array.shape[0], number * (queries + 2), "the number of rows of queries, keys and values"
        )
        grouped = array.reshape(number, queries + 2, size, -1)
        parts = (grouped[:, :-2], grouped[:, -2:-1], grouped[:, -1:])
        joined = np.concatenate([part.reshape(-1, grouped.shape[-1]) for part in parts])
        return joined.reshape(array.shape)

    return Change(apply)


def rows(index: int, parts: int, axis: int = 0) -> Change:
    """Take one of several equal parts.

    Parameters
    ----------
    index, parts : int
        The part, and the number of parts.
    axis : int
        The axis that is cut: 0 for a matrix, -2 for the matrices of experts.

    Returns
    -------
    Change

    Examples
    --------
    >>> import numpy as np
    >>> from tinyllm.conversion.config import CheckpointConfig
    >>> from tinyllm.conversion.layouts import rows
    >>> rows(1, 2).apply(np.arange(6), CheckpointConfig({}))
    array([3, 4, 5])
    """

    def shape(old: Shape, config: CheckpointConfig) -> Shape:
        new = list(old)
        new[axis] = _divided(old[axis], parts, "the number of rows of a fused tensor")
        return tuple(new)

    return Change(lambda array, config: np.split(array, parts, axis)[index], shape)


def columns(index: int, step: int) -> Change:
    """Take every `step`-th value of the last axis, beginning with `index`."""

    def shape(old: Shape, config: CheckpointConfig) -> Shape:
        return (*old[:-1], _divided(old[-1], step, "the last size of an interleaved tensor"))

    return Change(lambda array, config: array[..., index::step], shape)


#: Swap the last two axes of a matrix. Vectors stay as they are.
transposed = Change(
    lambda array, config: array.swapaxes(-1, -2) if array.ndim > 1 else array,
    lambda shape, config: (*shape[:-2], *shape[:-3:-1]),
)

#: Drop the second axis, of size 1: the kernels of depthwise convolutions.
squeezed = Change(
    lambda array, config: array.reshape(array.shape[0], *array.shape[2:]),
    lambda shape, config: (shape[0], *shape[2:]) if shape[1] == 1 else shape,
)

#: From the logarithm of a decay to the decay with its sign.
negative_exp = Change(lambda array, config: -np.exp(array), undo=lambda array: np.log(-array))

#: One axis instead of several.
flattened = Change(
    lambda array, config: array.reshape(-1), lambda shape, config: (math.prod(shape),)
)

#: A last axis of size 1 more.
column = Change(lambda array, config: array[..., np.newaxis], lambda shape, config: (*shape, 1))

#: Add 1: the weights of norms that are stored minus 1.
plus_one = Change(
    lambda array, config: array + np.float32(1), undo=lambda array: array - np.float32(1)
)


def then(*changes: Change) -> Change:
    """Make one change of several, applied in this order."""

    def apply(array: Array, config: CheckpointConfig) -> Array:
        for change in changes:
            array = change.apply(array, config)
        return array

    def shape(old: Shape, config: CheckpointConfig) -> Shape:
        for change in changes:
            old = change.shape(old, config)
        return old

    return Change(apply, shape)


def without_first(count: Count) -> Change:
    """Drop the first rows."""

    def shape(old: Shape, config: CheckpointConfig) -> Shape:
        return (max(old[0] - count(config), 0), *old[1:])

    return Change(lambda array, config: array[count(config) :], shape)


def tiled(groups: Count, parts: Count, before: Count, axis: int = 0) -> Change:
    """Reorder heads from the parts of group 0, of group 1 and so on to all first parts, all second.

    Parameters
    ----------
    groups : callable
        Gives the number of groups from the config.
    parts : callable
        Gives the number of heads in a group.
    before : callable
        Gives the number of rows before the heads, which stay in place.
    axis : int
        The axis of the heads.

    Returns
    -------
    Change

    Examples
    --------
    >>> import numpy as np
    >>> from tinyllm.conversion.config import CheckpointConfig
    >>> from tinyllm.conversion.layouts import tiled
    >>> two, three, none = lambda config: 2, lambda config: 3, lambda config: 0
    >>> tiled(two, three, none).apply(np.arange(6), CheckpointConfig({}))
    array([0, 3, 1, 4, 2, 5])
    """

    def apply(array: Array, config: CheckpointConfig) -> Array:
        moved = np.moveaxis(array, axis, 0)
        first = before(config)
        size = _divided(
            moved.shape[0] - first, groups(config) * parts(config), "the number of rows of heads"
        )
        heads = moved[first:].reshape(groups(config), parts(config), size, *moved.shape[1:])
        turned = heads.swapaxes(0, 1).reshape(-1, *moved.shape[1:])
        return np.moveaxis(np.concatenate([moved[:first], turned]), 0, axis)

    return Change(apply)


def in_groups(count: Count) -> Change:
    """Cut the first axis into groups of equal size: (n, ...) becomes (groups, n / groups, ...)."""

    def shape(old: Shape, config: CheckpointConfig) -> Shape:
        groups = count(config)
        return (groups, _divided(old[0], groups, "the number of rows"), *old[1:])

    return Change(lambda array, config: array.reshape(shape(array.shape, config)), shape)


def scaled(factor: Callable[[CheckpointConfig], float]) -> Change:
    """Multiply by a number of the config."""
    return Change(lambda array, config: array * np.float32(factor(config)))
