"""The axes that pictures are drawn into, with matplotlib."""

from __future__ import annotations

from typing import Any

__all__ = ["axes"]


def axes(ax: Any, width: float, height: float) -> Any:
    """Return the axes that a caller gave, or those of a new figure.

    Parameters
    ----------
    ax : matplotlib.axes.Axes or None
    width, height : float
        The size of a new figure in inches.

    Returns
    -------
    matplotlib.axes.Axes

    Raises
    ------
    ImportError
        If matplotlib is not installed.
    TypeError
        If `ax` is something else.
    """
    try:
        import matplotlib.axes
        import matplotlib.pyplot as plt
    except ImportError as error:
        raise ImportError(
            "pictures need matplotlib: pip install matplotlib", name=error.name
        ) from error
    if ax is None:
        return plt.subplots(figsize=(width, height), layout="constrained")[1]
    if not isinstance(ax, matplotlib.axes.Axes):
        raise TypeError(f"ax is {ax!r}; expected a matplotlib Axes or None")
    return ax
