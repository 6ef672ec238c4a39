"""Running the steps of a plan from someone else's values, right or with a mistake.

A walk over the plan computes each step from *their* values of its inputs, where they are known, and
from computed ones where they are not. So one walk compares every known value with what its
inputs demand, and an early mistake does not spoil the comparison of later steps. With a few late
values only, the same walk is a run of the whole model.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ..architectures.plan import INPUTS, ForwardPlan, Step
from ..reference.ops import OPS

__all__ = ["Array", "Call", "Injection", "Known", "Replay", "relative_error"]

Array: TypeAlias = NDArray[Any]

#: Ops whose cost grows with the size of the model. They run in float32, the others in float64.
HEAVY = frozenset("linear head_linear experts scores mix conv delta scan scan_channels wkv".split())

#: Bytes of unpacked weights that a replay keeps for its next walk.
KEPT = 3 << 30

#: Scores below this are masked: some engines write a large negative number instead of -inf.
MASKED = -1e8


class Known(NamedTuple):
    """A value of the other engine.

    Attributes
    ----------
    array : ndarray
        In the shape of the tap, or its last rows only.
    whole : bool
        Whether it has a row for every token. Otherwise it is compared, and no step reads it.
    """

    array: Array
    whole: bool = True


@dataclasses.dataclass(frozen=True)
class Injection:
    """Wrong functions for some steps of a plan.

    Attributes
    ----------
    steps : mapping of str to callable
        ``wrong(call)`` returns the wrong value of the step with this name.
    """

    steps: Mapping[str, Callable[[Call], Array]]


class Call:
    """One step with its inputs, weights and numbers, ready to run right or wrong.

    Attributes
    ----------
    step : Step
    plan : ForwardPlan
    inputs : list of ndarray
        The values that the step reads. ``tokens`` and ``positions`` are int64.
    numbers : dict of str to float
    """

    def __init__(self, walk: _Walk, step: Step, inputs: list[Array]) -> None:
        self._walk = walk
        self.step = step
        self.plan = walk.replay.plan
        self.inputs = inputs
        self.numbers = {n.name: float(np.float32(n.value)) for n in step.numbers}

    @property
    def weights(self) -> list[Array | None]:
        """The unpacked weights of the step, None where the file has none."""
        return [self._walk.replay.weight(name) for name in self.step.weights]

    def raw(self, index: int = 0) -> Any:
        """Return a weight of the step as it lies in the file."""
        return self._walk.replay.tensors[self.step.weights[index] or ""]

    def weight(self, name: str | None) -> Array | None:
        """Return the unpacked weight of any name."""
        return self._walk.replay.weight(name)

    def run(
        self,
        inputs: Sequence[Array] | None = None,
        weights: Sequence[Array | None] | None = None,
        **numbers: float,
    ) -> Array:
        """Return the value of the step, with other inputs, weights or numbers if they are given."""
        given = self.inputs if inputs is None else inputs
        used = self.weights if weights is None else weights
        kind: Any = np.float32 if self.step.op in HEAVY else np.float64
        arrays = [a if a.dtype == np.int64 else np.asarray(a, kind) for a in given]
        tensors = [None if w is None else np.asarray(w, kind) for w in used]
        if self.step.op == "embed":  # a table is large, and only rows of it are read
            tensors = list(used)
        with np.errstate(all="ignore"):
            value: Array = OPS[self.step.op](*arrays, *tensors, **{**self.numbers, **numbers})
            if self.step.op == "mix" and not np.isfinite(arrays[1]).all():
                value = _mix_of_visible(arrays[0], arrays[1])
        return value

    def value(self, tap: str) -> Array:
        """Return the value of an earlier step in this walk."""
        return self._walk.value(tap)

    def other(self, tap: str, *inputs: Array) -> Array:
        """Return what another step computes, right, from other inputs."""
        return Call(self._walk, self.plan[tap], list(inputs)).run()


def _mix_of_visible(probs: Array, values: Array) -> Array:
    """Return a mix where values that are not finite count only where they have a probability."""
    finite = np.isfinite(values)
    value: Array = OPS["mix"](probs, np.where(finite, values, 0))
    reached = OPS["mix"]((probs > 0).astype(np.float32), (~finite).astype(np.float32))
    return np.where(reached > 0, np.nan, value)


class Replay:
    """Someone else's values, and what the steps of a model make of them.

    Parameters
    ----------
    model : tinyllm.Model
    tokens : (T,) int array
    known : mapping of str to Known
        Their values by tap.
    """

    def __init__(self, model: Any, tokens: Array, known: Mapping[str, Known]) -> None:
        self.plan: ForwardPlan = model.steps
        self.tensors: Mapping[str, Any] = model.weights
        self.tokens = np.asarray(tokens, np.int64)
        self.known = known
        self._places = {step.tap: i for i, step in enumerate(self.plan)}
        self._unpacked: dict[str, Array] = {}
        self._bytes = 0
        self._right: dict[str, Array] = {}
        self._needs: dict[str, frozenset[str]] = {}

    def weight(self, name: str | None) -> Array | None:
        """Return an unpacked weight, float32."""
        if name is None:
            return None
        if name not in self._unpacked:
            array = self.tensors[name].numpy()
            if self._bytes + array.nbytes > KEPT:
                return np.asarray(array)
            self._bytes += array.nbytes
            self._unpacked[name] = array
        return self._unpacked[name]

    def forget(self) -> None:
        """Forget computed values, because the tokens have changed."""
        self._right.clear()

    def input(self, name: str) -> Array:
        """Return the tokens or their positions."""
        return self.tokens if name == "tokens" else np.arange(len(self.tokens))

    def given(self, tap: str) -> Array | None:
        """Return their value of a tap for other steps to read, if it is known for all tokens."""
        known = self.known.get(tap)
        return known.array if known is not None and known.whole else None

    def behind(self, tap: str) -> frozenset[str]:
        """Return the steps that a value depends on, itself included, up to their known values."""
        if tap not in self._needs:
            found: set[str] = set()
            waiting = [tap]
            while waiting:
                step = self.plan[waiting.pop()]
                found.add(step.tap)
                waiting += [
                    name
                    for name in step.reads
                    if name not in INPUTS and name not in found and self.given(name) is None
                ]
            self._needs[tap] = frozenset(found)
        return self._needs[tap]

    def ordered(self, taps: Iterable[str]) -> list[Step]:
        """Return steps in the order of computation."""
        return [self.plan[i] for i in sorted(self._places[tap] for tap in taps)]

    def right(self, tap: str) -> Array:
        """Return what a step makes of their values without any mistake. It is computed once."""
        if tap not in self._right:
            walk = _Walk(self, ())
            for step in self.ordered(self.behind(tap)):
                if step.tap not in self._right:
                    self._right[step.tap] = walk.compute(step)
        return self._right[tap]

    def residuals(
        self, injections: Sequence[Injection], targets: Collection[str]
    ) -> dict[str, float]:
        """Return the relative errors of some of their values if the engine has these mistakes.

        Parameters
        ----------
        injections : sequence of Injection
            Empty: no mistake.
        targets : collection of str
            Taps of `known`.

        Returns
        -------
        dict of str to float
            Targets that do not depend on a mistake are left out, except without mistakes.
        """
        return _Walk(self, injections).residuals(targets)

    def distances(self, injection: Injection, targets: Collection[str]) -> dict[str, float]:
        """Return how far an injection moves values from the right ones, as relative errors."""
        return _Walk(self, (injection,), self.right).residuals(targets)

    def value(self, injections: Sequence[Injection], tap: str) -> Array:
        """Return the value of a step if the engine has these mistakes."""
        return _Walk(self, injections).value(tap)

    def values(self, injections: Sequence[Injection], taps: Iterable[str]) -> dict[str, Array]:
        """Return the values of several steps if the engine has these mistakes."""
        walk = _Walk(self, injections)
        return {tap: walk.value(tap) for tap in taps}

    def error(self, tap: str, value: Array, theirs: Array | None = None) -> float:
        """Return the relative error of a computed value against theirs, or another one."""
        known = self.known[tap]
        axis = 1 if self.plan[tap].matrix else 0
        count = known.array.shape[axis]
        if theirs is None:
            theirs = known.array
        elif not known.whole:
            theirs = _last(theirs, count, axis)
        if not known.whole:
            value = _last(value, count, axis)
        return relative_error(value, theirs, scores=self.plan[tap].op == "scores")


class _Walk:
    """One walk over a part of the plan. It computes only what a mistake changes."""

    def __init__(
        self,
        replay: Replay,
        injections: Sequence[Injection],
        truth: Callable[[str], Array] | None = None,
    ) -> None:
        self.replay = replay
        self.truth = truth
        self.wrong: dict[str, Callable[[Call], Array]] = {}
        for injection in injections:
            self.wrong.update(injection.steps)
        self.changed: dict[str, Array] = {}
        self.clean: set[str] = set()

    def value(self, tap: str) -> Array:
        """Return the value that other steps read: theirs, or the one of this walk."""
        if tap in INPUTS:
            return self.replay.input(tap)
        theirs = self.replay.given(tap)
        if theirs is not None:
            return theirs
        if tap in self.changed:
            return self.changed[tap]
        if self.wrong and tap not in self.clean:
            self.walk(self.replay.behind(tap), ())
        return self.changed[tap] if tap in self.changed else self.replay.right(tap)

    def compute(self, step: Step) -> Array:
        """Return the value of a step, wrong if a mistake is injected there."""
        call = Call(self, step, [self.value(name) for name in step.reads])
        wrong = self.wrong.get(step.tap)
        value = call.run() if wrong is None else wrong(call)
        return value if value.dtype == np.float32 else value.astype(np.float32)

    def residuals(self, targets: Collection[str]) -> dict[str, float]:
        """See `Replay.residuals`."""
        if not self.wrong:
            return {tap: self.replay.error(tap, self.replay.right(tap)) for tap in targets}
        needed: set[str] = set()
        for tap in targets:
            needed |= self.replay.behind(tap)
        return self.walk(needed, targets)

    def walk(self, needed: Collection[str], targets: Collection[str]) -> dict[str, float]:
        """Compute what the mistakes change among the needed steps; return errors of targets."""
        found: dict[str, float] = {}
        for step in self.replay.ordered(needed):
            tap = step.tap
            if tap in self.changed or tap in self.clean:
                continue
            if tap not in self.wrong and not any(name in self.changed for name in step.reads):
                self.clean.add(tap)
                continue
            value = self.compute(step)
            if tap in targets:
                truth = None if self.truth is None else self.truth(tap)
                found[tap] = self.replay.error(tap, value, truth)
            if self.replay.given(tap) is None:
                self.changed[tap] = value
            else:
                self.clean.add(tap)
        return found


def _last(value: Array, count: int, axis: int) -> Array:
    """Return the rows of the last tokens."""
    return value[:, -count:] if axis else value[-count:]


def relative_error(value: Array, theirs: Array, scores: bool = False) -> float:
    """Return ||a - b|| over the larger norm of the two; inf where one of them is not finite.

    Parameters
    ----------
    value, theirs : ndarray
    scores : bool
        Whether the values are attention scores, whose masked entries are -inf or very negative.

    Examples
    --------
    >>> import numpy as np
    >>> relative_error(np.array([3.0, 4.0]), np.array([3.0, 0.0]))
    0.8
    """
    a, b = np.asarray(value, np.float64), np.asarray(theirs, np.float64)
    if a.shape != b.shape:
        return np.inf
    if scores:
        shown = (a > MASKED) & (b > MASKED)
        low = min(a[shown].min(initial=0.0), b[shown].min(initial=0.0)) - 10.0
        a, b = np.where(a > MASKED, a, low), np.where(b > MASKED, b, low)
    finite = np.isfinite(a) & np.isfinite(b)
    if not finite.all():
        with np.errstate(invalid="ignore"):
            same = (a == b) | (np.isnan(a) & np.isnan(b))
        if not (same | finite).all():
            return np.inf
        a, b = a[finite], b[finite]
    with np.errstate(over="ignore"):
        norm = max(np.linalg.norm(a), np.linalg.norm(b))
        distance = np.linalg.norm(a - b)
    return float(distance / norm) if norm else 0.0
