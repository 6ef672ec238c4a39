"""Tokenizers from the metadata of GGUF files: one module per algorithm."""

from .base import StreamDecoder, Tokenizer
from .explain import Explanation, Step, TokenDiff, diff_tokens
from .registry import TOKENIZERS, load_tokenizer, tokenizer_from_metadata
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
