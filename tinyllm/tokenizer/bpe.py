"""Byte-level BPE, as GPT-2 introduced it, with the pre-tokenizers of later models.

Radford et al., "Language Models are Unsupervised Multitask Learners" (2019), section 2.2; the
byte alphabet is `bytes_to_unicode` of https://github.com/openai/gpt-2.
"""

from __future__ import annotations

import functools
import unicodedata
import warnings
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import numpy as np

from .. import _core
from ..errors import wrong
from .base import Tokenizer
from .explain import Step
from .merging import merge
from .pretokenizers import PRE_TOKENIZERS, PreTokenizer, split_pieces
from .program import Program, compile_program
from .vocab import TokenType, lowered, to_bytes, to_text

__all__ = ["BYTE_ALPHABET", "BpeTokenizer", "Gemma4Tokenizer"]


def _byte_alphabet() -> list[str]:
    """Return a visible character for each byte: its own if visible, else one from U+0100 on."""
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [value for value in range(256) if value not in visible]
    table = {value: chr(value) for value in visible}
    table |= {value: chr(0x100 + i) for i, value in enumerate(others)}
    return [table[value] for value in range(256)]


#: The character that stands for each byte in a byte-level vocabulary.
BYTE_ALPHABET = _byte_alphabet()
_BYTE_OF = {char: value for value, char in enumerate(BYTE_ALPHABET)}
_TO_ALPHABET = dict(enumerate(BYTE_ALPHABET))


@functools.cache
def _compile(expression: str) -> Program:
    return compile_program(expression)


class BpeTokenizer(Tokenizer):
    """Splits text into words and merges neighbouring symbols in the order of the merge list.

    Parameters
    ----------
    metadata : Mapping
        The metadata of a GGUF file with ``tokenizer.ggml.model = "gpt2"``.

    Raises
    ------
    FormatError
        If the file has no merges, or a merge does not have two parts.

    Examples
    --------
    >>> tokenizer = BpeTokenizer({
    ...     "tokenizer.ggml.pre": "gpt-2",
    ...     "tokenizer.ggml.tokens": ["a", "b", "Ġ", "ab"], "tokenizer.ggml.merges": ["a b"]})
    >>> tokenizer.encode("ab ab")
    [3, 2, 3]
    """

    kind = "BPE"
    defaults: ClassVar[Mapping[str, Any]] = {}
    #: Whether the C core encodes. If not, the Python code here gives the same ids.
    use_core: ClassVar[bool] = True
    #: The pre-tokenizer of a file that does not name one.
    default_pre: ClassVar[str] = "default"

    def __init__(self, metadata: Mapping[str, Any]) -> None:
        name = metadata.get("tokenizer.ggml.pre")
        self._pre = self._choose_pre(name)
        self.defaults = {"add_bos": self._pre.add_bos, **type(self).defaults}  # type: ignore[misc]
        super().__init__(metadata)
        if self._pre.no_bos:
            self.bos = None
        self._lowercase = self._vocab.flag("normalizer.lowercase", False)
        self._set_legacy_ends(metadata)
        self._merges = self._vocab.strings("merges", required=True)
        self._encoder = self._make_encoder() if self.use_core else None
        if self._encoder is None:
            self._check_merges()

    def _make_encoder(self) -> _core.Encoder:
        splitters = self._pre.splitters
        whole = all(isinstance(splitter, str) for splitter in splitters)
        return _core.Encoder(
            kind="bpe-bytes" if self._pre.byte_encode else "bpe-letters",
            tokens=self._vocab.texts,
            weak=self._vocab.is_byte,
            byte_ids=self._byte_fallback,
            scores=None,
            merges=self._merges,
            splitters=[_compile(s) for s in splitters if isinstance(s, str)] if whole else [],
            ignore_merges=self._pre.ignore_merges,
            cut_at_spaces=False,
        )

    @functools.cached_property
    def _byte_fallback(self) -> list[int]:
        """The id for each byte of a symbol that is not in the vocabulary; -1 drops the byte."""
        if self._pre.byte_encode:
            # llama.cpp looks up single bytes of the spelling, so it finds only visible ASCII
            visible = range(0x21, 0x7F)
            found = self._vocab.ids_of([chr(value) for value in visible])
            table = dict(zip(visible, found, strict=True))
        else:
            table = dict(enumerate(self._vocab.byte_ids))
        return [-1 if table.get(value) is None else table[value] for value in range(256)]  # type: ignore[misc]

    def _check_merges(self) -> None:
        for i, pair in enumerate(self._merges):
            if not 0 < pair.find(" ", 1) < len(pair) - 1:
                expected = "two parts with a space between them"
                field = f"tokenizer.ggml.merges[{i}]"
                raise wrong(field, pair, expected, shown=repr(pair))

    def _choose_pre(self, name: object) -> PreTokenizer:
        if name is None or name == "":
            warnings.warn(
                "the file does not name its pre-tokenizer (tokenizer.ggml.pre): falling back to "
                f"{self.default_pre!r}; the ids may differ from the model's own",
                stacklevel=4,
            )
            return PRE_TOKENIZERS[self.default_pre]
        if not isinstance(name, str) or name not in PRE_TOKENIZERS:
            warnings.warn(
                f"tokenizer.ggml.pre is {name!r}, which tinyllm does not know: falling back to "
                f"{self.default_pre!r}; the ids may differ from the model's own",
                stacklevel=4,
            )
            return PRE_TOKENIZERS[self.default_pre]
        return PRE_TOKENIZERS[name]

    def _set_legacy_ends(self, metadata: Mapping[str, Any]) -> None:
        """Use id 11, <|endoftext|>, as BOS and EOS in early Falcon files, which name neither."""
        keys = ("tokenizer.ggml.bos_token_id", "tokenizer.ggml.eos_token_id")
        if any(key in metadata for key in keys) or len(self) <= 11:
            return
        if self._vocab.types[11] == TokenType.CONTROL and self.eos is None:
            self.bos = None if self._pre.no_bos else 11
            self.eos = 11
            self.eog_ids = self.eog_ids | {11}

    # ---- encoding ----

    @functools.cached_property
    def _order(self) -> Callable[[str, str], int | None]:
        # the first occurrence of a merge counts
        count = len(self._merges)
        ranks = dict(zip(reversed(self._merges), range(count - 1, -1, -1), strict=True))

        def order(a: str, b: str) -> int | None:
            # a merge is split at its first space after position 0
            return None if " " in a[1:] else ranks.get(f"{a} {b}")

        return (lambda a, b: ranks.get(f"{a} {b}")) if self._pre.byte_encode else order

    def _normalize(self, text: bytes) -> str:
        string = lowered(to_text(text)) if self._lowercase else to_text(text)
        if self._pre.escape_spaces:
            string = string.replace(" ", "▁")
        return unicodedata.normalize("NFC", string) if self._pre.nfc else string

    def _spell(self, word: str) -> str:
        if not self._pre.byte_encode:
            return word
        return word.encode().decode("latin-1").translate(_TO_ALPHABET)

    def _words(self, text: bytes) -> list[str]:
        return split_pieces(self._normalize(text), self._pre.splitters)

    def _encode_fragment(self, text: bytes, after_special: bool) -> list[int]:
        if self._encoder is None:
            out: list[int] = []
            for word in self._words(text):
                out += self._ids(self._symbols(self._spell(word)))
            return out
        string = self._normalize(text)
        ends = None
        if not all(isinstance(splitter, str) for splitter in self._pre.splitters):
            pieces = split_pieces(string, self._pre.splitters)
            ends = np.cumsum([len(piece.encode()) for piece in pieces])
        ids, dropped = self._encoder.encode(string.encode(), ends)
        for value in dropped:
            self._warn_dropped(value)
        return ids

    def _symbols(
        self, word: str, trace: Callable[[str, str, Any], None] | None = None
    ) -> list[str]:
        if self._pre.ignore_merges and word in self._vocab.id_of_text:
            return [word]
        symbols = list(word)
        if self._pre.byte_encode:
            # as in Hugging Face's BPE, characters that are not tokens are dropped before the merges
            symbols = [c for c in word if c in self._vocab.id_of_text]
            for char in set(word).difference(symbols):
                self._warn_dropped(_BYTE_OF[char])
        return merge(symbols, self._order, trace)

    def _ids(self, symbols: list[str]) -> list[int]:
        out: list[int] = []
        ids = self._vocab.id_of_text
        for symbol in symbols:
            token = ids.get(symbol)
            if token is not None:
                out.append(token)
                continue
            raw = [_BYTE_OF[c] for c in symbol] if self._pre.byte_encode else symbol.encode()
            for value in raw:
                if self._byte_fallback[value] < 0:
                    self._warn_dropped(value)
                else:
                    out.append(self._byte_fallback[value])
        return out

    def _warn_dropped(self, value: int) -> None:
        warnings.warn(
            f"the vocabulary has no token for byte 0x{value:02X}: it is dropped", stacklevel=5
        )

    def _explain_fragment(self, text: bytes, after_special: bool) -> list[Step]:
        steps: list[Step] = []
        for word in map(self._spell, self._words(text)):
            merges: list[Step] = []

            def note(a: str, b: str, order: int, merges: list[Step] = merges) -> None:
                merges.append(Step("merge", to_bytes(a + b), f"{a} + {b}, rank {order}"))

            steps.append(Step("word", to_bytes(word)))
            symbols = self._symbols(word, note)
            steps += merges
            for symbol in symbols:
                known = symbol in self._vocab.id_of_text
                detail = "in the vocabulary" if known else "not in the vocabulary: bytes"
                steps.append(Step("tokens", to_bytes(symbol), detail, self._ids([symbol])))
        return steps

    # ---- decoding ----

    def _render(self, token: int) -> bytes:
        text = self._vocab.texts[token]
        if self._pre.escape_spaces:
            text = text.replace("▁", " ")
        if not self._pre.byte_encode:
            return to_bytes(text)
        try:
            return bytes([_BYTE_OF[char] for char in text])
        except KeyError:  # not in the byte alphabet: a literal text
            return to_bytes(text)


class Gemma4Tokenizer(BpeTokenizer):
    """BPE over characters; spaces become U+2581, and unknown characters become ``<0xNN>`` bytes.

    Parameters
    ----------
    metadata : Mapping
        The metadata of a GGUF file with ``tokenizer.ggml.model = "gemma4"``.

    Examples
    --------
    >>> tokenizer = Gemma4Tokenizer({
    ...     "tokenizer.ggml.pre": "gemma4",
    ...     "tokenizer.ggml.tokens": ["a", "▁", "▁a"], "tokenizer.ggml.merges": ["▁ a"]})
    >>> tokenizer.encode("a a", add_special=False)
    [0, 2]
    """

    kind = "BPE (gemma4)"
    defaults: ClassVar[Mapping[str, Any]] = {"add_bos": True}
    default_pre = "gemma4"

    def _choose_pre(self, name: object) -> PreTokenizer:
        # tokenizer.ggml.model alone determines the pre-tokenizer
        return super()._choose_pre(name or self.default_pre)
