"""Warnings that point at the caller's line, not at ours."""

from __future__ import annotations

import sys
import warnings

from ..errors import printable

__all__ = ["warn"]


def warn(message: str, category: type[Warning] = UserWarning) -> None:
    """Issue a warning for the first line of the call stack that is outside this package.

    Parameters
    ----------
    message : str
        Control characters in it, which may come from a file, become escapes.
    category : type

    Examples
    --------
    >>> import warnings
    >>> with warnings.catch_warnings(record=True) as said:
    ...     warnings.simplefilter("always")
    ...     warn("mind the gap")
    >>> str(said[0].message)
    'mind the gap'
    """
    package = __name__.split(".")[0]
    level, frame = 1, sys._getframe()
    while frame.f_back is not None:
        name = frame.f_globals.get("__name__", "")
        if name != package and not name.startswith(f"{package}."):
            break
        level, frame = level + 1, frame.f_back
    warnings.warn(printable(message), category, stacklevel=level)
