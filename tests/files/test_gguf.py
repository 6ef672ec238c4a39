"""Reading GGUF files: metadata, tensors, split models."""

import gc
import os
import threading
import time
import weakref

import gguf
import numpy as np
import pytest

import tinyllm
from testkit import data
from testkit import gguf_bytes as b
from testkit.gguf_bytes import read_metadata
from tinyllm.files.gguf import Metadata

pytestmark = pytest.mark.sanitize


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "small ü.gguf"
    path.write_bytes(b.small_model())
    return path


SOURCES = {
    "str": str,
    "PathLike": lambda path: path,
    "bytes": lambda path: path.read_bytes(),
    "bytearray": lambda path: bytearray(path.read_bytes()),
    "memoryview": lambda path: memoryview(b"x" + path.read_bytes())[1:],
    "array": lambda path: np.fromfile(path, np.uint8),
}


@pytest.mark.parametrize("mmap", [True, False])
@pytest.mark.parametrize("source", SOURCES)
def test_sources(path, source, mmap):
    file = tinyllm.GGUF(SOURCES[source](path), mmap=mmap)
    assert file.version == 3
    assert file.alignment == 32
    assert file.paths == ((str(path),) if source in ("str", "PathLike") else ())
    assert list(file.tensors) == ["f32", "q8_0", "scalar", "empty", "i64"]
    np.testing.assert_array_equal(file.tensors["f32"].numpy(), [[0, 1, 2], [3, 4, 5]])
    assert file.tensors["q8_0"].raw.tobytes() == bytes(range(68))
    assert file.tensors["q8_0"].raw.shape == (2, 34)
    assert file.tensors["scalar"].numpy() == 7
    assert file.tensors["empty"].numpy().shape == (0, 32)
    assert file.tensors["i64"].numpy().tolist() == [1, -2]


def test_metadata_types_and_values():
    metadata = tinyllm.GGUF(b.small_model()).metadata
    names = ["UINT8", "INT8", "UINT16", "INT16", "UINT32", "INT32", "FLOAT32", "BOOL"]
    for i, name in enumerate([*names, None, None, "UINT64", "INT64", "FLOAT64"]):
        if name is not None:
            assert metadata.type(f"number.{i}") == name
            value = metadata[f"number.{i}"]
            expected = {"F": float, "B": bool}.get(name[0], int)
            assert value == 1
            assert type(value) is expected
    assert metadata["general.architecture"] == "llama"
    assert metadata["array.i16"].dtype == np.int16
    assert metadata["array.i16"].tolist() == [-1, 2, 3]
    assert metadata["array.bool"].dtype == bool
    assert metadata["array.bool"].tolist() == [True, False]
    assert metadata["array.string"] == ["a", "", "\udcff\udcfe", "ü"]
    assert metadata.type("array.string") == "ARRAY[STRING]"
    inner = metadata["array.array"]
    assert metadata.type("array.array") == "ARRAY[ARRAY]"
    assert inner[0].tolist() == [1, 2]
    assert inner[1] == ["x"]
    assert metadata["array.empty"].dtype == np.float64
    assert len(metadata["array.empty"]) == 0


def test_extreme_numbers():
    extremes = {
        "u64": (b.U64, 2**64 - 1), "i64": (b.I64, -(2**63)), "u32": (b.U32, 2**32 - 1),
        "i8": (b.I8, -128), "f64": (b.F64, 1e300), "f32": (b.F32, float(np.float32(0.1))),
    }  # fmt: skip
    data = b.build([b.entry(key, *value) for key, value in extremes.items()])
    metadata = tinyllm.GGUF(data).metadata
    assert {key: metadata[key] for key in metadata} == {k: v for k, (_, v) in extremes.items()}


def test_metadata_is_a_read_only_mapping():
    metadata = tinyllm.GGUF(b.small_model()).metadata
    assert isinstance(metadata, Metadata)
    assert next(iter(metadata)) == "general.architecture"
    assert len(metadata) == 17
    assert "array.i16" in metadata
    assert "nothing" not in metadata
    assert metadata.get("nothing", 3) == 3
    for read in (metadata.__getitem__, metadata.type):
        with pytest.raises(KeyError, match="nothing"):
            read("nothing")
    with pytest.raises(TypeError):
        metadata["a"] = 1
    assert metadata["array.i16"] is metadata["array.i16"]
    with pytest.raises(ValueError, match="read-only"):
        metadata["array.i16"][0] = 5
    metadata["array.string"].append("more")
    assert len(metadata["array.string"]) == 4
    tensors = tinyllm.GGUF(b.small_model()).tensors
    with pytest.raises(TypeError):
        tensors["a"] = 1


def test_representations_are_escaped():
    entries = [b.entry("<i>", b.STRING, b"<script>\xff"), b.entry("n", b.ARRAY, b.array(b.U8, [9]))]
    file = tinyllm.GGUF(b.build(entries, [b.info("<b>", (1,), 0, 0)], bytes(4)))
    assert repr(file) == "<GGUF version 3, 2 keys, 1 tensors, 4 B>"
    html = file._repr_html_()
    html.encode()
    assert "<script>" not in html
    assert "<b>" not in html
    assert "&lt;script&gt;\\udcff" in html
    assert "ARRAY[UINT8]" in html
    assert file.metadata._repr_html_() in html


def test_weights_and_metadata_outlive_the_file(path):
    file = tinyllm.GGUF(path)
    weight, metadata = file.tensors["f32"], file.metadata
    raw = weight.raw
    gone = weakref.ref(weight)
    del file, weight
    path.unlink()
    gc.collect()
    assert metadata["array.i16"].tolist() == [-1, 2, 3]
    assert raw.tobytes() == np.arange(6, dtype=np.float32).tobytes()
    assert gone() is raw.base
    del raw
    gc.collect()
    assert gone() is None


def test_bytes_are_not_copied():
    data = b.small_model()
    raw = tinyllm.GGUF(data).tensors["f32"].raw
    start = np.frombuffer(data, np.uint8).ctypes.data
    assert start < raw.ctypes.data < start + len(data)


@pytest.mark.parametrize("alignment", [1, 2, 8, 64, 4096])
def test_alignments(alignment):
    entries = [b.entry("general.alignment", b.U32, alignment), b.entry("s", b.STRING, "odd")]
    first = b.pad(np.float32([1, 2, 3]).tobytes(), alignment)
    infos = [b.info("a", (3,), 0, 0), b.info("b", (1,), 0, len(first))]
    data = b.build(entries, infos, first + np.float32(4).tobytes(), alignment=alignment)
    file = tinyllm.GGUF(data)
    assert file.alignment == alignment
    assert file.tensors["a"].numpy().tolist() == [1, 2, 3]
    assert file.tensors["b"].numpy().tolist() == [4]


def test_gaps_any_order_and_bytes_behind_are_accepted():
    infos = [b.info("a", (1,), 0, 96), b.info("b", (1,), 0, 32)]
    data = bytearray(200)
    data[96:100], data[32:36] = np.float32(1).tobytes(), np.float32(2).tobytes()
    tensors = tinyllm.GGUF(b.build([], infos, bytes(data), version=2)).tensors
    assert list(tensors) == ["a", "b"]
    assert [w.numpy()[0] for w in tensors.values()] == [1, 2]


def test_every_stored_type_opens():
    for name, (kind, items, size, _) in tinyllm._core.tensor_types().items():
        data = bytes(range(256)) * 2
        file = tinyllm.GGUF(b.build([], [b.info("w", (items, 1), kind, 0)], data[:size]))
        weight = file.tensors["w"]
        assert (weight.type, weight.shape, weight.nbytes) == (name, (1, items), size)
        assert weight.raw.tobytes() == data[:size]
        assert weight.numpy().shape == (1, items)


def test_errors_of_the_system(tmp_path):
    missing = tmp_path / "missing.gguf"
    with pytest.raises(FileNotFoundError) as error:
        tinyllm.GGUF(missing)
    assert error.value.filename == str(missing)
    for mmap in (True, False):
        with pytest.raises(IsADirectoryError):
            tinyllm.GGUF(tmp_path, mmap=mmap)
    with pytest.raises(ValueError, match="null"):
        tinyllm.GGUF("a\0b")
    for source in (3, None, ["a"]):
        with pytest.raises(TypeError, match="source"):
            tinyllm.GGUF(source)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes with names")
def test_a_pipe_does_not_hang(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="a pipe or a device"):
        tinyllm.GGUF(tmp_path / "pipe")


def test_format_errors_tell_the_path(tmp_path):
    path = tmp_path / "bad.gguf"
    path.write_bytes(b"GGUF\x07\0\0\0" + bytes(16))
    with pytest.raises(tinyllm.FormatError) as error:
        tinyllm.GGUF(path)
    assert error.value.path == str(path)
    assert str(error.value) == f"{path}: version is 7; expected 2 or 3 (at byte 4)"
    e = error.value
    assert (e.field, e.value, e.expected, e.offset) == ("version", "7", "2 or 3", 4)


def test_a_large_vocabulary_opens_at_once():
    tokens = [f"token number {i}" for i in range(200_000)]
    entries = [
        b.entry("tokens", b.ARRAY, b.array(b.STRING, tokens)),
        *(b.entry(f"key.{i}", b.U32, i) for i in range(50_000)),
    ]
    infos = [b.info(f"tensor.{i}", (0,), 0, 0) for i in range(50_000)]
    data = b.build(entries, infos)
    start = time.perf_counter()
    file = tinyllm.GGUF(data)
    assert time.perf_counter() - start < 60  # guards against endless loops
    assert file.metadata["tokens"] == tokens
    assert file.metadata["key.49999"] == 49_999
    assert len(file.tensors) == 50_000


@pytest.mark.threads
def test_threads_share_a_file():
    file = tinyllm.GGUF(b.small_model())
    expected = {key: str(file.metadata[key]) for key in file.metadata}
    failures = []

    def read():
        fresh = tinyllm.GGUF(b.small_model())
        for _ in range(50):
            for mine in (file, fresh):
                if {key: str(mine.metadata[key]) for key in mine.metadata} != expected:
                    failures.append(mine)

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


@pytest.mark.parametrize("name", ["ggml-vocab-llama-spm", "ggml-vocab-gpt-2", "rebuilt-qwen2"])
def test_real_vocabularies(name):
    path = data.path("vocab", f"{name}.gguf")
    file = tinyllm.GGUF(path)
    expected = read_metadata(path)
    assert list(file.metadata) == list(expected)
    for key, value in expected.items():
        if isinstance(value, np.ndarray):
            np.testing.assert_array_equal(file.metadata[key], value)
        else:
            assert file.metadata[key] == value


def test_a_file_of_gguf_py(tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    writer.add_block_count(3)
    writer.add_array("list", ["x", "y"])
    values = np.random.default_rng(0).standard_normal((6, 64), np.float32)
    writer.add_tensor("f32", values)
    q4_0 = gguf.quants.quantize(values, gguf.GGMLQuantizationType.Q4_0)
    writer.add_tensor("q4_0", q4_0, raw_dtype=gguf.GGMLQuantizationType.Q4_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    file = tinyllm.GGUF(tmp_path / "m.gguf")
    assert file.metadata["llama.block_count"] == 3
    assert file.metadata["list"] == ["x", "y"]
    np.testing.assert_array_equal(file.tensors["f32"].numpy(), values)
    np.testing.assert_array_equal(file.tensors["q4_0"].raw, q4_0)
    assert file.tensors["q4_0"].shape == (6, 64)


# ---- split models ----


def write_split(folder, names, keys=None, kinds=(b.U16, b.U16, b.I32), stem="model"):
    """Write one file per list of tensor names; `keys[i]` replaces (no, count, tensors)."""
    total = sum(len(part) for part in names)
    paths = []
    for i, part in enumerate(names):
        no, count, tensors = (keys or {}).get(i, (i, len(names), total))
        entries = [b.entry("general.name", b.STRING, "split")] if i == 0 else []
        entries += [
            b.entry("split.no", kinds[0], no),
            b.entry("split.count", kinds[1], count),
            b.entry("split.tensors.count", kinds[2], tensors),
        ]
        infos = [b.info(name, (1,), 0, 32 * j) for j, name in enumerate(part)]
        data = b"".join(b.pad(np.float32(len(name)).tobytes()) for name in part)
        path = folder / f"{stem}-{i + 1:05}-of-{len(names):05}.gguf"
        path.write_bytes(b.build(entries, infos, data))
        paths.append(path)
    return paths


@pytest.mark.parametrize("names", [[["a", "bb"], ["ccc"], ["dddd"]], [[], ["a"], []], [["a"]]])
@pytest.mark.parametrize("mmap", [True, False])
def test_split_models(tmp_path, names, mmap):
    paths = write_split(tmp_path, names)
    file = tinyllm.GGUF(paths[0], mmap=mmap)
    assert list(file.tensors) == [name for part in names for name in part]
    for name, weight in file.tensors.items():
        assert weight.numpy()[0] == len(name)
    assert file.metadata["general.name"] == "split"
    assert file.paths == tuple(str(path) for path in paths)


def test_split_keys_of_other_integer_types(tmp_path):
    paths = write_split(tmp_path, [["a"], ["b"]], kinds=(b.U32, b.U64, b.U16))
    assert list(tinyllm.GGUF(paths[0]).tensors) == ["a", "b"]


@pytest.mark.parametrize(
    ("keys", "names", "field", "part"),
    [
        ({0: (1, 2, 2)}, [["a"], ["b"]], "split.no", 0),
        ({1: (0, 2, 2)}, [["a"], ["b"]], "split.no", 1),
        ({1: (1, 3, 2)}, [["a"], ["b"]], "split.count", 1),
        ({0: (0, 3, 2)}, [["a"], ["b"]], "name of the split file", 0),
        ({0: (0, 2, 3)}, [["a"], ["b"]], "split.tensors.count", 0),
        ({}, [["a"], ["a"]], "tensor name", 1),
    ],
)
def test_wrong_split_models(tmp_path, keys, names, field, part):
    paths = write_split(tmp_path, names, keys)
    with pytest.raises(tinyllm.FormatError) as error:
        tinyllm.GGUF(paths[0])
    assert error.value.field == field
    assert error.value.path == str(paths[part])
    assert error.value.expected


def test_other_split_failures(tmp_path):
    paths = write_split(tmp_path, [["a"], ["b"], ["c"]])
    with pytest.raises(tinyllm.FormatError, match=r"first file .*, model-00001-of-00003.gguf"):
        tinyllm.GGUF(paths[1])
    with pytest.raises(ValueError, match="3 files"):
        tinyllm.GGUF(paths[0].read_bytes())
    paths[0].rename(tmp_path / "other.gguf")
    with pytest.raises(tinyllm.FormatError, match="-00001-of-00003"):
        tinyllm.GGUF(tmp_path / "other.gguf")
    (tmp_path / "other.gguf").rename(paths[0])
    paths[2].write_bytes(b"GGUF")
    with pytest.raises(tinyllm.FormatError) as error:
        tinyllm.GGUF(paths[0])
    assert error.value.path == str(paths[2])
    paths[2].unlink()
    with pytest.raises(FileNotFoundError) as error:
        tinyllm.GGUF(paths[0])
    assert error.value.filename == str(paths[2])
    paths[1].unlink()
    with pytest.raises(FileNotFoundError, match="2 of the 3 files") as error:
        tinyllm.GGUF(paths[0])
    assert "model-00002-of-00003.gguf, model-00003-of-00003.gguf" in str(error.value)
    data = b.build([b.entry("split.count", b.STRING, "2")])
    with pytest.raises(tinyllm.FormatError, match=r"split.count \(type\) is STRING"):
        tinyllm.GGUF(data)
