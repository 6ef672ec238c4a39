"""Sweeps: many runs of the same prompts, each with other edits."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from .. import _core
from ..base.checks import choice
from ..base.numeric import Float32, Float64
from ..base.progress import Progress
from ..runtime.prompt import is_batch, token_ids
from ..trace.edits import Edit, patch, zero
from ..trace.taps import Capture, Tap, select
from ..trace.trace import Trace

if TYPE_CHECKING:
    from ..runtime.runner import Runner
    from ..trace.edit_program import Program

__all__ = ["ablation_sweep", "patch_sweep", "sweep"]

#: Number of rows (tokens of several runs) that run through the layers together.
_ROWS = 1024

#: What a sweep can go over, and the argument of an edit that selects one of them.
_AXES = {"tokens": "at", "heads": "head", "index": "index"}

#: ``metric(logits)`` -> float.
Metric = Callable[[Float32], Any]


def sweep(
    model: Runner,
    prompts: Any,
    edits: Iterable[Any],
    metric: Metric | None = None,
    *,
    logits: str = "last",
    progress: bool = True,
) -> Float64:
    """Run prompts once for each of many edits, and measure each run.

    What the edits do not change is computed once: layers before the first edited tap, and tokens
    before the first edited position. Several runs go through the other layers together. The results
    are those of ``metric(model.logits(prompt, edits=...))``, bit for bit.

    Parameters
    ----------
    model : Model
    prompts : str, bytes, ids, or a list of them
        A prompt, or a batch.
    edits : iterable
        One item per run: an edit, or a list of edits that apply together. An array of objects
        gives its shape to the result.
    metric : callable
        ``metric(logits)`` -> float. `logits` are the float32 logits of one run, of shape (1, V) or
        (T, V). ``lambda l: l[-1, a] - l[-1, b]`` works for both.
    logits : str
        The argument of `metric`: ``"last"``, the logits of the last token, or ``"all"``, the logits
        of every token.
    progress : bool
        Whether to show a progress bar if the sweep takes long.

    Returns
    -------
    numpy.ndarray of float64, shape (runs,), or (runs, prompts) for a batch
        The metric of each run.

    Raises
    ------
    ValueError
        If a prompt cannot run, or an edit does not fit. Nothing has run then.
    TypeError
        If `metric` is not a function, or something is not an edit.

    Examples
    --------
    >>> import tinyllm as tl
    >>> model = tl.load()
    >>> edits = [tl.zero("blk.0.attn_mix", head=h) for h in range(4)]
    >>> tl.sweep(model, "ROMEO:", edits, lambda logits: logits[-1, 5]).shape
    (4,)
    """
    measure = _measure(metric, logits)
    model.need_logits()
    shape: tuple[int, ...]
    if isinstance(edits, np.ndarray):
        shape, items = edits.shape, edits.reshape(-1).tolist()
    else:
        items = list(edits)
        shape = (len(items),)
    given = list(prompts) if is_batch(prompts) else [prompts]
    names = [f"prompt {i}" if len(given) > 1 else "the prompt" for i in range(len(given))]
    tokens = [token_ids(p, model.tokenizer, n) for p, n in zip(given, names, strict=True)]
    programs = [model.program(item) for item in items]
    startable = [_can_start(model, layer) for layer in range(model.config.layers + 1)]
    runs: list[_Run] = []
    for program in programs:
        for j, ids in enumerate(tokens):
            runs.append(_Run(len(runs), j, program, *_planned(startable, program, ids)))
    bases = [_base(model, ids, runs, j, logits) for j, ids in enumerate(tokens)]
    results = np.full(len(runs), np.nan)
    _execute(model, runs, bases, measure, results, progress)
    return results.reshape((*shape, len(tokens)) if is_batch(prompts) else shape)


def ablation_sweep(
    model: Runner,
    prompts: Any,
    taps: Capture = "blk.*.attn_mix",
    metric: Metric | None = None,
    *,
    by: str | Sequence[str] = "heads",
    edit: Callable[..., Edit] = zero,
    logits: str = "last",
    progress: bool = True,
) -> Float64:
    """Edit one place of one tap in each run, such as one head, and measure the run.

    Parameters
    ----------
    model, prompts, metric, logits, progress
        As for `tinyllm.sweep`. Of a batch, the prompts must have equal numbers of tokens if `by`
        has ``"tokens"``.
    taps : str, re.Pattern, callable or sequence of them
        Each gives one row of the result.
    by : str or sequence of str
        ``"heads"``: each run edits one head at every token. ``"tokens"``: one token. ``"index"``:
        one neuron of a tap such as ``ffn_act``, or one dimension. Several, as in ``("tokens",
        "heads")``: one head at one token.
    edit : callable
        ``edit(tap, at=..., head=..., index=...)`` -> Edit, with the arguments that `by` names:
        `tinyllm.zero`, or `tinyllm.mean`. For the mean over other runs, ``lambda tap, **where:
        tl.mean(tap, over=traces, **where)``. For values of another run (resampling), the same with
        `tl.patch`.

    Returns
    -------
    numpy.ndarray of float64, shape (taps, ...)
        The further axes are those of `by`, in its order, and the prompts of a batch. NaN where a
        layer has fewer heads or neurons than another.

    Raises
    ------
    ValueError, TypeError
        As for `tinyllm.sweep`. Also if a tap has no heads or no neurons, or prompts differ in
        length.

    Examples
    --------
    >>> import tinyllm as tl
    >>> model = tl.load()
    >>> grid = tl.ablation_sweep(model, "ROMEO:", metric=lambda logits: logits[-1, 5])
    >>> grid.shape == (model.config.layers, model.config.heads)
    True
    """
    axes = (by,) if isinstance(by, str) else tuple(by)
    for axis in axes:
        choice("by", axis, tuple(_AXES))
    if not axes or len(set(axes)) < len(axes):
        raise ValueError(f"by is {by!r}; expected different ones of {tuple(_AXES)}")
    chosen = select(model.taps, taps, "taps")
    if not chosen:
        raise ValueError(f"taps is {taps!r}; expected at least one tap")
    for tap in chosen:
        if "heads" in axes and tap.head_axis is None:
            raise ValueError(f"by is 'heads' and {tap.name!r} has no heads; expected 'tokens'")
        if "index" in axes and tap.index_axis is None:
            raise ValueError(
                f"by is 'index' and {tap.name!r} has no neurons or dimensions; expected 'tokens'"
            )
    count = 0
    if "tokens" in axes:
        given = list(prompts) if is_batch(prompts) else [prompts]
        lengths = [len(token_ids(p, model.tokenizer)) for p in given]
        if len(set(lengths)) > 1:
            raise ValueError(f"the prompts have {lengths} tokens; expected equal numbers")
        count = lengths[0]
    every = [_sizes(tap, count, axes) for tap in chosen]
    shape = (len(chosen), *(max(sizes) for sizes in zip(*every, strict=True)))
    items, places = [], []
    for row, tap in enumerate(chosen):
        for place in np.ndindex(*every[row]):
            where = {_AXES[axis]: i for axis, i in zip(axes, place, strict=True)}
            items.append(edit(tap.name, **where))
            places.append((row, *place))
    values = sweep(model, prompts, items, metric, logits=logits, progress=progress)
    grid = np.full(shape + values.shape[1:], np.nan)
    grid[tuple(np.array(places).T)] = values
    return grid


def _sizes(tap: Tap, tokens: int, axes: tuple[str, ...]) -> tuple[int, ...]:
    """Return how many tokens, heads or entries of a tap there are, in the order of `axes`."""
    shape = tap.shape(1, 1)
    places = {"heads": tap.head_axis, "index": tap.index_axis}
    found = [(axis, places.get(axis)) for axis in axes]
    return tuple(tokens if place is None else shape[place] for _, place in found)


def patch_sweep(
    model: Runner,
    clean: Any,
    corrupted: Any,
    taps: Capture = "blk.*.resid_pre",
    metric: Metric | None = None,
    *,
    by: str | Sequence[str] = "tokens",
    logits: str = "last",
    progress: bool = True,
) -> Float64:
    """Patch a corrupted run with values of a clean run, one place at a time, and measure each run.

    Each run patches one token or one head of one tap. It is an `ablation_sweep` with
    `tinyllm.patch`. Causal tracing: Meng et al. 2022, "Locating and Editing Factual Associations in
    GPT" (arXiv:2202.05262), section 2. Patching with values of another prompt: Wang et al. 2022
    (arXiv:2211.00593).

    Parameters
    ----------
    model : Model
    clean, corrupted : prompt or Trace
        Two prompts with the same number of tokens, or traces of this model. A trace `clean` must
        have `taps`, and is not run again.
    taps : str, re.Pattern, callable or sequence of them
        Taps in the blocks. Each gives one row of the result.
    metric, logits, progress
        As for `tinyllm.sweep`.
    by : str or sequence of str
        As for `tinyllm.ablation_sweep`.

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
    _measure(metric, logits)
    chosen = select(model.taps, taps, "taps")
    for tap in chosen:
        if not tap.name.startswith("blk."):
            raise ValueError(f"taps holds {tap.name!r}; expected taps in blocks, blk.*")
    names = [tap.name for tap in chosen]
    source = _trace(model, clean, names, "clean")
    if isinstance(corrupted, Trace):
        ids = _trace(model, corrupted, [], "corrupted").tokens
    else:
        if is_batch(corrupted):
            raise TypeError("corrupted is a batch; expected one prompt")
        ids = token_ids(corrupted, model.tokenizer, "corrupted")
    if len(source.tokens) != len(ids):
        raise ValueError(
            f"clean has {len(source.tokens)} tokens and corrupted {len(ids)}; expected equal "
            "numbers"
        )

    def edit(tap: str, **where: Any) -> Edit:
        return patch(tap, source, **where)

    return ablation_sweep(
        model, ids, names, metric, by=by, edit=edit, logits=logits, progress=progress
    )


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


# ---- running ----


@dataclasses.dataclass
class _Run:
    """One prompt with one list of edits.

    Attributes
    ----------
    place : int
        Where its result belongs.
    prompt : int
        The number of the prompt.
    program : Program or None
    layer, start, rows : int
        The first layer that runs, -1 for the embedding; the first position that runs; and the
        number of positions from there on.
    """

    place: int
    prompt: int
    program: Program | None
    layer: int
    start: int
    rows: int


@dataclasses.dataclass
class _Base:
    """One prompt without edits: what its runs share."""

    tokens: npt.NDArray[np.int32]
    session: _core.Session
    trace: Trace
    logits: Float32


def _measure(metric: Metric | None, logits: str) -> Metric:
    if not callable(metric):
        raise TypeError(f"metric is {metric!r}; expected a function of the logits")
    choice("logits", logits, ("last", "all"))
    return metric


def _can_start(model: Runner, layer: int) -> bool:
    """Whether a run can begin at a block, or behind all: it must read nothing else before it."""
    steps = list(model.steps)
    first = next(i for i, step in enumerate(steps) if step.layer == layer)
    if layer == model.config.layers:
        entries = [step.tap for step in steps if "resid_post" in step.roles][-1:]
    elif model.steps.has_role("resid_pre", layer):
        entries = list(model.steps[model.steps.role("resid_pre", layer)].reads)
    else:
        return False
    before = {step.tap for step in steps[:first]} - set(entries)
    return all(before.isdisjoint(step.reads) for step in steps[first:])


def _planned(
    startable: list[bool], program: Program | None, ids: npt.NDArray[np.int32]
) -> tuple[int, int, int]:
    """Check edits against a prompt, and find layer, start and rows of its `_Run`."""
    n, end = len(ids), len(startable) - 1
    taps = {} if program is None else program.taps
    layer = min((tap.layer for tap in taps.values()), default=end)
    while layer >= 0 and not startable[layer]:
        layer -= 1
    if program is None:  # nothing changes: the last row is enough
        return layer, n - 1, 1
    sites = program.sites(0, n, True)
    rows = [int(site.rows.min()) for found in sites.values() for site, _ in found]
    start = 0 if any(edit.needs_all for edit in program.edits) else min(rows, default=n - 1)
    return layer, start, n - start


def _base(
    model: Runner, ids: npt.NDArray[np.int32], runs: list[_Run], prompt: int, logits: str
) -> _Base:
    """Run a prompt once, and shorten its runs to what has to run again."""
    mine = [run for run in runs if run.prompt == prompt]
    streams = {_stream(model, run.layer) for run in mine if run.layer >= 0}
    session = _core.Session(model.core)
    rows = range(len(ids)) if logits == "all" else [len(ids) - 1]
    values, (trace,) = model.run([session], [ids], list(rows), model.layout(sorted(streams)))
    for run in mine:
        if 0 < run.start and run.layer < model.config.layers:
            fork = session.fork()
            kept = fork.rewind(run.start)  # a model with states may keep less
            run.start, run.rows = kept, len(ids) - kept
    return _Base(ids, session, trace, values)


def _stream(model: Runner, layer: int) -> str:
    if layer < model.config.layers:
        return model.steps.role("resid_pre", layer)
    return model.steps.role("resid_post", layer - 1)


def _execute(
    model: Runner,
    runs: list[_Run],
    bases: list[_Base],
    measure: Metric,
    results: Float64,
    progress: bool,
) -> None:
    """Run everything, several runs that begin at one layer together."""
    layers = model.config.layers
    total = sum(run.rows * (layers + 1 - max(run.layer, 0)) for run in runs)
    with Progress(total, "sweeping", progress) as bar:
        for part in _groups(runs):
            pieces = [bases[run.prompt] for run in part]
            sessions, edits, streams = [], [], []
            rows: list[int] = []
            at = 0
            for run, base in zip(part, pieces, strict=True):
                session = _core.Session(model.core)
                if run.start and run.layer < layers:
                    session = base.session.fork()
                    session.rewind(run.start)
                sessions.append(session)
                whole = run.start == 0
                found = run.program and run.program.sites(run.start, run.rows, whole)
                edits.append(found or {})
                if run.layer >= 0:
                    stream = base.trace[_stream(model, run.layer)]
                    streams.append(stream[run.start :])
                wanted = run.rows if len(base.logits) > 1 else 1
                rows += range(at + run.rows - wanted, at + run.rows)
                at += run.rows
            layer = part[0].layer
            values, _ = model.run(
                sessions,
                [base.tokens[run.start :] for run, base in zip(part, pieces, strict=True)],
                rows,
                None,
                edits,
                max(layer, 0),
                np.concatenate(streams) if streams else None,
            )
            at = 0
            for run, base in zip(part, pieces, strict=True):
                count = run.rows if len(base.logits) > 1 else 1
                own = values[at : at + count]
                at += count
                if len(own) < len(base.logits):  # rows before the first edit are as without
                    own = np.concatenate([base.logits[: len(base.logits) - len(own)], own])
                results[run.place] = measure(own)
            bar.add(sum(run.rows for run in part) * (layers + 1 - max(layer, 0)))


def _groups(runs: list[_Run]) -> Iterator[list[_Run]]:
    """Yield runs that begin at one layer, with at most `_ROWS` rows together."""
    part: list[_Run] = []
    for run in sorted(runs, key=lambda run: run.layer):
        rows = sum(each.rows for each in part) + run.rows
        if part and (run.layer != part[0].layer or rows > _ROWS):
            yield part
            part = []
        part.append(run)
    if part:
        yield part
