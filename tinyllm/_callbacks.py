"""What the C core calls by name: this module and `tinyllm.errors` are all that it knows."""

from __future__ import annotations

from ._core import Weight
from .base.samples import sample_weights
from .display.weights import weights_table

__all__ = ["weight_html"]


def weight_html(weight: Weight) -> str:
    """A weight in a notebook: name, type, shape, bytes, and a histogram of some of its values."""
    table, caption = weights_table(sample_weights([weight], 128), 128)
    return table.html(caption)
