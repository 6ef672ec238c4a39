"""The table of a model's weights, with statistics and histograms of sampled values."""

from __future__ import annotations

import math
from collections.abc import Iterable

from ..base.samples import MOST_SAMPLED, STRETCH, WeightSample
from ..base.units import size
from .families import COLUMNS, Member, families, layers_text
from .histogram import sample, spark, statistics
from .table import Table

__all__ = ["weights_html", "weights_table"]


def _row(of: WeightSample) -> tuple[object, ...]:
    row: tuple[object, ...] = (of.name, of.type, of.shape, size(of.nbytes))
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
    columns = ("name", "type", "shape", "size", "mean", "rms", "min", "max")
    rows = [_row(sample) for sample in samples]
    caption = _caption(stretches, len(rows))
    caption += " Column 'sampled' shows how many values were used."
    return Table((*columns, "histogram", "sampled"), rows), caption


def weights_html(samples: Iterable[WeightSample], stretches: int = 16) -> str:
    """Return HTML with one row for the weights of each name, shape and type in all blocks.

    Parameters
    ----------
    samples, stretches
        As for `weights_table`.

    Returns
    -------
    str
    """
    members = [
        Member(
            of.name,
            (of.shape, of.type),
            of.nbytes,
            None if of.values is None else sample(of.values),
        )
        for of in samples
    ]
    rows = [
        (family.pattern, layers_text(family.layers), kind, shape, *family.cells())
        for family in families(members)
        for shape, kind in [family.members[0].kind]
    ]
    table = Table(("weight", "layers", "type", "shape", *COLUMNS), rows)
    return table.html(_caption(stretches, len(members)))


def _caption(stretches: int, count: int) -> str:
    most = stretches * STRETCH
    caption = (
        f"Statistics and histograms cover all values of a tensor of up to {most:,} values. Of a "
        f"larger one they cover {stretches} evenly spaced stretches of {STRETCH} values each. "
        "Values that are not finite are skipped."
    )
    if count > MOST_SAMPLED:
        caption += f" Only the first {MOST_SAMPLED:,} tensors are sampled."
    return caption
