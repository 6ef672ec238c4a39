"""Tokenizers from the metadata of GGUF files: one module per algorithm."""

from tinyllm.tokenizer.base import StreamDecoder, Tokenizer
from tinyllm.tokenizer.explain import Explanation, Step, TokenDiff, diff_tokens
from tinyllm.tokenizer.registry import TOKENIZERS, load_tokenizer, tokenizer_from_metadata
from tinyllm.tokenizer.vocab import TokenType

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
