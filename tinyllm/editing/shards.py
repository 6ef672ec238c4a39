"""`split_gguf` and `merge_gguf`: a model in several files, as llama.cpp's gguf-split does."""

from __future__ import annotations

import os

from .._core import Weight
from ..base.checks import ranged
from ..files.gguf import SHARD
from ..files.gguf_write import write_gguf
from ..files.model_file import open_file
from .check import typed

__all__ = ["merge_gguf", "split_gguf"]

_MOST = 99999  # files: their numbers have five digits


def split_gguf(
    path: str | os.PathLike[str],
    stem: str | os.PathLike[str],
    *,
    max_bytes: int | None = None,
    max_tensors: int | None = None,
) -> list[str]:
    """Write a model as several files, which llama.cpp and `tinyllm.load` open by the first one.

    The files are named ``<stem>-00001-of-00003.gguf`` and so on. The first has all metadata. Each
    file appears when it is complete, the first one last.

    Parameters
    ----------
    path : str or os.PathLike
        A GGUF file.
    stem : str or os.PathLike
        What the names of the new files begin with.
    max_bytes : int, optional
        The most bytes of tensors in a file. A larger tensor has a file of its own. Default, if
        `max_tensors` is not given: 2,000,000,000.
    max_tensors : int, optional
        The most tensors in a file.

    Returns
    -------
    list of str
        The paths of the files.

    Raises
    ------
    ValueError
        If a limit is not positive, or there would be more than 99,999 files.
    tinyllm.FormatError
        If the file is damaged.
    OSError
        If a file cannot be read or written.

    Examples
    --------
    >>> import tinyllm as tl
    >>> paths = tl.split_gguf("demo", "parts", max_tensors=20)
    >>> paths[0]
    'parts-00001-of-00002.gguf'
    >>> tl.load(paths[0]).config.layers
    4
    """
    for name, limit in (("max_bytes", max_bytes), ("max_tensors", max_tensors)):
        if limit is not None:
            ranged(name, limit, 1)
    if max_bytes is None and max_tensors is None:
        max_bytes = 2_000_000_000
    file = open_file(path)
    groups = _groups(list(file.weights.values()), max_bytes, max_tensors)
    if len(groups) > _MOST:
        raise ValueError(f"there would be {len(groups)} files; expected at most {_MOST}")
    metadata = typed(file)
    alignment = {key: metadata[key] for key in ("general.alignment",) if key in metadata}
    count = len(groups)
    prefix = os.fsdecode(stem)
    paths = [f"{prefix}-{i:05}-of-{count:05}.gguf" for i in range(1, count + 1)]
    for i in reversed(range(count)):
        keys = {
            **(alignment if i else metadata),
            "split.no": ("UINT16" if count < 65536 else "UINT32", i),
            "split.count": ("UINT16" if count < 65536 else "UINT32", count),
            "split.tensors.count": ("INT32", len(file.weights)),
        }
        write_gguf(paths[i], keys, {weight.name: weight for weight in groups[i]})
    return paths


def _groups(
    weights: list[Weight], max_bytes: int | None, max_tensors: int | None
) -> list[list[Weight]]:
    groups: list[list[Weight]] = [[]]
    held = 0
    for weight in weights:
        full = max_tensors is not None and len(groups[-1]) >= max_tensors
        large = max_bytes is not None and held + weight.nbytes > max_bytes
        if groups[-1] and (full or large):
            groups.append([])
            held = 0
        groups[-1].append(weight)
        held += weight.nbytes
    return groups


def merge_gguf(path: str | os.PathLike[str], out: str | os.PathLike[str]) -> None:
    """Write a model that is split into several files as one file.

    Parameters
    ----------
    path : str or os.PathLike
        The first file, ``...-00001-of-00003.gguf``. The others are beside it.
    out : str or os.PathLike
        The GGUF file to write. An existing file is replaced.

    Raises
    ------
    ValueError
        If `path` is not one of several files, or `out` is one of them.
    tinyllm.FormatError
        If a file is damaged, or the files do not belong together.
    OSError
        If a file is missing, or cannot be read or written.

    Examples
    --------
    >>> import tinyllm as tl
    >>> paths = tl.split_gguf("demo", "parts", max_tensors=20)
    >>> tl.merge_gguf(paths[0], "whole.gguf")
    >>> len(tl.GGUF("whole.gguf").tensors) == len(tl.load().weights)
    True
    """
    file = open_file(path)
    if "split.count" not in file.metadata:
        raise ValueError(f"{os.fsdecode(path)} is not one of several files of a model")
    first, target = os.path.realpath(os.fsdecode(path)), os.path.realpath(os.fsdecode(out))
    match, mine = SHARD.fullmatch(first), SHARD.fullmatch(target)
    if match and mine and match.group("stem", "count") == mine.group("stem", "count"):
        raise ValueError(f"out is {os.fsdecode(out)!r}, one of the files to merge")
    write_gguf(out, typed(file), file.weights)
