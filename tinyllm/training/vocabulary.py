"""Vocabularies for training: characters, bytes, or byte-pair encoding, as keys of a GGUF file."""

from __future__ import annotations

import collections
import heapq
import itertools
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ..files.gguf_write import write_gguf
from ..tokenizer import Tokenizer, load_tokenizer, tokenizer_from_metadata
from ..tokenizer.bpe import BYTE_ALPHABET
from ..tokenizer.pretokenizers import PRE_TOKENIZERS, split_pieces
from ..tokenizer.vocab import TokenType, lowered
from .data import read_data

__all__ = ["END", "count_tokens", "train_bpe", "train_tokenizer", "vocabulary"]

#: The token that ends a text: the first id of every vocabulary that is made here.
END = "<|endoftext|>"

#: The pre-tokenizer of the vocabularies: that of GPT-2.
_PRE = "gpt-2"


def vocabulary(
    tokenizer: str | os.PathLike[str] | Tokenizer,
    text: str,
    reserved: Sequence[str] = (),
    lowercase: bool = False,
) -> dict[str, Any]:
    """Return a vocabulary as keys of a GGUF file, ``tokenizer.ggml.*``.

    Parameters
    ----------
    tokenizer : str, os.PathLike or Tokenizer
        ``"char"``: the characters of the text. ``"byte"``: the 256 bytes. ``"bpe:1000"``: byte-pair
        encoding with 1000 tokens, trained on the text. Or the tokenizer of another model, or the
        path of a file with one.
    text : str
    reserved, lowercase
        As for `train_tokenizer`.

    Returns
    -------
    dict of str to object

    Raises
    ------
    ValueError
        If `tokenizer` is none of these, the number of tokens is too small, or a reserved token
        is there already.

    Examples
    --------
    >>> from tinyllm.training.vocabulary import vocabulary
    >>> vocabulary("char", "abba")["tokenizer.ggml.tokens"]
    ['<|endoftext|>', 'a', 'b']
    """
    text = lowered(text) if lowercase else text
    for token in reserved:  # their letters are no part of the statistics
        text = text.replace(token, "") if token else text
    kind, _, number = str(tokenizer).partition(":")
    least = len(BYTE_ALPHABET) + 1 + len(reserved)
    if tokenizer == "char":
        return _keys(*_characters(text), reserved, lowercase)
    if tokenizer == "byte":
        return _keys(list(BYTE_ALPHABET), [], reserved, lowercase)
    if isinstance(tokenizer, str) and kind == "bpe" and number.isdecimal():
        if int(number) < least:
            raise ValueError(
                f"tokenizer is {tokenizer!r}; expected at least {least} tokens: the bytes, {END}"
                f"{' and the reserved ones' if reserved else ''}"
            )
        merges = train_bpe(text, int(number) - least)
        tokens = [*BYTE_ALPHABET, *("".join(pair) for pair in merges)]
        return _keys(tokens, merges, reserved, lowercase)
    if not isinstance(tokenizer, Tokenizer) and os.path.isfile(tokenizer):
        tokenizer = load_tokenizer(tokenizer)
    if not isinstance(tokenizer, Tokenizer):
        raise ValueError(
            f"tokenizer is {tokenizer!r}; expected 'char', 'byte', 'bpe:1000', a Tokenizer or the "
            "path of a file with one"
        )
    if reserved or lowercase:
        raise ValueError("reserved and lowercase need a vocabulary that is made here")
    _, (keys,) = tokenizer.__reduce__()
    return {
        key: ("ARRAY[STRING]", []) if isinstance(value, list) and not value else value
        for key, value in keys.items()
        if key.startswith("tokenizer.")
    }


def train_tokenizer(
    data: Any,
    kind: str = "bpe:1000",
    *,
    reserved: Sequence[str] = (),
    lowercase: bool = False,
    out: str | os.PathLike[str] | None = None,
) -> Tokenizer:
    """Make a tokenizer from a text.

    The same text gives the same ids. The id 0 is ``<|endoftext|>``; reserved tokens follow.

    Parameters
    ----------
    data : str or os.PathLike
        The path of a text file in UTF-8 or of a folder of them, or a text, as in `train`.
    kind : str
        ``"char"``, ``"byte"`` or ``"bpe:1000"``, as in `train`.
    reserved : sequence of str
        Tokens that are always found in a text as a whole, such as ``"<|user|>"``. In GGUF, they are
        user-defined tokens.
    lowercase : bool
        Whether texts are converted to lower case first, so that case makes no difference. GGUF has
        a key for it, which llama.cpp does not use for this kind of tokenizer: give it texts in
        lower case.
    out : str or os.PathLike, optional
        A GGUF file to write, with the tokenizer and no model. `load_tokenizer` reads it, and
        `train` takes its path.

    Returns
    -------
    Tokenizer

    Raises
    ------
    ValueError
        If an argument is wrong.

    Examples
    --------
    >>> import tinyllm as tl
    >>> tokenizer = tl.train_tokenizer("Hug hug pug " * 30, "char", reserved=["<|x|>"],
    ...                                lowercase=True)
    >>> tokenizer.pieces(tokenizer.encode("HUG<|x|>"))
    ['h', 'u', 'g', '<|x|>']
    """
    found = read_data(data)
    if not isinstance(found, str):
        raise TypeError("data are ids; expected a text")
    if isinstance(reserved, str):
        raise TypeError("reserved is a str; expected a list of them")
    if kind not in ("char", "byte") and not str(kind).startswith("bpe:"):
        raise ValueError(f"kind is {kind!r}; expected 'char', 'byte' or 'bpe:1000'")
    keys = vocabulary(kind, found, reserved, lowercase)
    plain = {key: v[1] if isinstance(v, tuple) else v for key, v in keys.items()}
    tokenizer = tokenizer_from_metadata(plain)
    if tokenizer is None:
        raise RuntimeError("the vocabulary has no kind")
    if out is not None:
        write_gguf(out, {"general.architecture": "vocabulary", "general.type": "vocab", **keys}, {})
    return tokenizer


def count_tokens(data: Any, tokenizer: Tokenizer) -> npt.NDArray[np.int64]:
    r"""Count how often each token occurs in a text.

    Parameters
    ----------
    data : str or os.PathLike
        As in `train`.
    tokenizer : Tokenizer

    Returns
    -------
    int64 array, shape (V,)

    Examples
    --------
    >>> import tinyllm as tl
    >>> tl.count_tokens("abba" * 80, tl.train_tokenizer("ab\n", "char")).tolist()
    [0, 0, 160, 160]
    """
    found = read_data(data)
    ids = tokenizer.encode(found, add_special=False) if isinstance(found, str) else found
    return np.bincount(np.asarray(ids, np.int64), minlength=len(tokenizer)).astype(np.int64)


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


def _keys(
    tokens: list[str], merges: list[tuple[str, str]], reserved: Sequence[str], lowercase: bool
) -> dict[str, Any]:
    all_tokens = [END, *reserved, *tokens]
    for i, token in enumerate(all_tokens[: 1 + len(reserved)]):
        if not token or token in all_tokens[:i] or token in tokens:
            raise ValueError(f"reserved has {token!r}; expected texts that are no other token")
    types = [
        TokenType.CONTROL,
        *[TokenType.USER_DEFINED] * len(reserved),
        *[TokenType.NORMAL] * len(tokens),
    ]
    keys = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": _PRE,
        "tokenizer.ggml.tokens": all_tokens,
        "tokenizer.ggml.token_type": np.array(types, np.int32),
        "tokenizer.ggml.merges": ("ARRAY[STRING]", [" ".join(pair) for pair in merges]),
        "tokenizer.ggml.bos_token_id": 0,
        "tokenizer.ggml.eos_token_id": 0,
        "tokenizer.ggml.add_bos_token": False,
    }
    if lowercase:
        keys["tokenizer.ggml.normalizer.lowercase"] = True
    return keys


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
