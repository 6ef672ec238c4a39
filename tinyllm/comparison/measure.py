"""How far two arrays of one tap are apart: by token, by head, and at the worst element."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ..base.numeric import Float32, Float64
from ..trace.layouts import MASKED

__all__ = ["Measure", "measure"]

#: Values of a block of tokens that are compared at a time.
_BLOCK = 1 << 22


class Measure(NamedTuple):
    """The distance of two arrays with T tokens and H heads. Without heads, H is 1.

    Attributes
    ----------
    errors : numpy.ndarray of float64, shape (T, H)
        The norm of the difference, divided by the norm of the first array, of each token: of all
        its heads for the whole token, see `by_token`.
    by_token : numpy.ndarray of float64, shape (T,)
    cosines : numpy.ndarray of float64, shape (T,)
    strange : numpy.ndarray of str, shape (T,)
        ``"NaN"``, ``"inf"`` or ``"mask"`` where the second array has such a value and the first one
        has not, else ``""``. A mask is different if only one side is masked.
    """

    errors: Float64
    by_token: Float64
    cosines: Float64
    strange: npt.NDArray[np.str_]


def by_heads(array: Float32, matrix: bool, heads: bool) -> Float32:
    """Return a view with the axes token, head, and one more."""
    if matrix:
        return array.swapaxes(0, 1)
    if array.ndim == 1:
        return array[:, np.newaxis, np.newaxis]
    if heads and array.ndim > 2:
        return array.reshape(len(array), array.shape[1], -1)
    return array.reshape(len(array), 1, -1)


def measure(a: Float32, b: Float32, matrix: bool, heads: bool) -> Measure:
    """Compare two arrays of one shape.

    The norm of a token counts as at least a thousandth of the usual norm, so that a token that is
    almost zero does not count as far apart.

    Parameters
    ----------
    a, b : numpy.ndarray of float32, shape (T, ...) or (H, T, S)
    matrix : bool
        Whether the axes are (H, T, S). Then scores below -1e4 count as masked.
    heads : bool
        Whether axis 1 of (T, ...) counts heads.

    Returns
    -------
    Measure

    Examples
    --------
    >>> import numpy as np
    >>> from tinyllm.comparison.measure import measure
    >>> a = np.ones((2, 4), np.float32)
    >>> b = a + np.float32([[0], [0.1]])
    >>> measure(a, b, False, False).by_token.round(3)
    array([0. , 0.1])
    """
    tokens = by_heads(a, matrix, heads).shape[:2]
    squares, size, dot, other = (np.zeros(tokens) for _ in range(4))
    strange = np.full(tokens[0], "", dtype="<U4")
    for rows, x, y in _blocks(by_heads(a, matrix, heads), by_heads(b, matrix, heads)):
        x, y, apart = _parts(x, y, matrix)
        for name, where in apart.items():
            strange[rows][where.any((1, 2))] = name
        squares[rows] = ((x - y) ** 2).sum(-1)
        size[rows], other[rows] = (x**2).sum(-1), (y**2).sum(-1)
        dot[rows] = (x * y).sum(-1)
    least = 1e-3 * np.sqrt(size.sum(1).mean()) if size.size else 0.0
    tiny = np.finfo(np.float64).tiny ** 0.5
    norms = np.maximum(np.sqrt(size.sum(1)), max(least, tiny))
    product = np.sqrt(size.sum(1) * other.sum(1))
    with np.errstate(invalid="ignore", divide="ignore"):
        cosines = np.where(product > 0, dot.sum(1) / product, 1.0)
    return Measure(
        np.sqrt(squares) / norms[:, np.newaxis], np.sqrt(squares.sum(1)) / norms, cosines, strange
    )


def _blocks(a: Float32, b: Float32) -> Iterator[tuple[slice, Float64, Float64]]:
    step = max(1, _BLOCK // max(a[:1].size, 1))
    for start in range(0, len(a), step):
        rows = slice(start, start + step)
        yield rows, a[rows].astype(np.float64), b[rows].astype(np.float64)


class _Parts(NamedTuple):
    """Finite values of both sides, and where one side has something else than the other."""

    a: Float64
    b: Float64
    strange: dict[str, npt.NDArray[np.bool_]]


def _parts(a: npt.NDArray[Any], b: npt.NDArray[Any], matrix: bool) -> _Parts:
    wrong = np.zeros(a.shape, bool)
    if matrix:
        hidden = [x < MASKED for x in (a, b)]
        wrong = hidden[0] != hidden[1]
        a, b = (np.where(hidden[0] | hidden[1], 0.0, x) for x in (a, b))
    same = (a == b) | (np.isnan(a) & np.isnan(b))
    known = np.isfinite(a) & np.isfinite(b)
    strange = {
        "mask": wrong,
        "inf": ~same & (np.isinf(a) | np.isinf(b)),
        "NaN": ~same & (np.isnan(a) | np.isnan(b)),
    }
    return _Parts(np.where(known, a, 0.0), np.where(known, b, 0.0), strange)


def worst(a: Float32, b: Float32, matrix: bool = False) -> tuple[int, ...]:
    """Return the index of the largest difference. What only one side has counts as infinite.

    Parameters
    ----------
    a, b : numpy.ndarray of one shape
    matrix : bool
        As in `measure`.

    Returns
    -------
    tuple of int

    Examples
    --------
    >>> import numpy as np
    >>> from tinyllm.comparison.measure import worst
    >>> worst(np.float32([1, 2, 3]), np.float32([1, np.nan, 9]))
    (1,)
    """
    if np.ndim(a) == 0:
        return ()
    x, y, strange = _parts(a, b, matrix)
    apart = np.where(np.any(list(strange.values()), axis=0), np.inf, np.abs(x - y))
    return tuple(int(i) for i in np.unravel_index(int(apart.argmax()), apart.shape))
