"""Checks of paths: only regular files are opened, because pipes and devices may never end."""

from __future__ import annotations

import errno
import os
import stat
from typing import Any

__all__ = ["first_bytes", "regular_file"]


def regular_file(path: Any, name: str = "path") -> str:
    """Return a path as a str, checked to be that of a regular file.

    Parameters
    ----------
    path : str, bytes or os.PathLike
    name : str
        Name of the argument in the message.

    Returns
    -------
    str

    Raises
    ------
    TypeError
        If `path` is not a path. Integers are refused, because Python's `open` would treat them as
        file descriptors, and close them.
    OSError
        If the file does not exist, or is a folder, a pipe or a device.

    Examples
    --------
    >>> from tinyllm.files.paths import regular_file
    >>> regular_file(1)
    Traceback (most recent call last):
    TypeError: path is 1; expected a str or os.PathLike
    """
    if not isinstance(path, (str, bytes, os.PathLike)):
        raise TypeError(f"{name} is {path!r:.80}; expected a str or os.PathLike")
    text = os.fsdecode(path)
    mode = os.stat(text).st_mode
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), text)
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, "a pipe or a device; expected a regular file", text)
    return text


def first_bytes(path: Any, count: int = 4) -> bytes:
    """Return the first bytes of a file, which tell its format.

    Parameters
    ----------
    path : str, bytes or os.PathLike
    count : int

    Returns
    -------
    bytes
        At most `count` bytes, fewer if the file is shorter.

    Raises
    ------
    TypeError, OSError
        As for `regular_file`.

    Examples
    --------
    >>> from tinyllm.files.paths import first_bytes
    >>> import pathlib
    >>> pathlib.Path("x.bin").write_bytes(b"GGUF and more")
    13
    >>> first_bytes("x.bin")
    b'GGUF'
    """
    with open(regular_file(path), "rb") as file:
        return file.read(count)
