"""Continue prompts token by token."""

from __future__ import annotations

import contextlib
import time
import weakref
from collections.abc import Generator, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ..base.numeric import Float32, Float64, best, log_softmax
from ..errors import Error
from ..runtime.beginnings import run_beginnings
from ..runtime.runner import Runner
from ..runtime.session import Session
from ..sampling.sampler import Sampler
from ..tokenizer import StreamDecoder
from ..trace.arena import Layout
from ..trace.edit_program import Program
from ..trace.trace import Trace
from .drafts import MOST, Costs, choose, costs_of, make_drafts
from .drawing import Drawing
from .options import Options
from .result import Generation, Logprobs, Timings

if TYPE_CHECKING:
    from ..trace.edits import Edit

__all__ = ["PromptTooLong", "Stepper", "StopFinder", "shifted"]


class StopFinder:
    """Finds stop strings in a text that arrives in pieces.

    Parameters
    ----------
    strings : sequence of str

    Examples
    --------
    >>> finder = StopFinder(["END"])
    >>> [finder.feed(piece) for piece in ("to E", "ast", "E", "N", "Dxy")], finder.found
    (['to ', 'East', '', '', ''], 'END')
    """

    def __init__(self, strings: Sequence[str]) -> None:
        self.found: str | None = None
        self._strings = strings
        self._held = ""

    def feed(self, text: str) -> str:
        """Return the text that is certainly before any stop string."""
        if not self._strings or self.found is not None:
            return text if self.found is None else ""
        held = self._held + text
        # the stop string that ends first counts, however the text is cut; of several, the longest
        hits = [(held.find(s) + len(s), held.find(s), s) for s in self._strings if s in held]
        if hits:
            _, at, self.found = min(hits)
            self._held = ""
            return held[:at]
        # hold back the longest suffix that may become a stop string
        keep = 0
        for string in self._strings:
            for size in range(min(len(string) - 1, len(held)), keep, -1):
                if held.endswith(string[:size]):
                    keep = size
                    break
        self._held = held[len(held) - keep :]
        return held[: len(held) - keep]

    def finish(self) -> str:
        """Return the text that was held back."""
        held, self._held = self._held, ""
        return held


class PromptTooLong(ValueError):
    """A prompt that the context does not hold."""


class _Halted(Exception):
    """A generation was cancelled, or its time is up."""


def shifted(ids: Sequence[int], limit: int, first_stays: bool) -> list[int]:
    """Return the tokens that stay when a text does not fit into the context.

    Parameters
    ----------
    ids : sequence of int
        The whole text.
    limit : int
        Number of tokens in the context.
    first_stays : bool
        Whether the first token stays.

    Returns
    -------
    list of int
        The text without its oldest tokens. A multiple of half the context is dropped, as little as
        makes the rest fit, as llama.cpp does. So the rest runs again only once in half a context.

    Examples
    --------
    >>> shifted([0, 1, 2, 3, 4, 5], 5, first_stays=True)
    [0, 3, 4, 5]
    >>> shifted([0, 1, 2, 3, 4], 5, first_stays=True)
    [0, 1, 2, 3, 4]
    """
    keep = int(first_stays and limit > 1)
    half = max((limit - keep) // 2, 1)
    dropped = half * -(-max(len(ids) - limit, 0) // half)
    return [*ids[:keep], *ids[keep + dropped :]]


class _Ahead(NamedTuple):
    """A token of a draft, and what came of it."""

    token: int
    logits: Float32  # after the token
    trace: Trace | None


class _Run:
    """The state of one prompt's generation."""

    def __init__(
        self,
        model: Runner,
        prompt: npt.NDArray[np.int32],
        sampler: Sampler,
        options: Options,
        session: Session | None,
    ) -> None:
        self._limit = limit = model.core.config["max_context"]
        if len(prompt) > limit and options.context != "shift":
            raise PromptTooLong(
                f"the prompt has {len(prompt)} tokens, which go beyond the context length of "
                f"{limit}; load with a larger max_context to allow it, or drop the oldest tokens "
                "with context='shift'"
            )
        self.model, self.prompt, self.sampler, self.options = model, prompt, sampler, options
        self.drawing = Drawing(model, sampler, options, prompt.tolist())
        self.ids, self.history = self.drawing.ids, self.drawing.history
        self.is_new = session is None
        self.session = Session(model) if session is None else session
        self.tokens = prompt  # the tokens to run next
        self.to_run = 0
        self.logits: Float32 | None = None  # for the next draw
        self.ahead: list[_Ahead] = []  # the tokens of a draft that ran behind those of the text
        self.drafted = self.accepted = 0
        self.text: list[str] = []
        self.traces: list[Trace] = []
        self.reason = ""
        self.stop: str | int | None = None
        self.drawn: list[tuple[float, float, npt.NDArray[np.int64], Float64]] = []
        self.end: tuple[int, float] | None = None  # the end token and its log-probability
        self._finder = StopFinder(options.stop)
        self._decoder: StreamDecoder | None = None
        if model.tokenizer is not None and model.tokenizer.has_text:
            self._decoder = model.tokenizer.stream_decoder(strip_prefix=False)

    def ended(self) -> bool:
        """Return whether to stop before the next step; set `reason` if so."""
        if self.reason:
            return True
        if self.options.max_tokens is not None and len(self.ids) >= self.options.max_tokens:
            self.reason = "length"
        elif self.drawing.is_finished:
            self.reason = "grammar"
        elif len(self.history) > self._limit and self.options.context != "shift":
            self.reason = "context"
        return bool(self.reason)

    def fit(self, edits: Sequence[Edit] = ()) -> None:
        """Drop the oldest tokens if those to run next do not fit into the context."""
        if len(self.session) + len(self.tokens) > self._limit:
            self.start(edits)

    def start(self, edits: Sequence[Edit] = ()) -> None:
        """Find the tokens to run, given those that the session has already."""
        window = self.window()
        kept = self.session.keep(window, edits)
        self.tokens = np.asarray(window[kept:], np.int32)

    def window(self) -> list[int]:
        """Return the tokens of the text that the context holds."""
        tokenizer = self.model.tokenizer
        has_bos = tokenizer is not None and tokenizer.add_bos and self.history[0] == tokenizer.bos
        return shifted(self.history, self._limit, has_bos)

    def room(self) -> int:
        """Return how many tokens of a draft could belong to the text."""
        room = self._limit - len(self.session) - len(self.tokens)
        if self.options.max_tokens is not None:
            room = min(room, self.options.max_tokens - len(self.ids) - 1)
        return max(min(room, MOST), 0)

    def go_on(self) -> bool:
        """Take over the logits after the last token, if a draft had this token next."""
        if not self.ahead or self.ahead[0].token != self.history[-1] or not self.session.accept():
            self.ahead = []
            return False
        first = self.ahead.pop(0)
        self.logits = first.logits
        self.keep_trace(first.trace)
        return True

    def keep_trace(self, trace: Trace | None) -> None:
        """Add the trace of a step."""
        if trace is not None:
            trace.share_context(self.session.share)
            self.traces.append(trace)

    def step(self) -> str:
        """Draw a token; return the text that is final now."""
        logits, self.logits = self.logits, None
        assert logits is not None
        draw = self.drawing.draw(logits)
        if draw is None:
            return self._stuck()
        token = draw.id
        values = None if self.options.logprobs is None else log_softmax(logits)
        if token in self.drawing.ends:
            self.reason = "eog"
            if token not in self.model.eog_ids:
                self.reason, self.stop = "stop", token
            self.end = token, float("nan") if values is None else float(values[token])
            return ""
        if self.options.logprobs is not None and values is not None:
            top = best(values, self.options.logprobs)
            self.drawn.append((float(values[token]), draw.probability, top, values[top]))
        self.drawing.add(token)
        self.tokens = np.asarray([token], np.int32)
        if self.ahead and self.ahead[0].token == token:
            self.accepted += 1
        if self._decoder is None or token >= len(self.model.tokenizer or ()):
            return ""
        return self._keep(self._decoder.feed(token))

    def _stuck(self) -> str:
        if self.drawing.constraint is None:
            raise Error("min_tokens forbids the end of the text, but no other token is allowed")
        if self.drawing.is_complete:
            self.reason = "grammar"
            return ""
        raise Error(
            f"after {''.join(self.text)[-40:]!r} the grammar expects {self.drawing.expected}, but "
            "no token of the vocabulary fits"
        )

    def _keep(self, text: str) -> str:
        text = self._finder.feed(text)
        if self._finder.found is not None and not self.reason:
            self.reason, self.stop = "stop", self._finder.found
        self.text.append(text)
        return text

    def finish(self) -> str:
        """Return the text that was held back."""
        if self._decoder is None or self._finder.found is not None:
            return ""
        text = self._keep(self._decoder.finish())
        if self._finder.found is None:
            self.text.append(self._finder.finish())
            text += self.text[-1]
        return text

    def result(self, prompt_seconds: float, seconds: float) -> Generation:
        """Return the result of the generation."""
        logprobs = None
        if self.options.logprobs is not None:
            k = min(self.options.logprobs, self.model.config.vocab_size)
            top_ids = np.array([row[2] for row in self.drawn], np.int64).reshape(len(self.drawn), k)
            logprobs = Logprobs(
                self.model.pieces(np.asarray(self.ids, np.int32)),
                np.array([row[0] for row in self.drawn], np.float64),
                np.array([row[1] for row in self.drawn], np.float64),
                top_ids,
                np.array([row[3] for row in self.drawn], np.float64).reshape(len(self.drawn), k),
                [self.model.pieces(row.astype(np.int32)) for row in top_ids],
            )
        complete = self.drawing.is_complete
        if self._finder.found is not None and self.options.grammar is not None:
            complete = self.options.grammar.accepts("".join(self.text))
        return Generation(
            "".join(self.text),
            self.ids,
            self.prompt.tolist(),
            self.reason,
            self.sampler.seed,
            self.traces,
            self.stop,
            complete,
            logprobs,
            Timings(
                self.to_run,
                len(self.ids),
                prompt_seconds,
                seconds,
                self.drafted,
                self.accepted,
            ),
            end_id=None if self.end is None else self.end[0],
            end_logprob=None if self.end is None or logprobs is None else self.end[1],
        )


class Stepper:
    """Iterates over the text of generations that run together; then `results` returns them.

    Parameters
    ----------
    model : Model
    prompts : sequence of int32 arrays
    samplers : sequence of Sampler
        One per prompt.
    options : Options
    layout : Layout, optional
        What to capture.
    program : Program, optional
        What to edit.
    sessions : sequence of (Session or None)
        Contexts to continue. The start of a prompt that its context has already is not run again.
        None: a new context.
    draft : str or Model, optional
        Where guesses of the next tokens come from; see `Model.generate`.
    """

    def __init__(
        self,
        model: Runner,
        prompts: Sequence[npt.NDArray[np.int32]],
        samplers: Sequence[Sampler],
        options: Options,
        layout: Layout | None = None,
        program: Program | None = None,
        sessions: Sequence[Session | None] | None = None,
        draft: Any = None,
    ) -> None:
        self._model = model
        self._layout = layout
        self._program = program
        self._edits = () if program is None else program.edits
        self._runs = [
            _Run(model, prompt, sampler, options, session)
            for prompt, sampler, session in zip(
                prompts, samplers, sessions or [None] * len(prompts), strict=True
            )
        ]
        self._drafts = make_drafts(draft, [run.drawing for run in self._runs])
        self._costs = costs_of(model) if layout is None and program is None else Costs()
        self._times: list[float] = []
        self._timeout = options.timeout
        self._cancelled = False

    def cancel(self) -> None:
        """End all generations after the present token. Any thread may call this."""
        self._cancelled = True

    def _halted(self) -> str:
        """Return why to end before the next token, or ``""``."""
        if self._cancelled:
            return "cancelled"
        if self._timeout is None or time.perf_counter() - self._times[0] < self._timeout:
            return ""
        return "timeout"

    def _watch(self) -> None:
        if self._halted():
            raise _Halted

    def steps(self) -> Iterator[tuple[int, str]]:
        """Yield the index of a prompt and the next piece of its text, as tokens are drawn.

        From its first step until it ends or is closed, the sessions belong to this iterator.
        """
        owner: list[weakref.ref[Generator[tuple[int, str], None, None]]] = []
        steps = self._steps(owner)
        owner.append(weakref.ref(steps))
        return steps

    def _steps(
        self, owner: list[weakref.ref[Generator[tuple[int, str], None, None]]]
    ) -> Generator[tuple[int, str], None, None]:
        self._times = [time.perf_counter()]
        for run in self._runs:
            run.session.lend(owner[0])
        with contextlib.suppress(_Halted):
            self._share()
        for run in self._runs:
            run.start(self._edits)
            run.to_run += len(run.tokens)
        active = list(enumerate(self._runs))
        while active:
            halted = self._halted()
            for i, run in active:
                run.reason = run.reason or halted
                if run.ended():
                    yield i, run.finish()
            active = [(i, run) for i, run in active if not run.reason]
            if not active:
                break
            ready = [(i, run) for i, run in active if run.go_on()]
            if not ready:
                try:
                    self._forward(active)
                except _Halted:
                    continue
                ready = active
            if len(self._times) == 1:
                self._times.append(time.perf_counter())
            for i, run in ready:
                before = len(run.ids)
                text = run.step()
                if self._drafts is not None and len(run.ids) > before:
                    self._drafts.drawn(i, run.ids[-1])
                yield i, text
        self._times.append(time.perf_counter())

    def _share(self) -> None:
        """Run the beginnings that new texts have in common."""
        new = [run for run in self._runs if run.is_new]
        # a trace has the whole prompt, and an edit sees it
        if len(new) < 2 or self._layout is not None or self._edits:
            return
        windows = [np.asarray(run.window(), np.int32) for run in new]
        cores, ran = run_beginnings(self._model, windows, self._watch)
        for run, core, tokens in zip(new, cores, ran, strict=True):
            run.session = Session(self._model, core)
            run.session.ran(len(core))
            run.to_run = tokens

    def _forward(self, active: list[tuple[int, _Run]]) -> None:
        runs = [run for _, run in active]
        for run in runs:
            run.fit(self._edits)
        drafts = self._propose(active)
        edits = []
        if self._program is not None:
            edits = [self._program.sites(len(r.session), len(r.tokens), False) for r in runs]
        tokens = [
            np.concatenate([run.tokens, np.asarray(draft, np.int32)])
            for run, draft in zip(runs, drafts, strict=True)
        ]
        ends = np.cumsum([len(ids) for ids in tokens])
        rows = [
            np.arange(end - 1 - len(draft), end) for end, draft in zip(ends, drafts, strict=True)
        ]
        cores = [run.session.expect(len(run.session) + len(run.tokens)) for run in runs]
        start = time.perf_counter()
        logits, traces = self._model.run(
            cores, tokens, np.concatenate(rows), self._layout, edits, watch=self._watch
        )
        if ends[-1] == len(runs) + sum(map(len, drafts)):  # no prompt
            self._costs.record(int(ends[-1]), time.perf_counter() - start)
        at = 0
        for i, (run, draft) in enumerate(zip(runs, drafts, strict=True)):
            run.session.ran(len(run.tokens), self._edits)
            trace = traces[i] if traces else None
            alone: list[Trace | None] = [trace]
            if trace is not None and draft:
                alone = [trace.alone(k) for k in range(len(draft) + 1)]
            elif draft:
                alone = [None] * (len(draft) + 1)
            run.keep_trace(alone[0])
            run.logits = logits[at]
            run.ahead = list(map(_Ahead, draft, logits[at + 1 :], alone[1:]))
            run.drafted += len(draft)
            at += len(draft) + 1

    def _propose(self, active: list[tuple[int, _Run]]) -> list[list[int]]:
        """Return the tokens of a draft for each text. The call that runs them is the next one."""
        none: list[list[int]] = [[] for _ in active]
        # an edit sees the tokens of a step, and a prompt is a call of many rows anyway
        if self._drafts is None or self._edits or any(len(r.tokens) > 1 for _, r in active):
            return none
        rooms = [run.room() for _, run in active]
        guesses = self._drafts.propose([i for i, _ in active], rooms)
        for (_, run), found in zip(active, guesses, strict=True):
            del found[run.drawing.possible([token for token, _ in found]) :]
        if not any(guesses):
            return none
        counts = choose(guesses, len(active), self._costs)
        return [
            [token for token, _ in found[:count]]
            for found, count in zip(guesses, counts, strict=True)
        ]

    def __iter__(self) -> Iterator[str]:
        """Yield the pieces of text of all prompts, mixed: useful for one prompt."""
        for _, text in self.steps():
            yield text

    def results(self) -> list[Generation]:
        """Return the results, one per prompt."""
        times = self._times or [0.0]
        start, first, last = (*times, *[times[-1]] * 3)[:3]
        return [run.result(first - start, last - first) for run in self._runs]
