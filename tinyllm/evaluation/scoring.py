"""Log-probabilities and perplexity of texts, and KL divergence between models.

Everything is computed in float64 with the core's own exp, log and sum, so the bits are the same on
every machine.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import _core
from ..base.checks import ranged
from ..base.numeric import Float32, Float64, log_softmax
from ..display.table import Table
from ..runtime.beginnings import common_start
from ..runtime.prompt import is_batch, token_ids
from ..runtime.runner import Runner
from ..runtime.session import Session

__all__ = [
    "Divergence",
    "Perplexity",
    "Score",
    "context_of",
    "kl",
    "perplexity",
    "score",
    "score_ids",
    "text_ids",
]

Ids = NDArray[np.int32]

#: Largest size in bytes of the logits that are in memory at a time.
_CHUNK = 1 << 24


def _exp(x: float) -> float:
    return float(_core.exp([x])[0])


def _rows(
    model: Runner, ids: Ids, first: int, session: Session | None = None
) -> Iterator[tuple[int, Float32]]:
    """Yield (i, logits after token i) for i from `first` to the last but one.

    A session that is given has the tokens before `first`.
    """
    step = max(_CHUNK // (4 * model.config.vocab_size), 1)
    if session is None:
        session = Session(model)
        if first > 0:
            session.eval(ids[:first], "none")
    for start in range(first, len(ids) - 1, step):
        chunk = ids[start : min(start + step, len(ids) - 1)]
        logits = session.eval(chunk, "all")
        if logits is not None:
            yield from zip(range(start, start + len(chunk)), logits, strict=True)


def _logprobs(model: Runner, ids: Ids, first: int = 0, session: Session | None = None) -> Float64:
    """Return the log-probability of ids[i + 1] after ids[: i + 1], for i from `first`."""
    rows = _rows(model, ids, first, session)
    return np.array([log_softmax(row)[ids[i + 1]] for i, row in rows], np.float64)


def context_of(model: Runner) -> int:
    """Return the longest context that a model was loaded for."""
    return int(model.core.config["max_context"])


def _window(model: Runner, window: Any, default: int) -> int:
    limit = context_of(model)
    if window is None:
        return min(default, limit)
    return ranged("window", window, 2, limit, "the model's context")


def text_ids(model: Runner, text: Any, parse_special: bool = False) -> Ids:
    """Return the ids of a text, checked to be at least two and in the vocabulary."""
    ids: Ids = token_ids(text, model.tokenizer, "text", parse_special)
    size = model.config.vocab_size
    if len(ids) < 2:
        raise ValueError("text has one token; expected at least two")
    if ids.min() < 0 or ids.max() >= size:
        wrong = int(ids.min() if ids.min() < 0 else ids.max())
        raise ValueError(
            f"text holds the token id {wrong}; expected 0 to {size - 1}, the vocabulary"
        )
    return ids


# ---- score ----


@dataclasses.dataclass(frozen=True, repr=False)
class Score:
    """The log-probability of each token of a text, given the tokens before it.

    Attributes
    ----------
    ids : list of int
        The T tokens, including the special tokens that the file specifies.
    pieces : list of str
        Their texts.
    logprobs : ndarray of float64, (T - 1,)
        Entry i belongs to token i + 1. The first token has none. ``np.asarray(score)`` is a copy.

    Examples
    --------
    >>> import tinyllm as tl
    >>> score = tl.load().score("ROMEO: But soft")
    >>> len(score.logprobs) == len(score.ids) - 1
    True
    """

    ids: list[int]
    pieces: list[str]
    logprobs: Float64

    @property
    def total(self) -> float:
        """The log-probability of the text, given its first token."""
        return float(_core.sum(self.logprobs))

    @property
    def mean(self) -> float:
        """The mean log-probability per token."""
        return self.total / len(self.logprobs)

    @property
    def perplexity(self) -> float:
        """The perplexity, exp(-mean)."""
        return _exp(-self.mean)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        """Return a copy of the log-probabilities."""
        return np.array(self.logprobs, dtype=dtype, copy=bool(copy) or None)

    def __len__(self) -> int:
        """Return the number of log-probabilities."""
        return len(self.logprobs)

    def table(self) -> Table:
        """Return a table with one row per token.

        Returns
        -------
        Table
        """
        values = _core.exp(self.logprobs)
        rows = [
            (repr(piece), f"{logprob:.4f}", f"{value:.4f}")
            for piece, logprob, value in zip(self.pieces[1:], self.logprobs, values, strict=True)
        ]
        return Table(("token", "logprob", "probability"), rows)

    def __str__(self) -> str:
        return str(self.table())

    def __repr__(self) -> str:
        return (
            f"<tinyllm.Score: {len(self)} tokens, log-probability {self.total:.4f}, "
            f"{self.mean:.4f} per token>"
        )

    def _repr_html_(self) -> str:
        return self.table().html(caption=repr(self))


def score(model: Runner, text: Any, parse_special: bool = False) -> Any:
    """Return the score of a text, or a list for several texts: see `Model.score`."""
    limit, session, scores = context_of(model), Session(model), []
    before, known = np.empty(0, np.int32), np.empty(0, np.float64)
    for item in text if is_batch(text) else [text]:
        ids = text_ids(model, item, parse_special)
        if len(ids) - 1 > limit:
            raise ValueError(
                f"text has {len(ids)} tokens; expected at most {limit + 1}, the context and one. "
                "perplexity() cuts a longer text into windows"
            )
        # the beginning that this text has in common with the one before is known
        first = max(common_start(before, ids) - 1, 0)
        session.rewind(len(session) - first)
        known = np.concatenate([known[:first], _logprobs(model, ids, first, session)])
        before = ids
        scores.append(Score(ids.tolist(), model.pieces(ids), known))
    return scores if is_batch(text) else scores[0]


def score_ids(model: Runner, ids: Ids) -> Score:
    """Return the score of ids, which are no more than the context and one."""
    return Score(ids.tolist(), model.pieces(ids), _logprobs(model, ids))


# ---- perplexity ----


@dataclasses.dataclass(frozen=True)
class Perplexity:
    """The perplexity of a text. ``float(p)`` is its value.

    Attributes
    ----------
    value : float
        exp(-mean log-probability).
    error : float
        Standard error of the value, as in llama.cpp. NaN for method ``"hf"``.
    count : int
        Number of scored tokens.
    method : str
        ``"llama.cpp"`` or ``"hf"``.
    window, stride : int
        Number of tokens in a window, and from the start of one window to the next.

    Examples
    --------
    >>> import tinyllm as tl
    >>> p = tl.load().perplexity("To be, or not to be, that is the question", method="hf")
    >>> float(p) == p.value
    True
    """

    value: float
    error: float
    count: int
    method: str
    window: int
    stride: int

    def __float__(self) -> float:
        return self.value

    def __str__(self) -> str:
        error = "" if np.isnan(self.error) else f" ± {self.error:.4f}"
        return f"{self.value:.4f}{error}"


def perplexity(
    model: Runner,
    text: Any,
    stride: int | None = None,
    window: int | None = None,
    method: str = "llama.cpp",
    parse_special: bool = False,
) -> Perplexity:
    """Return the perplexity of a text: see `Model.perplexity`."""
    if method not in _METHODS:
        raise ValueError(f"method is {method!r}; expected {' or '.join(map(repr, _METHODS))}")
    return _METHODS[method](model, text_ids(model, text, parse_special), stride, window)


def _like_llama_cpp(model: Runner, ids: Ids, stride: int | None, window: int | None) -> Perplexity:
    # As tools/perplexity/perplexity.cpp of llama.cpp, function perplexity.
    if stride is not None:
        raise ValueError(
            f"stride is {stride}; expected None for method 'llama.cpp', whose windows do not "
            "overlap. method='hf' takes a stride"
        )
    window = _window(model, window, 512)
    if window < 4:
        raise ValueError(f"window is {window}; expected at least 4")
    if len(ids) < 2 * window:
        raise ValueError(
            f"text has {len(ids)} tokens; expected at least two windows of {window} for method "
            "'llama.cpp'. Use a smaller window, or method='hf'"
        )
    first = window // 2
    parts = []
    for start in range(0, len(ids) - window + 1, window):
        chunk = ids[start : start + window].copy()
        tokenizer = model.tokenizer
        if tokenizer is not None and tokenizer.add_bos and tokenizer.bos is not None:
            chunk[0] = tokenizer.bos
        parts.append(_logprobs(model, chunk, first))
    values = np.concatenate(parts)
    count = len(values)
    mean = -_core.sum(values) / count
    variance = _core.sum(values * values) / count - mean * mean
    value = _exp(mean)
    error = value * float(np.sqrt(variance / (count - 1))) if variance > 0 else 0.0
    return Perplexity(value, error, count, "llama.cpp", window, window)


def _like_hugging_face(
    model: Runner, ids: Ids, stride: int | None, window: int | None
) -> Perplexity:
    # As in https://huggingface.co/docs/transformers/perplexity. The loss of a window is the mean
    # over its scored tokens. Its weight in the total is the number of its new tokens minus one.
    window = _window(model, window, context_of(model))
    if stride is None:
        stride = max(window // 2, 1)
    stride = ranged("stride", stride, 1, window, "the window")
    total, count, scored, before = 0.0, 0, 0, 0
    for start in range(0, len(ids), stride):
        end = min(start + window, len(ids))
        new = end - before
        chunk = ids[start:end]
        # Scores the new tokens, but not the first token of the window, which nothing predicts.
        values = _logprobs(model, chunk, max(len(chunk) - new - 1, 0))
        if new > 1 and len(values):
            total -= _core.sum(values) / len(values) * (new - 1)
            count += new - 1
        scored += len(values)
        before = end
        if end == len(ids):
            break
    if count == 0:
        raise ValueError(
            f"stride is {stride}; expected one that gives a window with at least two new tokens"
        )
    return Perplexity(_exp(total / count), float("nan"), scored, "hf", window, stride)


_METHODS = {"llama.cpp": _like_llama_cpp, "hf": _like_hugging_face}


# ---- two models ----


@dataclasses.dataclass(frozen=True, repr=False)
class Divergence:
    """The Kullback-Leibler divergence of the next-token probabilities of two models.

    Attributes
    ----------
    values : ndarray of float64, (n,)
        The divergence at each token: sum of p_a (log p_a - log p_b), in nats.
    same_top : float
        The fraction of tokens at which both models have the same most likely next token.

    Examples
    --------
    >>> import tinyllm as tl
    >>> model = tl.load()
    >>> tl.kl(model, model, "To be, or not to be").mean
    0.0
    """

    values: Float64
    same_top: float

    @property
    def mean(self) -> float:
        """The mean over the tokens."""
        return float(_core.sum(self.values)) / len(self.values)

    @property
    def error(self) -> float:
        """The standard error of the mean. NaN for one token."""
        n = len(self.values)
        if n < 2:
            return float("nan")
        away = self.values - self.mean
        return float(np.sqrt(_core.sum(away * away) / (n - 1) / n))

    @property
    def max(self) -> float:
        """The largest value."""
        return float(self.values.max())

    def __float__(self) -> float:
        return self.mean

    def __repr__(self) -> str:
        return (
            f"<tinyllm.Divergence: mean {self.mean:.6g}, max {self.max:.6g} over "
            f"{len(self.values)} tokens, same top token {self.same_top:.2%}>"
        )


def kl(
    model_a: Runner,
    model_b: Runner,
    text: Any,
    window: int | None = None,
    *,
    parse_special: bool = False,
) -> Divergence:
    """Return the KL divergence of two models on a text, KL(a || b) at each token.

    Parameters
    ----------
    model_a : Model
        The reference, for example an unquantized model.
    model_b : Model
        A model with the same vocabulary.
    text : str, bytes or ids
    window : int, optional
        A longer text is cut into windows of this many tokens, which do not overlap. Every token
        of a window counts, except the last one. Default: 512, or the smaller context.
    parse_special : bool
        As for `Model.trace`.

    Returns
    -------
    Divergence

    Raises
    ------
    ValueError
        If the vocabularies differ, or if the tokenizers give different ids for the text.

    Examples
    --------
    >>> import tinyllm as tl
    >>> model = tl.load()
    >>> float(tl.kl(model, model, "To be, or not to be"))
    0.0
    """
    sizes = model_a.config.vocab_size, model_b.config.vocab_size
    if sizes[0] != sizes[1]:
        raise ValueError(
            f"the vocabularies have {sizes[0]} and {sizes[1]} tokens; expected equal vocabularies"
        )
    ids = text_ids(model_a, text, parse_special)
    others = text_ids(model_b, text, parse_special) if isinstance(text, str | bytes) else ids
    if not np.array_equal(ids, others):
        raise ValueError(
            "the tokenizers of the two models give different ids for text; expected equal ids"
        )
    smaller = min((model_a, model_b), key=context_of)
    window = _window(smaller, window, 512)
    values: list[float] = []
    same = 0
    for start in range(0, len(ids), window):
        # The last token of a window is only predicted: its own predictions are not compared.
        chunk = ids[start : start + window]
        pairs = zip(_rows(model_a, chunk, 0), _rows(model_b, chunk, 0), strict=True)
        for (_, row_a), (_, row_b) in pairs:
            a, b = log_softmax(row_a), log_softmax(row_b)
            p = _core.exp(a)
            there = p > 0
            values.append(_core.sum(p[there] * (a[there] - b[there])))
            same += int(np.argmax(row_a) == np.argmax(row_b))
    return Divergence(np.array(values, np.float64), same / len(values))
