"""Quantized tensors of a checkpoint: MXFP4 in blocks with scales, and FP8 with scales.

Both are two or more tensors of a file that stand for one. MXFP4 is that of gpt-oss: 16 bytes with
two values of 4 bits each, the lower first, and an exponent for these 32 values. FP8 has a scale for
the whole tensor, for each row, or for each block of rows and columns, and each value is multiplied
by its scale, whether its tensor is called ``weight_scale`` or ``weight_scale_inv``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ..base.numeric import Float32
from ..errors import wrong
from ..files.arrays import StoredArray
from .config import CheckpointConfig

__all__ = ["Mxfp4", "ScaledArray", "Stored", "joined"]

#: The values of four bits: the highest is the sign.
_FP4 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)

_FP8 = ("F8_E4M3", "F8_E5M2")
_SCALES = ("_scale_inv", "_scale")

#: Scales of activations, which a model without FP8 arithmetic does not need.
_ACTIVATIONS = (".input_scale", "_input_scale", ".activation_scale", "_activation_scale")


class Mxfp4(NamedTuple):
    """A tensor in MXFP4. Its shape is that of transformers: the last two axes are swapped.

    Attributes
    ----------
    name : str
    blocks, scales : StoredArray
        uint8 of shapes (..., rows, groups, 16) and (..., rows, groups).
    """

    name: str
    blocks: StoredArray
    scales: StoredArray

    @property
    def dtype(self) -> str:
        """``"MXFP4"``."""
        return "MXFP4"

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the values: (..., columns, rows)."""
        *first, rows, groups, _ = self.blocks.shape
        return (*first, 32 * groups, rows)

    def forget(self) -> None:
        """As `StoredArray.forget`."""
        self.blocks.forget()
        self.scales.forget()

    def _nibbles(self) -> npt.NDArray[np.uint8]:
        blocks = self.blocks.read()
        return np.stack([blocks & 15, blocks >> 4], -1).reshape(*blocks.shape[:-1], 32)

    def read(self) -> Float32:
        """Return the values."""
        exponents = self.scales.read().astype(np.int32) - 127
        values: Float32 = np.ldexp(_FP4[self._nibbles()], exponents[..., np.newaxis])
        return values.reshape(*values.shape[:-2], -1).swapaxes(-1, -2)

    def packed(self) -> npt.NDArray[np.uint8]:
        """Return ggml's blocks of 17 bytes in place of every 32 values of a column."""
        nibbles = self._nibbles()
        result = np.empty((*nibbles.shape[:-1], 17), np.uint8)
        result[..., 0] = self.scales.read()
        result[..., 1:] = nibbles[..., :16] | nibbles[..., 16:] << 4
        return result.reshape(*result.shape[:-2], -1).swapaxes(-1, -2)


class ScaledArray(NamedTuple):
    """A tensor in FP8 with its scales.

    Attributes
    ----------
    name : str
    values, scales : StoredArray
    block : tuple of int
        Rows and columns with the same scale, where the scales are fewer than these.
    """

    name: str
    values: StoredArray
    scales: StoredArray
    block: tuple[int, int]

    @property
    def dtype(self) -> str:
        """The type of the values."""
        return self.values.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the values."""
        return self.values.shape

    def forget(self) -> None:
        """As `StoredArray.forget`."""
        self.values.forget()
        self.scales.forget()

    def read(self) -> Float32:
        """Return the values times their scales."""
        scales = self.scales.read().astype(np.float32)
        if scales.size == 1:
            scales = scales.reshape(())
        elif scales.ndim == len(self.shape) - 1:
            scales = scales[..., np.newaxis]
        for axis in range(-scales.ndim, 0):
            size, count = self.shape[axis], scales.shape[axis]
            if count in (1, size):
                continue
            step = self.block[axis] if axis >= -2 else 1
            if count != -(-size // step):
                raise wrong(
                    f"the scales of {self.name}",
                    f"of shape {self.scales.shape}",
                    f"one for every {self.block[0]} x {self.block[1]} of {self.shape}",
                )
            scales = scales.repeat(step, axis)
            scales = np.take(scales, range(size), axis)
        values: Float32 = self.values.read() * scales
        return values


Stored = StoredArray | Mxfp4 | ScaledArray


def joined(stored: Mapping[str, StoredArray], config: CheckpointConfig) -> dict[str, Stored]:
    """Return a checkpoint's tensors, with one in place of a quantized one and its scales.

    Parameters
    ----------
    stored : mapping of str to StoredArray
    config : CheckpointConfig

    Returns
    -------
    dict of str to StoredArray, Mxfp4 or ScaledArray

    Raises
    ------
    tinyllm.FormatError
        If shapes do not fit.
    """
    result: dict[str, Stored] = dict(stored)
    for name, array in stored.items():
        if name.endswith("_blocks"):
            stem = name.removesuffix("_blocks")
            scales = stored.get(f"{stem}_scales")
            if scales is not None and array.dtype == scales.dtype == "U8":
                if len(array.shape) < 3 or array.shape != (*scales.shape, 16):
                    raise wrong(name, f"of shape {array.shape}", f"{(*scales.shape, 16)}")
                del result[name], result[f"{stem}_scales"]
                result[stem] = Mxfp4(stem, array, scales)
        elif array.dtype in _FP8:
            for suffix in _SCALES:
                if (scales := stored.get(name + suffix)) is not None:
                    result[name] = ScaledArray(name, array, scales, _block(config))
                    del result[name + suffix]
                    break
    if any(array.dtype in _FP8 for array in result.values()):
        result = {name: array for name, array in result.items() if not name.endswith(_ACTIVATIONS)}
    return result


def _block(config: CheckpointConfig) -> tuple[int, int]:
    quantization = config.get("quantization_config")
    size: Any = quantization.get("weight_block_size") if isinstance(quantization, dict) else None
    if size is None:
        return 128, 128
    if not isinstance(size, list) or [type(n) for n in size] != [int, int] or min(size) < 1:
        raise wrong("weight_block_size of config.json", size, "two sizes")
    return size[0], size[1]
