"""Writing files atomically, so that a path never leads to a half-written file."""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Callable
from contextlib import suppress
from typing import BinaryIO

try:
    import fcntl
except ImportError:  # on Windows, abandoned files stay
    fcntl = None  # type: ignore[assignment]

__all__ = ["write_atomically"]


def write_atomically(path: str | os.PathLike[str], write: Callable[[BinaryIO], object]) -> None:
    """Write a temporary file in the same folder, then rename it to `path`.

    A reader that opens `path` during the write, or has the old file mapped, sees the complete old
    file. If `path` is a symbolic link, the file that it points to is replaced. Temporary files that
    killed processes left beside `path` are removed.

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
    _remove_abandoned(directory, name)
    try:
        temporary, handle = _temporary(directory, name)
    except OSError as error:
        error.filename = target  # instead of the temporary name
        raise
    try:
        with os.fdopen(handle, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
            if os.name != "nt":  # while it is locked, nobody takes it for abandoned
                os.replace(temporary, target)
        if os.name == "nt":  # an open file cannot be renamed there
            os.replace(temporary, target)
    except BaseException as error:
        with suppress(OSError):
            os.unlink(temporary)
        if isinstance(error, OSError) and error.filename == temporary:
            error.filename = target
        raise
    with suppress(OSError):  # some systems cannot sync a directory
        handle = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _temporary(directory: str, name: str) -> tuple[str, int]:
    """Make a file that is locked as long as this process has it open."""
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
    while True:
        path = os.path.join(directory, f".{name[:64]}.{secrets.token_hex(8)}.tmp")
        handle = os.open(path, flags, 0o666)
        _lock(handle, wait=True)
        try:
            if os.path.samestat(os.stat(path), os.fstat(handle)):
                return path, handle
        except FileNotFoundError:  # another process removed it before it was locked
            pass
        os.close(handle)


def _lock(handle: int, wait: bool) -> bool:
    """Lock a file until it is closed; return whether that worked."""
    if fcntl is None:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError:  # locked by another process, or a file system without locks
        return False
    return True


def _remove_abandoned(directory: str, name: str) -> None:
    """Remove temporary files of `name` that no process writes any more."""
    pattern = re.compile(re.escape(f".{name[:64]}.") + "[0-9a-f]{16}" + re.escape(".tmp"))
    with suppress(OSError), os.scandir(directory or ".") as entries:
        for entry in entries:
            if not pattern.fullmatch(entry.name) or not entry.is_file(follow_symlinks=False):
                continue
            with suppress(OSError):
                handle = os.open(entry.path, os.O_RDWR | getattr(os, "O_NOFOLLOW", 0))
                try:
                    if _lock(handle, wait=False):
                        os.unlink(entry.path)
                finally:
                    os.close(handle)
