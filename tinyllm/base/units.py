"""Numbers of bytes as text."""

from __future__ import annotations

__all__ = ["size"]


def size(nbytes: int) -> str:
    """Return a number of bytes with three digits and a unit, a power of 1000.

    Parameters
    ----------
    nbytes : int

    Returns
    -------
    str

    Examples
    --------
    >>> size(512), size(13_807_620), size(999_999_999)
    ('512 B', '13.8 MB', '1.00 GB')
    """
    if abs(nbytes) < 1000:
        return f"{nbytes} B"
    value, units = nbytes / 1000, ["kB", "MB", "GB", "TB"]
    while abs(value) >= 999.5 and len(units) > 1:  # it would be shown as 1000
        value /= 1000
        units.pop(0)
    digits = 2 if abs(value) < 9.995 else 1 if abs(value) < 99.95 else 0
    return f"{value:,.{digits}f} {units[0]}"
