"""`doctor`: the known mistakes that explain the values of another engine."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from ..base.progress import Progress
from .case import Case, read_case
from .catalogue import Candidate
from .faults import CATALOGUE, candidates
from .generated import from_ids
from .guide import guide
from .replay import Replay
from .report import Diagnosis, Finding, Untested
from .search import Accepted, Search
from .texts import Asked, same_texts, wrong_ids

__all__ = ["doctor"]

#: Errors up to this one are those of float32, whatever else an engine rounds.
_FLOAT32 = 2e-5


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
    dump : Trace, mapping of str to array_like, str or os.PathLike
        The engine's values by name: what `read` returns, or what it takes, such as a dict or the
        path of an ``.npz`` file. Two entries of a mapping have a meaning of their own:
        ``"tokens"`` has the ids that the engine ran, and ``"generated"`` the ids that it generated
        after them, always taking the most likely one.
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
        If no value can be read, a shape does not fit, or the ids are not known.
    TypeError
        If the dump is of another type.

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
        if step.tap not in search.explained and not search.by_rounding(step.tap)
    }
    rounding = _rounding(search, unexplained)
    return Diagnosis(
        findings,
        {step.tap: search.errors[step.tap] for step in replay.ordered(search.errors)},
        unexplained=unexplained,
        rounding=rounding,
        untested=_untested(replay, found, len(ids)),
        notes=case.notes,
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
    merged: dict[tuple[str, str], Finding] = {}
    for each in accepted:
        made = Finding(
            each.candidate.fault.name,
            tuple(step.tap for step in replay.ordered(each.residuals)),
            max(each.residuals.values(), default=0.0),
            max(each.errors.values(), default=0.0),
            tuple(other.fault.name for other in each.also),
            each.candidate.message,
            each.candidate.fault.repair,
        )
        before = merged.setdefault((made.name, made.message), made)
        if before is not made:
            merged[made.name, made.message] = dataclasses.replace(
                before,
                taps=tuple(dict.fromkeys(before.taps + made.taps)),
                residual=max(before.residual, made.residual),
                error=max(before.error, made.error),
                also=tuple(name for name in before.also if name in made.also),
            )
    return list(merged.values())


def _rounding(search: Search, unexplained: Mapping[str, float]) -> str:
    """Return the way to round whose errors are most like those that no mistake explains, or ""."""
    taps = [
        tap
        for tap, error in search.open.items()
        if tap not in unexplained and error > _FLOAT32 and search.by_rounding(tap)
    ]
    if not taps:
        return ""

    def unlike(name: str) -> float:
        errors = search.noise[name]
        return sum(abs(math.log(search.open[t] / (errors.get(t, 0.0) + 1e-7))) for t in taps)

    return min(search.noise, key=unlike)


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
