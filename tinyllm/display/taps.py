"""The HTML that shows a trace's taps in a notebook."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy.typing as npt

from .families import COLUMNS, Member, families, layers_text
from .histogram import sample
from .table import Table, escape

__all__ = ["taps_html"]

Array: TypeAlias = npt.NDArray[Any]

#: The most tokens that are shown. A notebook keeps the HTML of every trace it has shown.
_TOKENS = 80

#: The most values of one tap that statistics read.
_VALUES = 16384


def taps_html(
    summary: str, start: int, ids: Sequence[int], pieces: Sequence[str], taps: Mapping[str, Array]
) -> str:
    """Return HTML with the tokens, and a table with one row for the taps of each kind.

    Parameters
    ----------
    summary : str
        The line above the tokens.
    start : int
        Position of the first token.
    ids, pieces : sequence of int and of str
        The tokens.
    taps : mapping of str to numpy.ndarray
        Taps in the order of the forward pass.
    """
    tokens = " ".join(
        f"<span style='background:#8882;white-space:pre' title='{start + i}, id {int(token)}'>"
        f"{escape(repr(piece)[1:-1])}</span>"
        for i, (token, piece) in enumerate(zip(ids[:_TOKENS], pieces[:_TOKENS], strict=True))
    )
    if len(ids) > _TOKENS:
        tokens += f" … {len(ids) - _TOKENS:,} more"
    members = (
        Member(name, array.shape, array.nbytes, sample(array, _VALUES))
        for name, array in taps.items()
    )
    rows = [
        (family.pattern, layers_text(family.layers), family.members[0].kind, *family.cells())
        for family in families(members)
    ]
    caption = f"Statistics cover at most {_VALUES:,} values of each tap, evenly spaced."
    table = Table(("tap", "layers", "shape", *COLUMNS), rows).html(caption)
    return f"<p>{escape(summary)}</p><p>{tokens}</p>{table}"
