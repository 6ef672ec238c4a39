"""The vocabulary of a GGUF file as ``tokenizer.json`` and ``tokenizer_config.json``.

``tokenizer.json`` is the format of Hugging Face's tokenizers
(github.com/huggingface/tokenizers, tokenizers/src/).
"""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..errors import UnsupportedError
from ..tokenizer.base import Tokenizer
from ..tokenizer.pretokenizers import PRE_TOKENIZERS
from ..tokenizer.registry import tokenizer_from_metadata
from ..tokenizer.vocab import TokenType

__all__ = ["tokenizer_files"]

_SPACE = "▁"
_SPECIALS = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")

Json = dict[str, Any]


def tokenizer_files(metadata: Mapping[str, Any]) -> tuple[dict[str, Json], Tokenizer | None]:
    """Return the files of a tokenizer, as JSON, and the tokenizer itself.

    Parameters
    ----------
    metadata : mapping of str to object
        Of the GGUF file.

    Returns
    -------
    files : dict of str to dict
        By name. Empty if the file has no vocabulary.
    tokenizer : Tokenizer or None

    Raises
    ------
    tinyllm.UnsupportedError
        If ``tokenizer.json`` cannot say what the file's tokenizer does.
    """
    tokenizer = tokenizer_from_metadata(metadata)
    kind = metadata.get("tokenizer.ggml.model")
    if tokenizer is None:
        return {}, None
    makers = {"gpt2": _byte_level, "llama": _sentencepiece, "t5": _unigram, "bert": _word_pieces}
    if kind not in makers:
        raise UnsupportedError(
            f"tokenizer.ggml.model is {kind!r}; tokenizer.json is written for {', '.join(makers)}"
        )
    texts = [str(text) for text in metadata["tokenizer.ggml.tokens"]]
    types = metadata.get("tokenizer.ggml.token_type")
    kinds = [int(TokenType.NORMAL)] * len(texts) if types is None else [int(t) for t in types]
    described: Json = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {
                "id": index,
                "content": text,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": kinds[index] == TokenType.CONTROL,
            }
            for index, text in enumerate(texts)
            if kinds[index] in (TokenType.CONTROL, TokenType.USER_DEFINED)
            or (kinds[index] == TokenType.UNKNOWN and kind != "t5")
        ],
        **makers[kind](metadata, texts, kinds),
    }
    processor = _processor(tokenizer, texts, described.pop("post_processor", None))
    order = ("normalizer", "pre_tokenizer", "post_processor", "decoder", "model")
    described |= {"post_processor": processor}
    described = {
        **{key: value for key, value in described.items() if key not in order},
        **{key: described.get(key) for key in order},
    }
    return {
        "tokenizer.json": described,
        "tokenizer_config.json": _config(metadata, tokenizer, texts),
    }, tokenizer


def _processor(tokenizer: Tokenizer, texts: Sequence[str], last: Json | None) -> Json | None:
    """Return what puts special tokens around a text."""
    before = [tokenizer.bos] if tokenizer.add_bos else []
    after = [tokenizer.eos] if tokenizer.add_eos else []
    if last is not None and last["type"] == "bert":
        before, after = [tokenizer.cls or tokenizer.bos], [tokenizer.sep or tokenizer.eos]
        last = None
    ids = [index for index in (*before, *after) if index is not None]
    if not ids:
        return last

    def special(index: int | None, kind: int) -> list[Json]:
        if index is None:
            return []
        return [{"SpecialToken": {"id": texts[index], "type_id": kind}}]

    def around(name: str, kind: int) -> list[Json]:
        first = [step for index in before for step in special(index, kind)]
        end = [step for index in after for step in special(index, kind)]
        return [*first, {"Sequence": {"id": name, "type_id": kind}}, *end]

    template = {
        "type": "TemplateProcessing",
        "single": around("A", 0),
        "pair": [*around("A", 0), *around("B", 1)],
        "special_tokens": {
            texts[index]: {"id": texts[index], "ids": [index], "tokens": [texts[index]]}
            for index in ids
        },
    }
    return template if last is None else {"type": "Sequence", "processors": [last, template]}


def _config(metadata: Mapping[str, Any], tokenizer: Tokenizer, texts: Sequence[str]) -> Json:
    config: Json = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "add_bos_token": tokenizer.add_bos,
        "add_eos_token": tokenizer.add_eos,
    }
    for name in _SPECIALS:
        index = getattr(tokenizer, name)
        if index is not None and 0 <= index < len(texts):
            config[f"{name}_token"] = texts[index]
    context = metadata.get(f"{metadata['general.architecture']}.context_length")
    if context is not None:
        config["model_max_length"] = int(context)
    default = metadata.get("tokenizer.chat_template")
    named = [str(name) for name in metadata.get("tokenizer.chat_templates", [])]
    if named:
        templates = {name: metadata.get(f"tokenizer.chat_template.{name}") for name in named}
        templates = {"default": default, **templates}
        config["chat_template"] = [
            {"name": name, "template": text} for name, text in templates.items() if text is not None
        ]
    elif default is not None:
        config["chat_template"] = default
    return config


# ---- byte-level BPE ----


def _merges(metadata: Mapping[str, Any]) -> list[list[str]]:
    pairs = []
    for line in metadata.get("tokenizer.ggml.merges", []):
        left, _, right = str(line).partition(" ") if line[:1] != " " else _leading(str(line))
        pairs.append([left, right])
    return pairs


def _leading(line: str) -> tuple[str, str, str]:
    at = line.index(" ", 1)
    return line[:at], " ", line[at + 1 :]


def _bpe(vocab: Mapping[str, int], merges: list[list[str]], **more: Any) -> Json:
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": False,
        "vocab": dict(vocab),
        "merges": merges,
        **more,
    }


def _byte_level(metadata: Mapping[str, Any], texts: list[str], kinds: list[int]) -> Json:
    name = str(metadata.get("tokenizer.ggml.pre", "default"))
    row = PRE_TOKENIZERS.get(name, PRE_TOKENIZERS["default"])
    if not row.byte_encode or not all(isinstance(split, str) for split in row.splitters):
        raise UnsupportedError(
            f"tokenizer.ggml.pre is {name!r}, which splits text in a way that no expression says"
        )
    bytes_ = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False}
    steps = [
        {
            "type": "Split",
            "pattern": {"Regex": _literal(str(expression))},
            "behavior": "Isolated",
            "invert": False,
        }
        for expression in row.splitters
    ]
    return {
        "normalizer": {"type": "NFC"} if row.nfc else None,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [*steps, {**bytes_, "use_regex": False}],
        },
        "post_processor": {**bytes_, "use_regex": True},
        "decoder": {**bytes_, "use_regex": True},
        "model": _bpe(
            {text: index for index, text in enumerate(texts) if kinds[index] != TokenType.UNUSED},
            _merges(metadata),
            ignore_merges=row.ignore_merges,
        ),
    }


def _literal(expression: str) -> str:
    r"""Return an expression with characters in place of ``\uXXXX``, which Oniguruma reads too."""
    return re.sub(
        r"\\u([0-9a-fA-F]{4})|\\U([0-9a-fA-F]{8})",
        lambda match: chr(int(match[1] or match[2], 16)),
        expression,
    )


# ---- SentencePiece ----


def _sentencepiece(metadata: Mapping[str, Any], texts: list[str], kinds: list[int]) -> Json:
    """Return BPE on characters. Each way to make a token of two others is a merge, best first."""
    scores = metadata.get("tokenizer.ggml.scores")
    scores = np.zeros(len(texts)) if scores is None else np.asarray(scores)
    vocab: dict[str, int] = {}
    for index, text in enumerate(texts):
        if kinds[index] != TokenType.UNUSED:
            vocab.setdefault(text, index)
    usable = {text: i for text, i in vocab.items() if kinds[i] == TokenType.NORMAL}
    merges: list[tuple[float, int, int, str, str]] = []
    for text, index in usable.items():
        for at in range(1, len(text)):
            left, right = text[:at], text[at:]
            if left in usable and right in usable:
                pair = (usable[left], usable[right], left, right)
                merges.append((-float(scores[index]), *pair))
    merges.sort(key=lambda entry: entry[:3])
    prefix = bool(metadata.get("tokenizer.ggml.add_space_prefix", True))
    unknown = next((texts[i] for i, kind in enumerate(kinds) if kind == TokenType.UNKNOWN), None)
    spaces = {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE}
    prepend = [{"type": "Prepend", "prepend": _SPACE}] if prefix else []
    strip = [{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if prefix else []
    return {
        "normalizer": {"type": "Sequence", "normalizers": [*prepend, spaces]},
        "pre_tokenizer": None,
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": _SPACE}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
                *strip,
            ],
        },
        "model": _bpe(
            vocab,
            [[left, right] for *_, left, right in merges],
            unk_token=unknown,
            fuse_unk=True,
            byte_fallback=any(kind == TokenType.BYTE for kind in kinds),
        ),
    }


# ---- Unigram and WordPiece ----


def _unigram(metadata: Mapping[str, Any], texts: list[str], kinds: list[int]) -> Json:
    scores = np.asarray(metadata["tokenizer.ggml.scores"], np.float64)
    steps: list[Json] = []
    charsmap = metadata.get("tokenizer.ggml.precompiled_charsmap")
    if charsmap is not None and len(charsmap):
        data = np.asarray(charsmap).astype(np.uint8).tobytes()
        steps.append(
            {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(data).decode()}
        )
    if metadata.get("tokenizer.ggml.remove_extra_whitespaces"):
        # Only spaces: a line break at an end stays.
        for pattern, content in ((r"\A +| +\z", ""), (" {2,}", " ")):
            steps.append({"type": "Replace", "pattern": {"Regex": pattern}, "content": content})
    scheme = "always" if metadata.get("tokenizer.ggml.add_space_prefix", True) else "never"
    space = {"type": "Metaspace", "replacement": _SPACE, "prepend_scheme": scheme, "split": False}
    unknown = next((i for i, kind in enumerate(kinds) if kind == TokenType.UNKNOWN), None)
    return {
        "normalizer": {"type": "Sequence", "normalizers": steps} if steps else None,
        "pre_tokenizer": space,
        "decoder": space,
        "model": {
            "type": "Unigram",
            "unk_id": unknown,
            "vocab": [[text, float(scores[index])] for index, text in enumerate(texts)],
            "byte_fallback": False,
        },
    }


def _word_pieces(metadata: Mapping[str, Any], texts: list[str], kinds: list[int]) -> Json:
    lower = bool(metadata.get("tokenizer.ggml.normalizer.lowercase", True))
    strip = bool(metadata.get("tokenizer.ggml.normalizer.strip_accents", lower))
    vocab: dict[str, int] = {}
    for index, text in enumerate(texts):
        if kinds[index] != TokenType.NORMAL:
            spelled = text
        else:
            spelled = text[1:] if text.startswith(_SPACE) else f"##{text}"
        vocab.setdefault(spelled, index)
    unknown = metadata.get("tokenizer.ggml.unknown_token_id")
    return {
        "normalizer": {
            "type": "BertNormalizer",
            "clean_text": True,
            "handle_chinese_chars": True,
            "strip_accents": strip,
            "lowercase": lower,
        },
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": {"type": "bert"},
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True},
        "model": {
            "type": "WordPiece",
            "unk_token": "[UNK]" if unknown is None else texts[int(unknown)],
            "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100,
            "vocab": vocab,
        },
    }
