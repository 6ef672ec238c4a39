"""The tensors of two files compared."""

import json

import numpy as np
import pytest

import tinyllm as tl
from tinyllm.cli.main import main


@pytest.fixture
def pair(tmp_path):
    rng = np.random.default_rng(0)
    a = {
        "same": rng.standard_normal((3, 4)).astype(np.float32),
        "near": rng.standard_normal((300, 40)).astype(np.float32),
        "halves": rng.standard_normal((8, 32)).astype(np.float32),
        "nan": np.float32([1, np.nan]),
        "shaped": np.zeros((2, 3), np.float32),
        "scalar": np.float32(2),
        "empty": np.zeros((0, 4), np.float32),
        "zero": np.zeros(3, np.float32),
        "first": np.zeros(1, np.float32),
    }
    b = {name: array for name, array in a.items() if name != "first"}
    b["near"] = a["near"] + rng.standard_normal(a["near"].shape).astype(np.float32) / 100
    b["halves"] = a["halves"].astype(np.float16)
    b["shaped"] = np.zeros((3, 2), np.float32)
    b["scalar"] = np.float32(-2)
    b["zero"] = np.float32([0, 3, 4])
    b["second"] = np.zeros(1, np.float32)
    paths = tmp_path / "a.gguf", tmp_path / "b.gguf"
    for path, tensors in zip(paths, (a, b), strict=True):
        tl.write_gguf(path, {}, tensors)
    return (*paths, a, b)


def test_numbers_are_those_of_numpy(pair):
    path_a, path_b, a, b = pair
    found = tl.diff_weights(path_a, path_b)
    assert (found.only_a, found.only_b) == (["first"], ["second"])
    assert found.shapes == {"shaped": ((2, 3), (3, 2))}
    assert not found.same
    rows = {row.name: row for row in found.tensors}
    assert set(rows) == set(a) - {"shaped", "first"}
    for name in ("near", "halves", "scalar"):
        x, y = a[name].astype(np.float64).ravel(), b[name].astype(np.float64).ravel()
        row = rows[name]
        assert not row.same
        assert row.max == np.abs(x - y).max()
        assert row.rms == pytest.approx(np.sqrt(np.mean((x - y) ** 2)), rel=1e-12)
        norms = np.linalg.norm(x), np.linalg.norm(y)
        assert row.relative == pytest.approx(np.linalg.norm(x - y) / norms[0], rel=1e-12)
        assert row.cosine == pytest.approx(x @ y / norms[0] / norms[1], rel=1e-12)
    assert rows["halves"].types == ("F32", "F16")
    assert rows["scalar"].cosine == -1
    for name in ("same", "nan", "empty"):
        assert rows[name].same
        assert rows[name].cosine == 1
    assert (rows["zero"].max, rows["zero"].relative, rows["zero"].cosine) == (4, np.inf, 0)
    finite = [row.relative for row in found.tensors if np.isfinite(row.relative)]
    assert finite == sorted(finite, reverse=True)
    text = str(found)
    assert "only in the second" in text
    assert "(2, 3) / (3, 2)" in text
    assert "near" in found._repr_html_()


def test_types_are_compared_by_value(tmp_path):
    tl.quantize("demo", tmp_path / "q.gguf", "Q6_K")
    model = tl.load(tmp_path / "q.gguf")
    found = tl.diff_weights(tl.load(), model)
    other = [row for row in found.tensors if not row.same]
    assert other
    assert all(0 < row.relative < 0.03 and row.cosine > 0.999 for row in other)
    row = other[0]
    x, y = tl.load().weights[row.name].numpy(), model.weights[row.name].numpy()
    assert row.relative == pytest.approx(np.linalg.norm(x - y) / np.linalg.norm(x), rel=1e-5)
    assert tl.diff_weights("demo", tl.load()).same


def test_types_without_a_formula_are_compared_by_bytes(tmp_path):
    kind = next(name for name, row in tl._core.tensor_types().items() if not row[3])
    _, items, size, _ = tl._core.tensor_types()[kind]
    for name, value in (("a", 1), ("b", 1), ("c", 2)):
        data = np.full(size, value, np.uint8)
        source = tl.TensorSource((1, items), kind, lambda data=data: data)
        tl.write_gguf(tmp_path / f"{name}.gguf", {}, {"w": source})
    assert tl.diff_weights(tmp_path / "a.gguf", tmp_path / "b.gguf").same
    assert not tl.diff_weights(tmp_path / "a.gguf", tmp_path / "c.gguf").same


def test_the_command(pair, capsys):
    path_a, path_b, *_ = pair
    assert main(["diff-weights", str(path_a), str(path_a)]) == 0
    capsys.readouterr()
    assert main(["diff-weights", str(path_a), str(path_b), "--json"]) == 1
    values = json.loads(capsys.readouterr().out)
    assert values["only_a"] == ["first"]
    assert values["same"] is False
    row = next(row for row in values["tensors"] if row["name"] == "zero")
    assert row["relative"] is None
    assert row["max"] == 4
    assert main(["diff-weights", str(path_a), "missing.gguf"]) == 2
