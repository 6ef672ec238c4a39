"""Sweeps: one run per layer and token, or per layer and head, each with one patch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import _core
from ..base.checks import choice
from ..base.numeric import Float32, Float64
from ..base.progress import Progress
from ..trace.edits import Edit, patch
from ..trace.taps import Capture, Tap, select
from ..trace.trace import Trace

if TYPE_CHECKING:
    from ..runtime.runner import Runner

__all__ = ["patch_sweep"]

#: Rows that run through the layers together.
_ROWS = 1024


def patch_sweep(
    model: Runner,
    clean: Any,
    corrupted: Any,
    taps: Capture = "blk.*.resid_pre",
    metric: Callable[[Float32], Any] | None = None,
    *,
    by: str = "tokens",
    logits: str = "last",
    progress: bool = True,
) -> Float64:
    """Patch each place of a corrupted run with the clean run's value, and measure each time.

    Meng et al. 2022, "Locating and Editing Factual Associations in GPT" (arXiv:2202.05262),
    section 2 (causal tracing); Wang et al. 2022 (arXiv:2211.00593) for patching with another
    prompt's values. Each run starts at the layer that is patched, not at the embedding, and
    several run together; the results are those of ``model.trace(corrupted, edits=tl.patch(...))``
    to the bit.

    Parameters
    ----------
    model : Model
    clean, corrupted : prompt or Trace
        Two prompts of the same number of tokens. Traces of this model may be given instead, and
        are not run again: `clean` with `taps` captured, `corrupted` with ``resid_pre``.
    taps : str, re.Pattern, callable or sequence of them
        Which taps of the blocks to patch; one row of the result each.
    metric : callable
        ``metric(logits)`` -> float, with the float32 logits of one run: shape (1, V), or (T, V).
        ``lambda l: l[-1, a] - l[-1, b]`` works for both.
    by : str
        ``"tokens"``: patch one token at a time. ``"heads"``: one head at a time, at every token;
        only of taps that have heads.
    logits : str
        ``"last"``: the metric sees the last token's logits. ``"all"``: those of every token.
    progress : bool
        Show a bar if it takes long and standard error is a terminal.

    Returns
    -------
    numpy.ndarray of float64, shape (taps, T) or (taps, H)
        In the order in which the taps come to be; for the default (layers, T). NaN where a layer
        has fewer heads than another.

    Raises
    ------
    ValueError
        The prompts differ in length, a tap is unknown, is not in a block, or has no heads, or a
        trace lacks a tap.
    TypeError
        `metric` is no function.

    Examples
    --------
    >>> import tinyllm as tl
    >>> model = tl.load()
    >>> def metric(logits):
    ...     return logits[-1, 5] - logits[-1, 6]
    >>> grid = tl.patch_sweep(model, [1, 2, 3], [1, 4, 3], metric=metric)
    >>> grid.shape == (model.config.layers, 3)
    True
    """
    if not callable(metric):
        raise TypeError(f"metric is {metric!r}; expected a function of the logits")
    choice("by", by, ("tokens", "heads"))
    choice("logits", logits, ("last", "all"))
    chosen = select(model.taps, taps, "taps")
    for tap in chosen:
        if not tap.name.startswith("blk."):
            raise ValueError(f"the tap {tap.name!r} is in no block; patch_sweep patches blocks")
        if by == "heads" and tap.head_axis is None:
            raise ValueError(f"the tap {tap.name!r} has no heads; use by='tokens'")
    if not chosen:
        raise ValueError("taps matches nothing")
    source = _trace(model, clean, [tap.name for tap in chosen], "clean")
    streams = sorted({model.steps.role("resid_pre", tap.layer) for tap in chosen})
    base = _trace(model, corrupted, streams, "corrupted")
    n = len(base.tokens)
    if len(source.tokens) != n:
        raise ValueError(
            f"clean has {len(source.tokens)} tokens and corrupted {n}; expected as many"
        )
    counts = [n if by == "tokens" else _heads(model, tap) for tap in chosen]
    grid = np.full((len(chosen), max(counts)), np.nan)
    with Progress(sum(counts), "patching", progress) as bar:
        for row, (tap, count) in enumerate(zip(chosen, counts, strict=True)):
            edits = [
                patch(tap.name, source, **{"at" if by == "tokens" else "head": i})
                for i in range(count)
            ]
            stream = base[model.steps.role("resid_pre", tap.layer)]
            for first, results in _runs(model, tap, stream, edits, logits):
                for i, values in enumerate(results, first):
                    grid[row, i] = metric(values)
                bar.add(len(results))
    return grid


def _heads(model: Runner, tap: Tap) -> int:
    return tap.shape(1, 1)[tap.head_axis or 0]


def _trace(model: Runner, given: Any, names: list[str], what: str) -> Trace:
    if not isinstance(given, Trace):
        trace = model.trace(given, names)
        if not isinstance(trace, Trace):
            raise TypeError(f"{what} is a batch; expected one prompt")
        return trace
    missing = [name for name in names if name not in given]
    if missing:
        raise ValueError(f"the trace {what} has not captured {missing[0]}; give the prompt, or it")
    if given.fingerprint not in (None, model.fingerprint):
        raise ValueError(f"the trace {what} was made by another model")
    if given.start != 0:
        raise ValueError(f"the trace {what} starts at position {given.start}; expected 0")
    return given


def _runs(
    model: Runner, tap: Tap, stream: Float32, edits: list[Edit], logits: str
) -> Iterator[tuple[int, list[Float32]]]:
    """(number of the first, logits of each) for so many edits as run together."""
    n = len(stream)
    together = max(1, _ROWS // n)
    for first in range(0, len(edits), together):
        part = edits[first : first + together]
        sites = []
        for edit in part:
            program = model.program(edit)
            assert program is not None
            sites.append(program.sites(0, n, True))
        rows = [
            piece * n + i
            for piece in range(len(part))
            for i in (range(n) if logits == "all" else [n - 1])
        ]
        values, _ = model.run(
            [_core.Session(model.core) for _ in part],
            [np.zeros(n, np.int32)] * len(part),
            rows,
            None,
            sites,
            tap.layer,
            np.concatenate([stream] * len(part)),
        )
        yield first, list(values.reshape(len(part), -1, values.shape[-1]))
