"""Softmax, log-softmax and top-k of arrays."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .. import _core

__all__ = ["Float32", "Float64", "best", "log_softmax", "softmax"]

Float32: TypeAlias = NDArray[np.float32]
Float64: TypeAlias = NDArray[np.float64]


def softmax(logits: NDArray[np.floating[Any]]) -> Float64:
    """Return the softmax along the last axis, computed with NumPy's exp.

    The last bit of NumPy's exp differs between machines. Code whose result must not differ, such
    as sampling a token, uses `tinyllm._core.softmax`.

    Parameters
    ----------
    logits : ndarray of float, (..., V)

    Returns
    -------
    ndarray of float64, (..., V)

    Examples
    --------
    >>> softmax(np.zeros((1, 2)))
    array([[0.5, 0.5]])
    """
    scores = logits.astype(np.float64)
    scores = np.exp(scores - scores.max(axis=-1, keepdims=True))
    total: Float64 = scores / scores.sum(axis=-1, keepdims=True)
    return total


def log_softmax(logits: ArrayLike) -> Float64:
    """Return the log-probability of each token: x - max(x) - log(sum(exp(x - max(x)))).

    It is computed with the core's own exp, log and sum, so its bits are the same on every machine.

    Parameters
    ----------
    logits : array_like of float, (V,)

    Returns
    -------
    ndarray of float64, (V,)

    Examples
    --------
    >>> log_softmax([0.0, 0.0])
    array([-0.69314718, -0.69314718])
    """
    values = np.asarray(logits, np.float64)
    shifted = values - values.max()
    result: Float64 = shifted - _core.log([_core.sum(_core.exp(shifted))])[0]
    return result


def best(values: Float64, k: int) -> NDArray[np.int64]:
    """Return the indices of the k largest values in descending order of value.

    Among equal values, lower indices come first.

    Parameters
    ----------
    values : ndarray of float64, (n,)
    k : int

    Returns
    -------
    ndarray of int64, (min(k, n),)

    Examples
    --------
    >>> best(np.array([1.0, 3.0, 2.0, 3.0]), 3)
    array([1, 3, 2])
    """
    k = min(k, values.size)
    if k == 0:
        return np.zeros(0, np.int64)
    limit = np.partition(values, values.size - k)[values.size - k]
    found = np.flatnonzero(values >= limit)
    order: NDArray[np.int64] = found[np.argsort(-values[found], kind="stable")][:k]
    return order
