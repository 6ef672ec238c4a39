"""The loops of the core give the same ids as the Python that they replace."""

import random
import re
import warnings

import numpy as np
import pytest

from tinyllm import _core
from tinyllm.tokenizer import tokenizer_from_metadata
from tinyllm.tokenizer.bpe import BYTE_ALPHABET, BpeTokenizer
from tinyllm.tokenizer.pretokenizers import PRE_TOKENIZERS, split_pieces
from tinyllm.tokenizer.program import compile_program
from tinyllm.tokenizer.spm import SpmTokenizer
from tinyllm.tokenizer.unicode_classes import to_re

pytestmark = pytest.mark.sanitize

# characters at the limits of the classes in the expressions
ALPHABET = (
    list("aAzZsStTdDlLvVeErRmM019_'\"/!?.,~$(|)<>#-:ABCDEFGHIZ")
    + list("  \t\n\r\v\f\x1c\x1f\x85\xa0\u2028\u3000\u180e\u200b")
    + list("éßſıİǅʰªأनमस्ते्中文一龥가힣ᄀ々。、！ーぁカ")
    + list("½²Ⅷ٣१\u0301\u0327\U0001f999\U00010400\U0001d7ce\ufeff\ufffd\0\U000e0001\U0010ffff")
    + ["'s", "'ll", " 123", "  ", "\r\n", "1234567", "IMGIMGABZ", "<sentinel:12>", "don't"]
)


def texts(count, seed):
    rng = random.Random(seed)
    for _ in range(count):
        yield "".join(rng.choices(ALPHABET, k=rng.randrange(1, 40)))


def pairs_of(metadata):
    """The same tokenizer with the core, and in Python only."""
    found = []
    for use_core in (True, False):
        with warnings.catch_warnings(), pytest.MonkeyPatch.context() as patch:
            warnings.simplefilter("ignore")
            patch.setattr(SpmTokenizer, "use_core", use_core)
            patch.setattr(BpeTokenizer, "use_core", use_core)
            found.append(tokenizer_from_metadata(metadata))
    assert found[0]._encoder is not None
    assert found[1]._encoder is None
    return found


@pytest.mark.parametrize("name", PRE_TOKENIZERS)
def test_every_pre_tokenizer_cuts_alike(name):
    row = PRE_TOKENIZERS[name]
    sample = list(texts(150, name))
    # each piece that the Python cuts is a token, so the core's ids show where the core cuts
    spelled = {"".join(BYTE_ALPHABET[b] for b in piece.encode()) if row.byte_encode else piece
               for text in sample for piece in split_pieces(text, row.splitters)}  # fmt: skip
    metadata = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": name,
        "tokenizer.ggml.tokens": [*BYTE_ALPHABET, *sorted(spelled - set(BYTE_ALPHABET))],
        "tokenizer.ggml.merges": [],
        "tokenizer.ggml.add_bos_token": False,
    }
    with warnings.catch_warnings(), pytest.MonkeyPatch.context() as patch:
        warnings.simplefilter("ignore")
        patch.setitem(PRE_TOKENIZERS, name, type(row)(row.splitters, True, False, row.byte_encode,
                                                      row.escape_spaces, nfc=False))  # fmt: skip
        core, plain = pairs_of(metadata)
        for text in sample:
            assert core.encode(text) == plain.encode(text), ascii(text)


@pytest.mark.parametrize("kind", ["bytes", "letters", "spm", "spm with crossing tokens"])
def test_random_vocabularies(kind):
    rng = random.Random(kind)
    for round_ in range(30):
        letters = "abcé▁中"
        pool = list(letters)
        merges = []
        for _ in range(60):
            left, right = rng.choice(pool), rng.choice(pool)
            if len(left + right) < 9:
                merges.append(f"{left} {right}")
                pool.append(left + right)
        if kind.startswith("spm"):
            if kind == "spm":
                pool = [p for p in pool if "▁" not in p.lstrip("▁")]
            tokens = ["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256)), *pool]
            metadata = {
                "tokenizer.ggml.model": "llama",
                "tokenizer.ggml.tokens": tokens,
                "tokenizer.ggml.token_type": [2, 3, 3, *[6] * 256, *[1] * len(pool)],
                # few different scores, so that the order of equal ones matters
                "tokenizer.ggml.scores": [float(rng.randrange(6)) for _ in tokens],
            }
        elif kind == "letters":
            metadata = {
                "tokenizer.ggml.model": "gpt2",
                "tokenizer.ggml.pre": "sarvam-moe",
                "tokenizer.ggml.tokens": [*(f"<0x{b:02X}>" for b in range(0x80, 0x100)), *pool],
                "tokenizer.ggml.merges": merges,
            }
        else:
            to_bytes = lambda text: "".join(BYTE_ALPHABET[b] for b in text.encode())  # noqa: E731
            bytewise = [" ".join(map(to_bytes, m.split(" "))) for m in merges]
            # some results are not in the vocabulary
            kept = [to_bytes(p) for p in pool if rng.random() < 0.8]
            metadata = {
                "tokenizer.ggml.model": "gpt2",
                "tokenizer.ggml.pre": "gpt-2",
                "tokenizer.ggml.tokens": [*BYTE_ALPHABET, *kept],
                "tokenizer.ggml.merges": bytewise,
            }
        core, plain = pairs_of(metadata)
        for _ in range(40):
            text = "".join(rng.choices(letters + " \nx", k=rng.randrange(60)))
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                assert core.encode(text) == plain.encode(text), (round_, text)
        if kind.startswith("spm"):
            for _ in range(40):
                raw = rng.randbytes(rng.randrange(30)) + "▁".encode()[: rng.randrange(4)]
                assert core.encode(raw) == plain.encode(raw)


def test_words_that_occur_again():
    # long enough that the core caches words, with more words than fit into its cache
    rng = random.Random(3)
    merges = ["a b", "b c", "ab c", "Ġ a", "Ġa b"]
    metadata = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": [*BYTE_ALPHABET, *(m.replace(" ", "") for m in merges)],
        "tokenizer.ggml.merges": merges,
    }
    core, plain = pairs_of(metadata)
    for length in (10, 70, 3000):
        words = ["".join(rng.choices("abc", k=rng.randrange(1, 60))) for _ in range(length)]
        text = " ".join(rng.choices(words, k=length))
        assert core.encode(text) == plain.encode(text)


@pytest.mark.parametrize(
    ("expression", "words"),
    [
        ("(a", "missing"), ("a)", "unexpected"), (r"\q", "unknown escape"), (r"\w+", "unknown"),
        ("(?=ab)", "one class"), (r"\p{Nope}", "no Unicode property"),
    ],
)  # fmt: skip
def test_expressions_that_do_not_compile(expression, words):
    with pytest.raises((ValueError, KeyError), match=words):
        compile_program(expression)


@pytest.mark.parametrize(
    ("program", "ranges", "ends"),
    [
        ([], [], []), ([0], [], []), ([0, 0], [97, 97], [1]), ([0, 1, 6], [97, 97], [1]),
        ([9, 6], [], []), ([2, 1, 0, 6], [], []), ([2, 99, 0, 6], [], []), ([-1, 6], [], []),
        ([0, 0, 6], [98, 97], [1]), ([0, 0, 6], [0, 0x110000], [1]), ([0, 0, 6], [97, 97], [2]),
        ([0, 0, 6], [97, 97, 97, 98], [2]), ([0, 0, 6], [97, 97], [-1]), ([1, 0, 0], [1, 1], [1]),
    ],
)  # fmt: skip
def test_programs_are_checked(program, ranges, ends):
    arrays = tuple(np.array(a, np.int32) for a in (program, ranges, ends))
    with pytest.raises(ValueError, match=r"program|range|class"):
        _core.Encoder(
            kind="bpe-bytes", tokens=[], weak=[], byte_ids=[-1] * 256, scores=None, merges=[],
            splitters=[arrays], ignore_merges=False, cut_at_spaces=False,
        )  # fmt: skip


def test_wrong_arguments():
    good = {
        "kind": "spm", "tokens": ["a"], "weak": [0], "byte_ids": [-1] * 256, "scores": None,
        "merges": [], "splitters": [], "ignore_merges": False, "cut_at_spaces": False,
    }  # fmt: skip
    encoder = _core.Encoder(**good)
    assert encoder.encode(b"ab") == ([0], b"b")
    assert encoder.encode(b"aa", [1, 2]) == ([0, 0], b"")
    for wrong, error in [
        ({"kind": "x"}, ValueError), ({"tokens": [1]}, TypeError), ({"weak": []}, ValueError),
        ({"byte_ids": [1]}, ValueError), ({"scores": []}, ValueError),
        ({"splitters": [1]}, TypeError), ({"tokens": ("a",)}, TypeError),
    ]:  # fmt: skip
        with pytest.raises(error):
            _core.Encoder(**{**good, **wrong})
    for ends in ([3], [-1], [2, 1]):
        with pytest.raises(ValueError, match="ends"):
            encoder.encode(b"ab", ends)
    with pytest.raises(TypeError):
        encoder.encode("ab")
    letters = _core.Encoder(**{**good, "kind": "bpe-letters"})
    for raw in (b"\xff", b"\xe4\xbd", b"a\xf0\x9f", b"\x80", b"\xf8\x80\x80\x80\x80"):
        with pytest.raises(ValueError, match="not UTF-8"):
            letters.encode(raw)


def test_re_reads_blanks_differently():
    # the reason why classes are written out: \s of re also matches U+001C to U+001F
    assert re.fullmatch(r"\s", "\x1c")
    assert not to_re(r"\s").fullmatch("\x1c")
