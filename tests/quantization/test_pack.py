"""Values to blocks: the error of each type, the same bytes everywhere, and values at the limits."""

import hashlib

import gguf
import numpy as np
import pytest

from testkit.models import dequantize
from tinyllm import _core
from tinyllm._core import Weight

pytestmark = pytest.mark.sanitize

TYPES = _core.writable_types()
EXACT = ("F32", "F16", "BF16")
LOSSY = [name for name in TYPES if name not in EXACT]

#: Mean squared errors of ggml_quantize_chunk of llama-cpp-python 0.3.36 for `values`, without and
#: with `importance`; the second is weighted with it.
GGML = {
    "Q4_0": (0.0661894, 0.106681),
    "Q4_1": (0.0552856, 0.0516229),
    "Q5_0": (0.0200859, 0.0344399),
    "Q5_1": (0.0117753, 0.0141541),
    "Q8_0": (0.000404029, 0.000758576),
    "Q2_K": (0.60072, 0.569389),
    "Q3_K": (0.123322, 0.18429),
    "Q4_K": (0.0372275, 0.0564259),
    "Q5_K": (0.010779, 0.0166264),
    "Q6_K": (0.00338216, 0.00526037),
    "IQ4_NL": (0.0442137, 0.0696675),
    "IQ4_XS": (0.0457245, 0.0722051),
    "MXFP4": (0.0916867, 0.167195),
    "TQ1_0": (2.17074, 3.75485),
    "TQ2_0": (2.17074, 3.75485),
    "Q1_0": (3.2429, 7.92263),
    "Q2_0": (1.5147, 2.64616),
    "IQ2_XXS": (1.82285, 3.06836),  # without importance: with ones, which these two demand
    "IQ2_XS": (1.11347, 1.86267),
    "IQ2_S": (1.21959, 1.71498),
    "IQ3_XXS": (0.491337, 0.497676),
    "IQ3_S": (0.318476, 0.399867),
    "IQ1_S": (1.7288, 2.74945),  # these two with ones
    "IQ1_M": (1.08426, 1.72236),
    "NVFP4": (0.0338262, 0.0627481),
}

#: SHA-256 of the blocks of all these types.
DIGEST = "ca6bba64a85f1968c40c047be70ea24b5a82aa45687b3f15d28ab01f2000c0a7"


def values():
    random = np.random.default_rng(0)
    x = random.standard_normal((32, 1024)).astype(np.float32)
    x[:16] *= random.lognormal(0, 1, (16, 1024)).astype(np.float32)  # heavier tails
    return x, random.lognormal(0, 1, 1024).astype(np.float32)


def unpacked(kind, raw, shape):
    return Weight("w", shape, kind, raw.tobytes()).numpy(dtype=np.float64)


def test_every_type_with_a_formula_for_its_values_can_be_written():
    formulas = [name for name, row in _core.tensor_types().items() if row[3]]
    numbers = {"I8", "I16", "I32", "I64", "F64"}
    assert set(TYPES) <= set(formulas) - numbers
    assert len(TYPES) >= 16


@pytest.mark.parametrize("kind", [*EXACT, "Q8_0"])
def test_the_bytes_of_gguf(kind):
    x, _ = values()
    x[0, :4] = [-0.0, 1e-7, -6e-8, 65504]
    expected = gguf.quants.quantize(x, gguf.GGMLQuantizationType[kind]).view(np.uint8).reshape(-1)
    np.testing.assert_array_equal(_core.pack(kind, x), expected)


def test_every_float_rounds_to_the_nearest_half():
    halves = np.arange(0x7C00, dtype=np.uint16).view(np.float16).astype(np.float32)
    middles = (halves[1:] + halves[:-1]) / 2
    x = np.concatenate([halves, middles, np.nextafter(middles, 0), np.nextafter(middles, 1e9)])
    x = np.concatenate([x, -x])
    expected = x.astype(np.float16).view(np.uint16)
    np.testing.assert_array_equal(_core.pack("F16", x).view(np.uint16), expected)


@pytest.mark.parametrize("kind", LOSSY)
def test_the_error_is_no_larger_than_that_of_ggml(kind):
    x, weight = values()
    plain = ((unpacked(kind, _core.pack(kind, x), x.shape) - x) ** 2).mean()
    raw = _core.pack(kind, x, weight)
    weighted = ((unpacked(kind, raw, x.shape) - x) ** 2 * weight).mean()
    assert plain <= GGML[kind][0] * 1.0001
    assert weighted <= GGML[kind][1] * 1.0001


def test_the_best_scale_of_nvfp4_is_found():
    """Of all 127, for each 16 values."""
    random = np.random.default_rng(5)
    x, weight = random.standard_normal(256), random.lognormal(0, 1, 256)
    x, weight = x.astype(np.float32), weight.astype(np.float32)
    error = weight * (unpacked("NVFP4", _core.pack("NVFP4", x, weight), x.shape) - x) ** 2
    codes = np.arange(127)
    scales = np.where(codes < 8, codes, (8 + codes % 8) * 2.0 ** (codes // 8 - 1)) / 1024
    magnitudes = np.array([0, 1, 2, 3, 4, 6, 8, 12])
    levels = scales[:, np.newaxis] * np.concatenate([magnitudes, -magnitudes])
    for start in range(0, 256, 16):
        y, w = x[start : start + 16].astype(np.float64), weight[start : start + 16]
        least = (w * ((y - levels[:, :, np.newaxis]) ** 2).min(axis=1)).sum(axis=1).min()
        assert error[start : start + 16].sum() <= least * 1.0001


@pytest.mark.parametrize("kind", ["TQ1_0", "TQ2_0"])
def test_ternary_weights_are_kept(kind):
    q = np.random.default_rng(2).integers(-1, 2, (4, 512))
    x = (q * np.array([[0.5], [3], [1e-3], [7]], np.float16).astype(np.float32)).astype(np.float32)
    raw = _core.pack(kind, x)
    np.testing.assert_array_equal(unpacked(kind, raw, x.shape), x)
    expected = gguf.quants.quantize(x, gguf.GGMLQuantizationType[kind]).reshape(-1)
    np.testing.assert_array_equal(raw, expected)


@pytest.mark.parametrize(("kind", "levels"), [("TQ2_0", (-1, 0, 1)), ("Q2_0", (-1, 0, 1, 2))])
def test_the_best_scale_is_found(kind, levels):
    items = _core.tensor_types()[kind][1]
    random = np.random.default_rng(3)
    levels = np.array(levels)[:, np.newaxis]
    for _ in range(5):
        x, weight = random.standard_normal(256), random.lognormal(0, 1, 256)
        x, weight = x.astype(np.float32), weight.astype(np.float32)
        found = unpacked(kind, _core.pack(kind, x, weight), x.shape) - x
        for start in range(0, 256, items):
            block = slice(start, start + items)
            y, w = x[block].astype(np.float64), weight[block].astype(np.float64)
            scales = np.linspace(-3, 3, 3001)[:, np.newaxis, np.newaxis]
            least = (w * ((y - scales * levels) ** 2).min(axis=1)).sum(axis=1).min()
            assert (w * found[block] ** 2).sum() <= least * 1.0001


@pytest.mark.parametrize(
    "kind", ["IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S"]
)
def test_values_on_a_grid_are_kept(kind):
    """Random blocks whose scales are halves of few digits, unpacked and packed again."""
    _, items, size, _ = _core.tensor_types()[kind]
    blocks = np.random.default_rng(4).integers(0, 256, (8, size), np.uint8)
    if kind == "IQ1_M":  # four bits of its scale are above each four multiples
        blocks[:, 49::2] = blocks[:, 49::2] & 15 | np.array([0, 0, 8, 3], np.uint8) << 4
    else:
        blocks[:, :2] = np.array([0.5], np.float16).view(np.uint8)
    x = unpacked(kind, blocks.reshape(-1), (8 * items,))
    found = unpacked(kind, _core.pack(kind, x.astype(np.float32)), x.shape)
    assert ((found - x) ** 2).mean() < 1e-3 * (x**2).mean()


@pytest.mark.parametrize("kind", LOSSY)
def test_gguf_reads_the_blocks_as_we_do(kind):
    x, _ = values()
    raw = _core.pack(kind, x)
    np.testing.assert_array_equal(unpacked(kind, raw, x.shape).astype(np.float32),
                                  dequantize(raw, kind).reshape(x.shape))  # fmt: skip


def test_the_bytes_are_the_same_on_every_machine():
    x, weight = values()
    digest = hashlib.sha256()
    for kind in sorted(GGML):
        digest.update(_core.pack(kind, x).tobytes() + _core.pack(kind, x, weight).tobytes())
    assert digest.hexdigest() == DIGEST


@pytest.mark.parametrize("kind", TYPES)
def test_threads_and_neighbours_change_no_byte(kind):
    x, weight = values()
    x = np.concatenate([x, x[::-1]])
    whole = _core.pack(kind, x, weight, threads=1)
    np.testing.assert_array_equal(_core.pack(kind, x, weight, threads=4), whole)
    rows = [_core.pack(kind, row, weight) for row in x]
    np.testing.assert_array_equal(np.concatenate(rows), whole)
    items = _core.tensor_types()[kind][1]
    blocks = [_core.pack(kind, block) for block in x[0].reshape(-1, items)[:5]]
    np.testing.assert_array_equal(np.concatenate(blocks), _core.pack(kind, x[0, : 5 * items]))


@pytest.mark.parametrize("kind", [name for name in LOSSY if name != "Q8_0"])
def test_importance_moves_the_error_to_where_it_matters_less(kind):
    x, weight = values()
    plain = unpacked(kind, _core.pack(kind, x), x.shape) - x
    weighted = unpacked(kind, _core.pack(kind, x, weight), x.shape) - x
    assert (weighted**2 * weight).mean() < (plain**2 * weight).mean()
    assert (weighted**2).mean() >= (plain**2).mean()


@pytest.mark.parametrize("kind", LOSSY)
def test_values_at_the_limits(kind):
    random = np.random.default_rng(1)
    limit = 2688.0 if kind == "NVFP4" else 65504.0
    rows = {
        "zeros": np.zeros(256),
        "minus zeros": -np.zeros(256),
        "ones": np.ones(256),
        "minus ones": -np.ones(256),
        "one value": np.eye(1, 256, 77)[0] * -3,
        "largest": np.full(256, limit),
        "both ends": np.tile([limit, -limit], 128),
        "small": random.standard_normal(256) * 1e-6,
        "denormal": random.standard_normal(256) * 1e-42,
        "outlier": np.append(random.standard_normal(255) * 1e-3, 1000),
        "all positive": 5 + random.random(256),
        "all negative": -5 - random.random(256),
    }
    for name, row in rows.items():
        x = row.astype(np.float32)
        for weight in (None, random.lognormal(0, 5, 256).clip(1e-7, 1e7).astype(np.float32)):
            found = unpacked(kind, _core.pack(kind, x, weight), (256,))
            assert np.isfinite(found).all(), name
            # of eight values, one of little importance may have the wrong sign, or in IQ1 any level
            most = 2 if kind in ("IQ2_XXS", "IQ2_XS", "IQ3_XXS") else 1.001
            most = 10 if kind in ("IQ1_S", "IQ1_M") else most
            assert np.abs(found - x).max() <= np.abs(x).max() * most, name
            if name in ("zeros", "minus zeros"):
                assert (found == 0).all()
    ones = unpacked(kind, _core.pack(kind, np.ones(256, np.float32)), (256,))
    np.testing.assert_allclose(ones, 1, rtol=0.02)


def test_wrong_arguments():
    x = np.ones(256, np.float32)
    with pytest.raises(ValueError, match="'Q9_K'"):
        _core.pack("Q9_K", x)
    with pytest.raises(ValueError, match="'Q8_K', which tinyllm cannot write"):
        _core.pack("Q8_K", x)
    with pytest.raises(ValueError, match="multiple of 256 for Q4_K"):
        _core.pack("Q4_K", x[:32])
    with pytest.raises(ValueError, match="rows have 16 values"):
        _core.pack("Q4_0", x, np.ones(16, np.float32))
    with pytest.raises(ValueError, match="rows of 100"):
        _core.pack("Q4_0", x, np.ones(100, np.float32))
    with pytest.raises(ValueError, match="rows of 0"):
        _core.pack("Q4_0", x, [])
    for wrong in (0.0, -1.0, np.nan, np.inf, 1e9):
        with pytest.raises(ValueError, match=r"weight\[3\] is out of range"):
            _core.pack("F32", x, np.where(np.arange(256) == 3, wrong, 1).astype(np.float32))
    with pytest.raises(ValueError, match="threads is -1"):
        _core.pack("F32", x, threads=-1)
    with pytest.raises(TypeError):
        _core.pack("F32", np.ones(4, np.complex128))
    assert _core.pack("Q4_0", []).size == 0


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf, 65505.0, -3e38])
def test_values_that_do_not_fit(kind, wrong):
    x = np.ones(512, np.float32)
    x[300] = wrong
    if np.isfinite(wrong) and kind in ("F32", "BF16", "MXFP4"):
        assert np.isfinite(unpacked(kind, _core.pack(kind, x), (512,))).all()
        return
    with pytest.raises(ValueError, match=f"not finite or too large for {kind}"):
        _core.pack(kind, x)
