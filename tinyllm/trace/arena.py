"""Where captured values go: one block of memory per tap family, which the kernels write to."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence

from .. import _core
from ..base.numeric import Float32
from .taps import Tap

__all__ = ["Arena", "Layout", "Plan"]


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a capture would take, before anything runs.

    Attributes
    ----------
    shapes : dict of str to tuple of int
        The shape of every captured tap; of a batch, those of the longest prompt.
    nbytes : int
        Bytes of all of them together (float32), over all prompts.

    Examples
    --------
    >>> import tinyllm as tl
    >>> tl.load().plan([1, 2, 3], "output").shapes["output"][0]
    3
    """

    shapes: dict[str, tuple[int, ...]]
    nbytes: int

    def __repr__(self) -> str:
        """Name the number of taps and their size."""
        return f"<tinyllm.Plan: {len(self.shapes)} taps, {self.nbytes:,} bytes>"


@dataclasses.dataclass(frozen=True)
class _Family:
    """Taps of one family and one shape, which lie in one block (layers, ...)."""

    taps: tuple[Tap, ...]
    steps: tuple[int, ...]  # of the taps

    @property
    def tap(self) -> Tap:
        return self.taps[0]

    def shape(self, tokens: int, context: int) -> tuple[int, ...]:
        """The shape of the block for that many tokens in the call, and in the context."""
        return (len(self.taps), *self.tap.shape(tokens, context))


class Layout:
    """How the taps of a capture lie in blocks; made once, used by every call.

    Parameters
    ----------
    taps : sequence of Tap
    """

    def __init__(self, taps: Sequence[Tap]) -> None:
        self.taps = tuple(taps)
        groups: dict[tuple[str, tuple[int, ...]], list[Tap]] = {}
        for tap in taps:  # layers of different sizes lie apart
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
        #: names in the order in which the values come to be
        self.names = [tap.name for tap in taps]
        #: name -> roles, of those that have some
        self.roles = {tap.name: tap.roles for tap in taps if tap.roles}

    def nbytes(self, lengths: Sequence[int], contexts: Sequence[int]) -> int:
        """Bytes that a call takes."""
        rows = sum(lengths)
        cells = sum(a * b for a, b in zip(lengths, contexts, strict=True))
        return 4 * (self._row_values * rows + self._cell_values * cells)

    def plan(self, lengths: Sequence[int]) -> Plan:
        """Shapes and bytes of the traces of fresh contexts."""
        longest = max(lengths, default=0)
        shapes = {tap.name: tap.shape(longest, longest) for tap in self.taps}
        return Plan(shapes, self.nbytes(lengths, lengths))


class Views(Mapping[str, Float32]):
    """The arrays of one piece by name, made when they are asked for."""

    def __init__(self, layout: Layout, blocks: Sequence[Float32]) -> None:
        self._layout = layout
        self._blocks = blocks

    def __getitem__(self, name: str) -> Float32:
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
        """What the values are for, by name."""
        return self._layout.roles

    def stack(self, names: Sequence[str]) -> Float32 | None:
        """One array of several taps without a copy, if they are all there is of one block."""
        number, _ = self._layout.places[names[0]]
        if [tap.name for tap in self._layout.families[number].taps] == list(names):
            return self._blocks[number]
        return None


class Arena:
    """The memory of one call.

    Parameters
    ----------
    layout : Layout
    lengths, contexts : sequence of int
        Tokens of each piece, and in its context once the call is done.

    Raises
    ------
    MemoryError
        It does not fit; says how large it is. Nothing has run yet.
    """

    def __init__(self, layout: Layout, lengths: Sequence[int], contexts: Sequence[int]) -> None:
        self.layout = layout
        self.lengths = lengths
        size = layout.nbytes(lengths, contexts)
        if size > 1 << 24:  # asking the system takes longer than a small call
            available = _core.memory_available()
            if available < size:
                raise MemoryError(
                    f"the capture takes {size:,} bytes and {available:,} are available; "
                    "capture less, or fewer tokens at a time"
                )
        #: what `_core.Model.forward` takes
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
        """The read-only arrays of one piece, once the call is done."""
        start = sum(self.lengths[:piece])
        rows = slice(start, start + self.lengths[piece])
        parts: list[Float32] = []
        for family, blocks in zip(self.layout.families, self._blocks, strict=True):
            block = blocks[piece if family.tap.matrix else 0]
            block.flags.writeable = False
            whole = family.tap.matrix or len(self.lengths) == 1
            parts.append(block if whole else block[:, rows])
        return Views(self.layout, parts)
