"""Tokenizers on small vocabularies that the tests make: no test data needed."""

import random
import threading
import time
import warnings

import numpy as np
import pytest

import tinyllm as tl
from tinyllm.tokenizer import TokenType, diff_tokens, tokenizer_from_metadata
from tinyllm.tokenizer.bpe import BYTE_ALPHABET

SPACE = "▁"


def spm(pieces=(), types=None, **keys):
    """An SPM tokenizer: <unk> <s> </s>, 256 byte tokens, then the pieces with falling scores."""
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256)), *pieces]
    kinds = [2, 3, 3, *[6] * 256, *(types or [1] * len(pieces))]
    scores = [0.0] * 259 + [-float(i) for i in range(len(pieces))]
    return tokenizer_from_metadata(
        {
            "tokenizer.ggml.model": "llama",
            "tokenizer.ggml.tokens": tokens,
            "tokenizer.ggml.scores": np.array(scores, np.float32),
            "tokenizer.ggml.token_type": np.array(kinds, np.int32),
            **{f"tokenizer.ggml.{k}": v for k, v in keys.items()},
        }
    )


def bpe(merges=(), extra=(), pre="gpt-2", types=None, **keys):
    """A BPE tokenizer: the byte alphabet, the results of the merges, then `extra`."""
    tokens = [*BYTE_ALPHABET, *(m.replace(" ", "") for m in merges), *extra]
    kinds = [1] * (256 + len(merges)) + list(types or [1] * len(extra))
    return tokenizer_from_metadata(
        {
            "tokenizer.ggml.model": "gpt2",
            "tokenizer.ggml.pre": pre,
            "tokenizer.ggml.tokens": tokens,
            "tokenizer.ggml.token_type": kinds,
            "tokenizer.ggml.merges": list(merges),
            **{f"tokenizer.ggml.{k}": v for k, v in keys.items()},
        }
    )


# ---- spm ----


def test_spm_best_score_first_then_leftmost():
    t = spm([SPACE, "a", "b", "aa", "ab"])
    base = 259
    assert t.encode("aaab", False) == [base, base + 3, base + 4]
    t = spm(["aa", "a"])  # three equal letters: the left pair merges
    assert t.encode("aaa", False)[-2:] == [259, 260]


def test_a_newline_is_not_a_space():
    t = spm([SPACE, "a"])
    assert t.encode("a\na", False) == [259, 260, 3 + 0x0A, 260]
    assert t.encode("\t", False) == [259, 3 + 0x09]
    assert t.decode(t.encode("a\n b\t", False)) == "a\n b\t"
    t = bpe()
    assert t.encode("\n") != t.encode(" ")


def test_space_goes_before_the_text_and_after_special_tokens():
    t = spm([SPACE, "a"])
    assert t.encode("a") == [1, 259, 260]
    assert t.encode("<s>a", parse_special=True) == [1, 259, 260]
    assert t.encode("") == [1]
    assert t.encode("", False) == []
    without = spm([SPACE, "a"], add_space_prefix=False)
    assert without.encode("a") == [1, 260]
    assert without.decode([259, 260]) == " a"
    assert t.decode([259, 260]) == "a"
    assert t.decode([259, 260], strip_prefix=False) == " a"


def test_two_ids_with_one_text_stay_two_ids():
    # a beginner's port had a map from text to id, and gave one of the two ids for the other
    t = spm([SPACE, "a", "A", "a"])
    assert t.ids("a") == [3 + ord("a"), 260, 262]
    assert t.id("a") == 260
    assert t.pieces([260, 262, 3 + ord("a")]) == ["a", "a", "a"]
    assert t.vocab[260] == t.vocab[262] == "a"
    assert t.encode("a", False) == [259, 260]
    assert t.id("A") == 261  # not the byte token <0x41>, which comes before it
    assert t.ids("A") == [3 + 0x41, 261]
    assert t.token_type(3 + 0x41) is TokenType.BYTE
    assert len(t.vocab) == len(t) == 263


def test_id_names_what_it_did_not_find():
    t = spm([SPACE + "a"])
    assert t.id(" a") == t.id(SPACE + "a") == t.id(b" a") == 259
    assert t.id("<s>") == 1
    with pytest.raises(KeyError, match="nothing"):
        t.id("nothing")
    with pytest.raises(KeyError, match="only the byte token 13"):
        t.id("\n")
    assert t.ids("\n") == [13]
    assert t.ids("nothing") == []


def test_old_files_hold_raw_bytes():
    # in llama2.c's first tokenizer.bin, byte tokens are raw bytes, so letters occur twice
    tokens = ["<unk>", "<s>", "</s>"]
    tokens += [bytes([b]).decode("utf-8", "surrogateescape") for b in range(256)]
    tokens += [SPACE, "a"]
    t = tokenizer_from_metadata(
        {
            "tokenizer.ggml.model": "llama",
            "tokenizer.ggml.tokens": tokens,
            "tokenizer.ggml.token_type": [2, 3, 3, *[6] * 256, 1, 1],
        }
    )
    assert t.encode("a\n\xe9", False)[1:] == [260, 3 + 0x0A, 3 + 0xC3, 3 + 0xA9]
    assert t.decode_bytes([3 + 0xFF]) == b"\xff"
    assert t.id("a") == 260


def test_spm_words_are_cut_only_where_no_token_crosses():
    # "a▁b" is a token here; cutting before each space would miss it
    t = spm([SPACE, "a", "b", "a" + SPACE, "a" + SPACE + "b"])
    assert t.encode("a b", False) == [259, 263]


# ---- special tokens ----


def test_longest_special_token_wins_anywhere():
    t = spm(["a", "<x", "<x>y", "y>"], types=[1, 4, 4, 4], add_space_prefix=False)
    # not leftmost first: "<x>y" is longer and takes its bytes before "<x" and "y>"
    assert t.encode("<x<x>y>", False) == [260, 261, 3 + ord(">")]


def test_parse_special_never_parses_text_from_users_by_default():
    t = spm([SPACE, "<|user|>"], types=[1, 3])
    assert 260 not in t.encode("<|user|>", False)
    assert t.encode("<|user|>", False, parse_special=True) == [260]
    assert t.decode(t.encode("<s></s>", False)) == "<s></s>"
    user_defined = spm([SPACE, "<|user|>"], types=[1, 4])
    assert user_defined.encode("<|user|>", False) == [260]


def test_no_second_bos_unless_asked():
    t = spm([SPACE, "a"])
    assert t.encode("<s>a", parse_special=True)[:2] == [1, 259]
    with pytest.warns(UserWarning, match="another before it"):
        assert t.encode("<s>a", add_special=True, parse_special=True)[:2] == [1, 1]


def test_special_text_in_the_middle_of_many():
    t = spm([SPACE, "<|a|>"], types=[1, 3])
    text = "x<|a|>" * 20000
    start = time.perf_counter()
    ids = t.encode(text, False, parse_special=True)
    assert time.perf_counter() - start < 60
    assert ids.count(260) == 20000


def test_skip_special_and_eog():
    t = spm([SPACE + "a", "<|im_end|>"], types=[1, 1])
    assert t.eot == 260
    assert t.eog_ids == {2, 260}
    assert t.is_eog(260)
    assert t.is_special(260)
    assert not t.is_eog(259)
    assert t.decode([1, 259, 260, 2], skip_special=True) == "a"
    assert t.decode([1, 259, 260, 2]) == "<s> a<|im_end|></s>"


# ---- bpe ----


def test_bpe_merges_by_rank_then_leftmost():
    t = bpe(["a b", "b c", "ab c"])
    assert t.encode("abcbc") == [t.id("abc"), t.id("bc")]
    assert t.encode("bcab") == [t.id("bc"), t.id("ab")]


def test_first_of_a_merge_that_occurs_twice_counts():
    t = bpe(["a b", "b c", "a b"])
    assert t.encode("abc") == [t.id("ab"), t.id("c")]


def test_ignore_merges_takes_whole_words():
    t = bpe(["a b"], extra=["abc"], pre="llama3")
    assert t.pieces(t.encode("abc", False)) == ["abc"]
    t = bpe(["a b"], extra=["abc"], pre="gpt-2")
    assert t.pieces(t.encode("abc", False)) == ["ab", "c"]


def test_bytes_without_a_token_are_dropped_with_a_warning():
    tokens = [c for c in BYTE_ALPHABET if c != BYTE_ALPHABET[0x0B]]
    t = tokenizer_from_metadata(
        {
            "tokenizer.ggml.model": "gpt2",
            "tokenizer.ggml.pre": "gpt-2",
            "tokenizer.ggml.tokens": tokens,
            "tokenizer.ggml.merges": [],
        }
    )
    with pytest.warns(UserWarning, match="0x0B"):
        assert t.encode("\x0b") == []


@pytest.mark.parametrize("pre", [None, "no-such-pre"])
def test_unknown_pre_warns_and_names_the_fallback(pre):
    metadata = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.tokens": ["a", "b"],
        "tokenizer.ggml.merges": [],
    }
    if pre:
        metadata["tokenizer.ggml.pre"] = pre
    with pytest.warns(UserWarning, match=f"{pre or 'does not name'}.*falling back to 'default'"):
        t = tokenizer_from_metadata(metadata)
    assert t.encode("ab") == [0, 1]


def test_gemma4_spells_spaces_and_bytes_like_spm():
    tokens = ["<bos>", "<0x0A>", "<0xF0>", "<0x9F>", "<0xA6>", "<0x99>", SPACE, "a", SPACE + "a"]
    t = tokenizer_from_metadata(
        {
            "tokenizer.ggml.model": "gemma4",
            "tokenizer.ggml.tokens": tokens,
            "tokenizer.ggml.token_type": [3, 6, 6, 6, 6, 6, 1, 1, 1],
            "tokenizer.ggml.merges": [f"{SPACE} a"],
            "tokenizer.ggml.bos_token_id": 0,
        }
    )
    assert t.encode("a a\n\U0001f999") == [0, 7, 8, 1, 2, 3, 4, 5]
    assert t.decode([7, 8, 1, 2, 3, 4, 5]) == "a a\n\U0001f999"


# ---- the other algorithms ----


def test_wordpiece_follows_hugging_face():
    # ids as transformers' BertTokenizer gives them for this vocabulary
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "▁e", "▁un", "aff", "able", "▁!", "▁σας"]
    t = tokenizer_from_metadata(
        {
            "tokenizer.ggml.model": "bert",
            "tokenizer.ggml.tokens": tokens,
            "tokenizer.ggml.token_type": [3, 2, 3, 3, 1, 1, 1, 1, 1, 1],
            "tokenizer.ggml.cls_token_id": 2,
            "tokenizer.ggml.seperator_token_id": 3,
            "tokenizer.ggml.unknown_token_id": 1,
        }
    )
    assert t.encode("UNAFFABLE!") == [2, 5, 6, 7, 8, 3]
    assert t.encode("e\u0301", False) == [4]
    assert t.encode("x" * 101, False) == [1]
    assert t.encode("unaffably", False) == [1]
    assert t.encode("ΣΑΣ", False) == [1]  # by character: σασ, not σας
    assert t.decode([5, 6, 7, 8]) == "unaffable !"


def test_unigram_takes_the_most_probable_cut():
    t = tokenizer_from_metadata(
        {
            "tokenizer.ggml.model": "t5",
            "tokenizer.ggml.tokens": ["<pad>", "</s>", "<unk>", SPACE, "a", "b", "ab", "aba"],
            "tokenizer.ggml.scores": [0.0, 0, 0, -1, -2, -2, -2.5, -6],
            "tokenizer.ggml.token_type": [3, 3, 2, 1, 1, 1, 1, 1],
            "tokenizer.ggml.add_space_prefix": True,
            "tokenizer.ggml.remove_extra_whitespaces": True,
        }
    )
    assert t.encode("aba") == [3, 6, 4, 1]
    assert t.encode("  ab   a ", False) == [3, 6, 3, 4]
    assert t.encode("a??b", False) == [3, 4, 2, 5]  # one <unk> for several unknown characters
    assert t.encode("", False) == []


def test_rwkv_takes_the_longest():
    t = tokenizer_from_metadata(
        {
            "tokenizer.ggml.model": "rwkv",
            "tokenizer.ggml.tokens": ["<s>", "a", "ab", "abc", r"\n", r"\xe4", r"\\"],
            "tokenizer.ggml.token_type": [3, 1, 1, 1, 1, 1, 1],
        }
    )
    ids = t.encode(b"ababc\n\xe4\\")
    assert ids == [2, 3, 4, 5, 6]
    assert t.decode_bytes(ids) == b"ababc\n\xe4\\"


def test_no_tokenizer_and_unknown_tokenizer():
    assert tokenizer_from_metadata({}) is None
    assert tokenizer_from_metadata({"tokenizer.ggml.model": "no_vocab"}) is None
    with pytest.raises(tl.UnsupportedError, match="plamo2"):
        tokenizer_from_metadata({"tokenizer.ggml.model": "plamo2"})
    with pytest.raises(tl.FormatError, match=r"tokenizer\.ggml\.model is 3"):
        tokenizer_from_metadata({"tokenizer.ggml.model": 3})


# ---- inputs of every kind ----

KINDS = {
    "spm": lambda: spm([SPACE, "a", "aa", SPACE + "a"]),
    "bpe": lambda: bpe(["a a", "Ġ a"]),
    "llama3": lambda: bpe(["a a", "Ġ a"], pre="llama3", add_bos_token=False),
}


@pytest.mark.parametrize("kind", KINDS)
def test_bytes_and_str_give_the_same(kind):
    t = KINDS[kind]()
    for text in ["a a", "né\0\n", "\U0001f999 a", "\u0301e"]:
        assert t.encode(text) == t.encode(text.encode()) == t.encode(bytearray(text.encode()))
    for wrong in (3, None, ["a"]):
        with pytest.raises(TypeError, match=r"text is .*; expected str or bytes"):
            t.encode(wrong)
    with pytest.raises(TypeError, match="list of texts"):
        t.encode_batch("ab")
    assert t.encode_batch(["a", b"a"]) == [t.encode("a")] * 2


def test_invalid_utf8_and_surrogates():
    t = spm([SPACE, "a"])
    raw = b"a\xe4\xbd\xff\0a"
    ids = t.encode(raw, False)
    assert t.decode_bytes(ids) == raw
    assert t.encode(raw.decode(errors="surrogateescape"), False) == ids
    assert t.encode("\ud800", False) == t.encode("\ufffd", False)
    assert t.decode(ids, errors="surrogateescape") == raw.decode(errors="surrogateescape")
    with pytest.raises(UnicodeDecodeError):
        t.decode(ids, errors="strict")
    # byte-level BPE: one U+FFFD for each byte that is not UTF-8
    b = bpe()
    assert b.decode(b.encode(raw)) == "a\ufffd\ufffd\ufffd\0a"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "text",
    ["a" * 10**6, " " * 10**6, "\n" * 10**6, "。" * 300_000, " 1" * 400_000, "\t x" * 300_000,
     "Ab" * 400_000, "1" * 10**6, "\xff" * 10**5, "e\u0301" * 200_000],
    ids=lambda text: ascii(text[:4]),
)  # fmt: skip
@pytest.mark.slow
def test_a_megabyte_takes_linear_time(kind, text):
    t = KINDS[kind]()
    start = time.perf_counter()
    ids = t.encode(text, False)
    assert time.perf_counter() - start < 120  # quadratic time would take hours
    assert t.decode(ids) == text


def test_200000_distinct_merges():
    rng = random.Random(1)
    merges: dict[str, None] = {}
    pool = [chr(ord("a") + i) for i in range(26)]
    while len(merges) < 200_000:
        left, right = rng.choice(pool), rng.choice(pool)
        if f"{left} {right}" not in merges:
            merges[f"{left} {right}"] = None
            if len(left + right) <= 8:
                pool.append(left + right)
    t = bpe(list(merges))
    text = "".join(rng.choice(pool) for _ in range(2000))
    assert t.decode(t.encode(text)) == text


# ---- decoding ----


def test_stream_decoder_never_splits_a_character():
    t = bpe()
    ids = t.encode("歪a")
    decoder = t.stream_decoder()
    assert [decoder.feed(i) for i in ids] == ["", "", "歪", "a"]
    assert decoder.finish() == ""
    decoder = t.stream_decoder()
    assert decoder.feed(ids[:2]) == ""
    assert decoder.finish() == "\ufffd"


def test_stream_is_prefix_stable_and_equals_batch():
    rng = random.Random(0)
    for t in (spm([SPACE, "a", SPACE + "é"]), bpe(["a b"])):
        for _ in range(200):
            ids = [rng.randrange(len(t)) for _ in range(rng.randrange(12))]
            decoder = tl.StreamDecoder(t)
            parts = [decoder.feed(i) for i in ids] + [decoder.finish()]
            assert "".join(parts) == t.decode(ids)


def test_ids_outside_the_vocabulary():
    t = spm(["a"])
    for wrong in (-1, len(t), 2**40):
        for call in (t.decode, t.pieces):
            with pytest.raises(IndexError, match=f"is {wrong}"):
                call([0, wrong])
        with pytest.raises(IndexError, match="260 tokens"):
            t.token_type(wrong)
    with pytest.raises(TypeError, match=r"ids\[0\] is 'a'"):
        t.decode(["a"])
    assert t.decode(np.array([259, 259])) == "aa"
    assert t.decode(259) == "a"


def test_nothing_is_cleaned_up():
    t = bpe()
    assert t.decode(t.encode("x != y and 'm a , b ?")) == "x != y and 'm a , b ?"


# ---- explain and diff ----


def test_explain_shows_the_merges():
    e = bpe(["a b", "ab c"], extra=["<|x|>"], types=[3]).explain("abc<|x|>", parse_special=True)
    assert [s.name for s in e.steps] == ["word", "merge", "merge", "tokens", "special"]
    assert "a + b, rank 0" in str(e)
    assert "control token" in str(e)
    assert str(e).splitlines()[0].split() == ["step", "text", "why", "ids"]
    e = spm([SPACE, "a", SPACE + "a"]).explain("a\x07")
    assert "score -2" in str(e)
    assert "not in the vocabulary: bytes" in str(e)
    assert "\x07" not in str(e)


def test_diff_tokens():
    t = spm([SPACE, "a"])
    d = diff_tokens([1, 260, 5], [1, 259, 260, 5], t)
    assert not d.equal
    assert d.first == 1
    assert d.changes == [((1, 1, []), (1, 2, ["259 ' '"]))]
    assert "259 ' '" in str(d)
    assert diff_tokens([1], [1]).equal
    assert diff_tokens(["a"], ["b"]).first == 0
    big = list(range(30000))
    start = time.perf_counter()
    assert diff_tokens(big, big[::-1]).first == 0
    assert time.perf_counter() - start < 60
    with pytest.raises(TypeError, match="a is str; expected a sequence"):
        diff_tokens("abc", ["a"])


# ---- malformed vocabularies: an error or a tokenizer, never a crash ----

GOOD = {
    "tokenizer.ggml.model": "llama",
    "tokenizer.ggml.tokens": ["<unk>", "<s>", "</s>", SPACE, "a"],
    "tokenizer.ggml.scores": [0.0, 0.0, 0.0, -1.0, -2.0],
    "tokenizer.ggml.token_type": [2, 3, 3, 1, 1],
}


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("tokens", None, "tokens"),
        ("tokens", [], "at least one token"),
        ("tokens", "abc", "array of strings"),
        ("tokens", ["<unk>", 1, "c", "d", "e"], r"tokens\[1\]"),
        ("tokens", np.arange(5), "array of strings"),
        ("scores", np.array([1], np.uint8), "1 entries; expected 5"),
        ("scores", [0.0] * 6, "6 entries"),
        ("scores", [0.0, 0.0, 0.0, 0.0, float("nan")], r"scores\[4\] is nan"),
        ("scores", 3, "array of numbers"),
        ("scores", ["a"] * 5, r"scores\[0\]"),
        ("token_type", [1, 1], "2 entries; expected 5"),
        ("token_type", [1, 1, 1, 1, 99], r"token_type\[4\] is 99"),
        ("token_type", [-1, 1, 1, 1, 1], r"token_type\[0\] is -1"),
        ("token_type", ["x"] * 5, r"token_type\[0\]"),
        ("token_type", np.full(5, np.nan), r"token_type\[0\] is nan; expected an int"),
        ("token_type", np.ones((5, 2), np.int32), r"token_type\[0\]"),
        ("scores", np.array(["a"] * 5), r"scores\[0\]"),
        ("bos_token_id", "x", "bos_token_id is 'x'"),
        ("bos_token_id", True, "bos_token_id is True"),
        ("add_bos_token", "yes", "add_bos_token is 'yes'"),
        ("pre", 3, "pre is 3"),
    ],
)  # fmt: skip
def test_malformed_vocabulary(key, value, words):
    metadata = {**GOOD, f"tokenizer.ggml.{key}": value}
    if value is None:
        del metadata[f"tokenizer.ggml.{key}"]
    with pytest.raises(tl.FormatError, match=words):
        tokenizer_from_metadata(metadata)


@pytest.mark.parametrize("index", [5, 2**31, 2**32 - 2, -2])
@pytest.mark.parametrize(
    "key", ["bos", "eos", "eot", "eom", "unknown", "seperator", "padding", "mask", "fim_pad"]
)
def test_special_id_outside_the_vocabulary_is_ignored(key, index):
    with pytest.warns(UserWarning, match=f"{key}_token_id is {index}"):
        t = tokenizer_from_metadata({**GOOD, f"tokenizer.ggml.{key}_token_id": index})
    assert t.decode(t.encode("aa"), skip_special=True) == "aa"


@pytest.mark.parametrize("kind", ["int8", "uint8", "int16", "uint32", "int64", "uint64"])
def test_token_types_of_any_width(kind):
    t = tokenizer_from_metadata(
        {**GOOD, "tokenizer.ggml.token_type": np.array([2, 3, 3, 1, 1], kind)}
    )
    assert t.encode("a") == [1, 3, 4]


def test_odd_vocabularies_load():
    tokens = ["<unk>", "<s>", "</s>", SPACE, "a", "", "a", "<0x-1>", "<0xZZ>", "<0x41", "\udcff"]
    t = tokenizer_from_metadata(
        {
            "tokenizer.ggml.model": "llama",
            "tokenizer.ggml.tokens": tokens,
            "tokenizer.ggml.token_type": [2, 3, 3, 1, 1, 1, 1, 6, 6, 6, 1],
        }
    )
    assert t.encode("a", False) == [3, 4]
    assert t.encode("é", False) == [3, 0, 0]  # no byte tokens: unknown
    assert t.encode(b"\xff", False) == [3, 10]
    assert t.pieces([5, 7, 8, 9]) == ["", "<0x-1>", "<0xZZ>", "<0x41"]
    assert t.decode_bytes([10]) == b"\xff"
    assert t.ids("") == [5]
    huge = tokenizer_from_metadata(
        {**GOOD, "tokenizer.ggml.tokens": ["<unk>", "<s>", "</s>", SPACE, "a" * 2**20]}
    )
    assert len(huge.decode([4])) == 2**20
    no_types = dict(GOOD)
    del no_types["tokenizer.ggml.token_type"], no_types["tokenizer.ggml.scores"]
    assert tokenizer_from_metadata(no_types).encode("a") == [1, 3, 4]


@pytest.mark.parametrize("merge", ["ab", "a ", " a", "", " ", "  "])
def test_malformed_merge(merge):
    metadata = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": [*BYTE_ALPHABET, "aa"],
        "tokenizer.ggml.merges": ["a a", merge],
    }
    with pytest.raises(tl.FormatError, match=r"merges\[1\]"):
        tokenizer_from_metadata(metadata)


def test_merges_missing_or_unknown():
    metadata = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": ["a", "b"],
    }
    with pytest.raises(tl.FormatError, match="merges"):
        tokenizer_from_metadata(metadata)
    # the result is not a token, so it is split into single characters again
    t = tokenizer_from_metadata({**metadata, "tokenizer.ggml.merges": ["a b", "x y"]})
    assert t.encode("ab") == [0, 1]


@pytest.mark.parametrize(
    "charsmap", [b"\1", b"\xff\xff\xff\xff", b"\3\0\0\0abc", b"\4\0\0\0\xff\xff\xff\xff"]
)
def test_malformed_charsmap(charsmap):
    metadata = {
        "tokenizer.ggml.model": "t5",
        "tokenizer.ggml.tokens": ["<pad>", "</s>", "<unk>", "a"],
        "tokenizer.ggml.scores": [0.0, 0.0, 0.0, -1.0],
        "tokenizer.ggml.token_type": [3, 3, 2, 1],
        "tokenizer.ggml.precompiled_charsmap": np.frombuffer(charsmap, np.uint8),
    }
    try:
        t = tokenizer_from_metadata(metadata)
    except tl.FormatError as error:
        assert error.field == "tokenizer.ggml.precompiled_charsmap"  # noqa: PT017
    else:
        for text in (b"a", b"\xff\xfe", b"aaaa\0"):
            t.encode(text)


def test_random_charsmaps_never_crash():
    rng = random.Random(5)
    for _ in range(300):
        words = rng.randrange(1, 40)
        raw = (words * 4).to_bytes(4, "little") + rng.randbytes(words * 4 + rng.randrange(8))
        t = tokenizer_from_metadata(
            {
                "tokenizer.ggml.model": "t5",
                "tokenizer.ggml.tokens": ["<pad>", "</s>", "<unk>", "a"],
                "tokenizer.ggml.precompiled_charsmap": np.frombuffer(raw, np.int8),
            }
        )
        t.encode(rng.randbytes(20))


@pytest.mark.threads
def test_one_tokenizer_from_many_threads():
    t = bpe(["a b", "b c", "ab c"])
    texts = [f"abc{i} bc{i * 7}" for i in range(200)]
    want = [t.encode(text) for text in texts]
    fresh = bpe(["a b", "b c", "ab c"])
    failures = []

    def work():
        if fresh.encode_batch(texts) != want:
            failures.append(1)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def test_load_tokenizer_errors(tmp_path):
    with pytest.raises(FileNotFoundError):
        tl.load_tokenizer(tmp_path / "none.gguf")
    empty = tmp_path / "empty.gguf"
    tl.write_gguf(empty, {"general.architecture": "llama"}, {})
    with pytest.raises(tl.FormatError, match="has no tokenizer"):
        tl.load_tokenizer(empty)
    full = tmp_path / "full.gguf"
    tl.write_gguf(full, GOOD, {})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert tl.load_tokenizer(full).encode("a") == [1, 3, 4]
