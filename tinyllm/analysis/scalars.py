"""Numbers of a run whose gradients can be taken: logits, log-probabilities, losses, values."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from ..base.checks import is_integer
from ..base.numeric import Float32, Float64
from ..runtime.runner import Runner
from ..trace.trace import Trace
from .inputs import token_id

__all__ = ["Objective", "Scalar", "Seeds", "evaluate", "logit", "logprob", "nll", "tap_value"]

#: The derivatives of a number by the values of taps, by their names.
Seeds: TypeAlias = dict[str, Float32]

#: The argument ``of=``: a `Scalar`, or a function of the logits that returns its value and its
#: gradient.
Objective: TypeAlias = "Scalar | Callable[[Float32], tuple[float, npt.ArrayLike]]"


class _Term(Protocol):
    """A number of a run."""

    def taps(self, model: Runner) -> list[str]:
        """Return the taps that the number depends on directly."""

    def run(self, model: Runner, trace: Trace) -> tuple[float, Seeds]:
        """Return the number, and its derivatives by these taps."""


class Scalar:
    """A number that a run gives, such as a logit: something to take gradients of.

    `tinyllm.logit`, `logprob`, `nll` and `tap_value` make scalars. Sums, differences and multiples
    of scalars are scalars.

    Examples
    --------
    >>> import tinyllm as tl
    >>> tl.logit(5) - 0.5 * tl.logit(6)
    logit(5) - 0.5 * logit(6)
    """

    def __init__(self, terms: Sequence[tuple[float, str, _Term]]) -> None:
        self._terms = tuple(terms)

    def __add__(self, other: Any) -> Scalar:
        """Return the sum of two scalars."""
        if not isinstance(other, Scalar):
            return NotImplemented
        return Scalar(self._terms + other._terms)

    def __mul__(self, factor: Any) -> Scalar:
        """Return a multiple of the scalar."""
        try:
            number = float(factor)
        except (TypeError, ValueError):
            return NotImplemented
        return Scalar([(number * f, text, term) for f, text, term in self._terms])

    __rmul__ = __mul__

    def __neg__(self) -> Scalar:
        """Return the scalar with the opposite sign."""
        return self * -1.0

    def __sub__(self, other: Any) -> Scalar:
        """Return the difference of two scalars."""
        return self + -other if isinstance(other, Scalar) else NotImplemented

    def __repr__(self) -> str:
        """Return the sum of its terms."""
        text = ""
        for factor, name, _ in self._terms:
            sign = ("-" if factor < 0 else "") if not text else (" - " if factor < 0 else " + ")
            text += sign + (f"{abs(factor):g} * " if abs(factor) != 1 else "") + name
        return text

    def taps(self, model: Runner) -> list[str]:
        """Return the taps that the scalar depends on directly."""
        return sorted({name for _, _, term in self._terms for name in term.taps(model)})

    def run(self, model: Runner, trace: Trace) -> tuple[float, Seeds]:
        """Return the value in a run, and its derivatives by the taps of `taps`."""
        total = 0.0
        seeds: Seeds = {}
        for factor, _, term in self._terms:
            value, parts = term.run(model, trace)
            total += factor * value
            for name, part in parts.items():
                scaled = np.float32(factor) * part
                seeds[name] = seeds[name] + scaled if name in seeds else scaled
        return total, seeds


def _logits(model: Runner) -> str:
    model.need_logits()
    return model.steps[-1].tap


def _row(at: Any, n: int) -> int:
    if not is_integer(at):
        raise TypeError(f"at is {at!r}; expected the index of a token")
    if not -n <= at < n:
        raise IndexError(f"at is {at}; expected {-n} to {n - 1}")
    return int(at) % n


def _log_softmax(logits: Float32) -> Float64:
    x = logits.astype(np.float64)
    x -= x.max(axis=-1, keepdims=True)
    y: Float64 = x - np.log(np.exp(x).sum(axis=-1, keepdims=True))
    return y


class _Logit:
    """A logit, or its log-probability."""

    def __init__(self, token: Any, at: Any, log: bool) -> None:
        self.token, self.at, self.log = token, at, log

    def taps(self, model: Runner) -> list[str]:
        token_id(model, self.token)
        return [_logits(model)]

    def run(self, model: Runner, trace: Trace) -> tuple[float, Seeds]:
        logits = trace[_logits(model)]
        token, row = token_id(model, self.token), _row(self.at, len(logits))
        seed = np.zeros_like(logits)
        if not self.log:
            seed[row, token] = 1
            return float(logits[row, token]), {_logits(model): seed}
        log = _log_softmax(logits[row])
        seed[row] = -np.exp(log)
        seed[row, token] = -np.expm1(log[token])
        return float(log[token]), {_logits(model): seed}


class _Nll:
    """The mean negative log-probability of each token after the first one."""

    def taps(self, model: Runner) -> list[str]:
        return [_logits(model)]

    def run(self, model: Runner, trace: Trace) -> tuple[float, Seeds]:
        logits = trace[_logits(model)]
        targets, n = trace.tokens[1:], len(trace.tokens) - 1
        if n < 1:
            raise ValueError("the prompt has 1 token; the loss needs at least two")
        log = _log_softmax(logits[:-1])
        seed = np.zeros_like(logits)
        seed[:-1] = np.exp(log) / n
        seed[np.arange(n), targets] = np.expm1(log[np.arange(n), targets]) / n
        return float(-log[np.arange(n), targets].mean()), {_logits(model): seed}


class _Value:
    """One entry of a tap."""

    def __init__(self, tap: str, index: Any) -> None:
        self.tap, self.index = tap, index

    def taps(self, model: Runner) -> list[str]:
        return [tap.name for tap in model.layout(self.tap).taps]

    def run(self, model: Runner, trace: Trace) -> tuple[float, Seeds]:
        seed = np.zeros_like(trace[self.tap])
        try:
            value = np.asarray(trace[self.tap][self.index])
        except IndexError as error:
            raise IndexError(
                f"index is {self.index!r}, and {self.tap} has shape {seed.shape}; "
                f"expected one of its entries ({error})"
            ) from None
        if value.ndim:
            raise ValueError(
                f"index is {self.index!r}, which selects {value.size} entries of {self.tap} "
                f"{seed.shape}; expected one number for each axis"
            )
        seed[self.index] = 1
        return float(value), {self.tap: seed}


class _Function:
    """A function of the logits."""

    def __init__(self, function: Callable[[Float32], Any]) -> None:
        self.function = function

    def taps(self, model: Runner) -> list[str]:
        return [_logits(model)]

    def run(self, model: Runner, trace: Trace) -> tuple[float, Seeds]:
        logits = trace[_logits(model)]
        result = self.function(np.array(logits))
        try:
            value, gradient = result
            seed = np.ascontiguousarray(gradient, np.float32)
            number = float(value)
        except (TypeError, ValueError):
            raise TypeError(
                f"of returned {type(result).__name__}; expected its value and its gradient, an "
                f"array of shape {logits.shape}"
            ) from None
        if seed.shape != logits.shape:
            raise ValueError(
                f"of returned a gradient of shape {seed.shape}; expected {logits.shape}"
            )
        return number, {_logits(model): seed}


def _scalar(name: str, term: _Term) -> Scalar:
    return Scalar([(1.0, name, term)])


def evaluate(of: Objective) -> Scalar:
    """Return the argument ``of=`` as a scalar.

    Parameters
    ----------
    of : Scalar or callable

    Returns
    -------
    Scalar
    """
    if isinstance(of, Scalar):
        return of
    if callable(of):
        return _scalar(getattr(of, "__name__", "function"), _Function(of))
    raise TypeError(
        f"of is {of!r}; expected tl.logit, tl.logprob, tl.nll, tl.tap_value, a sum of them, or a "
        "function of the logits that returns its value and its gradient"
    )


def logit(token: int | str, at: int = -1) -> Scalar:
    """Return the logit of a token as a scalar, whose gradients `Model.gradients` computes.

    Parameters
    ----------
    token : int or str
        The token, as an id or as the text of one token.
    at : int
        Index of the token in the prompt after which it would come. Negative values count from the
        end.

    Returns
    -------
    Scalar

    Examples
    --------
    >>> import tinyllm as tl
    >>> tl.logit(5) - tl.logit(6)
    logit(5) - logit(6)
    """
    return _scalar(f"logit({token!r}{_at(at)})", _Logit(token, at, log=False))


def logprob(token: int | str, at: int = -1) -> Scalar:
    """Return the log-probability of a token as a scalar, in nats.

    Parameters
    ----------
    token, at
        As for `tinyllm.logit`.

    Returns
    -------
    Scalar

    Examples
    --------
    >>> import tinyllm as tl
    >>> tl.logprob(5)
    logprob(5)
    """
    return _scalar(f"logprob({token!r}{_at(at)})", _Logit(token, at, log=True))


def _at(at: int) -> str:
    return "" if at == -1 else f", at={at!r}"


def nll() -> Scalar:
    """Return the loss of the prompt itself as a scalar.

    Its value is the mean negative log-probability, in nats, of each token after the first one.

    Returns
    -------
    Scalar

    Examples
    --------
    >>> import tinyllm as tl
    >>> g = tl.load().gradients("ROMEO:", of=tl.nll())
    >>> g.value > 0
    True
    """
    return _scalar("nll()", _Nll())


def tap_value(tap: str, index: Any) -> Scalar:
    """Return one inner value as a scalar.

    Parameters
    ----------
    tap : str
        The name of a tap, such as ``"blk.2.ffn_act"``.
    index : tuple of int
        Index of one entry in the array of the tap: token and channel, for example.

    Returns
    -------
    Scalar

    Examples
    --------
    >>> import tinyllm as tl
    >>> tl.tap_value("blk.2.ffn_act", (-1, 7))
    tap_value('blk.2.ffn_act', (-1, 7))
    """
    if not isinstance(tap, str):
        raise TypeError(f"tap is {tap!r}; expected the name of one tap")
    return _scalar(f"tap_value({tap!r}, {index!r})", _Value(tap, index))
