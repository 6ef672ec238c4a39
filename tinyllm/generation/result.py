"""What a generation gives: the text, why it ended, how probable it was, how long it took."""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import NDArray

from .. import _core
from ..base.numeric import Float64
from ..display.table import Table
from ..trace.trace import Trace

__all__ = ["Generation", "Logprobs", "Timings"]


@dataclasses.dataclass(frozen=True, repr=False)
class Logprobs:
    """How probable the tokens of a generation were.

    Attributes
    ----------
    pieces : list of str
        The n tokens that were drawn, as text.
    logprobs : ndarray of float64, (n,)
        Log-probability under the model: the log-softmax of its logits, before any sampler or
        grammar.
    probabilities : ndarray of float64, (n,)
        Probability with which the token was drawn, among what samplers and grammar had left.
    top_ids : ndarray of int64, (n, k)
        The k most probable tokens under the model, the best first.
    top_logprobs : ndarray of float64, (n, k)
    top_pieces : list of list of str

    Examples
    --------
    >>> import tinyllm as tl
    >>> g = tl.load().generate("ROMEO:", max_tokens=3, temperature=0, logprobs=2)
    >>> bool((g.logprobs.top_ids[:, 0] == g.ids).all())
    True
    """

    pieces: list[str]
    logprobs: Float64
    probabilities: Float64
    top_ids: NDArray[np.int64]
    top_logprobs: Float64
    top_pieces: list[list[str]]

    def table(self) -> Table:
        """A table, one row per token.

        Returns
        -------
        Table
        """
        rows = [
            (
                repr(piece),
                f"{self.logprobs[i]:.4f}",
                f"{self.probabilities[i]:.4f}",
                " ".join(
                    f"{other!r} {value:.2f}"
                    for other, value in zip(self.top_pieces[i], self.top_logprobs[i], strict=True)
                ),
            )
            for i, piece in enumerate(self.pieces)
        ]
        return Table(("token", "logprob", "drawn with", "most probable"), rows)

    def __len__(self) -> int:
        """Count the tokens."""
        return len(self.pieces)

    def __str__(self) -> str:
        return str(self.table())

    def __repr__(self) -> str:
        total = float(_core.sum(self.logprobs)) if len(self) else 0.0
        return f"<tinyllm.Logprobs: {len(self)} tokens, {total:.4f} together>"

    def _repr_html_(self) -> str:
        return self.table().html(caption=repr(self))


@dataclasses.dataclass(frozen=True)
class Timings:
    """How long a generation took, by the wall clock; prompts of one list share it.

    Attributes
    ----------
    prompt_tokens, tokens : int
        How many were run for the prompt (with ``session=`` fewer than it has), and how many were
        drawn.
    prompt_seconds : float
        The first step: the whole prompt, up to its logits.
    seconds : float
        All after that.

    Examples
    --------
    >>> Timings(10, 4, 0.5, 2.0).tokens_per_second
    2.0
    """

    prompt_tokens: int
    tokens: int
    prompt_seconds: float
    seconds: float

    @property
    def prompt_tokens_per_second(self) -> float:
        """Speed of the prompt; 0 if nothing ran."""
        return self.prompt_tokens / self.prompt_seconds if self.prompt_seconds else 0.0

    @property
    def tokens_per_second(self) -> float:
        """Speed of drawing; 0 if nothing was drawn."""
        return self.tokens / self.seconds if self.seconds else 0.0


@dataclasses.dataclass(frozen=True)
class Generation:
    """What `Model.generate` made.

    Attributes
    ----------
    text : str
        The continuation only. Empty when the model has no tokenizer.
    ids : list of int
        Its tokens, without the one that ended it. Where a stop string ended it, the tokens that
        spell the stop string are among them; the text ends before it.
    prompt_ids : list of int
        The tokens of the prompt.
    stop_reason : str
        ``"eog"`` (the model ended its text), ``"stop"`` (a stop string or id), ``"grammar"`` (the
        grammar allows nothing more), ``"length"`` (`max_tokens`), or ``"context"`` (the context
        is full).
    seed : int
        The seed it was drawn with.
    traces : list of Trace
        With ``capture=``: one per step, the first of the whole prompt, then of each new token
        that was run. Otherwise empty.
    stop : str or int, optional
        The stop string or id that ended it.
    complete : bool, optional
        With ``grammar=``: whether the text is one that the grammar accepts. False only where
        ``"length"``, ``"context"`` or ``"stop"`` cut it off.
    logprobs : Logprobs, optional
        With ``logprobs=``.
    timings : Timings, optional
    score : float, optional
        Of `Model.beam_search`: the sum of the log-probabilities, of the end too.

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
    stop: str | int | None = None
    complete: bool | None = None
    logprobs: Logprobs | None = None
    timings: Timings | None = None
    score: float | None = None

    def __str__(self) -> str:
        """Give the text."""
        return self.text

    def __repr__(self) -> str:
        """Name text, length, why it ended, and speed."""
        shown = self.text if len(self.text) <= 60 else self.text[:57] + "..."
        parts = [repr(shown), f"{len(self.ids)} tokens", self.stop_reason]
        if self.score is not None:
            parts.append(f"score {self.score:.4f}")
        if self.complete is False:
            parts.append("the grammar is not complete")
        if self.timings is not None and self.timings.tokens_per_second:
            parts.append(f"{self.timings.tokens_per_second:.1f} tokens/s")
        return f"<tinyllm.Generation: {', '.join(parts)}>"

    def _repr_html_(self) -> str:
        rows: list[tuple[str, object]] = [
            ("text", self.text),
            ("tokens", len(self.ids)),
            ("stopped by", self.stop_reason),
        ]
        if self.stop is not None:
            rows.append(("stop", repr(self.stop)))
        if self.score is not None:
            rows.append(("score", f"{self.score:.4f}"))
        if self.timings is not None:
            t = self.timings
            rows.append(("prompt", f"{t.prompt_tokens} tokens in {t.prompt_seconds:.3f} s"))
            rows.append(("speed", f"{t.tokens_per_second:.1f} tokens/s"))
        return Table(("what", "value"), rows).html()
