"""Finding the mistakes that explain values: few of them, each with its proof."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence

from .catalogue import Candidate
from .replay import HEAVY, Replay
from .rounding import SLACK, expected

__all__ = ["Accepted", "Search"]

#: A mistake explains a value if the error with it is at most this part of the error without.
EXPLAINS = 0.3

#: Relative error of a right engine that computes in float32: of a step without sums of products,
#: and what such a sum adds.
FLOOR, PRODUCT = 1e-6, 1e-6

#: Variants that only matter where a value depends on at most so many steps.
NEAR = 40


@dataclasses.dataclass
class Accepted:
    """A mistake that explains some values.

    Attributes
    ----------
    candidate : Candidate
    residuals : dict of str to float
        Relative error with the mistake, by tap. These are the values that it explains.
    errors : dict of str to float
        Relative error without it.
    also : list of Candidate
        Others that explain the same values as well.
    """

    candidate: Candidate
    residuals: dict[str, float]
    errors: dict[str, float]
    also: list[Candidate]


class Search:
    """The search for mistakes in someone else's values.

    Parameters
    ----------
    replay : Replay
    candidates : sequence of Candidate
    step : callable
        Called with the share of work done now and then.

    Attributes
    ----------
    errors : dict of str to float
        The relative error of each value against what the model makes of its inputs.
    accepted : list of Accepted
    open : dict of str to float
        The errors that no mistake explains.
    explained : set of str
        The values that mistakes explain. What is left of their errors may be open.
    noise : dict of str to dict of str to float
        What each way to round would cause. Empty if every value agrees in float32.
    """

    def __init__(
        self,
        replay: Replay,
        candidates: Sequence[Candidate],
        step: Callable[[float], None] = lambda share: None,
    ) -> None:
        self.replay = replay
        self.candidates = candidates
        self.step = step
        self.errors = replay.residuals((), list(replay.known))
        self.suspects = {t: e for t, e in self.errors.items() if e > self.floor(t)}
        self.noise = expected(replay, list(self.suspects)) if self.suspects else {}
        self.open = dict(self.suspects)
        self.accepted: list[Accepted] = []
        self.explained: set[str] = set()
        self._probed: set[str] = set()

    def floor(self, tap: str) -> float:
        """Return the relative error that float32 explains."""
        heavy = sum(self.replay.plan[name].op in HEAVY for name in self.replay.behind(tap))
        return FLOOR + PRODUCT * math.sqrt(heavy)

    def by_rounding(self, tap: str) -> bool:
        """Return whether some way to round explains the error of a value."""
        most = max((errors.get(tap, 0.0) for errors in self.noise.values()), default=0.0)
        return self.open[tap] <= SLACK * most + self.floor(tap)

    def run(self) -> None:
        """Search until no value is left that a mistake may explain."""
        rounds = 6
        for turn in range(rounds):
            probes = self._probes(first=turn == 0)
            if not probes:
                break
            self._probed |= probes
            start = turn / rounds
            found = self._singly(probes, start, 1 / rounds)
            if found:
                self._cover(found)
            elif not self._in_pairs(probes):
                continue
            self._settle()
        self.step(1.0)

    def _probes(self, first: bool) -> set[str]:
        """Return the values to examine next: of each kind the first and the worst."""
        kinds: dict[str, list[str]] = {}
        for step in self.replay.ordered(self.open):
            if step.tap not in self._probed and (first or not self.by_rounding(step.tap)):
                kinds.setdefault(step.family, []).append(step.tap)
        chosen: set[str] = set()
        for taps in kinds.values():
            chosen |= {taps[0], max(taps, key=self.open.__getitem__), taps[-1]}
        return chosen

    def _affecting(self, candidate: Candidate, taps: Sequence[str]) -> list[str]:
        """Return the values that depend on a mistake."""
        return [
            tap
            for tap in taps
            if not candidate.steps.keys().isdisjoint(behind := self.replay.behind(tap))
            and (len(behind) <= NEAR or not candidate.variant.near)
        ]

    def _known(self) -> list[Candidate]:
        return [each.candidate for each in self.accepted]

    def _explains(self, residual: float, error: float) -> bool:
        return residual <= EXPLAINS * min(error, 1.0)

    def _singly(self, probes: set[str], start: float, part: float) -> dict[int, dict[str, float]]:
        """Return the residuals of all values for each candidate that explains a probe."""
        found = {}
        taps = sorted(probes)
        self._tried: dict[int, dict[str, float]] = {}
        for i, candidate in enumerate(self.candidates):
            self.step(start + part * i / len(self.candidates))
            near = self._affecting(candidate, taps)
            if not near:
                continue
            residuals = self.replay.residuals([*self._known(), candidate], near)
            self._tried[i] = residuals
            if any(self._explains(r, self.open[tap]) for tap, r in residuals.items()):
                found[i] = residuals
        if not found:
            return {}
        best = {t: min(r.get(t, math.inf) for r in found.values()) for t in taps}
        survivors = [
            i
            for i, residuals in found.items()
            if any(
                self._explains(r, self.open[t]) and r <= 2 * best[t] + self.floor(t)
                for t, r in residuals.items()
            )
        ]
        return {
            i: self.replay.residuals([*self._known(), self.candidates[i]], list(self.errors))
            for i in survivors
        }

    def _cover(self, found: Mapping[int, Mapping[str, float]]) -> None:
        """Accept the fewest candidates that explain what all of them explain."""
        best = {
            tap: min(residuals.get(tap, math.inf) for residuals in found.values())
            for tap in self.open
        }
        sets = {
            i: {
                tap
                for tap, r in residuals.items()
                if tap in self.open
                and self._explains(r, self.open[tap])
                and r <= 2 * best[tap] + self.floor(tap)
            }
            for i, residuals in found.items()
        }
        against = {i: self._contradictions(residuals) for i, residuals in found.items()}
        left = set().union(*sets.values())
        while left:

            def rank(i: int, left: set[str] = left) -> tuple[float, int]:
                covered = len(sets[i] & left)
                return covered - 0.5 * min(against[i], covered), -i

            chosen = max(sets, key=rank)
            mine = sets[chosen] & left
            if not mine:
                break
            names = {self.candidates[chosen].fault.name}
            also = []
            for i, covered in sets.items():
                name = self.candidates[i].fault.name
                if name not in names and mine <= covered and against[i] <= against[chosen]:
                    names.add(name)
                    also.append(self.candidates[i])
            self.accepted.append(
                Accepted(
                    self.candidates[chosen],
                    {tap: found[chosen][tap] for tap in mine},
                    {tap: self.open[tap] for tap in mine},
                    also,
                )
            )
            left -= mine

    def _contradictions(self, residuals: Mapping[str, float]) -> int:
        """Return how many values that agree with the model would not if this was the mistake."""
        return sum(
            tap not in self.suspects and r > 10 * self.floor(tap) for tap, r in residuals.items()
        )

    def _in_pairs(self, probes: set[str]) -> bool:
        """Accept two mistakes that explain a value together; return whether there are any."""
        wrong = [tap for tap in probes if not self.by_rounding(tap)]
        for tap in sorted(wrong, key=lambda t: len(self.replay.behind(t)))[:2]:
            if len(self.replay.behind(tap)) < 2:
                continue
            helps = sorted((r[tap], i) for i, r in self._tried.items() if tap in r)
            for _, first in [x for x in helps if x[0] < 0.98 * self.open[tap]][:6]:
                for second in self._tried:
                    pair = [self.candidates[first], self.candidates[second]]
                    if not pair[0].steps.keys().isdisjoint(pair[1].steps):
                        continue
                    residual = self.replay.residuals([*self._known(), *pair], [tap]).get(tap, 1.0)
                    if self._explains(residual, self.open[tap]):
                        self.accepted += [
                            Accepted(each, {tap: residual}, {tap: self.open[tap]}, [])
                            for each in pair
                        ]
                        return True
        return False

    def _settle(self) -> None:
        """Let the open values keep what the accepted mistakes together leave of their errors."""
        residuals = self.replay.residuals(self._known(), list(self.open))
        for tap, residual in residuals.items():
            before, self.open[tap] = self.open[tap], residual
            if self._explains(residual, before):
                self.explained.add(tap)
                self._probed.discard(tap)  # a second mistake may explain the rest
            if residual <= self.floor(tap):
                del self.open[tap]
