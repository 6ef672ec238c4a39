"""Tables that print as text and show as HTML, everything in them escaped."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from ._core import Weight
    from .trace import Trace

__all__ = ["Markup", "Table", "escape", "sample", "spark"]


class Markup(str):
    """HTML made here, which `Table.html` does not escape. Its `plain` text is for printing."""

    plain: str = ""


def escape(value: object) -> str:
    """Escape text for HTML; tokens and metadata come from files nobody vouches for."""
    # lone surrogates, which no notebook can send, become \\udcXX
    text = str(value).encode("utf-8", "backslashreplace").decode()
    return html.escape(text, quote=True)


def sample(array: npt.NDArray[Any], limit: int = 65536) -> npt.NDArray[np.float64]:
    """The finite values of an array, or of an even sample if there are more than `limit`."""
    flat = array.reshape(-1)[:: max(1, -(-array.size // limit))]
    values: npt.NDArray[np.float64] = flat[np.isfinite(flat)].astype(np.float64)
    return values


def statistics(values: npt.NDArray[np.float64]) -> tuple[str, str, str, str]:
    """Mean, root mean square, least and largest, as text."""
    if values.size == 0:
        return ("", "", "", "")
    numbers = (values.mean(), np.sqrt(np.mean(values * values)), values.min(), values.max())
    a, b, c, d = (f"{number:.4g}" for number in numbers)
    return (a, b, c, d)


def spark(values: npt.NDArray[np.float64], bins: int = 32) -> Markup:
    """A histogram as a small SVG image."""
    if values.size == 0:
        return Markup("")
    with np.errstate(over="ignore"):
        low, high = float(values.min()), float(values.max())
    if not np.isfinite(high - low) or high <= low:
        counts = np.zeros(bins, np.int64)
        counts[bins // 2] = values.size
    else:
        places = ((values - low) / (high - low) * bins).astype(np.int64)
        counts = np.bincount(np.clip(places, 0, bins - 1), minlength=bins)
    bars = "".join(
        f"M{2 * i} 16v-{max(1.0, 15 * count / counts.max()):.1f}"
        for i, count in enumerate(counts)
        if count
    )
    return Markup(
        f"<svg width='{2 * bins}' height='16' viewBox='-1 0 {2 * bins} 16' role='img'>"
        f"<title>{low:.4g} to {high:.4g}</title>"
        f"<path d='{bars}' stroke='#4878a8' stroke-width='1.6'/></svg>"
    )


class Table:
    """Rows under column names.

    Parameters
    ----------
    columns : sequence of str
    rows : sequence of sequences of object
        Shown by `str`.

    Examples
    --------
    >>> from tinyllm.html import Table
    >>> print(Table(("name", "size"), [("a", 1), ("bcd", 20)]))
    name  size
    a        1
    bcd     20
    """

    def __init__(self, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        self.columns = tuple(columns)
        self.rows = [
            tuple(cell if isinstance(cell, str) else str(cell) for cell in row) for row in rows
        ]

    def _right(self, column: int) -> bool:
        """Whether every cell of a column looks like a number."""
        cells = [row[column] for row in self.rows if row[column]]
        return bool(cells) and all(c.lstrip("-+").replace(",", "")[:1].isdigit() for c in cells)

    def __str__(self) -> str:
        """Lay the table out in columns of text."""
        lines = [self.columns, *self.rows]
        lines = [
            tuple(
                cell.plain if isinstance(cell, Markup) else cell.replace("\n", "\\n")
                for cell in line
            )
            for line in lines
        ]
        widths = [max(len(line[i]) for line in lines) for i in range(len(self.columns))]
        right = [self._right(i) for i in range(len(self.columns))]
        return "\n".join(
            "  ".join(
                cell.rjust(width) if is_right else cell.ljust(width)
                for cell, width, is_right in zip(line, widths, right, strict=True)
            ).rstrip()
            for line in lines
        )

    def html(self, caption: str = "") -> str:
        """Give the table as HTML.

        Parameters
        ----------
        caption : str
            Text above it.

        Returns
        -------
        str

        Examples
        --------
        >>> from tinyllm.html import Table
        >>> "&lt;b&gt;" in Table(("x",), [("<b>",)]).html()
        True
        """
        head = "".join(f"<th>{escape(column)}</th>" for column in self.columns)
        right = [self._right(i) for i in range(len(self.columns))]
        body = "".join(
            "<tr>"
            + "".join(
                f"<td style='text-align:{'right' if is_right else 'left'}'>"
                f"{cell if isinstance(cell, Markup) else escape(cell)}</td>"
                for cell, is_right in zip(row, right, strict=True)
            )
            + "</tr>"
            for row in self.rows
        )
        title = f"<caption style='text-align:left'>{escape(caption)}</caption>" if caption else ""
        return f"<table>{title}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"

    def _repr_html_(self) -> str:
        return self.html()

    def __repr__(self) -> str:
        """Show the table itself."""
        return str(self)


# ---- what notebooks show ----


def weight_html(weight: Weight) -> str:
    """A weight: name, type, shape, bytes, and a histogram of some of its rows."""
    count = len(weight) if weight.shape else 1
    columns = ["name", "type", "shape", "bytes", "mean", "rms", "min", "max", "histogram"]
    row: tuple[object, ...] = (weight.name, weight.type, weight.shape, f"{weight.nbytes:,}")
    try:
        chosen = slice(None) if weight.nbytes <= 1 << 16 else np.arange(64) * (count - 1) // 63
        values = sample(np.asarray(weight.numpy(chosen)))
        row += (*statistics(values), spark(values))
    except (ValueError, NotImplementedError, IndexError):  # a type without a formula
        columns = columns[:4]
    return Table(columns, [row]).html()


def trace_html(trace: Trace) -> str:
    """A trace: its tokens, and its taps in the order of the forward pass, block by block."""
    tokens = "".join(
        "<span style='background:#8882;margin:1px;padding:0 3px;white-space:pre' "
        f"title='token {trace.start + i}, id {int(token)}'>{escape(repr(piece)[1:-1])}</span>"
        for i, (token, piece) in enumerate(zip(trace.tokens[:256], trace.pieces[:256], strict=True))
    )
    if len(trace.tokens) > 256:
        tokens += " ..."
    groups: dict[str, list[tuple[object, ...]]] = {}
    for name, array in trace.items():
        block = ".".join(name.split(".")[:2]) if name.startswith("blk.") else ""
        values = sample(array)
        row = (name, array.shape, *statistics(values), spark(values), f"{array.nbytes:,}")
        if not block and groups and next(reversed(groups)) != "":
            block = "output"
        groups.setdefault(block, []).append(row)
    columns = ("tap", "shape", "mean", "rms", "min", "max", "histogram", "bytes")
    parts = [f"<p>{escape(repr(trace))}</p><p style='line-height:1.7'>{tokens}</p>"]
    opened = False
    for block, rows in groups.items():
        table = Table(columns, rows).html()
        if block.startswith("blk."):
            is_open = "" if opened else " open"
            opened = True
            table = f"<details{is_open}><summary>{escape(block)}</summary>{table}</details>"
        parts.append(table)
    return "".join(parts)
