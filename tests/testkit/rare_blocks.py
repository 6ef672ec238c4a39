"""Blocks of the rarer tensor types in NumPy integers.

IQ1, IQ2, IQ3, TQ1_0, TQ2_0, NVFP4, Q1_0, Q2_0, Q8_1 and Q8_K. Written from the layouts of
ggml-common.h and the formulas of ggml's dequantize_row_* functions. The grids are those of PyPI
gguf.
"""

import functools

import gguf.quants
import numpy as np

#: Floats of four bits times two: kvalues_mxfp4 of ggml.
FOUR_BITS = np.array([0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12], np.int64)


@functools.cache
def _grid(name):
    kind = getattr(gguf.quants, name)
    kind.init_grid()
    return kind.grid.reshape(kind.grid_shape).astype(np.int64)


def _bits(bytes_, width):
    """The fields of `width` bits of each byte, lowest first."""
    return (bytes_[:, None] >> np.arange(0, 8, width) & (2**width - 1)).astype(np.int64)


def _half(block, at):
    return float(block[at : at + 2].view(np.float16)[0])


def _signs(bits, count=8):
    """1 or -1 for each of the lowest bits."""
    return 1 - 2 * (np.asarray(bits, np.int64)[:, None] >> np.arange(count) & 1)


def _even(seven):
    """Signs of which seven bits are stored: the eighth makes their number even."""
    seven = np.asarray(seven, np.int64)
    return seven | (sum(seven >> i & 1 for i in range(7)) & 1) << 7


def decode_256(name, block):
    """Integers, sub-scales (one for each 16) and scale of a block of 256."""
    if name == "Q8_K":
        scale = float(block[:4].view("<f4")[0])
        return block[4:260].view(np.int8).astype(np.int64), np.ones(16, np.int64), scale
    if name in ("TQ1_0", "TQ2_0"):
        return _ternary(name, block), np.ones(16, np.int64), _half(block, len(block) - 2)
    if name in ("IQ1_S", "IQ1_M"):
        return _iq1(name, block)
    d = _half(block, 0)
    if name in ("IQ2_XXS", "IQ3_XXS"):
        if name == "IQ2_XXS":
            entries = block[2:].reshape(8, 8)[:, :4].reshape(-1)
            words = block[2:].view("<u4")[1::2].astype(np.int64)
        else:
            entries, words = block[2:66], block[66:].view("<u4").astype(np.int64)
        signs = _even(words[:, None] >> np.array([0, 7, 14, 21]) & 127).reshape(-1)
        scales = (2 * (words >> 28) + 1).repeat(2)
        factor = 8 if name == "IQ2_XXS" else 4
    elif name == "IQ2_XS":
        words = block[2:66].view("<u2").astype(np.int64)
        entries, signs = words & 511, _even(words >> 9)
        scales, factor = 2 * _bits(block[66:], 4).reshape(-1) + 1, 8
    elif name == "IQ2_S":
        entries = block[2:34] + 256 * _bits(block[66:74], 2).reshape(-1)
        signs, scales, factor = block[34:66], 2 * _bits(block[74:], 4).reshape(-1) + 1, 8
    else:
        assert name == "IQ3_S"
        entries = block[2:66] + 256 * _bits(block[66:74], 1).reshape(-1)
        signs = block[74:106]
        scales, factor = (2 * _bits(block[106:], 4).reshape(-1) + 1).repeat(2), 1
    q = _grid(name)[np.asarray(entries, np.int64)].reshape(32, 8) * _signs(signs)
    return q.reshape(-1), scales, d / factor


def _iq1(name, block):
    if name == "IQ1_S":
        high = block[34:50].view("<u2").astype(np.int64)
        entries = block[2:34] + 256 * (high[:, None] >> np.array([0, 3, 6, 9]) & 7).reshape(-1)
        minus = (high >> 15).repeat(4)
        scales, d = (2 * (high >> 12 & 7) + 1).repeat(2), _half(block, 0)
    else:
        high = _bits(block[32:48], 4).reshape(-1)
        entries, minus = block[:32] + 256 * (high & 7), high >> 3
        words = block[48:56].view("<u2").astype(np.int64)
        scales = 2 * (words[:, None] >> np.array([0, 3, 6, 9]) & 7).reshape(-1) + 1
        bits = sum(int(word >> 12) << 4 * i for i, word in enumerate(words))
        d = float(np.array([bits], np.uint16).view(np.float16)[0])
    q = 8 * _grid("IQ1_S")[entries] + (1 - 2 * minus)[:, None]
    return q.reshape(-1), scales, d / 8


def _ternary(name, block):
    if name == "TQ2_0":
        return (
            np.concatenate([_bits(part, 2).T.reshape(-1) for part in block[:64].reshape(2, 32)]) - 1
        )
    values = []
    for part, digits in ((block[:32], 5), (block[32:48], 5), (block[48:52], 4)):
        for n in range(digits):
            rest = part.astype(np.int64) * 3**n % 256
            values.append(rest * 3 // 256 - 1)
    return np.concatenate(values)


def decode_parts(name, block):
    """Integers and scale for each 32 values of a block, of NVFP4 for each 16."""
    if name == "Q8_1":
        return [(block[4:].view(np.int8).astype(np.int64), _half(block, 0))]
    if name in ("Q1_0", "Q2_0"):
        q = 2 * _bits(block[2:], 1) - 1 if name == "Q1_0" else _bits(block[2:], 2) - 1
        return [(part, _half(block, 0)) for part in q.reshape(-1, 32)]
    assert name == "NVFP4"
    parts = []
    for scale, qs in zip(block[:4], block[4:].reshape(4, 8), strict=True):
        parts.append((FOUR_BITS[_bits(qs, 4).T.reshape(-1)], e4m3(int(scale)) / 2))
    return parts


def e4m3(byte):
    """The float of eight bits as ggml reads it: no sign, and 127 is zero."""
    exponent, fraction = byte >> 3 & 15, byte & 7
    if byte == 127:
        return 0.0
    return fraction / 512 if exponent == 0 else (8 + fraction) / 8 * 2.0 ** (exponent - 7)


def dequantize(raw, name, items, size):
    """The float32 values of the types that PyPI gguf does not read."""
    values = []
    for block in raw.reshape(-1, size):
        if items == 256:
            q, scales, d = decode_256(name, block)
            values.append(np.float32(d) * (q * scales.repeat(16)).astype(np.float32))
        else:
            values += [np.float32(d) * q.astype(np.float32) for q, d in decode_parts(name, block)]
    return np.concatenate(values).reshape(*raw.shape[:-1], -1)


#: The types that PyPI gguf does not read.
NOT_IN_GGUF = ("Q8_1", "Q8_K", "Q1_0", "Q2_0")


def set_scales(name, blocks, number):
    """Write a number, or one per block, into the scales of a type without plain float16."""
    number = np.broadcast_to(np.asarray(number, np.float64), blocks.shape[:-1])
    if name == "Q8_K":
        blocks[..., :4] = number.astype("<f4")[..., None].view(np.uint8)
    elif name == "IQ1_M":
        bits = number.astype("<f2").view(np.uint16)
        for i in range(4):
            at = 49 + 2 * i
            blocks[..., at] = blocks[..., at] & 15 | (bits >> 4 * i & 15).astype(np.uint8) << 4
    else:
        assert name == "NVFP4"
        floats = np.array([e4m3(byte) / 2 for byte in range(127)])
        nearest = np.abs(floats - np.abs(number)[..., None]).argmin(-1)
        blocks[..., :4] = nearest.astype(np.uint8)[..., None]
