"""GGUF files: everything that is in one, and writing new ones.

The format is described in ``docs/gguf.md`` of ggml (https://github.com/ggml-org/ggml); what
tinyllm accepts beyond or short of it, in ``docs/gguf.md`` of this project.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any

from .. import _core
from .._core import Weight
from ..base.samples import sample_weights
from ..display.table import Table, escape
from ..display.weights import weights_table
from ..errors import FormatError, wrong
from .paths import regular_file

__all__ = ["GGUF", "Metadata", "Weight"]

_SHARD = re.compile(r"(?P<stem>.*)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf", re.DOTALL)


class Metadata(Mapping[str, Any]):
    """The keys and values of a GGUF file, in its order; read-only.

    A value is an int, a float, a bool, a str, a read-only NumPy array of its own dtype, or a
    list of str (or of arrays, where arrays hold arrays). Arrays are decoded when they are read
    and kept; lists are copied on the way out. Bytes that are no valid UTF-8 come as lone
    surrogates, ``text.encode("utf-8", "surrogateescape")`` gives them back. Safe to share
    between threads.

    Given to :func:`tinyllm.write_gguf`, it keeps every type and the order; so does
    :meth:`typed`, in which values can be changed first.

    Examples
    --------
    >>> import tinyllm
    >>> tinyllm.write_gguf("m.gguf", {"general.name": "tiny", "n": 3}, {})
    >>> metadata = tinyllm.GGUF("m.gguf").metadata
    >>> metadata["n"], metadata.type("n")
    (3, 'UINT32')
    """

    def __init__(self, file: _core.GGUFFile) -> None:
        self._file = file
        self._index = {key: (i, kind) for i, (key, kind) in enumerate(file.keys())}
        self._arrays: dict[str, Any] = {}

    def __getitem__(self, key: str) -> Any:
        i, kind = self._index[key]
        if not kind.startswith("ARRAY"):
            return self._file.value(i)
        value = self._arrays.get(key)
        if value is None:
            value = self._arrays.setdefault(key, self._file.value(i))
        return list(value) if isinstance(value, list) else value

    def __iter__(self) -> Iterator[str]:
        return iter(self._index)

    def __len__(self) -> int:
        return len(self._index)

    def __contains__(self, key: object) -> bool:
        return key in self._index

    def __repr__(self) -> str:
        return f"<Metadata, {len(self)} keys>"

    def type(self, key: str) -> str:
        """Tell how the file stores a value.

        Parameters
        ----------
        key : str
            A key of the file.

        Returns
        -------
        str
            UINT8, INT8, UINT16, INT16, UINT32, INT32, UINT64, INT64, FLOAT32, FLOAT64, BOOL,
            STRING, or ARRAY[...] of one of these or of ARRAY. The names are those of
            ``gguf_metadata_value_type`` in the specification.

        Raises
        ------
        KeyError
            The file does not have the key.

        Examples
        --------
        >>> import tinyllm
        >>> tinyllm.write_gguf("m.gguf", {"names": ["a", "b"]}, {})
        >>> tinyllm.GGUF("m.gguf").metadata.type("names")
        'ARRAY[STRING]'
        """
        return self._index[key][1]

    def typed(self) -> dict[str, tuple[str, Any]]:
        """Make a dict of (type name, value) pairs, to change and give to ``write_gguf``.

        Returns
        -------
        dict of str to (str, object)
            In the file's order; every array is decoded.

        Examples
        --------
        >>> import tinyllm
        >>> tinyllm.write_gguf("m.gguf", {"a": ("UINT8", 1), "b": 2}, {})
        >>> tinyllm.GGUF("m.gguf").metadata.typed() | {"b": 5}
        {'a': ('UINT8', 1), 'b': 5}
        """
        return {key: (self.type(key), self[key]) for key in self}

    def _stored(self, key: str) -> bytes:
        """Give type and value byte for byte as the file has them."""
        return self._file.stored(self._index[key][0])

    def _repr_html_(self) -> str:
        return Table(
            ("key", "type", "value"),
            [(_clean(key), self.type(key), _preview(self[key])) for key in self],
        ).html()


class GGUF:
    """A GGUF file: its metadata and its tensors, without a model.

    Nothing but the index is read before it is used. Weights and metadata stay valid when this
    object is gone. Safe to share between threads.

    Parameters
    ----------
    source : str, os.PathLike, or bytes-like
        The file, or its contents. Of a model that is split over several files
        (``...-00001-of-00003.gguf``) the first; the others are found beside it.
    mmap : bool, optional
        Map the file (the default), so that only the parts that are used are read, or read it
        into memory. A mapped file must not be shortened or overwritten in place while it is in
        use: the system ends processes that read a part which is no longer there. Replacing it
        by another file, as :func:`tinyllm.write_gguf` does, is harmless.

    Attributes
    ----------
    metadata : Metadata
        Key to value.
    tensors : Mapping of str to Weight
        In the file's order; read-only.
    version : int
        2 or 3.
    alignment : int
        Of tensor data, in bytes.
    paths : tuple of str
        The file, and those that it is split over; empty for bytes.

    Raises
    ------
    tinyllm.FormatError
        The file is not a GGUF file, or is damaged: ``field``, ``value``, ``expected``,
        ``offset`` and ``path`` tell where.
    OSError
        The file, or one that it is split over, cannot be read.
    ValueError
        source is the contents of one part of a split model.

    Examples
    --------
    >>> import numpy as np, tinyllm
    >>> tinyllm.write_gguf("m.gguf", {"general.name": "tiny"}, {"w": np.eye(2)})
    >>> file = tinyllm.GGUF("m.gguf")
    >>> file.metadata["general.name"], file.tensors["w"]
    ('tiny', <Weight 'w' F64 (2, 2), 32 bytes>)
    """

    metadata: Metadata
    tensors: Mapping[str, Weight]
    version: int
    alignment: int
    paths: tuple[str, ...]

    def __init__(self, source: str | os.PathLike[str] | _core.Buffer, *, mmap: bool = True) -> None:
        path = os.fsdecode(source) if isinstance(source, str | os.PathLike) else None
        file = _open(source if path is None else path, path, mmap)
        self.version = file.version
        self.alignment = file.alignment
        self.metadata = Metadata(file)
        self.paths = () if path is None else (path,)
        tensors = {weight.name: weight for weight in file.weights()}
        count = _split_number(self.metadata, "split.count", path)
        if count is not None and count > 1:
            if path is None:
                raise ValueError(
                    f"source holds part of a model that is split over {count} files; "
                    "give the path of the first"
                )
            self.paths = _shard_paths(path, self.metadata, count)
            _add_shards(tensors, self.paths, count, mmap)
            expected = _split_number(self.metadata, "split.tensors.count", path)
            if expected is not None and expected != len(tensors):
                raise wrong("split.tensors.count", expected, str(len(tensors)), path=path)
        self.tensors = MappingProxyType(tensors)

    def __repr__(self) -> str:
        size = sum(weight.nbytes for weight in self.tensors.values())
        where = f"{self.paths[0]!r} " if self.paths else ""
        return (
            f"<GGUF {where}version {self.version}, {len(self.metadata)} keys, "
            f"{len(self.tensors)} tensors, {size} bytes>"
        )

    def _repr_html_(self) -> str:
        tensors, caption = weights_table(sample_weights(self.tensors.values()))
        return (
            f"<p>{escape(repr(self))}</p>"
            f"<details open><summary>metadata</summary>{self.metadata._repr_html_()}</details>"
            f"<details open><summary>tensors</summary>{tensors.html(caption)}</details>"
        )


def _open(source: Any, path: str | None, mmap: bool) -> _core.GGUFFile:
    """Open one file; errors tell which."""
    if path is None:
        try:
            memoryview(source)
        except TypeError:
            raise TypeError(
                f"source is {source!r:.80}; expected a path or a bytes-like object"
            ) from None
    try:
        return _core.GGUFFile(source if path is None else regular_file(path), mmap)
    except FormatError as error:
        error.path = path
        raise


# ---- models that are split over several files ----


def _split_number(metadata: Metadata, key: str, path: str | None) -> int | None:
    """Read one of the split.* keys, which files have in several integer types."""
    value = metadata.get(key)
    if value is not None and type(value) is not int:
        raise wrong(f"{key} (type)", metadata.type(key), "an integer", path=path)
    return value


def _shard_paths(path: str, metadata: Metadata, count: int) -> tuple[str, ...]:
    """Derive the names of all files from that of the first."""
    number = _split_number(metadata, "split.no", path)
    if number != 0:
        raise wrong("split.no", number, "0: open the first file of a split model", path=path)
    match = _SHARD.fullmatch(path)
    if match is None or int(match["number"]) != 1 or int(match["count"]) != count:
        expected = f"a name that ends in -00001-of-{count:05}.gguf"
        raise wrong("name of the split file", os.path.basename(path), expected, path=path)
    return tuple(f"{match['stem']}-{i + 1:05}-of-{count:05}.gguf" for i in range(count))


def _add_shards(tensors: dict[str, Weight], paths: tuple[str, ...], count: int, mmap: bool) -> None:
    for i, path in enumerate(paths[1:], 1):
        file = _open(path, path, mmap)
        metadata = Metadata(file)
        for key, expected in (("split.no", i), ("split.count", count)):
            number = _split_number(metadata, key, path)
            if number != expected:
                raise wrong(key, number, str(expected), path=path)
        for weight in file.weights():
            if weight.name in tensors:
                expected_name = "a name that no other file of the split model has"
                raise wrong("tensor name", repr(weight.name), expected_name, path=path)
            tensors[weight.name] = weight


# ---- notebooks ----


def _clean(text: str) -> str:
    """Make text that can be sent: lone surrogates stand for bytes that are no UTF-8."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _preview(value: Any, limit: int = 80) -> str:
    if isinstance(value, list) or hasattr(value, "shape"):
        text = f"{len(value)}: {', '.join(str(item) for item in value[:8])}"
        text += ", ..." if len(value) > 8 else ""
    else:
        text = str(value)
    text = _clean(text)
    return text if len(text) <= limit else text[: limit - 3] + "..."
