"""From logits to the next token: a chain of samplers, one function each.

Everything here is the same on every machine: exp, log, softmax and sum are the core's own, and
what is added up is added in one order. The random numbers are those of `tinyllm.philox`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from . import _core
from .philox import new_seed, uniform

__all__ = ["SAMPLERS", "Candidates", "Context", "Draw", "Sampler", "sampler"]

Floats = NDArray[np.float64]
Ids = NDArray[np.int64]


@dataclass(frozen=True)
class Candidates:
    """The tokens that are still possible, and their logits.

    Parameters
    ----------
    ids : ndarray of int64, (n,)
    logits : ndarray of float64, (n,)
    ordered : bool
        Whether the best come first (of equal ones the lowest id); else the ids rise.
    """

    ids: Ids
    logits: Floats
    ordered: bool = False

    def best_first(self) -> Candidates:
        """Return the same candidates, the best first, of equal ones the lowest id."""
        if self.ordered:
            return self
        order = np.argsort(-self.logits, kind="stable")
        return Candidates(self.ids[order], self.logits[order], True)

    def keep(self, which: NDArray[np.bool_] | slice) -> Candidates:
        """Return some of the candidates, in the same order."""
        return Candidates(self.ids[which], self.logits[which], self.ordered)

    def with_logits(self, logits: Floats, ordered: bool = False) -> Candidates:
        """Return the same tokens with other logits; `ordered` if their order is still right."""
        if ordered or not self.ordered:
            return Candidates(self.ids, logits, self.ordered)
        order = np.argsort(self.ids)
        return Candidates(self.ids[order], logits[order])

    @property
    def probabilities(self) -> Floats:
        """Softmax of the logits, float64, (n,)."""
        return _core.softmax(self.logits)


@dataclass
class Context:
    """What samplers may look at beside the logits.

    Parameters
    ----------
    history : sequence of int
        The ids so far: the prompt and what was generated.
    seed : int
    step : int
        Which token of the generation this is.
    state : dict
        What samplers remember from one token to the next, by their name.
    """

    history: Sequence[int] = ()
    seed: int = 0
    step: int = 0
    state: dict[str, Any] = field(default_factory=dict)

    def uniform(self, stream: int) -> float:
        """Return this token's random number of a stream other than 0."""
        return uniform(self.seed, self.step, stream)


SamplerFunction = Callable[..., Candidates]

#: Name -> function. A new sampler is one function with the decorator `sampler`.
SAMPLERS: dict[str, SamplerFunction] = {}


def sampler(name: str) -> Callable[[SamplerFunction], SamplerFunction]:
    """Register a sampler: a function ``(candidates, context, value, ...) -> candidates``.

    Parameters
    ----------
    name : str
        The keyword of `Sampler`.

    Returns
    -------
    callable

    Examples
    --------
    >>> @sampler("only_even")
    ... def only_even(candidates, context, on):
    ...     return candidates.keep(candidates.ids % 2 == 0) if on else candidates
    >>> Sampler(only_even=True, temperature=0).sample([0.0, 9.0, 1.0], step=0)
    2
    >>> del SAMPLERS["only_even"]
    """

    def register(function: SamplerFunction) -> SamplerFunction:
        SAMPLERS[name] = function
        return function

    return register


def _check(ok: bool, name: str, value: object, expected: str) -> None:
    if not ok:
        raise ValueError(f"{name} is {value!r}; expected {expected}")


def _number(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float | np.number):
        raise TypeError(f"{name} is {value!r}; expected a number")
    return float(value)


@sampler("temperature")
def temperature(candidates: Candidates, context: Context, value: float) -> Candidates:
    """Divide the logits; 0 keeps the best token alone (of equal ones the lowest id)."""
    value = _number("temperature", value)
    _check(0 <= value < float("inf"), "temperature", value, "a finite number >= 0")
    if value == 0:
        best = int(np.argmax(candidates.logits))
        if not candidates.ordered:
            return candidates.keep(slice(best, best + 1))
        return candidates.keep(slice(0, 1))
    return candidates.with_logits(candidates.logits / value, ordered=True)


@sampler("top_k")
def top_k(candidates: Candidates, context: Context, k: int) -> Candidates:
    """Keep the k best; 0 or less keeps all."""
    if isinstance(k, bool) or not isinstance(k, int | np.integer):
        raise TypeError(f"top_k is {k!r}; expected an int")
    size = len(candidates.ids)
    if k <= 0 or k >= size:
        return candidates
    if not candidates.ordered:
        # at least k are as good as the k-th best: sort only those
        limit = np.partition(candidates.logits, size - k)[size - k]
        candidates = candidates.keep(candidates.logits >= limit).best_first()
    return candidates.keep(slice(0, int(k)))


@sampler("top_p")
def top_p(candidates: Candidates, context: Context, p: float) -> Candidates:
    """Keep the fewest best whose probabilities add up to p; 1 or more keeps all.

    Holtzman et al., "The Curious Case of Neural Text Degeneration" (2020).
    """
    p = _number("top_p", p)
    _check(p >= 0, "top_p", p, "a number >= 0")
    if p >= 1:
        return candidates
    candidates = candidates.best_first()
    total = np.add.accumulate(candidates.probabilities)
    count = int(np.searchsorted(total, p)) + 1
    return candidates.keep(slice(0, max(count, 1)))


@sampler("min_p")
def min_p(candidates: Candidates, context: Context, p: float) -> Candidates:
    """Keep what is at least p times as probable as the best; 0 keeps all.

    Nguyen et al., "Turning Up the Heat: Min-p Sampling" (2024).
    """
    p = _number("min_p", p)
    _check(0 <= p <= 1, "min_p", p, "0 to 1")
    if p == 0:
        return candidates
    limit = candidates.logits.max() + float(_core.log([p])[0])
    return candidates.keep(candidates.logits >= limit)


@dataclass(frozen=True)
class Draw:
    """One drawn token.

    Parameters
    ----------
    id : int
    probability : float
        Among the candidates that the chain left.
    candidates : Candidates
        What the chain left.
    """

    id: int
    probability: float
    candidates: Candidates


class Sampler:
    """A chain of samplers, applied in the order in which they are given, and then a draw.

    The same seed draws the same tokens from the same logits on every machine.

    Parameters
    ----------
    chain : iterable of (str, value), optional
        Sampler names and their values; a dict as value is keyword arguments. For chains that
        use one sampler twice.
    seed : int, optional
        0 to 2**64 - 1. None: one from the operating system, to be read as ``.seed``.
    **samplers
        Names of `SAMPLERS` and their values, in order; after `chain`.

    Raises
    ------
    ValueError
        If a name is unknown or a value out of range.
    TypeError
        If a value has the wrong type.

    Examples
    --------
    >>> s = Sampler(top_k=2, temperature=0.5, seed=1)
    >>> [s.sample([0.0, 3.0, 2.0], step) for step in range(8)]
    [2, 1, 1, 1, 1, 1, 1, 1]
    """

    def __init__(
        self,
        chain: Iterable[tuple[str, Any]] = (),
        *,
        seed: int | None = None,
        **samplers: Any,
    ) -> None:
        if seed is None:
            seed = new_seed()
        if isinstance(seed, bool) or not hasattr(seed, "__index__"):
            raise TypeError(f"seed is {seed!r}; expected an int or None")
        self.seed = seed.__index__()
        _check(0 <= self.seed < 2**64, "seed", seed, "0 to 2**64 - 1")
        self.chain: list[tuple[str, dict[str, Any]]] = []
        for name, value in [*chain, *samplers.items()]:
            if value is not None:
                self.chain.append((name, _arguments(name, value)))
        # a wrong value fails here, not at the first token
        trial = Candidates(np.arange(3), np.array([2.0, 1.0, 0.0]))
        for name, arguments in self.chain:
            trial = SAMPLERS[name](trial, Context(), **arguments)
        self._state: dict[str, Any] = {}

    @classmethod
    def greedy(cls) -> Sampler:
        """Return the sampler that always takes the best token (of equal ones the lowest id).

        Returns
        -------
        Sampler

        Examples
        --------
        >>> Sampler.greedy().sample([0.0, 2.0, 2.0], step=0)
        1
        """
        return cls(temperature=0, seed=0)

    def candidates(
        self,
        logits: ArrayLike,
        step: int = 0,
        history: Sequence[int] = (),
        state: dict[str, Any] | None = None,
        allowed: NDArray[np.bool_] | None = None,
    ) -> Candidates:
        """Return what the chain leaves of the logits.

        Parameters
        ----------
        logits, step, history, state
            As in `sample`.
        allowed : ndarray of bool, (V,), optional
            The tokens that the chain starts with, for example those that a grammar allows.

        Returns
        -------
        Candidates

        Raises
        ------
        ValueError
            As in `sample`.
        """
        found = _start(logits, allowed)
        context = self._context(step, history, state)
        for name, arguments in self.chain:
            found = SAMPLERS[name](found, context, **arguments)
        return found

    def _context(self, step: int, history: Sequence[int], state: dict[str, Any] | None) -> Context:
        if state is None:
            if step == 0:
                self._state = {}
            state = self._state
        return Context(history, self.seed, step, state)

    def draw(
        self,
        logits: ArrayLike,
        step: int,
        history: Sequence[int] = (),
        state: dict[str, Any] | None = None,
        allowed: NDArray[np.bool_] | None = None,
    ) -> Draw:
        """Return a token drawn from what the chain leaves, and how probable it was.

        Parameters
        ----------
        logits, step, history, state
            As in `sample`.
        allowed : ndarray of bool, (V,), optional
            As in `candidates`.

        Returns
        -------
        Draw

        Raises
        ------
        ValueError
            As in `sample`.
        """
        left = self.candidates(logits, step, history, state, allowed)
        if left.ordered:  # the draw goes by id, whatever the chain has sorted
            order = np.argsort(left.ids)
            left = Candidates(left.ids[order], left.logits[order])
        weights = left.probabilities
        total = np.add.accumulate(weights)
        at = int(np.searchsorted(total, uniform(self.seed, step) * total[-1], side="right"))
        # the product may round up to the total itself: then the last that has a weight
        at = min(at, int(np.flatnonzero(weights)[-1]))
        return Draw(int(left.ids[at]), float(weights[at]), left)

    def sample(
        self,
        logits: ArrayLike,
        step: int,
        history: Sequence[int] = (),
        state: dict[str, Any] | None = None,
    ) -> int:
        """Return the next token.

        Parameters
        ----------
        logits : array_like of float, (V,)
        step : int
            Which token of the generation this is: 0, 1, ... Seed and step alone decide the
            random number.
        history : sequence of int
            The ids so far, for samplers that penalize repetition.
        state : dict, optional
            What samplers remember from token to token, one dict per generation. None: the
            sampler's own, emptied at step 0.

        Returns
        -------
        int

        Raises
        ------
        ValueError
            If the logits are not a vector, hold NaN or +inf, or nothing but -inf.

        Examples
        --------
        >>> Sampler(temperature=1, seed=3).sample([0.0, 0.0], step=0) in (0, 1)
        True
        """
        return self.draw(logits, step, history, state).id

    def __repr__(self) -> str:
        steps = ", ".join(
            f"{name}={next(iter(args.values())) if len(args) == 1 else args!r}"
            for name, args in self.chain
        )
        return f"Sampler({steps}{', ' if steps else ''}seed={self.seed})"


def _arguments(name: str, value: Any) -> dict[str, Any]:
    if name not in SAMPLERS:
        raise ValueError(f"there is no sampler {name!r}; there are {', '.join(sorted(SAMPLERS))}")
    names = list(inspect.signature(SAMPLERS[name]).parameters)[2:]
    if not isinstance(value, Mapping) or not set(value) <= set(names):
        return {names[0]: value}
    return dict(value)


def _start(logits: ArrayLike, allowed: NDArray[np.bool_] | None = None) -> Candidates:
    values = np.asarray(logits, np.float64)
    if values.ndim != 1 or not values.size:
        raise ValueError(f"logits have the shape {values.shape}; expected (V,), V > 0")
    worst = values.max()  # NaN if there is one
    if not np.isfinite(worst):
        raise ValueError(f"the largest logit is {worst}; expected a finite number")
    if allowed is None:
        return Candidates(np.arange(values.size), values)
    ids = np.flatnonzero(allowed)
    left = values[ids]
    if not ids.size or left.max() == -np.inf:
        raise ValueError("no token that is allowed has a finite logit")
    return Candidates(ids, left)
