"""Tables as text and as HTML. Their contents are escaped."""

from __future__ import annotations

import contextlib
import html
import os
import re
import sys
import unicodedata
from collections.abc import Sequence

from ..errors import printable

__all__ = ["Markup", "Table", "escape", "terminal_width"]


class Markup(str):
    """Trusted HTML, which `Table.html` does not escape. `plain` is its form in printed tables."""

    plain: str = ""


def escape(value: object) -> str:
    """Return a value's text escaped for HTML. Tokens and metadata come from untrusted files."""
    # Lone surrogates become \\udcXX, because a notebook cannot encode them.
    text = str(value).encode("utf-8", "backslashreplace").decode()
    return html.escape(text, quote=True)


def _cell(text: str) -> str:
    """Return a cell on one line. Names and tokens of a file must not control the terminal."""
    return printable(text).replace("\n", "\\n").replace("\t", "\\t")


#: A cell that is a number: with separators, an exponent, a sign, or a unit.
_NUMBER = re.compile(
    r"[-+]?(\d[\d,]*(\.\d*)?(e[-+]?\d+)?|nan|inf)( ?(%|B|[kMGT]B))?", re.IGNORECASE
)

#: The narrowest column of text that is still useful.
_NARROW = 12

#: The most rows and columns in HTML. A notebook keeps the HTML of every table it has shown.
_ROWS, _COLUMNS = 100, 24


def _columns_of(text: str) -> int:
    """Return the number of columns that a text takes on a terminal."""
    if text.isascii():
        return len(text)
    wide = sum(unicodedata.east_asian_width(c) in "WF" for c in text)
    none = sum(unicodedata.category(c) in ("Mn", "Me", "Cf") for c in text)
    return len(text) + wide - none


def _cut(text: str, width: int) -> str:
    """Return a text of at most that many columns. What was longer ends with an ellipsis."""
    if _columns_of(text) <= width:
        return text
    while text and _columns_of(text) > width - 1:
        text = text[:-1]
    return text + "…"


def _html(cell: str) -> str:
    if isinstance(cell, Markup):
        return cell
    text = escape(cell)
    return text if len(cell) > _NARROW + 8 else text.replace(" ", "&nbsp;")


def _pad(text: str, width: int, right: bool) -> str:
    space = " " * (width - _columns_of(text))
    return space + text if right else text + space


def terminal_width() -> int | None:
    """Return the number of columns of the terminal that shows standard output, or None."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        if sys.stdout.isatty():
            return os.get_terminal_size(sys.stdout.fileno()).columns or None
    return None


class Table:
    """A table with named columns.

    Columns of numbers are right-aligned. On a terminal that is too narrow, long texts are cut
    first, and then columns in the middle are left out.

    Parameters
    ----------
    columns : sequence of str
    rows : sequence of sequences of object
        Cells are shown by `str`.

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
        """Return whether a column is right-aligned: every cell of it is a number, or empty."""
        cells = [row[column] for row in self.rows if row[column]]
        return bool(cells) and all(_NUMBER.fullmatch(cell) for cell in cells)

    def text(self, width: int | None = None) -> str:
        """Return the table as aligned text.

        Parameters
        ----------
        width : int, optional
            The most characters in a line. Default: as many as the table needs.

        Returns
        -------
        str

        Examples
        --------
        >>> from tinyllm.display.table import Table
        >>> print(Table(("name", "size"), [("a long name of a thing", 1)]).text(20))
        name            size
        a long name o…     1
        """
        lines = [self.columns, *self.rows]
        lines = [
            tuple(cell.plain if isinstance(cell, Markup) else _cell(cell) for cell in line)
            for line in lines
        ]
        right = [self._right(i) for i in range(len(self.columns))]
        widths = [max(_columns_of(line[i]) for line in lines) for i in range(len(self.columns))]
        if width is not None:
            widths = _narrowed(widths, right, width)
            kept = _kept(widths, width)
            if len(kept) < len(widths):
                lines = [(line[0], "…", *(line[i] for i in kept[1:])) for line in lines]
                right = [right[0], False, *(right[i] for i in kept[1:])]
                widths = [widths[0], 1, *(widths[i] for i in kept[1:])]
        return "\n".join(
            "  ".join(
                _pad(_cut(cell, size), size, is_right)
                for cell, size, is_right in zip(line, widths, right, strict=True)
            ).rstrip()
            for line in lines
        )

    def __str__(self) -> str:
        """Return the table as aligned text, which fits the terminal if there is one."""
        return self.text(terminal_width())

    def html(self, caption: str = "", rows: int | None = _ROWS) -> str:
        """Return the table as HTML.

        Parameters
        ----------
        caption : str
            Text above the table.
        rows : int, optional
            The most rows. Of more, those in the middle are left out, and a line says how many.
            None: all of them.

        Returns
        -------
        str

        Examples
        --------
        >>> from tinyllm.display.table import Table
        >>> "&lt;b&gt;" in Table(("x",), [("<b>",)]).html()
        True
        """
        count = len(self.columns)
        columns = [*range(count)]
        if count > _COLUMNS:  # the first, and the last ones
            columns = [0, *range(count - _COLUMNS + 1, count)]
            caption += f" ({count - _COLUMNS:,} columns are not shown)"
        align = {i: " style=text-align:" + ("right" if self._right(i) else "left") for i in columns}
        head = "".join(f"<th{align[i]}>{escape(self.columns[i])}</th>" for i in columns)

        def line(row: Sequence[str]) -> str:
            cells = (f"<td{align[i]}>{_html(row[i])}</td>" for i in columns)
            return f"<tr>{''.join(cells)}</tr>"

        shown = self.rows
        parts = [line(row) for row in shown] if rows is None or len(shown) <= rows else []
        if not parts and rows is not None:
            first, last = -(-rows // 2), rows // 2
            parts = [line(row) for row in shown[:first]]
            note = f"… {len(shown) - rows:,} rows are not shown; print() shows them"
            parts.append(f"<tr><td colspan={len(columns)} style=text-align:left>{note}</td></tr>")
            parts += [line(row) for row in shown[len(shown) - last :]]
        title = f"<caption style=text-align:left>{escape(caption)}</caption>" if caption else ""
        return (
            f"<table>{title}<thead><tr>{head}</tr></thead><tbody>{''.join(parts)}</tbody></table>"
        )

    def _repr_html_(self) -> str:
        return self.html()

    def __repr__(self) -> str:
        """Return the table as text, so that an interactive session shows it."""
        return str(self)


def _narrowed(widths: list[int], right: list[bool], limit: int) -> list[int]:
    """Return widths in which the widest columns of text are narrower, down to a limit."""
    widths = list(widths)
    while sum(widths) + 2 * (len(widths) - 1) > limit:
        texts = [i for i in range(len(widths)) if not right[i] and widths[i] > _NARROW]
        if not texts:
            break
        widths[max(texts, key=widths.__getitem__)] -= 1
    return widths


def _kept(widths: list[int], limit: int) -> list[int]:
    """Return the columns that fit: all of them, or the first and the last ones."""
    if sum(widths) + 2 * (len(widths) - 1) <= limit or len(widths) < 3:
        return [*range(len(widths))]
    kept: list[int] = []
    used = widths[0] + 3
    for i in range(len(widths) - 1, 0, -1):
        used += widths[i] + 2
        if used > limit and kept:
            break
        kept.append(i)
    return [0, *reversed(kept)] if len(kept) < len(widths) - 1 else [*range(len(widths))]
