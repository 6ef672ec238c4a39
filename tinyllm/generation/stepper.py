"""Continue prompts token by token."""

from __future__ import annotations

import time
import weakref
from collections.abc import Generator, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ..base.numeric import Float32, Float64, best, log_softmax
from ..errors import Error
from ..runtime.runner import Runner
from ..runtime.session import Session
from ..sampling.sampler import Sampler
from ..tokenizer import StreamDecoder
from ..trace.arena import Layout
from ..trace.edit_program import Program
from ..trace.trace import Trace
from .options import Options
from .result import Generation, Logprobs, Timings

if TYPE_CHECKING:
    from ..grammar.grammar import Constraint
    from ..trace.edits import Edit

__all__ = ["PromptTooLong", "Stepper", "StopFinder", "allowed_tokens", "shifted"]


def allowed_tokens(
    model: Runner, options: Options, drawn: int, constraint: Constraint | None, state: int
) -> npt.NDArray[np.bool_] | None:
    """Return which tokens may be drawn after `drawn` others, (V,); None means all."""
    allowed = None
    ends = list(model.eog_ids | options.stop_ids)
    if constraint is not None:
        mask = constraint.mask(state)
        allowed = np.zeros(model.config.vocab_size, np.bool_)
        allowed[: mask.size] = mask
        allowed[ends] = constraint.is_complete(state)
    tokens = model.config.vocab_size
    if model.tokenizer is not None and model.tokenizer.has_text:
        tokens = len(model.tokenizer)
    if drawn < options.min_tokens or tokens < model.config.vocab_size:
        allowed = np.ones(model.config.vocab_size, np.bool_) if allowed is None else allowed
        allowed[tokens:] = False  # rows of the embedding that only fill it up have no token
    if drawn < options.min_tokens and allowed is not None:
        allowed[ends] = False
    return allowed


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
        self.session = Session(model) if session is None else session
        self.tokens = prompt  # the tokens to run next
        self.to_run = len(prompt)
        self.ids: list[int] = []
        self.history = prompt.tolist()
        self.state: dict[str, Any] = {}
        self.text: list[str] = []
        self.traces: list[Trace] = []
        self.reason = ""
        self.stop: str | int | None = None
        self.drawn: list[tuple[float, float, npt.NDArray[np.int64], Float64]] = []
        self.end: tuple[int, float] | None = None  # the end token and its log-probability
        self._finder = StopFinder(options.stop)
        self._decoder: StreamDecoder | None = None
        self._constraint: Constraint | None = None
        self._grammar_state = 0
        if model.tokenizer is not None and model.tokenizer.has_text:
            self._decoder = model.tokenizer.stream_decoder(strip_prefix=False)
            if options.grammar is not None:
                self._constraint = options.grammar.constraint(model.tokenizer)
                self._grammar_state = self._constraint.start()

    def ended(self) -> bool:
        """Return whether to stop before the next step; set `reason` if so."""
        if self.reason:
            return True
        if self.options.max_tokens is not None and len(self.ids) >= self.options.max_tokens:
            self.reason = "length"
        elif self._constraint is not None and self._constraint.is_finished(self._grammar_state):
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
        window = shifted(self.history, self._limit, self._first_stays())
        kept = self.session.keep(window, edits)
        self.tokens = np.asarray(window[kept:], np.int32)

    def _first_stays(self) -> bool:
        tokenizer = self.model.tokenizer
        return tokenizer is not None and tokenizer.add_bos and self.history[0] == tokenizer.bos

    def step(self, logits: Float32) -> str:
        """Draw a token; return the text that is final now."""
        allowed = allowed_tokens(
            self.model, self.options, len(self.ids), self._constraint, self._grammar_state
        )
        if allowed is not None and not allowed.any():
            return self._stuck()
        draw = self.sampler.draw(logits, len(self.ids), self.history, self.state, allowed)
        token = draw.id
        values = None if self.options.logprobs is None else log_softmax(logits)
        if token in self.model.eog_ids or token in self.options.stop_ids:
            self.reason = "eog"
            if token not in self.model.eog_ids:
                self.reason, self.stop = "stop", token
            self.end = token, float("nan") if values is None else float(values[token])
            return ""
        if self.options.logprobs is not None and values is not None:
            top = best(values, self.options.logprobs)
            self.drawn.append((float(values[token]), draw.probability, top, values[top]))
        if allowed is not None and not allowed[token]:
            raise Error(f"the sampler drew token {token}, which is not allowed here")
        self.ids.append(token)
        self.history.append(token)
        self.tokens = np.asarray([token], np.int32)
        if self._constraint is not None:
            self._grammar_state = self._constraint.accept(self._grammar_state, token)
        if self._decoder is None or token >= len(self.model.tokenizer or ()):
            return ""
        return self._keep(self._decoder.feed(token))

    def _stuck(self) -> str:
        if self._constraint is None:
            raise Error("min_tokens forbids the end of the text, but no other token is allowed")
        if self._constraint.is_complete(self._grammar_state):
            self.reason = "grammar"
            return ""
        raise Error(
            f"after {''.join(self.text)[-40:]!r} the grammar expects "
            f"{self._constraint.expected(self._grammar_state)}, but no token of the vocabulary fits"
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
        complete = None
        if self._constraint is not None:
            complete = self._constraint.is_complete(self._grammar_state)
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
            Timings(self.to_run, len(self.ids), prompt_seconds, seconds),
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
            run.start(self._edits)
            run.to_run = len(run.tokens)
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
            try:
                logits = self._forward([run for _, run in active])
            except _Halted:
                continue
            if len(self._times) == 1:
                self._times.append(time.perf_counter())
            for (i, run), row in zip(active, logits, strict=True):
                yield i, run.step(row)
        self._times.append(time.perf_counter())

    def _forward(self, runs: list[_Run]) -> Float32:
        for run in runs:
            run.fit(self._edits)
        edits = []
        if self._program is not None:
            edits = [self._program.sites(len(r.session), len(r.tokens), False) for r in runs]
        ends = np.cumsum([len(run.tokens) for run in runs])
        sessions, tokens = [run.session for run in runs], [run.tokens for run in runs]
        cores = [session.core for session in sessions]
        logits, traces = self._model.run(
            cores, tokens, ends - 1, self._layout, edits, watch=self._watch
        )
        for session, ran in zip(sessions, tokens, strict=True):
            session.ran(len(ran), self._edits)
        for run, trace in zip(runs, traces, strict=False):
            trace.share_context(run.session.share)
            run.traces.append(trace)
        return logits

    def __iter__(self) -> Iterator[str]:
        """Yield the pieces of text of all prompts, mixed: useful for one prompt."""
        for _, text in self.steps():
            yield text

    def results(self) -> list[Generation]:
        """Return the results, one per prompt."""
        times = self._times or [0.0]
        start, first, last = (*times, *[times[-1]] * 3)[:3]
        return [run.result(first - start, last - first) for run in self._runs]
