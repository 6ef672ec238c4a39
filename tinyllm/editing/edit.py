"""`edit`: a copy of a GGUF file with other metadata or other names."""

from __future__ import annotations

import fnmatch
import os
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from ..files.gguf_write import write_gguf
from ..files.model_file import open_file
from .check import check_change, typed

__all__ = ["edit"]

_Value = TypeVar("_Value")


def edit(
    path: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    set: Mapping[str, Any] | None = None,
    remove: str | Iterable[str] = (),
    rename: Mapping[str, str] | None = None,
    force: bool = False,
) -> None:
    """Write a copy of a GGUF file with other metadata, or with other names of keys and tensors.

    First names are removed, then others are renamed, then values are set. The bytes of tensors do
    not change. `out` appears when it is complete. It may be `path`: then the file is replaced.

    Parameters
    ----------
    path : str or os.PathLike
        A GGUF file. A file in shards becomes one file.
    out : str or os.PathLike
        The GGUF file to write. An existing file is replaced.
    set : mapping of str to object, optional
        Values by key. A key that the file has keeps its type. A new key gets the type that
        `tinyllm.write_gguf` chooses. A tuple ``(type name, value)`` sets the type.
    remove : str or iterable of str
        Keys and names of tensors, or patterns of them, such as ``"blk.3.*"``.
    rename : mapping of str to str, optional
        New names by old ones, of keys or tensors.
    force : bool
        Whether to write a file that does not load. Without it, a change after which a model no
        longer loads is an error.

    Raises
    ------
    ValueError
        If a name to remove or rename is not there, if a new name is taken, if a value does not fit
        the type of its key, or if the changed model would not load.
    TypeError
        If GGUF has no type for a value, or the value does not fit the type of its key.
    tinyllm.FormatError
        If the file is damaged.
    OSError
        If a file cannot be read or written.

    Examples
    --------
    >>> import tinyllm as tl
    >>> tl.edit("demo", "new.gguf", set={"general.name": "Shakespeare"})
    >>> tl.GGUF("new.gguf").metadata["general.name"]
    'Shakespeare'
    >>> tl.edit("new.gguf", "new.gguf", remove="output_norm.weight")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ValueError: the changed file would not load: ...; force=True writes it anyway
    """
    file = open_file(path)
    metadata, tensors = typed(file), dict(file.weights)
    patterns = [remove] if isinstance(remove, str) else list(remove)
    for pattern in patterns:
        found = [key for key in (*metadata, *tensors) if fnmatch.fnmatchcase(key, pattern)]
        if not found:
            raise ValueError(f"remove: no key and no tensor has a name like {pattern!r}")
        for name in found:
            metadata.pop(name, None)
            tensors.pop(name, None)
    for name in rename or {}:
        if (name in metadata) == (name in tensors):
            there = (
                "both a key and a tensor have" if name in metadata else "no key and no tensor has"
            )
            raise ValueError(f"rename: {there} the name {name!r}")
    metadata, tensors = _renamed(metadata, rename or {}), _renamed(tensors, rename or {})
    for key, value in (set or {}).items():
        kind = metadata.get(key)
        explicit = isinstance(value, tuple) and len(value) == 2 and isinstance(value[0], str)
        kept = not explicit and isinstance(kind, tuple)
        metadata[key] = (kind[0], value) if kept and kind is not None else value
    if not force:
        check_change(file, metadata, tensors)
    write_gguf(out, metadata, tensors)


def _renamed(names: Mapping[str, _Value], rename: Mapping[str, str]) -> dict[str, _Value]:
    result: dict[str, _Value] = {}
    for name, value in names.items():
        new = rename.get(name, name)
        if new in result or (new != name and new in names and new not in rename):
            raise ValueError(f"rename: {name!r} would become {new!r}, which is taken")
        result[new] = value
    return result
