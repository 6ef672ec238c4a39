"""Tables that print as text and show as HTML, everything in them escaped."""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from .. import _core

if TYPE_CHECKING:
    from .._core import Weight
    from ..trace.trace import Trace

__all__ = ["Markup", "Table", "escape", "sample", "sample_weight", "spark", "weights_table"]


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
    most = max(1, int(counts.max()))
    bars = "".join(
        f"M{2 * i} 16v-{max(1.0, 15 * count / most):.1f}"
        for i, count in enumerate(counts.tolist())
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
    >>> from tinyllm.display.table import Table
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
        >>> from tinyllm.display.table import Table
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


# ---- weights ----


#: Values that are read of a tensor in one piece, where not all of it is read.
STRETCH = 512

#: Tensors of one table that get statistics: more would keep a notebook waiting.
MOST_SAMPLED = 1024


def sample_weight(weight: Weight, stretches: int) -> npt.NDArray[np.float32]:
    """Values of a weight: all, or the same evenly spaced stretches each time.

    Parameters
    ----------
    weight : Weight
    stretches : int
        At least 2. A weight of more than ``stretches * STRETCH`` values gives so many stretches
        of `STRETCH` consecutive values, the first and the last among them; only these are read.

    Returns
    -------
    numpy.ndarray of float32, one axis

    Raises
    ------
    tinyllm.UnsupportedError
        There is no formula for the type.

    Examples
    --------
    >>> import numpy as np
    >>> from tinyllm._core import Weight
    >>> from tinyllm.display.table import sample_weight
    >>> w = Weight("w", (4, 1024), "F32", np.arange(4096, dtype="<f4").tobytes())
    >>> sample_weight(w, 2)[[0, 511, 512, 1023]]
    array([   0.,  511., 3584., 4095.], dtype=float32)
    """
    items, size = _core.tensor_types()[weight.type][1:3]
    blocks = STRETCH // items
    count = weight.nbytes // (blocks * size) if blocks else 0
    if count > stretches:
        parts = weight.raw.reshape(-1)[: count * blocks * size].reshape(count, blocks * size)
        chosen = parts[np.arange(stretches) * (count - 1) // (stretches - 1)]
        weight = _core.Weight("", (stretches, STRETCH), weight.type, chosen.tobytes())
    values: npt.NDArray[np.float32] = weight.numpy().reshape(-1)
    return values


def _weight_row(weight: Weight, stretches: int) -> tuple[object, ...]:
    total = math.prod(weight.shape)
    row: tuple[object, ...] = (weight.name, weight.type, weight.shape, f"{weight.nbytes:,}")
    try:
        some = sample_weight(weight, stretches)
    except NotImplementedError:  # a type without a formula
        return (*row, "", "", "", "", "", "none")
    values = sample(some)
    seen = "all" if len(some) == total else f"{len(some):,} of {total:,}"
    return (*row, *statistics(values), spark(values), seen)


def weights_table(weights: Iterable[Weight], stretches: int = 16) -> tuple[Table, str]:
    """A table of weights with statistics, and a sentence that says of what these are.

    Parameters
    ----------
    weights : iterable of Weight
    stretches : int
        See `sample_weight`: what is read of each, so that a table of a large file is quick.

    Returns
    -------
    table : Table
    caption : str

    Examples
    --------
    >>> import tinyllm
    >>> from tinyllm.display.table import weights_table
    >>> table, caption = weights_table(tinyllm.load().weights.values())
    >>> table.columns[:3]
    ('name', 'type', 'shape')
    """
    columns = ("name", "type", "shape", "bytes", "mean", "rms", "min", "max")
    rows = [
        _weight_row(weight, stretches)
        if i < MOST_SAMPLED
        else (weight.name, weight.type, weight.shape, f"{weight.nbytes:,}", *[""] * 5, "none")
        for i, weight in enumerate(weights)
    ]
    most = stretches * STRETCH
    caption = (
        f"Statistics and histograms are of all values, or, of tensors of more than {most:,}, of "
        f"{stretches} evenly spaced stretches of {STRETCH} values each: column 'sampled'. Values "
        "that are not finite do not count."
    )
    if len(rows) > MOST_SAMPLED:
        caption += f" Only the first {MOST_SAMPLED:,} tensors have them."
    return Table((*columns, "histogram", "sampled"), rows), caption


# ---- what notebooks show ----


def weight_html(weight: Weight) -> str:
    """A weight: name, type, shape, bytes, and a histogram of some of its values."""
    table, caption = weights_table([weight], 128)
    return table.html(caption)


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
