"""The exceptions of tinyllm."""

from __future__ import annotations

import re

__all__ = ["DeviceError", "Error", "FormatError", "UnsupportedError"]

# C0 but tab and line feed, DEL and C1, line separators, and characters that reorder a line
_CONTROL = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)


def printable(text: str) -> str:
    r"""Return a text in which each control character is an escape, so that a terminal shows it.

    A text from a file can hold sequences that set the title of a terminal, clear it, or write to
    the clipboard. Tabs and line feeds stay. Lone surrogates become escapes too, because no encoding
    has them.

    Parameters
    ----------
    text : str

    Returns
    -------
    str

    Examples
    --------
    >>> from tinyllm.errors import printable
    >>> print(printable("a\x1b[2J"))
    a\x1b[2J
    """
    return _CONTROL.sub(lambda match: ascii(match[0])[1:-1], text)


class Error(Exception):
    """Base class of tinyllm's own exceptions.

    Attributes
    ----------
    path : str or None
        The file that the error is about.

    Examples
    --------
    >>> import tinyllm
    >>> issubclass(tinyllm.FormatError, tinyllm.Error)
    True
    """

    path: str | None = None

    def __str__(self) -> str:
        message = super().__str__()
        return printable(message if self.path is None else f"{self.path}: {message}")


class FormatError(Error, ValueError):
    """Raised when a file does not follow its format.

    Parameters
    ----------
    message : str
        What is wrong, with the value that was found and what was expected.
    path : str, optional
        The file.
    field : str, optional
        The field of the file, for example ``"n_tensors"`` or ``"blk.0.attn_q.weight"``.
    value : object, optional
        The value of the field.
    expected : str, optional
        What was expected instead.
    offset : int, optional
        Start of the field, in bytes from the start of the file.

    Examples
    --------
    >>> import tinyllm
    >>> try:
    ...     tinyllm.GGUF(b"GGUF")
    ... except tinyllm.FormatError as error:
    ...     print(error.field, error.offset)
    version 4
    """

    def __init__(
        self,
        message: str = "",
        *,
        path: str | None = None,
        field: str | None = None,
        value: object = None,
        expected: str | None = None,
        offset: int | None = None,
    ) -> None:
        super().__init__(message)
        self.path = path
        self.field = field
        self.value = value
        self.expected = expected
        self.offset = offset


class UnsupportedError(Error, NotImplementedError):
    """Raised when the input is valid, but this version of tinyllm does not support it."""


class DeviceError(Error, RuntimeError):
    """Raised when a GPU or another device fails while it is used.

    The session of the call is as it was before. A device that was lost may come back: load the
    model again, which opens it anew, or load it on the CPU.
    """


def wrong(
    field: str,
    value: object,
    expected: str,
    *,
    shown: str | None = None,
    path: str | None = None,
    offset: int | None = None,
) -> FormatError:
    """Return the FormatError for a field whose value is not as expected.

    Parameters
    ----------
    field, value, expected, path, offset
        Attributes of the :class:`FormatError`. Its message is made from them.
    shown : str, optional
        The value as the message shows it. Default: ``str(value)``.

    Returns
    -------
    FormatError

    Examples
    --------
    >>> from tinyllm.errors import wrong
    >>> str(wrong("dim", -1, "a positive number", offset=0))
    'dim is -1; expected a positive number (at byte 0)'
    """
    where = "" if offset is None else f" (at byte {offset})"
    return FormatError(
        f"{field} is {value if shown is None else shown}; expected {expected}{where}",
        path=path,
        field=field,
        value=value,
        expected=expected,
        offset=offset,
    )
