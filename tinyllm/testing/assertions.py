"""`assert_same`: an assertion whose message says where an engine parts from the model."""

from __future__ import annotations

from typing import Any

from ..comparison.diff import diff
from ..comparison.read import Dump, read
from ..diagnosis.doctor import doctor
from ..model import Model
from ..trace.taps import Capture, match
from ..trace.trace import Trace

__all__ = ["assert_same"]


def assert_same(
    expected: Model | Trace | Any,
    dump: Any,
    taps: Capture = "*",
    tol: float | None = None,
    *,
    tokens: Any = None,
    dialect: Any = None,
) -> None:
    """Raise AssertionError if the values of an engine are not those of a model.

    Parameters
    ----------
    expected : Model, Trace, or anything that `tinyllm.read` takes
        A model runs the tokens of the dump.
    dump : anything that `tinyllm.read` takes
        The values of the engine: a path, or arrays by name.
    taps : str, re.Pattern, callable, or sequence of them
        The taps to compare, as in ``capture=``.
    tol : float, optional
        As `tolerance` of `tinyllm.diff`, which follows from the data by default.
    tokens : str, bytes or ids, optional
        What the engine ran, if the dump does not say it.
    dialect
        As in `tinyllm.read`.

    Raises
    ------
    AssertionError
        If they part, with a table of the taps around the first difference, and, if the doctor
        knows the mistake, its name and its repair.
    ValueError
        If no value can be compared.

    Examples
    --------
    >>> import tinyllm as tl
    >>> model = tl.load()
    >>> logits = model.logits("ROMEO:")
    >>> tl.testing.assert_same(model, {"logits": logits}, tokens="ROMEO:")
    >>> tl.testing.assert_same(model, {"logits": 2 * logits}, tokens="ROMEO:")
    Traceback (most recent call last):
    AssertionError: the values part from the model's
    """
    __tracebackhide__ = True
    model = expected if isinstance(expected, Model) else getattr(expected, "model", None)
    values = read(dump, dialect, tokens, model=model)
    names = match([*values, *getattr(values, "tails", {})], taps, "taps")
    if isinstance(values, Dump):
        chosen: Trace = values.only(names)
    else:
        chosen = values.copy([name for name in names if name in values])
    found = diff(expected, chosen, tol, dialect=dialect, tokens=tokens, model=model)
    if not found.same:
        raise AssertionError(f"the values part from the model's\n{found}{_mistake(model, values)}")


def _mistake(model: Model | None, values: Trace) -> str:
    """Return what the doctor says about the values of an engine, or ``""``."""
    if model is None or (values.tokens < 0).any():
        return ""
    faults = doctor(model, values, progress=False).faults
    if not faults:
        return ""
    best = faults[0]
    return f"\nlikely {best.name}: {best.message} {best.repair}"
