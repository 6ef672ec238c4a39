"""Reading GGUF files: metadata and tensors.

``docs/gguf.md`` of ggml (https://github.com/ggml-org/ggml) describes the format. ``docs/gguf.md``
of this project lists where tinyllm accepts more or less than that.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any

from .. import _core
from .._core import Weight
from ..base.samples import sample_weights
from ..base.units import size
from ..display.table import Table, escape
from ..display.weights import weights_html
from ..errors import FormatError, wrong
from .kinds import START, Candidate, buffer_start, folder_error, kind_error
from .paths import first_bytes, regular_file

__all__ = ["GGUF", "SHARD", "Metadata", "Weight"]

#: The name of a file of a split model.
SHARD = re.compile(r"(?P<stem>.*)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf", re.DOTALL)


class Metadata(Mapping[str, Any]):
    """The keys and values of a GGUF file, in file order. Read-only.

    A value is an int, a float, a bool, a str, a read-only NumPy array, a list of str, or a list
    of arrays if the file has nested arrays. Arrays keep the dtype of the file. They are decoded on
    first use and cached; lists are copied on every access. Bytes that are not valid UTF-8 become
    lone surrogates, and ``text.encode("utf-8", "surrogateescape")`` restores them. The object can
    be shared between threads.

    :func:`tinyllm.write_gguf` accepts it and keeps types and order. To change values first, use
    :meth:`typed`.

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
        """Return the type of a value in the file.

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
            If the file does not have the key.

        Examples
        --------
        >>> import tinyllm
        >>> tinyllm.write_gguf("m.gguf", {"names": ["a", "b"]}, {})
        >>> tinyllm.GGUF("m.gguf").metadata.type("names")
        'ARRAY[STRING]'
        """
        return self._index[key][1]

    def typed(self) -> dict[str, tuple[str, Any]]:
        """Return a dict of (type name, value) pairs, which can be changed and written.

        Returns
        -------
        dict of str to (str, object)
            In file order, with all arrays decoded. ``write_gguf`` accepts it as metadata.

        Examples
        --------
        >>> import tinyllm
        >>> tinyllm.write_gguf("m.gguf", {"a": ("UINT8", 1), "b": 2}, {})
        >>> tinyllm.GGUF("m.gguf").metadata.typed() | {"b": 5}
        {'a': ('UINT8', 1), 'b': 5}
        """
        return {key: (self.type(key), self[key]) for key in self}

    def _stored(self, key: str) -> bytes:
        """Return the bytes of type and value in the file."""
        return self._file.stored(self._index[key][0])

    def _repr_html_(self) -> str:
        return Table(
            ("key", "type", "value"),
            [(_clean(key), self.type(key), _preview(self[key])) for key in self],
        ).html()


class GGUF:
    """A GGUF file: its metadata and its tensors.

    Opening a file reads only its header. Weights and metadata stay valid after this object is
    deleted. The object can be shared between threads.

    Parameters
    ----------
    source : str, os.PathLike, or bytes-like
        The path or contents of the file. For a model that is split into several files
        (``...-00001-of-00003.gguf``), the path of the first. The others must be in the same
        folder.
    mmap : bool, optional
        If True, the file is mapped, and only the parts that are used are read. If False, it is
        read into memory. A mapped file must not be overwritten in place while it is in use. If it
        is shortened, what needs a missing part raises OSError, except for arrays from
        ``Weight.raw``, which show zeros (``docs/gguf.md``). The file may be replaced by another
        one, as :func:`tinyllm.write_gguf` does.

    Attributes
    ----------
    metadata : Metadata
        The keys and values.
    tensors : Mapping of str to Weight
        The tensors in file order. Read-only.
    version : int
        2 or 3.
    alignment : int
        Alignment of tensor data, in bytes.
    paths : tuple of str
        The paths of all files of the model. Empty if `source` is bytes.

    Raises
    ------
    tinyllm.FormatError
        If the file is not a GGUF file, or is damaged. ``field``, ``value``, ``expected``,
        ``offset`` and ``path`` describe the error.
    OSError
        If one of the files cannot be read.
    ValueError
        If `source` is the contents of one part of a split model.

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
                    f"source is one part of a model that is split into {count} files; "
                    "expected the path of the first file"
                )
            self.paths = _shard_paths(path, self.metadata, count)
            _add_shards(tensors, self.paths, count, mmap)
            expected = _split_number(self.metadata, "split.tensors.count", path)
            if expected is not None and expected != len(tensors):
                raise wrong("split.tensors.count", expected, str(len(tensors)), path=path)
        self.tensors = MappingProxyType(tensors)

    def __repr__(self) -> str:
        total = size(sum(weight.nbytes for weight in self.tensors.values()))
        where = f"{self.paths[0]!r} " if self.paths else ""
        return (
            f"<GGUF {where}version {self.version}, {len(self.metadata)} keys, "
            f"{len(self.tensors)} tensors, {total}>"
        )

    def _repr_html_(self) -> str:
        tensors = weights_html(sample_weights(self.tensors.values()))
        return (
            f"<p>{escape(repr(self))}</p>"
            f"<details open><summary>metadata</summary>{self.metadata._repr_html_()}</details>"
            f"<details open><summary>tensors</summary>{tensors}</details>"
        )


def _open(source: Any, path: str | None, mmap: bool) -> _core.GGUFFile:
    """Open one file. Errors have its path."""
    if path is None:
        try:
            memoryview(source)
        except TypeError:
            raise TypeError(
                f"source is {source!r:.80}; expected a path or a bytes-like object"
            ) from None
    try:
        return _core.GGUFFile(source if path is None else regular_file(path), mmap)
    except IsADirectoryError:
        raise folder_error(os.fsdecode(source)) from None
    except FormatError as error:
        if error.field == "magic":
            start = first_bytes(path, START) if path is not None else buffer_start(source)
            if start and (other := kind_error(Candidate(start), path)) is not None:
                other.value, other.expected, other.offset = (
                    error.value,
                    error.expected,
                    error.offset,
                )
                raise other from None
        error.path = path
        raise


# ---- models that are split into several files ----


def _split_number(metadata: Metadata, key: str, path: str | None) -> int | None:
    """Return one of the split.* keys, or None. It may have any integer type."""
    value = metadata.get(key)
    if value is not None and type(value) is not int:
        raise wrong(f"{key} (type)", metadata.type(key), "an integer", path=path)
    return value


def _shard_paths(path: str, metadata: Metadata, count: int) -> tuple[str, ...]:
    """Return the paths of all files, derived from the path of the first."""
    number = _split_number(metadata, "split.no", path)
    if number != 0:
        first = ""
        if (match := SHARD.fullmatch(path)) is not None:
            name = os.path.basename(f"{match['stem']}-00001-of-{match['count']}.gguf")
            first = f", {name}"
        expected = f"0: open the first file of a split model{first}"
        raise wrong("split.no", number, expected, path=path)
    match = SHARD.fullmatch(path)
    if match is None or int(match["number"]) != 1 or int(match["count"]) != count:
        expected = f"a name that ends in -00001-of-{count:05}.gguf"
        raise wrong("name of the split file", os.path.basename(path), expected, path=path)
    return tuple(f"{match['stem']}-{i + 1:05}-of-{count:05}.gguf" for i in range(count))


def _add_shards(tensors: dict[str, Weight], paths: tuple[str, ...], count: int, mmap: bool) -> None:
    missing = [path for path in paths if not os.path.exists(path)]
    if missing:
        names = ", ".join(os.path.basename(path) for path in missing[:20])
        more = f" and {len(missing) - 20} others" if len(missing) > 20 else ""
        raise FileNotFoundError(
            errno.ENOENT,
            f"{len(missing)} of the {count} files of a split model are missing: {names}{more}; "
            f"expected them beside {paths[0]}",
            missing[0],
        )
    for i, path in enumerate(paths[1:], 1):
        file = _open(path, path, mmap)
        metadata = Metadata(file)
        for key, expected in (("split.no", i), ("split.count", count)):
            number = _split_number(metadata, key, path)
            if number != expected:
                raise wrong(key, number, str(expected), path=path)
        for weight in file.weights():
            if weight.name in tensors:
                expected_name = "a name that occurs once in the files of the split model"
                raise wrong("tensor name", repr(weight.name), expected_name, path=path)
            tensors[weight.name] = weight


# ---- notebooks ----


def _clean(text: str) -> str:
    """Return text with lone surrogates escaped, because UTF-8 cannot encode them."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _preview(value: Any, limit: int = 80) -> str:
    if isinstance(value, list) or hasattr(value, "shape"):
        text = f"{len(value)}: {', '.join(str(item) for item in value[:8])}"
        text += ", ..." if len(value) > 8 else ""
    else:
        text = str(value)
    text = _clean(text)
    return text if len(text) <= limit else text[: limit - 3] + "..."
