"""Float32 values as the bytes of a tensor type: F32, F16, BF16 and Q8_0, as ggml rounds them."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ..base.numeric import Float32

__all__ = ["encode"]

_BLOCK = 32  # of Q8_0
_CHUNK = 1 << 16  # values whose temporary arrays stay in the cache


def encode(name: str, values: Float32, kind: str) -> npt.NDArray[np.uint8]:
    """Return the bytes of a tensor.

    Parameters
    ----------
    name : str
        The tensor, for messages.
    values : numpy.ndarray
        float32. For Q8_0, the last size is a multiple of 32.
    kind : str
        ``"F32"``, ``"F16"``, ``"BF16"`` or ``"Q8_0"``.

    Returns
    -------
    numpy.ndarray
        uint8.

    Raises
    ------
    ValueError
        If a finite value does not fit float16.

    Examples
    --------
    >>> import numpy as np
    >>> from tinyllm.conversion.encode import encode
    >>> encode("x", np.float32([1.0]), "BF16").tobytes().hex()
    '803f'
    """
    flat = np.ascontiguousarray(values, np.float32).reshape(-1)
    pack = {"F32": _f32, "F16": _f16, "BF16": _bf16, "Q8_0": _q8_0}[kind]
    size = {"F32": 4, "F16": 2, "BF16": 2, "Q8_0": (2 + _BLOCK) / _BLOCK}[kind]
    result = np.empty(int(flat.size * size), np.uint8)
    for start in range(0, flat.size, _CHUNK):
        packed = pack(name, flat[start : start + _CHUNK]).reshape(-1).view(np.uint8)
        at = int(start * size)
        result[at : at + packed.size] = packed
    return result


def _f32(name: str, values: Float32) -> npt.NDArray[np.generic]:
    return values.astype("<f4", copy=False)


def _f16(name: str, values: Float32) -> npt.NDArray[np.generic]:
    with np.errstate(over="ignore"):
        half = values.astype("<f2")
    lost = np.isinf(half) & np.isfinite(values)
    if lost.any():
        raise ValueError(
            f"{name} has the value {values[lost][0]:.6g}; expected at most 65504 for F16. "
            "BF16 and F32 have no such limit"
        )
    return half


def _bf16(name: str, values: Float32) -> npt.NDArray[np.generic]:
    bits = values.view(np.uint32)
    quiet = (bits >> 16) | 64
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16  # to nearest, ties to even
    return np.where(np.isnan(values), quiet, rounded).astype("<u2")


def _q8_0(name: str, values: Float32) -> npt.NDArray[np.generic]:
    """Blocks of 32 values: a float16 scale, then a signed byte for each, halves away from zero."""
    blocks = values.reshape(-1, _BLOCK)
    scale = np.abs(blocks).max(axis=1) / np.float32(127)
    inverse = np.zeros_like(scale)
    np.divide(np.float32(1), scale, out=inverse, where=scale != 0)
    scaled = np.multiply(blocks, inverse[:, np.newaxis]).astype(np.float64)
    scaled += np.copysign(0.5, scaled)  # exact in float64; the cast below then cuts off
    packed = np.empty((len(blocks), 2 + _BLOCK), np.uint8)
    packed[:, :2] = _f16(name, scale).view(np.uint8).reshape(-1, 2)
    packed[:, 2:] = scaled.astype(np.int8).view(np.uint8)
    return packed
