"""Dropout: which values of a step are set to zero, recomputed wherever they are needed."""

from __future__ import annotations

import numpy as np

from .. import _core
from ..architectures.plan import ForwardPlan
from ..base.numeric import Float32

__all__ = ["Dropout", "dropped_steps"]


def dropped_steps(plan: ForwardPlan) -> tuple[int, ...]:
    """Return the steps whose values dropout changes.

    They are the embedding, and what attention and the network of each block add to the residual
    stream: the second and third of the places of GPT-2, which drops attention probabilities, too.

    Parameters
    ----------
    plan : ForwardPlan

    Returns
    -------
    tuple of int

    Examples
    --------
    >>> import tinyllm as tl
    >>> steps = tl.load().steps
    >>> [steps[i].tap for i in dropped_steps(steps)][:3]
    ['blk.0.resid_pre', 'blk.0.attn_output', 'blk.0.ffn_down']
    """
    taps = {plan.role("resid_pre", 0), *plan.roles("attn_add"), *plan.roles("ffn_add")}
    return tuple(number for number, step in enumerate(plan) if step.tap in taps)


class Dropout:
    """Drops values of the forward pass, and of their gradients, as the edit of a step.

    Whether a value is dropped depends on the seed, the step of the run, the step of the plan and
    the place of the value in the batch: on nothing that a checkpoint would have to hold.

    Parameters
    ----------
    rate : float
    seed, step : int
        The step of the run.
    row : int
        The place of the first row in the batch.
    threads : int
    """

    def __init__(self, rate: float, seed: int, step: int, row: int, threads: int) -> None:
        self._rate = rate
        self._root = np.random.SeedSequence([seed, step]).generate_state(1, np.uint64)[0]
        self._row = row
        self._threads = threads

    def __call__(self, number: int, values: Float32, piece: int) -> None:
        """Change the values of a step of the plan, or their gradient."""
        width = values.size // len(values)
        _core.dropout(
            values,
            rate=self._rate,
            key=(int(self._root) + number * _STRIDE) % 2**64,
            first=self._row * width,
            threads=self._threads,
        )


#: An odd number, far from the increment of the generator: keys of steps lie far from each other.
_STRIDE = 0xD1342543DE82EF95
