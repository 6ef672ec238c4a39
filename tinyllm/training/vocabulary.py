"""Vocabularies for training: characters, bytes, or byte-pair encoding, as keys of a GGUF file."""

from __future__ import annotations

import collections
import heapq
import itertools
from typing import Any

import numpy as np

from ..tokenizer import Tokenizer
from ..tokenizer.bpe import BYTE_ALPHABET
from ..tokenizer.pretokenizers import PRE_TOKENIZERS, split_pieces
from ..tokenizer.vocab import TokenType

__all__ = ["END", "train_bpe", "vocabulary"]

#: The token that ends a text: the first id of every vocabulary that is made here.
END = "<|endoftext|>"

#: The pre-tokenizer of the vocabularies: that of GPT-2.
_PRE = "gpt-2"


def vocabulary(tokenizer: str | Tokenizer, text: str) -> dict[str, Any]:
    """Return a vocabulary as keys of a GGUF file, ``tokenizer.ggml.*``.

    Parameters
    ----------
    tokenizer : str or Tokenizer
        ``"char"``: the characters of the text. ``"byte"``: the 256 bytes. ``"bpe:1000"``: byte-pair
        encoding with 1000 tokens, trained on the text. Or the tokenizer of another model.
    text : str

    Returns
    -------
    dict of str to object

    Raises
    ------
    ValueError
        If `tokenizer` is none of these, or the number of tokens is too small.

    Examples
    --------
    >>> from tinyllm.training.vocabulary import vocabulary
    >>> vocabulary("char", "abba")["tokenizer.ggml.tokens"]
    ['<|endoftext|>', 'a', 'b']
    """
    if isinstance(tokenizer, Tokenizer):
        _, (keys,) = tokenizer.__reduce__()
        return {key: value for key, value in keys.items() if key.startswith("tokenizer.")}
    if tokenizer == "char":
        return _keys(*_characters(text))
    if tokenizer == "byte":
        return _keys(list(BYTE_ALPHABET), [])
    kind, _, number = str(tokenizer).partition(":")
    if kind != "bpe" or not number.isdecimal():
        raise ValueError(
            f"tokenizer is {tokenizer!r}; expected 'char', 'byte', 'bpe:1000' or a Tokenizer"
        )
    if int(number) < len(BYTE_ALPHABET) + 1:
        raise ValueError(
            f"tokenizer is {tokenizer!r}; expected at least 257 tokens: the bytes, and {END}"
        )
    merges = train_bpe(text, int(number) - len(BYTE_ALPHABET) - 1)
    return _keys([*BYTE_ALPHABET, *("".join(pair) for pair in merges)], merges)


def _characters(text: str) -> tuple[list[str], list[tuple[str, str]]]:
    """Return the tokens and merges that make each character of a text one token.

    A character of several bytes needs the tokens of its bytes, and merges that join them.
    """
    tokens: dict[str, None] = {}
    merges: dict[tuple[str, str], None] = {}
    for char in sorted(set(text)):
        spelled = [BYTE_ALPHABET[value] for value in char.encode()]
        for letter in spelled:
            tokens.setdefault(letter)
        joined = spelled[0]
        for letter in spelled[1:]:
            merges.setdefault((joined, letter))
            joined += letter
            tokens.setdefault(joined)
    return list(tokens), list(merges)


def _keys(tokens: list[str], merges: list[tuple[str, str]]) -> dict[str, Any]:
    types = [TokenType.CONTROL, *[TokenType.NORMAL] * len(tokens)]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": _PRE,
        "tokenizer.ggml.tokens": [END, *tokens],
        "tokenizer.ggml.token_type": np.array(types, np.int32),
        "tokenizer.ggml.merges": ("ARRAY[STRING]", [" ".join(pair) for pair in merges]),
        "tokenizer.ggml.bos_token_id": 0,
        "tokenizer.ggml.eos_token_id": 0,
        "tokenizer.ggml.add_bos_token": False,
    }


def train_bpe(text: str, count: int) -> list[tuple[str, str]]:
    """Return the merges of a byte-level byte-pair encoding, the most frequent pair first.

    Sennrich et al. 2016, "Neural Machine Translation of Rare Words with Subword Units"
    (arXiv:1508.07909), algorithm 1, on the words of GPT-2's pre-tokenizer. Of equally frequent
    pairs the first in the order of their text is merged, so the result depends on the text alone.

    Parameters
    ----------
    text : str
    count : int
        The most merges. There are fewer if no pair occurs twice.

    Returns
    -------
    list of tuple of str
        Pairs of symbols in GPT-2's byte alphabet.

    Examples
    --------
    >>> train_bpe("hug hug hug pug", 2)
    [('u', 'g'), ('h', 'ug')]
    """
    counts = collections.Counter(split_pieces(text, PRE_TOKENIZERS[_PRE].splitters))
    words = [[BYTE_ALPHABET[value] for value in word.encode()] for word in counts]
    times = list(counts.values())
    pairs: collections.Counter[tuple[str, str]] = collections.Counter()
    where: dict[tuple[str, str], set[int]] = collections.defaultdict(set)
    for i, word in enumerate(words):
        for pair in itertools.pairwise(word):
            pairs[pair] += times[i]
            where[pair].add(i)
    queue = [(-n, pair) for pair, n in pairs.items()]
    heapq.heapify(queue)
    merges: list[tuple[str, str]] = []
    while queue and len(merges) < count:
        n, pair = heapq.heappop(queue)
        if pairs[pair] != -n:  # it has been counted anew
            continue
        if -n < 2:
            break
        merges.append(pair)
        changed: set[tuple[str, str]] = set()
        for i in where.pop(pair):
            old = words[i]
            words[i] = new = _merged(old, pair)
            for before in itertools.pairwise(old):
                pairs[before] -= times[i]
                changed.add(before)
            for after in itertools.pairwise(new):
                pairs[after] += times[i]
                where[after].add(i)
                changed.add(after)
        for each in changed:
            if pairs[each] > 0 and each != pair:
                heapq.heappush(queue, (-pairs[each], each))
    return merges


def _merged(word: list[str], pair: tuple[str, str]) -> list[str]:
    """Return a word with a pair merged, from left to right."""
    new: list[str] = []
    i = 0
    while i < len(word):
        if i + 1 < len(word) and (word[i], word[i + 1]) == pair:
            new.append(pair[0] + pair[1])
            i += 2
        else:
            new.append(word[i])
            i += 1
    return new
