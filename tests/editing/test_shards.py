"""Models in several files."""

import itertools

import gguf
import numpy as np
import pytest

import tinyllm as tl
from testkit.models import random_llama, write
from tinyllm.cli.main import main


@pytest.fixture
def source(tmp_path):
    metadata, tensors = random_llama("Q8_0", layers=3, vocab=64)
    (tmp_path / "whole").mkdir()
    return write(tmp_path / "whole" / "m.gguf", metadata, tensors)


def test_split_and_merged_again(source, tmp_path):
    count = len(tl.GGUF(source).tensors)
    paths = tl.split_gguf(source, tmp_path / "part", max_tensors=10)
    assert len(paths) == -(-count // 10)
    assert paths[0] == str(tmp_path / f"part-00001-of-{len(paths):05}.gguf")
    merged = tl.GGUF(paths[0])
    assert list(merged.tensors) == list(tl.GGUF(source).tensors)
    assert merged.metadata.type("split.no") == merged.metadata.type("split.count") == "UINT16"
    assert merged.metadata.type("split.tensors.count") == "INT32"
    assert (merged.metadata["split.count"], merged.metadata["split.tensors.count"]) == (
        len(paths),
        count,
    )
    np.testing.assert_array_equal(tl.load(paths[0]).logits([1, 2]), tl.load(source).logits([1, 2]))
    tl.merge_gguf(paths[0], tmp_path / "again.gguf")
    assert (tmp_path / "again.gguf").read_bytes() == source.read_bytes()


def test_sizes(source, tmp_path):
    weights = tl.GGUF(source).tensors
    limit = 2 * max(weight.nbytes for weight in weights.values())
    paths = tl.split_gguf(source, tmp_path / "part", max_bytes=limit)
    assert len(paths) > 2
    sizes = [sum(int(t.n_bytes) for t in gguf.GGUFReader(path).tensors) for path in paths]
    assert max(sizes) <= limit
    assert min(a + b for a, b in itertools.pairwise(sizes)) > limit / 2
    alone = tl.split_gguf(source, tmp_path / "alone", max_bytes=1)
    assert len(alone) == len(weights)
    assert len(tl.split_gguf(source, tmp_path / "one")) == 1
    one = tl.load(tmp_path / "one-00001-of-00001.gguf")
    assert len(one.weights) == len(weights)


def test_alignment_holds_in_every_file(source, tmp_path):
    aligned = tmp_path / "aligned.gguf"
    tl.edit(source, aligned, set={"general.alignment": 256})
    paths = tl.split_gguf(aligned, tmp_path / "part", max_tensors=8)
    tl.merge_gguf(paths[0], tmp_path / "again.gguf")
    assert (tmp_path / "again.gguf").read_bytes() == aligned.read_bytes()


def test_wrong_arguments(source, tmp_path):
    with pytest.raises(ValueError, match="max_bytes is 0"):
        tl.split_gguf(source, tmp_path / "x", max_bytes=0)
    with pytest.raises(ValueError, match="not one of several"):
        tl.merge_gguf(source, tmp_path / "x.gguf")
    paths = tl.split_gguf(source, tmp_path / "part", max_tensors=10)
    with pytest.raises(ValueError, match="one of the files to merge"):
        tl.merge_gguf(paths[0], paths[1])
    with pytest.raises(tl.FormatError, match="open the first file"):
        tl.merge_gguf(paths[1], tmp_path / "x.gguf")
    (tmp_path / "part-00002-of-00003.gguf").unlink(missing_ok=True)
    with pytest.raises(FileNotFoundError):
        tl.merge_gguf(paths[0], tmp_path / "x.gguf")
    assert not (tmp_path / "x.gguf").exists()


def test_the_commands(source, tmp_path, capsys):
    stem = tmp_path / "part"
    assert main(["split", str(source), str(stem), "--max-size", "100k"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(list(tmp_path.glob("part-*.gguf"))) > 1
    out = tmp_path / "out.gguf"
    assert main(["merge", lines[0].rsplit(":", 1)[0], str(out)]) == 0
    assert out.read_bytes() == source.read_bytes()
    with pytest.raises(SystemExit):
        main(["split", str(source), str(stem), "--max-size", "2X"])
    assert main(["split", str(source), str(stem), "--max-tensors", "0"]) == 2
