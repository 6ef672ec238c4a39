"""Log-probabilities, with the same bits on every machine: the core's own exp, log and sum."""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .. import _core
from ..display.table import Table

__all__ = ["Logprobs", "best", "log_softmax"]

Floats = NDArray[np.float64]


def log_softmax(logits: ArrayLike) -> Floats:
    """Return the log-probability of each token: x - max(x) - log(sum(exp(x - max(x)))).

    Parameters
    ----------
    logits : array_like of float, (V,)

    Returns
    -------
    ndarray of float64, (V,)

    Examples
    --------
    >>> log_softmax([0.0, 0.0])
    array([-0.69314718, -0.69314718])
    """
    values = np.asarray(logits, np.float64)
    shifted = values - values.max()
    result: Floats = shifted - _core.log([_core.sum(_core.exp(shifted))])[0]
    return result


def best(values: Floats, k: int) -> NDArray[np.int64]:
    """Return the indices of the k largest values, the largest first, of equal ones the lowest.

    Parameters
    ----------
    values : ndarray of float64, (n,)
    k : int

    Returns
    -------
    ndarray of int64, (min(k, n),)

    Examples
    --------
    >>> best(np.array([1.0, 3.0, 2.0, 3.0]), 3)
    array([1, 3, 2])
    """
    k = min(k, values.size)
    if k == 0:
        return np.zeros(0, np.int64)
    limit = np.partition(values, values.size - k)[values.size - k]
    found = np.flatnonzero(values >= limit)
    order: NDArray[np.int64] = found[np.argsort(-values[found], kind="stable")][:k]
    return order


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
    logprobs: Floats
    probabilities: Floats
    top_ids: NDArray[np.int64]
    top_logprobs: Floats
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
