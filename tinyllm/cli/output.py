"""What the commands write: no character stops them, and none controls the terminal."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import warnings
from collections.abc import Iterator
from typing import Any

from ..errors import printable

__all__ = ["complain", "show", "show_json", "standard_streams", "stream"]


def show(value: object = "", end: str = "\n") -> None:
    r"""Print a value on standard output, its control characters as escapes.

    Parameters
    ----------
    value : object
    end : str

    Examples
    --------
    >>> from tinyllm.cli.output import show
    >>> show("a\x1b[2J")
    a\x1b[2J
    """
    print(printable(str(value)), end=end)


def show_json(value: object) -> None:
    r"""Print a value as a line of JSON at once; what would control a terminal is escaped.

    Parameters
    ----------
    value : object

    Examples
    --------
    >>> from tinyllm.cli.output import show_json
    >>> show_json({"text": "é\x9b"})
    {"text": "é\u009b"}
    """
    text = json.dumps(value, ensure_ascii=False)
    safe = (c if printable(c) == c else f"\\u{ord(c):04x}" for c in text)
    print("".join(safe), flush=True)


def stream(text: str) -> None:
    """Write a piece of a model's text at once. On a terminal, control characters are escapes.

    Elsewhere the text is unchanged, so that a file gets exactly what the model wrote.

    Parameters
    ----------
    text : str

    Examples
    --------
    >>> from tinyllm.cli.output import stream
    >>> stream("a")
    a
    """
    sys.stdout.write(printable(text) if sys.stdout.isatty() else text)
    sys.stdout.flush()


def complain(text: str) -> None:
    """Print a line on standard error, if there is one.

    Parameters
    ----------
    text : str
    """
    if sys.stderr is not None:  # else print() would use standard output
        with contextlib.suppress(OSError, ValueError):
            print(printable(text), file=sys.stderr, flush=True)


@contextlib.contextmanager
def standard_streams() -> Iterator[None]:
    """Set up the standard streams for a command, and leave nothing in them that fails later.

    A character that the encoding of a stream does not have becomes an escape. Warnings are one line
    each. What cannot be written at the end is dropped, because Python would complain about it after
    the command.

    Raises
    ------
    OSError
        If standard output is closed.
    """
    _open_missing()
    for target in (sys.stdin, sys.stdout, sys.stderr):
        if hasattr(target, "reconfigure"):
            # bytes of a prompt that are not text reach the tokenizer unchanged
            target.reconfigure(
                errors="surrogateescape" if target is sys.stdin else "backslashreplace"
            )
    if sys.stdout is None:
        raise OSError("standard output is closed; expected a file, a pipe or a terminal")
    before = warnings.showwarning
    warnings.showwarning = _show_warning
    try:
        yield
        sys.stdout.flush()
    finally:
        warnings.showwarning = before
        try:
            sys.stdout.flush()
        except (OSError, ValueError):
            _drop_output()


def _show_warning(message: Any, category: Any, *_: Any, **__: Any) -> None:
    complain(f"tinyllm: warning: {' '.join(str(message).split())}")


def _open_missing() -> None:
    """Open the null device where a standard stream is closed, so that no other file takes it."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)


def _drop_output() -> None:
    with contextlib.suppress(OSError, ValueError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)
