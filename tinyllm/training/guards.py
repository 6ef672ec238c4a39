"""Warnings about a run that goes wrong: a plateau, a matrix that does not move, a spike."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ..base.numeric import Float32
from .optimizer import moved

__all__ = ["Guards"]

#: Steps over which a plateau is measured, and after which every matrix should have moved.
_STEPS = 100

#: How near the unigram entropy a loss sits on it, how far a matrix should move, and by how much a
#: loss jumps, all relative to each.
_NEAR, _STILL, _SPIKE = 0.01, 0.01, 1.5


class Guards:
    """Looks at each step, and collects warnings. Each is given once.

    Parameters
    ----------
    entropy : float
        The unigram entropy of the data.
    weights : mapping of str to float32 array
        The weights before the first step.
    """

    def __init__(self, entropy: float, weights: Mapping[str, Float32]) -> None:
        self._entropy = entropy
        self._before = {name: np.array(w) for name, w in weights.items() if w.ndim == 2}
        self._seen: set[str] = set()
        self.warnings: list[str] = []

    def _warn(self, kind: str, text: str) -> None:
        if kind not in self._seen:
            self._seen.add(kind)
            self.warnings.append(text)

    def look(self, losses: list[float], weights: Mapping[str, Float32]) -> None:
        """Look at the losses so far.

        Parameters
        ----------
        losses : list of float
        weights : mapping of str to float32 array
        """
        step = len(losses)
        last = losses[-_STEPS:]
        if not np.isfinite(losses[-1]):
            self._warn("nan", f"step {step}: the loss is {losses[-1]}; a lower lr may help")
        if step >= 2 * _STEPS and abs(np.mean(last) / self._entropy - 1) < _NEAR:
            self._warn(
                "plateau",
                f"step {step}: the loss sits on the data's unigram entropy, {self._entropy:.4f}; "
                "only the frequencies of the tokens are learnt",
            )
        if step > _STEPS and losses[-1] > _SPIKE * np.mean(losses[-_STEPS - 1 : -1]):
            self._warn("spike", f"step {step}: the loss jumped to {losses[-1]:.4f}")
        if step == _STEPS:
            for name, before in self._before.items():
                if moved(before, weights[name]) < _STILL:
                    self._warn(name, f"step {step}: {name} has moved by less than {_STILL:.0%}")
            self._before = {}
