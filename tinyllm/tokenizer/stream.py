"""Decode token ids to text incrementally."""

from __future__ import annotations

import codecs
from collections.abc import Iterable
from typing import Protocol

__all__ = ["StreamDecoder"]


class Pieces(Protocol):
    """The part of a tokenizer that `StreamDecoder` uses."""

    @property
    def strips_prefix(self) -> bool:
        """Whether `decode` removes the space that `encode` puts before a text."""

    def pieces_bytes(self, ids: Iterable[int] | int, skip_special: bool = False) -> list[bytes]:
        """Return the bytes of each id."""


class StreamDecoder:
    """Decodes ids incrementally, without splitting characters.

    The results of all calls, concatenated, are what `Tokenizer.decode` returns for all ids at
    once. A decoder must not be used by two threads at the same time.

    Parameters
    ----------
    tokenizer : Tokenizer
    skip_special, errors, strip_prefix
        As in `Tokenizer.decode`. Use ``strip_prefix=False`` for ids that continue a text.

    Examples
    --------
    >>> import tinyllm as tl
    >>> tokenizer = tl.load("demo").tokenizer
    >>> decoder = tl.StreamDecoder(tokenizer)
    >>> ids = tokenizer.encode("é", add_special=False)
    >>> "".join(decoder.feed(i) for i in ids) + decoder.finish()
    'é'
    """

    def __init__(
        self,
        tokenizer: Pieces,
        skip_special: bool = False,
        errors: str = "replace",
        strip_prefix: bool = True,
    ) -> None:
        self._tokenizer = tokenizer
        self._skip_special = skip_special
        self._strip = strip_prefix and tokenizer.strips_prefix
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors)

    def feed(self, ids: Iterable[int] | int) -> str:
        """Return the text that these ids complete, possibly ``""``.

        Parameters
        ----------
        ids : int or iterable of int

        Returns
        -------
        str

        Raises
        ------
        IndexError
            If an id is outside the vocabulary.
        """
        data = b"".join(self._tokenizer.pieces_bytes(ids, self._skip_special))
        if data and self._strip:
            data = data.removeprefix(b" ")
            self._strip = False
        return self._decoder.decode(data)

    def finish(self) -> str:
        """Return the remaining text: U+FFFD for an incomplete character if ``errors="replace"``.

        Returns
        -------
        str
        """
        return self._decoder.decode(b"", final=True)
