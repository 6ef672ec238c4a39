"""The step of an optimizer over all weights: Muon or AdamW, with clipping."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from .. import _core
from ..base.numeric import Float32
from .network import Network
from .settings import Settings

__all__ = ["Optimizer"]

_BETAS = (0.9, 0.99)
_EPSILON = 1e-8
_MOMENTUM = 0.95

#: With Muon, the learning rate of AdamW for embeddings, output, norms and biases, relative to that
#: of the matrices.
_OTHERS = 0.15


class Optimizer:
    """New weights from gradients.

    Muon changes the matrices of the blocks, and AdamW the embeddings, the output, the norms and
    the biases. Or AdamW changes everything. Only matrices decay.

    Parameters
    ----------
    network : Network
    settings : Settings

    Attributes
    ----------
    first, second : float32 arrays
        The moments of all weights, in their order.
    """

    def __init__(self, network: Network, settings: Settings) -> None:
        self._network = network
        self._settings = settings
        self.first = np.zeros_like(network.flat)
        self.second = np.zeros_like(network.flat)
        self._muon: list[tuple[Any, ...]] = []
        self._rows: list[int] = []
        self._adamw: list[tuple[Any, ...]] = []
        end = 0
        for name, weights in network.weights.items():
            start, end = end, end + weights.size
            gradient = network.gradients[name]
            first, second = (m[start:end].reshape(weights.shape) for m in (self.first, self.second))
            hidden = weights.ndim == 2 and name.startswith("blk.")
            if settings.optimizer == "muon" and hidden:
                parts = 3 if ".attn_qkv." in name else 1  # queries, keys and values apart
                for part in range(parts):
                    rows = len(weights) // parts
                    cut = slice(part * rows, (part + 1) * rows)
                    self._muon.append(
                        (weights[cut], gradient[cut], first[cut], settings.weight_decay)
                    )
                    self._rows.append(rows)
            else:
                decay = settings.weight_decay if weights.ndim == 2 else 0.0
                self._adamw.append((weights, gradient, first, second, decay))

    def step(self, number: int) -> float:
        """Change the weights, and return the norm of the gradient before clipping.

        Parameters
        ----------
        number : int
            The step, from 0.
        """
        settings, threads = self._settings, self._network.threads
        norm = math.sqrt(_core.sum_squares(self._network.flat))
        scale = min(1.0, settings.clip / (norm + 1e-6)) if math.isfinite(norm) else 0.0
        rate = settings.lr * settings.factor(number)
        if self._muon:
            _core.muon(
                tuple(self._muon),
                tuple(self._rows),
                rate=rate,
                momentum=_MOMENTUM,
                scale=scale,
                threads=threads,
            )
        _core.adamw(
            tuple(self._adamw),
            rate=rate * _OTHERS if self._muon else rate,
            beta1=_BETAS[0],
            beta2=_BETAS[1],
            epsilon=_EPSILON,
            step=number + 1,
            scale=scale,
            threads=threads,
        )
        return norm


def moved(before: Float32, after: Float32) -> float:
    """Return how far a matrix has moved, relative to its norm."""
    norm = math.sqrt(_core.sum_squares(before))
    return math.sqrt(_core.sum_squares(after - before)) / (norm + 1e-30)
