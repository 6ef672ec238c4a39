"""Names that differ only in the number of their block, in one row of a table."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from ..base.numeric import Float64
from ..base.units import size
from .histogram import line, spark, statistics
from .table import Markup

__all__ = ["Family", "Member", "families", "layers_text"]

_BLOCK = re.compile(r"(?<![^.])blk\.(\d+)\.")


@dataclasses.dataclass
class Member:
    """One value of a family.

    Attributes
    ----------
    name : str
        For example ``"blk.3.attn_q"``.
    kind : tuple
        What the members of a row have in common, besides the name: the shape, or shape and type.
    nbytes : int
    values : numpy.ndarray of float64, or None
        Finite values, all or a sample. None if they were not read.
    """

    name: str
    kind: tuple[Any, ...]
    nbytes: int
    values: Float64 | None


@dataclasses.dataclass
class Family:
    """Values of one kind whose names differ only in the number of the block.

    Attributes
    ----------
    pattern : str
        For example ``"blk.*.attn_q"``, or the name of a value outside of blocks.
    layers : list of int
        The numbers of the blocks. Empty outside of blocks.
    members : list of Member
        In the same order.
    """

    pattern: str
    layers: list[int]
    members: list[Member]

    def cells(self) -> tuple[object, ...]:
        """Return mean, rms, minimum, maximum, histogram, rms by layer, and the size of all."""
        read = [m.values for m in self.members if m.values is not None]
        values = np.concatenate(read) if read else np.zeros(0)
        by_layer: Markup | str = ""
        if len(self.layers) > 1 and len(read) == len(self.members):
            by_layer = line([_rms(each) for each in read])
        return (
            *statistics(values),
            spark(values),
            by_layer,
            size(sum(member.nbytes for member in self.members)),
        )


#: The columns of `Family.cells`.
COLUMNS = ("mean", "rms", "min", "max", "histogram", "rms by layer", "size")


def _rms(values: Float64) -> float:
    return float(np.sqrt(np.mean(values * values))) if values.size else float("nan")


def families(members: Iterable[Member]) -> list[Family]:
    """Return the families of some values, in the order of their first members.

    Parameters
    ----------
    members : iterable of Member

    Returns
    -------
    list of Family

    Examples
    --------
    >>> from tinyllm.display.families import Member, families
    >>> found = families(Member(f"blk.{i}.attn_q", (4,), 16, None) for i in range(3))
    >>> [(family.pattern, family.layers) for family in found]
    [('blk.*.attn_q', [0, 1, 2])]
    """
    found: dict[tuple[str, tuple[Any, ...]], Family] = {}
    for member in members:
        block = _BLOCK.search(member.name)
        pattern = _BLOCK.sub("blk.*.", member.name) if block else member.name
        family = found.setdefault((pattern, member.kind), Family(pattern, [], []))
        family.members.append(member)
        if block:
            family.layers.append(int(block[1]))
    for family in found.values():  # files have tensors in any order
        if family.layers:
            order = sorted(range(len(family.layers)), key=family.layers.__getitem__)
            family.layers = [family.layers[i] for i in order]
            family.members = [family.members[i] for i in order]
    return list(found.values())


def layers_text(layers: Sequence[int]) -> str:
    """Return numbers as ranges.

    Examples
    --------
    >>> from tinyllm.display.families import layers_text
    >>> layers_text([0, 1, 2, 5, 7, 8])
    '0-2, 5, 7-8'
    """
    parts: list[list[int]] = []
    for layer in layers:
        if parts and layer == parts[-1][-1] + 1:
            parts[-1][1:] = [layer]
        else:
            parts.append([layer])
    shown = ["-".join(map(str, part)) for part in parts]
    return ", ".join(shown if len(shown) <= 6 else [*shown[:3], "…", *shown[-2:]])
