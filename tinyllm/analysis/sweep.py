"""Patch sweeps: one run for each layer and token, or for each layer and head, with one patch."""

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

#: Number of rows (tokens of several runs) that run through the layers together.
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
    """Patch a corrupted run with values of a clean run, one place at a time, and measure each run.

    Each run patches one token or one head of one tap. Runs start at the patched layer instead of
    the embedding, and several run together. The results are those of
    ``model.trace(corrupted, edits=tl.patch(...))``, bit for bit. Causal tracing: Meng et al. 2022,
    "Locating and Editing Factual Associations in GPT" (arXiv:2202.05262), section 2. Patching with
    values of another prompt: Wang et al. 2022 (arXiv:2211.00593).

    Parameters
    ----------
    model : Model
    clean, corrupted : prompt or Trace
        Two prompts with the same number of tokens, or traces of this model, which are not run
        again. The trace `clean` must have `taps`, and the trace `corrupted` must have
        ``resid_pre`` of their layers.
    taps : str, re.Pattern, callable or sequence of them
        Taps in the blocks. Each gives one row of the result.
    metric : callable
        ``metric(logits)`` -> float. `logits` are the float32 logits of one run, of shape (1, V) or
        (T, V). ``lambda l: l[-1, a] - l[-1, b]`` works for both.
    by : str
        ``"tokens"``: each run patches one token. ``"heads"``: each run patches one head at every
        token. Then all taps must have heads.
    logits : str
        The argument of `metric`: ``"last"``, the logits of the last token, or ``"all"``, the logits
        of every token.
    progress : bool
        Whether to show a progress bar if the sweep takes long.

    Returns
    -------
    numpy.ndarray of float64, shape (taps, T) or (taps, H)
        The metric of each run. Rows are in the order of the forward pass; by default there is
        one per layer. NaN where a layer has fewer heads than another.

    Raises
    ------
    ValueError
        If the prompts differ in length, if a tap is unknown, is not in a block or has no heads,
        or if a trace does not have a tap.
    TypeError
        If `metric` is not a function.

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
            raise ValueError(f"taps holds {tap.name!r}; expected taps in blocks, blk.*")
        if by == "heads" and tap.head_axis is None:
            raise ValueError(f"by is 'heads' and {tap.name!r} has no heads; expected 'tokens'")
    if not chosen:
        raise ValueError(f"taps is {taps!r}; expected at least one tap")
    source = _trace(model, clean, [tap.name for tap in chosen], "clean")
    streams = sorted({model.steps.role("resid_pre", tap.layer) for tap in chosen})
    base = _trace(model, corrupted, streams, "corrupted")
    n = len(base.tokens)
    if len(source.tokens) != n:
        raise ValueError(
            f"clean has {len(source.tokens)} tokens and corrupted {n}; expected equal numbers"
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
        raise ValueError(f"the trace {what} does not have {missing[0]}; capture it")
    if given.fingerprint not in (None, model.fingerprint):
        raise ValueError(f"the trace {what} is of another model; expected a trace of model")
    if given.start != 0:
        raise ValueError(f"the trace {what} starts at position {given.start}; expected 0")
    return given


def _runs(
    model: Runner, tap: Tap, stream: Float32, edits: list[Edit], logits: str
) -> Iterator[tuple[int, list[Float32]]]:
    """Run one patch after another, several together.

    Yields the index of the first edit of each group, and the logits of each of its runs.
    """
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
