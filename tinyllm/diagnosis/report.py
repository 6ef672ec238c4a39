"""What `doctor` returns, and how it looks."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence

from ..display.table import Table, escape

__all__ = ["Diagnosis", "Finding", "Untested", "short_taps"]


@dataclasses.dataclass(frozen=True)
class Finding:
    """One mistake that explains values of the engine.

    Attributes
    ----------
    name : str
        A name of the catalogue, such as ``"rope_pairing"``.
    taps : tuple of str
        The values that it explains.
    residual : float
        The largest relative error of these values if the engine makes this mistake. For generated
        ids, the share of ids that differ.
    error : float
        The same without the mistake.
    also : tuple of str
        Names of mistakes that explain these values as well.
    message : str
        What the engine does, in a sentence.
    repair : str
        What to change.
    """

    name: str
    taps: tuple[str, ...]
    residual: float
    error: float
    also: tuple[str, ...]
    message: str
    repair: str

    def __str__(self) -> str:
        """Return the finding in a few lines."""
        lines = [
            f"{self.name}: {self.message}",
            f"    where     {short_taps(self.taps)}",
            f"    proof     error {self.error:.1e} without it, {self.residual:.1e} with it",
            f"    repair    {self.repair}",
        ]
        if self.also:
            lines.append(f"    as good   {', '.join(self.also)}")
        return "\n".join(lines)


@dataclasses.dataclass(frozen=True)
class Untested:
    """Mistakes that the values cannot show.

    Attributes
    ----------
    names : tuple of str
        Names of the catalogue.
    needs : str
        What would show them: the taps to dump, or another prompt.
    """

    names: tuple[str, ...]
    needs: str

    def __str__(self) -> str:
        """Return the names and what would show them."""
        return f"{', '.join(self.names)}: {self.needs}"


class Diagnosis:
    """The result of `doctor`.

    Attributes
    ----------
    faults : list of Finding
        The mistakes, best first. Empty if nothing is wrong, or if no known mistake explains what
        is.
    unexplained : dict of str to float
        Relative errors that neither a known mistake nor rounding explains, by tap, in the order of
        computation. The first one is the place to look at.
    errors : dict of str to float
        The relative error of each value of the engine against what the model computes from the
        engine's own inputs of that step.
    rounding : str
        The rounding that explains the errors that are no mistakes, or ``""``.
    untested : list of Untested
        What could not be examined, and which values would show it.
    guide : str
        What to dump first, if there were no values; else ``""``.
    notes : list of str
        What was assumed when the values were read, as in `Dump.notes`.

    Examples
    --------
    >>> import tinyllm as tl
    >>> model = tl.load()
    >>> result = tl.doctor(model, model.trace("ROMEO:", capture="output"))
    >>> result.ok, result.faults
    (True, [])
    """

    def __init__(
        self,
        faults: Sequence[Finding],
        errors: Mapping[str, float],
        *,
        unexplained: Mapping[str, float] | None = None,
        rounding: str = "",
        untested: Sequence[Untested] = (),
        guide: str = "",
        notes: Sequence[str] = (),
        ids: int = 0,
    ) -> None:
        self.faults = list(faults)
        self.errors = dict(errors)
        self.unexplained = dict(unexplained or {})
        self.rounding = rounding
        self.untested = list(untested)
        self.guide = guide
        self.notes = list(notes)
        self._ids = ids

    @property
    def ok(self) -> bool:
        """Whether everything that was given agrees with the model, but for rounding."""
        return not self.faults and not self.unexplained and not self.guide

    @property
    def summary(self) -> str:
        """One sentence: the first finding, or that nothing is wrong."""
        if self.guide:
            return "There are no values to examine."
        seen = f"{len(self.errors)} values" if self.errors else f"{self._ids} generated ids"
        if self.faults:
            more = f" (and {len(self.faults) - 1} more)" if len(self.faults) > 1 else ""
            first = self.faults[0]
            return f"{first.name} in {short_taps(first.taps)}: {first.message}{more}"
        if self.unexplained:
            tap, error = next(iter(self.unexplained.items()))
            return (
                f"{tap} is wrong: its relative error is {error:.1e}, and no known mistake explains "
                "it."
            )
        worst = max(self.errors.values(), default=0.0)
        by = f", as an engine with {self.rounding}" if self.rounding else ""
        return f"Nothing is wrong: {seen} agree, with errors up to {worst:.1e}{by}."

    def __str__(self) -> str:
        """Return the findings as text."""
        if self.guide:
            return self.guide
        parts = []
        if self.faults:
            parts += [f"{i}. {each}" for i, each in enumerate(self.faults, 1)]
        else:
            parts.append(self.summary)
        if self.unexplained:
            head = [f"    {tap:<32} {e:.1e}" for tap, e in list(self.unexplained.items())[:8]]
            rest = len(self.unexplained) - len(head)
            parts.append(
                "Not explained by a known mistake (relative errors):\n"
                + "\n".join(head)
                + (f"\n    and {rest} more" if rest > 0 else "")
            )
        if self.faults and self.rounding:
            parts.append(f"Other differences are those of an engine with {self.rounding}.")
        if self.untested:
            parts.append("Not examined:\n" + "\n".join(f"    {each}" for each in self.untested))
        if self.notes:
            parts.append("Read as follows:\n" + "\n".join(f"    {each}" for each in self.notes))
        return "\n\n".join(parts)

    def __repr__(self) -> str:
        """Return the findings as text, so that an interactive session shows them."""
        return str(self)

    def table(self) -> Table:
        """Return the findings as a table.

        Returns
        -------
        Table
        """
        return Table(
            ("mistake", "where", "without", "with", "message", "repair"),
            [
                (
                    " or ".join((each.name, *each.also)),
                    short_taps(each.taps),
                    f"{each.error:.1e}",
                    f"{each.residual:.1e}",
                    each.message,
                    each.repair,
                )
                for each in self.faults
            ],
        )

    def _repr_html_(self) -> str:
        if self.guide:
            return f"<pre>{escape(self.guide)}</pre>"
        head = f"<p>{escape(self.summary)}</p>"
        table = self.table().html() if self.faults else ""
        rest = str(self).split("\n\n")[max(1, len(self.faults)) :]
        return head + table + "".join(f"<pre>{escape(part)}</pre>" for part in rest)


def short_taps(taps: Sequence[str]) -> str:
    """Return a short text of many taps: one pattern for each kind, and its blocks.

    Examples
    --------
    >>> short_taps(["blk.0.attn_q", "blk.1.attn_q", "blk.2.attn_q", "output"])
    'blk.0-2.attn_q, output'
    """
    kinds: dict[str, list[int]] = {}
    for tap in taps:
        found = re.fullmatch(r"blk\.(\d+)\.(.+)", tap)
        if found is None:
            kinds.setdefault(tap, [])
        else:
            kinds.setdefault(found[2], []).append(int(found[1]))
    return ", ".join(f"blk.{_ranges(b)}.{kind}" if b else kind for kind, b in kinds.items())


def _ranges(blocks: Sequence[int]) -> str:
    """Return numbers as text, with a dash for consecutive ones."""
    runs: list[list[int]] = []
    for i in sorted(set(blocks)):
        if runs and i == runs[-1][1] + 1:
            runs[-1][1] = i
        else:
            runs.append([i, i])
    texts = [f"{a}-{b}" if b > a else str(a) for a, b in runs]
    return ",".join(texts) if len(texts) == 1 else "{" + ",".join(texts) + "}"
