"""Writing GGUF files: types, bytes, order, and what remains after an error."""

import os
import stat
import weakref

import gguf
import numpy as np
import pytest

import tinyllm
from testkit import data
from testkit import gguf_bytes as b
from tinyllm import TensorSource, write_gguf

pytestmark = pytest.mark.sanitize


def round_trip(path, metadata, tensors=None, **options):
    write_gguf(path, metadata, tensors or {}, **options)
    return tinyllm.GGUF(path)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "m.gguf"


# ---- byte for byte ----


def padded_files():
    q8_0 = bytes(range(68))
    infos = [b.info("a", (32, 2), 8, 0), b.info("b", (), 0, 96), b.info("c", (0,), 0, 128)]
    infos.append(b.info("d\xff", (1, 1, 1, 2), 24, 128))
    data = b.pad(q8_0) + b.pad(bytes(4)) + b.pad(bytes(2))
    raw = [
        b.entry(b"key \xff", b.STRING, b"\xc3\0\xff"),
        b.entry("nested", b.ARRAY, b.array(b.ARRAY, [b.array(b.ARRAY, []), b.array(b.I8, [])])),
        b.entry("f32", b.ARRAY, b.array(b.F32, [np.float32(0.1), np.inf])),
        b.entry("nan", b.F64, float("nan")),
    ]
    aligned = [b.entry("general.alignment", b.U32, 128), *raw]
    wide = [b.info("a", (4,), 0, 0), b.info("b", (4,), 0, 128)]
    return {
        "model": b.small_model(),
        "types": b.build(raw, infos, data),
        "alignment": b.build(aligned, wide, b.pad(bytes(16), 128) * 2, alignment=128),
        "no tensors": b.build(raw),
        "nothing": b.header(0, 0),
    }


@pytest.mark.parametrize("name", padded_files())
def test_padded_files_come_back_byte_for_byte(path, name):
    data = padded_files()[name]
    file = tinyllm.GGUF(data)
    write_gguf(path, file.metadata, file.tensors)
    assert path.read_bytes() == data
    sources = {
        name: TensorSource(w.shape, w.type, lambda w=w: w.raw) for name, w in file.tensors.items()
    }
    if b"nested" not in data:  # typed() cannot tell an empty array of arrays from one of strings
        write_gguf(path, file.metadata.typed(), sources)
        assert path.read_bytes() == data


@pytest.mark.parametrize("name", ["ggml-vocab-phi-3", "ggml-vocab-starcoder", "rebuilt-qwen2"])
def test_real_files_come_back_byte_for_byte(path, name):
    original = data.path("vocab", f"{name}.gguf")
    file = tinyllm.GGUF(original)
    for metadata in (file.metadata, file.metadata.typed()):
        write_gguf(path, metadata, file.tensors)
        assert path.read_bytes() == original.read_bytes()


def test_other_files_come_out_canonical(path):
    infos = [b.info("a", (1,), 0, 96), b.info("b", (1,), 0, 32)]
    data = bytearray(100)
    data[96:100], data[32:36] = np.float32(1).tobytes(), np.float32(2).tobytes()
    file = tinyllm.GGUF(b.build([], infos, bytes(data), version=2))
    write_gguf(path, file.metadata, file.tensors)
    infos = [b.info("a", (1,), 0, 0), b.info("b", (1,), 0, 32)]
    parts = b.pad(np.float32(1).tobytes()) + b.pad(np.float32(2).tobytes())
    assert path.read_bytes() == b.build([], infos, parts)


def test_a_file_may_replace_itself(path):
    path.write_bytes(b.small_model())
    file = tinyllm.GGUF(path)
    write_gguf(path, file.metadata.typed() | {"added": 1}, file.tensors)
    assert tinyllm.GGUF(path).metadata["added"] == 1
    assert file.tensors["q8_0"].raw.tobytes() == bytes(range(68))


# ---- metadata ----

PLAIN = [
    (True, "BOOL"), (0, "UINT32"), (2**32 - 1, "UINT32"), (-1, "INT32"), (-(2**31), "INT32"),
    (2**32, "UINT64"), (2**64 - 1, "UINT64"), (-(2**31) - 1, "INT64"), (-(2**63), "INT64"),
    (1.5, "FLOAT32"), (float("inf"), "FLOAT32"), ("text \udcff ü", "STRING"), ("", "STRING"),
    (np.uint8(7), "UINT8"), (np.int64(-7), "INT64"), (np.float64(0.1), "FLOAT64"),
    (np.float32(0.5), "FLOAT32"), (np.bool_(False), "BOOL"), (np.array(3, np.int16), "INT16"),
    (np.arange(4, dtype=np.uint16), "ARRAY[UINT16]"), (np.array([True]), "ARRAY[BOOL]"),
    (np.array([], np.float32), "ARRAY[FLOAT32]"), (np.arange(3, dtype=">i4"), "ARRAY[INT32]"),
    (np.arange(8)[::2], "ARRAY[INT64]"), (np.array(["x", "yz"]), "ARRAY[STRING]"),
    ([1, 2**32], "ARRAY[UINT64]"), ([1, -1], "ARRAY[INT32]"), ([1, 0.5], "ARRAY[FLOAT32]"),
    ([True, False], "ARRAY[BOOL]"), (["a", "\udc80"], "ARRAY[STRING]"),
    (np.str_("s"), "STRING"),
]  # fmt: skip


@pytest.mark.parametrize(("value", "kind"), PLAIN, ids=repr)
def test_plain_values(path, value, kind):
    metadata = round_trip(path, {"k": value}).metadata
    assert metadata.type("k") == kind
    if isinstance(metadata["k"], np.ndarray):
        np.testing.assert_array_equal(metadata["k"], value)
    else:
        assert np.array_equal(metadata["k"], value)


TYPED = [
    (("UINT64", 5), 5), (("FLOAT64", 0.1), 0.1), (("FLOAT32", 3), 3.0), (("UINT8", np.array(3)), 3),
    (("STRING", b"\xff"), "\udcff"), (("BOOL", np.bool_(True)), True),
    (("ARRAY[INT8]", [1, -2]), [1, -2]), (("ARRAY[STRING]", []), []),
    (("ARRAY[FLOAT64]", [1]), [1.0]), (("INT8", np.int64(-5)), -5),
    (("ARRAY[UINT8]", np.array([200])), [200]), (("ARRAY[STRING]", [b"a", "b"]), ["a", "b"]),
    (("ARRAY[FLOAT32]", np.array([0.5])), [0.5]), (("ARRAY[UINT64]", [2**64 - 1]), [2**64 - 1]),
]  # fmt: skip


@pytest.mark.parametrize(("value", "expected"), TYPED, ids=repr)
def test_stated_types(path, value, expected):
    metadata = round_trip(path, {"k": value}).metadata
    assert metadata.type("k") == value[0]
    got = metadata["k"]
    assert (got.tolist() if isinstance(got, np.ndarray) else got) == expected


def test_arrays_in_arrays(path):
    value = [[1, 2], ["a"], ("ARRAY[INT8]", [3]), np.float64([0.5]), [[True]]]
    got = round_trip(path, {"k": value}).metadata["k"]
    assert [x.tolist() if isinstance(x, np.ndarray) else x for x in got[:4]] == [
        [1, 2], ["a"], [3], [0.5],
    ]  # fmt: skip
    assert [x.dtype for x in (got[0], got[2], got[3])] == [np.uint32, np.int8, np.float64]
    assert got[4][0].tolist() == [True]
    got = round_trip(path, {"k": ("ARRAY[ARRAY[UINT8]]", [[1], []])}).metadata["k"]
    assert [x.tolist() for x in got] == [[1], []]


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [
        (None, TypeError, "NoneType"), ({}, TypeError, "dict"), (2**64, ValueError, "64 bits"),
        (-(2**63) - 1, ValueError, "64 bits"), (1e300, ValueError, "FLOAT32"),
        ([], ValueError, "empty"), ([1, "a"], TypeError, "one type"), (1j, TypeError, "complex"),
        (np.float16(1), TypeError, "float16"), (np.zeros((2, 2)), ValueError, "one axis"),
        (np.zeros(2, complex), TypeError, "complex"), ("\ud800", ValueError, "surrogates"),
        (("UINT8", 256), ValueError, "256"), (("UINT8", -1), ValueError, "-1"),
        (("INT32", 1.5), TypeError, "1.5"), (("INT32", True), TypeError, "True"),
        (("BOOL", 1), TypeError, "1"), (("STRING", 1), TypeError, "1"),
        (("FLOAT32", 1e39), ValueError, "1e.39"), (("FLOAT32", "1"), TypeError, "'1'"),
        (("ARRAY[UINT8]", [1, 256]), ValueError, "256"), (("ARRAY[BOOL]", [2]), TypeError, "2"),
        (("ARRAY[UINT8]", 5), TypeError, "5"), (("ARRAY[STRING]", "abc"), TypeError, "abc"),
        (("ARRAY[UINT8]", np.array([-1])), ValueError, "-1"), (("ARRAY[X]", []), ValueError, "'X'"),
        (("U8", 1), ValueError, "'U8'"), (("ARRAY", []), ValueError, "ARRAY"),
        (("UINT8", 1, 2), TypeError, "tuple"), ((1, 2), TypeError, "tuple"),
        (("ARRAY[FLOAT32]", np.array([1e300])), ValueError, "FLOAT32"),
        ([[[[[[[[[1]]]]]]]]], ValueError, "8 arrays"), (("ARRAY[ARRAY]", [1]), TypeError, "array"),
    ],
    ids=repr,
)  # fmt: skip
def test_bad_values(path, value, error, text):
    with pytest.raises(error, match=text) as caught:
        write_gguf(path, {"good": 1, "bad key": value}, {})
    assert "metadata['bad key']" in str(caught.value)
    assert not list(path.parent.iterdir())


BAD_NAMES = ["", "a\0b", "\ud800", 5, b"bytes", None]


@pytest.mark.parametrize("name", [*BAD_NAMES, "k" * 65536], ids=lambda name: repr(name)[:9])
def test_bad_keys(path, name):
    with pytest.raises((ValueError, TypeError), match="metadata"):
        write_gguf(path, {name: 1}, {})


@pytest.mark.parametrize("name", [*BAD_NAMES, "n" * 64, "ü" * 32], ids=lambda name: repr(name)[:9])
def test_bad_tensor_names(path, name):
    with pytest.raises((ValueError, TypeError), match="tensors"):
        write_gguf(path, {}, {name: np.zeros(1)})


def test_names_that_become_the_same_bytes(path):
    twice = ["ü", "\udcc3\udcbc"]
    with pytest.raises(ValueError, match="twice"):
        write_gguf(path, dict.fromkeys(twice, 1), {})
    with pytest.raises(ValueError, match="twice"):
        write_gguf(path, {}, dict.fromkeys(twice, np.zeros(1)))


def test_the_longest_names(path):
    file = round_trip(path, {"k" * 65535: 1}, {"n" * 63: np.zeros(1)})
    assert list(file.metadata) == ["k" * 65535]
    assert list(file.tensors) == ["n" * 63]


# ---- alignment ----


@pytest.mark.parametrize("alignment", [1, 8, 256])
def test_alignment(path, alignment):
    tensors = {"a": np.zeros(3, np.int8), "b": np.ones(5, np.int8)}
    file = round_trip(path, {"x": 1}, tensors, alignment=alignment)
    assert file.alignment == file.metadata["general.alignment"] == alignment
    assert file.tensors["b"].numpy().tolist() == [1] * 5
    assert path.stat().st_size % alignment == 0
    again = round_trip(path, file.metadata, file.tensors)
    assert again.alignment == alignment
    changed = round_trip(path, {"general.alignment": 64, "x": 1}, tensors, alignment=alignment)
    assert changed.alignment == alignment
    assert list(changed.metadata) == ["general.alignment", "x"]
    assert round_trip(path, {"general.alignment": 64}, tensors).alignment == 64


@pytest.mark.parametrize("alignment", [0, -32, 24, 2**32, 1.0, True, "32"])
def test_bad_alignment(path, alignment):
    with pytest.raises(ValueError, match="alignment"):
        write_gguf(path, {}, {}, alignment=alignment)
    with pytest.raises(ValueError, match="alignment"):
        write_gguf(path, {"general.alignment": alignment}, {})


# ---- tensors ----


@pytest.mark.parametrize("kind", ["f8", "f4", "f2", "i1", "i2", "i4", "i8"])
@pytest.mark.parametrize("order", ["<", ">"])
def test_arrays(path, kind, order):
    values = np.arange(-12, 12).reshape(2, 3, 4).astype(order + kind)
    tensors = {
        "c": values,
        "f": np.asfortranarray(values),
        "strided": values[:, ::-1, ::2],
        "scalar": values[1, 2, 3],
        "no axes": values[1, 2, 3, ...],
        "empty": values[:0],
    }
    file = round_trip(path, {}, tensors)
    for name, array in tensors.items():
        weight = file.tensors[name]
        assert weight.type == {"f": "F", "i": "I"}[kind[0]] + str(8 * int(kind[1]))
        assert weight.shape == array.shape
        np.testing.assert_array_equal(weight.numpy(dtype=np.float64), array.astype(np.float64))


def test_gguf_py_reads_what_we_write(path):
    values = np.random.default_rng(0).standard_normal((4, 64), np.float32)
    q5_1 = gguf.quants.quantize(values, gguf.GGMLQuantizationType.Q5_1)
    tensors = {
        "f32": values,
        "q5_1": tinyllm.Weight("other name", (4, 64), "Q5_1", q5_1.tobytes()),
        "source": TensorSource((4, 64), "Q5_1", lambda: q5_1),
    }
    metadata = {"general.architecture": "llama", "n": 3, "list": ["a", "b"], "x": np.int16([5, 6])}
    write_gguf(path, metadata, tensors)
    reader = gguf.GGUFReader(path)
    assert reader.fields["n"].contents() == 3
    assert reader.fields["list"].contents() == ["a", "b"]
    assert reader.fields["x"].contents() == [5, 6]
    read = {tensor.name: tensor for tensor in reader.tensors}
    np.testing.assert_array_equal(read["f32"].data, values)
    for name in ("q5_1", "source"):
        np.testing.assert_array_equal(read[name].data, q5_1)
        assert read[name].tensor_type == gguf.GGMLQuantizationType.Q5_1


def test_sources_are_called_once_in_order_one_at_a_time(path):
    calls, made = [], []

    def make(i):
        assert not any(array() is not None for array in made), "an earlier tensor is still there"
        calls.append(i)
        array = np.full(i + 1, i, np.float32)
        made.append(weakref.ref(array))
        return array

    tensors = {f"t{i}": TensorSource((i + 1,), "F32", lambda i=i: make(i)) for i in range(5)}
    file = round_trip(path, {}, tensors)
    assert calls == list(range(5))
    for i in range(5):
        assert file.tensors[f"t{i}"].numpy().tolist() == [i] * (i + 1)


@pytest.mark.parametrize(
    "result",
    [
        np.arange(32, dtype=np.float32).reshape(4, 8),
        np.arange(32, dtype=">f4").reshape(4, 8),
        np.arange(32, dtype=np.float32).tobytes(),
        bytearray(np.arange(32, dtype=np.float32).tobytes()),
        np.arange(32, dtype=np.float32).view(np.uint8).reshape(4, 32),
        tinyllm.Weight("w", (4, 8), "F32", np.arange(32, dtype=np.float32).tobytes()),
    ],
    ids=lambda result: type(result).__name__,
)
def test_what_a_source_may_return(path, result):
    file = round_trip(path, {}, {"t": TensorSource([4, 8], "F32", lambda: result)})
    np.testing.assert_array_equal(file.tensors["t"].numpy().reshape(-1), np.arange(32))


@pytest.mark.parametrize(
    ("tensor", "error", "text"),
    [
        (np.zeros((1,) * 5), ValueError, "4 axes"), (np.zeros(2, complex), TypeError, "complex"),
        (np.zeros(2, bool), TypeError, "bool"), (np.zeros(2, np.uint8), TypeError, "uint8"),
        ([1.0], TypeError, "list"), (None, TypeError, "NoneType"),
        (TensorSource((33,), "Q4_0", bytes), ValueError, "32"),
        (TensorSource((32,), "Q4_2", bytes), ValueError, "Q4_2"),
        (TensorSource((-1,), "F32", bytes), ValueError, "negative"),
        (TensorSource((1.5,), "F32", bytes), TypeError, "ints"),
        (TensorSource(5, "F32", bytes), TypeError, "shape"),
        (TensorSource((2**40, 2**40), "F32", bytes), ValueError, r"2\*\*60"),
        (TensorSource((1,), "F32", b"1234"), TypeError, "callable"),
        (TensorSource((2,), "F32", lambda: bytes(7)), ValueError, "7 bytes"),
        (TensorSource((2,), "F32", lambda: np.zeros(2)), ValueError, "float64"),
        (TensorSource((2,), "F32", lambda: np.zeros((2, 1), np.float32)), ValueError, "shape"),
        (TensorSource((32,), "Q4_0", lambda: np.zeros(32, np.float32)), ValueError, "float32"),
        (TensorSource((2,), "F32", lambda: tinyllm.Weight("w", (1,), "F64", bytes(8))),
         ValueError, "F64"),
        (TensorSource((2,), "F32", lambda: 5), TypeError, "int"),
    ],
)  # fmt: skip
def test_bad_tensors(path, tensor, error, text):
    path.write_bytes(b"before")
    with pytest.raises(error, match=text):
        write_gguf(path, {}, {"good": np.zeros(3), "bad": tensor})
    assert path.read_bytes() == b"before"
    assert list(path.parent.iterdir()) == [path]


# ---- the file ----


@pytest.mark.parametrize("error", [KeyError, KeyboardInterrupt, SystemExit])
def test_an_error_leaves_what_was_there(path, error):
    def fail():
        raise error("from the callable")

    path.write_bytes(b"before")
    with pytest.raises(error):
        write_gguf(path, {}, {"a": np.zeros(1000), "b": TensorSource((1,), "F32", fail)})
    assert path.read_bytes() == b"before"
    assert list(path.parent.iterdir()) == [path]


def test_the_file_appears_when_it_is_complete(path):
    def look():
        assert not path.exists()
        assert len(list(path.parent.iterdir())) == 1
        return bytes(4)

    write_gguf(path, {}, {"a": TensorSource((1,), "F32", look)})
    assert list(path.parent.iterdir()) == [path]


def test_the_file_is_on_the_disk_before_it_gets_its_name(path, monkeypatch):
    calls = []

    def recorded(name):
        function = getattr(os, name)

        def call(*args):
            calls.append(name)
            return function(*args)

        return call

    for name in ("fsync", "replace"):
        monkeypatch.setattr(os, name, recorded(name))
    write_gguf(path, {}, {"a": np.zeros(3)})
    assert calls[:2] == ["fsync", "replace"]


def test_errors_of_the_system(tmp_path):
    missing = tmp_path / "no" / "m.gguf"
    with pytest.raises(FileNotFoundError) as error:
        write_gguf(missing, {}, {})
    assert error.value.filename == str(missing)
    with pytest.raises(OSError, match=str(tmp_path)):
        write_gguf(tmp_path, {}, {})
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(os.name == "nt", reason="permissions of POSIX")
def test_permissions_and_links(tmp_path):
    (tmp_path / "target.gguf").write_bytes(b"")
    (tmp_path / "link.gguf").symlink_to("target.gguf")
    old = os.umask(0o027)
    try:
        write_gguf(tmp_path / "link.gguf", {}, {})
    finally:
        os.umask(old)
    assert (tmp_path / "link.gguf").is_symlink()
    assert stat.S_IMODE((tmp_path / "target.gguf").stat().st_mode) == 0o640
    assert tinyllm.GGUF(tmp_path / "target.gguf").version == 3


def test_a_long_file_name(tmp_path):
    write_gguf(tmp_path / ("ü" * 120 + ".gguf"), {}, {})
