"""Checks of arguments: integers, ranges, indices and choices.

Every error message names the argument, its value and what was expected.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

__all__ = ["choice", "finite", "index", "integer", "is_integer", "positive", "ranged"]


def is_integer(value: object) -> bool:
    """Return whether a value is an integer, of Python or of NumPy. Booleans do not count.

    Examples
    --------
    >>> is_integer(3), is_integer(True), is_integer(3.0)
    (True, False, False)
    """
    if isinstance(value, np.ndarray):  # all arrays have __index__
        return value.ndim == 0 and np.issubdtype(value.dtype, np.integer)
    return hasattr(value, "__index__") and not isinstance(value, (bool, np.bool_))


def integer(name: str, value: Any, expected: str = "an integer") -> int:
    """Return an integer argument as an int.

    Parameters
    ----------
    name : str
        Name of the argument in the message.
    value : object
    expected : str
        Expected value in the message.

    Raises
    ------
    TypeError
        If `value` is not an integer.

    Examples
    --------
    >>> integer("threads", 2)
    2
    """
    if not is_integer(value):
        raise TypeError(f"{name} is {value!r}; expected {expected}")
    return int(value)


def ranged(name: str, value: Any, low: int, high: int | None = None, what: str = "") -> int:
    """Return an integer argument as an int, checked to be in a range.

    Parameters
    ----------
    name : str
        Name of the argument in the message.
    value : object
    low, high : int
        The limits, both inclusive. If `high` is None, there is no upper limit.
    what : str
        Meaning of the upper limit, added to the end of the message.

    Raises
    ------
    TypeError
        If `value` is not an integer.
    ValueError
        If it is out of range.

    Examples
    --------
    >>> ranged("window", 4, 2, 8)
    4
    """
    number = integer(name, value)
    if number < low or (high is not None and number > high):
        limits = f"at least {low}" if high is None else f"{low} to {high}"
        raise ValueError(f"{name} is {value}; expected {limits}{what and ', '}{what}")
    return number


def positive(name: str, value: Any) -> float:
    """Return a number argument as a float, checked to be positive and finite.

    Parameters
    ----------
    name : str
        Name of the argument in the message.
    value : object

    Raises
    ------
    TypeError
        If `value` is not a number.
    ValueError
        If it is not positive and finite.

    Examples
    --------
    >>> positive("timeout", 2)
    2.0
    """
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, (int, float, np.number)):
        raise TypeError(f"{name} is {value!r}; expected a number")
    if not 0 < value < np.inf:
        raise ValueError(f"{name} is {value!r}; expected a positive, finite number")
    return float(value)


def index(name: str, value: Any, size: int, last: int | None = None) -> int:
    """Return an index into `size` items as a non-negative int.

    Parameters
    ----------
    name : str
        Name of the argument in the message.
    value : object
        The index. Negative values count from the end.
    size : int
        The number of items.
    last : int, optional
        The largest allowed index. Default: ``size - 1``.

    Raises
    ------
    TypeError
        If `value` is not an integer.
    IndexError
        If it is out of range.

    Examples
    --------
    >>> index("layer", -1, 6)
    5
    """
    number = integer(name, value)
    last = size - 1 if last is None else last
    if not -size <= number <= last:
        raise IndexError(f"{name} is {value}; expected 0 to {last}")
    return number + size if number < 0 else number


def choice(name: str, value: Any, choices: Sequence[str]) -> str:
    """Return a string argument, checked to be one of the choices.

    Raises
    ------
    ValueError
        If `value` is not among them.

    Examples
    --------
    >>> choice("mode", "fast", ("exact", "fast"))
    'fast'
    """
    if value not in choices:
        raise ValueError(f"{name} is {value!r}; expected {' or '.join(map(repr, choices))}")
    return str(value)


def finite(name: str, value: Any) -> float:
    """Return a number argument as a float, checked to be finite.

    Parameters
    ----------
    name : str
        Name of the argument in the message.
    value : object

    Raises
    ------
    TypeError
        If `value` is not a number.
    ValueError
        If it is infinite or not a number.

    Examples
    --------
    >>> finite("scale", 2)
    2.0
    """
    if isinstance(value, (bool, str)) or not hasattr(value, "__float__"):
        raise TypeError(f"{name} is {value!r}; expected a number")
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(f"{name} is {value!r}; expected a finite number")
    return number
