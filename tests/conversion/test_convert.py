"""`tl.convert`: types, keys of the file, progress, memory, errors."""

import json
import shutil
import struct
from pathlib import Path

import numpy as np
import pytest

import tinyllm as tl
from testkit import data, hf, models
from tinyllm.base.units import size
from tinyllm.cli.main import main
from tinyllm.conversion.convert import tensor_type
from tinyllm.conversion.encode import encode

gguf = pytest.importorskip("gguf")


def values():
    """Values with every case of rounding: ties, zeros, subnormals, blocks of zeros."""
    rng = np.random.default_rng(0)
    array = rng.standard_normal((40, 64)).astype(np.float32)
    array[1] = 0
    array[2, :4] = [1e-40, -1e-40, 0.5, -0.0]
    array[3] = np.arange(64) * 0.5 - 16  # halves of a step of Q8_0, if the scale were 1
    array[3, 0] = 127
    array[4] = np.float32(1) + np.arange(64, dtype=np.float32) * np.float32(2**-9)  # ties of BF16
    array[5] *= 1e-30
    return array


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q8_0"])
def test_bytes_are_those_of_the_gguf_package(kind):
    want = gguf.quants.quantize(values(), gguf.GGMLQuantizationType[kind])
    got = encode("x", values(), kind)
    assert got.tobytes() == np.ascontiguousarray(want).tobytes()


def test_nan_stays_nan_in_bf16():
    bits = np.uint32([0x7F800001, 0xFF800001, 0x7F800000]).view(np.float32)
    half = encode("x", bits, "BF16").view(np.uint16).astype(np.uint32) << 16
    assert np.isnan(half.view(np.float32)).tolist() == [True, True, False]


def test_a_value_too_large_for_f16_is_named():
    with pytest.raises(ValueError, match=r"output\.weight has the value 70000"):
        encode("output.weight", np.float32([[1, 7e4]]), "F16")
    assert np.isinf(encode("x", np.float32([np.inf]), "F16").view(np.float16)).all()


@pytest.mark.parametrize(
    ("name", "shape", "stored", "want"),
    [
        ("blk.0.attn_q.weight", (64, 32), "BF16", ("BF16", "F32", "F16", "Q8_0")),
        ("blk.0.attn_q.weight", (64, 40), "F16", ("F16", "F32", "F16", "F16")),
        ("blk.0.attn_q.weight", (64, 32), "F64", ("F32", "F32", "F16", "Q8_0")),
        ("blk.0.attn_norm.weight", (32,), "BF16", 4 * ("F32",)),
        ("blk.0.attn_q_norm.weight", (4, 32), "BF16", 4 * ("F32",)),
        ("blk.0.attn_q.bias", (32,), "BF16", 4 * ("F32",)),
        ("blk.0.ffn_up_exps.bias", (4, 32), "BF16", 4 * ("F32",)),
        ("blk.0.ffn_up_exps.weight", (4, 16, 32), "BF16", ("BF16", "F32", "F16", "Q8_0")),
        ("blk.0.ffn_gate_inp.weight", (4, 32), "BF16", 4 * ("F32",)),
        ("blk.0.ssm_conv1d.weight", (64, 4), "BF16", 4 * ("F32",)),
        ("blk.0.shortconv.conv.weight", (64, 3), "BF16", 4 * ("F32",)),
        ("blk.0.shortconv.in_proj.weight", (64, 32), "BF16", ("BF16", "F32", "F16", "Q8_0")),
        ("position_embd.weight", (64, 32), "BF16", 4 * ("F32",)),
        ("token_embd.weight", (64, 32), "BF16", ("BF16", "F32", "F16", "Q8_0")),
    ],
)
def test_the_type_of_a_tensor(name, shape, stored, want):
    chosen = (tensor_type(name, shape, stored, dtype) for dtype in ("auto", "F32", "F16", "Q8_0"))
    assert tuple(chosen) == want


@pytest.mark.parametrize("dtype", ["auto", "F32", "F16", "BF16", "Q8_0"])
def test_a_converted_checkpoint_runs(dtype, tmp_path):
    path = tmp_path / "m.gguf"
    tl.convert(data.path("hf", "qwen2"), path, dtype)
    file = tl.GGUF(path)
    kinds = {name: weight.type for name, weight in file.tensors.items()}
    matrix = {"auto": "BF16", "Q8_0": "F16"}.get(dtype, dtype)  # rows of 80 are not blocks of 32
    assert kinds["blk.0.attn_q.weight"] == matrix
    assert kinds["blk.0.attn_norm.weight"] == "F32"
    number = {"F32": 0, "F16": 1, "BF16": 32, "Q8_0": 7, "auto": 32}[dtype]
    assert file.metadata["general.file_type"] == number
    assert file.metadata["general.quantization_version"] == 2
    ids, logits, _ = hf.load_golden(data.path("hf", "qwen2"))
    limit = 1e-5 if dtype in ("auto", "F32", "BF16") else 1e-2
    assert models.normwise_error(tl.load(path).logits(ids), logits) < limit


def test_q8_0_where_rows_are_blocks(tmp_path):
    folder = shutil.copytree(data.path("hf", "llama_headdim"), tmp_path / "m")
    tl.convert(folder, tmp_path / "m.gguf", "Q8_0")
    kinds = {name: weight.type for name, weight in tl.GGUF(tmp_path / "m.gguf").tensors.items()}
    assert kinds["blk.0.attn_output.weight"] == "Q8_0"  # 160 values a row
    assert kinds["blk.0.attn_q.weight"] == "F16"  # 80


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_file_of_the_folder_stands_for_it(name, tmp_path, monkeypatch):
    folder = shutil.copytree(data.path("hf", "llama"), tmp_path / "m")
    tl.convert(folder / name, tmp_path / "a.gguf")
    monkeypatch.chdir(folder)
    tl.convert(name, tmp_path / "b.gguf")
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()


def test_a_llama2c_checkpoint(tmp_path):
    rng = np.random.default_rng(0)
    header = struct.pack("<7i", 32, 64, 1, 2, 2, 3, 8)
    count = 3 * 32 + 32 + 4 * 32 * 32 + 32 + 3 * 32 * 64 + 32 + 2 * 8 * 8
    checkpoint = tmp_path / "model.bin"
    checkpoint.write_bytes(header + rng.standard_normal(count).astype("<f4").tobytes())
    tl.convert(checkpoint, tmp_path / "m.gguf")
    want, got = tl.load(checkpoint), tl.load(tmp_path / "m.gguf")
    np.testing.assert_array_equal(got.logits([0, 1, 2]), want.logits([0, 1, 2]))
    assert "tokenizer.ggml.tokens" not in tl.GGUF(tmp_path / "m.gguf").metadata
    words = (b"<unk>", b"<s>", b"</s>")
    entries = b"".join(struct.pack("<fi", 0, len(word)) + word for word in words)
    (tmp_path / "tokenizer.bin").write_bytes(struct.pack("<I", 5) + entries)
    tl.convert(checkpoint, tmp_path / "m.gguf", "Q8_0")
    assert len(tl.GGUF(tmp_path / "m.gguf").metadata["tokenizer.ggml.tokens"]) == 3
    assert tl.GGUF(tmp_path / "m.gguf").tensors["blk.0.attn_q.weight"].type == "Q8_0"


def test_a_file_that_cannot_be_written_leaves_the_old_one(tmp_path):
    folder = shutil.copytree(data.path("hf", "llama"), tmp_path / "m")
    out = tmp_path / "m.gguf"
    out.write_text("old")
    with open(folder / "model.safetensors", "r+b") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
        begin, _ = header["model.norm.weight"]["data_offsets"]
        file.seek(8 + length + begin)
        file.write(struct.pack("<H", 0x7F7F))  # 3.4e38, the last tensor
    tl.convert(folder, tmp_path / "fine.gguf", "F16")  # a norm is F32
    with open(folder / "model.safetensors", "r+b") as file:
        begin, _ = header["model.layers.1.mlp.up_proj.weight"]["data_offsets"]
        file.seek(8 + length + begin)
        file.write(struct.pack("<H", 0x7F7F))
    with pytest.raises(ValueError, match=r"blk\.1\.ffn_up\.weight"):
        tl.convert(folder, out, "F16")
    assert out.read_text() == "old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fine.gguf", "m", "m.gguf"]


def test_wrong_arguments(tmp_path):
    with pytest.raises(ValueError, match="dtype is 'Q9'"):
        tl.convert(data.path("hf", "llama"), tmp_path / "m.gguf", "Q9")
    with pytest.raises(FileNotFoundError):
        tl.convert(tmp_path / "none", tmp_path / "m.gguf")
    with pytest.raises(ValueError, match="already"):
        tl.convert(Path(tl.__file__).parent / "data" / "demo.gguf", tmp_path / "m.gguf")


def test_the_command(tmp_path, capsys):
    out = tmp_path / "m.gguf"
    assert main(["convert", str(data.path("hf", "llama")), str(out), "--dtype", "F16"]) == 0
    assert f"{out}: {size(out.stat().st_size)}\n" in capsys.readouterr().out
    assert main(["convert", str(data.path("hf", "llama")), str(out), "--no-vocab"]) == 0
    capsys.readouterr()
    assert main(["convert", str(tmp_path), str(out)]) == 2
    assert "config.json" in capsys.readouterr().err
