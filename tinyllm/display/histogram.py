"""Statistics of an array, and its histogram as a small image."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from ..base.numeric import Float64
from .table import Markup

__all__ = ["sample", "spark", "statistics"]


def sample(array: npt.NDArray[Any], limit: int = 65536) -> Float64:
    """Return the finite values of an array, or of an even sample of at most `limit` values."""
    flat = array.reshape(-1)[:: max(1, -(-array.size // limit))]
    values: Float64 = flat[np.isfinite(flat)].astype(np.float64)
    return values


def statistics(values: Float64) -> tuple[str, str, str, str]:
    """Return mean, root mean square, minimum and maximum as text."""
    if values.size == 0:
        return ("", "", "", "")
    numbers = (values.mean(), np.sqrt(np.mean(values * values)), values.min(), values.max())
    a, b, c, d = (f"{number:.4g}" for number in numbers)
    return (a, b, c, d)


def spark(values: Float64, bins: int = 32) -> Markup:
    """Return a histogram of the values as a small SVG image."""
    if values.size == 0:
        return Markup("")
    with np.errstate(over="ignore"):
        low, high = float(values.min()), float(values.max())
    if not np.isfinite(high - low) or high <= low:
        counts = np.zeros(bins, np.int64)
        counts[bins // 2] = values.size
    else:
        places = ((values - low) / (high - low) * bins).astype(np.int64)
        counts = np.bincount(np.clip(places, 0, bins - 1), minlength=bins)
    most = max(1, int(counts.max()))
    bars = "".join(
        f"M{2 * i} 16v-{max(1.0, 15 * count / most):.1f}"
        for i, count in enumerate(counts.tolist())
        if count
    )
    return Markup(
        f"<svg width='{2 * bins}' height='16' viewBox='-1 0 {2 * bins} 16' role='img'>"
        f"<title>{low:.4g} to {high:.4g}</title>"
        f"<path d='{bars}' stroke='#4878a8' stroke-width='1.6'/></svg>"
    )
