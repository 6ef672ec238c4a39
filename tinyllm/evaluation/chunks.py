"""The loss of parts of a text: which of them a model knows, and which it does not."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from ..base.checks import ranged
from ..runtime.runner import Runner
from .scoring import Score, context_of, score_ids, text_ids

__all__ = ["Chunk", "score_chunks"]


class Chunk(NamedTuple):
    """A part of a text, and how probable it is.

    Attributes
    ----------
    start : int
        The place of its first token.
    text : str
    loss : float
        The mean negative log-probability of its tokens but the first one, in nats.
    score : Score
        That of each token.

    Examples
    --------
    >>> import tinyllm as tl
    >>> chunk = tl.score_chunks(tl.load(), "To be, or not to be, that is the question", size=5)[0]
    >>> len(chunk.score.ids), chunk.loss == -chunk.score.mean
    (5, True)
    """

    start: int
    text: str
    loss: float
    score: Score


def score_chunks(
    model: Runner,
    text: Any,
    *,
    size: int | None = None,
    count: int | None = None,
    seed: int = 0,
) -> list[Chunk]:
    """Score parts of a text that may be longer than the context, each on its own.

    Parameters
    ----------
    model : Model
    text : str, bytes or sequence of int
        A text or token ids.
    size : int, optional
        Tokens of a part. Default: the context and one, at most 512.
    count : int, optional
        How many parts are drawn at random. Default: all of them.
    seed : int

    Returns
    -------
    list of Chunk
        The one with the largest loss first. What is left over at the end of the text is in none.

    Raises
    ------
    ValueError
        If the text is shorter than one part.

    Examples
    --------
    >>> import tinyllm as tl
    >>> chunks = tl.score_chunks(tl.load(), "To be, or not to be, that is the question", size=5)
    >>> chunks[0].loss >= chunks[-1].loss
    True
    """
    ids = text_ids(model, text)
    limit = context_of(model) + 1
    size = (
        min(limit, 512) if size is None else ranged("size", size, 2, limit, "the context and one")
    )
    starts = np.arange(0, len(ids) - size + 1, size)
    if not len(starts):
        raise ValueError(
            f"text has {len(ids)} tokens; expected at least {size}, the size of a part"
        )
    if count is not None:
        number = min(ranged("count", count, 1), len(starts))
        starts = np.random.default_rng(seed).choice(starts, number, replace=False)
    chunks = []
    for start in starts.tolist():
        found = score_ids(model, ids[start : start + size])
        chunks.append(Chunk(start, "".join(found.pieces), -found.mean, found))
    return sorted(chunks, key=lambda chunk: (-chunk.loss, chunk.start))
