"""The forward pass in NumPy float64, written to be read."""

from .walk import (
    ARCHITECTURES,
    LLAMA,
    Config,
    Layer,
    Row,
    Step,
    forward,
    step,
    steps,
)

__all__ = [
    "ARCHITECTURES",
    "LLAMA",
    "Config",
    "Layer",
    "Row",
    "Step",
    "forward",
    "step",
    "steps",
]
