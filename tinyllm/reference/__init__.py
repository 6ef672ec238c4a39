"""The forward pass in NumPy float64, written to be read: what the C core is held against.

`ops` has a pure function for each kind of step, and `forward` walks a model's plan with them. A
tap is named after the weight whose step it ends: ``blk.3.attn_q`` is the output of the step that
uses ``blk.3.attn_q.weight``.
"""

from .ops import (
    OPS,
    masked_scores,
    mix_values,
    norm,
    norm_scale,
    rope_frequencies,
    rotate,
    silu_mul,
    softmax,
)
from .walk import Step, forward, step, steps

__all__ = [
    "OPS",
    "Step",
    "forward",
    "masked_scores",
    "mix_values",
    "norm",
    "norm_scale",
    "rope_frequencies",
    "rotate",
    "silu_mul",
    "softmax",
    "step",
    "steps",
]
