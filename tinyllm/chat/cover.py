"""From the text of a conversation to ids, with special tokens in messages covered."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Protocol

from .sandbox import ChatTemplateError

__all__ = ["Cover", "encode_chat"]


class Cover:
    """Covers the special tokens that messages contain while a template writes them.

    Each is one private-use character meanwhile, so that a template moves and trims it as any
    other character, and no template can cut it in two.

    Parameters
    ----------
    spellings : iterable of bytes
        Of the special tokens.
    *others
        Characters in these values are not used: what the template may write anyway.

    Examples
    --------
    >>> cover = Cover([b"<s>"])
    >>> text = cover.hide({"content": "a<s>"})["content"]
    >>> "<s>" in text, cover.uncover(text.encode())
    (False, b'a<s>')
    """

    def __init__(self, spellings: Iterable[bytes], *others: Any) -> None:
        texts = sorted({s.decode(errors="surrogateescape") for s in spellings}, key=len)[::-1]
        self._pattern = re.compile("|".join(map(re.escape, texts))) if texts else None
        taken = {c for text in _strings(others) for c in text if "\ue000" <= c <= "\uf8ff"}
        self._free = (chr(c) for c in range(0xE000, 0xF900) if chr(c) not in taken)
        self._characters: dict[str, str] = {}
        self._back: dict[bytes, bytes] = {}

    def _character(self, match: re.Match[str]) -> str:
        spelling = match[0]
        if spelling not in self._characters:
            character = next(self._free, None)
            if character is None:
                raise ChatTemplateError("the messages contain too many different special tokens")
            self._characters[spelling] = character
            raw = spelling.encode(errors="surrogateescape")
            self._back[character.encode()] = raw
            self._back[json.dumps(character)[1:-1].encode()] = raw  # as tojson may write it
        return self._characters[spelling]

    def hide(self, value: Any) -> Any:
        """Return a value with all special tokens in its strings covered."""
        if self._pattern is None:
            return value
        if isinstance(value, str):
            return self._pattern.sub(self._character, value)
        if isinstance(value, Mapping):
            return {self.hide(key): self.hide(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [self.hide(item) for item in value]
        return value

    def uncover(self, text: bytes) -> bytes:
        """Return a text as it would be without covers."""
        if not self._back:
            return text
        covers = b"|".join(map(re.escape, self._back))
        return re.sub(covers, lambda match: self._back[match[0]], text)


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for pair in value.items():
            yield from _strings(pair)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _strings(item)
    elif callable(value):
        yield inspect.getdoc(value) or ""


class Encodes(Protocol):
    """What `encode_chat` asks of a tokenizer."""

    bos: int | None
    add_bos: bool

    def encode_fragments(
        self, text: str, parse_special: bool, change: Callable[[bytes], bytes] | None = None
    ) -> list[int]:
        """Return the ids of a text in which special tokens are parsed."""


def encode_chat(tokenizer: Encodes, text: str, cover: Cover | None = None) -> list[int]:
    """Return the ids of a rendered conversation.

    The template says where special tokens are: they are parsed, and none is added but the BOS of
    a model that wants one and whose template has not written it.

    Parameters
    ----------
    tokenizer : tinyllm.Tokenizer
    text : str
        What `render_chat` gave.
    cover : Cover, optional
        What hid special tokens in the messages: these become plain text.

    Returns
    -------
    list of int

    Examples
    --------
    >>> from tinyllm.tokenizer import tokenizer_from_metadata
    >>> t = tokenizer_from_metadata({
    ...     "tokenizer.ggml.model": "llama", "tokenizer.ggml.tokens": ["<unk>", "<s>", "</s>", "▁"],
    ...     "tokenizer.ggml.token_type": [2, 3, 3, 1]})
    >>> encode_chat(t, "<s>"), encode_chat(t, " </s>")
    ([1], [1, 3, 3, 2])
    """
    ids = tokenizer.encode_fragments(text, True, None if cover is None else cover.uncover)
    if tokenizer.add_bos and tokenizer.bos is not None and ids[:1] != [tokenizer.bos]:
        ids.insert(0, tokenizer.bos)
    return ids
