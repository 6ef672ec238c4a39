"""Gradients of a run, and what is estimated from them: patching, saliency, integrated gradients."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from .. import _core
from ..base.checks import choice, integer
from ..base.numeric import Float32, Float64
from ..base.progress import Progress
from ..runtime.backward import values_needed
from ..runtime.prompt import is_batch, token_ids
from ..runtime.runner import Runner
from ..trace.arena import Arena
from ..trace.edits import Edit
from ..trace.edits import set as set_value
from ..trace.taps import Capture, select
from ..trace.trace import Trace
from .scalars import Objective, Scalar, evaluate

if TYPE_CHECKING:
    from ..trace.edit_program import Program
    from ..trace.site import Site

__all__ = [
    "Differentiable",
    "Gradients",
    "attribution_patching",
    "gradients",
    "integrated_gradients",
    "saliency",
]


class Gradients(Trace):
    """The derivatives of a number by inner values: the result of `Model.gradients`.

    A `Trace` whose arrays are derivatives by the taps, with their names and shapes.

    Attributes
    ----------
    value : float
        The number.
    of : str
        What the number is.

    Examples
    --------
    >>> import tinyllm as tl
    >>> g = tl.load().gradients("ROMEO:", of=tl.logit(5), wrt="blk.0.resid_post")
    >>> g.of
    'logit(5)'
    """

    value: float
    of: str

    def __repr__(self) -> str:
        """Return the number and how many taps have derivatives."""
        return f"<tinyllm.Gradients of {self.of} = {self.value:.6g}: {len(self)} taps>"


def gradients(
    model: Runner,
    prompt: Any,
    of: Objective,
    wrt: Capture = "blk.*.resid_post",
    *,
    edits: Any = (),
    parse_special: bool = False,
) -> Any:
    """Compute the gradients of a number by inner values: see `Model.gradients`.

    Parameters
    ----------
    model : Model
    prompt, of, wrt, edits, parse_special
        As for `Model.gradients`.

    Returns
    -------
    Gradients, or list of Gradients for a batch
    """
    scalar = evaluate(of)
    if is_batch(prompt):
        return [
            gradients(model, p, scalar, wrt, edits=edits, parse_special=parse_special)
            for p in prompt
        ]
    ids = token_ids(prompt, model.tokenizer, "the prompt", parse_special)
    return _gradients(model, ids, scalar, wrt, model.program(edits))


def _gradients(
    model: Runner,
    ids: npt.NDArray[np.int32],
    of: Scalar,
    wrt: Capture,
    program: Program | None,
) -> Gradients:
    wanted = model.layout(wrt)
    edited = () if program is None else tuple(program.taps)
    needed = {*values_needed(model.steps, wanted.names, edited), *of.taps(model)}
    layout = model.layout([tap.name for tap in model.taps if tap.name in needed])
    n = len(ids)
    arena = Arena(layout, [n], [n])
    sites = [] if program is None else [program.sites(0, n, True)]
    session = _core.Session(model.core)
    _, (trace,) = model.run([session], [ids], [], layout, sites, arena=arena)
    value, seeds = of.run(model, trace)
    result = Arena(wanted, [n], [n])
    for _, piece, block in result.captures:
        if piece >= 0:
            block[:] = 0  # attention may have no gradient
    numbers = {tap.name: tap for tap in model.taps}
    pullback = None if program is None else _Pullback(model, program, n)
    model.core.backward(
        (ids,),
        tuple(arena.captures),
        tuple(
            ((numbers[name].index,), 0 if numbers[name].matrix else -1, seed)
            for name, seed in seeds.items()
        ),
        tuple(result.captures),
        edits=() if pullback is None else pullback.steps,
        edit=pullback,
        threads=model.threads,
    )
    found = Gradients(model.config, ids, model.pieces(ids), result.views(0), model=model)
    found.value, found.of = value, repr(of)
    return found


class Differentiable(Runner):
    """A model with gradients: a base class of `tinyllm.Model`."""

    def gradients(
        self,
        prompt: Any,
        of: Objective,
        wrt: Capture = "blk.*.resid_post",
        *,
        edits: Any = (),
        parse_special: bool = False,
    ) -> Any:
        """Run a prompt, and return the gradients of a number by inner values.

        Parameters
        ----------
        prompt : str, bytes, ids, or a list of them
            As for `trace`. A list is a batch.
        of : Scalar or callable
            The number: `tinyllm.logit`, `tinyllm.logprob`, `tinyllm.nll`, `tinyllm.tap_value`, or a
            sum, a difference or a multiple of them. Or a function of the logits, an array of
            float32 of shape (T, V), that returns its value and its gradient, an array of the same
            shape.
        wrt : str, re.Pattern, callable or sequence of them
            The taps, as `capture` in `trace`. None: all except ``attn_scores`` and
            ``attn_probs``.
        edits : Edit or sequence of Edit
            As for `trace`. The gradients by an edited tap are those by the value after the edits.
        parse_special : bool
            As for `trace`.

        Returns
        -------
        Gradients, or list of Gradients for a batch
            A `Trace` of derivatives, with the names and shapes of the taps. Its `value` is the
            number. They are computed in float32 with the exact weights, quantized or not. Values
            that nothing depends on have gradients of 0, and so have the ids of experts.

        Raises
        ------
        UnsupportedError
            If the gradient of an operation on the way is not implemented. The message names it.
        ValueError
            If no tap has a name, or the derivative of an edit is not known.
        IndexError
            If a token or an index is out of range.

        Examples
        --------
        >>> import tinyllm as tl
        >>> model = tl.load()
        >>> g = model.gradients("ROMEO:", of=tl.logit(5) - tl.logit(6))
        >>> g["blk.0.resid_post"].shape == (len(g.tokens), model.config.width)
        True
        """
        return gradients(self, prompt, of, wrt, edits=edits, parse_special=parse_special)


class _Pullback:
    """The function that turns the gradient of an edited value into that of the value before it.

    Parameters
    ----------
    model : Model
    program : Program
        The edits.
    length : int
        The number of tokens.
    """

    def __init__(self, model: Runner, program: Program, length: int) -> None:
        self._sites: dict[int, list[tuple[Edit, Site]]] = {}
        for edit in program.edits:
            if edit.kind == "apply" or (edit.kind == "mean" and edit.value is None):
                raise ValueError(
                    f"edits holds {edit!r}, whose derivative is not known; expected tl.set, "
                    "tl.add, tl.scale, tl.zero, tl.patch, or tl.mean with over="
                )
            one = model.program(edit)
            assert one is not None
            for step, sites in one.sites(0, length, True).items():
                self._sites.setdefault(step, []).extend((edit, site) for site, _ in sites)
        self.steps = tuple(sorted(self._sites))

    def __call__(self, step: int, gradient: Float32, piece: int) -> None:
        """Change the gradient of a step's value in place.

        Parameters
        ----------
        step : int
        gradient : numpy.ndarray of float32
        piece : int
        """
        for edit, site in reversed(self._sites[step]):
            if edit.kind == "scale":
                gradient[site.index] *= site.fit(edit.value, "the factor")
            elif edit.kind != "add":  # the new value does not depend on the old one
                gradient[site.index] = 0


def attribution_patching(
    model: Runner,
    clean: Any,
    corrupted: Any,
    metric: Objective,
    taps: Capture = "blk.*.resid_pre",
    *,
    by: str = "tokens",
) -> Float64:
    """Estimate the results of `tinyllm.patch_sweep` with one backward pass.

    A patch changes the metric by about the change of the value times the gradient in the corrupted
    run. All places together take two forward passes and one backward pass. Nanda 2023,
    "Attribution Patching" (neelnanda.io); Syed et al. 2023 (arXiv:2310.10348).

    Parameters
    ----------
    model : Model
    clean, corrupted : prompt
        Two prompts with the same number of tokens.
    metric : Scalar or callable
        As `of` in `Model.gradients`.
    taps : str, re.Pattern, callable or sequence of them
        Each gives one row of the result.
    by : str
        ``"tokens"`` or ``"heads"``: what is patched at a time.

    Returns
    -------
    numpy.ndarray of float64, shape (taps, T) or (taps, H)
        An estimate of the metric after each patch. NaN where a layer has fewer heads than another.

    Raises
    ------
    ValueError
        If the prompts differ in length, or if a tap is unknown or has no heads.

    Examples
    --------
    >>> import tinyllm as tl
    >>> model = tl.load()
    >>> grid = tl.attribution_patching(model, [1, 2, 3], [1, 4, 3], tl.logit(5) - tl.logit(6))
    >>> grid.shape == (model.config.layers, 3)
    True
    """
    choice("by", by, ("tokens", "heads"))
    chosen = select(model.taps, taps, "taps")
    names = [tap.name for tap in chosen]
    for tap in chosen:
        if by == "heads" and tap.head_axis is None:
            raise ValueError(f"by is 'heads' and {tap.name!r} has no heads; expected 'tokens'")
    if not chosen:
        raise ValueError(f"taps is {taps!r}; expected at least one tap")
    source, base = model.trace(clean, names), model.trace(corrupted, names)
    if not isinstance(source, Trace) or not isinstance(base, Trace):
        raise TypeError("clean or corrupted is a batch; expected one prompt each")
    if len(source.tokens) != len(base.tokens):
        raise ValueError(
            f"clean has {len(source.tokens)} tokens and corrupted {len(base.tokens)}; expected "
            "equal numbers"
        )
    slope = gradients(model, base.tokens, metric, names)
    rows = []
    for tap in chosen:
        change = _change(source[tap.name], base[tap.name]) * slope[tap.name]
        axis = (1 if tap.matrix else 0) if by == "tokens" else tap.head_axis
        rows.append(change.sum(axis=tuple(i for i in range(change.ndim) if i != axis)))
    grid = np.full((len(rows), max(map(len, rows))), np.nan)
    for row, values in zip(grid, rows, strict=True):
        row[: len(values)] = slope.value + values
    return grid


def _change(new: Float32, old: Float32) -> Float64:
    """Return new - old in float64; 0 where both are the same infinity."""
    a, b = new.astype(np.float64), old.astype(np.float64)
    change: Float64 = np.where(a == b, 0.0, np.subtract(a, b, where=a != b, out=np.zeros_like(a)))
    return change


def saliency(model: Runner, prompt: Any, of: Objective, *, edits: Any = ()) -> Float64:
    """Return how much each token's embedding adds to a number, to first order.

    It is the gradient by the embedding times the embedding (Shrikumar et al. 2016,
    arXiv:1605.01713).

    Parameters
    ----------
    model : Model
    prompt, of, edits
        As for `Model.gradients`. `prompt` is one prompt.

    Returns
    -------
    numpy.ndarray of float64, shape (T,)

    Examples
    --------
    >>> import tinyllm as tl
    >>> len(tl.saliency(tl.load(), [1, 2, 3], tl.logit(5)))
    3
    """
    name = model.steps.role("embedding")
    trace = model.trace(prompt, name, edits=edits)
    if not isinstance(trace, Trace):
        raise TypeError("prompt is a batch; expected one prompt")
    slope = gradients(model, trace.tokens, of, name, edits=edits)
    product: Float64 = (slope[name].astype(np.float64) * trace[name]).sum(axis=-1)
    return product


def integrated_gradients(
    model: Runner,
    prompt: Any,
    of: Objective,
    *,
    baseline: npt.ArrayLike | None = None,
    steps: int = 32,
    edits: Any = (),
    progress: bool = True,
) -> Float64:
    """Attribute a number to the embeddings of the tokens, by integrated gradients.

    The gradient is averaged over a straight line from a baseline to the embeddings, and multiplied
    with the difference. All entries together sum to the difference of the number between the two
    ends, apart from the error of the integral. Sundararajan et al. 2017, "Axiomatic Attribution
    for Deep Networks" (arXiv:1703.01365), equation 1, with the midpoint rule.

    Parameters
    ----------
    model : Model
    prompt, of
        As for `Model.gradients`. `prompt` is one prompt.
    baseline : array_like of float32, shape (T, D) or (D,), optional
        Where the line begins. Default: zeros.
    steps : int
        The number of points on the line, each with a forward and a backward pass.
    edits : Edit or sequence of Edit
        As for `Model.gradients`. They may not change the embedding.
    progress : bool
        Whether to show a progress bar.

    Returns
    -------
    numpy.ndarray of float64, shape (T, D)
        ``.sum(axis=1)`` has one number for each token.

    Raises
    ------
    ValueError
        If `steps` is less than 1, or `baseline` has another shape.

    Examples
    --------
    >>> import tinyllm as tl
    >>> parts = tl.integrated_gradients(tl.load(), [1, 2, 3], tl.logit(5), steps=2)
    >>> len(parts.sum(axis=1))
    3
    """
    if integer("steps", steps) < 1:
        raise ValueError(f"steps is {steps}; expected at least 1")
    name = model.steps.role("embedding")
    trace = model.trace(prompt, name)
    if not isinstance(trace, Trace):
        raise TypeError("prompt is a batch; expected one prompt")
    end = trace[name].astype(np.float64)
    try:
        start = np.broadcast_to(np.asarray(0.0 if baseline is None else baseline, float), end.shape)
    except ValueError:
        raise ValueError(
            f"baseline has shape {np.asarray(baseline).shape}; expected {end.shape} or "
            f"{end.shape[1:]}"
        ) from None
    others: Sequence[Any] = [edits] if isinstance(edits, Edit) else list(edits)
    total = np.zeros_like(end)
    with Progress(steps, "integrating", progress) as bar:
        for i in range(steps):
            point = start + (i + 0.5) / steps * (end - start)
            there = set_value(name, point.astype(np.float32))
            total += gradients(model, trace.tokens, of, name, edits=[there, *others])[name]
            bar.add(1)
    product: Float64 = total / steps * (end - start)
    return product
