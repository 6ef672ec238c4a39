"""The steps of an encoding, shown as a table."""

from __future__ import annotations

from dataclasses import dataclass, field

__all__ = ["Explanation", "Step"]

_SHOWN = 60


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


@dataclass(frozen=True)
class Explanation:
    """The steps from a text to its ids; ``print`` shows them as a table.

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

    def __str__(self) -> str:
        rows = [("step", "text", "why", "ids")]
        for step in self.steps:
            ids = " ".join(map(str, step.ids[:20])) + (" …" if len(step.ids) > 20 else "")
            rows.append((step.name, _show(step.text), step.detail, ids))
        widths = [max(len(row[i]) for row in rows) for i in range(3)]
        lines = []
        for name, text, detail, ids in rows:
            cells = f"{name:{widths[0]}}  {text:{widths[1]}}  {detail:{widths[2]}}  {ids}"
            lines.append(cells.rstrip())
        pairs = [f"{i} {_show(p)!r}" for i, p in zip(self.ids, self.pieces, strict=True)]
        lines.append(f"{len(self.ids)} ids: " + ", ".join(pairs))
        return "\n".join(lines)
