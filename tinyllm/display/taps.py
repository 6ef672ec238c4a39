"""The HTML that shows a trace's taps in a notebook."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy.typing as npt

from .histogram import sample, spark, statistics
from .table import Table, escape

__all__ = ["taps_html"]

Array: TypeAlias = npt.NDArray[Any]


def taps_html(
    summary: str, start: int, ids: Sequence[int], pieces: Sequence[str], taps: Mapping[str, Array]
) -> str:
    """Return HTML with the tokens, and for each block a table with statistics of its taps.

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
    tokens = "".join(
        "<span style='background:#8882;margin:1px;padding:0 3px;white-space:pre' "
        f"title='token {start + i}, id {int(token)}'>{escape(repr(piece)[1:-1])}</span>"
        for i, (token, piece) in enumerate(zip(ids[:256], pieces[:256], strict=True))
    )
    if len(ids) > 256:
        tokens += " ..."
    groups: dict[str, list[tuple[object, ...]]] = {}
    for name, array in taps.items():
        block = ".".join(name.split(".")[:2]) if name.startswith("blk.") else ""
        values = sample(array)
        row = (name, array.shape, *statistics(values), spark(values), f"{array.nbytes:,}")
        if not block and groups and next(reversed(groups)) != "":
            block = "output"
        groups.setdefault(block, []).append(row)
    columns = ("tap", "shape", "mean", "rms", "min", "max", "histogram", "bytes")
    parts = [f"<p>{escape(summary)}</p><p style='line-height:1.7'>{tokens}</p>"]
    opened = False
    for block, rows in groups.items():
        table = Table(columns, rows).html()
        if block.startswith("blk."):
            is_open = "" if opened else " open"
            opened = True
            table = f"<details{is_open}><summary>{escape(block)}</summary>{table}</details>"
        parts.append(table)
    return "".join(parts)
