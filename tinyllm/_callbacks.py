"""Functions that the C core imports by name. It imports only this module and `tinyllm.errors`."""

from __future__ import annotations

from ._core import Weight
from .base.samples import sample_weights
from .display.weights import weights_table

__all__ = ["weight_html"]


def weight_html(weight: Weight) -> str:
    """Return a weight as an HTML table: name, type, shape, bytes, statistics and a histogram."""
    table, caption = weights_table(sample_weights([weight], 128), 128)
    return table.html(caption)
