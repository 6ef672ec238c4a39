"""Traces and sessions as files: ``.safetensors`` and ``.npz``, written and read without help.

safetensors: 8 bytes of header length, a JSON header, then the data
(https://github.com/huggingface/safetensors, section "Format"). npz: a zip file of ``.npy`` files
(numpy.lib.format), not compressed. What is not an array, tokens, config and the fingerprint of
the model, is JSON: in safetensors' ``__metadata__``, and in npz as the bytes of the array
``__metadata__``.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import math
import os
import struct
import typing
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from ..architectures.config import Config
from ..errors import FormatError
from ..files.atomic import write_atomically
from .taps import ALIASES, tap_of
from .trace import Trace

__all__ = ["fingerprint", "load_session", "read", "read_arrays", "save_session", "save_trace"]

Array = npt.NDArray[Any]

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
    "BF16": "<u2",  # widened when it is read
}
_NAMES = {value: key for key, value in _DTYPES.items() if key != "BF16"}

#: The specification's limit of a header.
_HEADER_LIMIT = 100_000_000


def fingerprint(config: Config, weights: Mapping[str, Any]) -> str:
    """Tell models apart: a hash over the config, and over every tensor's name, shape and type.

    Of each tensor's bytes up to 8 KiB enter, in eight evenly spaced parts: enough to tell one
    training step from the next, and quick for any size; it is no protection against somebody who
    builds a second model of the same fingerprint.

    Parameters
    ----------
    config : Config
    weights : mapping of str to Weight

    Returns
    -------
    str
        32 hexadecimal digits (BLAKE2b).

    Examples
    --------
    >>> import tinyllm as tl
    >>> model = tl.load()
    >>> from tinyllm.trace.saved import fingerprint
    >>> fingerprint(model.config, model.weights) == model.fingerprint
    True
    """
    digest = hashlib.blake2b(digest_size=16)
    digest.update(json.dumps(_config_values(config), sort_keys=True).encode())
    for name in sorted(weights):
        weight = weights[name]
        digest.update(json.dumps([name, list(weight.shape), weight.type]).encode())
        raw = weight.raw.reshape(-1)
        if raw.size <= 8192:
            digest.update(raw.tobytes())
        else:
            for part in range(8):
                start = (raw.size - 1024) * part // 7
                digest.update(raw[start : start + 1024].tobytes())
    return digest.hexdigest()


# ---- containers: arrays by name, and a few texts ----


def _ending(path: str | os.PathLike[str]) -> str:
    ending = os.path.splitext(os.fsdecode(path))[1].lower()
    if ending not in (".safetensors", ".npz"):
        raise ValueError(
            f"path is {os.fsdecode(path)!r}; expected a name that ends in .safetensors or .npz"
        )
    return ending


def _write(
    path: str | os.PathLike[str], arrays: Mapping[str, Array], metadata: Mapping[str, str]
) -> None:
    write = {".safetensors": _write_safetensors, ".npz": _write_npz}[_ending(path)]
    write_atomically(path, lambda file: write(file, arrays, metadata))


def _write_safetensors(
    file: BinaryIO, arrays: Mapping[str, Array], metadata: Mapping[str, str]
) -> None:
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    offset = 0
    for name, array in arrays.items():
        header[name] = {
            "dtype": _NAMES[array.dtype.newbyteorder("<").str],
            "shape": list(array.shape),
            "data_offsets": [offset, offset + array.nbytes],
        }
        offset += array.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 64 + 56)  # so that the data is aligned to 64 bytes
    file.write(struct.pack("<Q", len(text)) + text)
    for array in arrays.values():
        little = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
        file.write(little.reshape(-1).view(np.uint8).data if little.size else b"")


def _write_npz(file: BinaryIO, arrays: Mapping[str, Array], metadata: Mapping[str, str]) -> None:
    text = np.frombuffer(json.dumps(metadata).encode(), np.uint8)
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
        for name, array in {"__metadata__": text, **arrays}.items():
            entry = zipfile.ZipInfo(f"{name}.npy")  # no date: the same trace is the same file
            with archive.open(entry, "w", force_zip64=True) as member:
                np.lib.format.write_array(member, np.asarray(array), allow_pickle=False)


def read_arrays(
    path: str | os.PathLike[str],
) -> tuple[Mapping[str, Array], Mapping[str, str]]:
    """Open a ``.safetensors`` or ``.npz`` file of any origin; told apart by their first bytes.

    Parameters
    ----------
    path : str or os.PathLike

    Returns
    -------
    arrays : mapping of str to numpy.ndarray
        Read when used: views of the mapped file, or members of the zip file.
    metadata : mapping of str to str
        Empty if there is none.

    Raises
    ------
    tinyllm.FormatError
        The file is neither, or is damaged.
    OSError
        It cannot be read.

    Examples
    --------
    >>> import numpy as np
    >>> from tinyllm.trace.saved import read_arrays
    >>> np.savez("a.npz", x=np.eye(2))
    >>> arrays, metadata = read_arrays("a.npz")
    >>> arrays["x"].shape
    (2, 2)
    """
    with open(path, "rb") as file:
        magic = file.read(4)
    try:
        if magic[:2] == b"PK":
            return _read_npz(os.fsdecode(path))
        return _read_safetensors(os.fsdecode(path))
    except FormatError as error:
        error.path = os.fsdecode(path)
        raise


def _wrong(field: str, value: object, expected: str) -> FormatError:
    text = repr(value)
    text = text if len(text) <= 80 else text[:77] + "..."
    return FormatError(
        f"{field} is {text}; expected {expected}", field=field, value=text, expected=expected
    )


def _json(text: bytes | str, field: str) -> Any:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        table = dict(pairs)
        if len(table) != len(pairs):
            raise _wrong(field, "an object with a key twice", "every key once")
        return table

    try:
        return json.loads(text, object_pairs_hook=unique)
    except FormatError:
        raise
    except (ValueError, RecursionError) as error:
        raise FormatError(
            f"{field} is no JSON: {error}", field=field, expected="JSON in UTF-8"
        ) from None


def _read_safetensors(path: str) -> tuple[Mapping[str, Array], Mapping[str, str]]:
    size = os.path.getsize(path)
    with open(path, "rb") as file:
        start = file.read(8)
        length = int.from_bytes(start, "little")
        if len(start) < 8 or length > min(size - 8, _HEADER_LIMIT):
            raise _wrong("header length", length, f"at most the {max(size - 8, 0)} bytes after it")
        header = _json(file.read(length), "header")
    if not isinstance(header, dict):
        raise _wrong("header", header, "an object")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise _wrong("__metadata__", metadata, "an object of texts")
    data = np.memmap(path, np.uint8, "r") if size else np.empty(0, np.uint8)
    data = data.view(np.ndarray)[8 + length :]
    arrays = {name: _tensor(name, entry, data) for name, entry in header.items()}
    return arrays, metadata


def _tensor(name: str, entry: Any, data: npt.NDArray[np.uint8]) -> Array:
    field = f"tensor {name!r:.80}"
    if not isinstance(entry, dict):
        raise _wrong(field, entry, "an object")
    kind = _DTYPES.get(entry.get("dtype", "")) if isinstance(entry.get("dtype"), str) else None
    if kind is None:
        raise _wrong(f"dtype of {field}", entry.get("dtype"), f"one of {', '.join(_DTYPES)}")
    shape: Any = entry.get("shape")
    span: Any = entry.get("data_offsets")
    if not _sizes(shape) or len(shape) > 32:
        raise _wrong(f"shape of {field}", shape, "up to 32 sizes")
    if not _sizes(span) or len(span) != 2 or not span[0] <= span[1] <= data.size:
        raise _wrong(f"data_offsets of {field}", span, f"two offsets into {data.size} bytes")
    dtype = np.dtype(kind)
    if math.prod(shape) * dtype.itemsize != span[1] - span[0]:
        raise _wrong(f"data_offsets of {field}", span, f"{math.prod(shape) * dtype.itemsize} bytes")
    raw = data[span[0] : span[1]]
    if raw.size == 0:
        return np.zeros(shape, dtype)
    array = raw.view(dtype) if _aligned(raw, dtype) else raw.copy().view(dtype)
    if entry["dtype"] == "BF16":
        array = (array.astype(np.uint32) << 16).view(np.float32)
    array = array.reshape(shape)
    array.flags.writeable = False
    return array


def _sizes(value: Any) -> bool:
    return isinstance(value, list) and all(type(v) is int and 0 <= v < 2**62 for v in value)


def _aligned(raw: npt.NDArray[np.uint8], dtype: np.dtype[Any]) -> bool:
    return raw.ctypes.data % dtype.alignment == 0


class _Members(Mapping[str, Array]):
    """The arrays of an npz file, each read when it is first used."""

    def __init__(self, archive: zipfile.ZipFile, path: str) -> None:
        self._archive = archive
        self._path = path
        self._infos = {
            info.filename.removesuffix(".npy"): info
            for info in archive.infolist()
            if info.filename.endswith(".npy")
        }
        if len(self._infos) != sum(i.filename.endswith(".npy") for i in archive.infolist()):
            raise _wrong("zip directory", "a name twice", "every name once")
        self._kept: dict[str, Array] = {}

    def __getitem__(self, name: str) -> Array:
        if name not in self._kept:
            info = self._infos[name]
            try:
                self._kept[name] = self._read(info)
            except FormatError as error:
                error.path = self._path
                raise
            except (
                ValueError,
                EOFError,
                zipfile.BadZipFile,
                zipfile.LargeZipFile,
                NotImplementedError,
                RuntimeError,
                OSError,
                SyntaxError,
                KeyError,
                TypeError,
                OverflowError,
                struct.error,
                zlib.error,
            ) as error:
                message = f"member {info.filename!r} cannot be read: {error}"
                raise FormatError(message, path=self._path, field=info.filename) from None
        return self._kept[name]

    def _read(self, info: zipfile.ZipInfo) -> Array:
        with self._archive.open(info) as member:
            version = np.lib.format.read_magic(member)
            if version not in ((1, 0), (2, 0), (3, 0)):
                raise _wrong(info.filename, version, "version 1, 2 or 3 of the npy format")
            read_header: Any = {
                (1, 0): np.lib.format.read_array_header_1_0,
            }.get(version, np.lib.format.read_array_header_2_0)
            shape, fortran, dtype = read_header(member)
            if dtype.hasobject or dtype.kind not in "fiub":
                raise _wrong(f"dtype of {info.filename}", str(dtype), "numbers")
            nbytes = math.prod(shape) * dtype.itemsize
            left = info.file_size - member.tell()
            if nbytes != left or any(size < 0 for size in shape):
                raise _wrong(f"shape of {info.filename}", shape, f"{left} bytes of {dtype}")
            # in parts: a small member may claim to be a huge one
            parts = io.BytesIO()
            while part := member.read(1 << 24):
                parts.write(part)
            if parts.tell() != nbytes:
                raise _wrong(info.filename, f"{parts.tell()} bytes", f"{nbytes} bytes")
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
    except (zipfile.BadZipFile, ValueError, struct.error, NotImplementedError) as error:
        raise FormatError(f"the file is no zip file: {error}", field="zip directory") from None
    members = _Members(archive, path)
    metadata: Any = {}
    if "__metadata__" in members:
        array = members["__metadata__"]
        del members._infos["__metadata__"]
        metadata = _json(array.tobytes(), "__metadata__")
        if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
            raise _wrong("__metadata__", metadata, "an object of texts")
    return members, metadata


# ---- what the metadata says ----


def _config_values(config: Config) -> dict[str, Any]:
    values = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    return {k: dict(v) if isinstance(v, Mapping) else v for k, v in values.items()}


def _read_config(text: str) -> Config:
    given = _json(text, "config")
    if not isinstance(given, dict):
        raise _wrong("config", given, "an object")
    hints = typing.get_type_hints(Config)
    values: dict[str, Any] = {}
    for field in dataclasses.fields(Config):
        if field.name not in given:
            if field.default is dataclasses.MISSING:
                raise _wrong(f"config.{field.name}", "missing", "a value")
            continue
        value = given[field.name]
        value = tuple(value) if isinstance(value, list) else value
        if not _fits(value, hints[field.name]):
            raise _wrong(f"config.{field.name}", value, str(field.type))
        values[field.name] = MappingProxyType(value) if isinstance(value, dict) else value
    config = Config(**values)
    if not 0 < config.layers < 1 << 20:
        raise _wrong("config.layers", config.layers, "a number of layers")
    for name in ("heads", "kv_heads", "ffn_width"):
        value = values.get(name)
        if isinstance(value, tuple) and len(value) != config.layers:
            raise _wrong(f"config.{name}", value, f"one number, or {config.layers}")
    return config


def _fits(value: Any, hint: Any) -> bool:
    """Whether a JSON value has a field's type; numbers must be sizes or finite."""
    arguments = typing.get_args(hint)
    origin = typing.get_origin(hint)
    if origin is tuple:
        return isinstance(value, tuple) and all(_fits(v, arguments[0]) for v in value)
    if origin is not None and isinstance(origin, type) and issubclass(origin, Mapping):
        return isinstance(value, dict)
    if arguments:
        return any(_fits(value, argument) for argument in arguments)
    if hint is Any:
        return True
    if hint is type(None):
        return value is None
    if hint is int:
        return type(value) is int and 0 <= value < 2**31
    if hint is float:
        return type(value) in (int, float) and math.isfinite(value)
    return type(value) is hint


def _check_kind(metadata: Mapping[str, str], kind: str) -> None:
    found = metadata.get("format")
    if found == kind and metadata.get("version") == "1":
        return
    if found == kind:
        raise _wrong("version", metadata.get("version"), "'1'")
    hint = {
        "tinyllm.trace": "a trace, which tinyllm.read opens",
        "tinyllm.session": "a session, which Model.session opens",
    }.get(found or "", "not written by tinyllm")
    raise FormatError(
        f"the file is {hint}; expected {kind!r} as the format in its metadata",
        field="format",
        value=found,
        expected=kind,
    )


def _tokens(metadata: Mapping[str, str]) -> npt.NDArray[np.int32]:
    ids = _json(metadata.get("tokens", "null"), "tokens")
    if not isinstance(ids, list) or not all(type(i) is int and -1 <= i < 2**31 for i in ids):
        raise _wrong("tokens", ids, "a list of token ids")
    return np.asarray(ids, np.int32)


# ---- traces ----


def save_trace(trace: Trace, path: str | os.PathLike[str]) -> None:
    """Write a trace: `Trace.save`.

    Parameters
    ----------
    trace : Trace
    path : str or os.PathLike
        Ends in ``.safetensors`` or ``.npz``.

    Examples
    --------
    >>> import tinyllm as tl
    >>> from tinyllm.trace.saved import save_trace
    >>> save_trace(tl.load().trace("ROMEO:"), "run.npz")
    """
    metadata = {
        "format": "tinyllm.trace",
        "version": "1",
        "tokens": json.dumps(trace.tokens.tolist()),
        "pieces": json.dumps(trace.pieces),
        "start": str(trace.start),
        "config": json.dumps(_config_values(trace.config)),
    }
    if trace.fingerprint is not None:
        metadata["fingerprint"] = trace.fingerprint
    _write(path, trace, metadata)


def read(path: str | os.PathLike[str]) -> Trace:
    """Read a trace that `Trace.save` wrote.

    Parameters
    ----------
    path : str or os.PathLike

    Returns
    -------
    Trace
        Arrays are read when they are used. ``trace.model`` is None; functions that need the
        weights take ``model=``. A safetensors file is mapped: it must not be changed in place
        while the trace is in use (`Trace.save` puts a new file in its place).

    Raises
    ------
    tinyllm.FormatError
        The file holds something else, or is damaged; of ``.npz`` files, damage in an array may
        only show when it is used.
    OSError
        It cannot be read.

    Examples
    --------
    >>> import tinyllm as tl
    >>> tl.load().trace("ROMEO:").save("run.safetensors")
    >>> tl.read("run.safetensors")["blk.0.attn_mix"].ndim
    3
    """
    arrays, metadata = read_arrays(path)
    try:
        return _trace(arrays, metadata)
    except FormatError as error:
        error.path = os.fsdecode(path)
        raise


class _Checked(Mapping[str, Array]):
    """The arrays of a file, each held against the config when it is used."""

    def __init__(self, arrays: Mapping[str, Array], config: Config, tokens: int) -> None:
        self._arrays = arrays
        self._config = config
        self._tokens = tokens

    def __getitem__(self, name: str) -> Array:
        array = self._arrays[name]
        tap = tap_of(self._config, name)
        if tap is None:
            raise _wrong("tap", name, "a tap of such a model")
        context = array.shape[2] if tap.matrix and array.ndim == 3 else 0
        shape = tap.shape(self._config, self._tokens, context)
        if array.shape != shape or array.dtype != np.float32:
            raise _wrong(f"tap {name!r}", f"{array.dtype} {array.shape}", f"float32 {shape}")
        return array

    def __iter__(self) -> Iterator[str]:
        return iter(self._arrays)

    def __len__(self) -> int:
        return len(self._arrays)

    def __contains__(self, name: object) -> bool:
        return name in self._arrays


def _trace(arrays: Mapping[str, Array], metadata: Mapping[str, str]) -> Trace:
    _check_kind(metadata, "tinyllm.trace")
    config = _read_config(metadata.get("config", "null"))
    tokens = _tokens(metadata)
    pieces = _json(metadata.get("pieces", "null"), "pieces")
    if not isinstance(pieces, list) or not all(isinstance(piece, str) for piece in pieces):
        raise _wrong("pieces", pieces, "a list of texts")
    if len(pieces) != len(tokens):
        raise _wrong("pieces", f"{len(pieces)} texts", f"{len(tokens)}, one per token")
    start = metadata.get("start", "")
    if not (start.isascii() and start.isdigit() and len(start) < 12):
        raise _wrong("start", start, "a position")
    for name in arrays:
        if ALIASES.get(name, name) != name or tap_of(config, name) is None:
            raise _wrong("tap", name, "a tap of such a model")
    checked = _Checked(arrays, config, len(tokens))
    if isinstance(arrays, dict):  # mapped, so looking costs nothing
        for name in checked:
            checked[name]
    return Trace(
        config,
        tokens,
        pieces,
        checked,
        start=int(start),
        fingerprint=metadata.get("fingerprint"),
    )


# ---- sessions ----


def save_session(session: Any, path: str | os.PathLike[str]) -> None:
    """Write a session with its keys and values: `Session.save`.

    Parameters
    ----------
    session : Session
    path : str or os.PathLike
        Ends in ``.safetensors`` or ``.npz``.

    Examples
    --------
    >>> import tinyllm as tl
    >>> from tinyllm.trace.saved import save_session
    >>> session = tl.load().session()
    >>> _ = session.eval("ROMEO:")
    >>> save_session(session, "context.safetensors")
    """
    arrays: dict[str, Array] = {}
    for layer in range(session.model.config.layers):
        keys, values = session.core.cache(layer)
        arrays[f"blk.{layer}.keys"], arrays[f"blk.{layer}.values"] = keys, values
    if session.logits is not None:
        arrays["logits"] = session.logits
    metadata = {
        "format": "tinyllm.session",
        "version": "1",
        "tokens": json.dumps(session.tokens),
        "fingerprint": session.model.fingerprint,
    }
    _write(path, arrays, metadata)


def load_session(session: Any, path: str | os.PathLike[str]) -> None:
    """Fill an empty session from a file: `Model.session`.

    Parameters
    ----------
    session : Session
        Empty.
    path : str or os.PathLike
        What `save_session` wrote, of the same model.

    Raises
    ------
    tinyllm.FormatError
        The file holds something else, another model's session, or is damaged.
    OSError
        It cannot be read.

    Examples
    --------
    >>> import tinyllm as tl
    >>> from tinyllm.trace.saved import load_session, save_session
    >>> model = tl.load()
    >>> first, second = model.session(), model.session()
    >>> _ = first.eval("ROMEO:")
    >>> save_session(first, "context.npz")
    >>> load_session(second, "context.npz")
    >>> second.tokens == first.tokens
    True
    """
    arrays, metadata = read_arrays(path)
    model, config = session.model, session.model.config
    try:
        _check_kind(metadata, "tinyllm.session")
        if metadata.get("fingerprint") != model.fingerprint:
            raise _wrong(
                "fingerprint",
                metadata.get("fingerprint"),
                f"{model.fingerprint!r}: the session belongs to another model",
            )
        tokens = _tokens(metadata)
        n, limit = len(tokens), model.core.config["max_context"]
        if n > limit:
            raise _wrong("tokens", f"{n} ids", f"at most {limit}, the context length")
        if (tokens < 0).any() or (tokens >= config.vocab_size).any():
            raise _wrong("tokens", tokens.tolist(), f"ids below {config.vocab_size}")
        layers = []
        for layer in range(config.layers):
            heads = config.layer("kv_heads", layer)
            sizes = (("keys", config.head_size), ("values", config.value_size))
            pair = []
            for kind, size in sizes:
                name = f"blk.{layer}.{kind}"
                if name not in arrays:
                    raise _wrong(name, "missing", "an array")
                array = arrays[name]
                if array.shape != (n, heads, size) or array.dtype != np.float32:
                    raise _wrong(name, f"{array.dtype} {array.shape}", f"float32 {n, heads, size}")
                pair.append(array)
            layers.append(tuple(pair))
        logits = arrays.get("logits")
        if logits is not None and (
            logits.dtype != np.float32
            or logits.ndim not in (1, 2)
            or logits.shape[-1] != config.vocab_size
        ):
            raise _wrong("logits", f"{logits.dtype} {logits.shape}", "float32, rows of logits")
        if n:
            session.core.fill(layers)
        session.restore(tokens.tolist(), None if logits is None else np.array(logits))
    except FormatError as error:
        error.path = os.fsdecode(path)
        raise
