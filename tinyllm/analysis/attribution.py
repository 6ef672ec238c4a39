"""Direct logit attribution: where a logit comes from."""

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
    """Where a logit comes from: the result of `tinyllm.attribution`.

    Attributes
    ----------
    names : list of str
        The parts: ``"token_embd"``, ``"blk.0.attn_mix[3]"`` (head 3 of layer 0),
        ``"blk.0.ffn_down"``, biases.
    values : numpy.ndarray of float64
        What each adds to the logit. They sum to `total`.
    heads : numpy.ndarray of float64, shape (layers, H)
        The heads' values again; NaN where a layer has fewer heads than another.
    ffn : numpy.ndarray of float64, shape (layers,)
        The feed-forward networks' values again.
    total : float
        Their sum: the logit, or the difference of two.
    token, minus : str
        What the logit is of.
    at : int
        The token of the trace.
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
        """The largest parts.

        Parameters
        ----------
        top : int
            How many.

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
        """Name the logit and its parts."""
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
    """Direct logit attribution: what every head and every feed-forward network adds to a logit.

    The residual stream is a sum, and once the scale of the final norm is frozen at what it was
    in this run, a logit is linear in it. Elhage et al. 2021, "A Mathematical Framework for
    Transformer Circuits" (transformer-circuits.pub); the use on logit differences follows Wang
    et al. 2022, "Interpretability in the Wild" (arXiv:2211.00593), section 3.1.

    Parameters
    ----------
    trace : Trace
        With ``token_embd``, every ``attn_mix`` and ``ffn_down``, and ``output_norm_scale``; the
        default capture has them.
    token : int or str
        Whose logit; a str is the text of one token.
    minus : int or str, optional
        The logit of `token` minus that of this one.
    at : int
        Which token of the trace; negative ones count from the end.
    model : Model, optional
        For traces that were read from a file.

    Returns
    -------
    Attribution

    Raises
    ------
    ValueError
        A tap is missing, or there is no such token.
    IndexError
        `at` is out of range.

    Notes
    -----
    The parts are summed in float64; the model added them up in float32. Their sum differs from
    the tap ``output`` by the rounding of the residual stream and of each matmul: a few 1e-7 of
    the largest parts. In a run with edits of the residual stream itself the sum is that of the
    parts, not the logit.

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
    mixes = [steps.role("attn_mix", i) for i in layers]
    ffns = [steps.role("ffn_add", i) for i in layers]
    need_taps(trace, [embedding, *mixes, *ffns, scale], "attribution")
    n = len(trace.tokens)
    if not -n <= at < n:
        raise IndexError(f"at is {at}; expected {-n} to {n - 1}")
    matrix, last_bias = steps[steps.role("logits")].weights
    ids = [token_id(model, token)]
    ids += [] if minus is None else [token_id(model, minus, "minus")]
    signs = np.array([1.0, -1.0])[: len(ids)]
    direction = signs @ weight_values(model, matrix, ids)
    direction = direction * weight_values(model, steps[steps.role("final_norm")].weights[0])
    direction = direction * float(trace[scale][at])

    names = [embedding]
    values = [float(trace[embedding][at].astype(np.float64) @ direction)]
    most = max(steps[mix].shape[0] for mix in mixes)
    heads, ffn = np.full((len(layers), most), np.nan), np.empty(len(layers))
    for i in layers:
        mix = trace[mixes[i]][at].astype(np.float64)
        project, bias = steps[steps.role("attn_project", i)].weights
        parts = mix * (direction @ weight_values(model, project)).reshape(mix.shape)
        heads[i, : len(mix)] = parts.sum(axis=-1)
        names += [f"{mixes[i]}[{head}]" for head in range(len(mix))]
        values += heads[i, : len(mix)].tolist()
        if bias is not None:
            names.append(bias)
            values.append(float(weight_values(model, bias) @ direction))
        ffn[i] = trace[ffns[i]][at].astype(np.float64) @ direction
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
