"""Unigram: the most probable split of a text into tokens.

Kudo, "Subword Regularization" (2018). Text is normalized with SentencePiece's compiled character
map (an XOR-compressed compact double array, XCDA), as in llama.cpp's `llm_tokenizer_ugm`. Sums are
float64, as in Hugging Face's `Unigram` and in llama.cpp since 2026.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Any, ClassVar

from ..errors import FormatError
from .base import Tokenizer
from .explain import Step
from .vocab import TokenType, to_bytes

__all__ = ["UgmTokenizer"]

_SPACE = "▁".encode()
_UNKNOWN_PENALTY = 10.0
_CHARSMAP = "tokenizer.ggml.precompiled_charsmap"


class UgmTokenizer(Tokenizer):
    """Finds the most probable tokens with the Viterbi algorithm.

    Parameters
    ----------
    metadata : Mapping
        The metadata of a GGUF file with ``tokenizer.ggml.model = "t5"``.

    Raises
    ------
    FormatError
        If the character map is truncated.

    Examples
    --------
    >>> tokenizer = UgmTokenizer({
    ...     "tokenizer.ggml.tokens": ["<pad>", "</s>", "<unk>", "▁", "a", "▁a"],
    ...     "tokenizer.ggml.scores": [0.0, 0.0, 0.0, -2.0, -2.0, -3.0],
    ...     "tokenizer.ggml.token_type": [3, 3, 2, 1, 1, 1],
    ...     "tokenizer.ggml.add_space_prefix": True})
    >>> tokenizer.encode("aa")
    [5, 4, 1]
    """

    kind = "Unigram"
    defaults: ClassVar[Mapping[str, Any]] = {"eos": 1, "unk": 2, "pad": 0, "add_eos": True}

    def __init__(self, metadata: Mapping[str, Any]) -> None:
        super().__init__(metadata)
        self._merge_blanks = self._vocab.flag("remove_extra_whitespaces", False)
        self._map, self._replacements = self._read_charsmap(metadata.get(_CHARSMAP))
        ids = self._vocab.id_of_bytes
        types, scores = self._vocab.types, self._vocab.scores
        kept = (TokenType.NORMAL, TokenType.USER_DEFINED, TokenType.UNUSED)
        self._tokens: dict[bytes, tuple[int, float]] = {}
        for text, token in ids.items():
            if types[token] in kept:
                user = types[token] == TokenType.USER_DEFINED
                score = 0.0 if user or scores is None else scores[token]
                self._tokens[text] = (token, score)
        self._longest = max(map(len, self._tokens), default=0)
        normal = [s for t, s in self._tokens.values() if types[t] == TokenType.NORMAL]
        self._unknown_score = min(normal, default=0.0) - _UNKNOWN_PENALTY
        user_defined = [t for t, (i, _) in self._tokens.items() if types[i] == 4]
        self._user_defined = sorted(user_defined, key=len, reverse=True)
        self._user_starts = frozenset(text[0] for text in user_defined)

    @staticmethod
    def _read_charsmap(value: Any) -> tuple[tuple[int, ...], bytes]:
        if value is None or len(value) == 0:
            return (), b""
        raw = bytes(value) if isinstance(value, bytes) else bytes(int(x) & 255 for x in value)
        size = struct.unpack_from("<I", raw)[0] if len(raw) >= 4 else 0
        if len(raw) < 4 or size % 4 or 4 + size > len(raw):
            raise FormatError(
                f"{_CHARSMAP} has {len(raw)} bytes and a table of {size} bytes; expected the "
                "table's size, the table (whole 32-bit words) and the replacements",
                field=_CHARSMAP,
                value=len(raw),
                expected=f"at least {4 + size} bytes",
            )
        return struct.unpack_from(f"<{size // 4}I", raw, 4), raw[4 + size :]

    # ---- normalization ----

    def _replace(self, text: bytes, at: int) -> tuple[bytes, int]:
        """Return the replacement of the longest known prefix of ``text[at:]``, and its length."""
        if text[at] in self._user_starts:
            for token in self._user_defined:
                if text.startswith(token, at):
                    return token, len(token)
        words = self._map
        if words:
            best = None
            node = _base(words[0])
            for end in range(at, len(text)):
                value = text[end]
                node ^= value
                if value == 0 or node >= len(words) or words[node] & 0x800000FF != value:
                    break
                has_leaf = words[node] >> 8 & 1
                node ^= _base(words[node])
                if node >= len(words):
                    break
                if has_leaf:
                    best = words[node] & 0x7FFFFFFF, end + 1 - at
            if best is not None and best[0] < len(self._replacements):
                stop = self._replacements.find(b"\0", best[0])
                stop = len(self._replacements) if stop < 0 else stop
                return self._replacements[best[0] : stop], best[1]
        size = _character_size(text, at)
        return (text[at : at + size], size) if size else (b"\xef\xbf\xbd", 1)

    def _normalize(self, text: bytes) -> bytes:
        out = bytearray()
        prepended = in_word = False
        at = 0
        while at < len(text):
            piece, size = self._replace(text, at)
            at += size
            for value in piece:
                if value == 0x20:
                    in_word = False
                    if not self._merge_blanks:
                        out += _SPACE
                else:
                    if not in_word:
                        in_word = True
                        if self._merge_blanks or (self.add_space_prefix and not prepended):
                            out += _SPACE
                            prepended = True
                    out.append(value)
        return bytes(out)

    # ---- Viterbi ----

    def _best_path(self, text: bytes) -> list[tuple[bytes, int | None, float]]:
        """Return (text, id or None if unknown, score) for each token of the best split."""
        size = len(text)
        worst = -float("inf")
        score = [worst] * (size + 1)
        start = [0] * (size + 1)
        chosen: list[int | None] = [None] * (size + 1)
        score[0] = 0.0
        at = 0
        tokens = self._tokens
        while at < size:
            width = min(_lead_size(text[at]), size - at)
            here = score[at]
            single = False
            for stop in range(at + 1, min(size, at + self._longest) + 1):
                found = tokens.get(text[at:stop])
                if found is None:
                    continue
                token, gain = found
                single = single or stop - at == width
                if here + gain > score[stop]:
                    score[stop], start[stop], chosen[stop] = here + gain, at, token
            if not single:
                stop = at + width
                if here + self._unknown_score > score[stop]:
                    score[stop], start[stop] = here + self._unknown_score, at
                    chosen[stop] = None
            at += width
        path = []
        stop = size
        while stop > 0:
            begin = start[stop]
            path.append((text[begin:stop], chosen[stop], score[stop] - score[begin]))
            stop = begin
        return path[::-1]

    def _encode_fragment(self, text: bytes, after_special: bool) -> list[int]:
        out: list[int] = []
        unknown_before = False
        for _, token, _ in self._best_path(self._normalize(text)):
            unknown = token is None or token == self.unk
            if not unknown:
                out.append(token)  # type: ignore[arg-type]
            elif not unknown_before and self.unk is not None:
                out.append(self.unk)
            unknown_before = unknown
        return out

    def _explain_fragment(self, text: bytes, after_special: bool) -> list[Step]:
        normal = self._normalize(text)
        steps = [Step("normalize", normal, "spaces become U+2581")]
        unknown_before = False
        for part, token, score in self._best_path(normal):
            if token is not None:
                steps.append(Step("viterbi", part, f"score {score:g}", [token]))
            elif unknown_before or self.unk is None:
                steps.append(
                    Step("viterbi", part, f"unknown, score {score:g}: joined to the previous")
                )
            else:
                steps.append(Step("viterbi", part, f"unknown, score {score:g}", [self.unk]))
            unknown_before = token is None
        return steps

    def _render(self, token: int) -> bytes:
        return to_bytes(self._vocab.texts[token].replace("▁", " "))


def _base(word: int) -> int:
    return (word >> 10) << ((word & 0x200) >> 6)


def _lead_size(lead: int) -> int:
    return 1 if lead < 0xC0 else 2 if lead < 0xE0 else 3 if lead < 0xF0 else 4


def _character_size(text: bytes, at: int) -> int:
    """Return the length of the UTF-8 character at a position, or 0 if it is invalid."""
    if text[at] < 0x80:
        return 1
    size = _lead_size(text[at])
    try:
        text[at : at + size].decode()
    except UnicodeDecodeError:
        return 0
    return size
