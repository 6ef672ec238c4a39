"""The result of a generation: text, reason for its end, log-probabilities, timings."""

from __future__ import annotations

import dataclasses
import json
import math
import time
import uuid
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import _core
from ..base.numeric import Float64
from ..chat.calls import read_calls, tool_call
from ..display.table import Table
from ..trace.trace import Trace

__all__ = ["Generation", "Logprobs", "Timings"]


@dataclasses.dataclass(frozen=True, repr=False)
class Logprobs:
    """The probabilities of the tokens of a generation.

    Attributes
    ----------
    pieces : list of str
        The texts of the n drawn tokens.
    logprobs : ndarray of float64, (n,)
        Log-probability under the model: the log-softmax of its logits, before any sampler or
        grammar.
    probabilities : ndarray of float64, (n,)
        Probability among the candidates that samplers and grammar left for the draw.
    top_ids : ndarray of int64, (n, k)
        The k most probable tokens under the model, the best first.
    top_logprobs : ndarray of float64, (n, k)
        Their log-probabilities.
    top_pieces : list of list of str
        Their texts.

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

    def to_openai(self) -> list[dict[str, Any]]:
        """Return one entry per token, as in the log-probabilities of OpenAI's chat completions.

        Returns
        -------
        list of dict
        """
        return [
            {
                **_token(piece, self.logprobs[i]),
                "top_logprobs": [
                    _token(*pair)
                    for pair in zip(self.top_pieces[i], self.top_logprobs[i], strict=True)
                ],
            }
            for i, piece in enumerate(self.pieces)
        ]

    def table(self) -> Table:
        """Return a table with one row per token.

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
        """Return the number of tokens."""
        return len(self.pieces)

    def __str__(self) -> str:
        return str(self.table())

    def __repr__(self) -> str:
        total = float(_core.sum(self.logprobs)) if len(self) else 0.0
        return f"<tinyllm.Logprobs: {len(self)} tokens, total {total:.4f}>"

    def _repr_html_(self) -> str:
        return self.table().html(caption=repr(self))


def _token(piece: str, logprob: float) -> dict[str, Any]:
    data = piece.encode("utf-8", "surrogateescape")
    return {"token": piece, "logprob": _plain(logprob), "bytes": list(data)}


def _plain(value: Any) -> Any:
    """Return a value as JSON has it."""
    if dataclasses.is_dataclass(value):
        return {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _with_text(call: dict[str, Any]) -> dict[str, Any]:
    """Return a tool call with its arguments as JSON text."""
    function = call["function"]
    text = json.dumps(function["arguments"], ensure_ascii=False)
    return {**call, "function": {**function, "arguments": text}}


@dataclasses.dataclass(frozen=True)
class Timings:
    """The wall-clock time of a generation; prompts of one list share it.

    Attributes
    ----------
    prompt_tokens, tokens : int
        The number of tokens run for the prompt (fewer than its length if ``session=`` has some of
        them already), and the number drawn.
    prompt_seconds : float
        The time of the first step: the whole prompt, up to its logits.
    seconds : float
        The time of all later steps.
    drafted, accepted : int
        With ``draft=``: the number of tokens that were guessed and checked, and of those that were
        drawn. Each accepted one saved a step.

    Examples
    --------
    >>> Timings(10, 4, 0.5, 2.0).tokens_per_second
    2.0
    """

    prompt_tokens: int
    tokens: int
    prompt_seconds: float
    seconds: float
    drafted: int = 0
    accepted: int = 0

    @property
    def prompt_tokens_per_second(self) -> float:
        """The speed of running the prompt; 0 if nothing ran."""
        return self.prompt_tokens / self.prompt_seconds if self.prompt_seconds else 0.0

    @property
    def tokens_per_second(self) -> float:
        """The speed of drawing tokens; 0 if none were drawn."""
        return self.tokens / self.seconds if self.seconds else 0.0


@dataclasses.dataclass(frozen=True)
class Generation:
    """The result of `Model.generate`.

    Attributes
    ----------
    text : str
        The continuation, without the prompt. Empty if the model has no tokenizer.
    ids : list of int
        The tokens of the continuation, without an end token. If a stop string ended it, its
        tokens are included, although `text` ends before it.
    prompt_ids : list of int
        The tokens of the prompt.
    stop_reason : str
        ``"eog"`` (the model ended its text), ``"stop"`` (a stop string or id), ``"grammar"`` (the
        grammar allows nothing more), ``"length"`` (`max_tokens`), ``"context"`` (the context
        is full), ``"timeout"``, or ``"cancelled"`` (by `GenerationStream.cancel`).
    seed : int
        The seed of the draws.
    traces : list of Trace
        With ``capture=``: one per step. The first is of the whole prompt, the others are of one
        new token each. Otherwise empty.
    stop : str or int, optional
        The stop string or id that ended the continuation.
    complete : bool, optional
        With ``grammar=``: whether the grammar accepts the text. False only if ``"length"``,
        ``"context"``, ``"stop"``, ``"timeout"`` or ``"cancelled"`` ended it early.
    logprobs : Logprobs, optional
        With ``logprobs=``.
    timings : Timings, optional
    score : float, optional
        From `Model.beam_search`: the sum of the log-probabilities, including that of the end.
    end_id : int, optional
        The token that ended the continuation: of the model (``"eog"``), or one of `stop_ids`.
    end_logprob : float, optional
        With ``logprobs=``: its log-probability under the model. ``logprobs.logprobs`` has only
        those of `ids`. The sum of all is the log-probability of the whole answer.

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
    end_id: int | None = None
    end_logprob: float | None = None

    @property
    def tool_calls(self) -> list[dict[str, Any]]:
        """The tool calls in the text, as messages hold them; empty if there are none.

        Each is ``{"id": ..., "type": "function", "function": {"name": ..., "arguments": {...}}}``.
        An assistant message with them as ``"tool_calls"`` continues the conversation. The
        notations of `tinyllm.chat.calls` are read: Hermes, Qwen, Mistral, Llama 3, DeepSeek,
        Command R, functionary, firefunction.
        """
        return [tool_call(call, i) for i, call in enumerate(read_calls(self.text)[0])]

    def to_dict(self) -> dict[str, Any]:
        """Return the generation as values that JSON has: all but the traces.

        Returns
        -------
        dict
            The attributes by name, and ``"tool_calls"`` if there are any. Arrays are lists, and a
            number that is not finite is None.

        Examples
        --------
        >>> import json, tinyllm as tl
        >>> g = tl.load().generate("ROMEO:", max_tokens=3, seed=1)
        >>> json.loads(json.dumps(g.to_dict()))["stop_reason"]
        'length'
        """
        found = {
            field.name: _plain(getattr(self, field.name))
            for field in dataclasses.fields(self)
            if field.name != "traces"
        }
        if calls := self.tool_calls:
            found["tool_calls"] = calls
        return found

    def to_openai(self, model: str = "tinyllm") -> dict[str, Any]:
        """Return the generation in the form of OpenAI's chat completions.

        Parameters
        ----------
        model : str
            The name of the model in the result.

        Returns
        -------
        dict
            A ``chat.completion`` (https://platform.openai.com/docs/api-reference/chat/object) with
            one choice, ready for JSON. Tool calls are taken out of the text. The reason
            ``"length"`` also stands for ``"context"``, ``"timeout"`` and ``"cancelled"``.

        Examples
        --------
        >>> import tinyllm as tl
        >>> g = tl.load().generate("ROMEO:", max_tokens=3, seed=1)
        >>> g.to_openai()["usage"]["completion_tokens"]
        3
        """
        calls, rest = read_calls(self.text)
        message: dict[str, Any] = {"role": "assistant", "content": rest}
        if calls:
            message["content"] = rest or None
            message["tool_calls"] = [_with_text(tool_call(c, i)) for i, c in enumerate(calls)]
        ended = self.stop_reason in ("eog", "stop", "grammar")
        choice = {
            "index": 0,
            "message": message,
            "finish_reason": "tool_calls" if calls and ended else "stop" if ended else "length",
            "logprobs": None if self.logprobs is None else {"content": self.logprobs.to_openai()},
        }
        return {
            "id": f"chatcmpl-{uuid.uuid4().hex}",
            "object": "chat.completion",
            "created": int(time.time()),
            "model": model,
            "choices": [choice],
            "usage": {
                "prompt_tokens": len(self.prompt_ids),
                "completion_tokens": len(self.ids),
                "total_tokens": len(self.prompt_ids) + len(self.ids),
            },
        }

    def __str__(self) -> str:
        """Return the text."""
        return self.text

    def __repr__(self) -> str:
        """Return a summary: text, length, stop reason and speed."""
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
            if t.drafted:
                rows.append(("draft", f"{t.accepted} of {t.drafted} tokens accepted"))
        return Table(("what", "value"), rows).html()
