"""Drafts: the tokens that a text will probably draw next, which are checked in one call.

A call with several tokens reads the weights once. So a generation may run, beside its next token,
some that were guessed. A guess counts only if it is the very token that is drawn from the logits
before it: Leviathan et al., "Fast Inference from Transformers via Speculative Decoding" (2023),
with the draw itself as the test. Where guesses come from and how many there are changes only the
time that a text takes.
"""

from __future__ import annotations

import itertools
import math
import operator
import time
import weakref
from collections.abc import Sequence
from typing import Any, Literal, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from .. import _core
from ..base.numeric import Float32
from ..runtime.runner import Runner
from .drawing import Drawing

__all__ = ["MOST", "Costs", "Draft", "Drafts", "check_draft", "choose", "costs_of", "make_drafts"]

#: Tokens of a draft at most.
MOST = 24

#: A guess that is right, with all before it, with less than this chance is never worth a row.
_LEAST = 0.05

#: How much faster than without a draft a call must be expected to be.
_GAIN = 1.1

#: Where guesses come from: ``"lookup"``, a smaller model, or nowhere.
Draft: TypeAlias = Literal["lookup"] | Runner | None

Guesses: TypeAlias = list[
    tuple[int, float]
]  # tokens, and the chance of each if those before it are right


class Costs:
    """The seconds that calls of a model take, by their number of rows.

    Examples
    --------
    >>> costs = Costs()
    >>> costs.record(1, 0.5)
    >>> costs.of(1), costs.of(4) > costs.of(2) > 0.5
    (0.5, True)
    """

    def __init__(self) -> None:
        self._seconds: dict[int, float] = {}

    @staticmethod
    def _guess(rows: int) -> float:
        """The cost relative to that of one row, before anything was measured."""
        return 1.0 if rows <= 1 else 1.2 + 0.15 * rows

    def record(self, rows: int, seconds: float) -> None:
        """Take note of a call. One slow call, for which the machine was busy, counts little."""
        before = self._seconds.get(rows, seconds)
        self._seconds[rows] = before + (min(seconds, 3 * before) - before) / 4

    def of(self, rows: int) -> float:
        """Return the expected seconds. Before the first call, the unit is a call of one row."""
        if rows in self._seconds or not self._seconds:
            return self._seconds.get(rows, self._guess(rows))
        near = min(self._seconds, key=lambda known: abs(math.log(known / rows)))
        return self._seconds[near] * self._guess(rows) / self._guess(near)


_COSTS: weakref.WeakKeyDictionary[Runner, Costs] = weakref.WeakKeyDictionary()


def costs_of(model: Runner) -> Costs:
    """Return what calls of a model cost so far in this process."""
    return _COSTS.setdefault(model, Costs())


def choose(guesses: Sequence[Guesses], rows: int, costs: Costs) -> list[int]:
    """Return how many guesses of each text to check in a call.

    The number maximizes the expected tokens per second. A guess adds its chance of being reached
    and right to the expected tokens.

    Parameters
    ----------
    guesses : sequence of list of (int, float)
        Those of each text.
    rows : int
        The rows that run in any case.
    costs : Costs

    Returns
    -------
    list of int

    Examples
    --------
    >>> choose([[(7, 0.99)] * 8, [(7, 0.2)] * 8], 2, Costs())
    [8, 0]
    >>> choose([[(7, 0.3)] * 8], 1, Costs())
    [0]
    """
    reached = [
        (chance, -i)
        for i, found in enumerate(guesses)
        for chance in itertools.accumulate((chance for _, chance in found), operator.mul)
    ]
    # the chances of a text fall, so the best guesses of all are the first ones of each text
    reached.sort(reverse=True)
    best, most, expected = 0, _GAIN * len(guesses) / costs.of(rows), float(len(guesses))
    for count, (chance, _) in enumerate(reached, 1):
        expected += chance
        speed = expected / costs.of(rows + count)
        if speed > most:
            best, most = count, speed
    counts = [0] * len(guesses)
    for _, i in reached[:best]:
        counts[-i] += 1
    return counts


class _Chances:
    """How often guesses of a kind are right. Recent ones count more."""

    def __init__(self, first: Sequence[float]) -> None:
        self._right = [4 * chance for chance in first]
        self._all = [4.0] * len(first)

    def learn(self, kind: int, right: bool) -> None:
        self._right[kind] = 0.98 * self._right[kind] + right
        self._all[kind] = 0.98 * self._all[kind] + 1

    def of(self, kind: int) -> float:
        return self._right[kind] / self._all[kind]


class Drafts(Protocol):
    """A source of guesses for the texts of a generation, which are numbered."""

    def propose(self, texts: Sequence[int], rooms: Sequence[int]) -> list[Guesses]:
        """Return at most `rooms` guesses for each of these texts."""

    def drawn(self, text: int, token: int) -> None:
        """Take note of a token that was drawn."""


class LookupDrafts:
    """Guesses that a text repeats what followed the last time that it had its present end.

    Parameters
    ----------
    drawings : sequence of Drawing
        The texts.
    """

    def __init__(self, drawings: Sequence[Drawing]) -> None:
        self._texts = [_Lookup(drawing.history) for drawing in drawings]

    def propose(self, texts: Sequence[int], rooms: Sequence[int]) -> list[Guesses]:
        """As `Drafts.propose`."""
        return [self._texts[i].propose(room) for i, room in zip(texts, rooms, strict=True)]

    def drawn(self, text: int, token: int) -> None:
        """As `Drafts.drawn`."""
        self._texts[text].drawn(token)


class _Lookup:
    """The index of one text, and how often the next token was found in it.

    That is known for every token, whether a draft was checked or not. So a text that does not
    repeat itself never pays for a draft.
    """

    def __init__(self, history: Sequence[int]) -> None:
        self._index = _core.Lookup(np.asarray(history, np.int32))
        # by the bits of the length of the match: 0, 2, 3 to 4, 5 to 8, ... 33 to 64
        self._chances = _Chances([0.0, 0.3, 0.5, 0.7, 0.85, 0.92, 0.95])
        self._length, self._next = self._index.find(1)

    @staticmethod
    def _kind(length: int) -> int:
        return min(max(length - 1, 0).bit_length(), 6)

    def drawn(self, token: int) -> None:
        if self._length:
            self._chances.learn(self._kind(self._length), token == self._next[0])
        self._index.append([token])
        self._length, self._next = self._index.find(1)

    def propose(self, room: int) -> Guesses:
        if not self._length:
            return []
        _, tokens = self._index.find(room)
        guesses: Guesses = []
        reached = 1.0
        for i, token in enumerate(tokens):
            chance = self._chances.of(self._kind(self._length + i))
            reached *= chance
            if reached < _LEAST:
                break
            guesses.append((token, chance))
        return guesses


class ModelDrafts:
    """Guesses of a smaller model, drawn as the texts are drawn: same samplers, seeds and steps.

    Parameters
    ----------
    model : Model
        The smaller model.
    drawings : sequence of Drawing
        The texts.
    """

    #: Without a draft for so many calls, one is tried, to see whether it pays now.
    _PAUSE = 128

    def __init__(self, model: Runner, drawings: Sequence[Drawing]) -> None:
        self._model = model
        self._limit = model.core.config["max_context"]
        self._drawings = drawings
        self._costs, self._target = costs_of(model), costs_of(drawings[0].model)
        self._sessions = [_core.Session(model.core) for _ in drawings]
        self._known = [0] * len(drawings)  # tokens that the session and the text certainly share
        self._waiting: list[list[tuple[int, int]]] = [[] for _ in drawings]  # guess and kind
        # by the probability with which the smaller model draws the token
        self._chances = _Chances([0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 0.98])
        self._any = _Chances([0.8])
        self._paused = 0

    def drawn(self, text: int, token: int) -> None:
        """As `Drafts.drawn`."""
        waiting = self._waiting[text]
        if waiting:
            guess, kind = waiting.pop(0)
            self._chances.learn(kind, guess == token)
            self._any.learn(0, guess == token)
            if guess != token:
                waiting.clear()

    def _count(self, texts: int) -> int:
        """Return how many tokens are worth a draft now."""
        chance, each = self._any.of(0), self._costs.of(texts)
        best, most, expected, reached = 0, _GAIN * texts / self._target.of(texts), float(texts), 1.0
        for count in range(1, MOST + 1):
            reached *= chance
            expected += texts * reached
            speed = expected / (self._target.of(texts + texts * count) + each * count)
            if speed > most:
                best, most = count, speed
        self._paused = 0 if best else self._paused + 1
        if self._paused == self._PAUSE:
            self._paused, best = 0, 4
        return best

    def propose(self, texts: Sequence[int], rooms: Sequence[int]) -> list[Guesses]:
        """As `Drafts.propose`."""
        guesses: dict[int, Guesses] = {i: [] for i in texts}
        count = self._count(len(texts))
        live = []
        for i, room in zip(texts, rooms, strict=True):
            tokens = self._behind(i) if min(room, count) else None
            if tokens is not None:
                self._waiting[i] = []
                live.append((i, min(room, count), tokens, self._drawings[i].copy(), 1.0))
        while live:
            rows = self._run([i for i, *_ in live], [tokens for _, _, tokens, _, _ in live])
            onward = []
            for (i, room, _, drawing, reached), row in zip(live, rows, strict=True):
                draw = self._draw(drawing, row)
                if draw is None:
                    continue
                token, kind = draw
                drawing.add(token)
                guesses[i].append((token, self._chances.of(kind)))
                self._waiting[i].append((token, kind))
                reached *= guesses[i][-1][1]
                fits = len(drawing.history) <= self._limit
                if len(guesses[i]) < room and reached > 0.3 and fits:
                    onward.append((i, room, np.array([token], np.int32), drawing, reached))
            live = onward
        return [guesses[i] for i in texts]

    def _behind(self, text: int) -> npt.NDArray[np.int32] | None:
        """Return the tokens that the session of a text does not have; None if it cannot run."""
        session, history = self._sessions[text], self._drawings[text].history
        if len(history) > self._limit:
            return None
        known = self._known[text]
        for token in session.tokens[known:].tolist():
            if known + 1 >= len(history) or token != history[known]:
                break
            known += 1
        session.rewind(min(known, len(session)))
        self._known[text] = known
        tokens = np.asarray(history[known:], np.int32)
        return tokens if (tokens < self._model.config.vocab_size).all() else None

    def _run(self, texts: list[int], tokens: list[npt.NDArray[np.int32]]) -> Float32:
        ends = np.cumsum([len(ids) for ids in tokens])
        start = time.perf_counter()
        logits, _ = self._model.run([self._sessions[i] for i in texts], tokens, ends - 1)
        if ends[-1] == len(texts):
            self._costs.record(len(texts), time.perf_counter() - start)
        return logits

    @staticmethod
    def _draw(drawing: Drawing, row: Float32) -> tuple[int, int] | None:
        """Return the token that these logits give and the kind of its chance; None at the end."""
        size = drawing.model.config.vocab_size
        logits = np.full(size, -np.inf, np.float32)
        logits[: len(row)] = row[:size]
        try:
            draw = drawing.draw(logits)
        except ValueError:  # what the samplers leave has no finite logit here
            return None
        if draw is None or draw.id in drawing.ends:
            return None
        return draw.id, min(int(10 * draw.probability), 9)


def check_draft(model: Runner, draft: Any) -> None:
    """Raise if `draft` cannot make guesses for a model; see `Model.generate`."""
    if draft is None:
        return
    _check_rewinds(model, "the model")
    if isinstance(draft, str) and draft == "lookup":
        return
    if not isinstance(draft, Runner):
        raise TypeError(f"draft is {draft!r}; expected None, 'lookup' or a smaller tl.Model")
    draft.need_logits()
    _check_rewinds(draft, "the draft model")
    _check_vocabularies(model, draft)


def _check_rewinds(model: Runner, name: str) -> None:
    if model.steps.recurrent:
        raise ValueError(
            f"{name} ({model.config.architecture}) has recurrent states, from which tokens of a "
            "draft that are not drawn cannot be removed; expected draft=None"
        )


def _check_vocabularies(model: Runner, draft: Runner) -> None:
    """Raise if a token of the draft model is another token of the model."""
    ours, theirs = model.tokenizer, draft.tokenizer
    if ours is None or theirs is None:
        sizes = model.config.vocab_size, draft.config.vocab_size
        if sizes[0] != sizes[1]:
            raise ValueError(
                f"the draft model has {sizes[1]} tokens, and the model has {sizes[0]}; expected "
                "the same vocabulary"
            )
        return
    for i, (mine, other) in enumerate(zip(ours.vocab, theirs.vocab, strict=False)):
        if mine != other:  # beyond the shorter one there are only rows that fill up a matrix
            raise ValueError(
                f"token {i} is {other!r} in the draft model, and {mine!r} in the model; expected "
                "the same vocabulary"
            )


def make_drafts(draft: Any, drawings: Sequence[Drawing]) -> Drafts | None:
    """Return the source of guesses that an argument ``draft=`` asks for."""
    if draft is None:
        return None
    return LookupDrafts(drawings) if isinstance(draft, str) else ModelDrafts(draft, drawings)
