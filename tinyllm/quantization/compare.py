"""`compare_quantizations`: what several types cost a model, measured on a text."""

from __future__ import annotations

import dataclasses
import os
import tempfile
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..base.progress import Progress
from ..display.table import Table
from ..evaluation.scoring import kl, perplexity
from ..loading import load
from ..runtime.prompt import token_ids
from ..runtime.runner import Runner
from .imatrix import Imatrix
from .quantize import quantize

__all__ = ["QuantizationComparison", "QuantizationResult", "compare_quantizations"]

_WINDOW = 512  # tokens


@dataclasses.dataclass(frozen=True)
class QuantizationResult:
    """What a type costs a model.

    Attributes
    ----------
    type : str
        The mix, or ``"(model)"`` for the model itself.
    nbytes : int
        The size of all weights.
    bits : float
        Bits per weight, over all tensors.
    perplexity : float
    kl, kl_99 : float
        The KL divergence from the model, in nats: its mean over the tokens, and the value that 99
        of 100 tokens stay below.
    same_top : float
        The fraction of tokens with the same most likely next token.
    worst_layer : int
        The block that adds most to the relative error of the residual stream. -1: none.
    errors : tuple of float
        The relative error of the residual stream after each block.

    Examples
    --------
    >>> import tinyllm as tl
    >>> found = tl.compare_quantizations(tl.load(), "To be, or not to be", ["Q4_0"])
    >>> found.results[1].type, len(found.results[1].errors)
    ('Q4_0', 4)
    """

    type: str
    nbytes: int
    bits: float
    perplexity: float
    kl: float
    kl_99: float
    same_top: float
    worst_layer: int
    errors: tuple[float, ...]


@dataclasses.dataclass(frozen=True, repr=False)
class QuantizationComparison:
    """The results of `compare_quantizations`; printing it shows a table.

    Attributes
    ----------
    results : list of QuantizationResult
        The model itself, then each type in the given order.
    tokens : int
        The number of tokens of the text.

    Examples
    --------
    >>> import tinyllm as tl
    >>> found = tl.compare_quantizations(tl.load(), "To be, or not to be", ["Q4_0"])
    >>> found.table().columns[:3]
    ('type', 'bytes', 'bits')
    """

    results: list[QuantizationResult]
    tokens: int

    def table(self) -> Table:
        """Return a table with one row per type.

        Returns
        -------
        Table
        """
        columns = ("type", "bytes", "bits", "perplexity", "KL mean", "KL 99 %", "same top", "worst")
        rows = [
            (
                r.type,
                f"{r.nbytes:,}",
                f"{r.bits:.2f}",
                f"{r.perplexity:.3f}",
                f"{r.kl:.5f}",
                f"{r.kl_99:.5f}",
                f"{r.same_top:.1%}",
                f"blk.{r.worst_layer}" if r.worst_layer >= 0 else "",
            )
            for r in self.results
        ]
        return Table(columns, rows)

    def __str__(self) -> str:
        return str(self.table())

    def __repr__(self) -> str:
        types = ", ".join(r.type for r in self.results[1:])
        return f"<tinyllm.QuantizationComparison: {types} on {self.tokens} tokens>"

    def _repr_html_(self) -> str:
        return self.table().html(caption=repr(self))


def compare_quantizations(
    model: Runner,
    text: Any,
    types: Sequence[str] = ("Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q3_K_M", "Q2_K"),
    *,
    imatrix: Imatrix | str | os.PathLike[str] | None = None,
    parse_special: bool = False,
    progress: bool = True,
) -> QuantizationComparison:
    """Quantize a model with each type, and measure on a text what that changes.

    The files are temporary. The text is cut into windows of 512 tokens, or of the context if that
    is smaller.

    Parameters
    ----------
    model : Model
        The reference. It should have F32, F16 or BF16 weights.
    text : str, bytes or ids
        At least two tokens. It should not be the text of the importance matrix.
    types : sequence of str
        Mixes, as for `tinyllm.quantize`.
    imatrix : Imatrix or str or os.PathLike, optional
        As for `tinyllm.quantize`.
    parse_special : bool
        As for `Model.trace`.
    progress : bool
        Whether to show a progress bar if it takes long.

    Returns
    -------
    QuantizationComparison
        ``tinyllm.plot.quantizations`` draws it.

    Raises
    ------
    ValueError
        If a type is unknown, or the text has less than two tokens.

    Examples
    --------
    >>> import tinyllm as tl
    >>> found = tl.compare_quantizations(tl.load(), "To be, or not to be", ["Q6_K", "Q3_K_S"])
    >>> found.results[1].kl < found.results[2].kl
    True
    """
    ids = token_ids(text, model.tokenizer, "text", parse_special)
    window = min(_WINDOW, int(model.core.config["max_context"]))
    results = [_measure("(model)", model, model, ids, window)]
    with Progress(len(types), "comparing types", progress) as bar:
        for name in types:
            with tempfile.TemporaryDirectory() as folder:
                path = os.path.join(folder, "model.gguf")
                quantize(model, path, name, imatrix=imatrix, progress=False)
                small = load(path, mmap=False, threads=model.threads)
            results.append(_measure(name, model, small, ids, window))
            bar.add(1)
    return QuantizationComparison(results, len(ids))


def _measure(name: str, model: Runner, small: Runner, ids: Any, window: int) -> QuantizationResult:
    weights = list(small.weights.values())
    nbytes = sum(weight.nbytes for weight in weights)
    count = sum(int(np.prod(weight.shape)) for weight in weights)
    found = kl(model, small, ids, window)
    errors = _errors(model, small, ids[:window]) if small is not model else ()
    growth = np.diff(errors, prepend=0.0)
    return QuantizationResult(
        name,
        nbytes,
        8 * nbytes / max(count, 1),
        perplexity(small, ids, stride=window, window=window, method="hf").value,
        found.mean,
        float(np.quantile(found.values, 0.99)),
        found.same_top,
        int(np.argmax(growth)) if len(growth) else -1,
        errors,
    )


def _errors(model: Runner, small: Runner, ids: Any) -> tuple[float, ...]:
    """Return the relative error of the residual stream after each block, in float64."""
    taps = model.steps.roles("resid_post")
    ours, theirs = model.trace(ids, taps), small.trace(ids, taps)
    found = []
    for tap in taps:
        exact = ours[tap].astype(np.float64)
        found.append(float(np.linalg.norm(theirs[tap] - exact) / np.linalg.norm(exact)))
    return tuple(found)
