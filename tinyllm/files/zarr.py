"""Writing folders of arrays in the Zarr format, version 2.

Specification: https://zarr-specs.readthedocs.io/en/latest/v2/v2.0.html. The package `zarr`, xarray
and TensorStore read such a folder. Chunks are not compressed and lie along the first axis.
"""

from __future__ import annotations

import json
import math
import os
import secrets
import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["Group", "Rows", "write_zarr"]

#: The number of bytes that a chunk should have.
_CHUNK = 4 << 20


def write_zarr(
    path: str | os.PathLike[str],
    write: Callable[[Group], object],
    attributes: Mapping[str, Any],
) -> None:
    """Write a folder under a temporary name beside `path`, then rename it to `path`.

    So a folder with the name `path` is always complete. A Zarr folder that was there is replaced.
    A killed process leaves the folder ``.NAME.*.tmp``.

    Parameters
    ----------
    path : str or os.PathLike
        The folder that holds it must exist.
    write : callable
        Called with the new `Group`. If it raises, the exception propagates and `path` is unchanged.
    attributes : mapping
        The attributes of the group, of types that JSON has.

    Raises
    ------
    FileExistsError
        If there is something at `path` that is not a Zarr folder.
    OSError
        If a file cannot be written.

    Examples
    --------
    >>> import json, pathlib, numpy as np
    >>> from tinyllm.files.zarr import write_zarr
    >>> write_zarr("a.zarr", lambda group: group.rows("x", (2,), "<i8").append([7, 8]), {})
    >>> json.loads(pathlib.Path("a.zarr/x/.zarray").read_text())["shape"]
    [2]
    >>> np.fromfile("a.zarr/x/0", "<i8").tolist()
    [7, 8]
    """
    target = os.path.realpath(os.fsdecode(path))
    _check_replaceable(target)
    directory, name = os.path.split(target)
    temporary = os.path.join(directory, f".{name[:64]}.{secrets.token_hex(8)}.tmp")
    try:
        os.mkdir(temporary)
    except OSError as error:
        error.filename = target  # instead of the temporary name
        raise
    old = None
    try:
        group = Group(temporary, attributes)
        write(group)
        group.close()
        _check_replaceable(target)  # somebody may have put something there meanwhile
        if os.path.lexists(target):
            old = f"{temporary}.old"
            os.rename(target, old)
        os.rename(temporary, target)
    except BaseException:
        if old is not None and not os.path.lexists(target):
            os.rename(old, target)
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    if old is not None:
        with suppress(OSError):
            shutil.rmtree(old)


def _check_replaceable(target: str) -> None:
    """Refuse to replace anything that is not a group or an array of Zarr."""
    marks = (".zgroup", ".zarray", "zarr.json")
    if os.path.lexists(target) and not any(
        os.path.isfile(os.path.join(target, mark)) for mark in marks
    ):
        raise FileExistsError(
            f"{target!r} exists and is not a Zarr folder; expected a name that is free"
        )


class Group:
    """A folder of arrays, while it is written."""

    def __init__(self, folder: str, attributes: Mapping[str, Any]) -> None:
        self._folder = folder
        self._arrays: list[Rows] = []
        _write_json(folder, ".zgroup", {"zarr_format": 2})
        _write_json(folder, ".zattrs", dict(attributes))

    def rows(self, name: str, shape: tuple[int, ...], dtype: str) -> Rows:
        """Begin an array of one or more axes, and return what takes its rows.

        Parameters
        ----------
        name : str
        shape : tuple of int
            The shape of the whole array.
        dtype : str
            A NumPy type with its byte order, such as ``"<f4"``.
        """
        folder = os.path.join(self._folder, name)
        os.mkdir(folder)
        self._arrays.append(Rows(folder, shape, np.dtype(dtype)))
        return self._arrays[-1]

    def close(self) -> None:
        """Write the last chunks. An array with too few rows is an error."""
        for array in self._arrays:
            array.close()


class Rows:
    """An array whose rows are written one after the other."""

    def __init__(self, folder: str, shape: tuple[int, ...], dtype: npt.DTypeLike) -> None:
        self._folder, self._shape, self._dtype = folder, shape, np.dtype(dtype)
        size = max(1, math.prod(shape[1:]) * self._dtype.itemsize)
        rows = max(1, min(shape[0], _CHUNK // size))
        # every chunk has the same size: what the last one has too much of is zeros
        self._chunk = np.zeros((rows, *shape[1:]), self._dtype)
        self._written = 0
        described = {
            "zarr_format": 2,
            "shape": list(shape),
            "chunks": [max(1, n) for n in self._chunk.shape],
            "dtype": self._dtype.str,
            "compressor": None,
            "fill_value": 0,
            "order": "C",
            "filters": None,
        }
        _write_json(folder, ".zarray", described)

    def append(self, values: npt.ArrayLike) -> None:
        """Write further rows, shape (n, ...)."""
        rows = np.asarray(values, self._dtype)
        if rows.shape[1:] != self._shape[1:] or self._written + len(rows) > self._shape[0]:
            raise ValueError(
                f"rows have shape {rows.shape} after {self._written} rows; expected no more than "
                f"{self._shape}"
            )
        size = len(self._chunk)
        done = 0
        while done < len(rows):
            first = self._written % size
            count = min(size - first, len(rows) - done)
            self._chunk[first : first + count] = rows[done : done + count]
            done += count
            self._written += count
            if self._written % size == 0:
                self._flush()

    def _flush(self) -> None:
        number = (self._written - 1) // len(self._chunk)
        name = ".".join([str(number), *["0"] * (len(self._shape) - 1)])
        with open(os.path.join(self._folder, name), "wb") as file:
            file.write(self._chunk.tobytes())
        self._chunk[:] = 0

    def close(self) -> None:
        """Write the last chunk."""
        if self._written != self._shape[0]:
            raise ValueError(f"{self._written} rows were written; expected {self._shape[0]}")
        if self._written % len(self._chunk):
            self._flush()


def _write_json(folder: str, name: str, value: Mapping[str, Any]) -> None:
    with open(os.path.join(folder, name), "w", encoding="utf-8") as file:
        json.dump(value, file, indent=1, ensure_ascii=False)
