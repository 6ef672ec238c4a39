"""The vocabulary of a GGUF file: texts, types, scores and special ids, checked.

The keys are those of https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. The rules that
recognize special tokens by their text are those of llama.cpp's `src/llama-vocab.cpp`.
"""

from __future__ import annotations

import functools
import math
import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from enum import IntEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import FormatError, wrong

__all__ = ["TokenType", "Vocab", "lowered", "to_bytes", "to_text"]


class TokenType(IntEnum):
    """The type of a token, with the values of `tokenizer.ggml.token_type`."""

    UNDEFINED = 0
    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


_PREFIX = "tokenizer.ggml."

# attribute -> keys in the file, the first present counts ("seperator" is the spec's spelling)
_ID_KEYS = {
    "bos": ("bos_token_id",),
    "eos": ("eos_token_id",),
    "eot": ("eot_token_id",),
    "eom": ("eom_token_id",),
    "unk": ("unknown_token_id",),
    "sep": ("seperator_token_id", "separator_token_id"),
    "pad": ("padding_token_id",),
    "cls": ("cls_token_id",),
    "mask": ("mask_token_id",),
    "fim_pre": ("fim_pre_token_id", "prefix_token_id"),
    "fim_suf": ("fim_suf_token_id", "suffix_token_id"),
    "fim_mid": ("fim_mid_token_id", "middle_token_id"),
    "fim_pad": ("fim_pad_token_id",),
    "fim_rep": ("fim_rep_token_id",),
    "fim_sep": ("fim_sep_token_id",),
}

# Tokens with these texts end a generation. The order decides which one is `eot`.
_END_TEXTS = (
    "<|eot_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>", "<turn|>", "<|return|>", "<|call|>",
    "<|flush|>", "<|calls|>", "<|eom_id|>", "<EOT>", "_<EOT>", "[EOT]", "<|tool_response>",
    "<end_of_utterance>", "<|endoftext|>", "<|end_of_text|>", "<｜end▁of▁sentence｜>", "[EOS]",
    "<eos>", "</s>",
)  # fmt: skip
_NOT_EOT = ("<|eom_id|>", "[EOS]", "<eos>", "</s>", "<|end_of_text|>", "<|calls|>", "<|flush|>")
# Ordinary tokens may have these texts, so they end a generation only if they are control tokens.
_ONLY_IF_CONTROL = ("</s>", "<eos>", "[EOS]", "[EOT]")
_HARMONY_TEXTS = ("<|channel|>", "<|message|>", "<|start|>", "<|constrain|>")
_FIM_TEXTS = {
    "fim_pre": ("<|fim_prefix|>", "<fim-prefix>", "<｜fim▁begin｜>", "<PRE>"),
    "fim_suf": ("<|fim_suffix|>", "<fim-suffix>", "<｜fim▁hole｜>", "<SUF>"),
    "fim_mid": ("<|fim_middle|>", "<fim-middle>", "<｜fim▁end｜>", "<MID>"),
    "fim_pad": ("<|fim_pad|>", "<fim-pad>", "<PAD>"),
    "fim_rep": ("<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>"),
    "fim_sep": ("<|file_sep|>",),
}
_BYTE_NAMES = [f"<0x{value:02X}>" for value in range(256)]
# a single byte above 0x7F is not UTF-8: it is read as a lone surrogate
_RAW_BYTES = [chr(value if value < 0x80 else 0xDC00 + value) for value in range(256)]
_INDEXED_TEXTS = frozenset((*_END_TEXTS, *_HARMONY_TEXTS, *_BYTE_NAMES, *_RAW_BYTES)).union(
    *_FIM_TEXTS.values()
)
_BYTE_TEXT = re.compile("<0x([0-9A-Fa-f]{2})>")


def to_bytes(text: str) -> bytes:
    r"""Return the UTF-8 bytes of a text; U+DC80 to U+DCFF become the bytes that they stand for.

    Other lone surrogates, which UTF-8 cannot encode, become U+FFFD.

    Parameters
    ----------
    text : str

    Returns
    -------
    bytes

    Examples
    --------
    >>> to_bytes("é"), to_bytes("\udcff"), to_bytes("\ud800")
    (b'\xc3\xa9', b'\xff', b'\xef\xbf\xbd')
    """
    try:
        return text.encode()
    except UnicodeEncodeError:
        return re.sub("[\ud800-\udc7f\udd00-\udfff]", "\ufffd", text).encode(
            errors="surrogateescape"
        )


def to_text(data: bytes) -> str:
    r"""Return the text of UTF-8 bytes; each byte that is not UTF-8 becomes one U+FFFD.

    Parameters
    ----------
    data : bytes

    Returns
    -------
    str

    Examples
    --------
    >>> to_text(b"a\xe4\xbd")
    'a\ufffd\ufffd'
    """
    try:
        return data.decode()
    except UnicodeDecodeError:
        return re.sub("[\udc80-\udcff]", "\ufffd", data.decode(errors="surrogateescape"))


def lowered(text: str) -> str:
    """Return a text in lower case, each character on its own.

    `str.lower` of a whole text treats a final sigma differently.

    Parameters
    ----------
    text : str

    Returns
    -------
    str

    Examples
    --------
    >>> lowered("ΟΔΟΣ")
    'οδοσ'
    """
    return text.lower() if text.isascii() else "".join(char.lower() for char in text)


def _wrong(key: str, value: object, expected: str) -> FormatError:
    return wrong(key, value, expected, shown=repr(value))


class Vocab:
    """The checked vocabulary of a file.

    Parameters
    ----------
    metadata : Mapping
        The file's metadata: key -> Python value, NumPy array or list.
    defaults : Mapping, optional
        Values of this kind of tokenizer for keys that the file does not have: special ids by name
        (``"bos"``), flags (``"add_bos"``, ``"add_space_prefix"`` ...).

    Raises
    ------
    FormatError
        If an array has the wrong type or length.

    Examples
    --------
    >>> vocab = Vocab({"tokenizer.ggml.tokens": ["<unk>", "a"], "tokenizer.ggml.model": "llama"})
    >>> len(vocab), vocab.texts[1], vocab.bos
    (2, 'a', None)
    """

    def __init__(
        self, metadata: Mapping[str, Any], defaults: Mapping[str, Any] | None = None
    ) -> None:
        self._metadata = metadata
        self._defaults = dict(defaults or {})
        self.name = self._string("general.name", "")
        self.model = self._string(_PREFIX + "model", "")
        self.pre = self._string(_PREFIX + "pre", None)
        self.texts: list[str] = self.strings("tokens", required=True)
        if not self.texts:
            raise _wrong(_PREFIX + "tokens", [], "at least one token")
        self.types = self._types()
        self.scores = self._scores()
        # one pass finds all texts that are looked up: vocabularies are large
        self._ids_of_indexed: dict[str, list[int]] = {}
        for i in [i for i, text in enumerate(self.texts) if text in _INDEXED_TEXTS]:
            self._ids_of_indexed.setdefault(self.texts[i], []).append(i)
        self._find_specials()
        for flag in ("add_bos", "add_eos", "add_sep"):
            setattr(self, flag, self.flag(f"{flag}_token", self._defaults.get(flag, False)))
        self.add_space_prefix = self.flag(
            "add_space_prefix", self._defaults.get("add_space_prefix", False)
        )

    add_bos: bool
    add_eos: bool
    add_sep: bool
    bos: int | None
    eos: int | None
    eot: int | None
    eom: int | None
    unk: int | None
    sep: int | None
    pad: int | None
    cls: int | None
    mask: int | None
    fim_pre: int | None
    fim_suf: int | None
    fim_mid: int | None
    fim_pad: int | None
    fim_rep: int | None
    fim_sep: int | None

    def __len__(self) -> int:
        return len(self.texts)

    # ---- reading keys ----

    def _string(self, key: str, default: Any) -> Any:
        value = self._metadata.get(key, default)
        if value is not default and not isinstance(value, str):
            raise _wrong(key, value, "a string")
        return value

    def flag(self, name: str, default: bool) -> bool:
        """Return the bool at ``tokenizer.ggml.<name>``."""
        value = self._metadata.get(_PREFIX + name, default)
        if not isinstance(value, bool) and str(getattr(value, "dtype", "")) != "bool":
            raise _wrong(_PREFIX + name, value, "a bool")
        return bool(value)

    def strings(self, name: str, required: bool = False) -> list[str]:
        """Return the array of strings at ``tokenizer.ggml.<name>``."""
        key = _PREFIX + name
        value = self._metadata.get(key)
        if value is None and not required:
            return []
        if not isinstance(value, Sequence) or isinstance(value, str | bytes):
            raise _wrong(key, value, "an array of strings")
        value = value if isinstance(value, list) else list(value)
        if not set(map(type, value)) <= {str}:
            at = next(i for i, text in enumerate(value) if not isinstance(text, str))
            raise _wrong(f"{key}[{at}]", value[at], "a string")
        return value

    def numbers(self, name: str, convert: type[int] | type[float]) -> list[Any] | None:
        """Return the numbers at ``tokenizer.ggml.<name>``, one per token; None if missing."""
        key = _PREFIX + name
        value = self._metadata.get(key)
        if value is None:
            return None
        if hasattr(value, "tolist"):
            value = value.tolist()
        if not isinstance(value, list | tuple):
            raise _wrong(key, value, "an array of numbers")
        if len(value) != len(self.texts):
            raise FormatError(
                f"{key} has {len(value)} entries; expected {len(self.texts)}, as many as "
                f"{_PREFIX}tokens",
                field=key,
                value=len(value),
                expected=f"{len(self.texts)} entries",
            )
        kinds = set(map(type, value))
        if not kinds <= {int, convert}:
            at = next(i for i, x in enumerate(value) if type(x) not in (int, convert))
            raise _wrong(f"{key}[{at}]", value[at], "a number" if convert is float else "an int")
        return list(value) if kinds == {convert} else [convert(x) for x in value]

    def _types(self) -> list[int]:
        types = self.numbers("token_type", int)
        if types is None:
            return [int(TokenType.NORMAL)] * len(self.texts)
        if not set(types) <= set(TokenType):
            at = next(i for i, t in enumerate(types) if t not in set(TokenType))
            raise _wrong(f"{_PREFIX}token_type[{at}]", types[at], f"0 to {max(TokenType):d}")
        return types

    def _scores(self) -> list[float] | None:
        scores = self.numbers("scores", float)
        if scores is not None and any(map(math.isnan, scores)):
            at = next(i for i, x in enumerate(scores) if math.isnan(x))
            raise _wrong(f"{_PREFIX}scores[{at}]", scores[at], "a number")
        return scores

    # ---- special tokens ----

    def _find_specials(self) -> None:
        by_text = dict(self._ids_of_indexed)
        for text in _ONLY_IF_CONTROL:
            kept = [i for i in by_text.pop(text, ()) if self.types[i] == TokenType.CONTROL]
            if kept:
                by_text[text] = kept
        for text in _END_TEXTS:
            for i in by_text.get(text, ()):
                self.types[i] = TokenType.CONTROL
        for text in _HARMONY_TEXTS:
            for i in by_text.get(text, ()):
                self.types[i] = TokenType.USER_DEFINED

        for name, keys in _ID_KEYS.items():
            setattr(self, name, self._special_id(name, keys))
        for name, texts in _FIM_TEXTS.items():
            found = [i for text in texts for i in by_text.get(text, ())]
            if getattr(self, name) is None and found:
                setattr(self, name, found[0])
        ends = [i for text in _END_TEXTS for i in by_text.get(text, ()) if text not in _NOT_EOT]
        if self.eot is None and ends:
            self.eot = ends[0]
        if self.eom is None and "<|eom_id|>" in by_text:
            self.eom = by_text["<|eom_id|>"][0]
        eog = {i for text in _END_TEXTS for i in by_text.get(text, ())}
        if (
            "<|return|>" in by_text and "<|call|>" in by_text
        ):  # in such files <|end|> only ends a message
            eog -= set(by_text.get("<|end|>", ()))
        eog |= {self.eos, self.eot, self.eom, self.fim_pad, self.fim_rep, self.fim_sep}  # type: ignore[arg-type]
        if "<|return|>" in by_text and "<|call|>" in by_text:
            eog -= set(by_text.get("<|end|>", ()))
            if self.eot in by_text.get("<|end|>", ()):
                self.eot = by_text["<|return|>"][0]
        self.eog_ids = frozenset(i for i in eog if i is not None)

    def _special_id(self, name: str, keys: Sequence[str]) -> int | None:
        for key in keys:
            value = self._metadata.get(_PREFIX + key)
            if value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int | np.integer):
                raise _wrong(_PREFIX + key, value, "a token id")
            index = int(value)
            if 0 <= index < len(self.texts):
                return index
            # some writers write -1 for "none"
            if index not in (-1, 0xFFFFFFFF):
                warnings.warn(
                    f"{_PREFIX}{key} is {index}; the vocabulary has {len(self.texts)} tokens; "
                    "it is ignored",
                    stacklevel=2,
                )
            return None
        default = self._defaults.get(name)
        return default if default is not None and default < len(self.texts) else None

    @functools.cached_property
    def special_ids(self) -> list[int]:
        """Ids that are found in a text before it is split: longest first, then lowest id."""
        cut = (TokenType.UNKNOWN, TokenType.CONTROL, TokenType.USER_DEFINED)
        found: dict[str, int] = {}
        for i, kind in enumerate(self.types):
            if kind in cut and self.texts[i]:
                found.setdefault(self.texts[i], i)
        return sorted(found.values(), key=lambda i: (-len(to_bytes(self.texts[i])), i))

    @functools.cached_property
    def strip_right(self) -> frozenset[int]:
        """Special ids that remove the whitespace after them."""
        name = self.name.lower()
        if "phi-3" not in name and "phi3" not in name:
            return frozenset()
        kept = ("<unk>", "<s>", "<|endoftext|>")
        return frozenset(i for i in self.special_ids if self.texts[i] not in kept)

    @functools.cached_property
    def strip_left(self) -> frozenset[int]:
        """Special ids that remove the whitespace before them."""
        architecture = self._metadata.get("general.architecture")
        if "modern-bert" in self.name.lower():
            text = "[MASK]"
        elif self.pre in ("jina-v2-de", "jina-v2-es", "jina-v2-code") or architecture in (
            "nomic-bert-moe",
            "jina-bert-v3",
        ):
            text = "<mask>"
        else:
            return frozenset()
        return frozenset(i for i in self.special_ids if self.texts[i] == text)

    # ---- lookups ----

    @functools.cached_property
    def id_of_text(self) -> dict[str, int]:
        """Token text -> lowest id; a byte token counts only if no other token has the text."""
        texts = self.texts
        found = dict(zip(reversed(texts), range(len(texts) - 1, -1, -1), strict=True))
        if len(found) != len(texts):
            for i in range(len(texts) - 1, -1, -1):
                if self.types[i] != TokenType.BYTE:
                    found[texts[i]] = i
        found.pop("", None)
        return found

    @property
    def is_byte(self) -> NDArray[np.uint8]:
        """Whether each token is a byte token, (n,)."""
        return np.array(np.array(self.types, np.uint8) == TokenType.BYTE, np.uint8)

    @functools.cached_property
    def id_of_bytes(self) -> dict[bytes, int]:
        """`id_of_text` with the texts as UTF-8."""
        return {to_bytes(text): i for text, i in self.id_of_text.items()}

    @functools.cached_property
    def byte_ids(self) -> list[int | None]:
        """The id for each of the 256 bytes: of ``<0xNN>``, else of the byte as a text."""
        named, raw = self.ids_of(_BYTE_NAMES), self.ids_of(_RAW_BYTES)
        return [b if a is None else a for a, b in zip(named, raw, strict=True)]

    def ids_of(self, texts: Iterable[str]) -> list[int | None]:
        """Return the ids of some of the `_INDEXED_TEXTS`; None for a text that no token has."""
        found: list[int | None] = []
        for text in texts:
            ids = self._ids_of_indexed.get(text, [])
            others = [i for i in ids if self.types[i] != TokenType.BYTE]
            found.append(next(iter(others or ids), None))
        return found

    def byte_value(self, token: int) -> int | None:
        """Return the byte of a byte token, or None if its text names no byte."""
        match = _BYTE_TEXT.fullmatch(self.texts[token])
        if match:
            return int(match.group(1), 16)
        raw = to_bytes(self.texts[token])
        return raw[0] if len(raw) == 1 else None
