"""Samples of the values of weights, so that a table of weights need not read the whole file."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

from .. import _core
from .._core import Weight
from .numeric import Float32

__all__ = ["MOST_SAMPLED", "STRETCH", "WeightSample", "sample_weight", "sample_weights"]

#: Number of consecutive values in one stretch, the unit in which a large tensor is sampled.
STRETCH = 512

#: Number of tensors in one table that are sampled. More would keep a notebook waiting.
MOST_SAMPLED = 1024


def sample_weight(weight: Weight, stretches: int) -> Float32:
    """Return all values of a small weight, or evenly spaced stretches of a large one.

    The same weight always gives the same values.

    Parameters
    ----------
    weight : Weight
    stretches : int
        The number of stretches, at least 2. It applies to a weight of more than
        ``stretches * STRETCH`` values. Each stretch is `STRETCH` consecutive values. The first
        and the last stretch of the weight are included. Nothing else is read.

    Returns
    -------
    numpy.ndarray of float32, shape (n,)

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
        weight.check()
        weight = _core.Weight("", (stretches, STRETCH), weight.type, chosen.tobytes())
    values: Float32 = weight.numpy().reshape(-1)
    return values


class WeightSample(NamedTuple):
    """A weight's description and a sample of its values.

    Attributes
    ----------
    name, type : str
    shape : tuple of int
    nbytes : int
    values : numpy.ndarray of float32, shape (n,), or None
        The sample. None if nothing was read.
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
        Only the first `MOST_SAMPLED` are read.
    stretches : int
        As in `sample_weight`.

    Yields
    ------
    WeightSample
    """
    for i, weight in enumerate(weights):
        values = sample_weight(weight, stretches) if i < MOST_SAMPLED else None
        yield WeightSample(weight.name, weight.type, weight.shape, weight.nbytes, values)
