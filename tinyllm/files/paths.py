"""What can be opened as a file: paths of regular files, and nothing that would block or mislead."""

from __future__ import annotations

import errno
import os
import stat
from typing import Any

__all__ = ["first_bytes", "regular_file"]


def regular_file(path: Any, name: str = "path") -> str:
    """Check that a path can be opened and read to its end.

    Parameters
    ----------
    path : str, bytes or os.PathLike
    name : str
        What the message calls it.

    Returns
    -------
    str

    Raises
    ------
    TypeError
        It is not a path. Integers are refused: Python's `open` takes them for descriptors of
        open files, and closes those.
    OSError
        There is no such file, or it is a pipe or a device, which may never end.

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
    """Return how a file begins, which tells its format.

    Parameters
    ----------
    path : str, bytes or os.PathLike
    count : int

    Returns
    -------
    bytes
        Fewer than `count` if the file is shorter.

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
