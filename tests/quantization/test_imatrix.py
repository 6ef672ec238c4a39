"""Importance matrices: measured against traces in float64, and llama.cpp's two file formats."""

import struct

import numpy as np
import pytest

import tinyllm as tl
from testkit.architectures import random_model as random_architecture
from testkit.models import random_model

TEXT = "ROMEO:\nBut soft, what light through yonder window breaks?\n" * 4


def test_sums_of_squares_of_the_inputs():
    model = tl.load()
    ids = model.tokenizer.encode(TEXT)
    window = len(ids) // 2 - 1  # so that a rest is left out
    found = tl.imatrix(model, TEXT, window=window)
    assert (found.chunks, found.chunk_size) == (2, window)
    inputs = {"attn_k": "attn_norm", "attn_output": "attn_mix", "ffn_down": "ffn_act"}
    for name, tap in inputs.items():
        expected = 0
        for start in (0, window):
            chunk = [model.tokenizer.bos, *ids[start + 1 : start + window]]
            values = model.trace(chunk)[f"blk.1.{tap}"].reshape(window, -1).astype(np.float64)
            expected = expected + (values**2).sum(axis=0)
        np.testing.assert_allclose(found.sums[f"blk.1.{name}.weight"], expected, rtol=1e-12)
        assert found.counts[f"blk.1.{name}.weight"] == [2 * window]
    matrices = {name for name, w in model.weights.items() if len(w.shape) == 2}
    assert set(found.sums) == {name for name in matrices if name.startswith("blk.")}


def test_experts_have_their_own_sums(tmp_path):
    model = random_architecture(tmp_path, "qwen3moe", vocab=64)
    ids = np.arange(40) % 64
    found = tl.imatrix(model, ids)
    trace = model.trace(ids)
    picks = np.asarray(trace["blk.1.ffn_expert_ids"]).astype(int)
    hidden = trace["blk.1.ffn_act_exps"].astype(np.float64)
    expected = np.zeros((8, 256))
    for token in range(40):
        for use in range(3):
            expected[picks[token, use]] += hidden[token, use] ** 2
    name = "blk.1.ffn_down_exps.weight"
    np.testing.assert_allclose(found.sums[name].reshape(8, 256), expected, rtol=1e-12)
    np.testing.assert_array_equal(found.counts[name], np.bincount(picks.ravel(), minlength=8))
    used = found.importance(name, 8, 256)
    np.testing.assert_allclose(used.mean(axis=1), 1, rtol=1e-5)
    never = np.bincount(picks.ravel(), minlength=8) == 0
    assert (used[never] == 1).all()


def test_one_matrix_in_parts_counts_once(tmp_path):
    model = random_architecture(tmp_path, "gpt2", vocab=64)
    found = tl.imatrix(model, np.arange(20))
    assert found.counts["blk.0.attn_qkv.weight"] == [20]


def matrix():
    return tl.Imatrix(
        {"blk.0.attn_q.weight": np.array([1.0, 2.0, 4.0]), "e": np.array([1.0, 3.0, 8.0, 6.0])},
        {"blk.0.attn_q.weight": np.array([1024.0]), "e": np.array([1.0, 0.0])},
        2,
        512,
        ["näme.txt"],
    )


def test_the_gguf_format(tmp_path):
    path = tmp_path / "m.gguf"
    matrix().save(path)
    file = tl.GGUF(path)
    assert dict(file.metadata) == {
        "general.type": "imatrix",
        "imatrix.datasets": ["näme.txt"],
        "imatrix.chunk_count": 2,
        "imatrix.chunk_size": 512,
    }
    assert {name: w.shape for name, w in file.tensors.items()} == {
        "blk.0.attn_q.weight.in_sum2": (1, 3),
        "blk.0.attn_q.weight.counts": (1, 1),
        "e.in_sum2": (2, 2),
        "e.counts": (2, 1),
    }
    again = tl.Imatrix.load(path)
    assert (again.chunks, again.chunk_size, again.datasets) == (2, 512, ["näme.txt"])
    for name, values in matrix().sums.items():
        np.testing.assert_array_equal(again.sums[name], values)
        np.testing.assert_array_equal(again.counts[name], matrix().counts[name])


def old_format():
    """The bytes that save_imatrix_legacy of llama.cpp writes for `matrix`."""
    name = b"blk.0.attn_q.weight"
    data = struct.pack("<i", 2)
    data += struct.pack("<i", len(name)) + name + struct.pack("<ii", 2, 3)
    data += np.array([1 / 1024 * 2, 2 / 1024 * 2, 4 / 1024 * 2], "<f4").tobytes()
    data += struct.pack("<i", 1) + b"e" + struct.pack("<ii", 1, 4)
    data += np.array([1, 3, 1, 1], "<f4").tobytes()
    dataset = "näme.txt".encode()
    return data + struct.pack("<ii", 2, len(dataset)) + dataset


def test_the_old_format(tmp_path):
    path = tmp_path / "m.dat"
    matrix().save(path)
    assert path.read_bytes() == old_format()
    again = tl.Imatrix.load(path)
    assert (again.chunks, again.datasets) == (2, ["näme.txt"])
    ours, theirs = matrix(), again
    for name, matrices, columns in (("blk.0.attn_q.weight", 1, 3), ("e", 2, 2)):
        np.testing.assert_allclose(
            theirs.importance(name, matrices, columns),
            ours.importance(name, matrices, columns),
            rtol=1e-6,
        )


def test_damaged_files(tmp_path):
    path = tmp_path / "m.dat"
    data = old_format()
    ends = {len(data) - len(struct.pack("<ii", 2, 9)) - 9, len(data) - 4 - 9 - 0}
    for end in range(len(data)):
        if end in ends:  # files from before these fields
            continue
        path.write_bytes(data[:end])
        with pytest.raises(tl.FormatError):
            tl.Imatrix.load(path)
    for at, value in ((0, -1), (0, 2**31 - 1), (4, -5), (4, 2**31 - 1)):
        path.write_bytes(data[:at] + struct.pack("<i", value) + data[at + 4 :])
        with pytest.raises(tl.FormatError):
            tl.Imatrix.load(path)
    path.write_bytes(data.replace(np.float32(3).tobytes(), np.float32(np.nan).tobytes()))
    with pytest.raises(tl.FormatError, match="'e'"):
        tl.Imatrix.load(path)
    tl.write_gguf(path, {"general.type": "imatrix"}, {"w.in_sum2": np.ones((1, 3), np.float32)})
    with pytest.raises(tl.FormatError, match=r"w\.counts is missing"):
        tl.Imatrix.load(path)
    tl.write_gguf(path, {"general.type": "model"}, {})
    with pytest.raises(tl.FormatError, match="'model'"):
        tl.Imatrix.load(path)


def test_an_importance_of_another_model(tmp_path):
    with pytest.raises(ValueError, match="4 sums and 2 counts for 'e'"):
        matrix().importance("e", 1, 4)
    with pytest.raises(ValueError, match="expected 6 sums, 3 matrices of 2 inputs"):
        matrix().importance("e", 3, 2)
    small = tl.Imatrix({"blk.9.x": np.ones(2)}, {"blk.9.x": np.ones(1)})
    with pytest.raises(ValueError, match=r"no tensor of this model; its first is 'blk\.9\.x'"):
        tl.quantize("demo", tmp_path / "out.gguf", imatrix=small)


def test_wrong_arguments(tmp_path):
    model = random_model(tmp_path, vocab=64)
    with pytest.raises(ValueError, match="window is 0"):
        tl.imatrix(model, [1, 2], window=0)
    with pytest.raises(ValueError, match="99"):
        tl.imatrix(model, [99])
