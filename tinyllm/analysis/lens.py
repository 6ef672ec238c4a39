"""The logit lens: what each layer would predict."""

from __future__ import annotations

import dataclasses

import numpy as np
import numpy.typing as npt

from ..base.checks import ranged
from ..base.numeric import Float32
from ..display.table import Table
from ..runtime.runner import Runner
from ..trace.taps import Capture, match
from ..trace.trace import Trace
from .inputs import model_of

__all__ = ["Lens", "lens"]


@dataclasses.dataclass(frozen=True, eq=False)
class Lens:
    """What each layer would predict: the result of `tinyllm.lens`.

    Attributes
    ----------
    names : list of str
        The taps, one per row.
    ids : numpy.ndarray of int32, shape (layers, T, k)
        The most likely tokens, best first.
    probs : numpy.ndarray of float32, shape (layers, T, k)
        Their probabilities.
    pieces : list of list of list of str
        Their texts, ``pieces[layer][token][rank]``.
    tokens : list of str
        The texts of the tokens of the trace.
    """

    names: list[str]
    ids: npt.NDArray[np.int32]
    probs: Float32
    pieces: list[list[list[str]]]
    tokens: list[str]

    def table(self) -> Table:
        """The best guess of each layer for each token.

        Returns
        -------
        Table
            The first column names the tap, the others the tokens.
        """
        rows = [
            (name, *(f"{cell[0]!r} {p[0]:.2f}" for cell, p in zip(pieces, probs, strict=True)))
            for name, pieces, probs in zip(self.names, self.pieces, self.probs, strict=True)
        ]
        return Table(("tap", *(repr(token) for token in self.tokens)), rows)

    def __repr__(self) -> str:
        """Name the size."""
        layers, tokens, k = self.ids.shape
        return f"<tinyllm.Lens: {layers} layers, {tokens} tokens, top {k}>"

    def _repr_html_(self) -> str:
        return self.table().html(caption=repr(self))


def lens(
    trace: Trace, k: int = 5, *, taps: Capture = "blk.*.resid_post", model: Runner | None = None
) -> Lens:
    """The logit lens: read the residual stream of every layer as if it were the last.

    nostalgebraist 2020, "interpreting GPT: the logit lens" (LessWrong). The model's final norm
    is applied, with the scale of each row's own; then its output matrix and a softmax.

    Parameters
    ----------
    trace : Trace
        With `taps` captured.
    k : int
        How many tokens to keep.
    taps : str, re.Pattern, callable or sequence of them
        Taps of shape (T, D); one row of the result each.
    model : Model, optional
        For traces that were read from a file.

    Returns
    -------
    Lens
        The last row is what the model itself predicts, to the bit, if the last
        ``resid_post`` is among the taps and nothing after it was edited.

    Raises
    ------
    ValueError
        The taps were not captured or are no residual streams, or `k` is out of range.

    Examples
    --------
    >>> import tinyllm as tl
    >>> t = tl.load().trace("ROMEO:")
    >>> result = tl.lens(t, k=3)
    >>> result.ids.shape == (t.config.layers, len(t.tokens), 3)
    True
    >>> bool((result.ids[-1, :, 0] == t["output"].argmax(axis=-1)).all())
    True
    """
    model = model_of(trace, model)
    ranged("k", k, 1, model.config.vocab_size)
    names = match(list(trace), taps, "taps")
    wrong = [name for name in names if trace[name].shape[1:] != (model.config.width,)]
    if wrong or not names:
        raise ValueError(f"taps holds {wrong or taps}; expected taps of shape (T, D)")
    ids, probs, pieces = trace.guesses(names, k, model)
    return Lens(names, ids, probs, pieces, list(trace.pieces))
