"""Dequantization, compared with PyPI gguf and with exact fractions."""

import ctypes
import importlib.util
import math
import re
import shutil
import subprocess
import sys
import threading
from fractions import Fraction
from pathlib import Path

import gguf
import numpy as np
import pytest

from testkit import exact_arithmetic, rare_blocks
from testkit.models import dequantize
from tinyllm import _core
from tinyllm._core import Weight

pytestmark = pytest.mark.sanitize

TYPES = list(exact_arithmetic.TYPES)
INTEGERS = {"I8": np.int8, "I16": np.int16, "I32": np.int32, "I64": np.int64}


def random_blocks(name, rows, cols, seed):
    """Extreme blocks, then uniform bits: NaN, infinite, zero and denormal scales occur.

    Every scale of MXFP4 is a power of two; some products with it are beyond float32.
    """
    items, size, halves = exact_arithmetic.TYPES[name]
    blocks = np.random.default_rng(seed).integers(0, 256, (rows * cols // items, size), np.uint8)
    blocks[0] = 0
    blocks[1] = 255
    special = [0x0000, 0x8000, 0x0001, 0x83FF, 0x0400, 0x7BFF, 0xFBFF, 0x7C00, 0xFC00, 0x7E00]
    for i, value in enumerate(special):
        for at in halves:
            blocks[2 + i, at : at + 2] = np.frombuffer(np.uint16(value).tobytes(), np.uint8)
    if not halves and name not in exact_arithmetic.FLOATS:
        numbers = np.array(special, np.uint16).view(np.float16).astype(np.float64)
        if name == "MXFP4":
            blocks[: 3 * 256, 0] = np.arange(3 * 256) % 256
        elif name != "NVFP4":
            rare_blocks.set_scales(name, blocks[2 : 2 + len(special)], numbers)
    return blocks.reshape(rows, cols // items * size)


def weight(name, shape, raw):
    return Weight("w", shape, name, np.ascontiguousarray(raw).tobytes())


@pytest.mark.parametrize("name", TYPES)
def test_equals_gguf_on_random_bits(name):
    raw = random_blocks(name, 64, 2048, seed=1)
    with np.errstate(all="ignore"):
        expected = dequantize(raw.reshape(-1), name).reshape(64, 2048)
    values = weight(name, (64, 2048), raw).numpy()
    assert values.dtype == np.float32
    if name != "NVFP4":  # whose scales are all finite
        assert np.isinf(values).any() if name == "MXFP4" else np.isnan(values).any()
    assert np.isfinite(values).mean() > 0.8
    np.testing.assert_array_equal(values, expected)


@pytest.mark.parametrize("name", TYPES)
def test_float32_is_float64_rounded_once(name):
    w = weight(name, (64, 2048), random_blocks(name, 64, 2048, seed=2))
    exact = w.numpy(dtype=np.float64)
    assert exact.dtype == np.float64
    with np.errstate(all="ignore"):
        np.testing.assert_array_equal(exact.astype(np.float32), w.numpy())


@pytest.mark.parametrize("name", [n for n in TYPES if n not in exact_arithmetic.FLOATS])
def test_float64_is_exact(name):
    items, size, halves = exact_arithmetic.TYPES[name]
    blocks = np.random.default_rng(3).integers(0, 256, (12, size), np.uint8)
    for at in halves:
        blocks[:, at + 1] &= 0xBF  # finite
    if halves:
        blocks[:2, halves[0] : halves[0] + 2] = [[1, 0], [0xFF, 0x83]]  # denormal
    elif name == "MXFP4":
        blocks[:4, 0] = [0, 1, 2, 255]
    elif name != "NVFP4":
        rare_blocks.set_scales(name, blocks, np.float32(0.1) * np.arange(12))
    values = weight(name, (12, items), blocks).numpy(dtype=np.float64)
    for block, row in zip(blocks, values, strict=True):
        if items != 256:
            parts = exact_arithmetic.decode_row(name, block)
            exact = [Fraction(d) * int(x) + Fraction(m) for q, d, m in parts for x in q]
        else:
            q, scale, minimum, d, dmin = exact_arithmetic.decode_k(name, block)
            exact = [
                Fraction(d) * int(scale[i // 16]) * int(x) - Fraction(dmin) * int(minimum[i // 16])
                for i, x in enumerate(q)
            ]
        assert [Fraction(x) for x in row.tolist()] == exact


def test_every_half_converts():
    bits = np.arange(65536, dtype=np.uint16)
    values = weight("F16", (65536,), bits).numpy()
    np.testing.assert_array_equal(values, bits.view(np.float16).astype(np.float32))
    assert np.array_equal(np.signbit(values), bits >= 0x8000)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_float64_tensor(dtype):
    values = np.array([0.1, -1e300, 1e-310, math.pi, np.inf, np.nan, 1e-46, 2.0**-149 * 1.5])
    with np.errstate(over="ignore", under="ignore"):
        expected = values.astype(dtype)
    np.testing.assert_array_equal(weight("F64", (8,), values).numpy(dtype=dtype), expected)


@pytest.mark.parametrize(("name", "kind"), INTEGERS.items())
def test_integer_tensors(name, kind):
    limits = np.iinfo(kind)
    values = np.array([[limits.min, limits.max], [-1, 0], [1, 100]], kind)
    w = weight(name, (3, 2), values)
    np.testing.assert_array_equal(w.numpy(dtype=np.float64), values.astype(np.float64))
    np.testing.assert_array_equal(w.numpy(), values.astype(np.float32))


def test_table_equals_gguf():
    table = _core.tensor_types()
    for kind in gguf.GGMLQuantizationType:
        if kind.name == "Q8_1":  # 36 bytes in ggml; some versions of gguf say 40
            continue
        items, size = gguf.GGML_QUANT_SIZES[kind]
        assert table[kind.name][:3] == (int(kind), items, size)
    assert table["Q8_1"] == (9, 32, 36, False)
    assert table["Q2_0"] == (42, 64, 18, True)
    assert table["Q8_0"] == (8, 32, 34, True)
    assert sorted(row[0] for row in table.values()) == [
        i for i in range(43) if i not in (4, 5, 31, 32, 33, 36, 37, 38)
    ]


def test_codebooks_are_those_of_gguf():
    script = Path(__file__).parents[2] / "scripts" / "make_grid_codes.py"
    spec = importlib.util.spec_from_file_location("make_grid_codes", script)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    text = module.OUT.read_text("utf-8")
    for name, table in module.TABLES.items():
        body = re.search(table + r"\[\d+\] = \{(.*?)\}", text, re.S)[1]
        written = [int(n, 16) for n in body.split(",")]
        assert written[: len(module.codes(name))] == module.codes(name)


def test_every_entry_of_every_grid():
    """Each index of a grid occurs in random blocks, so equality with gguf covers all of them."""
    for name in ("IQ1_S", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S"):
        raw = random_blocks(name, 64, 8192, seed=11)
        with np.errstate(all="ignore"):
            expected = dequantize(raw.reshape(-1), name).reshape(64, 8192)
        np.testing.assert_array_equal(weight(name, (64, 8192), raw).numpy(), expected)


# ---- rows ----


@pytest.fixture(scope="module")
def matrix():
    return weight("Q4_K", (40, 512), random_blocks("Q4_K", 40, 512, seed=4))


ROWS = [
    None, 0, 39, -1, -40, slice(None), slice(3, 30, 4), slice(None, None, -1), slice(50, 60),
    slice(-5, None), [1, 1, -1, 0], [], (3, 2), np.array([5, 6], np.uint8), np.arange(40) % 3 == 0,
    np.zeros(40, bool), [True] * 40, np.int64(7), np.array(4), range(3),
]  # fmt: skip


@pytest.mark.parametrize("rows", ROWS, ids=repr)
def test_rows_are_those_of_numpy(matrix, rows):
    index = list(rows) if isinstance(rows, tuple | range) else rows
    index = np.array(index, np.int64) if isinstance(index, list) and index == [] else index
    every = matrix.numpy()
    expected = every if rows is None else every[index]
    np.testing.assert_array_equal(matrix.numpy(rows), expected)
    assert matrix.numpy(rows, np.float64).shape == expected.shape
    if rows is not None and not isinstance(rows, tuple):
        np.testing.assert_array_equal(matrix[rows], expected)


@pytest.mark.parametrize(
    ("rows", "error"),
    [
        (40, IndexError), (-41, IndexError), (2**70, IndexError), ([0, 40], IndexError),
        ([-41], IndexError), (np.array([2**64 - 1], np.uint64), IndexError),
        ([True] * 39, IndexError), ([[0]], IndexError), ([0.5], IndexError), ("a", IndexError),
        (True, IndexError), (slice(0, 1, 0), ValueError), (1.5, IndexError),
    ],
)  # fmt: skip
def test_bad_rows(matrix, rows, error):
    with pytest.raises(error, match=r"row|step|mask|index"):
        matrix.numpy(rows)


@pytest.mark.parametrize("index", [None, ..., (0, 1), (slice(None), 0)])
def test_only_rows_are_indexed(matrix, index):
    with pytest.raises(TypeError, match="rows"):
        matrix[index]


def test_rows_of_other_shapes():
    blocks = random_blocks("Q8_0", 12, 64, seed=5)
    deep = weight("Q8_0", (3, 4, 64), blocks)
    assert deep.raw.shape == (3, 4, 68)
    for rows in (1, [2, 0], slice(None, None, -2), np.array([True, False, True])):
        np.testing.assert_array_equal(deep.numpy(rows), deep.numpy()[rows])
    flat = weight("Q8_0", (768,), blocks)
    np.testing.assert_array_equal(deep.numpy().reshape(-1), flat.numpy())
    for rows in (33, -1, [5, 700], slice(10, 100, 7), np.arange(768) % 5 == 0):
        np.testing.assert_array_equal(flat.numpy(rows), flat.numpy()[rows])
    with pytest.raises(IndexError):
        flat.numpy(768)
    with pytest.raises(IndexError):
        flat.numpy(True)
    scalar = Weight("s", (), "F32", np.float32(3).tobytes())
    assert scalar.numpy() == 3
    assert scalar.numpy().shape == ()
    assert scalar.raw.shape == (4,)
    with pytest.raises(IndexError, match="no axes"):
        scalar.numpy(0)
    with pytest.raises(TypeError):
        len(scalar)


@pytest.mark.parametrize("name", ["IQ4_NL", "IQ4_XS", "MXFP4", "Q4_K", "IQ2_XS", "NVFP4"])
def test_matrices_of_a_stack(name):
    raw = random_blocks(name, 3 * 20, 512, seed=8)
    stack = weight(name, (3, 20, 512), raw)
    assert stack.raw.shape == (3, 20, raw.shape[1])
    with np.errstate(all="ignore"):
        expected = dequantize(raw.reshape(-1), name).reshape(3, 20, 512)
    np.testing.assert_array_equal(stack.numpy(), expected)
    x = np.random.default_rng(9).standard_normal((2, 512)).astype(np.float32)
    for i in range(3):
        np.testing.assert_array_equal(stack[i], expected[i])
        alone = weight(name, (20, 512), stack.raw[i])
        np.testing.assert_array_equal(alone.numpy(), expected[i])
        finite = np.isfinite(expected[i]).all(1) & (np.abs(expected[i]) < 1e30).all(1)
        products = _core._matmul(name, stack.raw[i], 512, x)[:, finite]
        wide = x.astype(np.float64) @ expected[i][finite].astype(np.float64).T
        size = np.linalg.norm(expected[i][finite].astype(np.float64), axis=1)
        assert (abs(products - wide) <= 1e-6 * size * np.linalg.norm(x, axis=1)[:, None]).all()


@pytest.mark.parametrize("shape", [(0,), (0, 32), (5, 0), (2, 0, 32), (0, 0)])
def test_empty_tensors(shape):
    w = Weight("w", shape, "Q4_0", b"")
    assert w.numpy().shape == shape
    assert w.nbytes == w.raw.size == 0
    assert len(w) == shape[0]
    if shape[0]:
        assert w.numpy([0, 1]).shape == (2, *shape[1:])


@pytest.mark.parametrize("name", ["Q6_K", "Q4_0", "F16"])
def test_long_rows_are_cut_into_pieces(name):
    cols = 3 * 65536 + 512
    raw = random_blocks(name, 3, cols, seed=6)
    with np.errstate(all="ignore"):
        expected = dequantize(raw.reshape(-1), name).reshape(3, cols)
    w = weight(name, (3, cols), raw)
    np.testing.assert_array_equal(w.numpy(), expected)
    np.testing.assert_array_equal(w.numpy([2, 0]), expected[[2, 0]])


# ---- as an object ----


def test_attributes_and_arrays():
    values = np.arange(12, dtype=np.float32).reshape(3, 4)
    w = Weight("blk.0.w", [3, 4], "F32", values.tobytes())
    assert (w.name, w.shape, w.type, w.nbytes, len(w)) == ("blk.0.w", (3, 4), "F32", 48, 3)
    assert repr(w) == "<Weight 'blk.0.w' F32 (3, 4), 48 bytes>"
    assert not w.raw.flags.writeable
    assert w.raw.base is w
    np.testing.assert_array_equal(np.asarray(w), values)
    np.testing.assert_array_equal(np.array(list(w)), values)
    assert np.asarray(w, np.float16).dtype == np.float16
    assert np.asarray(w, np.float64).dtype == np.float64
    with pytest.raises(ValueError, match="copy"):
        w.__array__(copy=False)
    with pytest.raises(TypeError, match="float32 or float64"):
        w.numpy(dtype=np.int32)
    with pytest.raises(TypeError, match="float32 or float64"):
        w.numpy(dtype=">f4")
    with pytest.raises(AttributeError):
        w.name = "x"
    with pytest.raises(TypeError):
        Weight.name = "x"
    assert "Q4_K" in Weight.__doc__
    assert "rows" in Weight.numpy.__doc__


def test_html_is_escaped():
    w = Weight("<b>\udcff&", (1,), "F32", bytes(4))
    assert "&lt;b&gt;\\udcff&amp;" in w._repr_html_()
    w._repr_html_().encode()


def test_the_buffer_is_used_in_place_or_copied():
    data = np.arange(4, dtype=np.float32).tobytes()
    w = Weight("w", (4,), "F32", data)
    assert w.raw.ctypes.data == np.frombuffer(data, np.uint8).ctypes.data
    writable = bytearray(data)
    w = Weight("w", (4,), "F32", writable)
    writable[:] = bytes(16)
    writable.clear()  # not locked
    np.testing.assert_array_equal(w.numpy(), [0, 1, 2, 3])
    unaligned = memoryview(b"x" + data)[1:]
    np.testing.assert_array_equal(Weight("w", (4,), "F32", unaligned).numpy(), [0, 1, 2, 3])


@pytest.mark.parametrize(
    ("shape", "kind", "size", "error", "text"),
    [
        ((2,), "F32", 7, ValueError, "7 bytes.* 8"),
        ((2,), "Q4_2", 8, ValueError, "Q4_2"),
        ((2,), "f32", 8, ValueError, "'f32'"),
        ((33,), "Q4_0", 36, ValueError, "32"),
        ((-1,), "F32", 0, ValueError, "negative"),
        ((2**70,), "F32", 0, ValueError, "fit"),
        ((2**62, 2**62), "F32", 0, ValueError, "fit"),
        ((0, 2**62, 2**62), "F32", 0, ValueError, "fit"),
        ((1, 1, 1, 1, 1), "F32", 4, ValueError, "4 axes"),
        (("a",), "F32", 4, TypeError, "int"),
        (3, "F32", 4, TypeError, "sequence"),
    ],
)
def test_bad_arguments(shape, kind, size, error, text):
    with pytest.raises(error, match=text):
        Weight("w", shape, kind, bytes(size))


def test_bad_buffers():
    with pytest.raises(TypeError):
        Weight("w", (1,), "F32", "text")
    with pytest.raises((ValueError, BufferError)):
        Weight("w", (4,), "F32", memoryview(bytes(32))[::2])


@pytest.mark.threads
def test_threads_share_a_weight():
    w = weight("Q5_K", (256, 1024), random_blocks("Q5_K", 256, 1024, seed=7))
    expected = w.numpy()
    failures = []

    def read(seed):
        rng = np.random.default_rng(seed)
        for _ in range(20):
            rows = rng.integers(-256, 256, 50)
            if not np.array_equal(w.numpy(rows), expected[rows], equal_nan=True):
                failures.append(rows)
            if not np.array_equal(w.numpy(), expected, equal_nan=True):
                failures.append("all")

    threads = [threading.Thread(target=read, args=(i,)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


@pytest.fixture(scope="module")
def control_word(tmp_path_factory):
    """Functions that read and set the SSE control word of the calling thread."""
    compiler = shutil.which("cc")
    if compiler is None or sys.platform == "win32":
        pytest.skip("needs a C compiler")
    path = tmp_path_factory.mktemp("fpu")
    (path / "fpu.c").write_text(
        "#include <xmmintrin.h>\n"
        "unsigned get(void) { return _mm_getcsr(); }\n"
        "void set(unsigned word) { _mm_setcsr(word); }\n"
    )
    command = [compiler, "-shared", "-fPIC", "-o", path / "fpu.so", path / "fpu.c"]
    if subprocess.run(command, capture_output=True, check=False).returncode != 0:
        pytest.skip("no SSE on this machine")
    return ctypes.CDLL(path / "fpu.so")


def test_flush_to_zero_in_the_caller_changes_nothing(control_word):
    denormal = Weight("w", (2,), "F32", np.array([1, 0x80000002], np.uint32).tobytes())
    double = Weight("w", (1,), "F64", np.array([2.0**-140]).tobytes())
    power = Weight("w", (32,), "MXFP4", bytes([0] + [0x2A] * 16))  # 2^-128, and nibbles -2 and 2
    before = control_word.get()
    control_word.set(before | 0x8040)
    try:
        wide = denormal.numpy(dtype=np.float64)
        narrow = double.numpy()
        product = power.numpy()
        during = control_word.get()
    finally:
        control_word.set(before)
    assert wide.tolist() == [2.0**-149, -(2.0**-148)]
    assert narrow.view(np.uint32).tolist() == [1 << 9]
    assert product.tolist() == [-(2.0**-127)] * 16 + [2.0**-127] * 16
    assert during & 0x8040 == 0x8040
