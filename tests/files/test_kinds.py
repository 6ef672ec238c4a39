"""What is given as a model and holds none: the error says what it is, and has the path."""

import bz2
import gzip
import io
import json
import lzma
import pickle
import tarfile
import zipfile

import gguf
import numpy as np
import pytest

import tinyllm as tl
from testkit import models
from tinyllm.cli.main import main
from tinyllm.files.model_file import DEMO


def zipped(*names):
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        for name in names:
            archive.writestr(name, b"x" * 100)
    return data.getvalue()


def safetensors(arrays):
    """A safetensors file: the length of the header, the header, the data."""
    entries, data = {}, b""
    for name, array in arrays.items():
        offsets = [len(data), len(data) + array.nbytes]
        entries[name] = {"dtype": "F64", "shape": array.shape, "data_offsets": offsets}
        data += array.tobytes()
    header = json.dumps(entries).encode()
    return len(header).to_bytes(8, "little") + header + data


def tarred():
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("model.gguf"))
    return data.getvalue()


POINTER = (
    b"version https://git-lfs.github.com/spec/v1\n"
    b"oid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\nsize 12345\n"
)
# llama.cpp's imatrix before GGUF: count; per entry length and text of a name, calls, values
OLD_IMATRIX = b"\1\0\0\0" + b"\x13\0\0\0blk.0.attn_q.weight" + b"\x05\0\0\0\1\0\0\0\0\0\x80\x3f"

BYTES = {
    "web page": (b"<!DOCTYPE html><html><head><title>x</title>", "a web page"),
    "web page after a mark": (b"\xef\xbb\xbf\n <html lang='en'>", "a web page"),
    "xml of a bucket": (b"<?xml version='1.0'?><Error><Code>AccessDenied", "a web page"),
    "LFS pointer": (POINTER, "a Git LFS pointer, which stands for the file of 12,345 bytes"),
    "answer of a server": (b"Entry not found", "a text that begins with 'Entry not found'"),
    "json": (b'{"error":"Repository not found"}', "a text that begins with"),
    "cut character": ("é".encode() * 3000, "a text that begins with"),
    "gzip": (gzip.compress(b"GGUF"), "compressed with gzip"),
    "bzip2": (bz2.compress(b"GGUF"), "compressed with bzip2"),
    "xz": (lzma.compress(b"GGUF"), "compressed with xz"),
    "zip": (zipped("model.gguf"), "a zip archive"),
    "tar": (tarred(), "a tar archive"),
    "torch": (zipped("archive/data.pkl", "archive/data/0"), "a pickle"),
    "pickle": (pickle.dumps({"a": 1}, 2), "a pickle"),
    "pickle 4": (pickle.dumps({"a": 1}, 4), "a pickle"),
    "ggml": (b"lmgg" + bytes(100), "an old GGML file"),
    "ggmf": (b"fmgg\1\0\0\0" + bytes(100), "an old GGMF file"),
    "ggjt": (b"tjgg\3\0\0\0" + bytes(100), "an old GGJT file"),
    "old imatrix": (OLD_IMATRIX, "an imatrix"),
    "session of llama.cpp": (b"nsgg\x09\0\0\0" + bytes(100), "a saved session of llama.cpp"),
    "safetensors": (safetensors({"a": np.eye(2)}), "tinyllm.convert"),
    "numpy": (b"\x93NUMPY\1\0" + bytes(100), "a NumPy array"),
    "zeros": (bytes(5000), "not complete"),
    "empty": (b"", "empty"),
}


@pytest.mark.parametrize("suffix", [".gguf", ".bin", ".safetensors"])
@pytest.mark.parametrize("kind", BYTES)
def test_other_files_say_what_they_are(kind, suffix, tmp_path):
    data, text = BYTES[kind]
    path = tmp_path / f"model{suffix}"
    path.write_bytes(data)
    for opener in (tl.load, tl.load_tokenizer):
        with pytest.raises(tl.FormatError, match="the file is") as error:
            opener(path)
        assert text in str(error.value)
        assert str(error.value).startswith(f"{path}: ")
        assert error.value.path == str(path)
    if data:
        with pytest.raises(tl.FormatError) as error:
            tl.GGUF(path)
        assert text in str(error.value)
        with pytest.raises(tl.FormatError, match="the file is"):
            tl.load(data)


def kind_of(path):
    with pytest.raises(tl.FormatError) as error:
        tl.load(path)
    assert error.value.path == str(path)
    return str(error.value)


def test_gguf_files_without_a_model(tmp_path, capsys):
    """Written by gguf-py, with the keys that llama.cpp's converters give such files."""
    matrix = np.zeros((4, 32), np.float32)
    files = {
        "a LoRA adapter": ("llama", gguf.GGUFType.ADAPTER, ["blk.0.attn_q.weight.lora_a"]),
        "an mmproj": ("clip", gguf.GGUFType.MMPROJ, ["v.patch_embd.weight"]),
        "an imatrix": (None, gguf.GGUFType.IMATRIX, ["blk.0.attn_q.weight.in_sum2"]),
        "a control vector": ("controlvector", None, ["direction.1"]),
        "a GGUF file with no tensors": ("llama", gguf.GGUFType.MODEL, []),
    }
    for i, (text, (architecture, kind, names)) in enumerate(files.items()):
        path = tmp_path / f"{i}.gguf"
        writer = gguf.GGUFWriter(path, architecture or "llama")
        if kind is not None:
            writer.add_type(kind)
        for name in names:
            writer.add_tensor(name, matrix)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        assert f"the file is {text}" in kind_of(path)
        assert main(["info", str(path)]) == 0  # what is in it can still be seen
        assert text in capsys.readouterr().out


def test_a_vocabulary_alone(tmp_path):
    metadata, _ = models.random_llama("F32")
    path = models.write(tmp_path / "vocab.gguf", metadata | {"tokenizer.ggml.model": "llama"}, {})
    assert "a vocabulary; it has no tensors. tinyllm.load_tokenizer" in kind_of(path)


@pytest.mark.parametrize("kind", ["web page", "LFS pointer", "answer of a server", "gzip"])
def test_other_files_in_the_place_of_a_trace(kind, tmp_path):
    data, text = BYTES[kind]
    path = tmp_path / "run.safetensors"
    path.write_bytes(data)
    for use in (tl.read, tl.load().session):
        with pytest.raises(tl.FormatError) as error:
            use(path)
        assert text in str(error.value)
        assert error.value.path == str(path)
    with pytest.raises(tl.FormatError, match=r"a GGUF file, which tinyllm\.load opens"):
        tl.read(DEMO)


def test_folders(tmp_path):
    for names, text in (
        (["config.json", "model.safetensors"], r"tinyllm\.convert"),
        (["pytorch_model.bin"], r"tinyllm\.convert"),
        (["b.gguf", "a.gguf"], r"one of its GGUF files: a.gguf, b.gguf"),
        ([], "expected the path of a GGUF file"),
    ):
        folder = tmp_path / f"f{len(names)}{len(text)}"
        folder.mkdir()
        for name in names:
            (folder / name).touch()
        for opener in (tl.load, tl.GGUF, tl.load_tokenizer):
            with pytest.raises(IsADirectoryError, match=text) as error:
                opener(folder)
            assert error.value.filename == str(folder)


def test_every_error_of_a_load_has_the_path(tmp_path):
    metadata, tensors = models.random_llama("F32")
    wrong = {
        "unknown architecture": ({"general.architecture": "new"}, {}),
        "no blocks": ({"llama.block_count": 0}, {}),
        "tokenizer": ({"tokenizer.ggml.model": 3}, {}),
        "vocabulary": ({"tokenizer.ggml.model": "llama", "tokenizer.ggml.tokens": [3]}, {}),
        "shape": ({}, {"blk.0.attn_q.weight": np.zeros((3, 32), np.float32)}),
        "unused": ({}, {"blk.0.extra.weight": np.zeros((3, 32), np.float32)}),
    }
    for name, (keys, values) in wrong.items():
        path = models.write(tmp_path / f"{name}.gguf", metadata | keys, tensors | values)
        with pytest.raises(tl.Error) as error:
            tl.load(path)
        assert error.value.path == str(path), name
        assert str(error.value).startswith(f"{path}: "), name
    short = tmp_path / "short.gguf"
    short.write_bytes(DEMO.read_bytes()[:-1000])
    with pytest.raises(tl.FormatError, match=r"short\.gguf"):
        tl.load(short)


def test_a_chat_template_that_is_no_text(tmp_path):
    metadata = tl.GGUF(DEMO).metadata.typed() | {"tokenizer.chat_template": ["a", "b"]}
    tl.write_gguf(tmp_path / "m.gguf", metadata, tl.GGUF(DEMO).tensors)
    with pytest.raises(tl.FormatError, match=r"tokenizer.chat_template is \['a', 'b'\]"):
        tl.load(tmp_path / "m.gguf").tokenizer.render_chat([{"role": "user", "content": "x"}])
