"""WordPiece, as BERT uses it.

Devlin et al., "BERT" (2019); the rules are those of Hugging Face's `BertNormalizer`,
`BertPreTokenizer` and `WordPiece` (https://github.com/huggingface/tokenizers), which llama.cpp
only approximates. In GGUF, tokens that start a word begin with U+2581, and the others have no
``##``.
"""

from __future__ import annotations

import functools
import re
import unicodedata
from collections.abc import Mapping
from typing import Any, ClassVar

from .base import Tokenizer
from .explain import Step
from .unicode_classes import class_body
from .vocab import TokenType, lowered, to_bytes, to_text

__all__ = ["WpmTokenizer"]

_LONGEST_WORD = 100  # characters; longer words are unknown
_CJK = (
    r"\u4e00-\u9fff\u3400-\u4dbf\U00020000-\U0002a6df\U0002a700-\U0002b73f\U0002b740-\U0002b81f"
    r"\U0002b920-\U0002ceaf\uf900-\ufaff\U0002f800-\U0002fa1f"
)
_ASCII_SYMBOLS = r"!-/:-@\[-`{-~"


@functools.cache
def _patterns() -> dict[str, re.Pattern[str]]:
    blank = class_body("White_Space")
    mark = f"{_ASCII_SYMBOLS}{class_body('P')}"
    return {
        "removed": re.compile(rf"(?![\t\n\r])[\0\ufffd{class_body('C')}]"),
        "blank": re.compile(f"[{blank}]"),
        "cjk": re.compile(f"([{_CJK}])"),
        "accent": re.compile(f"[{class_body('Mn')}]"),
        "word": re.compile(f"[{mark}]|[^{blank}{mark}]+"),
    }


class WpmTokenizer(Tokenizer):
    """Splits cleaned text into words, and each word into the longest tokens from its start.

    Parameters
    ----------
    metadata : Mapping
        The metadata of a GGUF file with ``tokenizer.ggml.model = "bert"``.

    Examples
    --------
    >>> tokenizer = WpmTokenizer({"tokenizer.ggml.tokens": ["[UNK]", "▁play", "ing", "▁!"]})
    >>> tokenizer.encode("Playing!", add_special=False)
    [1, 2, 3]
    """

    kind = "WordPiece"
    defaults: ClassVar[Mapping[str, Any]] = {
        "bos": 101, "unk": 100, "sep": 102, "pad": 0, "add_bos": True, "add_sep": True,
    }  # fmt: skip

    def __init__(self, metadata: Mapping[str, Any]) -> None:
        if "tokenizer.ggml.bos_token_id" not in metadata:
            cls = metadata.get("tokenizer.ggml.cls_token_id")
            if cls is not None:
                metadata = {**metadata, "tokenizer.ggml.bos_token_id": cls}
        super().__init__(metadata)
        self._lowercase = self._vocab.flag("normalizer.lowercase", True)
        self._strip_accents = self._vocab.flag("normalizer.strip_accents", self._lowercase)

    @functools.cached_property
    def strips_prefix(self) -> bool:
        """As in `Tokenizer`."""
        return True  # decoding puts a space before every word, also the first

    @functools.cached_property
    def _tables(self) -> tuple[dict[str, int], dict[str, int], int]:
        starts: dict[str, int] = {}
        others: dict[str, int] = {}
        for text, token in self._vocab.id_of_text.items():
            if self._vocab.types[token] in (TokenType.CONTROL, TokenType.UNKNOWN):
                continue
            if text.startswith("▁") and len(text) > 1:
                starts[text[1:]] = token
            else:
                others[text] = token
        return starts, others, max(map(len, [*starts, *others]), default=0)

    def _words(self, text: bytes) -> list[str]:
        patterns = _patterns()
        string = patterns["removed"].sub("", to_text(text))
        string = patterns["blank"].sub(" ", string)
        string = patterns["cjk"].sub(r" \1 ", string)
        if self._strip_accents:
            string = patterns["accent"].sub("", unicodedata.normalize("NFD", string))
        if self._lowercase:
            string = lowered(string)
        return patterns["word"].findall(string)

    def _match(self, word: str) -> list[tuple[str, int]] | None:
        starts, others, longest = self._tables
        if len(word) > _LONGEST_WORD:
            return None
        found = []
        at = 0
        while at < len(word):
            table = others if at else starts
            for stop in range(min(len(word), at + longest), at, -1):
                token = table.get(word[at:stop])
                if token is not None:
                    found.append((word[at:stop], token))
                    at = stop
                    break
            else:
                return None
        return found

    @property
    def _unknown(self) -> list[int]:
        return [] if self.unk is None else [self.unk]

    def _encode_fragment(self, text: bytes, after_special: bool) -> list[int]:
        out: list[int] = []
        for word in self._words(text):
            found = self._match(word)
            out += self._unknown if found is None else [token for _, token in found]
        return out

    def _explain_fragment(self, text: bytes, after_special: bool) -> list[Step]:
        steps = []
        for word in self._words(text):
            steps.append(Step("word", to_bytes(word)))
            found = self._match(word)
            if found is None:
                why = "too long" if len(word) > _LONGEST_WORD else "no token fits: unknown"
                steps.append(Step("tokens", to_bytes(word), why, self._unknown))
            else:
                steps += [
                    Step("tokens", to_bytes(part), "longest match", [token])
                    for part, token in found
                ]
        return steps

    def _render(self, token: int) -> bytes:
        return to_bytes(self._vocab.texts[token].replace("▁", " "))
