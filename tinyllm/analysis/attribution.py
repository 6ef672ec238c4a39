"""Direct logit attribution: the contribution of each component to a logit."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import numpy.typing as npt

from ..architectures.adapters import merged_matrix
from ..architectures.plan import FUNCTIONS, Step
from ..base.numeric import Float64
from ..display.table import Table, escape
from ..runtime.runner import Runner
from ..trace.trace import Trace
from .inputs import model_of, need_taps, token_id, weight_values

__all__ = ["Attribution", "attribution", "attributions"]


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
    linear in it if the statistics of the norms between are fixed at their values in this run. If
    logits have a soft cap, it is left out. Elhage et al.
    2021, "A Mathematical Framework for Transformer Circuits" (transformer-circuits.pub). For
    differences of logits: Wang et al. 2022, "Interpretability in the Wild" (arXiv:2211.00593),
    section 3.1.

    Parameters
    ----------
    trace : Trace
        A trace with ``token_embd``, every ``attn_mix`` (what ``attn_output`` reads) and
        ``ffn_down``, and the scales of norms between them and the logits, such as
        ``output_norm_scale``. The default capture has them.
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
    model.need_logits()
    n = len(trace.tokens)
    if not -n <= at < n:
        raise IndexError(f"at is {at}; expected {-n} to {n - 1}")
    ids = [token_id(model, token)]
    ids += [] if minus is None else [token_id(model, minus, "minus")]
    signs = np.array([1.0, -1.0])[: len(ids)]
    parts = _Parts(model, trace, np.array([at]))
    need_taps(trace, parts.needed(), "attribution")
    parts.add_logits(np.array([ids]), signs)

    steps, layers = model.steps, range(model.config.layers)
    most = max((values.shape[1] for values in parts.heads.values()), default=0)
    heads = np.full((len(layers), most), np.nan)
    for layer, values in parts.heads.items():
        heads[layer, : values.shape[1]] = values[0]
    named = [(name, float(values[0])) for name, values in parts.named()]
    by_name, has = dict(named), steps.has_role
    names = [steps.role("ffn_add", i) if has("ffn_add", i) else "" for i in layers]
    ffn = np.array([by_name.get(name, np.nan) for name in names])
    array = np.array([value for _, value in named])
    pieces = model.pieces(np.array(ids, np.int32))
    other = pieces[1] if minus is not None else None
    return Attribution(
        [name for name, _ in named],
        array,
        heads,
        ffn,
        float(array.sum()),
        pieces[0],
        other,
        at % n if n else 0,
    )


def attributions(
    trace: Trace, ids: npt.NDArray[np.integer[Any]], model: Runner
) -> tuple[list[str], Float64] | None:
    """Return the parts of one logit at each token of a trace.

    Parameters
    ----------
    trace : Trace
    ids : numpy.ndarray of int, shape (T,)
        The token of the logit at each token of the trace.
    model : Model

    Returns
    -------
    names : list of str
        As in `Attribution`.
    values : numpy.ndarray of float64, shape (T, len(names))
        None is returned instead of both if the trace does not have the taps.
    """
    parts = _Parts(model, trace, np.arange(len(trace.tokens)))
    if not all(name in trace for name in parts.needed()):
        return None
    parts.add_logits(np.asarray(ids)[:, np.newaxis], np.ones(1))
    named = parts.named()
    return [name for name, _ in named], np.stack([values for _, values in named], axis=1)


class _Parts:
    """The parts of a logit: a walk from the logits back over all steps that are linear.

    It runs for n tokens of the trace together, so values and directions have n rows.

    Norms are linear in their input if their statistics are fixed at those of the run. The walk
    ends at the embedding, at the feed-forward networks, at the heads of attention, and at any
    step that is not linear.
    """

    def __init__(self, model: Runner, trace: Trace, rows: npt.NDArray[np.int64]) -> None:
        self.model, self.trace, self.rows = model, trace, rows
        self.steps = model.steps
        self.heads: dict[int, Float64] = {}
        self._values: dict[tuple[int, int, str], Float64] = {}  # by step, order within it, and name
        self._numbers = {step.tap: i for i, step in enumerate(model.steps)}

    def _leaf(self, tap: str) -> bool:
        roles = self.steps[tap].roles
        return "embedding" in roles or "ffn_add" in roles

    def needed(self) -> list[str]:
        """Return the taps that the walk reads."""
        found, waiting, needed = set(), [self.steps.role("logits")], []
        while waiting:
            tap = waiting.pop()
            step = self.steps[tap]
            if tap in found:
                continue
            found.add(tap)
            if self._leaf(tap) or not self._linear(step):
                needed.append(tap)
            elif "attn_project" in step.roles:
                needed.append(step.reads[0])
            elif step.op in ("norm", "layer_norm"):
                needed += step.reads[2:] if step.op == "layer_norm" else step.reads[1:]
                waiting.append(step.reads[0])
            else:
                waiting += step.reads
        return sorted(needed, key=self._numbers.__getitem__)

    def _linear(self, step: Step) -> bool:
        """Whether the walk goes through a step."""
        if step.op == "linear":
            return "attn_project" in step.roles or step.layer == self.model.config.layers
        if step.op == "unary":
            function = FUNCTIONS[int(step.number("function"))]
            return function == "scale" or (function == "soft_cap" and "logits" in step.roles)
        return step.op in ("same", "add", "norm", "layer_norm", "scale")

    def add_logits(self, ids: npt.NDArray[np.integer[Any]], signs: Float64) -> None:
        """Walk from the logits of tokens, shape (n, m), with m signs, to all parts."""
        tap, factor = self.steps.role("logits"), 1.0
        while (step := self.steps.projection(tap)).op != "linear":
            if FUNCTIONS[int(self.steps[tap].number("function"))] == "scale":
                factor *= self.steps[tap].number("parameter")
            tap = self.steps[tap].reads[0]
        _, bias, scale = step.weights
        rows = merged_matrix(self.steps, step, self.model.weights, ids.reshape(-1))
        rows = rows.reshape(*ids.shape, -1)
        direction = factor * np.einsum("m,nmd->nd", signs, rows)
        if scale is not None:
            direction = direction * self._weight(scale)
        if bias is not None:
            self._add(tap, bias, factor * (self._weight(bias)[ids] @ signs))
        waiting = [(step.reads[0], direction)]
        while waiting:
            tap, direction = waiting.pop()
            waiting += self._back(tap, direction)

    def _weight(self, name: str | None, rows: Any = None) -> Float64:
        return weight_values(self.model, name, rows)

    def _value(self, tap: str) -> Float64:
        value: Float64 = self.trace[tap][self.rows].astype(np.float64)
        return value

    def _add(self, tap: str, name: str, values: Float64, order: int = 0) -> None:
        key = (self._numbers[tap], order, name)
        self._values[key] = self._values[key] + values if key in self._values else values

    def named(self) -> list[tuple[str, Float64]]:
        """Return the names and values of all parts, in the order of the steps."""
        return [(name, value) for (_, _, name), value in sorted(self._values.items())]

    def _back(self, tap: str, direction: Float64) -> list[tuple[str, Float64]]:
        """Add what ends at a step; return what goes on, with the directions there."""
        step = self.steps[tap]
        if self._leaf(tap) or not self._linear(step):
            values = (self._value(tap) * direction).reshape(len(self.rows), -1).sum(axis=1)
            self._add(tap, tap, values)
            return []
        if step.op == "linear":
            self._add_heads(step, direction)
            return []
        if step.op == "add":
            return [(read, direction) for read in step.reads]
        if step.op in ("norm", "layer_norm"):
            return [(step.reads[0], self._through_norm(step, direction))]
        if step.op == "unary":
            direction = direction * step.number("parameter")
        elif step.op == "scale":
            direction = direction * self._weight(step.weights[0])
        return [(step.reads[0], direction)]

    def _through_norm(self, step: Step, direction: Float64) -> Float64:
        if step.op == "layer_norm" and step.weights[1] is not None:
            self._add(step.tap, step.weights[1], direction @ self._weight(step.weights[1]))
        if step.weights[0] is not None:
            direction = direction * self._weight(step.weights[0])
        direction = direction * self._value(step.reads[-1])[:, np.newaxis]
        if step.op == "layer_norm":
            direction = direction - direction.mean(axis=1, keepdims=True)
        return direction

    def _add_heads(self, step: Step, direction: Float64) -> None:
        """Add the heads whose values an output projection reads."""
        matrix, bias, scale = step.weights
        if bias is not None:
            self._add(step.tap, bias, direction @ self._weight(bias), order=1 << 30)
        mix = self._value(step.reads[0])
        parts = mix * (direction @ self._weight(matrix)).reshape(mix.shape)
        if scale is not None:
            parts = parts * self._weight(scale)
        self.heads[step.layer] = parts.sum(axis=-1)
        for head, values in enumerate(self.heads[step.layer].T):
            self._add(step.tap, f"{step.reads[0]}[{head}]", values, order=head)
