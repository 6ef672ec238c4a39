"""Beam search: find continuations of high probability with a few parallel beams."""

from __future__ import annotations

import dataclasses
import time
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from .. import _core
from ..base.numeric import best, log_softmax
from ..errors import Error
from ..runtime.runner import Runner
from .drawing import allowed_tokens
from .options import Options
from .result import Generation, Timings

if TYPE_CHECKING:
    from ..grammar.grammar import Constraint

__all__ = ["search"]


@dataclasses.dataclass
class _Beam:
    session: _core.Session
    ids: list[int]
    total: float  # log-probability of all ids
    state: int = 0  # state of the grammar


@dataclasses.dataclass(frozen=True)
class _Done:
    ids: list[int]
    total: float
    reason: str
    rank: float
    stop: int | None = None
    complete: bool | None = None


def _rank(total: float, length: int, penalty: float) -> float:
    if not penalty or not length:
        return total
    # length ** penalty, with the same bits on every machine
    factor = _core.exp([penalty * float(_core.log([float(length)])[0])])[0]
    return float(total / factor)


def search(
    model: Runner,
    prompt: NDArray[np.int32],
    beams: int,
    options: Options,
    penalty: float,
) -> list[Generation]:
    """Return up to `beams` continuations, the best first; see `Model.beam_search`."""
    times = [time.perf_counter()]
    constraint: Constraint | None = None
    if options.grammar is not None and model.tokenizer is not None:
        constraint = options.grammar.constraint(model.tokenizer)
    limit = model.core.config["max_context"] - len(prompt) + 1
    limit = max(limit, 1)  # the core rejects a prompt that is too long
    longest = limit if options.max_tokens is None else min(options.max_tokens, limit)
    cut = "length" if longest == options.max_tokens else "context"
    ends = model.eog_ids | options.stop_ids
    session = _core.Session(model.core)
    live = [_Beam(session, [], 0.0, constraint.start() if constraint else 0)]
    done: list[_Done] = []

    def finish(beam: _Beam, total: float, reason: str, stop: int | None = None) -> None:
        # a drawn end token counts towards the length
        length = len(beam.ids) + (reason in ("eog", "stop"))
        complete = None if constraint is None else constraint.is_complete(beam.state)
        found = _Done(beam.ids, total, reason, _rank(total, length, penalty), stop, complete)
        done.append(found)
        done.sort(key=lambda d: -d.rank)
        del done[beams:]

    tokens = [prompt]
    for _ in range(longest):
        ends_of = np.cumsum([len(t) for t in tokens])
        logits, _ = model.run([beam.session for beam in live], tokens, ends_of - 1)
        if len(times) == 1:
            times.append(time.perf_counter())
        found: list[tuple[float, int, int]] = []
        for i, beam in enumerate(live):
            values = log_softmax(logits[i])
            allowed = allowed_tokens(model, options, len(beam.ids), constraint, beam.state)
            if allowed is not None:
                values[~allowed] = -np.inf
            # enough for all beams, in addition to tokens that end the text
            for k in best(values, beams + len(ends)).tolist():
                if values[k] > -np.inf:
                    found.append((beam.total + float(values[k]), i, k))
        found.sort(key=lambda f: (-f[0], f[1], f[2]))
        onward: list[_Beam] = []
        for place, (total, i, token) in enumerate(found):
            beam = live[i]
            if token in ends:
                if place >= beams:
                    continue
                is_eog = token in model.eog_ids
                finish(beam, total, "eog" if is_eog else "stop", None if is_eog else token)
            elif len(onward) < beams:
                state = constraint.accept(beam.state, token) if constraint else 0
                child = _Beam(beam.session, [*beam.ids, token], total, state)
                if constraint and constraint.is_finished(state):
                    finish(child, total, "grammar")
                else:
                    onward.append(child)
        live = onward
        if not live:
            break
        # stop if no continuation of a live beam can still enter the list of results
        reach = max(_rank(b.total, longest + 1, penalty) for b in live)
        if len(done) == beams and reach <= done[-1].rank:
            live = []
            break
        seen: set[int] = set()
        for beam in live:
            if id(beam.session) in seen:
                beam.session = beam.session.fork()
            seen.add(id(beam.session))
        tokens = [np.asarray(beam.ids[-1:], np.int32) for beam in live]
    for beam in live:
        finish(beam, beam.total, cut)
    if not done:
        raise Error("the grammar leads every beam to a state where no token of the vocabulary fits")
    times.append(time.perf_counter())
    first, last = times[1] - times[0], times[-1] - times[1]
    tokenizer = model.tokenizer
    return [
        Generation(
            ""
            if tokenizer is None or not tokenizer.has_text
            else tokenizer.decode([t for t in d.ids if t < len(tokenizer)], strip_prefix=False),
            d.ids,
            prompt.tolist(),
            d.reason,
            0,
            stop=d.stop,
            complete=d.complete,
            timings=Timings(len(prompt), len(d.ids), first, last),
            score=d.total,
        )
        for d in done
    ]
