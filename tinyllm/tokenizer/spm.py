"""SentencePiece BPE: merges by score; unknown characters become bytes.

Follows llama.cpp's `llm_tokenizer_spm`, which needs only the vocabulary to give the ids of
SentencePiece's `bpe` model (https://github.com/google/sentencepiece).
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from .. import _core
from .base import Tokenizer
from .explain import Step
from .merging import merge
from .vocab import TokenType, to_bytes

__all__ = ["SpmTokenizer", "characters"]

_SPACE = "▁".encode()
_CHARACTER = re.compile(rb"[\xc0-\xdf].?|[\xe0-\xef].{0,2}|[\xf0-\xff].{0,3}|.", re.DOTALL)


def characters(text: bytes) -> list[bytes]:
    r"""Return the UTF-8 characters of a text, split by lead bytes; invalid bytes are kept.

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
    """Replaces spaces by U+2581, then merges neighbours that form a token, best score first.

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

    #: Whether the C core encodes. If not, the Python code here gives the same ids.
    use_core: ClassVar[bool] = True

    def __init__(self, metadata: Mapping[str, Any]) -> None:
        super().__init__(metadata)
        self._encoder = self._make_encoder() if self.use_core else None

    def _make_encoder(self) -> _core.Encoder:
        return _core.Encoder(
            kind="spm",
            tokens=self._vocab.texts,
            weak=self._vocab.is_byte,
            byte_ids=self._byte_fallback,
            scores=self._vocab.scores,
            merges=[],
            splitters=[],
            ignore_merges=False,
            cut_at_spaces=self._cuts_at_spaces,
        )

    @functools.cached_property
    def _byte_fallback(self) -> list[int]:
        """The id for each byte of a symbol that is not in the vocabulary; -1 drops the byte."""
        unknown = -1 if self.unk is None else self.unk
        return [unknown if i is None else i for i in self._vocab.byte_ids]

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

        If so, no merge crosses the start of a run of U+2581, and words can be merged (and cached)
        one by one.
        """
        types = self._vocab.types
        return not any(
            # the quickest test first: few tokens pass it
            "▁" in text[1:]
            and "▁" in text.lstrip("▁")
            and types[i] not in (TokenType.CONTROL, TokenType.UNKNOWN)
            for i, text in enumerate(self._vocab.texts)
        )

    def _normalize(self, text: bytes, after_special: bool) -> bytes:
        if after_special and self.add_space_prefix:
            text = b" " + text
        return text.replace(b" ", _SPACE)

    def _words(self, text: bytes) -> list[bytes]:
        if not self._cuts_at_spaces:
            return [text]
        words = re.split(rb"(?<!\xe2\x96\x81)(?=\xe2\x96\x81)", text)
        return words[1:] if not words[0] else words

    def _encode_fragment(self, text: bytes, after_special: bool) -> list[int]:
        text = self._normalize(text, after_special)
        if self._encoder is not None:
            return self._encoder.encode(text)[0]
        out: list[int] = []
        for word in self._words(text):
            out += self._ids(merge(characters(word), self._order))
        return out

    def _ids(self, symbols: list[bytes]) -> list[int]:
        out: list[int] = []
        ids = self._vocab.id_of_bytes
        for symbol in symbols:
            token = ids.get(symbol)
            if token is not None:
                out.append(token)
            else:
                out += [self._byte_fallback[b] for b in symbol if self._byte_fallback[b] >= 0]
        return out

    def _explain_fragment(self, text: bytes, after_special: bool) -> list[Step]:
        text = self._normalize(text, after_special)
        steps = [Step("normalize", text, "spaces become U+2581")]
        for word in self._words(text):
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
