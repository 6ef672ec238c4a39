"""Inner values of many prompts: those of single traces, in memory and on disk."""

import json

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


def read_zarr(path):
    """An array of an uncompressed Zarr 2 folder, read by the specification."""
    about = json.loads((path / ".zarray").read_text())
    assert about["zarr_format"] == 2
    assert about["compressor"] is None
    assert about["filters"] is None
    assert about["order"] == "C"
    shape, chunks = about["shape"], about["chunks"]
    grid = [-(-n // size) for n, size in zip(shape, chunks, strict=True)]
    whole = np.empty([n * size for n, size in zip(grid, chunks, strict=True)], about["dtype"])
    for place in np.ndindex(*grid):
        piece = np.fromfile(path / ".".join(map(str, place)), about["dtype"]).reshape(chunks)
        corner = zip(place, chunks, strict=True)
        whole[tuple(slice(i * size, (i + 1) * size) for i, size in corner)] = piece
    assert len(list(path.iterdir())) == 1 + np.prod(grid)
    return whole[tuple(map(slice, shape))]


@pytest.mark.parametrize("at", [-1, [0, -2], None])
@pytest.mark.parametrize("chunk", [1, 5000, 1 << 20])
def test_zarr(model, prompts, at, chunk, tmp_path, monkeypatch):
    monkeypatch.setattr("tinyllm.analysis.collect._ROWS", 50)
    monkeypatch.setattr("tinyllm.files.zarr._CHUNK", chunk)
    path = tmp_path / "Zahlen \u96fb.zarr"
    for _ in range(2):  # the second replaces the first
        assert tl.collect(model, prompts, "*attn_mix", at=at, out=path) is None
    want = tl.collect(model, prompts, "*attn_mix", at=at)
    assert np.array_equal(read_zarr(path / "values"), want)
    lead = np.shape(want)[:1] + np.shape(at)
    ids = read_zarr(path / "tokens")
    assert ids.shape == lead
    if at is None:
        starts = read_zarr(path / "starts")
        for i, prompt in enumerate(prompts):
            rows = slice(starts[i], starts[i + 1])
            assert np.array_equal(ids[rows], prompt)
            trace = model.trace(prompt, "*attn_mix")
            assert np.array_equal(want[rows], trace.stack("*attn_mix").swapaxes(0, 1))
    else:
        assert np.array_equal(ids, [prompt[at] for prompt in prompts])
    attributes = json.loads((path / ".zattrs").read_text())
    names = [f"blk.{layer}.attn_mix" for layer in range(3)]
    assert attributes == {"taps": names, "at": at, "fingerprint": model.fingerprint}
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_the_package_zarr_reads_it(model, prompts, tmp_path):
    zarr = pytest.importorskip("zarr")
    tl.collect(model, prompts, at=None, out=tmp_path / "a.zarr")
    group = zarr.open(str(tmp_path / "a.zarr"), mode="r")
    assert np.array_equal(group["values"][:], tl.collect(model, prompts, at=None))
    assert group["starts"][1] == len(prompts[0])


def test_every_token_in_a_file(model, prompts, tmp_path):
    values = tl.collect(model, prompts, at=None, out=tmp_path / "a.npy")
    assert np.array_equal(values, tl.collect(model, prompts, at=None))
    assert values.shape == (sum(map(len, prompts)), 3, 32)


def test_a_failure_leaves_the_old_folder(model, tmp_path):
    path = tmp_path / "a.zarr"
    tl.collect(model, [[1, 2]], out=path)

    def stop(array):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tl.collect(model, [[3, 4]], edits=tl.apply("blk.0.ffn_down", stop), out=path)
    assert np.array_equal(read_zarr(path / "values"), tl.collect(model, [[1, 2]]))
    assert [file.name for file in tmp_path.iterdir()] == ["a.zarr"]


def test_what_is_not_zarr_is_not_replaced(model, tmp_path):
    folder = tmp_path / "thesis.zarr"
    folder.mkdir()
    (folder / "thesis.txt").write_text("years of work")
    with pytest.raises(FileExistsError, match="not a Zarr folder"):
        tl.collect(model, [[1, 2]], out=folder)
    assert (folder / "thesis.txt").read_text() == "years of work"
    with pytest.raises(FileNotFoundError, match="nowhere"):
        tl.collect(model, [[1, 2]], out=tmp_path / "nowhere" / "a.zarr")


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
        ({"out": "a.txt"}, ValueError, "ends in .npy or .zarr"),
    ],
)
def test_bad_arguments(model, options, error, words):
    given = {"prompts": [[1, 2, 3, 4], [5, 6]], **options}
    with pytest.raises(error, match=words):
        tl.collect(model, given.pop("prompts"), **given)
