"""Direct logit attribution: the contribution of each component to a logit."""

from __future__ import annotations

import dataclasses

import numpy as np

from ..base.numeric import Float64
from ..display.table import Table, escape
from ..runtime.runner import Runner
from ..trace.trace import Trace
from .inputs import model_of, need_taps, token_id, weight_values

__all__ = ["Attribution", "attribution"]


@dataclasses.dataclass(frozen=True, eq=False)
class Attribution:
    """The contributions of components to a logit: the result of `tinyllm.attribution`.

    Attributes
    ----------
    names : list of str
        The components: ``"token_embd"``, ``"blk.0.attn_mix[3]"`` (head 3 of layer 0),
        ``"blk.0.ffn_down"`` and so on, and biases. A block without attention has one component
        for its mixer, such as ``"blk.0.ssm_out"``.
    values : numpy.ndarray of float64, shape (len(names),)
        The contribution of each component. They sum to `total`.
    heads : numpy.ndarray of float64, shape (layers, H)
        The contributions of the heads. NaN where a layer has fewer heads than another, or none.
    ffn : numpy.ndarray of float64, shape (layers,)
        The contributions of the feed-forward networks.
    total : float
        The sum of all contributions: the logit, or the difference of two logits.
    token, minus : str
        The text of the token, and of the token whose logit is subtracted, or None.
    at : int
        Index of the token in the trace, from 0.
    """

    names: list[str]
    values: Float64
    heads: Float64
    ffn: Float64
    total: float
    token: str
    minus: str | None
    at: int

    def table(self, top: int = 12) -> Table:
        """Return a table of the largest contributions.

        Parameters
        ----------
        top : int
            Number of components to show.

        Returns
        -------
        Table
        """
        order = np.argsort(-abs(self.values), kind="stable")[:top]
        rows: list[tuple[object, ...]] = [
            (self.names[i], f"{self.values[i]:+.4f}") for i in order.tolist()
        ]
        rest = self.total - float(self.values[order].sum())
        rows += [(f"{len(self.names) - len(order)} others", f"{rest:+.4f}")]
        return Table(("part", "logit"), [*rows, ("sum", f"{self.total:+.4f}")])

    def __repr__(self) -> str:
        """Return the token, the total and the number of components."""
        of = repr(self.token) + (f" - {self.minus!r}" if self.minus is not None else "")
        return f"<tinyllm.Attribution of {of}: {self.total:.4f}, {len(self.names)} parts>"

    def _repr_html_(self) -> str:
        return f"<p>{escape(repr(self))}</p>{self.table().html()}"


def attribution(
    trace: Trace,
    token: int | str,
    *,
    minus: int | str | None = None,
    at: int = -1,
    model: Runner | None = None,
) -> Attribution:
    """Return what every head and every feed-forward network adds to a logit.

    This is direct logit attribution. The residual stream is a sum of components. A logit is
    linear in it if the scale of the final norm is fixed at its value in this run. Elhage et al.
    2021, "A Mathematical Framework for Transformer Circuits" (transformer-circuits.pub). For
    differences of logits: Wang et al. 2022, "Interpretability in the Wild" (arXiv:2211.00593),
    section 3.1.

    Parameters
    ----------
    trace : Trace
        A trace with ``token_embd``, every ``attn_mix`` (what ``attn_output`` reads) and
        ``ffn_down``, and ``output_norm_scale``. The default capture has them.
    token : int or str
        The token of the logit, as an id or as the text of one token.
    minus : int or str, optional
        A second token, whose logit is subtracted.
    at : int
        Index of the token in the trace whose next token is predicted. Negative values count from
        the end.
    model : Model, optional
        The model of a trace that was read from a file.

    Returns
    -------
    Attribution

    Raises
    ------
    ValueError
        If a tap was not captured, or if there is no such token.
    IndexError
        If `at` is out of range.

    Notes
    -----
    The contributions are summed in float64, but the model adds in float32. So their sum differs
    from the tap ``output`` by rounding errors of the residual stream and of each matmul, a few
    1e-7 of the largest contributions. If the run had edits of the residual stream, the sum is not
    the logit.

    Examples
    --------
    >>> import tinyllm as tl
    >>> t = tl.load().trace("ROMEO:")
    >>> parts = tl.attribution(t, int(t["output"][-1].argmax()))
    >>> abs(parts.total - float(t["output"][-1].max())) < 1e-3
    True
    """
    model = model_of(trace, model)
    steps, layers = model.steps, range(model.config.layers)
    embedding, scale = steps.role("embedding"), steps.role("final_norm_scale")
    split = [steps.has_role("attn_project", i) for i in layers]  # into heads
    mixes = [
        steps[steps.role("attn_project", i)].reads[0] if split[i] else steps.role("attn_add", i)
        for i in layers
    ]
    ffns = [steps.role("ffn_add", i) for i in layers]
    need_taps(trace, [embedding, *mixes, *ffns, scale], "attribution")
    n = len(trace.tokens)
    if not -n <= at < n:
        raise IndexError(f"at is {at}; expected {-n} to {n - 1}")
    matrix, last_bias, factor = steps[steps.role("logits")].weights
    ids = [token_id(model, token)]
    ids += [] if minus is None else [token_id(model, minus, "minus")]
    signs = np.array([1.0, -1.0])[: len(ids)]
    direction = signs @ weight_values(model, matrix, ids)
    if factor is not None:
        direction = direction * weight_values(model, factor)
    direction = direction * weight_values(model, steps[steps.role("final_norm")].weights[0])
    direction = direction * float(trace[scale][at])

    names = [embedding]
    values = [float(trace[embedding][at].astype(np.float64) @ direction)]
    most = max((steps[mixes[i]].shape[0] for i in layers if split[i]), default=0)
    heads, ffn = np.full((len(layers), most), np.nan), np.empty(len(layers))
    for i in layers:
        mix = trace[mixes[i]][at].astype(np.float64)
        ffn[i] = trace[ffns[i]][at].astype(np.float64) @ direction
        if not split[i]:
            names += [mixes[i], ffns[i]]
            values += [float(mix @ direction), float(ffn[i])]
            continue
        project, bias, factor = steps[steps.role("attn_project", i)].weights
        parts = mix * (direction @ weight_values(model, project)).reshape(mix.shape)
        if factor is not None:
            parts = parts * weight_values(model, factor)
        heads[i, : len(mix)] = parts.sum(axis=-1)
        names += [f"{mixes[i]}[{head}]" for head in range(len(mix))]
        values += heads[i, : len(mix)].tolist()
        if bias is not None:
            names.append(bias)
            values.append(float(weight_values(model, bias) @ direction))
        names.append(ffns[i])
        values.append(float(ffn[i]))
    if last_bias is not None:
        names.append(last_bias)
        values.append(float(signs @ weight_values(model, last_bias)[ids]))
    array = np.array(values)
    pieces = model.pieces(np.array(ids, np.int32))
    other = pieces[1] if minus is not None else None
    return Attribution(
        names, array, heads, ffn, float(array.sum()), pieces[0], other, at % n if n else 0
    )
