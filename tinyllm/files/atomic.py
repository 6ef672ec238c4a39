"""Writing files atomically, so that a path never leads to a half-written file."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable
from contextlib import suppress
from typing import BinaryIO

__all__ = ["write_atomically"]


def write_atomically(path: str | os.PathLike[str], write: Callable[[BinaryIO], object]) -> None:
    """Write a temporary file in the same folder, then rename it to `path`.

    A reader that opens `path` during the write, or has the old file mapped, sees the complete old
    file. If `path` is a symbolic link, the file that it points to is replaced.

    Parameters
    ----------
    path : str or os.PathLike
        Its folder must exist.
    write : callable
        Called with the temporary file, open for writing bytes. If it raises, the exception
        propagates and `path` is unchanged.

    Raises
    ------
    OSError
        If the file cannot be written. `filename` is the resolved `path`.

    Examples
    --------
    >>> from pathlib import Path
    >>> from tinyllm.files.atomic import write_atomically
    >>> write_atomically("hello.txt", lambda file: file.write(b"hello"))
    >>> Path("hello.txt").read_text()
    'hello'
    """
    target = os.path.realpath(os.fsdecode(path))
    directory, name = os.path.split(target)
    temporary = os.path.join(directory, f".{name[:64]}.{secrets.token_hex(8)}.tmp")
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
    try:
        with os.fdopen(os.open(temporary, flags, 0o666), "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except BaseException as error:
        with suppress(OSError):
            os.unlink(temporary)
        if isinstance(error, OSError) and error.filename == temporary:
            error.filename = target  # instead of the temporary name
        raise
    with suppress(OSError):  # some systems cannot sync a directory
        handle = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
