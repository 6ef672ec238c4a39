"""GGUF files written and read byte by byte from the specification; shares no code with tinyllm."""

import struct
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

U8, I8, U16, I16, U32, I32, F32, BOOL, STRING, ARRAY, U64, I64, F64 = range(13)
_FORMATS = {
    U8: "<B", I8: "<b", U16: "<H", I16: "<h", U32: "<I", I32: "<i", F32: "<f", BOOL: "<?",
    U64: "<Q", I64: "<q", F64: "<d",
}  # fmt: skip


def string(text):
    data = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(data)) + data


def scalar(kind, value):
    return string(value) if kind == STRING else struct.pack(_FORMATS[kind], value)


def array(kind, values):
    """Element type, count, elements; the elements of an array of arrays come encoded."""
    items = values if kind == ARRAY else [scalar(kind, value) for value in values]
    return struct.pack("<IQ", kind, len(values)) + b"".join(items)


def entry(key, kind, value):
    """A key with a number or a string, or with an encoded array."""
    data = value if kind == ARRAY else scalar(kind, value)
    return string(key) + struct.pack("<I", kind) + data


def info(name, dims, kind, offset, n_dims=None):
    """A tensor's row in the header; dims in the file's order."""
    n_dims = len(dims) if n_dims is None else n_dims
    dims = b"".join(struct.pack("<Q", d % 2**64) for d in dims)
    return string(name) + struct.pack("<I", n_dims) + dims + struct.pack("<IQ", kind, offset)


def pad(data, alignment=32):
    return data + bytes(-len(data) % alignment)


def header(n_tensors, n_entries, version=3, magic=b"GGUF"):
    return magic + struct.pack("<IQQ", version, n_tensors % 2**64, n_entries % 2**64)


def build(entries=(), infos=(), data=b"", version=3, alignment=32):
    """Put a file together from encoded entries and infos."""
    head = header(len(infos), len(entries), version) + b"".join(entries) + b"".join(infos)
    return (pad(head, alignment) if infos else head) + data


def small_model():
    """Every metadata type, nested arrays, four tensor types, a scalar and an empty tensor."""
    entries = [
        entry("general.architecture", STRING, "llama"),
        *(entry(f"number.{kind}", kind, 1) for kind in _FORMATS),
        entry("array.i16", ARRAY, array(I16, [-1, 2, 3])),
        entry("array.bool", ARRAY, array(BOOL, [True, False])),
        entry("array.string", ARRAY, array(STRING, ["a", "", b"\xff\xfe", "ü"])),
        entry("array.array", ARRAY, array(ARRAY, [array(U8, [1, 2]), array(STRING, ["x"])])),
        entry("array.empty", ARRAY, array(F64, [])),
    ]
    f32 = np.arange(6, dtype="<f4").tobytes()
    q8_0 = np.arange(2 * 34, dtype=np.uint8).tobytes()
    infos = [
        info("f32", (3, 2), 0, 0),
        info("q8_0", (32, 2), 8, 32),
        info("scalar", (), 0, 128),
        info("empty", (32, 0), 2, 160),
        info("i64", (2,), 27, 160),
    ]
    parts = [f32, q8_0, np.float32(7).tobytes(), b"", np.array([1, -2], "<i8").tobytes()]
    return build(entries, infos, b"".join(pad(part) for part in parts))


_NUMBERS = {
    0: "<u1", 1: "<i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4", 6: "<f4", 7: "?",
    10: "<u8", 11: "<i8", 12: "<f8",
}  # fmt: skip


@cache
def read_metadata(path: Path) -> dict[str, Any]:
    """Return the metadata of a GGUF v3 file as tinyllm.GGUF gives them."""
    data = path.read_bytes()
    at = 0

    def number(kind: str) -> Any:
        nonlocal at
        value = np.frombuffer(data, kind, 1, at)[0]
        at += value.itemsize
        return value

    def string() -> str:
        nonlocal at
        size = struct.unpack_from("<Q", data, at)[0]
        at += 8 + size
        return data[at - size : at].decode(errors="surrogateescape")

    def value(kind: int) -> Any:
        nonlocal at
        if kind == 8:
            return string()
        if kind == 9:
            kind, count = number("<u4"), int(number("<u8"))
            if kind in _NUMBERS:
                array = np.frombuffer(data, _NUMBERS[kind], count, at)
                at += array.nbytes
                return array
            return [value(kind) for _ in range(count)]
        return number(_NUMBERS[kind]).item()

    assert data[:4] == b"GGUF"
    at = 16
    metadata = {}
    for _ in range(int(number("<u8"))):
        key = string()
        metadata[key] = value(int(number("<u4")))
    return metadata
