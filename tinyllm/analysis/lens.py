"""The logit lens: predictions from the residual stream of each layer."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any, overload

import numpy as np
import numpy.typing as npt

from .. import _core
from ..base.checks import index, integer, is_integer, ranged
from ..base.numeric import Float32, Float64
from ..base.progress import Progress
from ..display.table import Table
from ..runtime.runner import Runner
from ..trace.taps import Capture, match
from ..trace.trace import Trace
from .inputs import model_of, token_id

__all__ = ["Lens", "TokenLens", "lens"]

#: Number of logits that are in memory together.
_LOGITS = 1 << 24

#: Number of tokens in the table that a notebook shows.
_SHOWN = 10


@dataclasses.dataclass(frozen=True, eq=False)
class Lens:
    """The predictions of each layer: the result of `tinyllm.lens`.

    Attributes
    ----------
    names : list of str
        The taps, one per layer.
    ids : numpy.ndarray of int32, shape (layers, T, k)
        The most likely tokens, in descending order of probability.
    probs : numpy.ndarray of float32, shape (layers, T, k)
        Their probabilities.
    pieces : list of list of list of str
        Their texts, ``pieces[layer][token][rank]``.
    tokens : list of str
        The texts of the tokens that were looked at.
    positions : numpy.ndarray of int64, shape (T,)
        Their positions in the context.
    """

    names: list[str]
    ids: npt.NDArray[np.int32]
    probs: Float32
    pieces: list[list[list[str]]]
    tokens: list[str]
    positions: npt.NDArray[np.int64]

    def table(self, last: int | None = None) -> Table:
        """Return a table of the most likely token of each layer at each token.

        Parameters
        ----------
        last : int, optional
            The number of tokens to show, the last ones. Default: all.

        Returns
        -------
        Table
            The first column has the taps. There is one more column per token.
        """
        return _table(
            self.names,
            self.tokens,
            last,
            lambda i, t: f"{self.pieces[i][t][0]!r} {self.probs[i, t, 0]:.2f}",
        )

    def __repr__(self) -> str:
        """Return the size of the arrays."""
        layers, tokens, k = self.ids.shape
        return f"<tinyllm.Lens: {layers} layers, {tokens} tokens, top {k}>"

    def _repr_html_(self) -> str:
        return self.table(_SHOWN).html(caption=repr(self) + _which(len(self.tokens)))


@dataclasses.dataclass(frozen=True, eq=False)
class TokenLens:
    """How likely one token is after each layer: the result of ``tinyllm.lens(trace, token=...)``.

    Attributes
    ----------
    names : list of str
        The taps, one per layer.
    token : str
        The text of the token.
    id : int
        Its id.
    probs : numpy.ndarray of float64, shape (layers, T)
        Its probability.
    logprobs : numpy.ndarray of float64, shape (layers, T)
        Its log-probability (natural logarithm).
    ranks : numpy.ndarray of int64, shape (layers, T)
        The number of tokens that are more likely: 0 for the prediction. Of equal tokens, the one
        with the lower id counts as more likely.
    tokens : list of str
        The texts of the tokens after which it was looked for.
    positions : numpy.ndarray of int64, shape (T,)
        Their positions in the context.
    """

    names: list[str]
    token: str
    id: int
    probs: Float64
    logprobs: Float64
    ranks: npt.NDArray[np.int64]
    tokens: list[str]
    positions: npt.NDArray[np.int64]

    def table(self, last: int | None = None) -> Table:
        """Return a table of probability and rank of the token in each layer.

        Parameters
        ----------
        last : int, optional
            The number of tokens to show, the last ones. Default: all.

        Returns
        -------
        Table
            The first column has the taps. There is one more column per token. For one token, the
            columns are probability, log-probability and rank.
        """
        if len(self.tokens) == 1:
            return Table(
                ("tap", "probability", "log-probability", "rank"),
                [
                    (name, f"{p:.4f}", f"{logp:.4f}", f"{rank:,}")
                    for name, p, logp, rank in zip(
                        self.names,
                        self.probs[:, 0],
                        self.logprobs[:, 0],
                        self.ranks[:, 0],
                        strict=True,
                    )
                ],
            )
        return _table(
            self.names,
            self.tokens,
            last,
            lambda i, t: f"{self.probs[i, t]:.4f} #{self.ranks[i, t]}",
        )

    def __repr__(self) -> str:
        """Return the token and the size of the arrays."""
        layers, tokens = self.ranks.shape
        return f"<tinyllm.TokenLens of {self.token!r}: {layers} layers, {tokens} tokens>"

    def _repr_html_(self) -> str:
        return self.table(_SHOWN).html(caption=repr(self) + _which(len(self.tokens)))


def _table(names: list[str], tokens: list[str], last: int | None, cell: Any) -> Table:
    count = len(tokens)
    if last is not None:
        ranged("last", last, 1)
    shown = range(0 if last is None else max(0, count - last), count)
    return Table(
        ("tap", *(repr(tokens[t]) for t in shown)),
        [(name, *(cell(i, t) for t in shown)) for i, name in enumerate(names)],
    )


def _which(count: int) -> str:
    return f", the last {_SHOWN} are shown" if count > _SHOWN else ""


@overload
def lens(
    trace: Trace,
    k: int = ...,
    *,
    token: None = ...,
    at: Any = ...,
    taps: Capture = ...,
    model: Runner | None = ...,
    progress: bool = ...,
) -> Lens: ...
@overload
def lens(
    trace: Trace,
    k: int = ...,
    *,
    token: int | str,
    at: Any = ...,
    taps: Capture = ...,
    model: Runner | None = ...,
    progress: bool = ...,
) -> TokenLens: ...
def lens(
    trace: Trace,
    k: int = 5,
    *,
    token: int | str | None = None,
    at: Any = None,
    taps: Capture = "blk.*.resid_post",
    model: Runner | None = None,
    progress: bool = True,
) -> Lens | TokenLens:
    """Return what the model would predict if each layer were the last one (the logit lens).

    The model's final norm, output matrix and softmax are applied to the residual stream of each
    layer. The scale of the norm is computed for each row. nostalgebraist 2020, "interpreting GPT:
    the logit lens" (LessWrong).

    Parameters
    ----------
    trace : Trace
        A trace with `taps`.
    k : int
        Number of tokens to keep for each prediction.
    token : int or str, optional
        A token, as an id or as its text. The result is then how likely this token is, instead of
        which tokens are most likely.
    at : int, sequence of int or slice, optional
        The tokens of the trace after which to predict, from 0. Negative values count from the end.
        Default: all.
    taps : str, re.Pattern, callable or sequence of them
        Taps of shape (T, D). Each gives one row of the result.
    model : Model, optional
        The model of a trace that was read from a file.
    progress : bool
        Whether to show a progress bar if the lens takes long.

    Returns
    -------
    Lens, or TokenLens with `token`
        If the last ``resid_post`` is among the taps, and nothing after it was edited, the last
        row is the prediction of the model itself, bit for bit.

    Raises
    ------
    ValueError
        If the model has several streams, if the taps were not captured, or have another shape, if
        `k` is out of range, or if there is no such token.
    IndexError
        If `at` is out of range.

    Examples
    --------
    >>> import tinyllm as tl
    >>> t = tl.load().trace("ROMEO:")
    >>> result = tl.lens(t, k=3)
    >>> result.ids.shape == (t.config.layers, len(t.tokens), 3)
    True
    >>> bool((result.ids[-1, :, 0] == t["output"].argmax(axis=-1)).all())
    True
    >>> best = tl.lens(t, token=int(t["output"][-1].argmax()), at=-1)
    >>> int(best.ranks[-1, 0])
    0
    """
    model = model_of(trace, model)
    ranged("k", k, 1, model.config.vocab_size)
    if not model.steps.ends_with_stream:
        raise ValueError(
            f"the model is a {model.config.architecture}, whose logits are made from more than the "
            "residual stream; expected a model with one stream"
        )
    names = match(list(trace), taps, "taps")
    wrong = [name for name in names if trace[name].shape[1:] != (model.config.width,)]
    if wrong or not names:
        raise ValueError(f"taps holds {wrong or taps}; expected taps of shape (T, D)")
    number = None if token is None else token_id(model, token)
    rows = _chosen(at, len(trace.tokens))
    if not len(rows):
        raise ValueError(f"at is {at!r}, which selects no token; expected at least one")
    tokens, positions = [trace.pieces[row] for row in rows], trace.positions[rows]
    found: list[tuple[npt.NDArray[Any], npt.NDArray[Any]]] = []
    # The bar is not in the generator, because a traceback could keep that, and the bar, alive.
    with Progress(len(names) * len(rows), "logit lens", progress) as bar:
        for logits in _logits(model, trace, names, rows):
            if number is None:
                ids, probs, _, _ = _core.top_k(logits, k, threads=model.threads)
                found.append((ids, probs))
            else:
                _, _, sums, ranks = _core.top_k(logits, 1, number, model.threads)
                found.append((logits[:, number] - sums, ranks))
            bar.add(len(logits))
    shape = (len(names), len(rows))
    first, second = (np.concatenate(parts) for parts in zip(*found, strict=True))
    if number is not None:
        (text,) = model.pieces(np.array([number], np.int32))
        logprobs, ranks = first.reshape(shape), second.reshape(shape)
        return TokenLens(names, text, number, np.exp(logprobs), logprobs, ranks, tokens, positions)
    ids, probs = first.reshape(*shape, k), second.reshape(*shape, k)
    known = np.unique(ids)
    texts = dict(zip(known.tolist(), model.pieces(known), strict=True))
    pieces = [[[texts[i] for i in row] for row in layer] for layer in ids.tolist()]
    return Lens(names, ids, probs, pieces, tokens, positions)


def _chosen(at: Any, count: int) -> npt.NDArray[np.int64]:
    """Return the tokens of a trace that `at` selects, as non-negative numbers."""
    if at is None:
        return np.arange(count)
    if isinstance(at, slice):
        return np.arange(count)[at]
    if is_integer(at):
        return np.array([index("at", at, count)])
    try:
        given = list(at)
    except TypeError:
        given = [integer("at", at, "an integer, a list of integers or a slice")]
    return np.array([index("at", each, count) for each in given], np.int64)


def _logits(
    model: Runner, trace: Trace, names: list[str], rows: npt.NDArray[np.int64]
) -> Iterator[Float32]:
    """Yield the logits of some rows of some taps, several rows of several taps together.

    Their order is that of (taps, rows), flattened.
    """
    limit = model.core.config["max_context"]
    together = min(limit, max(16, _LOGITS // model.config.vocab_size))
    total = len(names) * len(rows)
    for first in range(0, total, together):
        taps, places = np.divmod(np.arange(first, min(first + together, total)), len(rows))
        stream = [trace[names[i]][rows[places[taps == i]]] for i in np.unique(taps).tolist()]
        run = model.run_from(model.config.layers, np.concatenate(stream), [], logits="all")
        yield run.logits
