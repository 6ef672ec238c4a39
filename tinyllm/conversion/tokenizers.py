"""Vocabularies of Hugging Face checkpoints as GGUF keys.

Read are ``tokenizer.json`` (byte-level BPE, BPE of SentencePiece, WordPiece, Unigram),
``tokenizer.model`` (SentencePiece) and ``vocab.txt`` (WordPiece). The special tokens, flags and
chat templates are in files beside them.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import FormatError, UnsupportedError, wrong
from ..files.arrays import parse_json
from ..tokenizer.vocab import TokenType
from .config import CheckpointConfig
from .recognize import byte_level, parts, recognize
from .sentencepiece import BPE, read_sentencepiece

__all__ = ["has_vocabulary", "read_vocabulary"]

_JSON = "tokenizer.json"
_MODELS = ("tokenizer.model", "spiece.model", "sentencepiece.bpe.model")
_TEXT = "vocab.txt"
_SPACE = "▁"

#: Names of special tokens in configs, and GGUF's keys of their ids.
_SPECIALS = {
    "bos": "bos_token_id",
    "eos": "eos_token_id",
    "unk": "unknown_token_id",
    "sep": "seperator_token_id",  # GGUF's spelling
    "pad": "padding_token_id",
    "cls": "cls_token_id",
    "mask": "mask_token_id",
}

Keys = dict[str, Any]


def has_vocabulary(folder: Path) -> bool:
    """Whether a folder has files of a tokenizer."""
    return any((folder / name).is_file() for name in (_JSON, *_MODELS, _TEXT))


def read_vocabulary(folder: Path, config: CheckpointConfig, architecture: str) -> Keys:
    """Read the tokenizer of a checkpoint.

    Parameters
    ----------
    folder : pathlib.Path
    config : CheckpointConfig
    architecture : str
        ``general.architecture``.

    Returns
    -------
    dict of str to object
        ``tokenizer.ggml.model``, ``tokens`` and so on, and chat templates.

    Raises
    ------
    tinyllm.UnsupportedError
        If the folder has no tokenizer, or one that GGUF cannot express.
    tinyllm.FormatError
        If a file is damaged, or has more tokens than the model.
    """
    described = _object(folder / _JSON)
    options = _object(folder / "tokenizer_config.json")
    vocabulary = _Vocabulary(config.integer("vocab_size", default=0))
    model = next((folder / name for name in _MODELS if (folder / name).is_file()), None)
    if described and (model is None or byte_level(described)):
        keys = _from_json(described, vocabulary, architecture)
    elif model is not None:
        keys = _from_sentencepiece(model, vocabulary)
    elif (folder / _TEXT).is_file():
        keys = _from_word_list(folder / _TEXT, vocabulary, options)
    else:
        raise UnsupportedError(
            f"{folder} has none of {', '.join((_JSON, *_MODELS, _TEXT))}; vocab=False converts it "
            "without a vocabulary"
        )
    vocabulary.add(_added(folder, described, options), keys["tokenizer.ggml.model"])
    keys.update(vocabulary.keys(keys["tokenizer.ggml.model"]))
    keys.update(_flags(described, options, keys))
    keys.update(_special_ids(folder, vocabulary, options, config))
    keys.update(_templates(folder, options))
    return keys


def _object(path: Path) -> dict[str, Any]:
    """Return a JSON object, or an empty one if there is no such file."""
    if not path.is_file():
        return {}
    values = parse_json(path.read_bytes(), path.name)
    if not isinstance(values, dict):
        raise wrong(path.name, values, "an object", shown=f"{values!r:.80}", path=str(path))
    return values


class _Vocabulary:
    """The tokens, by id.

    Parameters
    ----------
    size : int
        Rows of the model's embedding. Ids without a token are filled up to it.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.texts: dict[int, str] = {}
        self.scores: dict[int, float] = {}
        self.types: dict[int, int] = {}
        self.unknown: int | None = None

    def set(self, index: Any, text: Any, kind: int, score: float = 0.0) -> None:
        """Set a token."""
        if isinstance(index, bool) or not isinstance(index, int) or not isinstance(text, str):
            raise wrong("a token", (text, index), "a text and an id", shown=f"{text!r}: {index!r}")
        if index < 0 or (self.size and index >= self.size):
            raise FormatError(
                f"the token {text!r} has the id {index}; expected an id below {self.size}, the "
                "vocab_size of config.json",
                field=text,
                value=index,
            )
        self.texts[index] = text
        self.types[index] = kind
        if kind == TokenType.UNKNOWN:
            self.unknown = index
        self.scores[index] = score

    def id_of(self, text: str) -> int | None:
        """Return the id of a text."""
        return next((index for index, other in self.texts.items() if other == text), None)

    def add(self, added: Iterable[tuple[int, str, bool]], model: str) -> None:
        """Set the added tokens: id, text, and whether it is special."""
        for index, text, special in added:
            was = self.types.get(index)
            if was in (TokenType.UNKNOWN, TokenType.BYTE):
                continue
            if special or _looks_special(text):
                kind = TokenType.CONTROL
            else:
                kind = TokenType.USER_DEFINED
            if model in ("llama", "gemma4") and kind == TokenType.USER_DEFINED:
                text = text.replace(_SPACE, " ")
            self.set(index, text, kind, -1000.0 if was is None else self.scores[index])

    def keys(self, model: str) -> Keys:
        """Return the keys of all tokens."""
        count = max(self.size, 1 + max(self.texts, default=-1))
        texts = [self.texts.get(i, f"[PAD{i}]") for i in range(count)]
        types = [int(self.types.get(i, TokenType.UNUSED)) for i in range(count)]
        keys: Keys = {
            "tokenizer.ggml.tokens": texts,
            "tokenizer.ggml.token_type": np.array(types, np.int32),
        }
        if model in ("llama", "t5", "gemma4"):
            scores = [self.scores.get(i, -10000.0) for i in range(count)]
            keys["tokenizer.ggml.scores"] = np.array(scores, np.float32)
        return keys


def _looks_special(text: str) -> bool:
    """Whether a token is a control token by its text. Some files do not say so."""
    return (
        text in ("<pad>", "<mask>", "<2mass>", "[@BOS@]")
        or (text.startswith("<|") and text.endswith("|>"))
        or (text.startswith("<｜") and text.endswith("｜>"))
        or (text.startswith("<unused") and text.endswith(">"))
    )


def _added(
    folder: Path, described: Mapping[str, Any], options: Mapping[str, Any]
) -> list[tuple[int, str, bool]]:
    """Return the added tokens of all files: id, text, and whether it is special."""
    found: dict[int, tuple[int, str, bool]] = {}
    for text, index in _object(folder / "added_tokens.json").items():
        found[index] = (index, text, False)
    decoder = options.get("added_tokens_decoder", {})
    entries = [{"id": key, **value} for key, value in decoder.items()] + list(
        described.get("added_tokens", [])
    )
    for entry in entries:
        try:
            index, text = int(entry["id"]), str(entry["content"])
        except (KeyError, TypeError, ValueError):
            raise wrong("added_tokens", entry, "an id and a content") from None
        found[index] = (index, text, bool(entry.get("special", False)))
    return list(found.values())


# ---- tokenizer.json ----


def _from_json(described: Mapping[str, Any], vocabulary: _Vocabulary, architecture: str) -> Keys:
    model = described.get("model", {})
    kind = model.get("type") or ("BPE" if "merges" in model else "WordPiece")
    if kind == "BPE" and byte_level(described):
        return _byte_level_bpe(described, vocabulary, architecture)
    if kind == "BPE":
        return _sentencepiece_bpe(described, vocabulary, architecture)
    if kind == "WordPiece":
        _word_pieces(model.get("vocab", {}).items(), vocabulary)
        return _word_piece_keys(described)
    if kind == "Unigram":
        return _unigram(described, vocabulary)
    raise UnsupportedError(
        f"the tokenizer is of the type {kind!r}; GGUF has BPE, WordPiece and Unigram"
    )


def _merges(model: Mapping[str, Any]) -> list[str]:
    merges = model.get("merges", [])
    pairs = [" ".join(pair) if isinstance(pair, list) else pair for pair in merges]
    if not all(isinstance(pair, str) for pair in pairs):
        raise wrong("merges", "a list with other things", "pairs of texts")
    return pairs


def _byte_level_bpe(
    described: Mapping[str, Any], vocabulary: _Vocabulary, architecture: str
) -> Keys:
    model = described["model"]
    for text, index in model.get("vocab", {}).items():
        vocabulary.set(index, text, TokenType.NORMAL)
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": recognize(described, architecture),
        "tokenizer.ggml.merges": _merges(model),
    }


def _sentencepiece_bpe(
    described: Mapping[str, Any], vocabulary: _Vocabulary, architecture: str
) -> Keys:
    """Return the keys of BPE on characters, with bytes for unknown ones.

    GGUF has no merges here but scores: neighbours whose union has the best score merge first. The
    order of merges becomes scores.
    """
    model = described["model"]
    merges = _merges(model)
    ranks: dict[str, int] = {}
    for rank, pair in enumerate(merges):
        ranks.setdefault(pair.replace(" ", "", 1) if pair[:1] != " " else pair[1:], rank)
    unknown = model.get("unk_token")
    for text, index in model.get("vocab", {}).items():
        if text == unknown:
            kind = TokenType.UNKNOWN
        elif len(text) == 6 and text.startswith("<0x") and text.endswith(">"):
            kind = TokenType.BYTE
        else:
            kind = TokenType.NORMAL
        made = ranks.get(text)
        vocabulary.set(index, text, kind, 0.0 if made is None else -float(made))
    keys: Keys = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.add_space_prefix": _prepends(described),
    }
    if architecture == "gemma4":
        keys["tokenizer.ggml.model"] = "gemma4"
        keys["tokenizer.ggml.merges"] = merges
        del keys["tokenizer.ggml.pre"]
    return keys


def _prepends(described: Mapping[str, Any]) -> bool:
    """Whether a space is put before the text."""
    for step in parts(described.get("normalizer")):
        if step.get("type") == "Prepend":
            return True
    for step in parts(described.get("pre_tokenizer")):
        if step.get("type") == "Metaspace":
            scheme = step.get("prepend_scheme")
            return scheme != "never" if scheme else bool(step.get("add_prefix_space", True))
    return False


def _unigram(described: Mapping[str, Any], vocabulary: _Vocabulary) -> Keys:
    model = described["model"]
    unknown = model.get("unk_id")
    for index, entry in enumerate(model.get("vocab", [])):
        try:
            text, score = entry
            number = float(score)
        except (TypeError, ValueError):
            raise wrong(f"vocab[{index}]", entry, "a text and a score") from None
        kind = TokenType.UNKNOWN if index == unknown else TokenType.NORMAL
        vocabulary.set(index, text, kind, number if math.isfinite(number) else 0.0)
    steps = list(parts(described.get("normalizer")))
    maps = [step.get("precompiled_charsmap") for step in steps if step.get("type") == "Precompiled"]
    blanks = any(
        step.get("type") == "Replace" and step.get("pattern", {}).get("Regex") == " {2,}"
        for step in steps
    )
    return _unigram_keys(
        base64.b64decode(maps[0] or "") if maps else b"", _prepends(described), blanks
    )


def _unigram_keys(charsmap: bytes, add_prefix: bool, remove_blanks: bool) -> Keys:
    keys: Keys = {
        "tokenizer.ggml.model": "t5",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.add_space_prefix": add_prefix,
        "tokenizer.ggml.remove_extra_whitespaces": remove_blanks,
    }
    if charsmap:
        keys["tokenizer.ggml.precompiled_charsmap"] = np.frombuffer(charsmap, np.uint8)
    return keys


# ---- WordPiece ----


def _word_pieces(items: Iterable[tuple[str, int]], vocabulary: _Vocabulary) -> None:
    """Set the tokens as GGUF spells them: U+2581 before a word, nothing before its other parts."""
    for text, index in items:
        inner = isinstance(text, str) and text.startswith("##") and len(text) > 2
        vocabulary.set(index, text[2:] if inner else f"{_SPACE}{text}", TokenType.NORMAL)


def _word_piece_keys(described: Mapping[str, Any]) -> Keys:
    keys: Keys = {"tokenizer.ggml.model": "bert", "tokenizer.ggml.pre": "default"}
    for step in parts(described.get("normalizer")):
        if step.get("type") == "BertNormalizer":
            lower = bool(step.get("lowercase", True))
            strip = step.get("strip_accents")
            keys["tokenizer.ggml.normalizer.lowercase"] = lower
            keys["tokenizer.ggml.normalizer.strip_accents"] = lower if strip is None else strip
    return keys


def _from_word_list(path: Path, vocabulary: _Vocabulary, options: Mapping[str, Any]) -> Keys:
    words = path.read_text("utf-8").split("\n")
    if words and not words[-1]:
        words.pop()
    _word_pieces(((word.rstrip("\r"), i) for i, word in enumerate(words)), vocabulary)
    special = [_content(options.get(f"{name}_token", f"[{name.upper()}]")) for name in _SPECIALS]
    texts = {word: i for i, word in enumerate(words)}
    for text in special:
        if text in texts:
            vocabulary.set(texts[text], text, TokenType.CONTROL)
    lower = bool(options.get("do_lower_case", True))
    strip = options.get("strip_accents")
    return {
        "tokenizer.ggml.model": "bert",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.normalizer.lowercase": lower,
        "tokenizer.ggml.normalizer.strip_accents": lower if strip is None else bool(strip),
    }


# ---- SentencePiece ----


def _from_sentencepiece(path: Path, vocabulary: _Vocabulary) -> Keys:
    model = read_sentencepiece(path)
    for index, piece in enumerate(model.pieces):
        kind = piece.type if piece.type in set(TokenType) else TokenType.NORMAL
        vocabulary.set(index, piece.text, int(kind), piece.score)
    if model.model_type != BPE:
        return _unigram_keys(model.charsmap, model.add_prefix, model.remove_blanks)
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.add_space_prefix": model.add_prefix,
    }


# ---- special tokens, flags, templates ----


def _content(token: Any) -> str:
    """Return the text of a token of a config, which is a text or an object with it."""
    value = token.get("content") if isinstance(token, Mapping) else token
    return value if isinstance(value, str) else ""


def _special_ids(
    folder: Path,
    vocabulary: _Vocabulary,
    options: Mapping[str, Any],
    config: CheckpointConfig,
) -> Keys:
    beside = _object(folder / "special_tokens_map.json")
    keys: Keys = {}
    for name, key in _SPECIALS.items():
        text = _content(options.get(f"{name}_token", beside.get(f"{name}_token")))
        if not text and f"[{name.upper()}]" in vocabulary.texts.values():
            text = f"[{name.upper()}]"  # the names of BERT
        index: Any = vocabulary.id_of(text) if text else None
        if index is None and text:
            index = vocabulary.id_of(f"{_SPACE}{text}")
        if index is None and name == "unk":
            index = vocabulary.unknown
        if index is None:
            index = config.get(f"{name}_token_id")
            index = index[0] if isinstance(index, list) and index else index
        if isinstance(index, int) and not isinstance(index, bool) and index in vocabulary.texts:
            keys[f"tokenizer.ggml.{key}"] = index
    return keys


def _flags(described: Mapping[str, Any], options: Mapping[str, Any], keys: Keys) -> Keys:
    """Return whether tokens are put before and after a text."""
    first, last = _around(described.get("post_processor"))
    found: Keys = {}
    for name, told in (("bos", first), ("eos", last)):
        flag = options.get(f"add_{name}_token", told)
        if isinstance(flag, bool):
            found[f"tokenizer.ggml.add_{name}_token"] = flag
    if keys["tokenizer.ggml.model"] == "bert":  # its reader adds the separator
        found = {"tokenizer.ggml.add_bos_token": True, "tokenizer.ggml.add_sep_token": True}
    return found


def _around(processor: Any) -> tuple[bool | None, bool | None]:
    """Return whether a post-processor puts a token before a text and after it, if it says so."""
    steps = [processor] if isinstance(processor, Mapping) else []
    if steps and isinstance(steps[0].get("processors"), list):
        steps = [step for step in steps[0]["processors"] if isinstance(step, Mapping)]
    for step in steps:
        if step.get("type") in ("BertProcessing", "RobertaProcessing"):
            return True, True
        single = step.get("single")
        if step.get("type") == "TemplateProcessing" and isinstance(single, list) and single:
            return "SpecialToken" in single[0], "SpecialToken" in single[-1]
    return (False, False) if steps else (None, None)


def _templates(folder: Path, options: Mapping[str, Any]) -> Keys:
    named: dict[str, str] = {}
    told = options.get("chat_template", _object(folder / "chat_template.json").get("chat_template"))
    if isinstance(told, str):
        named["default"] = told
    elif isinstance(told, list):
        for entry in told:
            if isinstance(entry, Mapping) and isinstance(entry.get("template"), str):
                named[str(entry.get("name", "default"))] = entry["template"]
    alone = folder / "chat_template.jinja"
    if alone.is_file():
        named["default"] = alone.read_text("utf-8")
    for path in sorted((folder / "additional_chat_templates").glob("*.jinja")):
        named[path.stem] = path.read_text("utf-8")
    keys: Keys = {}
    if "default" in named:
        keys["tokenizer.chat_template"] = named.pop("default")
    if named:
        keys["tokenizer.chat_templates"] = list(named)
        keys.update((f"tokenizer.chat_template.{name}", text) for name, text in named.items())
    return keys
