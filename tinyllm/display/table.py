"""Tables that print as text and show as HTML, everything in them escaped."""

from __future__ import annotations

import html
from collections.abc import Sequence

__all__ = ["Markup", "Table", "escape"]


class Markup(str):
    """HTML made here, which `Table.html` does not escape. Its `plain` text is for printing."""

    plain: str = ""


def escape(value: object) -> str:
    """Escape text for HTML; tokens and metadata come from files nobody vouches for."""
    # lone surrogates, which no notebook can send, become \\udcXX
    text = str(value).encode("utf-8", "backslashreplace").decode()
    return html.escape(text, quote=True)


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
