"""The logit lens: predictions from the residual stream of each layer."""

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
        The texts of the tokens of the trace.
    start : int
        Position of the first of them in its context.
    """

    names: list[str]
    ids: npt.NDArray[np.int32]
    probs: Float32
    pieces: list[list[list[str]]]
    tokens: list[str]
    start: int = 0

    def table(self) -> Table:
        """Return a table of the most likely token of each layer at each token.

        Returns
        -------
        Table
            The first column has the taps. There is one more column per token.
        """
        rows = [
            (name, *(f"{cell[0]!r} {p[0]:.2f}" for cell, p in zip(pieces, probs, strict=True)))
            for name, pieces, probs in zip(self.names, self.pieces, self.probs, strict=True)
        ]
        return Table(("tap", *(repr(token) for token in self.tokens)), rows)

    def __repr__(self) -> str:
        """Return the size of the arrays."""
        layers, tokens, k = self.ids.shape
        return f"<tinyllm.Lens: {layers} layers, {tokens} tokens, top {k}>"

    def _repr_html_(self) -> str:
        return self.table().html(caption=repr(self))


def lens(
    trace: Trace, k: int = 5, *, taps: Capture = "blk.*.resid_post", model: Runner | None = None
) -> Lens:
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
    taps : str, re.Pattern, callable or sequence of them
        Taps of shape (T, D). Each gives one row of the result.
    model : Model, optional
        The model of a trace that was read from a file.

    Returns
    -------
    Lens
        If the last ``resid_post`` is among the taps, and nothing after it was edited, the last
        row is the prediction of the model itself, bit for bit.

    Raises
    ------
    ValueError
        If the taps were not captured, or have another shape, or if `k` is out of range.

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
    return Lens(names, ids, probs, pieces, list(trace.pieces), trace.start)
