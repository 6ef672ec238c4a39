"""Inner values of many prompts: those of single traces, in memory and on disk."""

import numpy as np
import pytest

import tinyllm as tl
from testkit import models

SIZES = {"layers": 3, "width": 32, "heads": 4, "kv_heads": 2, "ffn": 48, "vocab": 60}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return models.random_model(tmp_path_factory.mktemp("collect"), context=80, **SIZES)


@pytest.fixture(scope="module")
def prompts():
    rng = np.random.default_rng(0)
    return [rng.integers(0, 60, rng.integers(3, 20)) for _ in range(40)]


@pytest.mark.parametrize("at", [-1, 0, [0, -2], np.int64(2)])
@pytest.mark.parametrize("out", [False, True])
def test_values_are_those_of_traces(model, prompts, at, out, tmp_path, monkeypatch):
    monkeypatch.setattr("tinyllm.analysis.collect._ROWS", 50)  # several batches
    path = tmp_path / "acts.npy" if out else None
    edits = tl.scale("blk.0.ffn_down", 2)
    values = tl.collect(model, prompts, "*attn_mix", at=at, edits=edits, out=path)
    assert values.dtype == np.float32
    assert values.shape == (40, 3, *np.shape(at), 4, 8)
    for prompt, row in zip(prompts, values, strict=True):
        want = model.trace(prompt, "*attn_mix", edits=edits).stack("*attn_mix")
        assert np.array_equal(row, want[:, at])
    if out:
        assert not values.flags.writeable
        assert np.array_equal(np.load(path), values)
        assert [file.name for file in tmp_path.iterdir()] == ["acts.npy"]


def test_a_failure_leaves_the_old_file(model, tmp_path):
    path = tmp_path / "a.npy"
    path.write_bytes(b"old")

    def fail(array):
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        tl.collect(model, [[1, 2]], edits=tl.apply("blk.0.ffn_down", fail), out=path)
    assert path.read_bytes() == b"old"
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"prompts": []}, ValueError, "prompts is empty"),
        ({"at": 3}, IndexError, "at is 3, and prompt 1 has 2 tokens; expected -2 to 1"),
        ({"at": 1.5}, TypeError, "1.5|iterable"),
        ({"at": []}, TypeError, "at is"),
        ({"capture": "*attn_probs"}, ValueError, "no attention matrices"),
        ({"capture": ["*attn_q", "*ffn_act"]}, ValueError, "one shape"),
        ({"capture": "nothing"}, ValueError, "no tap"),
        ({"prompts": [[1, 99, 3]]}, ValueError, "99"),
        ({"out": "a.zarr"}, ValueError, "ends in .npy"),
    ],
)
def test_bad_arguments(model, options, error, words):
    given = {"prompts": [[1, 2, 3, 4], [5, 6]], **options}
    with pytest.raises(error, match=words):
        tl.collect(model, given.pop("prompts"), **given)
