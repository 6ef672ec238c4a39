"""Attention matrices as bytes for the page of a trace: whole, or their largest weights."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np
import numpy.typing as npt

from ..base.numeric import Float32

__all__ = ["pack", "thumbnails"]

#: Largest number of attention weights that a page has whole. They take one byte each.
_WHOLE = 12 << 20

#: Largest number of weights, three bytes each, that a page has of larger matrices.
_SOME = 8 << 20

#: Side of the small picture of a head.
_SIDE = 16


def pack(probs: Float32, total: int) -> dict[str, Any]:
    """Return the attention weights of a layer, rounded to 256 steps, as base64.

    Parameters
    ----------
    probs : numpy.ndarray of float32, shape (H, T, S)
    total : int
        The number of weights of all layers of the page. If there are too many, only the largest
        weights of each row are kept: `top` of them, with their places.

    Returns
    -------
    dict
        ``data``: uint8 (H, T, S), or (H, T, top) with ``places``: uint16, the same shape. Also
        ``thumbs``: uint8 (H, rows, columns), the small pictures.
    """
    heads, _, keys = probs.shape
    packed: dict[str, Any] = {"heads": heads, "keys": keys}
    small = thumbnails(probs)
    packed |= {"thumbs": _text(small), "thumbRows": small.shape[1], "thumbColumns": small.shape[2]}
    if total <= _WHOLE:
        return packed | {"top": 0, "data": _text(_steps(probs))}
    top = min(keys, max(2, min(8, _SOME * keys // total)))
    places = np.argpartition(probs, keys - top, axis=2)[:, :, keys - top :]
    values = _steps(np.take_along_axis(probs, places, axis=2))
    return packed | {"top": top, "data": _text(values), "places": _text(places.astype("<u2"))}


def thumbnails(probs: Float32) -> npt.NDArray[np.uint8]:
    """Return small pictures of matrices: the largest weight of each of at most 16 x 16 parts."""
    steps = probs
    for axis in (1, 2):
        size = probs.shape[axis]
        starts = np.arange(min(size, _SIDE)) * size // min(size, _SIDE)
        steps = np.maximum.reduceat(steps, starts, axis=axis)
    return _steps(steps)


def _steps(probs: Float32) -> npt.NDArray[np.uint8]:
    return np.rint(np.clip(np.nan_to_num(probs, nan=0.0), 0, 1) * 255).astype(np.uint8)


def _text(array: npt.NDArray[Any]) -> str:
    return base64.b64encode(array.tobytes()).decode()
