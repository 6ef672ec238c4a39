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
    config, weights = model.config, model.weights
    layers = range(config.layers)
    needed = ["token_embd", *(f"blk.{i}.{name}" for i in layers for name in _PARTS)]
    need_taps(trace, [*needed, "output_norm_scale"], "attribution")
    n = len(trace.tokens)
    if not -n <= at < n:
        raise IndexError(f"at is {at}; expected {-n} to {n - 1}")
    name = "output.weight" if "output.weight" in weights else "token_embd.weight"
    ids = [token_id(model, token)]
    ids += [] if minus is None else [token_id(model, minus, "minus")]
    signs = np.array([1.0, -1.0])[: len(ids)]
    direction = signs @ weight_values(model, name, ids)
    direction = direction * weight_values(model, "output_norm.weight")
    direction = direction * float(trace["output_norm_scale"][at])

    names = ["token_embd"]
    values = [float(trace["token_embd"][at].astype(np.float64) @ direction)]
    most = max(config.layer("heads", i) for i in layers)
    heads, ffn = np.full((config.layers, most), np.nan), np.empty(config.layers)
    for i in layers:
        mix = trace[f"blk.{i}.attn_mix"][at].astype(np.float64)
        matrix = weight_values(model, f"blk.{i}.attn_output.weight")
        parts = (mix * (direction @ matrix).reshape(mix.shape)).sum(axis=-1)
        heads[i, : len(parts)] = parts
        names += [f"blk.{i}.attn_mix[{head}]" for head in range(len(parts))]
        values += parts.tolist()
        bias = f"blk.{i}.attn_output.bias"
        if bias in weights:
            names.append(bias)
            values.append(float(weight_values(model, bias) @ direction))
        ffn[i] = trace[f"blk.{i}.ffn_down"][at].astype(np.float64) @ direction
        names.append(f"blk.{i}.ffn_down")
        values.append(float(ffn[i]))
    if "output.bias" in weights:
        names.append("output.bias")
        values.append(float(signs @ weight_values(model, "output.bias")[ids]))
    array = np.array(values)
    pieces = model.pieces(np.array(ids, np.int32))
    other = pieces[1] if minus is not None else None
    return Attribution(
        names, array, heads, ffn, float(array.sum()), pieces[0], other, at % n if n else 0
    )


_PARTS = ("attn_mix", "ffn_down")
