r"""Unicode properties as character classes of the standard library's `re`.

The pre-tokenizer expressions of models use ``\p{L}``, ``\p{N}`` and so on, which `re` lacks. They
also use ``\s``, to which `re` adds U+001C to U+001F. Both become explicit ranges.
"""

from __future__ import annotations

import functools
import re

from .unicode_table import RANGES

__all__ = ["class_body", "code_points", "code_ranges", "to_re"]

Ranges = tuple[tuple[int, int], ...]


@functools.cache
def code_ranges(name: str) -> Ranges:
    """Return the ``(first, last)`` ranges of a property.

    Parameters
    ----------
    name : str
        A general category (``"Lu"``), a group of them (``"L"``), ``"Han"`` or ``"White_Space"``.

    Returns
    -------
    tuple of (int, int)
        Sorted, without overlaps.

    Raises
    ------
    KeyError
        If there is no such property.

    Examples
    --------
    >>> code_ranges("Zs")[:2]
    ((32, 32), (160, 160))
    """
    names = [name] if name in RANGES else [n for n in RANGES if len(name) == 1 and n[0] == name]
    if not names:
        raise KeyError(f"no Unicode property {name!r}; expected one of {', '.join(RANGES)}")
    found = []
    for word in " ".join(RANGES[n] for n in names).split():
        first, _, last = word.partition("-")
        found.append((int(first, 16), int(last or first, 16)))
    merged: list[tuple[int, int]] = []
    for first_code, last_code in sorted(found):
        if merged and merged[-1][1] + 1 == first_code:
            merged[-1] = (merged[-1][0], last_code)
        else:
            merged.append((first_code, last_code))
    return tuple(merged)


@functools.cache
def code_points(*names: str) -> frozenset[str]:
    """Return the characters of some properties as a set.

    Parameters
    ----------
    *names : str
        As in `code_ranges`.

    Returns
    -------
    frozenset of str

    Examples
    --------
    >>> "é" in code_points("L"), "é" in code_points("N")
    (True, False)
    """
    return frozenset(
        chr(code) for name in names for a, b in code_ranges(name) for code in range(a, b + 1)
    )


@functools.cache
def class_body(name: str) -> str:
    r"""Return the content of the brackets of a character class of `re`.

    Parameters
    ----------
    name : str
        As in `code_ranges`.

    Returns
    -------
    str

    Examples
    --------
    >>> class_body("Zl")
    '\\u2028'
    """
    return "".join(
        _escape(a) if a == b else f"{_escape(a)}-{_escape(b)}" for a, b in code_ranges(name)
    )


def _escape(code: int) -> str:
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


_SHORT = {"s": "White_Space", "d": "Nd"}
_PROPERTY = re.compile(r"\\p\{(\w+)\}")


def to_re(expression: str) -> re.Pattern[str]:
    r"""Compile an expression with ``\p{..}``, ``\s``, ``\S`` and ``\d`` for `re`.

    Parameters
    ----------
    expression : str
        ``\S`` is not supported inside brackets.

    Returns
    -------
    re.Pattern

    Examples
    --------
    >>> to_re(r" ?\p{L}+|\s+").findall("né  \u3000x")
    ['né', '  \u3000', 'x']
    """
    out: list[str] = []
    at = 0
    in_class = False
    while at < len(expression):
        char = expression[at]
        width = 1
        text = char
        if char == "\\":
            width = 2
            kind = expression[at + 1]
            match = _PROPERTY.match(expression, at)
            if match:
                width = match.end() - at
                text = class_body(match.group(1))
            elif kind in "sdS":
                text = class_body(_SHORT[kind.lower()])
            else:
                text = expression[at : at + 2]
            if (match or kind in "sdS") and not in_class:
                text = f"[^{text}]" if kind == "S" else f"[{text}]"
        elif char == "[" and not in_class:
            in_class = True
        elif char == "[":
            text = r"\["
        elif char == "]" and in_class:
            in_class = False
        out.append(text)
        at += width
    return re.compile("".join(out))
