"""Reading and writing files of named arrays: ``.safetensors`` and ``.npz``.

A safetensors file has 8 bytes of header length, a JSON header, then the data
(https://github.com/huggingface/safetensors, section "Format"). An npz file is an uncompressed zip
file of ``.npy`` files (numpy.lib.format). Both also hold a mapping from str to str: safetensors in
the header's ``__metadata__``, npz as JSON in the bytes of an array named ``__metadata__``.
"""

from __future__ import annotations

import io
import json
import math
import os
import struct
import zipfile
from collections.abc import Callable, Iterator, Mapping
from typing import Any, BinaryIO, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from .._core import File
from ..errors import FormatError, wrong
from .atomic import write_atomically
from .kinds import START, Candidate, kind_error
from .paths import first_bytes, regular_file

__all__ = [
    "Array",
    "ArraySource",
    "SafetensorsArrays",
    "StoredArray",
    "bad_field",
    "check_format",
    "parse_json",
    "read_arrays",
    "read_safetensors",
    "read_token_ids",
    "write_arrays",
    "write_safetensors",
]

Array: TypeAlias = npt.NDArray[Any]

#: safetensors' names of dtypes.
_DTYPES = {
    "F64": "<f8",
    "F32": "<f4",
    "F16": "<f2",
    "I64": "<i8",
    "I32": "<i4",
    "I16": "<i2",
    "I8": "|i1",
    "U64": "<u8",
    "U32": "<u4",
    "U16": "<u2",
    "U8": "|u1",
    "BOOL": "|b1",
    # converted to float32 when they are read
    "BF16": "<u2",
    "F8_E4M3": "|u1",
    "F8_E5M2": "|u1",
    "F8_E8M0": "|u1",
}
_WIDENED = ("BF16", "F8_E4M3", "F8_E5M2", "F8_E8M0")
_NAMES = {value: key for key, value in _DTYPES.items() if key not in _WIDENED}

#: What an npz file may unpack to: this many bytes, and this many times its own size.
_UNPACKED_BYTES = 16 << 20
_UNPACKED_TIMES = 100

#: Values of a mapped file that are read at a time.
_PART = 1 << 22

#: Largest header in bytes, by the specification.
_HEADER_LIMIT = 100_000_000


def _ending(path: str | os.PathLike[str]) -> str:
    ending = os.path.splitext(os.fsdecode(path))[1].lower()
    if ending not in (".safetensors", ".npz"):
        raise ValueError(
            f"path is {os.fsdecode(path)!r}; expected a name that ends in .safetensors or .npz"
        )
    return ending


def write_arrays(
    path: str | os.PathLike[str], arrays: Mapping[str, Array], metadata: Mapping[str, str]
) -> None:
    """Write arrays to a ``.safetensors`` or ``.npz`` file. The file's ending chooses the format.

    Parameters
    ----------
    path : str or os.PathLike
        An existing file is replaced when the new one is complete.
    arrays : mapping of str to numpy.ndarray
    metadata : mapping of str to str

    Raises
    ------
    ValueError
        If `path` has another ending.
    OSError
        If the file cannot be written.

    Examples
    --------
    >>> import numpy as np
    >>> from tinyllm.files.arrays import read_arrays, write_arrays
    >>> write_arrays("a.safetensors", {"x": np.eye(2)}, {"by": "hand"})
    >>> read_arrays("a.safetensors")[1]
    {'by': 'hand'}
    """
    write = {".safetensors": _write_safetensors, ".npz": _write_npz}[_ending(path)]
    write_atomically(path, lambda file: write(file, arrays, metadata))


def _write_safetensors(
    file: BinaryIO, arrays: Mapping[str, Array], metadata: Mapping[str, str]
) -> None:
    def reader(array: Array) -> Callable[[], Array]:
        return lambda: np.ascontiguousarray(array, array.dtype.newbyteorder("<"))

    sources = {
        name: ArraySource(_NAMES[array.dtype.newbyteorder("<").str], array.shape, reader(array))
        for name, array in arrays.items()
    }
    _write_sources(file, sources, metadata)


def _write_sources(
    file: BinaryIO, sources: Mapping[str, ArraySource], metadata: Mapping[str, str]
) -> None:
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    offset = 0
    for name, source in sources.items():
        header[name] = {
            "dtype": source.dtype,
            "shape": list(source.shape),
            "data_offsets": [offset, offset + source.nbytes],
        }
        offset += source.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 64 + 56)  # aligns the data to 64 bytes
    file.write(struct.pack("<Q", len(text)) + text)
    for name, source in sources.items():
        data = source.read()
        if data.nbytes != source.nbytes:
            raise ValueError(f"{name} has {data.nbytes} bytes; expected {source.nbytes}")
        file.write(data.reshape(-1).view(np.uint8).data if data.size else b"")


class ArraySource(NamedTuple):
    """An array that is computed when it is written, so that memory holds one at a time.

    Attributes
    ----------
    dtype : str
        safetensors' name, for example ``"BF16"``.
    shape : tuple of int
    read : callable
        Returns the values, contiguous and little-endian, or their bytes.
    """

    dtype: str
    shape: tuple[int, ...]
    read: Callable[[], Array]

    @property
    def nbytes(self) -> int:
        """Bytes of the values."""
        return math.prod(self.shape) * np.dtype(_DTYPES[self.dtype]).itemsize


def write_safetensors(
    path: str | os.PathLike[str],
    sources: Mapping[str, ArraySource],
    metadata: Mapping[str, str],
) -> None:
    """Write a ``.safetensors`` file, one array after the other.

    Parameters
    ----------
    path : str or os.PathLike
        An existing file is replaced when the new one is complete.
    sources : mapping of str to ArraySource
    metadata : mapping of str to str

    Raises
    ------
    OSError
        If the file cannot be written.

    Examples
    --------
    >>> import numpy as np
    >>> from tinyllm.files.arrays import ArraySource, read_arrays, write_safetensors
    >>> source = ArraySource("F32", (2,), lambda: np.float32([1, 2]))
    >>> write_safetensors("a.safetensors", {"x": source}, {})
    >>> read_arrays("a.safetensors")[0]["x"]
    array([1., 2.], dtype=float32)
    """
    write_atomically(path, lambda file: _write_sources(file, sources, metadata))


def _write_npz(file: BinaryIO, arrays: Mapping[str, Array], metadata: Mapping[str, str]) -> None:
    text = np.frombuffer(json.dumps(metadata).encode(), np.uint8)
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
        for name, array in {"__metadata__": text, **arrays}.items():
            entry = zipfile.ZipInfo(f"{name}.npy")  # without a date: equal traces, equal files
            with archive.open(entry, "w", force_zip64=True) as member:
                np.lib.format.write_array(member, np.asarray(array), allow_pickle=False)


def read_arrays(
    path: str | os.PathLike[str],
) -> tuple[Mapping[str, Array], Mapping[str, str]]:
    """Open a ``.safetensors`` or ``.npz`` file. Its first bytes tell the format.

    Parameters
    ----------
    path : str or os.PathLike

    Returns
    -------
    arrays : mapping of str to numpy.ndarray
        Arrays are read on first use, and kept. Those of a safetensors file are
        `SafetensorsArrays`.
    metadata : mapping of str to str
        Empty if the file has none.

    Raises
    ------
    tinyllm.FormatError
        If the file has neither format, or is damaged.
    OSError
        If the file cannot be read.

    Examples
    --------
    >>> import numpy as np
    >>> from tinyllm.files.arrays import read_arrays
    >>> np.savez("a.npz", x=np.eye(2))
    >>> arrays, metadata = read_arrays("a.npz")
    >>> arrays["x"].shape
    (2, 2)
    """
    magic = first_bytes(path)
    try:
        if magic[:2] == b"PK":
            return _read_npz(os.fsdecode(path))
        stored, metadata = _read_safetensors(os.fsdecode(path))
        return SafetensorsArrays(stored), metadata
    except FormatError as error:
        error.path = os.fsdecode(path)
        raise


def bad_field(field: str, value: object, expected: str) -> FormatError:
    """Return the FormatError for a field with a wrong value. A long value is shortened."""
    text = repr(value)
    return wrong(field, text if len(text) <= 80 else text[:77] + "...", expected)


def parse_json(text: bytes | str, field: str) -> Any:
    """Return parsed JSON from a file. Duplicate keys are an error, too."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        table = dict(pairs)
        if len(table) != len(pairs):
            raise bad_field(field, "an object with a duplicate key", "every key once")
        return table

    try:
        return json.loads(text, object_pairs_hook=unique)
    except FormatError:
        raise
    except (ValueError, RecursionError) as error:
        raise FormatError(
            f"{field} is not valid JSON: {error}", field=field, expected="JSON in UTF-8"
        ) from None


class StoredArray(NamedTuple):
    """An array of a safetensors file, not yet read.

    Attributes
    ----------
    dtype : str
        The format's name of the dtype, for example ``"BF16"``.
    shape : tuple of int
    raw : memoryview or numpy.ndarray
        The bytes: a read-only view of the mapped file.
    file : File, optional
        The mapped file.

    Examples
    --------
    >>> import numpy as np
    >>> from tinyllm.files.arrays import StoredArray
    >>> StoredArray("F32", (2,), np.float32([1, 2]).view(np.uint8)).read()
    array([1., 2.], dtype=float32)
    """

    dtype: str
    shape: tuple[int, ...]
    raw: memoryview | npt.NDArray[np.uint8]
    file: File | None = None

    def read(self) -> Array:
        """Return the array, read-only. bfloat16 and 8 bits become float32, which holds them.

        It is a copy, because a view of a file that becomes shorter would show zeros.
        """
        dtype = np.dtype(_DTYPES[self.dtype])
        size = math.prod(self.shape)
        array: Array = np.empty(size, "<f4" if self.dtype in _WIDENED else dtype)
        raw = np.frombuffer(self.raw, np.uint8) if size else np.empty(0, np.uint8)
        for start in range(0, size, _PART):
            part = array[start : start + _PART]
            stored = raw[start * dtype.itemsize :][: part.size * dtype.itemsize]
            if self.dtype not in _WIDENED:
                part.view(np.uint8)[:] = stored
            elif self.dtype == "BF16":
                part.view("<u4")[:] = stored.view(dtype)
                part.view("<u4")[:] <<= 16
            else:
                part[:] = _float8(self.dtype)[stored]
            if size > _PART:
                self.forget()
        if self.file is not None:
            self.file.check()
        array = array.reshape(self.shape)
        array.flags.writeable = False
        return array

    def forget(self) -> None:
        """Tell the system that the pages of the mapped file are not needed for now.

        They are read again on the next use. A program that walks through a large file once would
        otherwise hold all of it in memory, as far as there is room.
        """
        if self.file is not None:
            self.file.forget()


def _float8(dtype: str) -> npt.NDArray[np.float32]:
    """Return the values of the 256 bytes of an 8-bit format (OCP 8-bit Floating Point; MX)."""
    byte = np.arange(256)
    if dtype == "F8_E5M2":  # the upper half of a float16
        return (byte << 8).astype(np.uint16).view(np.float16).astype(np.float32)
    if dtype == "F8_E8M0":
        values = np.ldexp(np.float32(1), np.minimum(byte, 254) - 127)
        return np.where(byte == 255, np.float32(np.nan), values)
    exponent, mantissa = byte >> 3 & 15, byte & 7
    whole = np.where(exponent > 0, 8 + mantissa, mantissa)
    values = np.ldexp(whole.astype(np.float32), np.maximum(exponent, 1) - 10)
    values = np.where(byte & 127 == 127, np.float32(np.nan), values)
    return np.where(byte < 128, values, -values).astype(np.float32)


class SafetensorsArrays(Mapping[str, Array]):
    """The arrays of a safetensors file. Each is read on first use, and kept.

    Parameters
    ----------
    stored : mapping of str to StoredArray

    Examples
    --------
    >>> import numpy as np
    >>> from tinyllm.files.arrays import SafetensorsArrays, StoredArray
    >>> stored = StoredArray("F32", (2,), np.float32([1, 2]).view(np.uint8))
    >>> SafetensorsArrays({"x": stored})["x"]
    array([1., 2.], dtype=float32)
    """

    def __init__(self, stored: Mapping[str, StoredArray]) -> None:
        self._stored = stored
        self._kept: dict[str, Array] = {}

    def __getitem__(self, name: str) -> Array:
        if name not in self._kept:
            self._kept[name] = self._stored[name].read()
        return self._kept[name]

    def outline(self, name: str) -> Array:
        """Return zeros in the shape and dtype of an array, without reading it."""
        stored = self._stored[name]
        dtype = "<f4" if stored.dtype in _WIDENED else _DTYPES[stored.dtype]
        return np.broadcast_to(np.zeros((), dtype), stored.shape)

    def __iter__(self) -> Iterator[str]:
        return iter(self._stored)

    def __len__(self) -> int:
        return len(self._stored)

    def __contains__(self, name: object) -> bool:
        return name in self._stored


def read_safetensors(
    path: str | os.PathLike[str],
) -> tuple[dict[str, StoredArray], Mapping[str, str]]:
    """Open a ``.safetensors`` file. Only its header is read.

    Parameters
    ----------
    path : str or os.PathLike

    Returns
    -------
    arrays : dict of str to StoredArray
    metadata : mapping of str to str
        Empty if the file has none.

    Raises
    ------
    tinyllm.FormatError
        If the file is damaged.
    OSError
        If the file cannot be read.

    Examples
    --------
    >>> import numpy as np
    >>> from tinyllm.files.arrays import read_safetensors, write_arrays
    >>> write_arrays("b.safetensors", {"x": np.eye(2, dtype=np.float32)}, {})
    >>> read_safetensors("b.safetensors")[0]["x"].dtype
    'F32'
    """
    try:
        return _read_safetensors(regular_file(path))
    except FormatError as error:
        error.path = os.fsdecode(path)
        raise


def _read_safetensors(path: str) -> tuple[dict[str, StoredArray], Mapping[str, str]]:
    size = os.path.getsize(path)
    with open(path, "rb") as file:
        start = file.read(8)
        length = int.from_bytes(start, "little")
        if len(start) < 8 or length > min(size - 8, _HEADER_LIMIT):
            other = kind_error(Candidate(first_bytes(path, START)), path)
            if other is not None:  # a Git LFS pointer, for example
                raise other
            raise bad_field(
                "header length", length, f"at most the {max(size - 8, 0)} bytes after it"
            )
        header = parse_json(file.read(length), "header")
    if not isinstance(header, dict):
        raise bad_field("header", header, "an object")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise bad_field("__metadata__", metadata, "an object whose values are strings")
    mapped = File(path)
    data = memoryview(mapped)[8 + length :]
    _check_overlaps(header)
    return {name: _stored(name, entry, data, mapped) for name, entry in header.items()}, metadata


def _check_overlaps(header: Mapping[str, Any]) -> None:
    """Refuse tensors that share bytes, because a small file could take any amount of memory."""
    before, stop = "", 0
    for name, (start, end) in sorted(_spans(header), key=lambda item: item[1]):
        if start < stop:
            raise FormatError(
                f"tensors {before!r:.80} and {name!r:.80} overlap: the second starts at byte "
                f"{start} of the data; expected {stop} or more",
                field=f"data_offsets of tensor {name!r:.80}",
                value=[start, end],
                expected=f"a start of {stop} or more",
            )
        before, stop = name, end


def _spans(header: Mapping[str, Any]) -> Iterator[tuple[str, list[int]]]:
    """Yield the places of tensors that are not empty. `_stored` refuses what is no place."""
    for name, entry in header.items():
        span = entry.get("data_offsets") if isinstance(entry, dict) else None
        if isinstance(span, list) and _sizes(span) and len(span) == 2 and span[0] < span[1]:
            yield name, span


def _stored(name: str, entry: Any, data: memoryview, file: File) -> StoredArray:
    field = f"tensor {name!r:.80}"
    if not isinstance(entry, dict):
        raise bad_field(field, entry, "an object")
    kind = _DTYPES.get(entry.get("dtype", "")) if isinstance(entry.get("dtype"), str) else None
    if kind is None:
        raise bad_field(f"dtype of {field}", entry.get("dtype"), f"one of {', '.join(_DTYPES)}")
    shape: Any = entry.get("shape")
    span: Any = entry.get("data_offsets")
    if not _sizes(shape) or len(shape) > 32:
        raise bad_field(f"shape of {field}", shape, "up to 32 sizes")
    if not _sizes(span) or len(span) != 2 or not span[0] <= span[1] <= len(data):
        raise bad_field(f"data_offsets of {field}", span, f"two offsets into {len(data)} bytes")
    nbytes = math.prod(shape) * np.dtype(kind).itemsize
    if nbytes != span[1] - span[0]:
        raise bad_field(f"data_offsets of {field}", span, f"{nbytes} bytes")
    if math.prod(n for n in shape if n) >= 2**59:  # NumPy's limit, also for empty arrays
        raise bad_field(f"shape of {field}", shape, "fewer than 2**59 values")
    return StoredArray(entry["dtype"], tuple(shape), data[span[0] : span[1]], file)


def _sizes(value: Any) -> bool:
    return isinstance(value, list) and all(type(v) is int and 0 <= v < 2**62 for v in value)


class _Members(Mapping[str, Array]):
    """The arrays of an npz file. Each is read on first use."""

    def __init__(self, archive: zipfile.ZipFile, path: str) -> None:
        self._archive = archive
        self._path = path
        self._infos = {
            info.filename.removesuffix(".npy"): info
            for info in archive.infolist()
            if info.filename.endswith(".npy")
        }
        if len(self._infos) != sum(i.filename.endswith(".npy") for i in archive.infolist()):
            raise bad_field("zip directory", "a list with a duplicate name", "every name once")
        size = sum(info.file_size for info in archive.infolist())
        limit = _UNPACKED_BYTES + _UNPACKED_TIMES * os.path.getsize(path)
        if size > limit:
            expected = f"at most {limit:,}; save the arrays without compression"
            raise bad_field("unpacked size of the members", f"{size:,} bytes", expected)
        self._kept: dict[str, Array] = {}

    def __getitem__(self, name: str) -> Array:
        if name not in self._kept:
            info = self._infos[name]
            try:
                self._kept[name] = self._read(info)
            except FormatError as error:
                error.path = self._path
                raise
            except MemoryError:
                raise
            except Exception as error:  # zipfile and NumPy raise a dozen kinds for damaged files
                message = f"member {info.filename!r} cannot be read: {error}"
                raise FormatError(message, path=self._path, field=info.filename) from None
        return self._kept[name]

    def _read(self, info: zipfile.ZipInfo) -> Array:
        with self._archive.open(info) as member:
            version = np.lib.format.read_magic(member)
            if version not in ((1, 0), (2, 0), (3, 0)):
                raise bad_field(info.filename, version, "version 1, 2 or 3 of the npy format")
            read_header: Any = {
                (1, 0): np.lib.format.read_array_header_1_0,
            }.get(version, np.lib.format.read_array_header_2_0)
            try:
                shape, fortran, dtype = read_header(member)
            except MemoryError:  # of Python's parser, not for the array
                raise bad_field(info.filename, "a header too complex", "a dict") from None
            if dtype.hasobject or dtype.kind not in "fiub":
                raise bad_field(f"dtype of {info.filename}", str(dtype), "numbers")
            nbytes = math.prod(shape) * dtype.itemsize
            left = info.file_size - member.tell()
            if nbytes != left or any(size < 0 for size in shape):
                raise bad_field(f"shape of {info.filename}", shape, f"{left} bytes of {dtype}")
            # Read in parts, because a damaged member may claim a huge size.
            parts = io.BytesIO()
            while part := member.read(1 << 24):
                parts.write(part)
            if parts.tell() != nbytes:
                raise bad_field(info.filename, f"{parts.tell()} bytes", f"{nbytes} bytes")
        array = np.frombuffer(parts.getbuffer(), dtype)
        array = array.reshape(shape[::-1]).T if fortran else array.reshape(shape)
        array.flags.writeable = False
        return array

    def __iter__(self) -> Iterator[str]:
        return iter(self._infos)

    def __len__(self) -> int:
        return len(self._infos)

    def __contains__(self, name: object) -> bool:
        return name in self._infos


def _read_npz(path: str) -> tuple[Mapping[str, Array], Mapping[str, str]]:
    try:
        archive = zipfile.ZipFile(path)
    except MemoryError:
        raise
    except Exception as error:
        raise FormatError(f"the file is not a zip file: {error}", field="zip directory") from None
    members = _Members(archive, path)
    metadata: Any = {}
    if "__metadata__" in members:
        array = members["__metadata__"]
        del members._infos["__metadata__"]
        metadata = parse_json(array.tobytes(), "__metadata__")
        if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
            raise bad_field("__metadata__", metadata, "an object whose values are strings")
    return members, metadata


def check_format(metadata: Mapping[str, str], name: str) -> None:
    """Check that a file has one of tinyllm's own formats, in version 1.

    Parameters
    ----------
    metadata : mapping of str to str
        The metadata that `read_arrays` returned.
    name : str
        The expected format: ``"tinyllm.trace"`` or ``"tinyllm.session"``.

    Raises
    ------
    tinyllm.FormatError
        If the file has another format or version.
    """
    found = metadata.get("format")
    if found == name and metadata.get("version") == "1":
        return
    if found == name:
        raise bad_field("version", metadata.get("version"), "'1'")
    hint = {
        "tinyllm.trace": "a trace, which tinyllm.read opens",
        "tinyllm.session": "a session, which Model.session opens",
    }.get(found or "", "not written by tinyllm")
    raise FormatError(
        f"the file is {hint}; expected {name!r} as the format in its metadata",
        field="format",
        value=found,
        expected=name,
    )


def read_token_ids(metadata: Mapping[str, str], key: str = "tokens") -> npt.NDArray[np.int32]:
    """Return a metadata entry as int32 ids of tokens. -1 stands for an unknown token."""
    ids = parse_json(metadata.get(key, "null"), key)
    if not isinstance(ids, list) or not all(type(i) is int and -1 <= i < 2**31 for i in ids):
        raise bad_field(key, ids, "a list of token ids")
    return np.asarray(ids, np.int32)
