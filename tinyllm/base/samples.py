"""Some values of each weight, as plain arrays: what a table shows without reading whole files."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

from .. import _core
from .._core import Weight
from .numeric import Float32

__all__ = ["MOST_SAMPLED", "STRETCH", "WeightSample", "sample_weight", "sample_weights"]

#: Values that are read of a tensor in one piece, where not all of it is read.
STRETCH = 512

#: Tensors of one table that get statistics: more would keep a notebook waiting.
MOST_SAMPLED = 1024


def sample_weight(weight: Weight, stretches: int) -> Float32:
    """Values of a weight: all, or the same evenly spaced stretches each time.

    Parameters
    ----------
    weight : Weight
    stretches : int
        At least 2. A weight of more than ``stretches * STRETCH`` values gives so many stretches
        of `STRETCH` consecutive values, the first and the last among them; only these are read.

    Returns
    -------
    numpy.ndarray of float32, one axis

    Raises
    ------
    tinyllm.UnsupportedError
        There is no formula for the type.

    Examples
    --------
    >>> import numpy as np
    >>> from tinyllm._core import Weight
    >>> from tinyllm.base.samples import sample_weight
    >>> w = Weight("w", (4, 1024), "F32", np.arange(4096, dtype="<f4").tobytes())
    >>> sample_weight(w, 2)[[0, 511, 512, 1023]]
    array([   0.,  511., 3584., 4095.], dtype=float32)
    """
    items, size = _core.tensor_types()[weight.type][1:3]
    blocks = STRETCH // items
    count = weight.nbytes // (blocks * size) if blocks else 0
    if count > stretches:
        parts = weight.raw.reshape(-1)[: count * blocks * size].reshape(count, blocks * size)
        chosen = parts[np.arange(stretches) * (count - 1) // (stretches - 1)]
        weight = _core.Weight("", (stretches, STRETCH), weight.type, chosen.tobytes())
    values: Float32 = weight.numpy().reshape(-1)
    return values


class WeightSample(NamedTuple):
    """What a table shows of a weight.

    Attributes
    ----------
    name, type : str
    shape : tuple of int
    nbytes : int
    values : numpy.ndarray of float32 or None
        What was read of it; None: nothing.
    """

    name: str
    type: str
    shape: tuple[int, ...]
    nbytes: int
    values: Float32 | None


def sample_weights(weights: Iterable[Weight], stretches: int = 16) -> Iterator[WeightSample]:
    """Yield a sample of each weight.

    Parameters
    ----------
    weights : iterable of Weight
        Nothing is read of those after the first `MOST_SAMPLED`, and of those of a type without
        a formula.
    stretches : int
        See `sample_weight`.

    Yields
    ------
    WeightSample
    """
    for i, weight in enumerate(weights):
        values = None
        if i < MOST_SAMPLED:
            try:
                values = sample_weight(weight, stretches)
            except NotImplementedError:  # a type without a formula
                pass
        yield WeightSample(weight.name, weight.type, weight.shape, weight.nbytes, values)
