"""Vocabularies: tokenizer.json, SentencePiece, WordPiece; special tokens, flags, templates."""

import json
import shutil
import struct
import warnings

import numpy as np
import pytest

import tinyllm as tl
from testkit import data
from testkit.gguf_bytes import read_metadata
from tinyllm.conversion.config import CheckpointConfig
from tinyllm.conversion.recognize import recognize
from tinyllm.conversion.sentencepiece import read_sentencepiece
from tinyllm.conversion.tokenizers import read_vocabulary
from tinyllm.tokenizer import tokenizer_from_metadata
from tinyllm.tokenizer.bpe import BYTE_ALPHABET
from tinyllm.tokenizer.pretokenizers import PRE_TOKENIZERS, split_pieces

#: Vocabularies of the test data, and their pre-tokenizers by another name that means the same.
VOCABULARIES = {
    "ggml-vocab-gpt-2": "gpt-2",
    "ggml-vocab-starcoder": "smollm",
    "ggml-vocab-falcon": "falcon",
    "ggml-vocab-deepseek-coder": "deepseek-coder",
    "rebuilt-llama-bpe": "llama-bpe",
    "rebuilt-qwen2": "qwen2",
    "ggml-vocab-llama-spm": "default",
    "ggml-vocab-phi-3": "default",
    "rebuilt-tok512": "default",
    "rebuilt-mistral_v3": "default",
    "ggml-vocab-bert-bge": "default",
    "rebuilt-ugm_en": "default",
}


def texts():
    path = data.path("vocab", "ggml-vocab-gpt-2.gguf.inp")
    return path.read_text("utf-8").split("\n__ggml_vocab_test__\n")[:-1]


def vocabulary(folder, size=0, architecture="llama", **config):
    keys = read_vocabulary(folder, CheckpointConfig({"vocab_size": size, **config}), architecture)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return keys, tokenizer_from_metadata(keys)


@pytest.mark.parametrize("name", VOCABULARIES)
def test_ids_are_those_of_the_same_vocabulary_in_gguf(name, tmp_path):
    hf_tokenizers = pytest.importorskip("testkit.hf_tokenizers")
    metadata = read_metadata(data.path("vocab", f"{name}.gguf"))
    types = [int(kind) for kind in metadata["tokenizer.ggml.token_type"]]
    theirs = hf_tokenizers.build(metadata)
    for i, token in enumerate(metadata["tokenizer.ggml.tokens"]):
        if types[i] in (2, 3, 4):
            added = hf_tokenizers.AddedToken(token, normalized=False, special=types[i] != 4)
            (theirs.add_tokens if types[i] == 4 else theirs.add_special_tokens)([added])
    theirs.save(str(tmp_path / "tokenizer.json"))
    keys, ours = vocabulary(tmp_path, len(metadata["tokenizer.ggml.tokens"]))
    assert keys["tokenizer.ggml.model"] == metadata["tokenizer.ggml.model"]
    assert keys["tokenizer.ggml.pre"] == VOCABULARIES[name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        want = tokenizer_from_metadata(metadata)
    for text in texts():
        assert list(ours.encode(text, add_special=False)) == list(
            want.encode(text, add_special=False)
        ), text


# ---- a small byte-level vocabulary ----

TEMPLATE = {
    "type": "TemplateProcessing",
    "single": [{"SpecialToken": {"id": "<s>"}}, {"Sequence": {"id": "A"}}],
}


def small(pre=None, **changes):
    """A tokenizer.json: the 256 bytes, some merges and three added tokens."""
    tokens = [*BYTE_ALPHABET, "he", "ll", "hell", "hello", "Ġhello", "Ġ1"]
    merges = ["h e", "l l", "he ll", "hell o", "Ġ hello", "Ġ 1"]
    added = [("<s>", True), ("</s>", True), ("<tool>", False), ("<|look|>", False)]
    return {
        "added_tokens": [
            {"id": len(tokens) + i, "content": text, "special": special}
            for i, (text, special) in enumerate(added)
        ],
        "normalizer": None,
        "pre_tokenizer": pre or {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True},
        "post_processor": TEMPLATE,
        "decoder": {"type": "ByteLevel"},
        "model": {
            "type": "BPE",
            "vocab": {token: i for i, token in enumerate(tokens)},
            "merges": merges,
            **changes,
        },
    }


def write(folder, name, value):
    (folder / name).write_text(value if isinstance(value, str) else json.dumps(value), "utf-8")


def test_a_small_vocabulary(tmp_path):
    write(tmp_path, "tokenizer.json", small())
    write(tmp_path, "tokenizer_config.json", {"bos_token": "<s>", "eos_token": {"content": "</s>"}})
    keys, ours = vocabulary(tmp_path, 270)
    types = keys["tokenizer.ggml.token_type"].tolist()
    assert types[262:] == [3, 3, 4, 3, 5, 5, 5, 5]  # unused ids are filled up
    assert keys["tokenizer.ggml.tokens"][266] == "[PAD266]"
    assert keys["tokenizer.ggml.bos_token_id"] == 262
    assert keys["tokenizer.ggml.eos_token_id"] == 263
    assert keys["tokenizer.ggml.add_bos_token"] is True
    assert keys["tokenizer.ggml.add_eos_token"] is False
    assert "tokenizer.ggml.scores" not in keys
    assert list(ours.encode("hello hello")) == [262, 259, 260]


def test_merges_as_pairs(tmp_path):
    pairs = [pair.split(" ") for pair in small()["model"]["merges"]]
    write(tmp_path, "tokenizer.json", small(merges=pairs))
    keys, ours = vocabulary(tmp_path)
    assert keys["tokenizer.ggml.merges"] == small()["model"]["merges"]
    assert list(ours.encode("hello", add_special=False)) == [259]


def test_a_flag_of_the_config_comes_first(tmp_path):
    write(tmp_path, "tokenizer.json", small())
    write(tmp_path, "tokenizer_config.json", {"add_bos_token": False, "bos_token": "<s>"})
    assert vocabulary(tmp_path)[0]["tokenizer.ggml.add_bos_token"] is False


def test_ids_of_the_model_config_count_where_no_text_is_told(tmp_path):
    write(tmp_path, "tokenizer.json", small())
    keys, _ = vocabulary(tmp_path, 270, eos_token_id=[263, 264], pad_token_id=999)
    assert keys["tokenizer.ggml.eos_token_id"] == 263
    assert "tokenizer.ggml.padding_token_id" not in keys


def test_more_tokens_than_the_model_has(tmp_path):
    write(tmp_path, "tokenizer.json", small())
    with pytest.raises(tl.FormatError, match=r"'<s>' has the id 262; expected an id below 262"):
        vocabulary(tmp_path, 262)


@pytest.mark.parametrize(
    ("files", "want"),
    [
        ({"tokenizer_config.json": {"chat_template": "A"}}, {"": "A"}),
        (
            {
                "tokenizer_config.json": {
                    "chat_template": [
                        {"name": "default", "template": "A"},
                        {"name": "rag", "template": "B"},
                    ]
                }
            },
            {"": "A", ".rag": "B", "s": ["rag"]},
        ),
        (
            {"tokenizer_config.json": {"chat_template": "A"}, "chat_template.jinja": "C"},
            {"": "C"},
        ),
        ({"chat_template.json": {"chat_template": "D"}}, {"": "D"}),
        ({}, {}),
    ],
    ids=["one", "named", "file", "json", "none"],
)
def test_chat_templates(files, want, tmp_path):
    write(tmp_path, "tokenizer.json", small())
    for name, value in files.items():
        write(tmp_path, name, value)
    keys, _ = vocabulary(tmp_path)
    prefix = "tokenizer.chat_template"
    found = {key[len(prefix) :]: value for key, value in keys.items() if key.startswith(prefix)}
    assert found == want


def test_a_converted_model_reads_text(tmp_path):
    folder = shutil.copytree(data.path("hf", "llama"), tmp_path / "m")
    write(folder, "tokenizer.json", small())
    write(folder, "tokenizer_config.json", {"bos_token": "<s>", "chat_template": "{{ 1 }}"})
    tl.convert(folder, tmp_path / "m.gguf")
    model = tl.load(tmp_path / "m.gguf")
    assert list(model.tokenizer.encode("hello")) == [262, 259]
    tl.convert(folder, tmp_path / "n.gguf", vocab=False)
    metadata = tl.GGUF(tmp_path / "n.gguf").metadata
    assert not [key for key in metadata if key.startswith("tokenizer.")]


# ---- recognition ----


def split(expression):
    return {"type": "Split", "pattern": {"Regex": expression}, "behavior": "Isolated"}


BYTES = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}


@pytest.mark.parametrize(
    "name", sorted(name for name, row in PRE_TOKENIZERS.items() if row.byte_encode)
)
def test_every_pre_tokenizer_is_recognized_by_what_it_does(name):
    row = PRE_TOKENIZERS[name]
    if not all(isinstance(splitter, str) for splitter in row.splitters):
        pytest.skip("its splitters are functions")
    steps = [split(expression) for expression in row.splitters]
    described = small({"type": "Sequence", "pretokenizers": [*steps, BYTES]})
    described["model"]["ignore_merges"] = row.ignore_merges
    described["normalizer"] = {"type": "NFC"} if row.nfc else None
    found = PRE_TOKENIZERS[recognize(described, "glm4" if row.no_bos else "llama")]
    for text in texts():
        assert split_pieces(text, found.splitters) == split_pieces(text, row.splitters)
    assert (found.ignore_merges, found.nfc) == (row.ignore_merges, row.nfc)


def test_an_unknown_pre_tokenizer_is_shown():
    odd = {"type": "Sequence", "pretokenizers": [split("[aeiou]+|[^aeiou]"), BYTES]}
    described = small(odd)
    described["model"]["merges"] = [*described["model"]["merges"], "a b", "e l"]
    with pytest.raises(tl.UnsupportedError, match=r"\[aeiou\]"):
        recognize(described, "llama")
    with pytest.raises(tl.UnsupportedError, match="UnicodeScripts"):
        recognize(small({"type": "UnicodeScripts"}), "llama")


# ---- SentencePiece ----


def field(number, wire, value):
    return bytes([number << 3 | wire]) + value


def text_field(number, value):
    assert len(value) < 1 << 14
    size = len(value)
    length = bytes([size]) if size < 128 else bytes([size & 127 | 128, size >> 7])
    return field(number, 2, length + value)


def sentencepiece(tokens, scores, types, kind, charsmap=b"", prefix=True):
    """Return the bytes of a model, written by hand."""
    parts = []
    for token, score, of in zip(tokens, scores, types, strict=True):
        piece = text_field(1, token.encode("utf-8", "surrogateescape"))
        piece += field(2, 5, struct.pack("<f", score))
        parts.append(text_field(1, piece + field(3, 0, bytes([int(of)]))))
    parts.append(text_field(2, field(3, 0, bytes([kind]))))
    normalizer = text_field(2, charsmap) + field(3, 0, bytes([prefix])) + field(4, 0, b"\0")
    return b"".join(parts) + text_field(3, normalizer)


def test_a_sentencepiece_model(tmp_path):
    metadata = read_metadata(data.path("vocab", "ggml-vocab-llama-spm.gguf"))
    tokens, scores, types = (
        list(metadata[f"tokenizer.ggml.{name}"]) for name in ("tokens", "scores", "token_type")
    )
    (tmp_path / "tokenizer.model").write_bytes(sentencepiece(tokens, scores, types, 2))
    write(tmp_path, "tokenizer_config.json", {"bos_token": "<s>", "unk_token": "<unk>"})
    keys, ours = vocabulary(tmp_path, len(tokens) + 2)
    assert keys["tokenizer.ggml.model"] == "llama"
    assert keys["tokenizer.ggml.tokens"][:-2] == tokens
    np.testing.assert_array_equal(keys["tokenizer.ggml.scores"][:-2], np.float32(scores))
    assert keys["tokenizer.ggml.token_type"].tolist() == [*types, 5, 5]
    assert keys["tokenizer.ggml.add_space_prefix"] is True
    assert keys["tokenizer.ggml.unknown_token_id"] == 0
    want = tokenizer_from_metadata(metadata)
    for text in texts():
        assert list(ours.encode(text)) == list(want.encode(text)), text


def test_a_unigram_model(tmp_path):
    metadata = read_metadata(data.path("vocab", "rebuilt-ugm_en.gguf"))
    tokens, scores, types = (
        list(metadata[f"tokenizer.ggml.{name}"]) for name in ("tokens", "scores", "token_type")
    )
    charsmap = bytes(int(x) & 255 for x in metadata["tokenizer.ggml.precompiled_charsmap"])
    model = sentencepiece(tokens, scores, types, 1)
    model = model[: model.rindex(b"\x1a")]
    spec = field(3, 0, b"\1") + field(4, 0, b"\1")
    size = len(charsmap)
    length = bytes([size & 127 | 128, size >> 7 & 127 | 128, size >> 14])
    spec += field(2, 2, length + charsmap)
    size = len(spec)
    length = bytes([size & 127 | 128, size >> 7 & 127 | 128, size >> 14])
    (tmp_path / "spiece.model").write_bytes(model + field(3, 2, length + spec))
    keys, ours = vocabulary(tmp_path, len(tokens))
    assert keys["tokenizer.ggml.model"] == "t5"
    assert keys["tokenizer.ggml.precompiled_charsmap"].tobytes() == charsmap
    assert keys["tokenizer.ggml.remove_extra_whitespaces"] is True
    want = tokenizer_from_metadata(metadata)
    for text in texts():
        assert list(ours.encode(text, add_special=False)) == list(
            want.encode(text, add_special=False)
        ), text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no pieces"),
        (b"\x0a\x05ab", "length of a field"),
        (b"\x0a\x80", "not complete"),
        (b"\x0b", "wire type"),
        (b"\x08\x01", "a message"),
        (b"\x20\x01", "no pieces"),
        (b"\x0a\x02\x10\x01", "a piece"),
    ],
)
def test_a_damaged_model_is_refused(content, message, tmp_path):
    (tmp_path / "tokenizer.model").write_bytes(content)
    with pytest.raises(tl.FormatError, match=message):
        read_sentencepiece(tmp_path / "tokenizer.model")


# ---- WordPiece ----


def test_a_list_of_word_pieces(tmp_path):
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "play", "##ing", "##s", "!", "é"]
    (tmp_path / "vocab.txt").write_text("\n".join(words) + "\n", "utf-8")
    write(tmp_path, "tokenizer_config.json", {"do_lower_case": True})
    keys, ours = vocabulary(tmp_path, len(words), "bert", pad_token_id=0)
    assert keys["tokenizer.ggml.tokens"][4:8] == ["[MASK]", "▁play", "ing", "s"]
    assert keys["tokenizer.ggml.cls_token_id"] == 2
    assert keys["tokenizer.ggml.seperator_token_id"] == 3
    assert list(ours.encode("Playing!")) == [2, 5, 6, 8, 3]


def test_a_folder_without_a_tokenizer(tmp_path):
    with pytest.raises(tl.UnsupportedError, match="vocab=False"):
        vocabulary(tmp_path)
