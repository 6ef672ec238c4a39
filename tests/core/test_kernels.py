"""Every kernel set gives the bits of docs/numerics.md, and touches only its own data."""

import os
import subprocess
import sys

import numpy as np
import pytest

import tinyllm
from testkit import exact_arithmetic as exact
from testkit import rare_blocks
from tinyllm import _core

SETS = _core.kernel_sets()
QUANTIZED = [name for name in exact.TYPES if name not in exact.FLOATS]


def run(name, weights, cols, x, isa, **rows):
    return _core._matmul(name, weights, cols, x, isa, **rows)


def assert_same_bits(actual, expected, message=""):
    assert actual.dtype == expected.dtype == np.float32
    number = ~np.isnan(expected)
    np.testing.assert_array_equal(np.isnan(actual), ~number, message)
    np.testing.assert_array_equal(
        actual.view(np.uint32)[number], expected.view(np.uint32)[number], message
    )


def activations(rng, kind, tokens, cols):
    x = rng.standard_normal((tokens, cols)).astype(np.float32)
    if kind == "zero":
        x[:] = 0
    elif kind == "denormal":
        x *= np.float32(1e-41)
    elif kind == "tiny":
        x *= np.float32(1e-34)
    elif kind == "huge":
        x *= np.float32(6e37)
    elif kind == "outliers":
        x = x**3
        x[rng.random(x.shape) < 1 / 300] *= 500
    elif kind == "boundary":  # on both sides of the largest integer that three digits hold
        bits = np.uint32(0x3F000000) + rng.integers(0x7EFEFC, 0x7EFF02, x.shape).astype(np.uint32)
        x = bits.view(np.float32) * np.where(rng.random(x.shape) < 0.5, -1, 1).astype(np.float32)
    elif kind == "any finite":
        bits = rng.integers(0, 2**32, x.shape, dtype=np.uint64).astype(np.uint32)
        bits[(bits & 0x7F800000) == 0x7F800000] &= 0xBFFFFFFF
        x = bits.view(np.float32)
    elif kind == "sparse":
        x[rng.random(x.shape) < 0.99] = 0
    else:
        assert kind == "gaussian"
    return x


KINDS = [
    "gaussian",
    "zero",
    "denormal",
    "tiny",
    "huge",
    "outliers",
    "boundary",
    "any finite",
    "sparse",
]


def test_sets_are_listed_worst_first():
    assert SETS[:2] == ["plain", "scalar"]
    assert len(set(SETS)) == len(SETS)


@pytest.mark.parametrize("name", QUANTIZED)
def test_the_decoders_of_these_tests_agree_with_gguf(name):
    rng = np.random.default_rng(1)
    items, size, _ = exact.TYPES[name]
    row = exact.random_rows(rng, name, 1, 512)
    values = []
    if items != 256:
        values = [d * q + m for q, d, m in exact.decode_row(name, row[0])]
    for block in row.reshape(-1, size) if items == 256 else []:
        q, scale, minimum, d, dmin = exact.decode_k(name, block)
        values.append(d * scale.repeat(16) * q - dmin * minimum.repeat(16))
    theirs = exact.dequantize(name, row)[0]
    np.testing.assert_allclose(np.concatenate(values), theirs, rtol=1e-6, atol=1e-7)


def odd_cols(name, cols):
    """Return about `cols` columns: not a multiple of 256 if the type allows it."""
    items = exact.TYPES[name][0]
    return {1: cols + 21, 256: cols}.get(items, cols + items)


@pytest.mark.parametrize("name", exact.TYPES)
def test_every_set_gives_the_bits_of_the_text(name):
    rng = np.random.default_rng(2)
    small = 1 if name in exact.FLOATS else 3
    for cols, rows, tokens in [(256, 3, 2), (odd_cols(name, 512), 18, small), (768, 5, 5)]:
        weights = exact.random_rows(rng, name, rows, cols)
        x = activations(rng, "gaussian", tokens, cols)
        expected = exact.matmul(name, weights, cols, x)
        for isa in SETS:
            got = run(name, weights, cols, x, isa)
            assert_same_bits(got, expected, f"{isa} {rows}x{cols}, {tokens} tokens")


@pytest.mark.parametrize("name", exact.TYPES)
@pytest.mark.parametrize("kind", KINDS)
def test_activations_of_every_size(name, kind):
    rng = np.random.default_rng(3)
    cols = odd_cols(name, 256)
    weights = exact.random_rows(rng, name, 4, cols)
    x = activations(rng, kind, 4, cols)
    expected = exact.matmul(name, weights, cols, x)
    for isa in SETS:
        assert_same_bits(run(name, weights, cols, x, isa), expected, isa)
        assert_same_bits(run(name, weights, cols, x[:1], isa), expected[:1], f"{isa} alone")


HALVES = np.array([0, -0.0, 6e-8, -6e-8, 6.1e-5, 65504, -65504, 1], np.float16)
EXPONENTS = np.array([128, 0, 1, 2, 3, 127, 254, 255], np.uint8)  # the first stands for 1


def set_scales(name, blocks, number):
    """Set every scale of blocks to a number; MXFP4: the exponent."""
    if name == "MXFP4":
        blocks[..., 0] = number
    elif not exact.TYPES[name][2]:
        rare_blocks.set_scales(name, blocks, number)
    for at in exact.TYPES[name][2]:
        blocks[..., at : at + 2] = np.array([number], np.float16).view(np.uint8)


@pytest.mark.parametrize("name", QUANTIZED)
def test_extreme_blocks(name):
    rng = np.random.default_rng(4)
    items, size, _ = exact.TYPES[name]
    patterns = [np.full(size, fill, np.uint8) for fill in (0x00, 0xFF, 0x80, 0x7F, 0x08, 0x88)]
    patterns.append(rng.integers(0, 256, size, dtype=np.uint8))
    blocks = []
    for pattern in patterns:
        for number in EXPONENTS if name == "MXFP4" else HALVES:
            set_scales(name, pattern, number)
            blocks.append(pattern.copy())
    cols = 512
    weights = np.array(blocks).reshape(len(blocks), 1, size).repeat(cols // items, 1)
    weights = np.ascontiguousarray(weights.reshape(len(blocks), -1))
    x = activations(rng, "gaussian", 5, cols)
    x[1] = np.float32(8355711 / 2**23) * np.sign(x[1])  # every digit has its largest value
    x[2] = -np.float32(8355711 / 2**23)
    x[3] = np.float32((0x7F7F80 - 0x808080 + 0x808080 - 0x10000) / 2**23)
    x[4] = -np.float32(0x7F8080 / 2**23)
    expected = exact.matmul(name, weights, cols, x)
    for isa in SETS:
        assert_same_bits(run(name, weights, cols, x, isa), expected, isa)
        for t in range(len(x)):
            assert_same_bits(run(name, weights, cols, x[t], isa), expected[t : t + 1], isa)


@pytest.mark.parametrize("name", exact.TYPES)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_token_with_nan_or_infinity(name, bad):
    rng = np.random.default_rng(5)
    cols = odd_cols(name, 512)
    weights = exact.random_rows(rng, name, 20, cols)
    x = activations(rng, "gaussian", 6, cols)
    good = run(name, weights, cols, x, "scalar")
    x[4, 300] = bad
    for isa in SETS:
        y = run(name, weights, cols, x, isa)
        if name not in exact.FLOATS or np.isnan(bad):
            assert np.isnan(y[4]).all(), isa
        else:
            assert not np.isfinite(y[4]).any(), isa
        others = [0, 1, 2, 3, 5]
        assert_same_bits(y[others], good[others], isa)


@pytest.mark.parametrize("size", [1, 1e-30, 1e38])
def test_every_exponent_of_mxfp4(size):
    rng = np.random.default_rng(26)
    weights = exact.random_rows(rng, "MXFP4", 256, 288)
    blocks = weights.reshape(256, 9, 17)
    blocks[:, :, 0] = np.arange(256)[:, np.newaxis]
    values = tinyllm.Weight("w", (256, 288), "MXFP4", weights.tobytes()).numpy(dtype=np.float64)
    assert np.isfinite(values).all()
    x = activations(rng, "gaussian", 3, 288) * np.float32(size)
    expected = x.astype(np.float64) @ values.T
    scale = np.linalg.norm(values, axis=1) * np.linalg.norm(x.astype(np.float64), axis=1)[:, None]
    for isa in SETS:
        y = run("MXFP4", weights, 288, x, isa)
        assert_same_bits(y[:1], run("MXFP4", weights, 288, x[:1], isa), isa)
        finite = np.abs(expected) < 3.4e38
        error = np.abs(y[finite] - expected[finite])
        assert (error <= 1e-6 * scale[finite] + 2.0**-149).all(), isa
        with np.errstate(over="ignore"):
            np.testing.assert_array_equal(y[~finite], expected.astype(np.float32)[~finite], isa)


@pytest.mark.parametrize("name", [name for name in QUANTIZED if name not in ("MXFP4", "NVFP4")])
def test_scales_that_are_not_finite(name):
    rng = np.random.default_rng(6)
    _, size, halves = exact.TYPES[name]
    cols = 512
    weights = exact.random_rows(rng, name, 6, cols)
    blocks = weights.reshape(6, -1, size)
    for row, number in enumerate([np.inf, -np.inf, np.nan]):
        if not halves:
            rare_blocks.set_scales(name, blocks[row, 1], number)
            continue
        at = halves[row % len(halves)]
        blocks[row, 1, at : at + 2] = np.array([number], np.float16).view(np.uint8)
    x = activations(rng, "gaussian", 5, cols)
    with np.errstate(invalid="ignore"):
        expected = exact.matmul(name, weights, cols, x)
    assert not np.isfinite(expected[:, :3]).any()
    for isa in SETS:
        assert_same_bits(run(name, weights, cols, x, isa), expected, isa)


@pytest.mark.parametrize("name", exact.TYPES)
@pytest.mark.parametrize("cols", [32, 256, 2048, 4096, 5632, 14336])
def test_sets_agree_on_larger_matrices(name, cols):
    rng = np.random.default_rng(7)
    items = exact.TYPES[name][0]
    if cols % items != 0:
        cols = items
    if items == 1:
        cols += 1
    rows = 70 if cols < 4096 else 35
    weights = exact.random_rows(rng, name, rows, cols)
    x = activations(rng, "gaussian", 13 if cols < 4096 else 5, cols)
    expected = run(name, weights, cols, x, "scalar")
    for isa in SETS[1:] if name in exact.FLOATS else SETS:
        assert_same_bits(run(name, weights, cols, x, isa), expected, isa)


@pytest.mark.parametrize("isa", SETS)
@pytest.mark.parametrize("name", exact.TYPES)
def test_splitting_tokens_and_rows_changes_no_bit(name, isa):
    rng = np.random.default_rng(8)
    cols = odd_cols(name, 256 if isa == "plain" else 1024)
    weights = exact.random_rows(rng, name, 101, cols)
    x = activations(rng, "outliers", 17 if isa == "plain" else 64, cols)
    whole = run(name, weights, cols, x, isa)
    for count in (1, 2, 3, 5, 13):
        for t in range(0, len(x), count * 3):
            part = run(name, weights, cols, x[t : t + count], isa)
            assert_same_bits(part, whole[t : t + count], f"tokens {t}+{count}")
    parts = np.zeros_like(whole)
    for row0, row1 in [(0, 32), (32, 64), (64, 96), (96, 101)]:
        part = run(name, weights, cols, x, isa, row0=row0, row1=row1)
        assert not part[:, :row0].any()
        assert not part[:, row1:].any()
        parts += part
    np.testing.assert_array_equal(parts, whole)
    for row1 in (1, 7, 16, 17, 31, 33):
        part = run(name, weights, cols, x[:5], isa, row1=row1)
        assert_same_bits(part[:, :row1], np.ascontiguousarray(whole[:5, :row1]))
        assert not part[:, row1:].any()


@pytest.mark.slow
@pytest.mark.parametrize("isa", SETS[1:])
def test_more_tokens_than_share_a_pass(isa):
    rng = np.random.default_rng(9)
    for name in ("F16", "Q4_K", "Q8_0"):
        weights = exact.random_rows(rng, name, 33, 512)
        x = activations(rng, "gaussian", 1601, 512)
        expected = np.concatenate(
            [run(name, weights, 512, part, isa) for part in x.reshape(-1, 1, 512)]
        )
        assert_same_bits(run(name, weights, 512, x, isa), expected)


@pytest.mark.parametrize("isa", SETS)
@pytest.mark.parametrize("name", exact.TYPES)
@pytest.mark.parametrize("kind", ["gaussian", "outliers"])
def test_error_against_float64(name, isa, kind):
    rng = np.random.default_rng(10)
    cols = 2048
    weights = exact.random_rows(rng, name, 32, cols)
    values = exact.dequantize(name, weights).astype(np.float64)
    x = activations(rng, kind, 4, cols)
    error = run(name, weights, cols, x, isa) - x.astype(np.float64) @ values.T
    # the weights of random blocks with minima do not average to zero, so their errors add up
    bound = 2.5e-6 if kind == "outliers" and name in exact.WITH_MIN else 1.5e-6
    allowed = bound * np.linalg.norm(values) * np.linalg.norm(x.astype(np.float64), axis=1)
    assert (np.linalg.norm(error, axis=1) <= allowed / np.sqrt(cols)).all()


@pytest.mark.parametrize("isa", SETS)
def test_weights_and_activations_at_any_address(isa):
    rng = np.random.default_rng(11)
    for name in exact.TYPES:
        cols = odd_cols(name, 256)
        weights = exact.random_rows(rng, name, 19, cols)
        x = activations(rng, "gaussian", 5, cols)
        expected = run(name, weights, cols, x, isa)
        for shift in (1, 3, 33):
            moved = np.zeros(weights.size + shift, np.uint8)[shift:].reshape(weights.shape)
            moved[:] = weights
            assert_same_bits(run(name, moved, cols, x, isa), expected, f"{name} + {shift}")


# ---- fast mode ----


def expected_fast(name, isa, weights, cols, x):
    other = isa in exact.OTHER_FAST.get(name, ())
    return run(name, weights, cols, x, isa if other else "scalar", fast=True)


@pytest.mark.parametrize("name", QUANTIZED)
@pytest.mark.parametrize("kind", sorted(set(KINDS) - {"huge", "any finite"}))  # float32 sums
def test_fast_mode_gives_the_bits_of_the_text(name, kind):
    rng = np.random.default_rng(23)
    cols = odd_cols(name, 256)
    weights = exact.random_rows(rng, name, 3, cols)
    x = activations(rng, kind, 2, cols)
    expected = exact.matmul_fast(name, weights, cols, x)
    for isa in SETS:
        want = expected
        if isa in exact.OTHER_FAST.get(name, ()):
            want = exact.matmul_fast(name, weights, cols, x, words=True)
        assert_same_bits(run(name, weights, cols, x, isa, fast=True), want, isa)
        assert_same_bits(run(name, weights, cols, x[1], isa, fast=True), want[1:], f"{isa} alone")


@pytest.mark.skipif("avx512bf16" not in SETS, reason="needs dot products of bfloat16")
@pytest.mark.parametrize("kind", KINDS)
def test_dot_products_of_bfloat16(kind):
    rng = np.random.default_rng(25)
    for cols, rows, tokens in [(277, 3, 2), (37, 35, 13), (8200, 2, 1)]:
        weights = exact.random_rows(rng, "BF16", rows, cols)
        if kind == "any finite":
            weights = activations(rng, kind, rows, cols).view(np.uint16)[:, 1::2].copy()
            weights = weights.view(np.uint8)
        x = activations(rng, kind, tokens, cols)
        expected = exact.matmul_fast("BF16", weights, cols, x)
        got = run("BF16", weights, cols, x, "avx512bf16", fast=True)
        assert_same_bits(got, expected, f"{rows}x{cols}")
        values = exact.to_float32("BF16", weights).astype(np.float64)
        error = np.abs(got - x.astype(np.float64) @ values.T)
        bound = 2**-8.9 * np.abs(x).astype(np.float64) @ np.abs(values).T + 1e-30
        assert kind in ("huge", "any finite") or (error <= bound).all()
        if kind == "gaussian":
            assert np.linalg.norm(error) < 2.5e-3 * np.linalg.norm(expected)


@pytest.mark.skipif("avx512bf16" not in SETS, reason="needs dot products of bfloat16")
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_dot_products_of_bfloat16_with_nan_or_infinity(bad):
    rng = np.random.default_rng(26)
    weights = exact.random_rows(rng, "BF16", 20, 101)
    x = activations(rng, "gaussian", 13, 101)
    good = run("BF16", weights, 101, x, "avx512bf16", fast=True)
    x[4, 100] = bad
    y = run("BF16", weights, 101, x, "avx512bf16", fast=True)
    np.testing.assert_array_equal(y[4], run("BF16", weights, 101, x, "avx512bf16")[4])
    assert not np.isfinite(y[4]).any()
    others = [t for t in range(13) if t != 4]
    assert_same_bits(y[others], good[others])


def test_fast_mode_rounds_as_well_as_its_integers_allow():
    rng = np.random.default_rng(24)
    x = rng.standard_normal((100, 32)).astype(np.float32)
    wide = x.astype(np.float64)
    usual = np.abs(wide).max(1, keepdims=True) / 127
    before = np.linalg.norm(wide - np.rint(wide / usual) * usual)
    squares = 0.0
    for block, values in zip(x, wide, strict=True):
        integers, scale = exact.round_block(block, words=False)
        assert np.abs(integers).max() in range(120, 128)
        squares += ((values - scale * integers) ** 2).sum()
        # no other scale is better for these integers
        for other in (scale * (1 - 1e-4), scale * (1 + 1e-4)):
            error = ((values - other * integers) ** 2).sum()
            assert error > ((values - scale * integers) ** 2).sum()
    assert np.sqrt(squares) < 0.91 * before


@pytest.mark.parametrize("isa", SETS)
@pytest.mark.parametrize("name", exact.TYPES)
def test_fast_mode_does_not_depend_on_how_the_work_is_split(name, isa):
    rng = np.random.default_rng(20)
    cols = odd_cols(name, 256 if isa == "plain" else 1024)
    weights = exact.random_rows(rng, name, 70, cols)
    x = activations(rng, "outliers", 13 if isa == "plain" else 40, cols)
    whole = run(name, weights, cols, x, isa, fast=True)
    assert_same_bits(whole, expected_fast(name, isa, weights, cols, x))
    for count in (1, 2, 5, 7):
        part = run(name, weights, cols, x[3 : 3 + count], isa, fast=True)
        assert_same_bits(part, whole[3 : 3 + count])
    part = run(name, weights, cols, x, isa, row0=32, row1=67, fast=True)
    assert_same_bits(part[:, 32:67].copy(), whole[:, 32:67].copy())
    assert not part[:, :32].any()
    assert not part[:, 67:].any()


@pytest.mark.parametrize("isa", SETS)
@pytest.mark.parametrize("name", QUANTIZED)
def test_fast_mode_at_the_limits_of_its_sums(name, isa):
    """The largest weights of either sign meet the largest activations: no int16 may overflow."""
    items, size, _ = exact.TYPES[name]
    x = np.ones((7, 512), np.float32)
    x[1::2] = -1
    x[4:, ::2] *= -1
    for fill in (0x00, 0xFF, 0x80, 0x7F, 0xF0, 0x0F):
        block = np.full(size, fill, np.uint8)
        set_scales(name, block, EXPONENTS[0] if name == "MXFP4" else 1)
        weights = np.tile(block, (40, 512 // items))
        for count in (1, 7):
            part = run(name, weights, 512, x[:count], isa, fast=True)
            assert_same_bits(part, expected_fast(name, isa, weights, 512, x[:count]))


@pytest.mark.parametrize("isa", SETS)
@pytest.mark.parametrize("name", QUANTIZED)
@pytest.mark.parametrize("kind", sorted(set(KINDS) - {"huge", "any finite"}))  # float32 sums
def test_fast_mode_error(name, isa, kind):
    rng = np.random.default_rng(21)
    cols = odd_cols(name, 512)
    weights = exact.random_rows(rng, name, 32, cols)
    values = exact.dequantize(name, weights).astype(np.float64)
    x = activations(rng, kind, 3, cols)
    wide = x.astype(np.float64)
    # half a step of every block of 32, a tenth more because the scale minimizes the sum of
    # squares, and the rounding of float32 sums and scales
    step = np.abs(wide).reshape(3, -1, 32).max(2).repeat(32, 1) / 120
    bound = (step / 2 * 1.1) @ np.abs(values).T + 1e-5 * (np.abs(wide) @ np.abs(values).T) + 1e-27
    error = np.abs(run(name, weights, cols, x, isa, fast=True) - wide @ values.T)
    assert (error <= bound).all()
    if kind == "gaussian":
        assert np.linalg.norm(error) < 1.2e-2 * np.linalg.norm(wide @ values.T)


@pytest.mark.parametrize("name", QUANTIZED)
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_fast_mode_with_nan_or_infinity(name, bad):
    rng = np.random.default_rng(22)
    cols = odd_cols(name, 512)
    weights = exact.random_rows(rng, name, 20, cols)
    x = activations(rng, "gaussian", 7, cols)
    good = {isa: run(name, weights, cols, x, isa, fast=True) for isa in SETS}
    x[4, 300] = bad
    for isa in SETS:
        y = run(name, weights, cols, x, isa, fast=True)
        assert np.isnan(y[4]).all(), isa
        others = [0, 1, 2, 3, 5, 6]
        assert_same_bits(y[others], good[isa][others], isa)


GUARDED = """
import ctypes, mmap, sys
import numpy as np
from testkit import exact_arithmetic as exact
from testkit import rare_blocks
from tinyllm import _core

page = mmap.PAGESIZE
libc = ctypes.CDLL(None, use_errno=True)
libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
keep = []

def guarded(data, at_end):
    size = data.nbytes
    inside = -(-size // page) * page
    memory = mmap.mmap(-1, inside + 2 * page)
    keep.append(memory)
    view = np.frombuffer(memory, np.uint8)
    address = view.ctypes.data
    for at in (0, inside + page):
        assert libc.mprotect(address + at, page, 0) == 0, ctypes.get_errno()
    start = page + (inside - size if at_end else 0)
    part = view[start : start + size]
    part[:] = data.reshape(-1).view(np.uint8)
    return part.view(data.dtype).reshape(data.shape)

rng = np.random.default_rng(12)
for name, (items, _, _) in exact.TYPES.items():
    sizes = {1: (1, 15, 37, 256, 5000), 256: (256, 1280)}
    for cols in sizes.get(items, (items, 3 * items, 256, 1024 + items)):
        for rows in (1, 2, 5, 16, 33, 64):
            weights = exact.random_rows(rng, name, rows, cols)
            for tokens in (1, 2, 3, 5, 8):
                x = rng.standard_normal((tokens, cols)).astype(np.float32)
                expected = _core._matmul(name, weights, cols, x, "scalar")
                for at_end in (False, True):
                    w, a = guarded(weights, at_end), guarded(x, at_end)
                    for isa in sys.argv[1].split(","):
                        y = _core._matmul(name, w, cols, a, isa)
                        assert np.array_equal(y, expected), (name, cols, rows, tokens, isa)
                        y = _core._matmul(name, w, cols, a, isa, fast=True)
                        assert np.isfinite(y).all(), (name, cols, rows, tokens, isa)
                    del w, a
                    keep.clear()
print("untouched")
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs mprotect")
def test_nothing_outside_the_data_is_read():
    done = subprocess.run(
        [sys.executable, "-c", GUARDED, ",".join(SETS[1:])],
        env=dict(os.environ, PYTHONPATH=os.pathsep.join(sys.path)),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout == "untouched\n"


def test_bad_arguments():
    weights = np.zeros((2, 144), np.uint8)
    x = np.zeros((1, 256), np.float32)
    with pytest.raises(ValueError, match="type is 'Q9_K'"):
        _core._matmul("Q9_K", weights, 256, x)
    with pytest.raises(ValueError, match="type is 'I8'"):
        _core._matmul("I8", weights, 256, x)
    with pytest.raises(ValueError, match="type is 31"):
        _core._matmul(31, weights, 256, x)
    with pytest.raises(ValueError, match="isa is 'sse9'"):
        _core._matmul("Q4_K", weights, 256, x, "sse9")
    with pytest.raises(ValueError, match="cols is 250"):
        _core._matmul("Q4_K", weights, 250, x)
    with pytest.raises(ValueError, match="weights has 143 bytes"):
        _core._matmul("Q4_K", weights.reshape(-1)[:143], 256, x)
    with pytest.raises(ValueError, match=r"rows are \[1, 2\)"):
        _core._matmul("Q4_K", weights, 256, x, row0=1)
    with pytest.raises(ValueError, match=r"rows are \[0, 3\)"):
        _core._matmul("Q4_K", weights, 256, x, row1=3)


SHOW = """
import numpy as np
from tinyllm import _core
_core._matmul(12, np.zeros((2, 144), np.uint8), 256, np.zeros((1, 256), np.float32))
"""


@pytest.mark.parametrize("isa", ["sse9", "avx2 ", "AVX2"])
def test_an_unknown_set_names_those_that_work(isa):
    env = dict(os.environ, TINYLLM_ISA=isa, PYTHONPATH=os.pathsep.join(sys.path))
    done = subprocess.run([sys.executable, "-c", SHOW], env=env, capture_output=True, text=True)
    assert done.returncode != 0
    assert f"TINYLLM_ISA is '{isa}'" in done.stderr
    assert ", ".join(SETS) in done.stderr


@pytest.mark.parametrize("isa", ["", *SETS])
def test_a_known_set_runs(isa):
    env = dict(os.environ, TINYLLM_ISA=isa, PYTHONPATH=os.pathsep.join(sys.path))
    done = subprocess.run([sys.executable, "-c", SHOW], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
