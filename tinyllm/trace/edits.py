"""Edits: changing inner values while a model runs.

An edit has a tap (or a pattern of taps), a change, and a place: `at` selects tokens, `head` heads,
and `index` entries of the last axis: neurons or dimensions. It changes the input of the
steps that follow, and nothing before. `Model.trace`, `Session.eval`, `Model.generate` and
`Model.run_from` take a list of edits and apply them in order.
Captured values are those after the edits.

``at=None`` selects every token of the call. A non-negative number is an absolute position in the
context. A negative number counts from the end of the call. A list selects several tokens, a slice a
range. In `Model.trace`, a position outside the context is an error; of a slice, only the first is
checked. A session, or a generation, runs its context in several calls. There, an edit does nothing
in a call that does not have its positions. So ``at=7`` changes position 7 in the call that has it,
and ``at=-1`` changes the last token of every call.

Masked entries of ``attn_scores`` and ``attn_probs``, those of later tokens, stay -inf and 0
whatever an edit writes there. ``-inf`` in ``attn_scores`` hides a token. An edit that writes NaN,
or infinity elsewhere, where the values were finite causes a RuntimeWarning that names it.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from types import EllipsisType
from typing import Any

import numpy as np
import numpy.typing as npt

from ..base.checks import is_integer
from ..base.numeric import Float32
from .site import Change, Site, Where, shown_value
from .taps import Capture
from .trace import Trace

__all__ = [
    "Edit",
    "add",
    "apply",
    "mean",
    "patch",
    "scale",
    "set",
    "zero",
]


class Edit:
    """A change of one tap, or of all taps that match a pattern.

    Edits are made by `tinyllm.set`, `add`, `scale`, `zero`, `mean`, `apply` and `patch`. They are
    immutable, and can be used any number of times with any model that has the tap.

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
        index: Where,
        prepare: Callable[[Site], Change],
        shown: Any = ...,
        value: Any = ...,
    ) -> None:
        self._kind = kind
        self._value = shown if isinstance(value, EllipsisType) else value  # a copy of `shown`
        self.tap = tap
        self.at = _checked(kind, "at", at)
        self.head = _checked(kind, "head", head)
        self.index = _checked(kind, "index", index)
        #: checks the edit at one site and returns the change
        self.prepare = prepare
        arguments = [repr(tap)]
        if not isinstance(shown, EllipsisType):
            arguments.append(shown_value(shown))
        for name, value in (("at", at), ("head", head), ("index", index)):
            if value is not None:
                arguments.append(f"{name}={shown_value(value)}")
        self._text = f"tl.{kind}({', '.join(arguments)})"
        if tap is None:
            raise TypeError(f"{self._text}: tap is None; expected a name or a pattern")

    @property
    def kind(self) -> str:
        """The name of the function that makes the edit."""
        return self._kind

    @property
    def value(self) -> Any:
        """What the edit writes, adds or multiplies with; None if it needs nothing."""
        return None if isinstance(self._value, EllipsisType) else self._value

    @property
    def needs_all(self) -> bool:
        """Whether the edit depends on all tokens of the call, whatever `at` is."""
        return self._kind == "mean" and isinstance(self._value, EllipsisType)

    def __repr__(self) -> str:
        """Return the call that makes the edit."""
        return self._text

    def __reduce__(self) -> tuple[Callable[..., Edit], tuple[Any, ...]]:
        """Pickle the call that makes the edit."""
        given = () if isinstance(self._value, EllipsisType) else (self._value,)
        for function in (self.tap, *given):
            if callable(function):
                _need_pickle(function, self._text)
        where = (self.at, self.head, self.index)
        return _again, (self._kind, (self.tap, *given), where, self._text)

    def __copy__(self) -> Edit:
        return self  # immutable

    def __deepcopy__(self, memo: object) -> Edit:
        return self


def _again(kind: str, given: tuple[Any, ...], where: tuple[Any, ...], text: str) -> Edit:
    """Return an edit that was pickled."""
    kinds: tuple[Callable[..., Edit], ...] = (set, add, scale, zero, mean, apply, patch)
    at, head, index = where
    make = next(make for make in kinds if make.__name__ == kind)
    made = make(*given, at=at, head=head, index=index)
    made._text = text
    return made


def _need_pickle(function: Callable[..., Any], text: str) -> None:
    import pickle

    try:
        pickle.dumps(function)
    except Exception as error:
        raise TypeError(
            f"{text} cannot be pickled, because of its function: {error}. Functions are pickled "
            "by name, so it must be defined by `def` at the top level of a module"
        ) from None


def _integers(value: Any) -> npt.NDArray[np.int64] | None:
    """Return a list of integers as an array, or None if it is something else."""
    array = np.asarray(value)
    if array.dtype == object:  # an array of Python's ints
        array = np.asarray(array.tolist())
    if array.ndim != 1 or not (np.issubdtype(array.dtype, np.integer) or array.size == 0):
        return None
    return array.astype(np.int64)


def _checked(kind: str, name: str, value: Any) -> Any:
    """Return `at`, `head` or `index` as None, an int, a slice or an int64 array."""
    if value is None or isinstance(value, slice):
        if isinstance(value, slice) and value.step not in (None, 1):
            raise ValueError(f"tl.{kind}: {name} is {value!r}; expected a slice of step 1")
        return value
    if is_integer(value):
        return int(value)
    found = None if isinstance(value, (str, bytes)) else _integers(value)
    if found is None:
        raise TypeError(
            f"tl.{kind}: {name} is {value!r}; expected an integer, a list of integers or a slice"
        )
    return found


def _numbers(kind: str, value: Any) -> Float32:
    """Return an argument as a float32 array."""
    try:
        array = np.asarray(value)
        if not (np.issubdtype(array.dtype, np.number) or array.dtype == bool):
            raise TypeError
        if np.iscomplexobj(array):
            raise TypeError
    except (TypeError, ValueError):
        raise TypeError(
            f"tl.{kind}: the value is {shown_value(value)}; expected real numbers"
        ) from None
    with np.errstate(over="ignore"):
        values = np.array(array, np.float32)  # a copy: the caller may change the argument later
    if np.isnan(values).any():
        raise ValueError(
            f"tl.{kind}: the value is {shown_value(value)}, which holds NaN; expected numbers "
            "(tl.apply can write NaN)"
        )
    if (np.isinf(values) & np.isfinite(array)).any():
        raise ValueError(
            f"tl.{kind}: the value is {shown_value(value)}; expected numbers that float32 holds"
        )
    return values


# ---- the kinds of edits: one function each ----


def set(
    tap: Capture, value: Any, *, at: Where = None, head: Where = None, index: Where = None
) -> Edit:
    """Replace values.

    Parameters
    ----------
    tap : str, re.Pattern, callable or sequence of them
        A tap, or a pattern of taps.
    value : array_like of float
        The new values, rounded to float32. They are broadcast to the entries that `at`, `head`
        and `index` select, as in ``array[at, head, index] = value``.
    at : int, sequence of int or slice, optional
        Tokens: see `tinyllm.trace.edits`. None: all of the call.
    head : int, sequence of int or slice, optional
        Heads, of taps that have them. None: all.
    index : int, sequence of int or slice, optional
        Entries of the last axis, of taps of width F, D or Dh: neurons of ``ffn_act``, dimensions of
        a residual stream or of a head. None: all. Negative values count from the end.

    Returns
    -------
    Edit

    Raises
    ------
    TypeError
        `value` holds no real numbers, or `at`, `head` or `index` no integers. Everything else is
        checked against a model just before it runs, by an error that names the edit: ValueError
        (tap, shape) or IndexError (token, head, index).
    ValueError
        `value` holds NaN, or a number that float32 does not hold.

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

    return Edit("set", tap, at, head, index, prepare, value, values)


def add(
    tap: Capture, value: Any, *, at: Where = None, head: Where = None, index: Where = None
) -> Edit:
    """Add values, for example a steering direction.

    Turner et al. 2023, "Steering Language Models With Activation Engineering"
    (arXiv:2308.10248).

    Parameters
    ----------
    tap, value, at, head, index
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
        return lambda region, piece: _quietly(np.add, region, fitted)

    return Edit("add", tap, at, head, index, prepare, value, values)


def _quietly(function: np.ufunc, a: Float32, b: Float32) -> Any:
    """Return ``function(a, b)`` without NumPy's warnings: edits have one of their own."""
    with np.errstate(over="ignore", invalid="ignore"):
        return function(a, b)


def scale(
    tap: Capture, factor: Any, *, at: Where = None, head: Where = None, index: Where = None
) -> Edit:
    """Multiply values by a factor.

    Parameters
    ----------
    tap, at, head, index
        As for `tinyllm.set`.
    factor : array_like of float
        A number, or an array that is broadcast as in `tinyllm.set`.

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
        return lambda region, piece: _quietly(np.multiply, region, fitted)

    return Edit("scale", tap, at, head, index, prepare, factor, factors)


def zero(tap: Capture, *, at: Where = None, head: Where = None, index: Where = None) -> Edit:
    """Replace values by zeros, to ablate a neuron, a head or a layer.

    Parameters
    ----------
    tap, at, head, index
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
    >>> t = tl.load().trace("ROMEO:", edits=[tl.zero("blk.0.ffn_act", index=[7, 9])])
    >>> float(abs(t["blk.0.ffn_act"][:, [7, 9]]).max())
    0.0
    """

    def prepare(site: Site) -> Change:
        return lambda region, piece: np.zeros(site.shape, np.float32)

    return Edit("zero", tap, at, head, index, prepare)


def mean(
    tap: Capture,
    over: Trace | Sequence[Trace] | None = None,
    *,
    at: Where = None,
    head: Where = None,
    index: Where = None,
) -> Edit:
    """Replace values by their mean over tokens (mean ablation).

    It disturbs the model less than `tinyllm.zero`: see Wang et al. 2022, "Interpretability in the
    Wild" (arXiv:2211.00593), section 2.1.

    Parameters
    ----------
    tap, at, head, index
        As for `tinyllm.set`. ``attn_scores`` and ``attn_probs`` have no mean over tokens.
    over : Trace or sequence of Trace, optional
        The traces whose tokens are averaged; each token has the same weight. Default: all tokens
        of the call, whatever `at` is. In a batch, each prompt has its own mean.

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
    traces = _traces(over)

    def prepare(site: Site) -> Change:
        if site.tap.matrix:
            raise site.fail(
                ValueError, "attention matrices have no mean over tokens; expected another tap"
            )

        def average(rows: Float32) -> Float32:
            whole = rows.mean(axis=0, dtype=np.float64).astype(np.float32)
            return site.fit(np.asarray(site.picked(whole)))

        if traces is None:
            return lambda region, piece: average(piece)
        fixed = average(_rows_of(site, traces))
        return lambda region, piece: fixed

    return Edit("mean", tap, at, head, index, prepare, ... if over is None else over)


def _traces(over: Any) -> list[Trace] | None:
    """Return the traces of ``tl.mean(over=)``."""
    if over is None:
        return None
    found = [over] if isinstance(over, Trace) else over
    if not isinstance(found, Sequence) or not all(isinstance(each, Trace) for each in found):
        raise TypeError(
            f"tl.mean: over is {shown_value(over)}; expected a Trace, a list of traces or None"
        )
    return list(found)


def _rows_of(site: Site, traces: list[Trace]) -> Float32:
    """Return the values of a tap at all tokens of some traces."""
    parts = [_tap_of(site, trace) for trace in traces]
    for rows in parts:
        if rows.shape[1:] != site.full[1:]:
            raise site.fail(
                ValueError,
                f"over has shape {rows.shape} at this tap; expected (tokens, "
                + ", ".join(map(str, site.full[1:]))
                + ")",
            )
    if not sum(map(len, parts)):
        raise site.fail(ValueError, "over has no tokens; expected at least one")
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _tap_of(site: Site, trace: Trace) -> Float32:
    if site.tap.name not in trace:
        raise site.fail(ValueError, "the trace does not have this tap; capture it")
    array: Float32 = trace[site.tap.name]
    return array


def apply(
    tap: Capture,
    function: Callable[..., Any],
    *,
    at: Where = None,
    head: Where = None,
    index: Where = None,
) -> Edit:
    """Apply a function to values.

    Parameters
    ----------
    tap, at, head, index
        As for `tinyllm.set`.
    function : callable
        ``function(array, name)``, or ``function(array)`` if it takes one argument, such as
        ``numpy.tanh``. `array` is a writable float32 copy of the entries that the
        edit selects in one prompt, and `name` is the name of the tap. The function returns the new
        values, or changes the array in place and returns None. It is called on the calling
        thread, once for each tap and prompt of a call, in the order of the forward pass. It may
        use the model. If it raises, the run ends, the exception propagates unchanged, and a
        session is as before the call.

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
        raise TypeError(f"tl.apply: function is {shown_value(function)}; expected a function")
    takes_name = _takes_two(function)

    def prepare(site: Site) -> Change:
        name = site.tap.name

        def change(region: Float32, piece: Float32) -> Any:
            result = function(region, name) if takes_name else function(region)
            if result is None:
                return None
            try:
                values = np.asarray(result, np.float32)
            except (TypeError, ValueError):
                raise site.fail(
                    TypeError, f"function returned {shown_value(result)}; expected real numbers"
                ) from None
            return site._broadcast(values, region.shape, "the array that function returned")

        return change

    return Edit("apply", tap, at, head, index, prepare, function)


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
                continue  # an optional second argument is not for the name
            places += 1
    return places >= 2


def patch(
    tap: Capture, trace: Trace, *, at: Where = None, head: Where = None, index: Where = None
) -> Edit:
    """Copy values from another run: activation patching.

    Causal tracing: Meng et al. 2022, "Locating and Editing Factual Associations in GPT"
    (arXiv:2202.05262). Best practices: Zhang & Nanda 2023 (arXiv:2309.16042).

    Parameters
    ----------
    tap, head, index
        As for `tinyllm.set`.
    trace : Trace
        The run to copy from. It must have captured the tap.
    at : int, sequence of int or slice, optional
        Tokens. A non-negative position is the same in both runs. A negative one counts from the
        end of each: ``at=-1`` copies the trace's last token to the last token of the call. With
        None, the trace must have the positions of the call and no others. A session or a
        generation runs its context in several calls. There the trace must have all positions of
        a call, or none of them; then the call is left unchanged.

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
        raise TypeError(f"tl.patch: trace is {shown_value(trace)}; expected a Trace")
    return Edit("patch", tap, at, head, index, lambda site: _patched(site, trace), trace)


def _span(trace: Trace) -> str:
    n = len(trace.tokens)
    return f"positions {trace.start} to {trace.start + n - 1}" if n else "no positions"


def _patched(site: Site, trace: Trace) -> Change:
    theirs = _tap_of(site, trace)
    axis, n = 1 if site.tap.matrix else 0, len(trace.tokens)
    want = tuple(size for i, size in enumerate(site.full) if i != axis)
    have = tuple(size for i, size in enumerate(theirs.shape) if i != axis)
    if want != have:
        raise site.fail(
            ValueError,
            f"trace has shape {theirs.shape} at this tap; expected {site.full}, apart from axis "
            f"{axis}, the tokens",
        )
    at = site.at
    if isinstance(at, (int, np.ndarray)):
        positions = np.atleast_1d(at)
        if site.chosen is not None:
            positions = positions[site.chosen]
        rows = np.where(positions < 0, positions + n, positions - trace.start)
        rows = rows[: len(site.rows)]  # empty if a single position is not in this call
    else:
        rows = site.rows + site.start - trace.start
        if isinstance(at, slice) and (at.start or 0) < 0:  # counts from the end of each run
            rows = site.rows - site.length + n
    inside = (rows >= 0) & (rows < n)
    if not inside.all() and (at is not None or site.whole or inside.any()):
        wrong = int(site.rows[~inside][0]) + site.start
        raise site.fail(
            IndexError,
            f"trace has {_span(trace)}; expected position {wrong}, too. Select fewer positions "
            "with at=",
        )
    if at is None and site.whole and n > len(rows):
        raise site.fail(
            IndexError,
            f"trace has {_span(trace)}; expected the positions of the call, {site.start} to "
            f"{site.context - 1}. at= selects some of them",
        )
    chosen = rows[inside]
    source = site.picked(theirs.take(chosen, axis=axis))
    if isinstance(at, int):
        one = np.asarray(source.take(0, axis=site.row_axis)) if len(chosen) else source
        return lambda region, piece: one
    places = np.flatnonzero(inside)

    def change(region: Float32, piece: Float32) -> None:
        if site.row_axis:
            region[:, places] = source
        else:
            region[places] = source

    return change
