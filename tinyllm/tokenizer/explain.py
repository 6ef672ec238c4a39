"""The steps of an encoding, shown as a table."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..display.table import Table, escape

__all__ = ["Explanation", "Step"]

_SHOWN = 60

#: The most ids below a table in a notebook.
_IDS = 200


@dataclass(frozen=True)
class Step:
    """One step of an encoding.

    Parameters
    ----------
    name : str
        ``"special"``, ``"normalize"``, ``"word"``, ``"merge"``, ``"viterbi"`` or ``"tokens"``.
    text : bytes
        The text that the step reads or produces.
    detail : str
        The reason, such as the rank or score of a merge.
    ids : list of int
        The ids that the step adds to the result; empty for intermediate steps.
    """

    name: str
    text: bytes
    detail: str = ""
    ids: list[int] = field(default_factory=list)


def _show(data: bytes) -> str:
    text = data.decode(errors="backslashreplace")
    text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return text if len(text) <= _SHOWN else text[: _SHOWN - 1] + "…"


@dataclass(frozen=True, repr=False)
class Explanation:
    """The steps from a text to its ids, which are shown as a table.

    Parameters
    ----------
    steps : list of Step
    ids : list of int
        The result of `Tokenizer.encode`.
    pieces : list of bytes
        The bytes of each id.
    """

    steps: list[Step]
    ids: list[int]
    pieces: list[bytes]

    def table(self) -> Table:
        """Return a table with one row per step.

        Returns
        -------
        Table
        """
        rows = []
        for step in self.steps:
            ids = " ".join(map(str, step.ids[:20])) + (" …" if len(step.ids) > 20 else "")
            rows.append((step.name, _show(step.text), step.detail, ids))
        return Table(("step", "text", "why", "ids"), rows)

    def _result(self, most: int | None = None) -> str:
        shown = zip(self.ids[:most], self.pieces[:most], strict=True)
        pairs = [f"{i} {_show(p)!r}" for i, p in shown]
        pairs += ["…"] if len(pairs) < len(self.ids) else []
        return f"{len(self.ids)} ids: " + ", ".join(pairs)

    def __str__(self) -> str:
        return f"{self.table()}\n{self._result()}"

    def __repr__(self) -> str:
        """Return the table as text, so that an interactive session shows it."""
        return str(self)

    def _repr_html_(self) -> str:
        return f"{self.table().html()}<p>{escape(self._result(_IDS))}</p>"
