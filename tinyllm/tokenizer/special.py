"""Find special tokens in a text, as llama.cpp's `tokenizer_st_partition` does."""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence

from .vocab import TokenType, Vocab, to_bytes

__all__ = ["Partition"]

_BLANKS = b" \t\n\v\f\r"


class Partition:
    """Splits texts at the special tokens of a vocabulary.

    Where tokens overlap, the longest one counts, not the leftmost one; of tokens with the same
    length, the lowest id. Control and unknown tokens are found only with ``parse_special``,
    user-defined tokens always.

    Parameters
    ----------
    vocab : Vocab

    Examples
    --------
    >>> vocab = Vocab({
    ...     "tokenizer.ggml.tokens": ["<s>", "a"], "tokenizer.ggml.token_type": [3, 1]})
    >>> Partition(vocab)(b"a<s>a", parse_special=True)
    [b'a', 0, b'a']
    """

    def __init__(self, vocab: Vocab) -> None:
        self._vocab = vocab

    def __call__(self, text: bytes, parse_special: bool) -> list[bytes | int]:
        """Return the ids of special tokens and the fragments between them, none of them empty."""
        if not text:
            return []
        pattern, tokens = self._active if parse_special else self._user_defined
        if pattern is None or not pattern.search(text):
            return [text]
        taken = bytearray(len(text))
        cuts: list[tuple[int, int, int]] = []
        for spelling, token in tokens:
            at = text.find(spelling)
            while at >= 0:
                stop = at + len(spelling)
                if taken.find(1, at, stop) >= 0:
                    at = text.find(spelling, at + 1)
                    continue
                start = at
                if token in self._vocab.strip_left:
                    while start > 0 and not taken[start - 1] and text[start - 1] in _BLANKS:
                        start -= 1
                if token in self._vocab.strip_right:
                    while stop < len(text) and not taken[stop] and text[stop] in _BLANKS:
                        stop += 1
                taken[start:stop] = b"\1" * (stop - start)
                cuts.append((start, stop, token))
                at = text.find(spelling, stop)
        out: list[bytes | int] = []
        end = 0
        for start, stop, token in sorted(cuts):
            if start > end:
                out.append(text[end:start])
            out.append(token)
            end = stop
        if end < len(text):
            out.append(text[end:])
        return out

    @property
    def spellings(self) -> list[bytes]:
        """The texts of the special tokens."""
        return [spelling for spelling, _ in self._active[1]]

    @functools.cached_property
    def _active(self) -> tuple[re.Pattern[bytes] | None, list[tuple[bytes, int]]]:
        return self._prepare(self._vocab.special_ids)

    @functools.cached_property
    def _user_defined(self) -> tuple[re.Pattern[bytes] | None, list[tuple[bytes, int]]]:
        types = self._vocab.types
        return self._prepare(
            [i for i in self._vocab.special_ids if types[i] == TokenType.USER_DEFINED]
        )

    def _prepare(
        self, ids: Sequence[int]
    ) -> tuple[re.Pattern[bytes] | None, list[tuple[bytes, int]]]:
        tokens = [(to_bytes(self._vocab.texts[i]), i) for i in ids]
        if not tokens:
            return None, []
        return re.compile(b"|".join(re.escape(spelling) for spelling, _ in tokens)), tokens
