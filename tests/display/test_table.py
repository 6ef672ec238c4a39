"""The tables of weights, files and models in notebooks."""

import time

import numpy as np
import pytest

import tinyllm as tl
from testkit import gguf_bytes as b
from testkit import models
from tinyllm import Weight
from tinyllm.base.samples import MOST_SAMPLED, STRETCH, sample_weight, sample_weights
from tinyllm.display import weights as display
from tinyllm.display.histogram import spark

RNG = np.random.default_rng(5)


def floats(name, shape):
    values = RNG.standard_normal(shape).astype("<f4")
    return Weight(name, shape, "F32", values.tobytes()), values.reshape(-1)


def weights_table(weights, stretches=16):
    return display.weights_table(sample_weights(weights, stretches), stretches)


def cell(table, row, column):
    return table.rows[row][table.columns.index(column)]


def test_a_small_weight_is_read_whole():
    weight, values = floats("w", (3, 5, 7))
    assert np.array_equal(sample_weight(weight, 2), values)
    table, _ = weights_table([weight])
    assert cell(table, 0, "sampled") == "all"
    assert cell(table, 0, "mean") == f"{values.astype(float).mean():.4g}"
    assert cell(table, 0, "rms") == f"{np.sqrt((values.astype(float) ** 2).mean()):.4g}"
    assert cell(table, 0, "min") == f"{values.min():.4g}"
    assert cell(table, 0, "max") == f"{values.max():.4g}"
    assert cell(table, 0, "histogram") == spark(values.astype(float))


@pytest.mark.parametrize("shape", [(64, 640), (40960,), (2, 5, 4096), (1, 40960), (40, 1031)])
def test_a_large_one_gives_evenly_spaced_stretches(shape):
    weight, values = floats("w", shape)
    got = sample_weight(weight, 16)
    assert got.shape == (16 * STRETCH,)
    count = values.size // STRETCH
    parts = values[: count * STRETCH].reshape(count, STRETCH)
    at = [i * (count - 1) // 15 for i in range(16)]
    assert at[0] == 0
    assert at[-1] == count - 1
    assert np.array_equal(got, parts[at].reshape(-1))
    assert np.array_equal(got, sample_weight(weight, 16))
    table, caption = weights_table([weight])
    assert cell(table, 0, "sampled") == f"8,192 of {values.size:,}"
    assert cell(table, 0, "max") == f"{got.max():.4g}"
    assert "16 evenly spaced stretches of 512 values" in caption


@pytest.mark.parametrize("kind", ["Q4_K", "Q8_0", "Q4_0", "Q6_K", "BF16", "IQ4_XS", "MXFP4"])
def test_blocks_are_sampled_whole(kind):
    shape = (64, 1024)
    if kind not in models.QUANTIZABLE:
        data = models.random_blocks(RNG, shape, kind, 0.1)
    else:
        data = models.quantize(RNG.standard_normal(shape).astype(np.float32), kind)
    weight = Weight("w", shape, kind, np.ascontiguousarray(data).tobytes())
    values = weight.numpy().reshape(-1, STRETCH)
    at = np.arange(16) * (len(values) - 1) // 15
    assert np.array_equal(sample_weight(weight, 16), values[at].reshape(-1))


def test_odd_weights():
    scalar = Weight("scalar", (), "F32", np.float32(2).tobytes())
    empty = Weight("empty", (0, 4), "F32", b"")
    unknown = Weight("unknown", (256,), "IQ2_XXS", bytes(66))
    strange = Weight("strange", (3,), "F32", np.float32([np.nan, np.inf, 1]).tobytes())
    whole = Weight("whole", (40960,), "I64", np.arange(40960).astype("<i8").tobytes())
    table, _ = weights_table([scalar, empty, unknown, strange, whole])
    assert cell(table, 0, "mean") == "2"
    assert cell(table, 1, "mean") == ""
    assert cell(table, 2, "sampled") == "none"
    assert cell(table, 3, "max") == "1"
    assert cell(table, 4, "max") == "4.096e+04"
    table.html()
    str(table)


def test_a_file_of_very_many_tensors_stays_quick():
    names = [f"t{i}" for i in range(MOST_SAMPLED + 5)]
    weight, _ = floats("w", (2,))
    table, caption = weights_table([Weight(n, (2,), "F32", weight.raw.tobytes()) for n in names])
    assert cell(table, MOST_SAMPLED - 1, "sampled") == "all"
    assert cell(table, MOST_SAMPLED, "sampled") == "none"
    assert f"Only the first {MOST_SAMPLED:,}" in caption


def test_models_and_files_show_their_weights():
    model = tl.load()
    page = model._repr_html_()
    assert page.count("<svg") == len(model.weights)
    assert "evenly spaced" in page
    norm = model.weights["blk.0.attn_norm.weight"].numpy()
    for shown in (page, tl.GGUF(tl.model.DEMO)._repr_html_()):
        assert f"{norm.min():.4g}" in shown
        assert f"{norm.max():.4g}" in shown
    start = time.perf_counter()
    model._repr_html_()
    assert time.perf_counter() - start < 1  # usually a few milliseconds


def test_hostile_names_are_escaped():
    hostile = b"<script>alert(1)</script>\xff'\"&"
    info = b.info(hostile, (4,), 0, 0)
    file = tl.GGUF(b.build([b.entry("k", b.STRING, hostile)], [info], bytes(16)))
    model = tl.load()
    model.weights = file.tensors
    for page in (
        file._repr_html_(),
        model._repr_html_(),
        *[w._repr_html_() for w in file.tensors.values()],
    ):
        page.encode()
        assert "<script" not in page
        assert "&lt;script&gt;alert(1)" in page
        assert "\\udcff&#x27;&quot;&amp;" in page
