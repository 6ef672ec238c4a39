"""Tables as text and as HTML. Their contents are escaped."""

from __future__ import annotations

import html
from collections.abc import Sequence

from ..errors import printable

__all__ = ["Markup", "Table", "escape"]


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


class Table:
    """A table with named columns.

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
        """Return whether a column is right-aligned: every cell of it looks like a number."""
        cells = [row[column] for row in self.rows if row[column]]
        return bool(cells) and all(c.lstrip("-+").replace(",", "")[:1].isdigit() for c in cells)

    def __str__(self) -> str:
        """Return the table as aligned text."""
        lines = [self.columns, *self.rows]
        lines = [
            tuple(cell.plain if isinstance(cell, Markup) else _cell(cell) for cell in line)
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
        """Return the table as HTML.

        Parameters
        ----------
        caption : str
            Text above the table.

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
        """Return the table as text, so that an interactive session shows it."""
        return str(self)
