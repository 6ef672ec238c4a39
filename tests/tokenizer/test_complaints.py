"""Bugs that were reported in other engines' tokenizers, as tests on real vocabularies.

A number belongs to the named repository.
"""

import warnings

import pytest

from testkit.data import tokenizer
from testkit.growth import LINEAR, growth

LLAMA = "ggml-vocab-llama-spm.gguf"
LLAMA3 = "rebuilt-llama-bpe.gguf"


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("Hello", [15043]),  # llama.cpp #2310, #167: the space before the text
        (" Hello", [29871, 15043]),
        ("", []),
        (" ", [259]),
        ("a\n b", [263, 13, 289]),  # newline and tab are not escaped, and do not become spaces
        ("\t a", [29871, 12, 263]),
        ("<s>Hello", [529, 29879, 29958, 10994]),  # special tokens in text from users
        (b"\xff", [29871, 258]),  # llama.cpp #8691: a crash
        (b"a\xe4\xbd", [263, 231, 192]),
    ],
)
def test_llama(text, ids):
    assert tokenizer(LLAMA).encode(text, add_special=False) == ids


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("<s>Hello", [1, 15043]),  # llama.cpp #8584, #7049, #7094; transformers #27230
        ("<s> Hello", [1, 29871, 15043]),  # llama.cpp #23840
    ],
)
def test_llama_space_after_a_special_token(text, ids):
    assert tokenizer(LLAMA).encode(text, add_special=False, parse_special=True) == ids


def test_phi3_special_tokens_swallow_blanks():
    t = tokenizer("ggml-vocab-phi-3.gguf")
    text = "<|user|>\nHi<|end|>\n<|assistant|>\n"
    assert t.encode(text, False, parse_special=True) == [32010, 6324, 32007, 32001]
    assert t.encode("</s>  x", False) == [2, 921]  # user-defined tokens are always recognized


def test_gpt_neox_runs_of_blanks():
    t = tokenizer("ggml-vocab-gpt-neox.gguf")
    wants = {1: [209], 2: [50276], 5: [50273], 24: [50254], 25: [50254, 209], 30: [50254, 50272]}
    for count, ids in wants.items():
        assert t.encode(" " * count, False) == ids


def test_bos_is_not_doubled():
    # llama-cpp-python #1501, #1537, #1561; koboldcpp #917
    t = tokenizer(LLAMA3)
    text = "<|begin_of_text|>Hi"
    assert t.encode(text, parse_special=True).count(128000) == 1
    with pytest.warns(UserWarning, match="another before it"):
        assert t.encode(text, add_special=True, parse_special=True).count(128000) == 2


def test_streaming_a_character_of_two_tokens():
    # llama-cpp-python #57, #372
    t = tokenizer(LLAMA3)
    assert t.encode("歪", False) == [15722, 103]
    assert t.pieces_bytes([15722, 103]) == [b"\xe6\xad", b"\xaa"]
    decoder = t.stream_decoder()
    assert [decoder.feed(15722), decoder.feed(103)] == ["", "歪"]
    decoder = t.stream_decoder()
    assert [decoder.feed(15722), decoder.finish()] == ["", "\ufffd"]


@pytest.mark.parametrize("file", [LLAMA3, "ggml-vocab-gpt-2.gguf"])
def test_decoding_does_not_clean_up(file):
    # transformers #35175, #32575; tokenizers #1543
    t = tokenizer(file)
    assert t.decode(t.encode("x != y and 'm a , b", False)) == "x != y and 'm a , b"


def test_deepseek_v3_tilde_is_a_symbol():
    # llama.cpp pull request 26972: "~" was missing from \p{S}
    from tinyllm.tokenizer.pretokenizers import PRE_TOKENIZERS, split_pieces

    assert split_pieces(" ~", PRE_TOKENIZERS["deepseek-v3"].splitters) == [" ~"]


def test_bert_as_hugging_face():
    # llama.cpp #5496
    t = tokenizer("ggml-vocab-bert-bge.gguf")
    assert t.encode("한국어", False) == [1469, 30006, 30021, 29991, 30014, 30020, 29999, 30008]
    assert t.encode("e\u0301", False) == [1041]
    assert t.encode("x" * 101, False) == [100]
    assert t.encode("x" * 100, False) != [100]


def test_qwen2_normal_form():
    # llama.cpp #6980: Hugging Face brings the text to NFC
    assert tokenizer("rebuilt-qwen2.gguf").encode("e\u0301", False) == [963]


def test_falcon_has_no_token_for_vertical_tab():
    t = tokenizer("ggml-vocab-falcon.gguf")
    with pytest.warns(UserWarning, match="no token for byte 0x0B: it is dropped"):
        assert t.encode("\x0b", False) == []


@pytest.mark.slow
@pytest.mark.parametrize("file", [LLAMA, LLAMA3, "ggml-vocab-gpt-neox.gguf"])
def test_long_runs_take_linear_time(file):
    # transformers #25873; llama2.c pull request 251; llama.cpp #27783 and others
    t = tokenizer(file)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for letter in (" ", "a", "\n", "。"):
            text = letter * 50_000
            assert t.decode(t.encode(text, False)) == text
            slower = growth(lambda text: t.encode(text, False), text, 4 * text)
            assert slower < LINEAR, (letter, slower)
