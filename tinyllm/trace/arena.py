"""Memory of captured values: the core writes the taps of a family into one block."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from .. import _core
from ..base.numeric import Float32
from ..base.units import size
from .taps import Tap

__all__ = ["Arena", "Layout", "Plan"]


@dataclasses.dataclass(frozen=True)
class Plan:
    """The shapes and the size of a capture, known before anything runs.

    Attributes
    ----------
    shapes : dict of str to tuple of int
        The shape of every captured tap. For a batch, the shapes are those of the longest prompt.
    nbytes : int
        Bytes of all arrays (float32) of all prompts.

    Examples
    --------
    >>> import tinyllm as tl
    >>> tl.load().plan([1, 2, 3], "output").shapes["output"][0]
    3
    """

    shapes: dict[str, tuple[int, ...]]
    nbytes: int

    def __repr__(self) -> str:
        """Return the number of taps and their size."""
        return f"<tinyllm.Plan: {len(self.shapes)} taps, {size(self.nbytes)}>"


@dataclasses.dataclass(frozen=True)
class _Family:
    """Taps of one family and one shape, which share a block of shape (layers, ...)."""

    taps: tuple[Tap, ...]
    steps: tuple[int, ...]  # the numbers of the taps' steps

    @property
    def tap(self) -> Tap:
        return self.taps[0]

    def shape(self, tokens: int, context: int) -> tuple[int, ...]:
        """Return the block's shape for the given number of tokens in the call and the context."""
        return (len(self.taps), *self.tap.shape(tokens, context))


class Layout:
    """The arrangement of captured taps in blocks of memory. Calls can share it.

    Parameters
    ----------
    taps : sequence of Tap
    """

    def __init__(self, taps: Sequence[Tap]) -> None:
        self.taps = tuple(taps)
        groups: dict[tuple[str, tuple[int, ...]], list[Tap]] = {}
        for tap in taps:  # layers of different sizes get different blocks
            groups.setdefault((tap.family, tap.row), []).append(tap)
        self.families = tuple(
            _Family(tuple(members), tuple(tap.index for tap in members))
            for members in groups.values()
        )
        #: name -> (number of the family, index in its block)
        self.places = {
            tap.name: (number, at)
            for number, family in enumerate(self.families)
            for at, tap in enumerate(family.taps)
        }
        values = [len(f.taps) * math.prod(f.tap.row) for f in self.families]
        matrix = [f.tap.matrix for f in self.families]
        self._row_values = sum(v for v, m in zip(values, matrix, strict=True) if not m)
        self._cell_values = sum(v for v, m in zip(values, matrix, strict=True) if m)
        #: names in the order of the forward pass
        self.names = [tap.name for tap in taps]
        #: name -> roles, for taps with roles
        self.roles = {tap.name: tap.roles for tap in taps if tap.roles}

    def nbytes(self, lengths: Sequence[int], contexts: Sequence[int]) -> int:
        """Return the bytes of a capture, given the tokens of each piece and of its context."""
        rows = sum(lengths)
        cells = sum(a * b for a, b in zip(lengths, contexts, strict=True))
        return 4 * (self._row_values * rows + self._cell_values * cells)

    def plan(self, lengths: Sequence[int]) -> Plan:
        """Return shapes and bytes of a capture of new contexts with these numbers of tokens."""
        longest = max(lengths, default=0)
        shapes = {tap.name: tap.shape(longest, longest) for tap in self.taps}
        return Plan(shapes, self.nbytes(lengths, lengths))


#: Arrays up to this size in bytes get memory of their own.
_SMALL = 1 << 20


class Views(Mapping[str, Float32]):
    """The arrays of one piece by name, made on access.

    A large array is a view of its block, which has all layers, and all pieces of a batch. It keeps
    the whole block alive. A small one is a copy, so that a caller who keeps a few rows of many
    runs keeps little more than these rows.
    """

    def __init__(self, layout: Layout, blocks: Sequence[Float32]) -> None:
        self._layout = layout
        self._blocks = blocks
        self._copies: dict[str, Float32] = {}

    def __getitem__(self, name: str) -> Float32:
        found = self._copies.get(name)
        if found is not None:
            return found
        view = self.look(name)
        block = self._blocks[self._layout.places[name][0]]
        whole = block.base if isinstance(block.base, np.ndarray) else block
        if view.nbytes > _SMALL or view.nbytes == whole.nbytes:
            return view
        return self._copies.setdefault(name, own(view))

    def look(self, name: str) -> Float32:
        """Return a view of the block, for a use that keeps nothing."""
        number, at = self._layout.places[name]
        view: Float32 = self._blocks[number][at]
        return view

    def __iter__(self) -> Iterator[str]:
        return iter(self._layout.names)

    def __len__(self) -> int:
        return len(self._layout.names)

    def __contains__(self, name: object) -> bool:
        return name in self._layout.places

    @property
    def roles(self) -> Mapping[str, Sequence[str]]:
        """The roles of the values, by name."""
        return self._layout.roles

    def stack(self, names: Sequence[str]) -> Float32 | None:
        """Return a view of several taps if they are all taps of one block, else None."""
        number, _ = self._layout.places[names[0]]
        if [tap.name for tap in self._layout.families[number].taps] == list(names):
            return self._blocks[number]
        return None


class Copies(dict[str, Float32]):
    """Arrays with memory of their own, by name.

    Parameters
    ----------
    arrays : mapping of str to numpy.ndarray
    roles : mapping of str to sequence of str
        The roles of the values, by name.
    """

    def __init__(self, arrays: Mapping[str, Float32], roles: Mapping[str, Sequence[str]]) -> None:
        super().__init__(arrays)
        self.roles = {name: tuple(found) for name, found in roles.items() if name in arrays}


def own(view: Float32) -> Float32:
    """Return a read-only copy."""
    copy = np.array(view)
    copy.flags.writeable = False
    return copy


class Arena:
    """The memory of the captured values of one call.

    Parameters
    ----------
    layout : Layout
    lengths, contexts : sequence of int
        Number of tokens of each piece, and of its context after the call.

    Raises
    ------
    MemoryError
        If the values do not fit into memory. The message has their size. Nothing has run yet.
    """

    def __init__(self, layout: Layout, lengths: Sequence[int], contexts: Sequence[int]) -> None:
        self.layout = layout
        self.lengths = lengths
        needed = layout.nbytes(lengths, contexts)
        if needed > 1 << 24:  # for a small call, asking the system would take too long
            available = _core.memory_available()
            if available < needed:
                raise MemoryError(
                    f"the capture takes {needed:,} bytes and {available:,} are available; "
                    "capture fewer taps, or run fewer tokens at a time"
                )
        #: for `_core.Model.forward`: (steps, piece or -1 for all pieces, block)
        self.captures: list[tuple[tuple[int, ...], int, Float32]] = []
        self._blocks: list[list[Float32]] = []  # per family: one block, or one per piece
        total = sum(lengths)
        for family in layout.families:
            matrix = family.tap.matrix
            shapes = [family.shape(total, total)]
            if matrix:
                shapes = [family.shape(a, b) for a, b in zip(lengths, contexts, strict=True)]
            blocks = [_core.empty(shape) for shape in shapes]
            for piece, block in enumerate(blocks):
                self.captures.append((family.steps, piece if matrix else -1, block))
            self._blocks.append(blocks)

    def views(self, piece: int) -> Views:
        """Return the read-only arrays of one piece, after the call."""
        start = sum(self.lengths[:piece])
        rows = slice(start, start + self.lengths[piece])
        parts: list[Float32] = []
        for family, blocks in zip(self.layout.families, self._blocks, strict=True):
            block = blocks[piece if family.tap.matrix else 0]
            block.flags.writeable = False
            whole = family.tap.matrix or len(self.lengths) == 1
            parts.append(block if whole else block[:, rows])
        return Views(self.layout, parts)
