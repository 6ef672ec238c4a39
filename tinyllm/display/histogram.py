"""Statistics of an array, and its histogram or its course as a small image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ..base.numeric import Float64
from .table import Markup

__all__ = ["line", "sample", "spark", "statistics"]


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


def spark(values: Float64, bins: int = 24) -> Markup:
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
    # heights in quarters of a pixel; a bar that is not empty can be seen
    heights = np.where(counts, np.maximum(2, np.rint(60 * counts / max(1, counts.max()))), 0)
    steps = "".join(f"V{64 - height:.0f}h8" for height in heights)
    return _image(bins * 2, f"<path d='M0 64{steps}V64' fill='#4878a8'/>", low, high)


def line(values: Sequence[float]) -> Markup:
    """Return numbers as a small SVG image of a line, whose vertical axis begins at 0."""
    array = np.array(values, np.float64)
    finite = array[np.isfinite(array)]
    if not finite.size:
        return Markup("")
    most = float(np.abs(finite).max()) or 1.0
    places = [60 - 56 * float(v) / most if np.isfinite(v) else None for v in array]
    step = max(4, 256 // len(places))
    commands, drawing = [], False
    for i, place in enumerate(places):
        if place is not None:
            commands.append(f"{'L' if drawing else 'M'}{step * i} {place:.0f}")
        drawing = place is not None
    path = f"<path d='{''.join(commands)}' fill='none' stroke='#b5673a' stroke-width='5'/>"
    return _image(step * len(places) // 4, path, float(finite.min()), float(finite.max()))


def _image(width: int, path: str, low: float, high: float) -> Markup:
    return Markup(
        f"<svg width='{width}' height='16' viewBox='0 0 {4 * width} 64' role='img'>"
        f"<title>{low:.4g} to {high:.4g}</title>{path}</svg>"
    )
