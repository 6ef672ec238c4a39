"""The table of a model's weights, with statistics and histograms of sampled values."""

from __future__ import annotations

import math
from collections.abc import Iterable

from ..base.samples import MOST_SAMPLED, STRETCH, WeightSample
from .histogram import sample, spark, statistics
from .table import Table

__all__ = ["weights_table"]


def _row(of: WeightSample) -> tuple[object, ...]:
    row: tuple[object, ...] = (of.name, of.type, of.shape, f"{of.nbytes:,}")
    if of.values is None:
        return (*row, "", "", "", "", "", "none")
    values, total = sample(of.values), math.prod(of.shape)
    seen = "all" if len(of.values) == total else f"{len(of.values):,} of {total:,}"
    return (*row, *statistics(values), spark(values), seen)


def weights_table(samples: Iterable[WeightSample], stretches: int = 16) -> tuple[Table, str]:
    """Return a table of weights with statistics, and a caption that explains the sampling.

    Parameters
    ----------
    samples : iterable of WeightSample
    stretches : int
        The number of stretches that `sample_weights` was called with.

    Returns
    -------
    table : Table
    caption : str

    Examples
    --------
    >>> import tinyllm
    >>> from tinyllm.base.samples import sample_weights
    >>> from tinyllm.display.weights import weights_table
    >>> table, caption = weights_table(sample_weights(tinyllm.load().weights.values()))
    >>> table.columns[:3]
    ('name', 'type', 'shape')
    """
    columns = ("name", "type", "shape", "bytes", "mean", "rms", "min", "max")
    rows = [_row(sample) for sample in samples]
    most = stretches * STRETCH
    caption = (
        f"Statistics and histograms cover all values of a tensor of up to {most:,} values. Of a "
        f"larger one they cover {stretches} evenly spaced stretches of {STRETCH} values each. "
        "Column 'sampled' shows how many values were used. Values that are not finite are skipped."
    )
    if len(rows) > MOST_SAMPLED:
        caption += f" Only the first {MOST_SAMPLED:,} tensors are sampled."
    return Table((*columns, "histogram", "sampled"), rows), caption
