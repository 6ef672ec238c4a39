"""The tables of weights, files and models in notebooks."""

import re
import time

import numpy as np
import pytest

import tinyllm as tl
from testkit import gguf_bytes as b
from testkit import models
from tinyllm import Weight
from tinyllm.base.samples import MOST_SAMPLED, STRETCH, sample_weight, sample_weights
from tinyllm.display import weights as display
from tinyllm.display.families import Member, families, layers_text
from tinyllm.display.histogram import line, spark
from tinyllm.display.table import Table
from tinyllm.display.table import _columns_of as wcwidth
from tinyllm.files.model_file import DEMO

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


@pytest.mark.parametrize(
    "kind", ["Q4_K", "Q8_0", "Q4_0", "Q6_K", "BF16", "IQ4_XS", "MXFP4", "Q1_0"]
)
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
    grid = Weight("grid", (256,), "IQ2_XXS", bytes(66))
    strange = Weight("strange", (3,), "F32", np.float32([np.nan, np.inf, 1]).tobytes())
    whole = Weight("whole", (40960,), "I64", np.arange(40960).astype("<i8").tobytes())
    table, _ = weights_table([scalar, empty, grid, strange, whole])
    assert cell(table, 0, "mean") == "2"
    assert cell(table, 1, "mean") == ""
    assert cell(table, 2, "max") == "0"
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
    names = {re.sub(r"blk\.\d+", "blk.*", name) for name in model.weights}
    assert len(names) < page.count("<svg") <= 2 * len(names)  # histograms, and lines over blocks
    assert "evenly spaced" in page
    norms = [model.weights[f"blk.{i}.attn_norm.weight"].numpy() for i in range(4)]
    for shown in (page, tl.GGUF(DEMO)._repr_html_(), model.weights._repr_html_()):
        assert all(f">{name}</td>" in shown for name in names)
        assert f"{np.min(norms):.4g}" in shown
        assert f"{np.max(norms):.4g}" in shown
        assert ">0-3</td>" in shown
    start = time.perf_counter()
    model._repr_html_()
    assert time.perf_counter() - start < 1  # usually a few milliseconds
    rows = str(model.weights).splitlines()
    assert len(rows) == 1 + len(model.weights)
    assert rows[1].split() == ["token_embd.weight", "Q8_0", "(1024,", "256)", "279", "kB"]


def test_a_notebook_of_thirty_layers_stays_small(tmp_path):
    model = models.random_model(tmp_path, layers=30, vocab=300)
    t = model.trace(np.arange(100), "*")
    assert len(t) > 600
    for shown in (t, t.table(), model, model.weights, model.taps, model.steps):
        assert len(shown._repr_html_()) < 40_000, shown
    html = t._repr_html_()
    assert "20 more" in html
    # one row per name, whose numbers are those of all layers
    t = t[:60]
    html = t._repr_html_()
    assert f"at most {16384:,} values" in html
    values = t.stack("blk.*.resid_post")
    row = html[html.index(">blk.*.resid_post<") :].split("</tr>")[0]
    assert ">0-29<" in row
    assert f">{values.max():.4g}<" in row
    assert f">{np.sqrt((values.astype(np.float64) ** 2).mean()):.4g}<" in row
    norms = np.sqrt((values.astype(np.float64) ** 2).mean(axis=(1, 2)))
    assert f"<title>{norms.min():.4g} to {norms.max():.4g}</title>" in row


def test_families_of_names():
    def member(name, shape=(2,)):
        return Member(name, (shape,), 8, np.ones(2))

    names = ["token_embd", "blk.1.a", "blk.0.a", "blk.1.b", "enc.blk.0.a", "notblk.0.a", "output"]
    found = families([*map(member, names), member("blk.4.a"), member("blk.2.a", (3,))])
    assert [(f.pattern, layers_text(f.layers)) for f in found] == [
        ("token_embd", ""),
        ("blk.*.a", "0-1, 4"),
        ("blk.*.b", "1"),
        ("enc.blk.*.a", "0"),
        ("notblk.0.a", ""),
        ("output", ""),
        ("blk.*.a", "2"),
    ]
    assert layers_text(range(0, 20, 2)) == "0, 2, 4, …, 16, 18"


def test_small_images():
    values = np.array([0.0, 0, 0, 1, 2])
    heights = [64 - int(y) for y in re.findall(r"V(\d+)h8", spark(values, bins=4))]
    assert heights == [60, 0, 20, 20]
    places = re.findall(r"[ML](\d+) (\d+)", line([1, 2, np.nan, 0]))
    assert [int(y) for _, y in places] == [32, 4, 60]
    assert line([1, np.nan, 2]).count("M") == 2  # a gap
    assert line([np.nan]) == spark(np.zeros(0)) == ""
    assert "1e+38" in spark(np.array([-1e38, 1e38]))


def test_columns_are_aligned_by_kind():
    table = Table(
        ("name", "count", "value", "mixed", "size"),
        [("a", 1, "-1.5e-05", "1 of 3", "512 B"), ("漢字", 1200, "nan", "10", "13.8 MB")],
    )
    assert str(table) == (
        "name  count     value  mixed      size\n"
        "a         1  -1.5e-05  1 of 3    512 B\n"
        "漢字   1200       nan  10      13.8 MB"
    )
    html = table.html()
    assert html.count("style=text-align:right") == 9
    assert html.count("style=text-align:left") == 6


def test_a_table_fits_the_terminal(monkeypatch):
    rows = [("blk.0.attn_q", "x" * 50, *range(100, 110))]
    table = Table(("tap", "text", *map(str, range(10))), rows)
    whole = len(str(table).splitlines()[1])
    assert whole == 12 + 2 + 50 + 10 * 5
    for width in range(12, whole + 1):
        shown = [wcwidth(line) for line in table.text(width).splitlines()]
        assert max(shown) <= max(width, 22), width  # the first, a mark and the last always show
    assert table.text(80).splitlines()[1].split()[1] == "xxxxxxxxxxxxxxx…"
    assert table.text(30).splitlines()[1] == "blk.0.attn_q  …  107  108  109"
    monkeypatch.setattr("tinyllm.display.table.terminal_width", lambda: 30)
    assert str(table) == table.text(30)


def test_long_tables_in_a_notebook():
    table = Table([f"c{i}" for i in range(40)], [[i] * 40 for i in range(300)])
    html = table.html("many")
    assert html.count("<tr>") == 1 + 100 + 1
    assert "200 rows are not shown" in html
    assert "16 columns are not shown" in html
    assert ">0<" in html
    assert ">299<" in html
    assert ">150<" not in html
    assert Table(("a",), [(i,) for i in range(300)]).html(rows=None).count("<tr>") == 301


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
