"""Mistakes in unpacking quantized weights: the same blocks, read in a wrong way.

A mistake changes the bytes of a tensor so that the right reader gets the values that the wrong
reader would have got. The layouts are those of ggml (ggml-common.h, ggml-quants.c).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from .._core import Weight
from .catalogue import Site, Variant, fault
from .replay import Array, Call

__all__ = ["LAYOUTS"]


class _Layout(NamedTuple):
    """Where a block of a type has its parts, in bytes.

    Attributes
    ----------
    items, size : int
        Values and bytes of a block.
    d, dmin : int or None
        The float16 scale, and the float16 factor of the minima.
    nibbles : tuple of int or None
        First and last byte of the 4-bit values, and how many of these bytes belong together: their
        low halves are values in a row, and their high halves are the next ones.
    """

    items: int
    size: int
    d: int
    dmin: int | None = None
    nibbles: tuple[int, int, int] | None = None


LAYOUTS = {
    "Q4_0": _Layout(32, 18, 0, nibbles=(2, 18, 16)),
    "Q4_1": _Layout(32, 20, 0, 2, nibbles=(4, 20, 16)),
    "Q5_0": _Layout(32, 22, 0, nibbles=(6, 22, 16)),
    "Q5_1": _Layout(32, 24, 0, 2, nibbles=(8, 24, 16)),
    "Q8_0": _Layout(32, 34, 0),
    "Q2_K": _Layout(256, 84, 80, 82),
    "Q3_K": _Layout(256, 110, 108),
    "Q4_K": _Layout(256, 144, 0, 2, nibbles=(16, 144, 32)),
    "Q5_K": _Layout(256, 176, 0, 2, nibbles=(48, 176, 32)),
    "Q6_K": _Layout(256, 210, 208),
}

#: Types whose minima are subtracted, and not added as in Q4_1 and Q5_1.
_SUBTRACTED = ("Q2_K", "Q4_K", "Q5_K")


def _read(weight: Any, blocks: Array) -> Array:
    """Return the values of a tensor with other bytes."""
    data = np.ascontiguousarray(blocks).tobytes()
    array: Array = Weight(weight.name, weight.shape, weight.type, data).numpy()
    return array


def _blocks(weight: Any) -> Array:
    """Return a writable copy of the bytes of a tensor, one row for each block."""
    size = LAYOUTS[weight.type].size if weight.type in LAYOUTS else 2
    return np.array(weight.raw, np.uint8).reshape(-1, size)


def _instead(call: Call, change: Callable[[Any], Array]) -> Array:
    """Return a step run with its matrix read in a wrong way."""
    return call.run(weights=[change(call.raw()), *call.weights[1:]])


def _of_type(*types: str) -> Callable[[Site, Any], bool]:
    """Return a condition: the matrix of the step has one of these types."""

    def where(site: Site, value: Any) -> bool:
        kind = site.tensors[site.step.weights[0] or ""].type
        return kind in types

    return where


_STEPS = "linear experts embed"


@fault(
    "q4_nibble_order",
    _STEPS,
    "The two 4-bit values of a byte are in the wrong order: {}.",
    "The low halves of the bytes of a group come first, then the high halves.",
    where=_of_type("Q4_0", "Q4_1", "Q4_K"),
    variants=lambda plan, tokens, prompt: [
        Variant("high before low", False),
        Variant("low and high of each byte are neighbours", True),
    ],
)
def _q4_nibble_order(call: Call, value: Any) -> Array:
    def change(weight: Any) -> Array:
        blocks = _blocks(weight)
        first, last, group = LAYOUTS[weight.type].nibbles or (0, 0, 1)
        data = blocks[:, first:last].reshape(len(blocks), -1, group)
        low, high = data & 15, data >> 4
        if value:
            pairs = np.stack([low, high], axis=-1).reshape(*data.shape[:2], 2 * group)
            low, high = pairs[..., :group], pairs[..., group:]
        else:
            low, high = high, low
        blocks[:, first:last] = (low | (high << 4)).reshape(len(blocks), -1)
        return _read(weight, blocks)

    return _instead(call, change)


def _six_bits(data: Array) -> tuple[Array, Array]:
    """Return the 8 scales and 8 minima in the 12 bytes of Q4_K and Q5_K. (n, 12) -> (n, 8) twice.

    ggml-quants.c, ``get_scale_min_k4``.
    """
    a, b, c = data[:, :4], data[:, 4:8], data[:, 8:]
    scales = np.concatenate([a & 63, (c & 15) | ((a >> 6) << 4)], axis=1)
    return scales, np.concatenate([b & 63, (c >> 4) | ((b >> 6) << 4)], axis=1)


def _pack_six_bits(scales: Array, minima: Array) -> Array:
    """Return the 12 bytes of 8 scales and 8 minima: the inverse of `_six_bits`."""
    a = (scales[:, :4] & 63) | ((scales[:, 4:] >> 4) << 6)
    b = (minima[:, :4] & 63) | ((minima[:, 4:] >> 4) << 6)
    c = (scales[:, 4:] & 15) | ((minima[:, 4:] & 15) << 4)
    return np.concatenate([a, b, c], axis=1)


@fault(
    "k_quant_scale_order",
    _STEPS,
    "The scales inside the blocks of K types are read wrongly: {}.",
    "See get_scale_min_k4 and dequantize_row_q6_K in ggml-quants.c.",
    where=lambda site, value: _of_type(*value[1])(site, None),
    variants=lambda plan, tokens, prompt: [
        Variant("the upper two bits of scales 4 to 7 are lost", ("upper", ("Q4_K", "Q5_K"))),
        Variant("scales and minima are exchanged", ("swapped", ("Q4_K", "Q5_K"))),
        Variant("the 16 scales are taken in the order of the rows", ("rows", ("Q6_K",))),
    ],
)
def _k_quant_scale_order(call: Call, value: Any) -> Array:
    def change(weight: Any) -> Array:
        blocks = _blocks(weight)
        if value[0] == "rows":  # of each half, scale 4 i + k instead of scale i + 2 k
            order = np.arange(8).reshape(2, 4).T.ravel()
            blocks[:, 192:208] = blocks[:, 192 + np.concatenate([order, 8 + order])]
            return _read(weight, blocks)
        scales, minima = _six_bits(blocks[:, 4:16])
        if value[0] == "upper":
            scales[:, 4:] &= 15
            minima[:, 4:] &= 15
        else:
            scales, minima = minima, scales
        blocks[:, 4:16] = _pack_six_bits(scales, minima)
        return _read(weight, blocks)

    return _instead(call, change)


@fault(
    "k_quant_min_sign",
    _STEPS,
    "The minima of K types are {}.",
    "A value is d * scale * q - dmin * min.",
    where=lambda site, value: _of_type(*_SUBTRACTED)(site, None),
    variants=lambda plan, tokens, prompt: [
        Variant("added, and not subtracted", "sign"),
        Variant("not subtracted", "missing"),
    ],
)
def _k_quant_min_sign(call: Call, value: Any) -> Array:
    def change(weight: Any) -> Array:
        blocks = _blocks(weight)
        at = LAYOUTS[weight.type].dmin or 0
        if value == "sign":
            blocks[:, at + 1] ^= 128
        else:
            blocks[:, at : at + 2] = 0
        return _read(weight, blocks)

    return _instead(call, change)


def _halves(blocks: Array, at: int) -> Array:
    """Return the 16-bit numbers at a place of each block."""
    return np.ascontiguousarray(blocks[:, at : at + 2]).view(np.uint16)[:, 0]


def _as_bf16(bits: Array) -> Array:
    """Return the value of 16 bits as a bfloat16."""
    values: Array = (bits.astype(np.uint32) << 16).view(np.float32)
    return values


@fault(
    "f16_as_bf16",
    _STEPS,
    "Float16 numbers of the file are read as bfloat16.",
    "The scales of quantized blocks are IEEE float16, with 5 bits of exponent.",
    where=_of_type("F16", *LAYOUTS),
)
def _f16_as_bf16(call: Call, value: Any) -> Array:
    def change(weight: Any) -> Array:
        blocks = _blocks(weight)
        if weight.type == "F16":
            return _as_bf16(_halves(blocks, 0)).reshape(weight.shape)
        layout = LAYOUTS[weight.type]

        def factor(at: int) -> Array:
            bits = _halves(blocks, at)
            right = bits.view(np.float16).astype(np.float32)
            ratio = np.divide(_as_bf16(bits), right, out=np.zeros_like(right), where=right != 0)
            return ratio[:, np.newaxis]

        def read(data: Array) -> Array:
            return _read(weight, data).reshape(-1, layout.items)

        whole = read(blocks)
        d = factor(layout.d)
        if layout.dmin is None:
            return (whole * d).reshape(weight.shape)
        without = blocks.copy()
        without[:, layout.dmin : layout.dmin + 2] = 0
        scaled = read(without)
        y: Array = scaled * d + (whole - scaled) * factor(layout.dmin)
        return y.reshape(weight.shape)

    return _instead(call, change)


@fault(
    "block_size_misread",
    _STEPS,
    "The blocks are taken for twice as long, so every second scale is the one before it.",
    "Each block has its own scale: see the block size of the tensor's type.",
    where=_of_type("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q4_K", "Q5_K", "Q6_K"),
)
def _block_size_misread(call: Call, value: Any) -> Array:
    def change(weight: Any) -> Array:
        blocks, layout = _blocks(weight), LAYOUTS[weight.type]
        if weight.type == "Q6_K":
            scales = blocks[:, 192:208]
            blocks[:, 192:208] = np.repeat(scales[:, ::2], 2, axis=1)
        elif layout.items == 256:
            scales, minima = _six_bits(blocks[:, 4:16])
            pairs = (np.repeat(part[:, ::2], 2, axis=1) for part in (scales, minima))
            blocks[:, 4:16] = _pack_six_bits(*pairs)
        else:
            width = 2 if layout.dmin is None else 4
            second = np.arange(1, len(blocks), 2)
            blocks[second, :width] = blocks[second - 1, :width]
        return _read(weight, blocks)

    return _instead(call, change)
