"""Opening a model's file, whatever its format."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .._core import Weight
from .gguf import GGUF
from .llama2c import read_llama2c

__all__ = ["DEMO", "open_file", "path_text"]

#: The model that ships in the package.
DEMO = Path(__file__).parent.parent / "data" / "demo.gguf"


def path_text(source: Any) -> str | None:
    """The path of a source as text; None for bytes."""
    return None if isinstance(source, (bytes, bytearray, memoryview)) else os.fspath(source)


def open_file(source: Any, mmap: bool = True) -> tuple[Mapping[str, Any], Mapping[str, Weight]]:
    """Open a GGUF file or a llama2.c checkpoint, told apart by the magic.

    Parameters
    ----------
    source : str, os.PathLike or bytes-like
        ``"demo"`` is the model that ships in the package.
    mmap : bool
        False reads the file into memory.

    Returns
    -------
    metadata : mapping
        GGUF keys.
    weights : mapping of str to Weight
    """
    if isinstance(source, str) and source == "demo":
        source = DEMO
    if isinstance(source, (bytes, bytearray, memoryview)):
        magic = bytes(source[:4])
    else:
        with open(source, "rb") as file:
            magic = file.read(4)
    if magic[:4] != b"GGUF" and _is_llama2c(source, magic):
        metadata, weights = read_llama2c(source, mmap=mmap)
        return {**metadata, "tinyllm.source": "llama2.c"}, weights
    file_ = GGUF(source, mmap=mmap)
    return file_.metadata, file_.tensors


def _is_llama2c(source: Any, magic: bytes) -> bool:
    """Whether a file that is no GGUF looks like a llama2.c checkpoint rather than a broken GGUF."""
    named = not isinstance(source, (bytes, bytearray, memoryview)) and str(
        os.fspath(source)
    ).endswith(".bin")
    return named or magic == b"24ka" or (len(magic) == 4 and 0 < magic[0] and magic[2:] == b"\0\0")
