"""Tokenizers from the metadata of GGUF files: one module per algorithm."""

from .base import Tokenizer
from .diff import TokenDiff, diff_tokens
from .explain import Explanation, Step
from .registry import TOKENIZERS, load_tokenizer, tokenizer_from_metadata
from .stream import StreamDecoder
from .vocab import TokenType

__all__ = [
    "TOKENIZERS",
    "Explanation",
    "Step",
    "StreamDecoder",
    "TokenDiff",
    "TokenType",
    "Tokenizer",
    "diff_tokens",
    "load_tokenizer",
    "tokenizer_from_metadata",
]
