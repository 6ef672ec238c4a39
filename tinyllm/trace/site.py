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


#: The type of the arguments ``at=``, ``head=`` and ``index=``.
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

    def __init__(self, label: str, where: tuple[Any, Any, Any], tap: Tap, piece: Piece) -> None:
        at, head, entry = where
        self.label = label
        self.at = at
        self.tap = tap
        self.start, self.length, self.whole = piece.start, piece.length, piece.whole
        self.context = piece.start + piece.length
        self.chosen: npt.NDArray[np.int64] | None = None
        self.full = tap.shape(piece.length, self.context)
        rows = self._rows(piece.limit)
        self._head = self._heads(head)
        self._entry = self._entries(entry)
        self.rows = np.atleast_1d(
            np.arange(piece.length)[rows] if isinstance(rows, slice) else rows
        )
        self.index = _outer(rows, self._head, self._entry, tap, self.full)
        sizes = list(self.full)
        places = (1 if tap.matrix else 0, tap.head_axis, tap.index_axis)
        for axis, what in zip(places, (rows, self._head, self._entry), strict=True):
            if axis is not None:
                sizes[axis] = _count(what, self.full[axis])
        self.shape = tuple(size for size in sizes if size >= 0)
        self.row_axis = int(tap.matrix and not isinstance(self._head, int))

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
        return self._along("head", head, self.full[axis], "heads")

    def _entries(self, entry: Any) -> Any:
        if entry is None:
            return slice(None)
        axis = self.tap.index_axis
        if axis is None:
            raise self.fail(
                ValueError,
                f"index is {shown_value(entry)}; expected None, as this tap has no neurons or "
                "dimensions",
            )
        return self._along("index", entry, self.full[axis], "entries")

    def _along(self, name: str, given: Any, n: int, what: str) -> Any:
        """Return `head` or `index` without negative values, or raise IndexError."""
        if isinstance(given, slice):
            if (given.start or 0) >= n and given.start != given.stop:
                raise self.fail(
                    IndexError,
                    f"{name} is {shown_value(given)}; expected less than {n}, the {what}",
                )
            return slice(*given.indices(n)[:2])
        numbers = np.atleast_1d(given)
        if ((numbers < -n) | (numbers >= n)).any():
            raise self.fail(
                IndexError,
                f"{name} is {shown_value(given)}; expected {-n} to {n - 1}, for {n} {what}",
            )
        return int(numbers[0]) % n if isinstance(given, int) else numbers % n

    def picked(self, values: Float32) -> Float32:
        """Return the selected heads and entries of values, which may lack the token axis."""
        if isinstance(self._entry, (int, np.ndarray)) or self._entry != slice(None):
            values = values[..., self._entry]
        if self.tap.head_axis is None:
            return values
        behind = len(self.full) - 1 - self.tap.head_axis - isinstance(self._entry, int)
        return values[(slice(None),) * (values.ndim - 1 - behind) + (self._head,)]

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


def _outer(rows: Any, heads: Any, entries: Any, tap: Tap, full: tuple[int, ...]) -> tuple[Any, ...]:
    """Return the index of all combinations of selected rows, heads and entries."""
    parts = [rows] if tap.head_axis is None else [heads, rows] if tap.matrix else [rows, heads]
    if isinstance(entries, (int, np.ndarray)) or entries != slice(None):
        parts += [slice(None)] * (len(full) - 1 - len(parts)) + [entries]
    if sum(isinstance(part, (int, np.ndarray)) for part in parts) < 2:
        return tuple(parts)  # NumPy keeps the order of the axes
    parts = [
        np.arange(n)[part] if isinstance(part, slice) else part
        for part, n in zip(parts, full, strict=False)
    ]
    arrays = [i for i, part in enumerate(parts) if isinstance(part, np.ndarray)]
    for place, i in enumerate(arrays):
        parts[i] = parts[i].reshape(-1, *[1] * (len(arrays) - 1 - place))
    return tuple(parts)
