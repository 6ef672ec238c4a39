"""Which pre-tokenizer of GGUF splits text as a ``tokenizer.json`` says.

The expressions of the file are run on texts that tell the known pre-tokenizers apart. So a file
is recognized by what it does, not by the model's name.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from ..errors import UnsupportedError
from ..tokenizer.bpe import BYTE_ALPHABET
from ..tokenizer.merging import merge
from ..tokenizer.pretokenizers import PRE_TOKENIZERS, split_pieces

__all__ = ["byte_level", "parts", "recognize"]

#: Texts on which pre-tokenizers differ: numbers, blanks, contractions, case, marks, scripts.
_PROBES = (
    "Hello, world! It's 3.14 o'clock; I'VE 12 345 6789 1234567 12345678 items.",
    "don't we'll they'd I'm you're he's she'S It'LL \u2019s 'tis '123 'x",
    "a  b   c\t\td\n\ne \n f\r\n\r\ng   \n   h\n\n\n  ",
    "camelCase HTMLParser iPhone XMLHttpRequest lower_snake UPPER_SNAKE x1y2 éÉ приветМир ПРИВЕТ",
    "(a+b)*c/d=e<f>g|h~i^j`k$l#m@n!o?p:q;r\"s't\\u[v]{w} ... --- ==> //path/to/file\n/*x*/",
    "中文字符和日本語のテキスト、カタカナ。한국어 문장입니다. ภาษาไทย हिन्दी नमस्ते العربية ١٢٣٤٥",
    "e\u0301 n\u0303 \u00e9 ﬁ ½ ² Ⅳ ① \u200d👨\u200d👩\u200d👧 🦙🚀 \u00a0\u3000x \u2028y",
    " leading  trailing  ",
    "1 12 123 1234 12345 123456 1234567890 1,234,567.89 0x1F 2nd 3rd 10%",
    "https://example.com/a?b=1&c=2 user@example.org #tag 12:34:56 2024-01-02",
    "!?!?  ,,,  ''''  \"\"\"  ----  ____  ….。！？",
    "\n", " \n ", "  x", "x  ", "\r\n", "'", "''s", "1a1", "a1a", "Ünïcödé ſ's 'ſ",
    "if (x == 0) {\n\treturn x;\n    }\n\n\n// end\r\n        deep",
    "<|end|> <s> [INST] IMGIMGABZ <sentinel:12>",
    "a'tis'llama'veto x  1  2   34 \t5\n 6", "x  'y  (z  =w", "\n\n1\n\na\n\n!",
)  # fmt: skip

_GPT2 = PRE_TOKENIZERS["gpt-2"].splitters

#: Of rows that split alike, the one that is meant. Architectures come before the general order.
_ORDER = ("llama-bpe", "gpt-2", "qwen2", "deepseek-v3", "gpt-4o", "smollm", "starcoder", "dbrx")
_OF_ARCHITECTURE = {
    "command-r": "command-r",
    "cohere2": "command-r",
    "chatglm": "chatglm-bpe",
    "glm4": "glm4",
    "glm4moe": "glm4",
    "olmo": "olmo",
    "olmo2": "dbrx",
    "olmoe": "olmo",
    "phi2": "phi-2",
    "stablelm": "stablelm2",
    "mpt": "mpt",
    "starcoder": "starcoder",
    "starcoder2": "starcoder",
    "granite": "refact",
    "granitemoe": "refact",
    "granitehybrid": "refact",
    "falcon-h1": "falcon-h1",
    "lfm2": "lfm2",
    "lfm2moe": "lfm2",
    "llama4": "llama4",
    "minimax-m2": "minimax-m2",
    "hunyuan-dense": "hunyuan-dense",
    "hunyuan-moe": "hunyuan",
    "exaone4": "exaone4",
    "mellum": "mellum2",
    "modern-bert": "modern-bert",
}


def parts(description: Any) -> Iterator[Mapping[str, Any]]:
    """Yield the steps of a part of a ``tokenizer.json``, which may be a sequence of steps."""
    if isinstance(description, Mapping):
        inner = next(
            (
                v
                for k, v in description.items()
                if k in ("pretokenizers", "normalizers", "decoders")
            ),
            None,
        )
        if isinstance(inner, list):
            for step in inner:
                yield from parts(step)
        else:
            yield description


def byte_level(tokenizer: Mapping[str, Any]) -> bool:
    """Whether the tokens of a ``tokenizer.json`` are spelled in GPT-2's alphabet of bytes."""
    steps = [*parts(tokenizer.get("pre_tokenizer")), *parts(tokenizer.get("decoder"))]
    return any(step.get("type") == "ByteLevel" for step in steps)


def recognize(tokenizer: Mapping[str, Any], architecture: str) -> str:
    """Return ``tokenizer.ggml.pre`` of a byte-level ``tokenizer.json``.

    Parameters
    ----------
    tokenizer : mapping
        The contents of the file.
    architecture : str
        ``general.architecture``: it chooses among names that mean the same.

    Returns
    -------
    str

    Raises
    ------
    tinyllm.UnsupportedError
        If no known pre-tokenizer splits text like the file.
    """
    steps = list(parts(tokenizer.get("pre_tokenizer")))
    try:
        wanted = [_split(text, steps) for text in _PROBES]
    except re.error as error:
        raise UnsupportedError(
            f"the pre-tokenizer of tokenizer.json has an expression that cannot be read: {error}"
        ) from None
    model = tokenizer.get("model", {})
    merges = bool(model.get("ignore_merges", False))
    nfc = any(step.get("type") == "NFC" for step in parts(tokenizer.get("normalizer")))
    alike = _alike(wanted) or _merged_alike(wanted, model.get("merges", []))
    exact = [n for n in alike if _flags(n) == (merges, nfc)]
    close = [n for n in alike if _flags(n)[0] == merges]
    for names in (exact, close):
        first = [_OF_ARCHITECTURE.get(architecture, ""), *_ORDER]
        usable = [name for name in names if not PRE_TOKENIZERS[name].no_bos or name in first[:1]]
        if usable:
            return next((name for name in first if name in usable), usable[0])
    raise UnsupportedError(
        "the pre-tokenizer of tokenizer.json splits text like none of those that GGUF has names "
        f"for: {_shown(steps)}"
    )


def _rows() -> dict[tuple[Any, ...], list[str]]:
    """Return the names of the rows by their splitters: many split alike."""
    rows: dict[tuple[Any, ...], list[str]] = {}
    for name, row in PRE_TOKENIZERS.items():
        if row.byte_encode:
            rows.setdefault(row.splitters, []).append(name)
    return rows


def _spell(text: str) -> str:
    return "".join(BYTE_ALPHABET[value] for value in text.encode())


def _alike(wanted: list[list[str]]) -> list[str]:
    """Return the rows that split all texts into these pieces."""
    found: list[str] = []
    for splitters, names in _rows().items():
        if all(
            [_spell(piece) for piece in split_pieces(text, splitters)] == pieces
            for text, pieces in zip(_PROBES, wanted, strict=True)
        ):
            found += names
    return found


def _merged_alike(wanted: list[list[str]], merges: list[Any]) -> list[str]:
    """Return the rows that give the same tokens: pieces may differ where nothing merges anyway."""
    pairs = (pair.split(" ", 1) if isinstance(pair, str) else pair for pair in merges)
    ranks = {tuple(pair): rank for rank, pair in reversed(list(enumerate(pairs)))}

    def tokens(pieces: list[str]) -> list[str]:
        return [s for piece in pieces for s in merge(list(piece), lambda a, b: ranks.get((a, b)))]

    expected = [tokens(pieces) for pieces in wanted]
    found: list[str] = []
    for splitters, names in _rows().items():
        if all(
            tokens([_spell(piece) for piece in split_pieces(text, splitters)]) == want
            for text, want in zip(_PROBES, expected, strict=True)
        ):
            found += names
    return found


def _flags(name: str) -> tuple[bool, bool]:
    row = PRE_TOKENIZERS[name]
    return row.ignore_merges, row.nfc


def _shown(steps: list[Mapping[str, Any]]) -> str:
    words = [str(step.get("pattern", {}).get("Regex", step.get("type"))) for step in steps]
    return f"{', '.join(words):.300}"


def _split(text: str, steps: list[Mapping[str, Any]]) -> list[str]:
    """Return the pieces of a text, in the alphabet of bytes, as the steps of a file make them."""
    pieces, spelled = [text], False
    for step in steps:
        splitters = _splitters(step)
        pieces = [part for piece in pieces for part in split_pieces(piece, splitters)]
        if step.get("type") == "ByteLevel" and not spelled:  # later steps see its alphabet
            pieces, spelled = [_spell(piece) for piece in pieces], True
    return pieces if spelled else [_spell(piece) for piece in pieces]


def _splitters(step: Mapping[str, Any]) -> list[Any]:
    """Return one step of a pre-tokenizer as expressions whose matches and gaps are pieces."""
    kind = step.get("type")
    if kind == "Split":
        pattern = step.get("pattern", {})
        expression = pattern.get("Regex", re.escape(str(pattern.get("String", ""))))
        behavior = step.get("behavior")
        if behavior == "Isolated" or (behavior == "Removed" and step.get("invert")):
            return [_readable(expression)]
    if kind == "ByteLevel" and not step.get("add_prefix_space"):
        return list(_GPT2) if step.get("use_regex", True) else []
    if kind == "Digits":
        return [r"\p{N}" if step.get("individual_digits") else r"\p{N}+"]
    if kind == "Punctuation":
        contiguous = str(step.get("behavior")).lower() == "contiguous"
        return [r"[\p{P}\$\+<=>\^~\|`]" + ("+" if contiguous else "")]
    raise UnsupportedError(
        f"the pre-tokenizer of tokenizer.json has the step {dict(step)!r:.200}, which GGUF has no "
        "name for"
    )


def _readable(expression: str) -> str:
    r"""Return an expression of Oniguruma for `to_re`, which knows no ``\S`` in brackets."""
    return expression.replace(r"(?i:'s|'t|'re|'ve|'m|'ll|'d)", _CONTRACTIONS)


#: Hugging Face folds case here, where U+017F matches s.
_CONTRACTIONS = r"(?:'[sS\u017f]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])"
