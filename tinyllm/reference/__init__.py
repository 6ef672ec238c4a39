"""A readable forward pass in NumPy float64, which the C core is tested against.

`ops` has one function per op of a plan, and `forward` runs the steps of a model's plan with them. A
tap is named after the weight that its step uses: ``blk.3.attn_q`` is the output of the step that
uses ``blk.3.attn_q.weight``.
"""

from .ops import (
    OPS,
    gated,
    layer_norm,
    layer_scale,
    linear,
    masked_scores,
    mix_values,
    norm,
    norm_mean,
    norm_scale,
    rope_frequencies,
    rotate,
    softmax,
    temper,
    unary,
)
from .walk import Step, forward, step, steps

__all__ = [
    "OPS",
    "Step",
    "forward",
    "gated",
    "layer_norm",
    "layer_scale",
    "linear",
    "masked_scores",
    "mix_values",
    "norm",
    "norm_mean",
    "norm_scale",
    "rope_frequencies",
    "rotate",
    "softmax",
    "step",
    "steps",
    "temper",
    "unary",
]
