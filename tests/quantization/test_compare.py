"""The table of types, against the functions that it is made of."""

import numpy as np
import pytest

import tinyllm as tl

TEXT = "ROMEO:\nBut soft, what light through yonder window breaks?\nIt is the east." * 2


@pytest.fixture(scope="module")
def found():
    return tl.compare_quantizations(tl.load(), TEXT, ["Q8_0", "Q4_K_S", "Q2_K"])


def test_each_number(found, tmp_path):
    model = tl.load()
    tl.quantize(model, tmp_path / "m.gguf", "Q4_K_S")
    small = tl.load(tmp_path / "m.gguf")
    result = found.results[2]
    assert result.type == "Q4_K_S"
    expected = tl.kl(model, small, TEXT)
    assert (result.kl, result.same_top) == (expected.mean, expected.same_top)
    assert result.kl_99 == np.quantile(expected.values, 0.99)
    assert result.perplexity == float(small.perplexity(TEXT, method="hf", window=512, stride=512))
    sizes = [np.prod(weight.shape) for weight in small.weights.values()]
    assert result.nbytes == sum(weight.nbytes for weight in small.weights.values())
    assert result.bits == pytest.approx(8 * result.nbytes / sum(sizes))
    taps = [f"blk.{i}.resid_post" for i in range(model.config.layers)]
    ours, theirs = model.trace(TEXT, taps), small.trace(TEXT, taps)
    errors = [np.linalg.norm(theirs[t] - ours[t]) / np.linalg.norm(ours[t]) for t in taps]
    np.testing.assert_allclose(result.errors, errors, rtol=1e-4)
    assert result.worst_layer == np.argmax(np.diff(errors, prepend=0))


def test_fewer_bits_are_further_away(found):
    model, eight, four, two = found.results
    assert model.type == "(model)"
    assert model.kl == eight.kl == 0  # the demo model has Q8_0 weights
    assert eight.kl < four.kl < two.kl
    assert model.nbytes > four.nbytes > two.nbytes
    assert (model.worst_layer, model.errors) == (-1, ())


def test_how_it_looks(found):
    lines = str(found).split("\n")
    assert len(lines) == 5
    assert lines[0].split()[:3] == ["type", "bytes", "bits"]
    assert lines[3].startswith("Q4_K_S")
    assert "Q8_0, Q4_K_S, Q2_K on" in repr(found)
    assert "<table" in found._repr_html_()


def test_an_unknown_type():
    with pytest.raises(ValueError, match="'Q9'"):
        tl.compare_quantizations(tl.load(), TEXT, ["Q9"])
