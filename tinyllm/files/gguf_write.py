"""Writing GGUF files."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from .. import _core
from .._core import Weight
from .atomic import write_atomically
from .gguf import Metadata

__all__ = ["TensorSource", "write_gguf"]

_VERSION = 3
# The limits of the reader.
_MAX_KEY = 65535  # bytes
_MAX_NAME = 63  # bytes
_MAX_AXES = 4
_MAX_DEPTH = 8  # of nested arrays

# Metadata types that hold numbers, and their dtypes.
_DTYPES: dict[str, np.dtype[Any]] = {
    "UINT8": np.dtype("<u1"),
    "INT8": np.dtype("<i1"),
    "UINT16": np.dtype("<u2"),
    "INT16": np.dtype("<i2"),
    "UINT32": np.dtype("<u4"),
    "INT32": np.dtype("<i4"),
    "UINT64": np.dtype("<u8"),
    "INT64": np.dtype("<i8"),
    "FLOAT32": np.dtype("<f4"),
    "FLOAT64": np.dtype("<f8"),
    "BOOL": np.dtype("?"),
}
_IDS = {name: kind for name, (kind, _) in _core.metadata_types().items()}

# Tensor types that are not quantized, and their dtypes.
_TENSOR_DTYPES: dict[str, np.dtype[Any]] = {
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "F64": np.dtype("<f8"),
    "I8": np.dtype("<i1"),
    "I16": np.dtype("<i2"),
    "I32": np.dtype("<i4"),
    "I64": np.dtype("<i8"),
}
_TENSOR_TYPES = _core.tensor_types()


@dataclass(frozen=True)
class TensorSource:
    """A tensor that is computed when it is written, so that memory holds one tensor at a time.

    Parameters
    ----------
    shape : sequence of int
        The shape in NumPy's order: ``(out, in)`` for a matrix.
    type : str
        ggml's name of the tensor type, for example ``"Q8_0"``.
    callable : callable
        Called once, without arguments, when the tensor is written. It must return an array of
        this shape in the type's dtype (float32 for F32, and so on), a :class:`tinyllm.Weight` of
        this shape and type, or the bytes of the blocks as a bytes-like object or uint8 array.

    Examples
    --------
    >>> import numpy as np, tinyllm
    >>> source = tinyllm.TensorSource((2, 3), "F32", lambda: np.ones((2, 3), np.float32))
    >>> tinyllm.write_gguf("m.gguf", {}, {"w": source})
    """

    shape: Sequence[int]
    type: str
    callable: Callable[[], Any]


def write_gguf(
    path: str | os.PathLike[str],
    metadata: Mapping[str, Any],
    tensors: Mapping[str, npt.NDArray[Any] | Weight | TensorSource],
    *,
    alignment: int | None = None,
) -> None:
    """Write a GGUF file, version 3.

    The file appears at `path` only when it is complete and on disk. Until then, and after an
    error, an existing file stays as it is. Everything is checked before writing starts, except
    the results of a :class:`TensorSource`.

    Parameters
    ----------
    path : str or os.PathLike
        The file to write.
    metadata : Mapping of str to object
        Keys and values, written in this order. A bool is stored as BOOL, an int as the first of
        UINT32, INT32, UINT64, INT64 that holds it, and a float as FLOAT32. A str or bytes is
        stored as STRING, with lone surrogates turned back into bytes. A NumPy scalar or
        one-dimensional array keeps its type. A list is stored as an ARRAY of the type that holds
        all its items. A tuple ``(type name, value)`` sets the type: ``("UINT64", 5)``,
        ``("ARRAY[INT32]", [])``. A :class:`tinyllm.files.gguf.Metadata` keeps its types.
    tensors : Mapping of str to numpy.ndarray, Weight or TensorSource
        Names and tensors, written in this order. An array of float64, float32, float16, int8,
        int16, int32 or int64 is stored as F64, F32, F16, I8, I16, I32 or I64. A Weight is copied
        byte for byte.
    alignment : int, optional
        Alignment of the tensor data in bytes, a power of two. It replaces the metadata's
        ``general.alignment``. Default: the alignment in the metadata, or 32.

    Raises
    ------
    ValueError
        If a key or name is empty, too long, has a zero byte or occurs twice, if a value does not
        fit its type, or if a shape does not fit its type or the data.
    TypeError
        If GGUF has no type for a value.
    OSError
        If the file cannot be written.

    Examples
    --------
    >>> import numpy as np, tinyllm
    >>> tinyllm.write_gguf(
    ...     "m.gguf",
    ...     {"general.architecture": "llama", "llama.block_count": 1, "ids": np.int32([1, 2])},
    ...     {"token_embd.weight": np.zeros((8, 4), np.float32)},
    ... )
    """
    entries, alignment = _encode_metadata(metadata, alignment)
    plans = [_plan(name, tensor) for name, tensor in tensors.items()]
    _check_unique("tensors", [plan.name for plan in plans])

    header = [b"GGUF", struct.pack("<IQQ", _VERSION, len(plans), len(entries))]
    for key, value in entries.items():
        header += [_with_length(key), value]
    offset = 0
    for plan in plans:
        dims = tuple(reversed(plan.shape))
        header += [
            _with_length(plan.name),
            struct.pack(f"<I{len(dims)}Q", len(dims), *dims),
            struct.pack("<IQ", _TENSOR_TYPES[plan.type][0], offset),
        ]
        offset += -(-plan.nbytes // alignment) * alignment

    def write(file: BinaryIO) -> None:
        file.write(b"".join(header))
        if plans:  # a file without tensors ends with its metadata
            _pad(file, alignment)
        for plan in plans:
            plan.write(file)
            _pad(file, alignment)

    write_atomically(path, write)


def _pad(file: BinaryIO, alignment: int) -> None:
    file.write(bytes(-file.tell() % alignment))


# ---- names ----


def _with_length(text: bytes) -> bytes:
    return struct.pack("<Q", len(text)) + text


def _encode_name(argument: str, name: object, most: int) -> bytes:
    if not isinstance(name, str):
        raise TypeError(f"{argument}: a name is {name!r}; expected str")
    encoded = _encode_text(f"{argument}[{name!r}]", name)
    if not 1 <= len(encoded) <= most or b"\0" in encoded:
        raise ValueError(
            f"{argument}: the name {name!r} has {len(encoded)} bytes; "
            f"expected 1 to {most} without a zero byte"
        )
    return encoded


def _encode_text(where: str, text: Any) -> bytes:
    if isinstance(text, bytes):
        return bytes(text)
    if not isinstance(text, str):
        raise TypeError(f"{where} is {text!r}; expected str or bytes")
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError as error:
        raise ValueError(f"{where}: {error}") from None


def _check_unique(argument: str, names: list[bytes]) -> None:
    seen = set()
    for name in names:
        if name in seen:  # different str can encode to the same bytes
            raise ValueError(f"{argument}: the name {name!r} occurs twice")
        seen.add(name)


# ---- metadata ----


def _encode_metadata(
    metadata: Mapping[str, Any], alignment: int | None
) -> tuple[dict[bytes, bytes], int]:
    """Return the encoded keys and values, each value with its type, and the alignment."""
    names = [_encode_name("metadata", key, _MAX_KEY) for key in metadata]
    _check_unique("metadata", names)
    if isinstance(metadata, Metadata):
        entries = {name: metadata._stored(key) for name, key in zip(names, metadata, strict=True)}
    else:
        entries = {
            name: _encode_value(f"metadata[{key!r}]", value)
            for name, (key, value) in zip(names, metadata.items(), strict=True)
        }
    if alignment is not None:
        entries[b"general.alignment"] = struct.pack("<II", _IDS["UINT32"], _power_of_two(alignment))
    stored = entries.get(b"general.alignment")
    if stored is None:
        return entries, 32
    if stored[:4] != struct.pack("<I", _IDS["UINT32"]):
        raise ValueError("metadata['general.alignment'] has another type; expected UINT32")
    return entries, _power_of_two(*struct.unpack("<I", stored[4:]))


def _power_of_two(alignment: int) -> int:
    if (
        isinstance(alignment, bool)
        or not isinstance(alignment, int)
        or not 1 <= alignment <= 2**31
        or alignment & (alignment - 1)
    ):
        raise ValueError(f"alignment is {alignment!r}; expected a power of two up to 2**31")
    return alignment


def _encode_value(where: str, value: Any) -> bytes:
    """Return the encoded type and value."""
    if isinstance(value, tuple):
        if len(value) != 2 or not isinstance(value[0], str):
            raise TypeError(f"{where} is {value!r}; expected a tuple (type name, value)")
        name, value = value
    else:
        name = _infer(where, value)
    if not name.startswith("ARRAY["):
        return struct.pack("<I", _known_type(where, name)) + _encode_scalar(where, name, value)
    return struct.pack("<I", _IDS["ARRAY"]) + _encode_array(where, name, value, 1)


def _known_type(where: str, name: str) -> int:
    if name not in _IDS or name == "ARRAY":
        known = ", ".join(kind for kind in _IDS if kind != "ARRAY")
        raise ValueError(f"{where}: type is {name!r}; expected {known}, or ARRAY[...] of one")
    return _IDS[name]


def _encode_scalar(where: str, name: str, value: Any) -> bytes:
    if name == "STRING":
        return _with_length(_encode_text(where, value))
    if isinstance(value, np.ndarray) and value.ndim == 0:
        value = value[()]
    return _encode_numbers(where, name, [value])


def _encode_array(where: str, name: str, value: Any, depth: int) -> bytes:
    """Return the encoded element type, length and elements."""
    if depth > _MAX_DEPTH:
        raise ValueError(f"{where}: the nesting is too deep; expected at most {_MAX_DEPTH} arrays")
    if isinstance(value, str | bytes) or not isinstance(value, Sequence | np.ndarray):
        raise TypeError(f"{where} is {value!r}; expected a sequence or an array for {name}")
    if isinstance(value, np.ndarray) and value.ndim != 1:
        raise ValueError(f"{where} has {value.ndim} axes; expected an array with one axis")
    element = name.removeprefix("ARRAY[").removesuffix("]")
    if element == "ARRAY" or element.startswith("ARRAY["):
        head = struct.pack("<IQ", _IDS["ARRAY"], len(value))
        return head + b"".join(
            _encode_inner(f"{where}[{i}]", element, item, depth + 1) for i, item in enumerate(value)
        )
    head = struct.pack("<IQ", _known_type(where, element), len(value))
    if element == "STRING":
        return head + b"".join(
            _with_length(_encode_text(f"{where}[{i}]", item)) for i, item in enumerate(value)
        )
    return head + _encode_numbers(where, element, value)


def _encode_inner(where: str, name: str, value: Any, depth: int) -> bytes:
    """Return an encoded array in an array. `name` may be "ARRAY", without an element type."""
    if isinstance(value, tuple) and len(value) == 2 and isinstance(value[0], str):
        name, value = value
    elif name == "ARRAY":
        # The reader returns an empty list both for an empty ARRAY[STRING] and ARRAY[ARRAY].
        empty = isinstance(value, list) and not value
        name = "ARRAY[STRING]" if empty else _infer(where, value)
    if not name.startswith("ARRAY["):
        raise TypeError(f"{where} is {value!r}; expected an array")
    return _encode_array(where, name, value, depth)


def _encode_numbers(where: str, name: str, values: Sequence[Any] | npt.NDArray[Any]) -> bytes:
    dtype = _DTYPES[name]
    if isinstance(values, np.ndarray) and values.dtype == dtype.newbyteorder("="):
        return values.astype(dtype).tobytes()
    items = values.tolist() if isinstance(values, np.ndarray) else values
    if dtype.kind == "b":
        for item in items:
            if not isinstance(item, bool | np.bool_):
                raise TypeError(f"{where}: {item!r} does not fit {name}; expected a bool")
        return np.array(items, dtype).tobytes()
    allowed = (int, np.integer) if dtype.kind in "iu" else (int, float, np.integer, np.floating)
    for item in items:
        if isinstance(item, bool) or not isinstance(item, allowed):
            raise TypeError(f"{where}: {item!r} does not fit {name}; expected a number")
    if dtype.kind in "iu":
        limits = np.iinfo(dtype)
        for item in items:
            if not limits.min <= item <= limits.max:
                raise ValueError(f"{where}: {item} does not fit {name}")
        return np.array([int(item) for item in items], dtype).tobytes()
    with np.errstate(over="ignore"):
        exact = np.array([float(item) for item in items], np.float64)
        stored = exact.astype(dtype)
    lost = np.isfinite(exact) & ~np.isfinite(stored)
    if lost.any():
        raise ValueError(f"{where}: {exact[lost][0]} does not fit {name}")
    return stored.tobytes()


def _infer(where: str, value: Any) -> str:
    """Return the type that is chosen for a value without an explicit type."""
    if isinstance(value, str | bytes):
        return "STRING"
    if isinstance(value, np.generic) or (isinstance(value, np.ndarray) and value.ndim == 0):
        return _dtype_name(where, value.dtype)
    if isinstance(value, np.ndarray):
        if value.dtype.kind in "US":
            return "ARRAY[STRING]"
        return f"ARRAY[{_dtype_name(where, value.dtype)}]"
    if isinstance(value, bool):
        return "BOOL"
    if isinstance(value, int):
        return _int_name(where, value, value)
    if isinstance(value, float):
        return "FLOAT32"
    if isinstance(value, list):
        return f"ARRAY[{_infer_items(where, value)}]"
    if isinstance(value, tuple) and len(value) == 2 and isinstance(value[0], str):
        return value[0]
    raise TypeError(f"{where}: GGUF has no type for {type(value).__name__}")


def _infer_items(where: str, items: list[Any]) -> str:
    if not items:
        raise ValueError(
            f"{where} is an empty list, which has no type; expected (type name, []), for example "
            "('ARRAY[STRING]', [])"
        )
    names = {_infer(where, item) for item in items}
    if all(name.startswith("ARRAY") for name in names):
        return "ARRAY"
    if len(names) == 1:
        return names.pop()
    if all(isinstance(item, int) and not isinstance(item, bool) for item in items):
        return _int_name(where, min(items), max(items))
    if all(isinstance(item, int | float) and not isinstance(item, bool) for item in items):
        return "FLOAT32"
    raise TypeError(f"{where} has items of types {sorted(names)}; expected items of one type")


def _int_name(where: str, low: int, high: int) -> str:
    for name in ("UINT32", "INT32", "UINT64", "INT64"):
        limits = np.iinfo(_DTYPES[name])
        if limits.min <= low and high <= limits.max:
            return name
    raise ValueError(f"{where}: {high if low >= 0 else low} does not fit 64 bits")


def _dtype_name(where: str, dtype: np.dtype[Any]) -> str:
    for name, known in _DTYPES.items():
        if known.newbyteorder("=") == dtype.newbyteorder("="):
            return name
    raise TypeError(f"{where}: GGUF has no type for the dtype {dtype}")


# ---- tensors ----


@dataclass
class _Plan:
    """A tensor to write: its entry in the header, and a function that writes its bytes."""

    name: bytes
    shape: tuple[int, ...]
    type: str
    nbytes: int
    write: Callable[[BinaryIO], None]


def _plan(name: object, tensor: Any) -> _Plan:
    encoded = _encode_name("tensors", name, _MAX_NAME)
    where = f"tensors[{name!r}]"
    if isinstance(tensor, np.generic):  # NumPy turns arrays without axes into scalars
        tensor = np.asarray(tensor)
    if isinstance(tensor, TensorSource):
        shape, kind = _check_shape(where, tensor.shape), tensor.type
        source = tensor.callable
        if not callable(source):
            raise TypeError(f"{where}: callable is {source!r}; expected a function")
        nbytes = _check_size(where, shape, kind)
        return _Plan(
            encoded,
            shape,
            kind,
            nbytes,
            lambda file: _write(file, _read(where, given := source(), shape, kind, nbytes), given),
        )
    if isinstance(tensor, Weight):
        shape, kind = tensor.shape, tensor.type
    elif isinstance(tensor, np.ndarray):
        shape, kind = _check_shape(where, tensor.shape), _tensor_type(where, tensor.dtype)
    else:
        raise TypeError(
            f"{where} is of type {type(tensor).__name__}; expected an array, a Weight or a "
            "TensorSource"
        )
    nbytes = _check_size(where, shape, kind)
    return _Plan(
        encoded,
        shape,
        kind,
        nbytes,
        lambda file: _write(file, _read(where, tensor, shape, kind, nbytes), tensor),
    )


def _tensor_type(where: str, dtype: np.dtype[Any]) -> str:
    for name, known in _TENSOR_DTYPES.items():
        if known.newbyteorder("=") == dtype.newbyteorder("="):
            return name
    raise TypeError(
        f"{where}: dtype is {dtype}; expected float64, float32, float16, int8, "
        "int16, int32 or int64"
    )


def _check_shape(where: str, shape: Sequence[int]) -> tuple[int, ...]:
    try:
        checked = tuple(length.__index__() for length in shape)
    except (AttributeError, TypeError):
        raise TypeError(f"{where}: shape is {shape!r}; expected a sequence of ints") from None
    if len(checked) > _MAX_AXES or min(checked, default=0) < 0:
        raise ValueError(
            f"{where}: shape is {checked}; expected at most {_MAX_AXES} axes, none negative"
        )
    return checked


def _check_size(where: str, shape: tuple[int, ...], kind: str) -> int:
    if kind not in _TENSOR_TYPES:
        raise ValueError(f"{where}: type is {kind!r}; expected one of {', '.join(_TENSOR_TYPES)}")
    _, items, block, _ = _TENSOR_TYPES[kind]
    row = shape[-1] if shape else 1
    if row % items:
        raise ValueError(
            f"{where}: shape is {shape}; expected a multiple of {items} as the last size for {kind}"
        )
    count, extent = row // items * block, row or 1
    for length in shape[:-1]:
        count *= length
        extent *= length or 1
    if extent > 2**63 // 8 - 1 or count > 2**62:
        raise ValueError(f"{where}: shape is {shape}; expected fewer than 2**60 values")
    return count


_COPY = 1 << 20  # bytes that are copied at a time
_HELD = 1 << 25  # bytes of a mapped file that are held in memory


def _write(file: BinaryIO, data: memoryview, given: Any) -> None:
    if not isinstance(given, Weight):
        file.write(data)
        return
    for start in range(0, len(data), _COPY):
        # copied first: the system call would fail on a mapped file that became shorter
        file.write(bytes(data[start : start + _COPY]))
        if start % _HELD == 0:
            given.forget()
    given.check()
    given.forget()


def _read(where: str, given: Any, shape: tuple[int, ...], kind: str, nbytes: int) -> memoryview:
    """Return the bytes of a tensor from the caller's object or the result of its callable."""
    dtype = _TENSOR_DTYPES.get(kind)
    if isinstance(given, Weight):
        if given.type != kind or given.shape != shape:
            raise ValueError(f"{where}: got {given!r}; expected type {kind} and shape {shape}")
        given = given.raw
    elif isinstance(given, np.ndarray) and given.dtype != np.uint8:
        if dtype is None or given.dtype.newbyteorder("=") != dtype.newbyteorder("="):
            expected = "uint8" if dtype is None else dtype.newbyteorder("=").name
            raise ValueError(f"{where}: got an array of {given.dtype}; expected {expected}")
        if given.shape != shape:
            raise ValueError(f"{where}: got an array of shape {given.shape}; expected {shape}")
        given = given.astype(dtype, copy=False)
    if isinstance(given, np.ndarray):
        given = np.ascontiguousarray(given).reshape(-1).view(np.uint8)
    view = memoryview(given)
    if view.nbytes != nbytes:
        raise ValueError(
            f"{where}: got {view.nbytes} bytes; expected {nbytes} for {kind} of shape {shape}"
        )
    if not view.c_contiguous:
        return memoryview(view.tobytes())
    return view.cast("B") if nbytes else memoryview(b"")
