"""Steps of an encoding as a table, and the difference between two."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .base import Tokenizer

__all__ = ["Explanation", "Step", "TokenDiff", "diff_tokens"]

_SHOWN = 60


@dataclass(frozen=True)
class Step:
    """One step of an encoding.

    Parameters
    ----------
    name : str
        ``"special"``, ``"normalize"``, ``"word"``, ``"merge"``, ``"viterbi"`` or ``"tokens"``.
    text : bytes
        What the step works on, or makes.
    detail : str
        Why: the rank, the score.
    ids : list of int
        The ids that this step emits; empty for steps on the way.
    """

    name: str
    text: bytes
    detail: str = ""
    ids: list[int] = field(default_factory=list)


def _show(data: bytes) -> str:
    text = data.decode(errors="backslashreplace")
    text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return text if len(text) <= _SHOWN else text[: _SHOWN - 1] + "…"


@dataclass(frozen=True)
class Explanation:
    """The steps from a text to its ids; ``print`` shows them as a table.

    Parameters
    ----------
    steps : list of Step
    ids : list of int
        The result, as `Tokenizer.encode` gives it.
    pieces : list of bytes
        What each id stands for.
    """

    steps: list[Step]
    ids: list[int]
    pieces: list[bytes]

    def __str__(self) -> str:
        rows = [("step", "text", "why", "ids")]
        for step in self.steps:
            ids = " ".join(map(str, step.ids[:20])) + (" …" if len(step.ids) > 20 else "")
            rows.append((step.name, _show(step.text), step.detail, ids))
        widths = [max(len(row[i]) for row in rows) for i in range(3)]
        lines = []
        for name, text, detail, ids in rows:
            cells = f"{name:{widths[0]}}  {text:{widths[1]}}  {detail:{widths[2]}}  {ids}"
            lines.append(cells.rstrip())
        pairs = [f"{i} {_show(p)!r}" for i, p in zip(self.ids, self.pieces, strict=True)]
        lines.append(f"{len(self.ids)} ids: " + ", ".join(pairs))
        return "\n".join(lines)


@dataclass(frozen=True)
class TokenDiff:
    """Where two token sequences part; ``print`` shows them side by side.

    Parameters
    ----------
    equal : bool
        Whether they are the same.
    first : int or None
        The position of the first difference.
    changes : list of (tuple, tuple)
        What stands in `a` and what in `b`, in order: ``((start, stop, tokens), (...))``.
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
    """Return where two sequences of tokens part.

    Parameters
    ----------
    a, b : iterable of int, str or bytes
        Ids or pieces.
    tokenizer : Tokenizer, optional
        Names the ids by their pieces.

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
            raise TypeError(f"{name} must be a sequence of tokens, not one {type(value).__name__}")
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
