"""RWKV "world" tokenizers: the longest token at each position.

The format is that of https://github.com/BlinkDL/ChatRWKV (`rwkv_vocab_v20230424.txt`); GGUF keeps
the tokens with backslash escapes, which llama.cpp's `llama_unescape_rwkv_token` undoes.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from typing import Any, ClassVar

from .base import Tokenizer
from .explain import Step
from .vocab import TokenType, to_bytes

__all__ = ["RwkvTokenizer"]

_ESCAPE = re.compile(rb"\\(?:x([0-9A-Fa-f]{2})|(.))", re.DOTALL)
_NAMED = {b"t": b"\t", b"n": b"\n", b"r": b"\r"}


def _unescape(text: bytes) -> bytes:
    def plain(match: re.Match[bytes]) -> bytes:
        if match.group(1):
            return bytes([int(match.group(1), 16)])
        return _NAMED.get(match.group(2), match.group(2))

    return _ESCAPE.sub(plain, text)


class RwkvTokenizer(Tokenizer):
    r"""Takes the longest token at each position.

    Parameters
    ----------
    metadata : Mapping
        The metadata of a GGUF file with ``tokenizer.ggml.model = "rwkv"``.

    Examples
    --------
    >>> tokenizer = RwkvTokenizer({"tokenizer.ggml.tokens": ["a", "ab", r"\n", r"\xff"]})
    >>> tokenizer.encode(b"aba\n\xff")
    [1, 0, 2, 3]
    """

    kind = "RWKV"
    defaults: ClassVar[Mapping[str, Any]] = {}

    @functools.cached_property
    def _tokens(self) -> tuple[dict[bytes, int], int]:
        found: dict[bytes, int] = {}
        for token, text in enumerate(self._vocab.texts):
            if self._vocab.types[token] not in (TokenType.CONTROL, TokenType.UNKNOWN):
                found.setdefault(_unescape(to_bytes(text)), token)
        found.pop(b"", None)
        return found, max(map(len, found), default=0)

    def _match(self, text: bytes) -> list[tuple[bytes, int | None]]:
        tokens, longest = self._tokens
        out: list[tuple[bytes, int | None]] = []
        at = 0
        while at < len(text):
            for stop in range(min(len(text), at + longest), at, -1):
                token = tokens.get(text[at:stop])
                if token is not None:
                    break
            else:
                stop, token = at + 1, self.unk
            out.append((text[at:stop], token))
            at = stop
        return out

    def _encode_fragment(self, text: bytes, after_special: bool) -> list[int]:
        return [token for _, token in self._match(text) if token is not None]

    def _explain_fragment(self, text: bytes, after_special: bool) -> list[Step]:
        return [
            Step("tokens", part, "longest match" if token != self.unk else "no token fits",
                 [] if token is None else [token])
            for part, token in self._match(text)
        ]  # fmt: skip

    def _render(self, token: int) -> bytes:
        return _unescape(to_bytes(self._vocab.texts[token]))
