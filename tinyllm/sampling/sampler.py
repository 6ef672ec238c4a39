"""Draw the next token from logits: a chain of samplers, then a random draw.

The samplers are in `tinyllm.sampling.samplers`, the random numbers in `tinyllm.sampling.philox`.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..base.checks import integer
from ..display.table import Table
from .philox import new_seed, uniform
from .samplers import BY_ID, SAMPLERS, Candidates, Context, ids_of, sampler

__all__ = ["SAMPLERS", "Candidates", "Context", "Draw", "Sampler", "SamplerExplanation", "sampler"]


@dataclass(frozen=True)
class Draw:
    """One drawn token.

    Parameters
    ----------
    id : int
    probability : float
        Its probability among the candidates.
    candidates : Candidates
        The candidates that the chain left.
    """

    id: int
    probability: float
    candidates: Candidates


@dataclass(frozen=True)
class SamplerExplanation:
    """The candidates after each step of a chain, which are shown as a table.

    Parameters
    ----------
    steps : list of (str, Candidates)
        The first step has the unchanged logits.
    top : int
        How many of the best tokens each row of the table shows.
    """

    steps: list[tuple[str, Candidates]]
    top: int

    def table(self) -> Table:
        """Return a table with one row per step of the chain.

        Returns
        -------
        Table
        """
        rows = []
        for name, found in self.steps:
            best = found.best_first()
            pairs = zip(best.ids[: self.top], best.probabilities, strict=False)
            shown = ", ".join(f"{token} {p:.3f}" for token, p in pairs)
            rows.append((name, len(best.ids), shown))
        return Table(("step", "kept", "best tokens"), rows)

    def __str__(self) -> str:
        return str(self.table())

    def __repr__(self) -> str:
        """Return the table as text, so that an interactive session shows it."""
        return str(self)

    def _repr_html_(self) -> str:
        return self.table().html()


class Sampler:
    """A chain of samplers, applied in the given order, and then a random draw.

    The same seed draws the same tokens from the same logits on every machine.

    Parameters
    ----------
    chain : iterable of (str, value), optional
        Sampler names and their values. A dict as a value holds keyword arguments. Needed for
        chains that use a sampler twice.
    seed : int, optional
        0 to 2**64 - 1. None: a seed from the operating system; ``.seed`` is its value.
    **samplers
        Names of `SAMPLERS` and their values, in order. They follow those of `chain`.

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
        self.seed = integer("seed", seed, "an int or None")
        if not 0 <= self.seed < 2**64:
            raise ValueError(f"seed is {seed}; expected 0 to 2**64 - 1")
        self.chain: list[tuple[str, dict[str, Any]]] = []
        for name, value in [*chain, *samplers.items()]:
            if value is not None:
                self.chain.append((name, _arguments(name, value)))
        # a wrong value fails here, not at the first token
        trial = Candidates(np.arange(3), np.array([2.0, 1.0, 0.0]))
        for name, arguments in self.chain:
            trial = SAMPLERS[name](trial, Context(trial=True), **arguments)
        self._state: dict[str, Any] = {}

    @classmethod
    def greedy(cls) -> Sampler:
        """Return a sampler that always takes the best token (the lowest id of equal ones).

        Returns
        -------
        Sampler

        Examples
        --------
        >>> Sampler.greedy().sample([0.0, 2.0, 2.0], step=0)
        1
        """
        return cls(temperature=0, seed=0)

    @classmethod
    def llama_cpp(cls, seed: int | None = None) -> Sampler:
        """Return a sampler with the defaults of llama.cpp's programs.

        Parameters
        ----------
        seed : int, optional

        Returns
        -------
        Sampler
            Top-k 40, top-p 0.95, min-p 0.05, temperature 0.8, in this order
            (``common/common.h``, 2025-02).

        Examples
        --------
        >>> Sampler.llama_cpp(seed=1)
        Sampler(top_k=40, top_p=0.95, min_p=0.05, temperature=0.8, seed=1)
        """
        return cls(top_k=40, top_p=0.95, min_p=0.05, temperature=0.8, seed=seed)

    @classmethod
    def hugging_face(cls, seed: int | None = None) -> Sampler:
        """Return a sampler with the defaults of transformers' ``generate(do_sample=True)``.

        Parameters
        ----------
        seed : int, optional

        Returns
        -------
        Sampler
            Temperature 1, top-k 50, top-p 1, in this order (``GenerationConfig``).

        Examples
        --------
        >>> Sampler.hugging_face(seed=1)
        Sampler(temperature=1.0, top_k=50, top_p=1.0, seed=1)
        """
        return cls(temperature=1.0, top_k=50, top_p=1.0, seed=seed)

    def later(self, i: int) -> Sampler:
        """Return the same chain with the seed ``(seed + i) % 2**64``, and a state of its own.

        Parameters
        ----------
        i : int

        Returns
        -------
        Sampler

        Examples
        --------
        >>> Sampler(top_k=2, seed=7).later(3)
        Sampler(top_k=2, seed=10)
        """
        later = copy.copy(self)
        later.seed, later._state = (self.seed + i) % 2**64, {}
        return later

    def check_ids(self, size: int) -> None:
        """Raise if the chain names an id that a vocabulary does not have.

        Parameters
        ----------
        size : int
            Of the vocabulary.

        Raises
        ------
        ValueError
            If an id of ``logit_bias``, ``banned``, ``allowed`` or ``forced`` is out of range.

        Examples
        --------
        >>> Sampler(banned=[3, 4000]).check_ids(1024)
        Traceback (most recent call last):
        ValueError: banned holds the id 4000; the vocabulary has 1024 tokens
        """
        for name, arguments in self.chain:
            for token in ids_of(name, next(iter(arguments.values()))) if name in BY_ID else ():
                if not 0 <= token < size:
                    raise ValueError(
                        f"{name} holds the id {token}; the vocabulary has {size} tokens"
                    )

    def explain(
        self, logits: ArrayLike, step: int = 0, history: Sequence[int] = (), top: int = 5
    ) -> SamplerExplanation:
        """Return the candidates after each step of the chain, as a table that can be printed.

        No token is drawn, and the sampler's state does not change.

        Parameters
        ----------
        logits, step, history
            As in `sample`.
        top : int
            How many of the best tokens each row shows.

        Returns
        -------
        SamplerExplanation

        Raises
        ------
        ValueError
            As in `sample`.

        Examples
        --------
        >>> print(Sampler(top_k=2, temperature=0.5).explain([0.0, 3.0, 2.0]))
        step             kept  best tokens
        logits              3  1 0.705, 2 0.259, 0 0.035
        top_k=2             2  1 0.731, 2 0.269
        temperature=0.5     2  1 0.881, 2 0.119
        """
        context = self._context(step, history, {k: dict(v) for k, v in self._state.items()})
        found = _start(logits)
        rows = [("logits", found)]
        for name, arguments in self.chain:
            found = SAMPLERS[name](found, context, **arguments)
            rows.append((_label(name, arguments), found))
        return SamplerExplanation(rows, top)

    def candidates(
        self,
        logits: ArrayLike,
        step: int = 0,
        history: Sequence[int] = (),
        state: dict[str, Any] | None = None,
        allowed: NDArray[np.bool_] | None = None,
    ) -> Candidates:
        """Return the candidates that the chain leaves.

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
        return self._run(logits, self._context(step, history, state), allowed)

    def _run(
        self, logits: ArrayLike, context: Context, allowed: NDArray[np.bool_] | None
    ) -> Candidates:
        found = _start(logits, allowed)
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
        """Return a token drawn from the candidates that the chain leaves, with its probability.

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
        context = self._context(step, history, state)
        left = self._run(logits, context, allowed)
        if left.ordered:  # draw in the order of ids, even if the chain has sorted the candidates
            order = np.argsort(left.ids)
            left = Candidates(left.ids[order], left.logits[order])
        weights = left.probabilities
        total = np.add.accumulate(weights)
        at = int(np.searchsorted(total, uniform(self.seed, step) * total[-1], side="right"))
        # the product may round up to the total: then take the last candidate with a weight
        at = min(at, int(np.flatnonzero(weights)[-1]))
        for learn in context.after:
            learn(float(weights[at]))
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
            The position of the token in the generation: 0, 1, ... The random number depends only
            on seed and step.
        history : sequence of int
            The ids so far, for samplers that penalize repetition.
        state : dict, optional
            The state that samplers keep from token to token, one dict per generation. None: the
            sampler's own dict, which is cleared at step 0.

        Returns
        -------
        int

        Raises
        ------
        ValueError
            If the logits are not a vector, contain NaN or +inf, or are all -inf.

        Examples
        --------
        >>> Sampler(temperature=1, seed=3).sample([0.0, 0.0], step=0) in (0, 1)
        True
        """
        return self.draw(logits, step, history, state).id

    def __getstate__(self) -> dict[str, Any]:
        """Pickle the sampler without the state of its grammars, which the history gives again."""
        return {**vars(self), "_state": {k: v for k, v in self._state.items() if k != "grammar"}}

    def __repr__(self) -> str:
        steps = ", ".join(_label(name, arguments) for name, arguments in self.chain)
        return f"Sampler({steps}{', ' if steps else ''}seed={self.seed})"


def _label(name: str, arguments: Mapping[str, Any]) -> str:
    value = next(iter(arguments.values())) if len(arguments) == 1 else dict(arguments)
    return f"{name}={value!r}"


def _arguments(name: str, value: Any) -> dict[str, Any]:
    if name not in SAMPLERS:
        raise ValueError(f"no sampler {name!r}; expected one of {', '.join(sorted(SAMPLERS))}")
    names = list(inspect.signature(SAMPLERS[name]).parameters)[2:]
    if isinstance(value, Iterator):  # it can be read only once, and every token reads it
        value = list(value)
    if not isinstance(value, Mapping) or not value or not set(value) <= set(names):
        return {names[0]: value}
    return dict(value)


def _start(logits: ArrayLike, allowed: NDArray[np.bool_] | None = None) -> Candidates:
    values = np.asarray(logits, np.float64)
    if values.ndim != 1 or not values.size:
        raise ValueError(f"logits has the shape {values.shape}; expected (V,), V > 0")
    worst = values.max()  # NaN if any logit is NaN
    if not np.isfinite(worst):
        raise ValueError(f"the largest logit is {worst}; expected a finite number")
    if allowed is None:
        return Candidates(np.arange(values.size), values)
    ids = np.flatnonzero(allowed)
    left = values[ids]
    if not ids.size or left.max() == -np.inf:
        raise ValueError("no allowed token has a finite logit")
    return Candidates(ids, left)
