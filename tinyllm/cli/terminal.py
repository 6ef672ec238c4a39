"""The terminal of ``tinyllm chat``: messages that a person types or pastes, and wrapped words."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import unicodedata
from collections.abc import Callable, Iterator
from pathlib import Path

from .output import complain, stream

__all__ = ["Wrapper", "history_file", "messages"]

_HISTORY = 1000  # lines
_QUOTES = '"""'


class Wrapper:
    r"""Writes a text that arrives in pieces, with line breaks between words.

    A word appears when it is complete, so nothing on the screen ever changes. Where the output is
    no terminal, the text is written unchanged.

    Parameters
    ----------
    write : callable
        Takes a text.
    width : int, optional
        The columns of the terminal. None: ask it; 0: no line breaks.

    Examples
    --------
    >>> wrapper = Wrapper(lambda text: print(text, end=""), width=10)
    >>> for piece in ("To be", ", or not", " to be", "\n"):
    ...     wrapper.feed(piece)
    To be, or
    not to be
    """

    def __init__(self, write: Callable[[str], None] = stream, width: int | None = None) -> None:
        if width is None:
            width = shutil.get_terminal_size().columns if sys.stdout.isatty() else 0
        self._write = write
        self._width = width
        self._column = 0
        self._blanks = ""
        self._word = ""
        self._wide = False  # whether the word ends in a wide character

    def feed(self, text: str) -> None:
        """Write a piece of the text, but for its last word."""
        if self._width < 10:
            self._write(text)
            return
        for character in text:
            if character == "\n":
                self._flush()
                self._write("\n")
                self._column, self._blanks = 0, ""
            elif character == " ":
                self._flush()
                self._blanks += character
            else:
                size = _columns(character)
                full = self._wide or size == 2 or _columns(self._word) >= self._width
                if size and full:  # scripts without blanks break between any two characters
                    self._flush()
                self._wide = size == 2 or (self._wide and not size)
                self._word += character

    def finish(self) -> None:
        """Write what is left."""
        self._flush()
        self._write(self._blanks)
        self._blanks = ""

    def _flush(self) -> None:
        if not self._word:
            return
        size = _columns(self._blanks) + _columns(self._word)
        if self._column and self._column + size > self._width:
            self._write("\n")
            self._column, self._blanks = 0, ""
        self._write(self._blanks + self._word)
        self._column += _columns(self._blanks) + _columns(self._word)
        self._blanks = self._word = ""
        self._wide = False


def _columns(text: str) -> int:
    """Return how many columns of a terminal a text takes."""
    return sum(
        0
        if unicodedata.combining(character) or unicodedata.category(character) == "Cf"
        else 2
        if unicodedata.east_asian_width(character) in "WF"
        else 1
        for character in text
    )


def history_file() -> Path:
    """Return the path of the history of typed lines, in the user's state directory.

    Returns
    -------
    pathlib.Path
        It follows the XDG Base Directory Specification.

    Examples
    --------
    >>> history_file().name
    'chat_history'
    """
    state = os.environ.get("XDG_STATE_HOME", "")
    base = Path(state) if os.path.isabs(state) else Path("~/.local/state").expanduser()
    return base / "tinyllm" / "chat_history"


@contextlib.contextmanager
def _line_editing() -> Iterator[None]:
    """Enable line editing and history in `input`, as far as the system supports them."""
    try:
        import readline
    except ImportError:
        yield
        return
    if os.environ.get("TERM", "dumb") != "dumb":
        # what is pasted, with its line feeds, is one line for `input`
        readline.parse_and_bind("set enable-bracketed-paste on")
    try:
        path = history_file()
    except RuntimeError:  # no home directory
        yield
        return
    with contextlib.suppress(OSError):
        readline.read_history_file(path)
    readline.set_history_length(_HISTORY)
    readline.set_auto_history(True)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            readline.write_history_file(path)


def messages() -> Iterator[str]:
    """Yield what a person sends until the input ends: lines, pastes, and blocks in quotes.

    A line that begins with three quotation marks begins a block. The block ends with the next three
    at the end of a line, and is one message. Ctrl-C at a prompt discards what was typed.
    """
    lines = _typed_lines() if sys.stdin.isatty() and sys.stdout.isatty() else _Lines(sys.stdin)
    for first in lines:
        if not first.lstrip().startswith(_QUOTES):
            yield first
            continue
        block = first.lstrip().removeprefix(_QUOTES).removesuffix("\n")
        while not block.rstrip().endswith(_QUOTES):
            try:
                more = lines.continued()
            except StopIteration:
                complain('(the block does not end; expected """ at the end of a line)')
                return
            if more is None:  # Ctrl-C
                break
            block += "\n" + more.removesuffix("\n")
        else:
            yield block.rstrip().removesuffix(_QUOTES)


class _Lines:
    """The lines of a file."""

    def __init__(self, lines: Iterator[str]) -> None:
        self._lines = lines

    def __iter__(self) -> Iterator[str]:
        yield from self._lines

    def continued(self) -> str | None:
        """Return the next line of a block."""
        return next(self._lines)


class _TypedLines(_Lines):
    """The lines that a person types."""

    def __init__(self) -> None:
        pass

    def __iter__(self) -> Iterator[str]:
        with _line_editing():
            while True:
                try:
                    yield input("> ")
                except EOFError:
                    print()
                    return
                except KeyboardInterrupt:
                    print()
                    complain("(Ctrl-D quits)")

    def continued(self) -> str | None:
        """Return the next line of a block; None after Ctrl-C."""
        try:
            return input("... ")
        except EOFError:
            print()
            raise StopIteration from None
        except KeyboardInterrupt:
            print()
            return None


def _typed_lines() -> _Lines:
    return _TypedLines()
