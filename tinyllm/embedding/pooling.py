"""Pooling: one vector from the final hidden states of a text."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from ..base.numeric import Float32, Float64
from ..errors import wrong

__all__ = ["POOLINGS", "pool", "pooling_of"]

#: Ways to pool (T, D) to (D,), in the order of the numbers of the key ``pooling_type``. "rank" is
#: the first token, as "cls", before the model's classifier.
POOLINGS: dict[str, Callable[[Float64], Float64]] = {
    "none": lambda states: states,
    "mean": lambda states: np.mean(states, axis=0),
    "cls": lambda states: states[0],
    "last": lambda states: states[-1],
    "rank": lambda states: states[0],
}


def pooling_of(metadata: Mapping[str, Any], causal: bool) -> str:
    """Return how a file's model pools.

    Parameters
    ----------
    metadata : mapping
        GGUF keys and values.
    causal : bool
        Whether a token sees only earlier tokens. Then the default is "last", else "mean".

    Returns
    -------
    str
        A key of `POOLINGS`.

    Raises
    ------
    tinyllm.FormatError
        If the key ``pooling_type`` has an unknown value.

    Examples
    --------
    >>> from tinyllm.embedding.pooling import pooling_of
    >>> pooling_of({"general.architecture": "bert", "bert.pooling_type": 2}, causal=False)
    'cls'
    """
    key = f"{metadata['general.architecture']}.pooling_type"
    number = metadata.get(key)
    if number is None:
        return "last" if causal else "mean"
    names = list(POOLINGS)
    if not isinstance(number, (int, np.integer)) or not 0 <= number < len(names):
        raise wrong(key, number, f"0 to {len(names) - 1}: {', '.join(names)}")
    return names[number]


def pool(states: Float32, pooling: str) -> Float64:
    """Return one vector for the rows of a text, computed in float64. (T, D) -> (D,).

    Parameters
    ----------
    states : (T, D) float32 array
    pooling : str
        A key of `POOLINGS`. "none" returns all rows.

    Returns
    -------
    float64 array

    Examples
    --------
    >>> import numpy as np
    >>> from tinyllm.embedding.pooling import pool
    >>> pool(np.array([[1, 2], [3, 4]], np.float32), "mean")
    array([2., 3.])
    """
    return POOLINGS[pooling](states.astype(np.float64))
