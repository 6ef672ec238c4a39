"""Mistakes on the way from a text to token ids. They are found from the ids and the text."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from ..tokenizer import Tokenizer, tokenizer_from_metadata
from .catalogue import CATALOGUE, Fault, Variant, fault
from .replay import Array

__all__ = ["Asked", "same_texts", "wrong_ids"]


@dataclasses.dataclass(frozen=True)
class Asked:
    """What an engine was asked to run.

    Attributes
    ----------
    ids : list of int
        The right ids.
    tokenizer : Tokenizer or None
    metadata : mapping
        The keys of the model file.
    text : str or None
        The text, if ids were not given. That of a conversation is the text of its messages.
    chat : bool
        Whether it is a conversation.
    """

    ids: list[int]
    tokenizer: Tokenizer | None
    metadata: Mapping[str, Any]
    text: str | None = None
    chat: bool = False

    @property
    def bos(self) -> int | None:
        """The id of BOS, if the file has one."""
        return None if self.tokenizer is None else self.tokenizer.bos


def wrong_ids(asked: Asked) -> Iterator[tuple[Fault, Variant, Array]]:
    """Yield the ids that each mistake gives, where they differ from the right ones.

    Parameters
    ----------
    asked : Asked

    Yields
    ------
    Fault, Variant, (T,) int64 array
    """
    for entry in CATALOGUE.values():
        if "tokens" not in entry.ops:
            continue
        for variant in entry.variants(None, len(asked.ids), 0):  # type: ignore[arg-type]
            ids = entry.wrong(asked, variant.value)  # type: ignore[arg-type]
            if len(ids) and list(ids) != asked.ids:
                yield entry, variant, np.asarray(ids, np.int64)


@fault(
    "bos_missing",
    "tokens",
    "The token for the begin of a text is missing.",
    "Put BOS before the first token, as the file demands.",
)
def _bos_missing(asked: Any, value: Any) -> Any:
    starts = asked.bos is not None and asked.ids[:1] == [asked.bos]
    return asked.ids[1:] if starts else []


@fault(
    "bos_twice",
    "tokens",
    "The token for the begin of a text stands there twice.",
    "Add BOS only where the text does not begin with it already.",
)
def _bos_twice(asked: Any, value: Any) -> Any:
    starts = asked.bos is not None and asked.ids[:1] == [asked.bos]
    return [asked.bos, *asked.ids] if starts else []


@fault(
    "bos_added",
    "tokens",
    "There is a token for the begin of a text, and this model has none there.",
    "Add BOS only if the file demands it: the key tokenizer.ggml.add_bos_token.",
)
def _bos_added(asked: Any, value: Any) -> Any:
    starts = asked.bos is None or asked.ids[:1] == [asked.bos]
    return [] if starts else [asked.bos, *asked.ids]


def _encode(asked: Asked, text: str, parse_special: bool = False, **keys: Any) -> list[int]:
    """Return the ids of another text, or with other keys of the tokenizer."""
    tokenizer = asked.tokenizer
    if tokenizer is None or asked.text is None:
        return []
    if keys:
        changed = {f"tokenizer.ggml.{key}": value for key, value in keys.items()}
        other = tokenizer_from_metadata({**asked.metadata, **changed})
        tokenizer = tokenizer if other is None else other
    return tokenizer.encode(text, None, parse_special)


@fault(
    "leading_space_missing",
    "tokens",
    "The text is encoded without the space that this tokenizer puts before it.",
    "Put a space before the text, as the key tokenizer.ggml.add_space_prefix says.",
)
def _leading_space_missing(asked: Any, value: Any) -> Any:
    prefix = getattr(asked.tokenizer, "add_space_prefix", False)
    if not prefix or asked.text is None or asked.chat:
        return []
    return _encode(asked, asked.text, add_space_prefix=False)


@fault(
    "newline_as_space",
    "tokens",
    "Newlines are encoded as spaces.",
    "Encode the text as it is.",
)
def _newline_as_space(asked: Any, value: Any) -> Any:
    if asked.text is None or "\n" not in asked.text or asked.chat:
        return []
    return _encode(asked, asked.text.replace("\n", " "))


@fault(
    "special_tokens_as_text",
    "tokens",
    "Special tokens are {}.",
    "Find the texts of special tokens before the rest of the text is encoded, if the text comes "
    "from a template and not from a user.",
    variants=lambda plan, tokens, prompt: [
        Variant("encoded as text", False),
        Variant("recognized in a text that should be plain", True),
    ],
)
def _special_tokens_as_text(asked: Any, value: Any) -> Any:
    if asked.text is None or asked.chat:
        return []
    return _encode(asked, asked.text, value)


@fault(
    "wrong_id_for_same_text",
    "tokens",
    "Some tokens have another id with the same text.",
    "Several ids can have one text. Do not find an id by the text of its token alone.",
)
def _wrong_id_for_same_text(asked: Any, value: Any) -> Any:
    tokenizer = asked.tokenizer
    if tokenizer is None or not tokenizer.has_text:
        return []
    known = len(tokenizer)
    return [
        tokenizer.ids(tokenizer.pieces_bytes([i])[0])[-1]
        if i < known and not tokenizer.is_special(i)
        else i
        for i in asked.ids
    ]


def same_texts(asked: Asked, ids: Array) -> bool:
    """Return whether ids differ from the right ones only where they have the same text."""
    tokenizer = asked.tokenizer
    if tokenizer is None or not tokenizer.has_text or len(ids) != len(asked.ids):
        return False
    pairs = [(int(a), b) for a, b in zip(ids, asked.ids, strict=True) if a != b]
    if not pairs or max(max(pair) for pair in pairs) >= len(tokenizer):
        return False
    return all(tokenizer.pieces_bytes([a]) == tokenizer.pieces_bytes([b]) for a, b in pairs)


@fault(
    "chat_template_missing",
    "tokens",
    "The conversation is encoded without the chat template of the model.",
    "Render the conversation with the template of the file.",
)
def _chat_template_missing(asked: Any, value: Any) -> Any:
    return _encode(asked, asked.text) if asked.chat and asked.text is not None else []
