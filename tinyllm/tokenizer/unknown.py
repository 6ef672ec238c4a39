"""The tokenizer of a file whose kind of tokenizer is unknown: it has a vocabulary, but no text."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, NoReturn

from ..errors import UnsupportedError
from .base import Tokenizer
from .explain import Step
from .stream import StreamDecoder

__all__ = ["UnknownTokenizer"]


class UnknownTokenizer(Tokenizer):
    """Stands for a tokenizer that tinyllm does not have, so that its model still runs on ids.

    The vocabulary and the special tokens are those of the file. Whatever converts between text and
    ids raises.

    Parameters
    ----------
    metadata : Mapping
        The metadata of a GGUF file.
    reason : str
        What is missing. It becomes the message of the errors.

    Raises
    ------
    tinyllm.FormatError
        If the vocabulary is malformed.

    Examples
    --------
    >>> from tinyllm.tokenizer.unknown import UnknownTokenizer
    >>> tokenizer = UnknownTokenizer({"tokenizer.ggml.tokens": ["a", "b"]}, "the kind is unknown")
    >>> tokenizer.encode("a")
    Traceback (most recent call last):
    tinyllm.errors.UnsupportedError: the kind is unknown. The model runs on token ids, and \
load(..., tokenizer=) adds a tokenizer
    """

    kind: ClassVar[str] = "unknown"
    has_text: ClassVar[bool] = False

    def __init__(self, metadata: Mapping[str, Any], reason: str) -> None:
        super().__init__(metadata)
        self._reason = reason

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the keys that make it, so that it needs no file elsewhere."""
        keys = [key for key in self._metadata if key.startswith("tokenizer.")]
        return type(self), ({key: self._metadata[key] for key in keys}, self._reason)

    def _refuse(self) -> NoReturn:
        raise UnsupportedError(
            f"{self._reason}. The model runs on token ids, and load(..., tokenizer=) adds a "
            "tokenizer"
        )

    def _encode_fragment(self, text: bytes, after_special: bool) -> list[int]:
        self._refuse()

    def _explain_fragment(self, text: bytes, after_special: bool) -> list[Step]:
        self._refuse()

    def _render(self, token: int) -> bytes:
        self._refuse()

    def encode_fragments(self, *args: Any, **kwargs: Any) -> list[int]:
        """Raise, because texts cannot be encoded."""
        self._refuse()

    def pieces_bytes(self, ids: Iterable[int] | int, skip_special: bool = False) -> list[bytes]:
        """Raise, because the bytes of tokens are unknown."""
        self._refuse()

    def stream_decoder(self, *args: Any, **kwargs: Any) -> StreamDecoder:
        """Raise, because the bytes of tokens are unknown."""
        self._refuse()
