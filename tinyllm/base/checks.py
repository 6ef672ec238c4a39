"""Checks of arguments: integers, flags, ranges, choices, each with its message.

A message names the argument, its value and what was expected.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

__all__ = ["choice", "index", "integer", "is_integer", "ranged"]


def is_integer(value: object) -> bool:
    """Whether a value is an integer of any kind; True and False are not.

    Examples
    --------
    >>> is_integer(3), is_integer(True), is_integer(3.0)
    (True, False, False)
    """
    return hasattr(value, "__index__") and not isinstance(value, (bool, np.bool_))


def integer(name: str, value: Any, expected: str = "an integer") -> int:
    """Return an integer argument as an int.

    Parameters
    ----------
    name : str
        What the message calls the argument.
    value : object
    expected : str
        What the message says is expected.

    Raises
    ------
    TypeError
        It is not an integer.

    Examples
    --------
    >>> integer("threads", 2)
    2
    """
    if not is_integer(value):
        raise TypeError(f"{name} is {value!r}; expected {expected}")
    return int(value)


def ranged(name: str, value: Any, low: int, high: int | None = None, what: str = "") -> int:
    """Return an integer argument that lies between two limits, both included.

    Parameters
    ----------
    name : str
    value : object
    low, high : int
        `high` None: no upper limit.
    what : str
        Says what the upper limit is, at the end of the message.

    Raises
    ------
    TypeError
        It is not an integer.
    ValueError
        It lies outside.

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


def index(name: str, value: Any, size: int, last: int | None = None) -> int:
    """Return an index into `size` things as a number from 0; negative ones count from the end.

    Parameters
    ----------
    name : str
    value : object
    size : int
    last : int, optional
        The largest index that is allowed, if it is not ``size - 1``.

    Raises
    ------
    TypeError
        It is not an integer.
    IndexError
        There is no such thing.

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
    """Return an argument that is one of a few texts.

    Raises
    ------
    ValueError
        It is another one.

    Examples
    --------
    >>> choice("mode", "fast", ("exact", "fast"))
    'fast'
    """
    if value not in choices:
        raise ValueError(f"{name} is {value!r}; expected {' or '.join(map(repr, choices))}")
    return str(value)
