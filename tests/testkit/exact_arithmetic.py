"""The matmuls of exact and of fast mode in Python integers and fractions.

Written from docs/numerics.md alone: slow, exact and independent of the C code. Sums are integers,
and each rounding is one call of `round_to`.
"""

import math
from fractions import Fraction

import gguf
import numpy as np

from testkit import rare_blocks

# items and bytes of a block, and the offsets of its float16 numbers (MXFP4: byte 0 is an exponent)
TYPES = {
    "F32": (1, 4, ()),
    "F16": (1, 2, ()),
    "BF16": (1, 2, ()),
    "Q4_0": (32, 18, (0,)),
    "Q4_1": (32, 20, (0, 2)),
    "Q5_0": (32, 22, (0,)),
    "Q5_1": (32, 24, (0, 2)),
    "Q8_0": (32, 34, (0,)),
    "Q2_K": (256, 84, (80, 82)),
    "Q3_K": (256, 110, (108,)),
    "Q4_K": (256, 144, (0, 2)),
    "Q5_K": (256, 176, (0, 2)),
    "Q6_K": (256, 210, (208,)),
    "IQ4_NL": (32, 18, (0,)),
    "IQ4_XS": (256, 136, (0,)),
    "MXFP4": (32, 17, ()),
    "IQ1_S": (256, 50, (0,)),
    "IQ1_M": (256, 56, ()),
    "IQ2_XXS": (256, 66, (0,)),
    "IQ2_XS": (256, 74, (0,)),
    "IQ2_S": (256, 82, (0,)),
    "IQ3_XXS": (256, 98, (0,)),
    "IQ3_S": (256, 110, (0,)),
    "TQ1_0": (256, 54, (52,)),
    "TQ2_0": (256, 66, (64,)),
    "NVFP4": (64, 36, ()),
    "Q1_0": (128, 18, (0,)),
    "Q2_0": (64, 18, (0,)),
    "Q8_1": (32, 36, (0,)),
    "Q8_K": (256, 292, ()),
}
FLOATS = ("F32", "F16", "BF16")
#: Sets whose fast mode has another arithmetic: int16 digits, and dot products of bfloat16.
OTHER_FAST = {"Q8_0": ("avx2", "avx512"), "BF16": ("avx512bf16", "amx")}
WITH_MIN = ("Q4_1", "Q5_1", "Q2_K", "Q4_K", "Q5_K")

IQ4_VALUES = np.array(
    [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.int64
)


def round_to(value, digits, lowest):
    """Round a Fraction to a binary float of that many digits, ties to even."""
    if value == 0:
        return 0.0
    exponent = abs(value.numerator).bit_length() - value.denominator.bit_length()
    if abs(value) < Fraction(2) ** exponent:
        exponent -= 1
    unit = Fraction(2) ** (max(exponent, lowest) - digits + 1)
    rounded = round(value / unit) * unit
    largest = (2 - Fraction(2) ** (1 - digits)) * Fraction(2) ** (1 - lowest)
    if abs(rounded) > largest:
        return math.inf if value > 0 else -math.inf
    return float(rounded)


def fused(a, b, c, digits, lowest):
    """The value of a * b + c with one rounding."""
    if not (math.isfinite(a) and math.isfinite(b) and math.isfinite(c)):
        return float(np.float64(a) * np.float64(b) + np.float64(c))
    return round_to(Fraction(a) * Fraction(b) + Fraction(c), digits, lowest)


def fma32(a, b, c):
    return fused(float(a), float(b), float(c), 24, -126)


def fma64(a, b, c):
    return fused(float(a), float(b), float(c), 53, -1022)


def _half(block, at):
    return float(block[at : at + 2].view(np.float16)[0])


def _nibbles(bytes_):
    return np.concatenate([bytes_ & 15, bytes_ >> 4]).astype(np.int64)


def _doubled_floats(nibbles):
    """Twice the value of floats of four bits: a sign, two of exponent (bias 1), one of fraction."""
    sign, exponent, fraction = nibbles >> 3, nibbles >> 1 & 3, nibbles & 1
    magnitude = np.where(exponent == 0, fraction, (2 + fraction) << np.maximum(exponent, 1) - 1)
    return np.where(sign == 1, -magnitude, magnitude)


def _fifth_bits(block, at):
    return np.unpackbits(block[at : at + 4], bitorder="little").astype(np.int64) << 4


def _scales_min_k4(p):
    """Eight scales and eight minima of 6 bits: Q4_K and Q5_K."""
    low = np.concatenate([p[0:4] & 63, (p[8:12] & 15) | (p[0:4] >> 6) << 4])
    high = np.concatenate([p[4:8] & 63, (p[8:12] >> 4) | (p[4:8] >> 6) << 4])
    return low.astype(np.int64).repeat(2), high.astype(np.int64).repeat(2)


def decode_32(name, block):
    """Integers, scale and minimum of a block of 32 (ggml: dequantize_row_q4_0 ...)."""
    if name == "Q4_0":
        return _nibbles(block[2:]) - 8, _half(block, 0), 0.0
    if name == "Q4_1":
        return _nibbles(block[4:]), _half(block, 0), _half(block, 2)
    if name == "Q5_0":
        return (_nibbles(block[6:]) | _fifth_bits(block, 2)) - 16, _half(block, 0), 0.0
    if name == "Q5_1":
        return _nibbles(block[8:]) | _fifth_bits(block, 4), _half(block, 0), _half(block, 2)
    if name == "IQ4_NL":
        return IQ4_VALUES[_nibbles(block[2:])], _half(block, 0), 0.0
    if name == "MXFP4":
        return _doubled_floats(_nibbles(block[1:])), 2.0 ** (int(block[0]) - 128), 0.0
    if name == "Q8_1":
        return (*rare_blocks.decode_parts(name, block)[0], 0.0)
    assert name == "Q8_0"
    return block[2:].view(np.int8).astype(np.int64), _half(block, 0), 0.0


def decode_k(name, block):
    """Integers, sub-scales, sub-minima (each per 16), scale and minimum of a block of 256."""
    none = np.zeros(16, np.int64)
    if name == "Q2_K":
        packed = block[16:80].reshape(2, 1, 32) >> np.array([0, 2, 4, 6]).reshape(1, 4, 1)
        scales = block[:16].astype(np.int64)
        q = (packed & 3).reshape(256).astype(np.int64)
        return q, scales & 15, scales >> 4, _half(block, 80), _half(block, 82)
    if name == "Q3_K":
        packed = block[32:96].reshape(2, 1, 32) >> np.array([0, 2, 4, 6]).reshape(1, 4, 1)
        high = block[:32].reshape(1, 32) >> np.arange(8).reshape(8, 1)
        q = (packed & 3).reshape(256).astype(np.int64) + 4 * (high & 1).reshape(256) - 4
        low = np.concatenate([block[96:104] & 15, block[96:104] >> 4]).astype(np.int64)
        two = np.concatenate([block[104:108] >> shift & 3 for shift in (0, 2, 4, 6)])
        return q, (low | two.astype(np.int64) << 4) - 32, none, _half(block, 108), 0.0
    if name in ("Q4_K", "Q5_K"):
        scale, minimum = _scales_min_k4(block[4:16])
        packed = block[16:144] if name == "Q4_K" else block[48:176]
        q = np.concatenate([_nibbles(part) for part in packed.reshape(4, 32)])
        if name == "Q5_K":
            q += ((block[16:48].reshape(1, 32) >> np.arange(8).reshape(8, 1) & 1) << 4).reshape(256)
        return q, scale, minimum, _half(block, 0), _half(block, 2)
    if name == "IQ4_XS":
        high, low = int(block[2:4].view("<u2")[0]), int(block[4:8].view("<u4")[0])
        scales = [(low >> 4 * j & 15) + 16 * (high >> 2 * j & 3) - 32 for j in range(8)]
        q = np.concatenate([IQ4_VALUES[_nibbles(part)] for part in block[8:].reshape(8, 16)])
        return q, np.array(scales).repeat(2), none, _half(block, 0), 0.0
    if name != "Q6_K":
        q, scales, d = rare_blocks.decode_256(name, block)
        return q, scales, none, d, 0.0
    q = []
    for half in range(2):
        low = block[half * 64 : half * 64 + 64]
        high = block[128 + half * 32 : 128 + half * 32 + 32]
        for i, part in enumerate([low[:32] & 15, low[32:] & 15, low[:32] >> 4, low[32:] >> 4]):
            q.append((part | (high >> (2 * i) & 3) << 4).astype(np.int64) - 32)
    scales = block[192:208].view(np.int8).astype(np.int64)
    return np.concatenate(q), scales, none, _half(block, 208), 0.0


def decode_row(name, row):
    """Integers, scale and minimum of each block of 32 of a row, of NVFP4 of each 16."""
    items, size, _ = TYPES[name]
    blocks = row.reshape(-1, size)
    if items == 32:
        return [decode_32(name, block) for block in blocks]
    return [(q, d, 0.0) for block in blocks for q, d in rare_blocks.decode_parts(name, block)]


def round_chunk(x):
    """24-bit integers of up to 256 activations, zero-padded, and the factor that undoes them."""
    x = np.concatenate([x, np.zeros(256 - len(x), np.float32)])
    bits = int((x.view(np.uint32) & 0x7FFFFFFF).max())
    if bits >= 0x7F800000:
        return np.zeros(256, np.int64), math.nan
    exponent = max(23, (bits + 0x010101) >> 23)
    scale = Fraction(2) ** (149 - exponent)
    return np.array([round(Fraction(float(v)) * scale) for v in x], np.int64), float(1 / scale)


def dot_quantized(name, row, rounded):
    """One row of raw blocks times one token, a list of rounded chunks."""
    items, size, _ = TYPES[name]
    blocks = row.reshape(-1, size)
    total = 0.0
    for c, (x, dx) in enumerate(rounded):
        if items == 256:
            q, scale, minimum, d, dmin = decode_k(name, blocks[c])
            sums = (q.reshape(16, 16) * x.reshape(16, 16)).sum(1)
            total = fma64(d * dx, int((scale * sums).sum()), total)
            if name in WITH_MIN:
                sums = x.reshape(16, 16).sum(1)
                total = fma64(-(dmin * dx), int((minimum * sums).sum()), total)
            continue
        u = 0.0
        width = 16 if name == "NVFP4" else 32
        parts = decode_row(name, row)
        for j, (q, d, m) in enumerate(parts[256 // width * c : 256 // width * (c + 1)]):
            part = x[width * j : width * j + width]
            if name in ("MXFP4", "NVFP4"):
                u = fma64(int((q * part).sum()), d, u)
                continue
            u = fma32(round_to(Fraction(int((q * part).sum())), 24, -126), d, u)
            if name in WITH_MIN:
                u = fma32(round_to(Fraction(int(part.sum())), 24, -126), m, u)
        total = fma64(u, dx, total)
    if not math.isfinite(total):
        return np.float32(total)
    return np.float32(round_to(Fraction(total), 24, -126))


def sum_of_halves(a, b):
    """The products of 32 float32 pairs: a chain for each half, then the two added."""
    sums = [0.0, 0.0]
    for k in range(32):
        sums[k // 16] = fma32(a[k], b[k], sums[k // 16])
    return np.float32(sums[0]) + np.float32(sums[1])


def round_block(x, words):
    """Fast mode: the integers of 32 activations, and their scale; words: int16 digits."""
    largest = np.abs(x).max()
    if not np.isfinite(largest):
        return np.zeros(32, np.int64), math.nan
    if largest < np.float32(2.0**-100):
        return np.zeros(32, np.int64), 0.0
    base, least = np.float32(128) / largest, np.inf
    for limit in [32000] if words else range(127, 119, -1):
        factor = base * np.float32(limit / 128)
        y = x * factor
        error = sum_of_halves(y - np.rint(y), y - np.rint(y))
        error *= np.float32(127 * 127) / np.float32(limit * limit)
        if error < least:
            least, best = error, factor
    y = x * best
    integers = np.rint(y)
    square = sum_of_halves(integers, integers)
    rest = sum_of_halves(y - integers, integers)
    return integers.astype(np.int64), float((square + rest) / (square * best))


def dot_fast(name, row, rounded):
    """Fast mode: one row of raw blocks times one token, a list of rounded blocks of 32."""
    items, size, _ = TYPES[name]
    total = 0.0
    if items != 256:
        width = 16 if name == "NVFP4" else 32
        for j, (q, d, m) in enumerate(decode_row(name, row)):
            x, scale = rounded[width * j // 32]
            x = x[width * j % 32 :][:width]
            total = fma32(np.float32((q * x).sum()) * np.float32(scale), d, total)
            if name in WITH_MIN:
                total = fma32(m, np.float32(scale) * np.float32(x.sum()), total)
        return np.float32(total)
    for c, block in enumerate(row.reshape(-1, size)):
        q, scales, minima, d, dmin = decode_k(name, block)
        products, minimum = 0.0, 0.0
        for b, (x, scale) in enumerate(rounded[8 * c : 8 * c + 8]):
            sums = (q[32 * b : 32 * b + 32] * x).reshape(2, 16).sum(1)
            part = int((sums * scales[2 * b : 2 * b + 2]).sum())
            products = fma32(np.float32(part), scale, products)
            if name in ("Q4_K", "Q5_K"):
                scaled = np.float32(scale) * np.float32(x.sum())
                minimum = fma32(minima[2 * b], scaled, minimum)
            else:
                part = int((minima[2 * b : 2 * b + 2] * x.reshape(2, 16).sum(1)).sum())
                minimum = fma32(np.float32(part), scale, minimum)
        total = fma32(d, products, total)
        if name in WITH_MIN:
            total = fma32(dmin, -minimum, total)
    return np.float32(total)


def dot_float(row, x):
    """One row of float32 weights times one token: 16 lanes, superchunks of 4096."""
    y = np.float32(0)
    for start in range(0, len(x), 4096):
        w_part, x_part = row[start : start + 4096], x[start : start + 4096]
        for lane in range(16):
            s = 0.0
            for k in range(lane, len(x_part), 16):
                s = fma32(w_part[k], x_part[k], s)
            with np.errstate(invalid="ignore", over="ignore"):
                y = np.float32(y + np.float32(s))
    return y


def flush(x):
    """Replace subnormal numbers by zeros."""
    return np.where(np.abs(x) < np.finfo(np.float32).tiny, np.float32(0), x).astype(np.float32)


def round_bf16(x):
    """Round float32 to the nearest bfloat16, ties to even; subnormal numbers become zeros."""
    bits = flush(x).view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + (bits >> 16 & 1)) & np.uint32(0xFFFF0000)
    return np.where(np.isnan(x), np.float32(np.nan), rounded.view(np.float32))


@np.errstate(invalid="ignore", over="ignore")
def dot_pairs(row, x):
    """Fast mode, dot products of bfloat16: 16 lanes of pairs, superchunks of 4096 pairs."""
    row, x = (np.append(a, np.zeros(len(a) % 2, np.float32)) for a in (flush(row), x))
    y = np.float32(0)
    for start in range(0, len(x), 8192):
        w_part, x_part = row[start : start + 8192], x[start : start + 8192]
        for lane in range(0, 32, 2):
            s = np.float32(0)
            for k in range(lane, len(x_part), 32):
                for i in (k + 1, k):
                    s = flush(np.float32(fma32(w_part[i], x_part[i], s)))
            y = np.float32(y + s)
    return y


def to_float32(name, weights):
    """The values of F32, F16 or BF16 rows given as bytes."""
    if name == "BF16":
        return (weights.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    return weights.view(np.float32 if name == "F32" else np.float16).astype(np.float32)


def matmul(name, weights, cols, x):
    """x (T, cols) times raw rows; the bits that every kernel set must give."""
    out = np.empty((len(x), len(weights)), np.float32)
    if name in FLOATS:
        values = to_float32(name, weights)
        for t in range(len(x)):
            out[t] = [dot_float(row, x[t]) for row in values]
        return out
    for t in range(len(x)):
        rounded = [round_chunk(x[t, c : c + 256]) for c in range(0, cols, 256)]
        out[t] = [dot_quantized(name, row, rounded) for row in weights]
    return out


def matmul_fast(name, weights, cols, x, words=False):
    """The same in fast mode, for a quantized type; BF16: with dot products of bfloat16."""
    out = np.empty((len(x), len(weights)), np.float32)
    for t in range(len(x)):
        if name == "BF16":
            values = round_bf16(x[t])
            out[t] = [dot_pairs(row, values) for row in to_float32(name, weights)]
            continue
        rounded = [round_block(x[t, c : c + 32], words) for c in range(0, cols, 32)]
        out[t] = [dot_fast(name, row, rounded) for row in weights]
    return out


def random_rows(rng, name, rows, cols, scale=0.02):
    """Raw rows: random bits, with scales and float weights of a sensible size."""
    items, size, halves = TYPES[name]
    if items == 1:
        values = (rng.standard_normal((rows, cols)) * scale).astype(np.float32)
        if name == "F32":
            return values.view(np.uint8)
        if name == "F16":
            return values.astype(np.float16).view(np.uint8)
        return (values.view(np.uint32) >> 16).astype(np.uint16).view(np.uint8)
    raw = rng.integers(0, 256, (rows, cols // items, size), dtype=np.uint8)
    if name == "MXFP4":
        raw[:, :, 0] = 128 + round(math.log2(scale)) + rng.integers(-6, 0, raw.shape[:2])
    elif not halves:
        rare_blocks.set_scales(name, raw, rng.standard_normal(raw.shape[:2]) * scale)
    for at in halves:
        number = (rng.standard_normal(raw.shape[:2]) * scale).astype(np.float16)
        raw[:, :, at : at + 2] = number[..., None].view(np.uint8)
    return raw.reshape(rows, -1)


def dequantize(name, weights):
    """The float32 values of raw rows of a quantized type, as PyPI gguf reads them if it does."""
    if name in rare_blocks.NOT_IN_GGUF:
        return rare_blocks.dequantize(weights, name, *TYPES[name][:2])
    return gguf.dequantize(weights, gguf.GGMLQuantizationType[name])
