"""`Site`: the entries of a tap that an edit changes, in one piece of a call."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from ..base.numeric import Float32
from .taps import Tap

__all__ = ["Change", "Piece", "Site", "Where", "shown_value"]


#: The type of the arguments ``at=`` and ``head=``.
Where: TypeAlias = int | slice | Sequence[int] | npt.NDArray[np.integer[Any]] | None

#: ``change(values, rows)`` gets a writable copy of the selected values, and all rows of the piece.
#: It returns the new values, or None if it changed the copy in place.
Change: TypeAlias = Callable[[Float32, Float32], Any]


def shown_value(value: Any) -> str:
    """Return a short text of a value for a message."""
    if isinstance(value, np.ndarray) and value.size > 4:
        return f"<array {value.shape}>"
    if callable(value):
        return getattr(value, "__name__", type(value).__name__)
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


@dataclasses.dataclass(frozen=True)
class Piece:
    """One piece of a call: the tokens that run in one session.

    Attributes
    ----------
    start, length : int
        Position of the first token, and the number of tokens.
    whole : bool
        Whether the piece is a whole context. Then a position outside of it is an error.
    limit : int
        The longest context.
    """

    start: int
    length: int
    whole: bool
    limit: int


class Site:
    """The entries that one edit selects at one tap of one piece.

    Attributes
    ----------
    label : str
        Name of the edit in messages.
    at : None, int, slice or numpy.ndarray of int64
        The tokens that the edit selects.
    tap : Tap
    full : tuple of int
        Shape of the piece's array.
    index : tuple
        Index of the selected entries in the piece's array. An integer drops its axis, as in NumPy.
    shape : tuple of int
        Shape of ``array[index]``.
    row_axis : int
        The token axis of ``array[index]``.
    rows : numpy.ndarray of int64
        The selected rows of the piece.
    start, length, context : int
        Position of the piece's first token, number of its tokens, and number of tokens in its
        context.
    whole : bool
        Whether the piece is a whole context. Then a position outside of it is an error.
    chosen : numpy.ndarray of int64 or None
        If `at` is a list and the piece has only some of its positions: their indices in `at`.
    """

    def __init__(self, label: str, at: Any, head: Any, tap: Tap, piece: Piece) -> None:
        self.label = label
        self.at = at
        self.tap = tap
        self.start, self.length, self.whole = piece.start, piece.length, piece.whole
        self.context = piece.start + piece.length
        self.chosen: npt.NDArray[np.int64] | None = None
        self.full = tap.shape(piece.length, self.context)
        rows = self._rows(piece.limit)
        heads = self._heads(head)
        self.rows = np.atleast_1d(
            np.arange(piece.length)[rows] if isinstance(rows, slice) else rows
        )
        self.index = _outer(rows, heads, tap)
        sizes = list(self.full)
        for axis, what in ((1 if tap.matrix else 0, rows), (tap.head_axis, heads)):
            if axis is not None:
                sizes[axis] = _count(what, self.full[axis])
        self.shape = tuple(size for size in sizes if size >= 0)
        self.row_axis = int(tap.matrix and not isinstance(heads, int))

    def fail(self, kind: type[Exception], message: str) -> Exception:
        """Return an exception whose message begins with the edit."""
        return kind(f"{self.label}: {message}")

    def _rows(self, limit: int) -> Any:
        at, start, n = self.at, self.start, self.length
        if at is None:
            return slice(None)
        if isinstance(at, slice):
            if self.whole and (at.start or 0) >= max(n, 1) + start and at.start != at.stop:
                raise self.fail(
                    IndexError,
                    f"at is {at.start}:{'' if at.stop is None else at.stop}, which begins after "
                    f"the call; expected a position up to {start + n - 1}",
                )
            first, last, _ = slice(
                at.start if at.start is None or at.start < 0 else max(at.start - start, 0),
                at.stop if at.stop is None or at.stop < 0 else max(at.stop - start, 0),
            ).indices(n)
            return slice(first, max(first, last))
        positions = np.atleast_1d(at)
        rows = np.where(positions < 0, positions + n, positions - start)
        inside = (rows >= 0) & (rows < n)
        if self.whole and not inside.all():
            wrong = int(positions[~inside][0])
            raise self.fail(
                IndexError,
                f"at holds {wrong}, which is not in the call; expected {-n} to -1, or {start} to "
                f"{start + n - 1}",
            )
        if (positions >= limit).any():
            wrong = int(positions[positions >= limit][0])
            raise self.fail(
                IndexError, f"at holds {wrong}; expected less than the context length, {limit}"
            )
        if isinstance(at, int):
            return int(rows[0]) if inside[0] else np.empty(0, np.int64)
        if not inside.all():
            self.chosen = np.flatnonzero(inside)
        return rows[inside]

    def _heads(self, head: Any) -> Any:
        axis = self.tap.head_axis
        if head is None:
            return slice(None)
        if axis is None:
            raise self.fail(
                ValueError, f"head is {shown_value(head)}; expected None, as this tap has no heads"
            )
        n = self.full[axis]
        if isinstance(head, slice):
            if (head.start or 0) >= n and head.start != head.stop:
                raise self.fail(
                    IndexError, f"head is {shown_value(head)}; expected less than {n}, the heads"
                )
            return slice(*head.indices(n)[:2])
        numbers = np.atleast_1d(head)
        if ((numbers < -n) | (numbers >= n)).any():
            raise self.fail(
                IndexError, f"head is {shown_value(head)}; expected {-n} to {n - 1}, for {n} heads"
            )
        return int(numbers[0]) % n if isinstance(head, int) else numbers % n

    def fit(self, values: Float32, name: str = "the value") -> Float32:
        """Return values broadcast to the selected entries, or raise ValueError."""
        shape = self.shape
        if self.chosen is not None and isinstance(self.at, np.ndarray):
            axis = self.row_axis
            whole = (*shape[:axis], len(self.at), *shape[axis + 1 :])
            return self._broadcast(values, whole, name).take(self.chosen, axis=axis)
        return self._broadcast(values, shape, name)

    def _broadcast(self, values: Float32, shape: tuple[int, ...], name: str) -> Float32:
        try:
            return np.broadcast_to(values, shape)
        except ValueError:
            raise self.fail(
                ValueError,
                f"{name} has shape {values.shape}; expected {shape} or a shape that broadcasts to "
                "it",
            ) from None


def _count(what: Any, size: int) -> int:
    """Return how many entries an index selects along an axis, or -1 if it drops the axis."""
    if isinstance(what, int):
        return -1
    if isinstance(what, slice):
        return len(range(*what.indices(size)))
    return len(what)


def _outer(rows: Any, heads: Any, tap: Tap) -> tuple[Any, ...]:
    """Return the index of all pairs of a selected row and a selected head."""
    if isinstance(rows, np.ndarray) and isinstance(heads, np.ndarray):
        if tap.matrix:
            heads = heads[:, np.newaxis]
        else:
            rows = rows[:, np.newaxis]
    if tap.head_axis is None:
        return (rows,)
    return (heads, rows) if tap.matrix else (rows, heads)
