"""Encode rendered conversations; special tokens inside messages can stay plain text."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Protocol

from .limits import ChatTemplateError

__all__ = ["Cover", "encode_chat"]


class Cover:
    """Replaces special tokens in messages with placeholders while a template is rendered.

    A placeholder is one private-use character. The template moves and trims it like any other
    character, and cannot cut it in two.

    Parameters
    ----------
    spellings : iterable of bytes
        The texts of the special tokens.
    *others
        Other values that the template may write. Their characters are not used as placeholders.

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
                raise ChatTemplateError(
                    "the messages contain too many different special tokens; "
                    "no private-use character is left to replace another"
                )
            self._characters[spelling] = character
            raw = spelling.encode(errors="surrogateescape")
            self._back[character.encode()] = raw
            self._back[json.dumps(character)[1:-1].encode()] = raw  # as tojson may escape it
        return self._characters[spelling]

    def hide(self, value: Any) -> Any:
        """Return a value with placeholders for all special tokens in its strings."""
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
        """Return a text with the special tokens in place of their placeholders."""
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
    """The part of a tokenizer that `encode_chat` uses."""

    bos: int | None
    add_bos: bool

    def encode_fragments(
        self, text: str, parse_special: bool, change: Callable[[bytes], bytes] | None = None
    ) -> list[int]:
        """Return the ids of a text; see `Tokenizer.encode_fragments`."""


def encode_chat(tokenizer: Encodes, text: str, cover: Cover | None = None) -> list[int]:
    """Return the ids of a rendered conversation.

    Special tokens that the template wrote are parsed. The BOS token is added if the model asks
    for one and the template has not written it. No other token is added.

    Parameters
    ----------
    tokenizer : tinyllm.Tokenizer
    text : str
        The result of `render_chat`.
    cover : Cover, optional
        The cover that replaced special tokens in the messages. These become plain text.

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
