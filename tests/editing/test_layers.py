"""Models made of some blocks of another."""

import numpy as np
import pytest

import tinyllm as tl
from testkit.architectures import random_architecture
from testkit.models import random_llama, write
from tinyllm.cli.main import main

IDS = [3, 1, 4, 1, 5]


def same_blocks(path, out, count):
    """Compare the streams after the first blocks of two models."""
    first, second = (tl.load(p).trace(IDS, capture="*.resid_post") for p in (path, out))
    assert len(second.names("*.resid_post")) == count
    for i in range(count):
        name = f"blk.{i}.resid_post"
        np.testing.assert_array_equal(first[name], second[name])


@pytest.mark.parametrize(
    ("architecture", "layers"),
    [
        ("llama", 4),
        ("gemma3", 6),
        ("gpt2", 3),
        ("qwen3moe", 3),
        ("deepseek2", 4),
        ("lfm2", None),
        ("jamba", None),
        ("gptneox", 3),
        ("apertus", None),
    ],
)
def test_the_first_blocks(tmp_path, architecture, layers):
    more = {} if layers is None else {"layers": layers}
    path = write(tmp_path / "m.gguf", *random_architecture(architecture, **more))
    count = tl.load(path).config.layers
    for kept in range(1 if architecture not in ("qwen3moe", "deepseek2") else 2, count):
        tl.extract_layers(path, tmp_path / "out.gguf", range(kept))
        same_blocks(path, tmp_path / "out.gguf", kept)


def test_an_architecture_of_experts_needs_some(tmp_path):
    path = write(tmp_path / "m.gguf", *random_architecture("qwen3moe", layers=3))
    with pytest.raises(ValueError, match="layers 0 would not load: qwen3moe"):
        tl.extract_layers(path, tmp_path / "out.gguf", [0])  # its feed-forward network is dense


def test_arrays_are_cut_and_others_are_not(tmp_path):
    metadata, tensors = random_llama("F32", layers=4, vocab=64)
    metadata["llama.attention.head_count"] = (
        "ARRAY[INT32]",
        4 * [metadata["llama.attention.head_count"]],
    )
    metadata["llama.rope.dimension_sections"] = ("ARRAY[INT32]", [0, 0, 0, 0])
    path, out = write(tmp_path / "m.gguf", metadata, tensors), tmp_path / "out.gguf"
    tl.extract_layers(path, out, [0, 1, 3])
    after = tl.GGUF(out).metadata
    assert after.type("llama.attention.head_count") == "ARRAY[INT32]"
    assert len(after["llama.attention.head_count"]) == after["llama.block_count"] == 3
    assert len(after["llama.rope.dimension_sections"]) == 4
    assert list(after) == list(metadata)
    before, tensors = tl.GGUF(path).tensors, tl.GGUF(out).tensors
    for name, weight in tensors.items():
        old = name.replace("blk.2.", "blk.3.")
        assert weight.raw.tobytes() == before[old].raw.tobytes()
    assert len(tensors) == len(before) - 9


def test_blocks_in_another_order_and_twice(tmp_path):
    path = write(tmp_path / "m.gguf", *random_architecture("llama", layers=4))
    out = tmp_path / "out.gguf"
    tl.extract_layers(path, out, [2, 0, 0])
    whole, some = tl.load(path), tl.load(out)
    stream = some.trace(IDS, capture="*.resid_post")
    for new in (1, 2):
        again = whole.run_from(0, stream[f"blk.{new - 1}.resid_post"], capture="*.resid_post")
        np.testing.assert_array_equal(again["blk.0.resid_post"], stream[f"blk.{new}.resid_post"])


def test_a_window_at_another_place(tmp_path):
    path = write(tmp_path / "m.gguf", *random_architecture("gemma3", layers=7))
    out = tmp_path / "out.gguf"
    with pytest.raises(ValueError, match="layer 6 would compute something else as layer 5"):
        tl.extract_layers(path, out, [0, 1, 2, 3, 4, 6])
    assert not out.exists()
    tl.extract_layers(path, out, [0, 1, 2, 3, 4, 6], force=True)
    assert tl.load(out).config.layers == 6


def test_wrong_layers(tmp_path):
    out = tmp_path / "out.gguf"
    for layers in ([4], [-1]):
        with pytest.raises(IndexError, match="out of range for 4 layers"):
            tl.extract_layers("demo", out, layers)
    with pytest.raises(ValueError, match="empty"):
        tl.extract_layers("demo", out, [])
    write(tmp_path / "a.gguf", {"general.type": "adapter"}, {})
    with pytest.raises(tl.FormatError):
        tl.extract_layers(tmp_path / "a.gguf", out, [0])


def test_the_command(tmp_path, capsys):
    out = tmp_path / "out.gguf"
    assert main(["extract", "demo", str(out), "0-1", "3"]) == 0
    assert tl.load(out).config.layers == 3
    assert main(["extract", "demo", str(out), "1-0"]) == 2
    assert "'1-0'" in capsys.readouterr().err
