"""Continue prompts token by token."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
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

__all__ = ["PromptTooLong", "Stepper", "StopFinder", "allowed_tokens"]


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
    tokens = model.config.vocab_size if model.tokenizer is None else len(model.tokenizer)
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
        limit = model.core.config["max_context"]
        if len(prompt) > limit:
            raise PromptTooLong(
                f"the prompt has {len(prompt)} tokens, which go beyond the context length of "
                f"{limit}; load with a larger max_context to allow it"
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
        self._finder = StopFinder(options.stop)
        self._decoder: StreamDecoder | None = None
        self._constraint: Constraint | None = None
        self._grammar_state = 0
        if model.tokenizer is not None:
            self._decoder = model.tokenizer.stream_decoder(strip_prefix=False)
            if options.grammar is not None:
                self._constraint = options.grammar.constraint(model.tokenizer)
                self._grammar_state = self._constraint.start()

    def ended(self) -> bool:
        """Return whether to stop before the next step; set `reason` if so."""
        limit = self.model.core.config["max_context"]
        if self.reason:
            return True
        if self.options.max_tokens is not None and len(self.ids) >= self.options.max_tokens:
            self.reason = "length"
        elif self._constraint is not None and self._constraint.is_finished(self._grammar_state):
            self.reason = "grammar"
        elif len(self.prompt) + len(self.ids) > limit:
            self.reason = "context"
        return bool(self.reason)

    def step(self, logits: Float32) -> str:
        """Draw a token; return the text that is final now."""
        allowed = allowed_tokens(
            self.model, self.options, len(self.ids), self._constraint, self._grammar_state
        )
        if allowed is not None and not allowed.any():
            return self._stuck()
        draw = self.sampler.draw(logits, len(self.ids), self.history, self.state, allowed)
        token = draw.id
        if token in self.model.eog_ids:
            self.reason = "eog"
            return ""
        if token in self.options.stop_ids:
            self.reason, self.stop = "stop", token
            return ""
        if self.options.logprobs is not None:
            values = log_softmax(logits)
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

    def steps(self) -> Iterator[tuple[int, str]]:
        """Yield the index of a prompt and the next piece of its text, as tokens are drawn.

        From its first step until it ends or is closed, the sessions belong to this iterator.
        """
        self._times = [time.perf_counter()]
        with contextlib.ExitStack() as stack:
            for run in self._runs:
                stack.enter_context(run.session.owned())
                kept = run.session.keep(run.prompt.tolist(), self._edits)
                run.tokens = run.prompt[kept:]
                run.to_run = len(run.tokens)
            yield from self._steps()

    def _steps(self) -> Iterator[tuple[int, str]]:
        active = list(enumerate(self._runs))
        while active:
            for i, run in active:
                if run.ended():
                    yield i, run.finish()
            active = [(i, run) for i, run in active if not run.reason]
            if not active:
                break
            logits = self._forward([run for _, run in active])
            if len(self._times) == 1:
                self._times.append(time.perf_counter())
            for (i, run), row in zip(active, logits, strict=True):
                yield i, run.step(row)
        self._times.append(time.perf_counter())

    def _forward(self, runs: list[_Run]) -> Float32:
        edits = []
        if self._program is not None:
            edits = [self._program.sites(len(r.session), len(r.tokens), False) for r in runs]
        ends = np.cumsum([len(run.tokens) for run in runs])
        sessions, tokens = [run.session for run in runs], [run.tokens for run in runs]
        cores = [session.core for session in sessions]
        logits, traces = self._model.run(cores, tokens, ends - 1, self._layout, edits)
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
        start, first, last = (*self._times, *[self._times[-1]] * 3)[:3]
        return [run.result(first - start, last - first) for run in self._runs]
