"""Continuing a prompt token by token, and what comes of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from . import _core
from .html import Table

if TYPE_CHECKING:
    from .arena import Layout
    from .edits import Program
    from .model import Model
    from .sampling import Sampler
    from .trace import Trace

__all__ = ["Generation", "Stepper"]


@dataclasses.dataclass(frozen=True)
class Generation:
    """What `Model.generate` made.

    Attributes
    ----------
    text : str
        The continuation only. Empty when the model has no tokenizer.
    ids : list of int
        Its tokens, without the one that ended it.
    prompt_ids : list of int
        The tokens of the prompt.
    stop_reason : str
        ``"eog"`` (the model ended its text), ``"length"`` (`max_tokens`), or ``"context"`` (the
        context is full).
    seed : int
        The seed it was drawn with.
    traces : list of Trace
        With ``capture=``: one per step, the first of the whole prompt, then of each new token
        that was run. Otherwise empty.

    Examples
    --------
    >>> import tinyllm as tl
    >>> g = tl.load().generate("ROMEO:", max_tokens=3, seed=1)
    >>> str(g) == g.text
    True
    """

    text: str
    ids: list[int]
    prompt_ids: list[int]
    stop_reason: str
    seed: int
    traces: list[Trace] = dataclasses.field(default_factory=list)

    def __str__(self) -> str:
        """Give the text."""
        return self.text

    def __repr__(self) -> str:
        """Name text, length and why it ended."""
        shown = self.text if len(self.text) <= 60 else self.text[:57] + "..."
        return f"<tinyllm.Generation: {shown!r}, {len(self.ids)} tokens, {self.stop_reason}>"

    def _repr_html_(self) -> str:
        rows = [("text", self.text), ("tokens", len(self.ids)), ("stopped by", self.stop_reason)]
        return Table(("what", "value"), rows).html()


class Stepper:
    """Iterates over the text of a generation; `result` when it is done."""

    def __init__(
        self,
        model: Model,
        prompt: npt.NDArray[np.int32],
        sampler: Sampler,
        max_tokens: int | None,
        layout: Layout | None = None,
        program: Program | None = None,
    ) -> None:
        self._model = model
        self._prompt = prompt
        self._sampler = sampler
        self._max_tokens = max_tokens
        self._layout = layout
        self._program = program
        self._traces: list[Trace] = []
        self._ids: list[int] = []
        self._text: list[str] = []
        self._reason = ""

    def __iter__(self) -> Iterator[str]:
        """Yield the pieces of text as they come."""
        model = self._model
        decoder = (
            None if model.tokenizer is None else model.tokenizer.stream_decoder(strip_prefix=False)
        )
        session = _core.Session(model.core)
        limit = model.core.config["max_context"]
        tokens = self._prompt
        while True:
            if self._max_tokens is not None and len(self._ids) >= self._max_tokens:
                self._reason = "length"
                break
            if len(self._prompt) + len(self._ids) > limit:
                self._reason = "context"
                break
            edits = []
            if self._program is not None:
                edits = [self._program.sites(len(session), len(tokens), False)]
            logits, traces = model.run([session], [tokens], [len(tokens) - 1], self._layout, edits)
            self._traces += traces
            token = self._sampler.sample(logits[0], len(self._ids))
            if token in model.eog_ids:
                self._reason = "eog"
                break
            self._ids.append(token)
            tokens = np.asarray([token], np.int32)
            if decoder is not None and token < len(model.tokenizer or ()):
                yield self._keep(decoder.feed(token))
        if decoder is not None:
            yield self._keep(decoder.finish())

    def _keep(self, text: str) -> str:
        self._text.append(text)
        return text

    def result(self) -> Generation:
        """What was generated."""
        return Generation(
            "".join(self._text),
            self._ids,
            self._prompt.tolist(),
            self._reason,
            self._sampler.seed,
            self._traces,
        )
