"""The differences between two sequences of tokens."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from .base import Tokenizer

__all__ = ["TokenDiff", "diff_tokens"]


@dataclass(frozen=True)
class TokenDiff:
    """The differences between two token sequences; ``print`` lists them.

    Parameters
    ----------
    equal : bool
        Whether the sequences are the same.
    first : int or None
        The position of the first difference; None if there is none.
    changes : list of (tuple, tuple)
        The ranges that differ, in order: ``(start, stop, tokens)`` in `a`, and in `b`.
    """

    equal: bool
    first: int | None
    changes: list[tuple[tuple[int, int, list[str]], tuple[int, int, list[str]]]]

    def __str__(self) -> str:
        if self.equal:
            return "the same tokens"
        lines = []
        for (start, _, left), (other, _, right) in self.changes:
            lines.append(f"a[{start}:{start + len(left)}]  {' '.join(left) or '(nothing)'}")
            lines.append(f"b[{other}:{other + len(right)}]  {' '.join(right) or '(nothing)'}")
        return "\n".join(lines)


def diff_tokens(
    a: Iterable[int | str | bytes],
    b: Iterable[int | str | bytes],
    tokenizer: Tokenizer | None = None,
) -> TokenDiff:
    """Return the differences between two sequences of tokens.

    Parameters
    ----------
    a, b : iterable of int, str or bytes
        Ids or pieces.
    tokenizer : Tokenizer, optional
        If given, the result shows ids with their pieces.

    Returns
    -------
    TokenDiff

    Raises
    ------
    TypeError
        If `a` or `b` is itself a text.

    Examples
    --------
    >>> d = diff_tokens([1, 15043], [1, 29871, 15043])
    >>> d.first
    1
    >>> print(d)
    a[1:1]  (nothing)
    b[1:2]  29871
    """
    for name, value in (("a", a), ("b", b)):
        if isinstance(value, str | bytes):
            raise TypeError(f"{name} is {type(value).__name__}; expected a sequence of tokens")
    left, right = list(a), list(b)
    start = 0
    while start < min(len(left), len(right)) and left[start] == right[start]:
        start += 1
    if start == len(left) == len(right):
        return TokenDiff(True, None, [])
    tail = 0
    while tail < min(len(left), len(right)) - start and left[-1 - tail] == right[-1 - tail]:
        tail += 1
    left_middle = left[start : len(left) - tail]
    right_middle = right[start : len(right) - tail]
    matcher = difflib.SequenceMatcher(None, left_middle, right_middle)
    changes = []
    for tag, i1, i2, j1, j2 in matcher.get_opcodes():
        if tag != "equal":
            changes.append(
                (
                    (start + i1, start + i2, _names(left_middle[i1:i2], tokenizer)),
                    (start + j1, start + j2, _names(right_middle[j1:j2], tokenizer)),
                )
            )
    return TokenDiff(False, start, changes)


def _names(tokens: Sequence[int | str | bytes], tokenizer: Tokenizer | None) -> list[str]:
    names = []
    for token in tokens:
        if isinstance(token, str | bytes):
            names.append(repr(token))
        elif tokenizer is not None and 0 <= token < len(tokenizer):
            names.append(f"{token} {tokenizer.pieces([token], 'backslashreplace')[0]!r}")
        else:
            names.append(str(token))
    return names
