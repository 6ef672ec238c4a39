"""Writing files so that a name never shows half of one."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable
from contextlib import suppress
from typing import BinaryIO

__all__ = ["write_atomically"]


def write_atomically(path: str | os.PathLike[str], write: Callable[[BinaryIO], object]) -> None:
    """Write into a new file beside it, then put that in the place of `path`.

    Whoever opens `path` meanwhile, or has the old file mapped, keeps the whole old file. A name
    that is a symbolic link stays one: the file that it points to is replaced.

    Parameters
    ----------
    path : str or os.PathLike
        Its folder must be there.
    write : callable
        Called with the new file, open for writing bytes. When it raises, nothing has changed
        and the exception goes on.

    Raises
    ------
    OSError
        The file cannot be written; `filename` is `path`.

    Examples
    --------
    >>> from pathlib import Path
    >>> from tinyllm.files.atomic import write_atomically
    >>> write_atomically("hello.txt", lambda file: file.write(b"hello"))
    >>> Path("hello.txt").read_text()
    'hello'
    """
    target = os.path.realpath(os.fsdecode(path))  # a link stays a link
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
            error.filename = target  # the name that the caller knows
        raise
    with suppress(OSError):  # not every system can sync a directory
        handle = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
