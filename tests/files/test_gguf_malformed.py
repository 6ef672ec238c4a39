"""Malformed files end in an error that names the field, and in nothing worse."""

import json
import struct
import time
import tracemalloc

import numpy as np
import pytest

import tinyllm
from testkit import data
from testkit import gguf_bytes as b

pytestmark = pytest.mark.sanitize


def read_all(source):
    """Open a file and read everything in it."""
    file = tinyllm.GGUF(source)
    repr(file), file._repr_html_()
    for key in file.metadata:
        str(file.metadata[key])
    for weight in file.tensors.values():
        weight.raw.sum()
        weight.numpy()
    return file


def refusal(source):
    """Return the FormatError that refuses a file, or None."""
    try:
        read_all(source)
    except tinyllm.FormatError as error:
        return error
    return None


def expected_verdicts():
    if not data.FOLDER:
        return [("none", "skipped")]
    return sorted(json.loads(data.path("gguf-malformed", "expected.json").read_text()).items())


@pytest.mark.parametrize(("name", "verdict"), expected_verdicts())
def test_collection(name, verdict):
    path = data.path("gguf-malformed", f"{name}.gguf")
    for source in (path, path.read_bytes()):
        error = refusal(source)
        assert verdict in ("either", "accept" if error is None else "reject")
        if error is not None:
            assert error.field
            assert error.expected
            assert 0 <= error.offset <= path.stat().st_size


def test_truncation_at_every_byte():
    data = b.small_model()
    read_all(data)
    needed = len(data) - 16  # the padding of the last tensor may be missing
    for size in range(needed):
        with pytest.raises(tinyllm.FormatError) as error:
            tinyllm.GGUF(data[:size])
        assert error.value.offset <= size
    for size in range(needed, len(data)):
        read_all(data[:size])


def test_truncated_file_on_disk(tmp_path):
    data = b.small_model()
    path = tmp_path / "cut.gguf"
    for size in (*range(0, len(data) - 16, 7), 0, 4, 24):
        path.write_bytes(data[:size])
        for mmap in (True, False):
            with pytest.raises(tinyllm.FormatError) as error:
                tinyllm.GGUF(path, mmap=mmap)
            assert error.value.path == str(path)


def test_any_byte_may_be_anything():
    data = b.small_model()
    rng = np.random.default_rng(0)
    accepted = 0
    for at in range(len(data)):
        for value in (0, 1, 0x7F, 0x80, 0xFF, int(rng.integers(256))):
            changed = data[:at] + bytes([value]) + data[at + 1 :]
            error = refusal(changed)
            accepted += error is None
            assert error is None or (error.field and error.expected)
    assert accepted > len(data)  # changed names, numbers and data are still valid


ONE = [b.info("t", (8,), 0, 0)]
KEY = b.entry("k", b.U32, 1)


def tensor(dims, kind=0, offset=0, n_dims=None, name="t"):
    return b.build([], [b.info(name, dims, kind, offset, n_dims)], bytes(256))


def metadata(*parts):
    return b.header(0, 1) + b"".join(parts) + bytes(64)


def u32(value):
    return struct.pack("<I", value)


def u64(value):
    return struct.pack("<Q", value % 2**64)


def nested(depth):
    inner = b.array(b.U8, [])
    for _ in range(depth - 1):
        inner = b.array(b.ARRAY, [inner])
    return b.build([b.entry("k", b.ARRAY, inner)])


I64_MAX = 2**63 - 1

# name: (file, field of the error, value of the error)
REJECTED = {
    "empty": (b"", "magic", "cut off"),
    "magic": (b"ggml" + bytes(20), "magic", "'ggml'"),
    "magic_only": (b"GGUF", "version", "cut off"),
    "version_0": (b.header(0, 0, version=0), "version", "0"),
    "version_1": (b.header(0, 0, version=1), "version", "1"),
    "version_4": (b.header(0, 0, version=4), "version", "4"),
    "big_endian": (b.header(0, 0, version=0x03000000), "version", "50331648"),
    "n_tensors_negative": (b.header(-1, 0), "n_tensors", "-1"),
    "n_tensors_2_40": (b.header(2**40, 0), "n_tensors", str(2**40)),
    "n_tensors_wraps": (b.header(2**61 + 1, 0) + bytes(999), "n_tensors", str(2**61 + 1)),
    "n_kv_negative": (b.header(0, -1), "n_kv", "-1"),
    "n_kv_2_40": (b.header(0, 2**40), "n_kv", str(2**40)),
    "n_kv_too_many": (b.header(0, 2) + KEY, "n_kv", "2"),
    "n_kv_one_too_many": (b.header(0, 2) + KEY + bytes(13), "metadata key 1 (length)", "0"),
    "key_empty": (metadata(b.entry("", b.U32, 1)), "metadata key 0 (length)", "0"),
    "key_long": (
        metadata(b.entry("k" * 65536, b.U32, 1)), "metadata key 0 (length)", "65536"
    ),
    "key_length_past_end": (metadata(u64(10**6)), "metadata key 0", "1000000"),
    "key_length_2_64": (metadata(u64(2**64 - 1)), "metadata key 0", "-1"),
    "key_with_zero": (metadata(b.entry("a\0b", b.U32, 1)), "metadata key 0", r"'a\x00b'"),
    "key_twice": (b.build([KEY, b.entry("j", b.U8, 1), KEY]), "metadata key", "'k'"),
    "type_13": (metadata(b.string("k"), u32(13)), "metadata 'k' (type)", "13"),
    "type_max": (metadata(b.string("k"), u32(2**32 - 1)), "metadata 'k' (type)", str(2**32 - 1)),
    "string_past_end": (
        metadata(b.string("k"), u32(b.STRING), u64(65)), "metadata 'k' (string length)", "65"
    ),
    "string_2_63": (
        metadata(b.string("k"), u32(b.STRING), u64(2**63)),
        "metadata 'k' (string length)", str(2**63),
    ),
    "bool_2": (metadata(b.string("k"), u32(b.BOOL), b"\2"), "metadata 'k'", "2"),
    "bool_in_array": (
        metadata(b.string("k"), u32(b.ARRAY), u32(b.BOOL), u64(3), b"\1\0\xff"),
        "metadata 'k'", "255",
    ),
    "array_type": (
        metadata(b.string("k"), u32(b.ARRAY), u32(77), u64(0)), "metadata 'k' (element type)", "77"
    ),
    "array_2_63": (
        metadata(b.string("k"), u32(b.ARRAY), u32(b.U8), u64(2**63)),
        "metadata 'k' (array length)", str(2**63),
    ),
    "array_wraps": (
        metadata(b.string("k"), u32(b.ARRAY), u32(b.F64), u64(2**61 + 1)),
        "metadata 'k' (array length)", str(2**61 + 1),
    ),
    "array_of_strings_too_long": (
        metadata(b.string("k"), u32(b.ARRAY), u32(b.STRING), u64(9)),
        "metadata 'k' (array length)", "9",
    ),
    "string_in_array_past_end": (
        metadata(b.string("k"), u32(b.ARRAY), u32(b.STRING), u64(2), b.string("a"), u64(10**9)),
        "metadata 'k' (string length)", str(10**9),
    ),
    "nested_9": (nested(9), "metadata 'k' (depth)", "9"),
    "nested_10000": (nested(10_000), "metadata 'k' (depth)", "9"),
    "alignment_0": (
        b.build([b.entry("general.alignment", b.U32, 0)]), "metadata 'general.alignment'", "0"
    ),
    "alignment_24": (
        b.build([b.entry("general.alignment", b.U32, 24)]), "metadata 'general.alignment'", "24"
    ),
    "alignment_u64": (
        b.build([b.entry("general.alignment", b.U64, 32)]), "general.alignment (type)", "UINT64"
    ),
    "alignment_array": (
        b.build([b.entry("general.alignment", b.ARRAY, b.array(b.U32, [32]))]),
        "general.alignment (type)", "ARRAY",
    ),
    "name_64": (tensor((8,), name="n" * 64), "tensor 0 name (length)", "64"),
    "name_empty": (tensor((8,), name=""), "tensor 0 name (length)", "0"),
    "name_with_zero": (tensor((8,), name="t\0"), "tensor 0 name", r"'t\x00'"),
    "name_2_63": (b.header(1, 0) + u64(2**63) + bytes(64), "tensor 0 name", str(2**63)),
    "name_twice": (
        b.build([], [ONE[0], b.info("t", (8,), 0, 32)], bytes(64)), "tensor name", "'t'"
    ),
    "n_dims_5": (tensor((1,) * 5), "tensor 't' n_dims", "5"),
    "n_dims_max": (tensor((), n_dims=2**32 - 1), "tensor 't' n_dims", str(2**32 - 1)),
    "dim_negative": (tensor((8, -1)), "tensor 't' dimension 1", "-1"),
    "dims_2_62": (tensor((2**62,)), "tensor 't' dimensions", str(2**62)),
    "dims_2_42": (tensor((2**42 + 1, 2**42)), "tensor 't' dimensions", None),
    "dims_wrap_to_negative": (tensor((I64_MAX, 2), 24), "tensor 't' dimensions", None),
    "dims_wrap_to_zero": (tensor((2**32, 2**32)), "tensor 't' dimensions", None),
    "dims_zero_and_huge": (tensor((2**40, 2**40, 0)), "tensor 't' dimensions", None),
    "size_past_end": (tensor((2**40,)), "tensor 't' offset", f"0, its size {2**42}"),
    "two_huge": (
        b.build([], [b.info(n, (2**63 - 64,), 24, 0) for n in "ab"], bytes(64)),
        "tensor 'a' dimensions", str(2**63 - 64),
    ),
    "row_of_33": (tensor((33,), 2), "tensor 't' dimensions", "33"),
    "row_of_16": (tensor((16, 2), 2), "tensor 't' dimensions", "16 x 2"),
    "row_of_255": (tensor((255,), 12), "tensor 't' dimensions", "255"),
    "type_removed": (tensor((32,), 4), "tensor 't' type", "4 (Q4_2)"),
    "type_removed_37": (tensor((32,), 37), "tensor 't' type", "37 (IQ4_NL_4_8)"),
    "type_43": (tensor((32,), 43), "tensor 't' type", "43"),
    "type_negative": (tensor((32,), 2**32 - 1), "tensor 't' type", str(2**32 - 1)),
    "offset_unaligned": (tensor((8,), offset=4), "tensor 't' offset", "4"),
    "offset_past_end": (tensor((8,), offset=256), "tensor 't' offset", "256, its size 32"),
    "offset_wraps": (tensor((8,), offset=2**64 - 32), "tensor 't' offset", None),
    "offset_overlaps": (
        b.build([], [b.info("a", (16,), 0, 0), b.info("b", (8,), 0, 32)], bytes(96)),
        "tensor 'b' offset", "32",
    ),
    "offset_same": (
        b.build([], [b.info("a", (8,), 0, 32), b.info("b", (8,), 0, 32)], bytes(96)),
        "tensor 'b' offset", "32",
    ),
    "empty_tensor_past_end": (tensor((0,), offset=288), "tensor 't' offset", "288, its size 0"),
    "no_data": (b.build([], ONE, b""), "tensor 't' offset", "0, its size 32"),
    "huge_alignment": (
        b.build([b.entry("general.alignment", b.U32, 2**31)], ONE, bytes(64)),
        "tensor 't' offset", "0, its size 32",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REJECTED)
def test_rejected(name):
    data, field, value = REJECTED[name]
    start = time.perf_counter()
    with pytest.raises(tinyllm.FormatError) as error:
        read_all(data)
    assert time.perf_counter() - start < 60  # guards against endless loops
    assert error.value.field == field
    if value is not None:
        assert error.value.value == value
    assert error.value.expected
    assert 0 <= error.value.offset <= len(data)
    assert field in str(error.value)


def test_offsets_point_at_the_field():
    data = b.build([KEY], [b.info("a", (16,), 0, 0), b.info("b", (8, 1), 0, 32)], bytes(96))
    with pytest.raises(tinyllm.FormatError) as error:
        tinyllm.GGUF(data)
    assert struct.unpack_from("<Q", data, error.value.offset)[0] == 32
    for name, wanted in (("type_13", 13), ("bool_2", 2), ("offset_unaligned", 4), ("n_dims_5", 5)):
        data = REJECTED[name][0]
        with pytest.raises(tinyllm.FormatError) as error:
            tinyllm.GGUF(data)
        assert data[error.value.offset] == wanted


ACCEPTED = {
    "header_only": b.header(0, 0),
    "version_2": b.build([KEY], ONE, bytes(32), version=2),
    "nested_8": nested(8),
    "name_63": tensor((8,), name="n" * 63),
    "key_65535": b.build([b.entry("k" * 65535, b.U32, 1)]),
    "key_not_utf8": b.build([b.entry(b"\xff\xfe", b.U32, 1)]),
    "string_not_utf8": b.build([b.entry("k", b.STRING, b"\xff\0\xc3")]),
    "zero_dim_first": tensor((0, 5)),
    "zero_dim_middle": tensor((8, 0, 5)),
    "no_dims": tensor(()),
    "no_padding_at_the_end": b.build([], [b.info("t", (1,), 0, 0)], bytes(4)),
    "empty_tensor_at_the_end": b.build(
        [], [b.info("t", (1,), 0, 0), b.info("e", (0,), 0, 32)], bytes(4)
    ),
    "alignment_2_31_without_tensors": b.build([b.entry("general.alignment", b.U32, 2**31)]),
    "names_with_a_common_start": b.build(
        [b.entry("a" * i, b.U8, 1) for i in range(1, 50)],
        [b.info("a" * i, (0,), 0, 0) for i in range(1, 50)],
    ),
}


@pytest.mark.parametrize("name", ACCEPTED)
def test_accepted(name):
    read_all(ACCEPTED[name])


def test_false_sizes_allocate_nothing():
    """A small file that claims to be huge is refused before anything is allocated."""
    claims = [
        b.header(0, 2**28) + bytes(40),
        metadata(b.string("k"), u32(b.ARRAY), u32(b.STRING), u64(2**29)),
        metadata(b.string("k"), u32(b.STRING), u64(2**30)),
    ]
    tracemalloc.start()
    try:
        for data in claims:
            with pytest.raises(tinyllm.FormatError):
                tinyllm.GGUF(data)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_equal_beginnings_are_not_slow():
    """100,000 names that differ only at their end, and one of them twice."""
    names = ["n" * 40 + f"{i:07}" for i in range(100_000)]
    entries = [b.entry(name, b.U8, 1) for name in [*names, names[123]]]
    start = time.perf_counter()
    with pytest.raises(tinyllm.FormatError, match="twice"):
        tinyllm.GGUF(b.build(entries))
    assert time.perf_counter() - start < 60  # guards against endless loops
