"""`doctor`: the known mistakes that explain the values of another engine."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from ..base.progress import Progress
from ..display.table import Table, escape
from .case import Case, read_case
from .catalogue import Candidate
from .faults import CATALOGUE, candidates
from .generated import from_ids
from .guide import guide
from .replay import Replay
from .search import Accepted, Search
from .texts import Asked, same_texts, wrong_ids

__all__ = ["Diagnosis", "Finding", "Untested", "doctor"]


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
        ids: int = 0,
    ) -> None:
        self.faults = list(faults)
        self.errors = dict(errors)
        self.unexplained = dict(unexplained or {})
        self.rounding = rounding
        self.untested = list(untested)
        self.guide = guide
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


def doctor(
    model: Any,
    dump: Any,
    tokens: Any = None,
    *,
    parse_special: bool = False,
    progress: bool = True,
) -> Diagnosis:
    """Find the known mistakes that explain the values of another engine.

    Each value is compared with what the model computes from the engine's own inputs of that step.
    So a mistake does not hide those of later steps. Where a value is wrong, every mistake of the
    catalogue is tried, and the one that reproduces the engine's numbers is named. With a few late
    values, such as logits, the whole model runs with each mistake.

    Parameters
    ----------
    model : Model
        The model of the engine, from the same file. Its mode does not matter.
    dump : mapping of str to array_like
        The engine's values by tap, such as ``{"blk.0.attn_q": ...}``: a trace, what `read` returns
        from a file, or a dict. Values of shape (T, ...) may have a batch axis of length 1 and flat
        heads. ``output`` may have its last rows only. The entry ``"tokens"`` has the ids that the
        engine ran, and ``"ids"`` the ids that it generated greedily after them.
    tokens : str, ids, or a conversation, optional
        What the engine was asked to run. A conversation is a list of messages. With a text, ids
        are examined, too. Default: the ids of the dump.
    parse_special : bool
        Whether the texts of special tokens in a text become these tokens.
    progress : bool
        Whether a long search shows a progress bar.

    Returns
    -------
    Diagnosis
        ``print`` shows it. Of an empty dump, it says what to dump.

    Raises
    ------
    ValueError
        If a name of the dump is not a tap, a shape does not fit, or the ids are not known.
    TypeError
        If the dump is no mapping.

    Examples
    --------
    >>> import tinyllm as tl
    >>> model = tl.load()
    >>> mine = dict(model.trace("ROMEO: I am here", capture="blk.*"))
    >>> print(tl.doctor(model, mine, "ROMEO: I am here").summary)  # doctest: +ELLIPSIS
    Nothing is wrong: 80 values agree, ...
    >>> for i in range(4):
    ...     mine[f"blk.{i}.attn_mix"] = 2 * mine[f"blk.{i}.attn_mix"]
    >>> tl.doctor(model, mine, "ROMEO: I am here").ok
    False
    """
    if isinstance(dump, Mapping) and not len(dump):
        return Diagnosis((), {}, guide=guide(model))
    case = read_case(model, dump, tokens, parse_special)
    findings, ids = _tokens(model, case)
    if not case.known:
        if len(case.generated):
            return _generated(model, case, ids, findings, progress)
        return Diagnosis(findings, {"tokens": findings[0].error if findings else 0.0})
    prompt = case.prompt
    replay = Replay(model, ids, case.known)
    found = candidates(model.steps, model.weights, len(ids), prompt)
    with Progress(1.0, f"trying {len(found)} mistakes", progress) as bar:
        search = Search(replay, found, bar.to)
        search.run()
    findings += _merged(search.accepted, replay)
    unexplained = {
        step.tap: search.open[step.tap]
        for step in replay.ordered(search.open)
        if not search.by_rounding(step.tap)
    }
    rounding = _rounding(search, unexplained)
    return Diagnosis(
        findings,
        {step.tap: search.errors[step.tap] for step in replay.ordered(search.errors)},
        unexplained=unexplained,
        rounding=rounding,
        untested=_untested(replay, found, len(ids)),
    )


def _tokens(model: Any, case: Case) -> tuple[list[Finding], Any]:
    """Return what is wrong with the ids, and the ids that the engine ran."""
    asked, ids = case.asked, case.ids
    right = np.asarray(asked.ids, np.int64)
    if case.given and ids is not None:
        if case.prompt:
            ids = ids[: len(right)]
        if np.array_equal(ids, right):
            return [], case.ids
        return [_token_finding(asked, ids)], case.ids
    possible = [
        (fault, variant, other)
        for fault, variant, other in wrong_ids(asked)
        if not case.rows or len(other) == case.rows
    ]
    if not case.rows:
        return [], ids
    if ids is None and not possible:
        raise ValueError(
            f"the values of the dump have {case.rows} tokens, and tokens has {len(right)}; give "
            "the ids that the engine ran as dump['tokens']"
        )
    if not possible:
        return [], ids
    error = 1.0 if ids is None else _first_error(model, case, ids)
    if error < 1e-4:
        return [], ids
    residual, number = min((_first_error(model, case, p[2]), i) for i, p in enumerate(possible))
    if ids is not None and residual > 0.3 * min(error, 1.0):
        return [], ids
    fault, variant, other = possible[number]
    also = tuple(
        dict.fromkeys(
            f.name for f, _, o in possible if f.name != fault.name and np.array_equal(o, other)
        )
    )
    message = fault.message.replace("{}", variant.text)
    found = Finding(fault.name, ("tokens",), residual, error, also, message, fault.repair)
    return [found], other


def _first_error(model: Any, case: Case, ids: Any) -> float:
    """Return the error of the first known value if the engine ran these ids."""
    first = next(step.tap for step in model.steps if step.tap in case.known)
    replay = Replay(model, ids, {first: case.known[first]})
    return replay.residuals((), [first])[first]


def _token_finding(asked: Asked, ids: Any) -> Finding:
    """Return the mistake that gives these ids instead of the right ones."""
    right = np.asarray(asked.ids, np.int64)
    n = min(len(ids), len(right))
    error = float(np.mean(ids[:n] != right[:n])) if len(ids) == len(right) else 1.0
    names = [(f, v) for f, v, other in wrong_ids(asked) if np.array_equal(other, ids)]
    if not names and same_texts(asked, ids):
        fault = CATALOGUE["wrong_id_for_same_text"]
        return Finding(fault.name, ("tokens",), 0.0, error, (), fault.message, fault.repair)
    if not names:
        differ = np.flatnonzero(ids[:n] != right[:n])
        at = int(differ[0]) if len(differ) else n
        return Finding(
            "tokens_differ",
            ("tokens",),
            error,
            error,
            (),
            f"The ids differ from those of the text, first at token {at}: {_at(ids, at)} instead "
            f"of {_at(right, at)}.",
            "Compare the two lists of ids with tinyllm.tokenizer.diff_tokens.",
        )
    fault, variant = names[0]
    also = tuple(dict.fromkeys(f.name for f, _ in names if f.name != fault.name))
    message = fault.message.replace("{}", variant.text)
    return Finding(fault.name, ("tokens",), 0.0, error, also, message, fault.repair)


def _at(ids: Any, place: int) -> str:
    return str(int(ids[place])) if place < len(ids) else "nothing"


def _generated(
    model: Any, case: Case, ids: Any, findings: list[Finding], progress: bool
) -> Diagnosis:
    """Return the diagnosis of generated ids alone."""
    prompt = np.asarray(case.asked.ids if ids is None else ids, np.int64)
    if case.given and case.ids is not None:
        prompt = case.ids
    judged = from_ids(model, prompt, case.generated, case.asked, progress)
    findings += [
        Finding(
            each.name,
            ("ids",),
            each.residual,
            judged.error,
            each.also,
            each.message,
            CATALOGUE[each.name].repair,
        )
        for each in judged.found
    ]
    unexplained = {"ids": judged.error} if judged.error and not judged.found else {}
    return Diagnosis(
        findings,
        {},
        unexplained=unexplained,
        untested=[Untested(("most mistakes at once",), "dump blk.*.resid_post, or the logits")],
        ids=len(case.generated),
    )


def _merged(accepted: Iterable[Accepted], replay: Replay) -> list[Finding]:
    """Return findings, one for each name and sentence."""
    found: list[Finding] = []
    for each in accepted:
        order = [step.tap for step in replay.ordered(each.residuals)]
        also = tuple(other.fault.name for other in each.also)
        found.append(
            Finding(
                each.candidate.fault.name,
                tuple(order),
                max(each.residuals.values(), default=0.0),
                max(each.errors.values(), default=0.0),
                also,
                each.candidate.message,
                each.candidate.fault.repair,
            )
        )
    merged: dict[tuple[str, str], Finding] = {}
    for each in found:
        key = (each.name, each.message)
        if key in merged:
            before = merged[key]
            each = dataclasses.replace(
                before,
                taps=before.taps + each.taps,
                residual=max(before.residual, each.residual),
                error=max(before.error, each.error),
                also=tuple(name for name in before.also if name in each.also),
            )
        merged[key] = each
    return list(merged.values())


def _rounding(search: Search, unexplained: Mapping[str, float]) -> str:
    """Return the finest way to round that explains what no mistake explains, or ""."""
    taps = [tap for tap in search.open if tap not in unexplained]
    if not taps:
        return ""
    for name, errors in search.noise.items():
        explained = sum(
            search.open[tap] <= 3 * errors.get(tap, 0.0) + search.floor(tap) for tap in taps
        )
        if explained >= 0.9 * len(taps):
            return name
    return "several kinds of rounding"


def _untested(replay: Replay, found: Sequence[Candidate], tokens: int) -> list[Untested]:
    """Return the mistakes whose steps no known value depends on."""
    reached: set[str] = set()
    for tap in replay.known:
        reached |= replay.behind(tap)
    missing: dict[str, list[str]] = {}
    seen = {c.fault.name for c in found if not c.steps.keys().isdisjoint(reached)}
    for candidate in found:
        name = candidate.fault.name
        if name not in seen:
            first = replay.ordered(candidate.steps)[0]
            pattern = re.sub(r"^blk\.\d+\.", "blk.*.", first.tap)
            missing.setdefault(pattern, [])
            if name not in missing[pattern]:
                missing[pattern].append(name)
    out = [Untested(tuple(names), f"dump {tap} or a later value") for tap, names in missing.items()]
    if tokens == 1:
        names = tuple(n for n in CATALOGUE if n.startswith(("rope", "position", "causal", "cache")))
        out.append(Untested(names, "run at least two tokens: position 0 shows none of them"))
    return out


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
