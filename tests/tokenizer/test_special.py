"""Special tokens in a text: which ones are found, and in which time."""

import random

import pytest

from testkit.growth import LINEAR, growth
from tinyllm.tokenizer import tokenizer_from_metadata
from tinyllm.tokenizer.special import Partition
from tinyllm.tokenizer.vocab import Vocab

BLANKS = b" \t\n\v\f\r"


def partition(texts, types=None, name=""):
    return Partition(
        Vocab(
            {
                "tokenizer.ggml.tokens": texts,
                "tokenizer.ggml.token_type": types or [4] * len(texts),
                "general.name": name,
            }
        )
    )


def by_definition(texts, types, text, parse_special, strip):
    """llama.cpp's loop: for each token, the longest first, all places that are still free."""
    found = [0] * len(text)  # 1 + number of the cut
    cuts = []
    wanted = (2, 3, 4) if parse_special else (4,)
    order = sorted(range(len(texts)), key=lambda i: (-len(texts[i]), i))
    for i in [i for i in order if types[i] in wanted]:
        at = 0
        while at + len(texts[i]) <= len(text):
            stop = at + len(texts[i])
            if text[at:stop] != texts[i].encode() or any(found[at:stop]):
                at += 1
                continue
            while strip and stop < len(text) and text[stop] in BLANKS and not found[stop]:
                stop += 1
            cuts.append((at, stop, i))
            found[at:stop] = [len(cuts)] * (stop - at)
            at = stop
    out, end = [], 0
    for start, stop, i in [*sorted(cuts), (len(text), len(text), None)]:
        if start > end:
            out.append(text[end:start])
        if i is not None:
            out.append(i)
        end = stop
    return out


@pytest.mark.parametrize("strip", [False, True])
def test_the_tokens_that_are_found(strip):
    rng = random.Random(strip)
    for _ in range(1500):
        letters = "ab "[: rng.choice([1, 2, 3])]

        def word(longest, letters=letters):
            return "".join(rng.choice(letters) for _ in range(rng.randint(1, longest)))

        texts = list(dict.fromkeys(word(6) for _ in range(rng.randint(1, 8))))
        types = [rng.choice([1, 2, 3, 4]) for _ in texts]
        text = word(30).encode()
        cut = partition(texts, types, "phi-3" if strip else "")
        for parse_special in (False, True):
            want = by_definition(texts, types, text, parse_special, strip)
            assert cut(text, parse_special) == want, (texts, types, text)


def test_a_text_of_several_blocks():
    texts = ["<s>", "<|long token|>", "a" * 9000]
    cut = partition(texts)
    text = b"x" * 5000 + b"<s>" + b"y" * 9000 + b"<|long token|>" + b"a" * 9003 + b"<s>"
    assert cut(text, True) == [b"x" * 5000, 0, b"y" * 9000, 1, 2, b"aaa", 0]
    assert cut(b"", True) == []


SLOW = {
    "runs": (["a" * i for i in range(1, 1000)], "a"),
    "almost": (["a" * i + "b" for i in range(1, 1000)], "a"),
    "interrupted": (["a" * i for i in range(1, 1000)], "a" * 999 + "b" + "a" * 500 + "c"),
    "many": ([f"<|{i}|>" for i in range(5000)], "<|7|> and <|4999|> "),
}


@pytest.mark.parametrize("name", SLOW)
def test_the_time_is_in_proportion_to_the_text(name):
    texts, unit = SLOW[name]
    cut = partition(texts)
    text = unit.encode() * (10_000 // len(unit))
    cut(text, True)  # makes the tree
    assert growth(lambda text: cut(text, True), text, 4 * text) < LINEAR


def test_many_tokens_cost_no_more_than_one():
    few, many = partition(["<|0|>"]), partition([f"<|{i}|>" for i in range(5000)])
    text = b"<|x and some more text " * 500
    few(text, True), many(text, True)
    assert growth(lambda cut: cut(text, True), few, many) < 5


# ---- hashes ----

K, ONES = 0x9E3779B97F4A7C15, 2**64 - 1


def test_texts_made_to_collide():
    """Texts of 16 bytes that an unkeyed hash of multiplications and shifts maps to one value."""

    def mix(h):
        h ^= h >> 32
        h = h * K & ONES
        return h ^ h >> 29

    def unmix(h):
        x = h
        for _ in range(3):
            x = h ^ x >> 29
        x = x * pow(K, -1, 2**64) & ONES
        return x ^ x >> 32

    def equal(i):
        first = 0x4141414100000000 | i
        second = unmix(0x123456789ABCDEF0) ^ mix(16 ^ first)
        return first.to_bytes(8, "little") + second.to_bytes(8, "little")

    assert (
        len(
            {
                mix(int.from_bytes(equal(i)[8:], "little") ^ mix(16 ^ 0x4141414100000000 ^ i))
                for i in range(100)
            }
        )
        == 1
    )

    def load(n):
        tokens = ["<unk>", *(equal(i).decode(errors="surrogateescape") for i in range(n))]
        metadata = {
            "tokenizer.ggml.model": "llama",
            "tokenizer.ggml.tokens": tokens,
            "tokenizer.ggml.scores": [0.0] * len(tokens),
            "tokenizer.ggml.token_type": [2] + [1] * n,
        }
        tokenizer_from_metadata(metadata).encode("a")

    assert growth(load, 5_000, 20_000) < LINEAR
