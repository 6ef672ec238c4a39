"""Mistakes that explain generated ids alone, without any inner value."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..base.progress import Progress
from .faults import candidates
from .replay import Array, Injection, Replay
from .texts import Asked, wrong_ids

__all__ = ["Guess", "Judged", "from_ids"]

#: An id is as good as the best one if its logit is less by at most this part of their deviation.
TIE = 0.1

#: The largest part of the wrong ids that may stay wrong with a mistake.
LEFT = 0.25


@dataclasses.dataclass(frozen=True)
class Guess:
    """A mistake that explains generated ids, and others that explain as many."""

    name: str
    message: str
    residual: float
    also: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Judged:
    """What generated ids tell.

    Attributes
    ----------
    error : float
        The part of the ids that the right model would not have chosen.
    found : list of Guess
        At most one.
    """

    error: float
    found: list[Guess]


def from_ids(model: Any, prompt: Array, made: Array, asked: Asked, progress: bool) -> Judged:
    """Return the mistake with which a model chooses these ids.

    The model reads the prompt and the ids in one run. So one different id does not change the
    others, and each is a test of its own.

    Parameters
    ----------
    model : tinyllm.Model
    prompt : (T,) int64 array
    made : (n,) int64 array
        The ids that the engine generated, always the one with the largest logit.
    asked : Asked
    progress : bool

    Returns
    -------
    Judged
    """
    model.need_logits()
    logits = model.steps.role("logits")

    def misses(ids: Array, injections: Sequence[Injection]) -> int:
        replay.tokens = np.concatenate([ids, made[:-1]])
        rows = replay.value(injections, logits)[len(ids) - 1 :]
        return _misses(rows, made)

    replay = Replay(model, np.concatenate([prompt, made[:-1]]), {})
    right = misses(prompt, ())
    if not right:
        return Judged(0.0, [])
    results: list[tuple[int, str, str]] = []
    found = candidates(model.steps, model.weights, len(replay.tokens), len(prompt))
    found = [candidate for candidate in found if not candidate.variant.near]
    with Progress(len(found), f"trying {len(found)} mistakes", progress) as bar:
        for fault, variant, ids in wrong_ids(asked):
            replay.forget()
            text = fault.message.replace("{}", variant.text)
            results.append((misses(ids, ()), fault.name, text))
        replay.forget()
        for candidate in found:
            count = misses(prompt, [candidate])
            results.append((count, candidate.fault.name, candidate.message))
            bar.add(1)
    best = min(count for count, _, _ in results)
    if best > LEFT * right:
        return Judged(right / len(made), [])
    names: dict[str, str] = {}
    for count, name, message in results:
        if count == best:
            names.setdefault(name, message)
    first, *others = names
    guess = Guess(first, names[first], best / len(made), tuple(others))
    return Judged(right / len(made), [guess])


def _misses(rows: Array, made: Array) -> int:
    """Return how many ids are not the best ones of their rows of logits."""
    rows = np.asarray(rows, np.float64)
    if not np.isfinite(rows).all():
        return len(made)
    chosen = np.take_along_axis(rows, made[:, np.newaxis], axis=1)[:, 0]
    top, spread = rows.max(axis=1), rows.std(axis=1)
    flat = spread == 0  # no id is the best one
    return int(np.sum((chosen < top - TIE * spread) | (flat & (made != 0))))
