"""SentencePiece BPE: merges by score, unknown characters as bytes.

After llama.cpp's `llm_tokenizer_spm`, which gives the ids of SentencePiece's own `bpe` model
(https://github.com/google/sentencepiece) from the vocabulary alone.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from .base import Tokenizer
from .explain import Step
from .merging import merge
from .vocab import TokenType, to_bytes

__all__ = ["SpmTokenizer", "characters"]

_SPACE = "▁".encode()
_CHARACTER = re.compile(rb"[\xc0-\xdf].?|[\xe0-\xef].{0,2}|[\xf0-\xff].{0,3}|.", re.DOTALL)
_CACHED_WORD = 64  # bytes; words in real texts are shorter
_CACHE_SIZE = 100_000


def characters(text: bytes) -> list[bytes]:
    r"""Cut bytes into UTF-8 characters by the lead byte alone; bytes that are not UTF-8 stay.

    Parameters
    ----------
    text : bytes

    Returns
    -------
    list of bytes

    Examples
    --------
    >>> characters("né".encode())
    [b'n', b'\xc3\xa9']
    """
    return _CHARACTER.findall(text)


class SpmTokenizer(Tokenizer):
    """Spaces become U+2581; neighbours whose union is a token merge, the best score first.

    Parameters
    ----------
    metadata : Mapping
        The metadata of a GGUF file with ``tokenizer.ggml.model = "llama"``.

    Examples
    --------
    >>> tokenizer = SpmTokenizer({"tokenizer.ggml.tokens": ["<unk>", "<s>", "</s>", "▁", "a"]})
    >>> tokenizer.encode("a a", add_special=False)
    [3, 4, 3, 4]
    """

    kind = "SPM"
    defaults: ClassVar[Mapping[str, Any]] = {
        "bos": 1, "eos": 2, "unk": 0, "add_bos": True, "add_space_prefix": True,
    }  # fmt: skip

    def __init__(self, metadata: Mapping[str, Any]) -> None:
        super().__init__(metadata)
        self._cache: dict[bytes, list[int]] = {}

    @functools.cached_property
    def _order(self) -> Callable[[bytes, bytes], float | None]:
        scores = self._vocab.scores
        ids = self._vocab.id_of_bytes
        if scores is None:
            return lambda a, b: None if ids.get(a + b) is None else 0.0
        order = {text: -scores[i] for text, i in ids.items()}
        return lambda a, b: order.get(a + b)

    @functools.cached_property
    def _cuts_at_spaces(self) -> bool:
        """Whether no token has U+2581 after another character.

        Then no merge ever crosses the start of a run of U+2581, and words can be merged (and
        remembered) one by one.
        """
        types = self._vocab.types
        return not any(
            types[i] not in (TokenType.CONTROL, TokenType.UNKNOWN) and "▁" in text.lstrip("▁")
            for i, text in enumerate(self._vocab.texts)
        )

    def _words(self, text: bytes, after_special: bool) -> list[bytes]:
        if after_special and self.add_space_prefix:
            text = b" " + text
        text = text.replace(b" ", _SPACE)
        if not self._cuts_at_spaces:
            return [text]
        words = re.split(rb"(?<!\xe2\x96\x81)(?=\xe2\x96\x81)", text)
        return words[1:] if not words[0] else words

    def _encode_fragment(self, text: bytes, after_special: bool) -> list[int]:
        out: list[int] = []
        cache = self._cache
        for word in self._words(text, after_special):
            found = cache.get(word)
            if found is None:
                found = self._ids(merge(characters(word), self._order))
                if len(word) <= _CACHED_WORD and len(cache) < _CACHE_SIZE:
                    cache[word] = found
            out += found
        return out

    def _ids(self, symbols: list[bytes]) -> list[int]:
        out: list[int] = []
        ids = self._vocab.id_of_bytes
        for symbol in symbols:
            token = ids.get(symbol)
            if token is not None:
                out.append(token)
                continue
            for value in symbol:
                stand_in = self._vocab.byte_ids[value]
                stand_in = self.unk if stand_in is None else stand_in
                if stand_in is not None:
                    out.append(stand_in)
        return out

    def _explain_fragment(self, text: bytes, after_special: bool) -> list[Step]:
        words = self._words(text, after_special)
        steps = [Step("normalize", b"".join(words), "spaces are U+2581")]
        for word in words:
            merges: list[Step] = []

            def note(a: bytes, b: bytes, order: float, merges: list[Step] = merges) -> None:
                merges.append(Step("merge", a + b, f"{_text(a)} + {_text(b)}, score {-order:g}"))

            steps.append(Step("word", word))
            symbols = merge(characters(word), self._order, note)
            steps += merges
            for symbol in symbols:
                known = symbol in self._vocab.id_of_bytes
                detail = "in the vocabulary" if known else "not in the vocabulary: bytes"
                steps.append(Step("tokens", symbol, detail, self._ids([symbol])))
        return steps

    def _render(self, token: int) -> bytes:
        return to_bytes(self._vocab.texts[token].replace("▁", " "))


def _text(symbol: bytes) -> str:
    return symbol.decode(errors="backslashreplace")
