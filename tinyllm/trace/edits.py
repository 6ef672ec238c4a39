"""Edits: changing inner values while a model runs.

An edit names a tap (or a pattern over layers), what to do to it, and where: `at` selects tokens,
`head` selects heads. It changes what the next step reads, hence everything that follows and
nothing before. A list of edits is applied in order, to `Model.trace`, `Session.eval`,
`Model.generate` and `Model.run_from`; captured values are those after edits.

Tokens. ``at=None`` is every token of the call. A non-negative number is an absolute position in
the context; a negative one counts from the end of the call. A list gives several, a slice a
range. In a whole context (`Model.trace`) a position that is not there is an error. In a session,
and when generating, a context comes in several calls: there an edit does nothing in the calls
that do not hold its positions, so that ``at=7`` changes position 7 whenever it comes, and
``at=-1`` the last token of every call.

A token never sees the ones after it: entries of ``attn_scores`` and ``attn_probs`` beyond that
stay -inf and 0 whatever an edit writes there.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from types import EllipsisType
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from ..architectures.config import Config
from .taps import Capture, Floats, Tap, match
from .trace import Trace

__all__ = [
    "Edit",
    "Program",
    "add",
    "apply",
    "mean",
    "patch",
    "scale",
    "set",
    "zero",
]

#: What ``at=`` and ``head=`` take.
Where: TypeAlias = int | slice | Sequence[int] | npt.NDArray[np.integer[Any]] | None

#: From the selected values (a writable copy) and all rows of the piece to the new values; None:
#: changed in place.
Change: TypeAlias = Callable[[Floats, Floats], Any]


class Edit:
    """One change of one tap, or of several by a pattern.

    Made by `tinyllm.set`, `add`, `scale`, `zero`, `mean`, `apply` and `patch`. Immutable; may be
    used any number of times, with any model that has the tap.

    Examples
    --------
    >>> import tinyllm as tl
    >>> tl.zero("blk.5.attn_mix", head=3)
    tl.zero('blk.5.attn_mix', head=3)
    """

    def __init__(
        self,
        kind: str,
        tap: Capture,
        at: Where,
        head: Where,
        prepare: Callable[[Site], Change],
        shown: Any = ...,
    ) -> None:
        self.tap = tap
        self.at = _checked(kind, "at", at)
        self.head = _checked(kind, "head", head)
        #: checks the edit at one place and returns what to do there
        self.prepare = prepare
        arguments = [repr(tap)]
        if not isinstance(shown, EllipsisType):
            arguments.append(_short(shown))
        for name, value in (("at", at), ("head", head)):
            if value is not None:
                arguments.append(f"{name}={_short(value)}")
        self._text = f"tl.{kind}({', '.join(arguments)})"
        if tap is None:
            raise TypeError(f"{self._text}: tap is None; expected a name or a pattern")

    def __repr__(self) -> str:
        """Show the call that makes it."""
        return self._text


def _short(value: Any) -> str:
    if isinstance(value, np.ndarray) and value.size > 4:
        return f"<array {value.shape}>"
    if callable(value):
        return getattr(value, "__name__", type(value).__name__)
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _integers(value: Any) -> npt.NDArray[np.int64] | None:
    """A list of integers as an array; None if it is something else."""
    array = np.asarray(value)
    if array.ndim != 1 or not (np.issubdtype(array.dtype, np.integer) or array.size == 0):
        return None
    return array.astype(np.int64)


def _checked(kind: str, name: str, value: Any) -> Any:
    """`at` or `head` as None, an int, a slice or an int64 array."""
    if value is None or isinstance(value, slice):
        if isinstance(value, slice) and value.step not in (None, 1):
            raise ValueError(f"tl.{kind}: {name} is {value!r}; expected a slice of step 1")
        return value
    if hasattr(value, "__index__") and not isinstance(value, (bool, np.bool_)):
        return int(value)
    found = None if isinstance(value, (str, bytes)) else _integers(value)
    if found is None:
        raise TypeError(
            f"tl.{kind}: {name} is {value!r}; expected an integer, a list of integers or a slice"
        )
    return found


class Site:
    """One edit at one tap of one piece: which entries, and of what shape.

    Attributes
    ----------
    edit : Edit
    tap : Tap
    index : tuple
        Selects the entries in the piece's array; an integer drops its axis, as in NumPy.
    shape : tuple of int
        Of ``array[index]``.
    rows : numpy.ndarray of int64
        Rows of the piece that are selected.
    start, length, context : int
        Position of the piece's first token, its tokens, and those in its context.
    whole : bool
        Whether the piece is a whole context, so that a position outside is an error.
    chosen : numpy.ndarray of int64 or None
        If `at` is a list and not all of it is in this call: which entries are.
    """

    def __init__(
        self,
        edit: Edit,
        label: str,
        tap: Tap,
        config: Config,
        start: int,
        length: int,
        whole: bool,
        limit: int,
    ) -> None:
        self.edit = edit
        self.label = label
        self.tap = tap
        self.start = start
        self.length = length
        self.whole = whole
        self.context = start + length
        self.chosen: npt.NDArray[np.int64] | None = None
        self.full = tap.shape(config, length, self.context)
        rows = self._rows(limit)
        heads = self._heads()
        self.rows = np.atleast_1d(np.arange(length)[rows] if isinstance(rows, slice) else rows)
        self.index = _outer(rows, heads, tap)
        sizes = list(self.full)
        for axis, what in ((1 if tap.matrix else 0, rows), (tap.head_axis, heads)):
            if axis is not None:
                sizes[axis] = _count(what, self.full[axis])
        self.shape = tuple(size for size in sizes if size >= 0)
        self.row_axis = int(tap.matrix and not isinstance(heads, int))

    def fail(self, kind: type[Exception], message: str) -> Exception:
        """An exception that names the edit and the tap."""
        where = "" if self.tap.name == self.edit.tap else f" at {self.tap.name!r}"
        return kind(f"{self.label}{where}: {message}")

    def _rows(self, limit: int) -> Any:
        at, start, n = self.edit.at, self.start, self.length
        if at is None:
            return slice(None)
        if isinstance(at, slice):
            first, last, _ = slice(
                at.start if at.start is None or at.start < 0 else max(at.start - start, 0),
                at.stop if at.stop is None or at.stop < 0 else max(at.stop - start, 0),
            ).indices(n)
            return slice(first, max(first, last))
        positions = np.atleast_1d(at)
        rows = np.where(positions < 0, positions + n, positions - start)
        inside = (rows >= 0) & (rows < n)
        if self.whole and not inside.all():
            wrong = int(positions[~inside][0])
            raise self.fail(
                IndexError,
                f"token {wrong} is not in the call; expected {-n} to -1, or {start} to "
                f"{start + n - 1}",
            )
        if (positions >= limit).any():
            wrong = int(positions[positions >= limit][0])
            raise self.fail(IndexError, f"token {wrong} is beyond the context length of {limit}")
        if isinstance(at, int):
            return int(rows[0]) if inside[0] else np.empty(0, np.int64)
        if not inside.all():
            self.chosen = np.flatnonzero(inside)
        return rows[inside]

    def _heads(self) -> Any:
        head, axis = self.edit.head, self.tap.head_axis
        if head is None:
            return slice(None)
        if axis is None:
            raise self.fail(ValueError, f"head is {_short(head)}, and this tap has no heads")
        n = self.full[axis]
        if isinstance(head, slice):
            return slice(*head.indices(n)[:2])
        numbers = np.atleast_1d(head)
        if ((numbers < -n) | (numbers >= n)).any():
            raise self.fail(
                IndexError, f"head is {_short(head)}; expected {-n} to {n - 1}, for {n} heads"
            )
        return int(numbers[0]) % n if isinstance(head, int) else numbers % n

    def fit(self, values: Floats, name: str = "the value") -> Floats:
        """Broadcast values to the selected entries, or raise."""
        shape = self.shape
        if self.chosen is not None and isinstance(self.edit.at, np.ndarray):
            axis = self.row_axis
            whole = (*shape[:axis], len(self.edit.at), *shape[axis + 1 :])
            return self._broadcast(values, whole, name).take(self.chosen, axis=axis)
        return self._broadcast(values, shape, name)

    def _broadcast(self, values: Floats, shape: tuple[int, ...], name: str) -> Floats:
        try:
            return np.broadcast_to(values, shape)
        except ValueError:
            raise self.fail(
                ValueError,
                f"{name} has shape {values.shape}; expected {shape} or what broadcasts to it",
            ) from None


def _count(what: Any, size: int) -> int:
    """Entries that an index selects along an axis; -1 if it drops the axis."""
    if isinstance(what, int):
        return -1
    if isinstance(what, slice):
        return len(range(*what.indices(size)))
    return len(what)


def _outer(rows: Any, heads: Any, tap: Tap) -> tuple[Any, ...]:
    """Index rows and heads independently of each other."""
    if isinstance(rows, np.ndarray) and isinstance(heads, np.ndarray):
        if tap.matrix:
            heads = heads[:, np.newaxis]
        else:
            rows = rows[:, np.newaxis]
    if tap.head_axis is None:
        return (rows,)
    return (heads, rows) if tap.matrix else (rows, heads)


def _numbers(kind: str, value: Any) -> Floats:
    """An argument as float32."""
    try:
        array = np.asarray(value)
        if not (np.issubdtype(array.dtype, np.number) or array.dtype == bool):
            raise TypeError
        if np.iscomplexobj(array):
            raise TypeError
    except (TypeError, ValueError):
        raise TypeError(f"tl.{kind}: the value is {_short(value)}; expected real numbers") from None
    return np.array(array, np.float32)  # a copy: what the caller does to his later does not count


# ---- the kinds of edits: one function each ----


def set(tap: Capture, value: Any, *, at: Where = None, head: Where = None) -> Edit:
    """Write values.

    Parameters
    ----------
    tap : str, re.Pattern, callable or sequence of them
        The tap, or a pattern over several.
    value : array_like of float
        Broadcast to what `at` and `head` select of the tap, as in ``array[at, head] = value``.
        Rounded to float32.
    at : int, sequence of int or slice, optional
        Tokens: see `tinyllm.trace.edits`. None: all of the call.
    head : int, sequence of int or slice, optional
        Heads, of taps that have them. None: all.

    Returns
    -------
    Edit

    Raises
    ------
    TypeError
        `value` holds no real numbers, or `at` or `head` no integers. Everything else is checked
        against a model just before it runs, by an error that names the edit: ValueError (tap,
        shape) or IndexError (token, head).

    Examples
    --------
    >>> import tinyllm as tl
    >>> t = tl.load().trace("ROMEO:", edits=[tl.set("blk.0.resid_post", 1.0, at=0)])
    >>> float(t["blk.0.resid_post"][0].min())
    1.0
    """
    values = _numbers("set", value)

    def prepare(site: Site) -> Change:
        fitted = site.fit(values)
        return lambda region, piece: fitted

    return Edit("set", tap, at, head, prepare, value)


def add(tap: Capture, value: Any, *, at: Where = None, head: Where = None) -> Edit:
    """Add values, for example a steering direction.

    Turner et al. 2023, "Steering Language Models With Activation Engineering"
    (arXiv:2308.10248).

    Parameters
    ----------
    tap, value, at, head
        As for `tinyllm.set`.

    Returns
    -------
    Edit

    Examples
    --------
    >>> import tinyllm as tl
    >>> model = tl.load()
    >>> t = model.trace("ROMEO:", edits=[tl.add("blk.0.attn_q", 0.0)])
    >>> bool((t["output"] == model.trace("ROMEO:")["output"]).all())
    True
    """
    values = _numbers("add", value)

    def prepare(site: Site) -> Change:
        fitted = site.fit(values)
        return lambda region, piece: region + fitted

    return Edit("add", tap, at, head, prepare, value)


def scale(tap: Capture, factor: Any, *, at: Where = None, head: Where = None) -> Edit:
    """Multiply by a factor.

    Parameters
    ----------
    tap, at, head
        As for `tinyllm.set`.
    factor : array_like of float
        A number, or an array that broadcasts as in `tinyllm.set`.

    Returns
    -------
    Edit

    Examples
    --------
    >>> import tinyllm as tl
    >>> t = tl.load().trace("ROMEO:", edits=[tl.scale("blk.*.attn_output", 0.5)])
    """
    factors = _numbers("scale", factor)

    def prepare(site: Site) -> Change:
        fitted = site.fit(factors, "the factor")
        return lambda region, piece: region * fitted

    return Edit("scale", tap, at, head, prepare, factor)


def zero(tap: Capture, *, at: Where = None, head: Where = None) -> Edit:
    """Write zeros: knock a head or a layer out.

    Parameters
    ----------
    tap, at, head
        As for `tinyllm.set`.

    Returns
    -------
    Edit

    Examples
    --------
    >>> import tinyllm as tl
    >>> t = tl.load().trace("ROMEO:", edits=[tl.zero("blk.0.attn_mix", head=1)])
    >>> float(abs(t["blk.0.attn_mix"][:, 1]).max())
    0.0
    """

    def prepare(site: Site) -> Change:
        return lambda region, piece: np.zeros(site.shape, np.float32)

    return Edit("zero", tap, at, head, prepare)


def mean(tap: Capture, over: Trace | None = None, *, at: Where = None, head: Where = None) -> Edit:
    """Replace values by their mean over tokens: a gentler knock-out than `tinyllm.zero`.

    Wang et al. 2022, "Interpretability in the Wild" (arXiv:2211.00593), section 2.1, on why
    means rather than zeros.

    Parameters
    ----------
    tap, at, head
        As for `tinyllm.set`; not ``attn_scores`` or ``attn_probs``, whose rows are of different
        lengths.
    over : Trace, optional
        The mean over its tokens. None: over the tokens of the call, `at` or not; of a batch,
        each prompt has its own mean.

    Returns
    -------
    Edit

    Examples
    --------
    >>> import numpy as np, tinyllm as tl
    >>> t = tl.load().trace("ROMEO:", edits=[tl.mean("blk.0.ffn_down")])
    >>> rows = t["blk.0.ffn_down"]
    >>> bool((rows == rows[0]).all())
    True
    """
    if over is not None and not isinstance(over, Trace):
        raise TypeError(f"tl.mean: over is {_short(over)}; expected a Trace or None")

    def prepare(site: Site) -> Change:
        if site.tap.matrix:
            raise site.fail(ValueError, "rows of attention matrices have no mean over tokens")
        heads = site.index[1:]

        def average(rows: Floats) -> Floats:
            whole = rows.mean(axis=0, dtype=np.float64).astype(np.float32)
            picked = whole[heads[0].reshape(-1)] if _is_array(heads) else whole[heads]
            return site.fit(np.asarray(picked))

        if over is None:
            return lambda region, piece: average(piece)
        rows = _tap_of(site, over)
        if rows.shape[1:] != site.full[1:]:
            raise site.fail(
                ValueError,
                f"the trace has shape {rows.shape} there; expected (tokens, "
                + ", ".join(map(str, site.full[1:]))
                + ")",
            )
        fixed = average(rows)
        return lambda region, piece: fixed

    return Edit("mean", tap, at, head, prepare, ... if over is None else over)


def _is_array(heads: tuple[Any, ...]) -> bool:
    return bool(heads) and isinstance(heads[0], np.ndarray)


def _tap_of(site: Site, trace: Trace) -> Floats:
    if site.tap.name not in trace:
        raise site.fail(ValueError, "the trace has not captured this tap")
    array: Floats = trace[site.tap.name]
    return array


def apply(
    tap: Capture, function: Callable[..., Any], *, at: Where = None, head: Where = None
) -> Edit:
    """Call a function with the values.

    Parameters
    ----------
    tap, at, head
        As for `tinyllm.set`.
    function : callable
        ``function(array, name)``, or ``function(array)`` if it takes one argument (NumPy's
        ``tanh`` does). The array is a writable float32 copy of what `at` and `head` select of
        one prompt; `name` is the tap's. It changes the array in place and returns None, or
        returns the new values. Called once per tap and call, on the calling thread, in the order
        in which the values come to be; it may use the model. What it raises ends the run and
        comes out unchanged; a session is then as before the call.

    Returns
    -------
    Edit

    Examples
    --------
    >>> import numpy as np, tinyllm as tl
    >>> t = tl.load().trace("ROMEO:", edits=[tl.apply("blk.0.ffn_act", np.tanh)])
    >>> bool(abs(t["blk.0.ffn_act"]).max() <= 1)
    True
    """
    if not callable(function):
        raise TypeError(f"tl.apply: function is {_short(function)}; expected a function")
    takes_name = _takes_two(function)

    def prepare(site: Site) -> Change:
        name = site.tap.name

        def change(region: Floats, piece: Floats) -> Any:
            result = function(region, name) if takes_name else function(region)
            if result is None:
                return None
            try:
                values = np.asarray(result, np.float32)
            except (TypeError, ValueError):
                raise site.fail(
                    TypeError, f"the function returned {_short(result)}; expected real numbers"
                ) from None
            return site._broadcast(values, region.shape, "what the function returned")

        return change

    return Edit("apply", tap, at, head, prepare, function)


def _takes_two(function: Callable[..., Any]) -> bool:
    if isinstance(function, np.ufunc):
        return False
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return False
    places = 0
    for parameter in parameters:
        if parameter.kind is parameter.VAR_POSITIONAL:
            return True
        if parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD):
            if parameter.default is not parameter.empty and places >= 1:
                continue  # an optional second argument is the function's own
            places += 1
    return places >= 2


def patch(tap: Capture, trace: Trace, *, at: Where = None, head: Where = None) -> Edit:
    """Copy values from another run: activation patching.

    Meng et al. 2022, "Locating and Editing Factual Associations in GPT" (arXiv:2202.05262,
    causal tracing); Zhang & Nanda 2023 (arXiv:2309.16042) on how to do it well.

    Parameters
    ----------
    tap, head
        As for `tinyllm.set`.
    trace : Trace
        Where the values come from. It must have captured the tap.
    at : int, sequence of int or slice, optional
        Tokens. A non-negative position is the same in both runs; a negative one counts from the
        end of each, so that ``at=-1`` puts the trace's last token at the last of the call. With
        None the trace must hold every position of the call, except in a session and when
        generating: there, positions that the trace does not hold are left alone.

    Returns
    -------
    Edit

    Examples
    --------
    >>> import tinyllm as tl
    >>> model = tl.load()
    >>> clean = model.trace("ROMEO:")
    >>> t = model.trace("JULIE:", edits=[tl.patch("blk.*.resid_post", clean, at=-1)])
    >>> bool((t["output"][-1] == clean["output"][-1]).all())
    True
    """
    if not isinstance(trace, Trace):
        raise TypeError(f"tl.patch: trace is {_short(trace)}; expected a Trace")
    return Edit("patch", tap, at, head, lambda site: _patched(site, trace), trace)


def _patched(site: Site, trace: Trace) -> Change:
    theirs = _tap_of(site, trace)
    tap, axis, n = site.tap, 1 if site.tap.matrix else 0, len(trace.tokens)
    want = tuple(size for i, size in enumerate(site.full) if i != axis)
    have = tuple(size for i, size in enumerate(theirs.shape) if i != axis)
    if want != have:
        raise site.fail(
            ValueError,
            f"the trace has shape {theirs.shape} there, the run {site.full}; "
            "all axes but the tokens must be equal",
        )
    at = site.edit.at
    if isinstance(at, (int, np.ndarray)):
        positions = np.atleast_1d(at)
        if site.chosen is not None:
            positions = positions[site.chosen]
        rows = np.where(positions < 0, positions + n, positions - trace.start)
        rows = rows[: len(site.rows)]  # none of them if a single one is not in this call
    else:
        rows = site.rows + site.start - trace.start
        if isinstance(at, slice) and (at.start or 0) < 0:  # counted from the end of each
            rows = site.rows - site.length + n
    inside = (rows >= 0) & (rows < n)
    if not inside.all() and (at is not None or site.whole):
        wrong = int(site.rows[~inside][0]) + site.start
        raise site.fail(
            IndexError,
            f"the trace holds positions {trace.start} to {trace.start + n - 1}, "
            f"the run wants {wrong}; choose with at=",
        )
    heads = site.index[0] if tap.matrix else (site.index[1] if tap.head_axis else slice(None))
    if isinstance(heads, np.ndarray):
        heads = heads.reshape(-1)
    chosen = rows[inside]
    source = theirs.take(chosen, axis=axis)
    if tap.head_axis is not None:
        source = source[heads] if tap.matrix else source[:, heads]
    if isinstance(at, int):
        one = np.asarray(source.take(0, axis=site.row_axis)) if len(chosen) else source
        return lambda region, piece: one
    places = np.flatnonzero(inside)

    def change(region: Floats, piece: Floats) -> None:
        if site.row_axis:
            region[:, places] = source
        else:
            region[places] = source

    return change


# ---- running them ----


class Program:
    """Edits, ready to run on one model.

    Parameters
    ----------
    config : Config
    taps : sequence of Tap
        All of the model.
    edits : Edit or sequence of Edit
    limit : int
        The longest context.

    Raises
    ------
    TypeError, ValueError
        Something is no edit, or there is no such tap.
    """

    def __init__(self, config: Config, taps: Sequence[Tap], edits: Any, limit: int) -> None:
        self._config = config
        self._limit = limit
        self._rows: list[tuple[Edit, str, list[Tap]]] = []
        names = [tap.name for tap in taps]
        by_name = {tap.name: tap for tap in taps}
        try:
            given = [edits] if isinstance(edits, Edit) else list(edits or ())
        except TypeError:
            raise TypeError(f"edits is {_short(edits)}; expected a list of edits") from None
        for i, edit in enumerate(given):
            if not isinstance(edit, Edit):
                raise TypeError(
                    f"edits[{i}] is {_short(edit)}; expected an edit: tl.set, tl.add, tl.scale, "
                    "tl.zero, tl.mean, tl.apply or tl.patch"
                )
            label = f"edits[{i}], {edit!r}"
            try:
                found = match(names, edit.tap, "tap")
            except (TypeError, ValueError) as error:
                raise type(error)(f"{label}: {error}") from None
            self._rows.append((edit, label, [by_name[name] for name in found]))

    def __bool__(self) -> bool:
        return bool(self._rows)

    @property
    def taps(self) -> dict[str, Tap]:
        """Every tap that an edit names."""
        return {tap.name: tap for _, _, found in self._rows for tap in found}

    def sites(self, start: int, length: int, whole: bool) -> Sites:
        """What to do in one piece: checks every edit.

        Parameters
        ----------
        start, length : int
            Position of the piece's first token, and its tokens.
        whole : bool
            Whether the piece is a whole context, so that a position outside is an error.
        """
        sites: Sites = {}
        for edit, label, found in self._rows:
            for tap in found:
                site = Site(edit, label, tap, self._config, start, length, whole, self._limit)
                change = edit.prepare(site)
                if 0 not in site.shape:
                    sites.setdefault((tap.index, tap.layer), []).append((site, change))
        return sites


#: (tap, layer) -> what to do there, in order.
Sites: TypeAlias = dict[tuple[int, int], list[tuple[Site, Change]]]


class Dispatcher:
    """What the core calls at an edited tap.

    Parameters
    ----------
    pieces : sequence of Sites
        For each piece of the call.
    lengths : sequence of int
        Tokens of each piece.
    """

    def __init__(self, pieces: Sequence[Sites], lengths: Sequence[int]) -> None:
        self._pieces = pieces
        ends = np.cumsum(lengths)
        self._spans = [slice(int(e) - n, int(e)) for e, n in zip(ends, lengths, strict=True)]
        #: what `_core.Model.forward` takes
        self.edits = tuple(sorted({key for sites in pieces for key in sites}))

    def __call__(self, tap: int, layer: int, array: Floats, piece: int) -> None:
        """Change `array` in place."""
        if piece >= 0:
            self._run(self._pieces[piece].get((tap, layer), ()), array)
            return
        for sites, span in zip(self._pieces, self._spans, strict=True):
            self._run(sites.get((tap, layer), ()), array[span])

    def _run(self, work: Sequence[tuple[Site, Change]], array: Floats) -> None:
        for site, change in work:
            region = np.array(array[site.index])
            result = change(region, array)
            array[site.index] = region if result is None else result
        if work and work[0][0].tap.matrix:
            site = work[0][0]
            hidden = np.arange(site.context) > np.arange(site.start, site.context)[:, np.newaxis]
            array[:, hidden] = -np.inf if site.tap.family == "attn_scores" else 0.0
