"""A reader of GGUF metadata that shares no code with tinyllm: what tokenizer tests start from."""

import struct
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

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
