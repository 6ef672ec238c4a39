r"""How BPE models split text into words: one row per `tokenizer.ggml.pre`.

A row lists splitters. Each one splits the pieces of the previous one: its matches become pieces,
and so does the text between them. The expressions are those of the models' own `tokenizer.json`
files, as llama.cpp's `src/llama-vocab.cpp` collects them. Where llama.cpp only approximates the
model's expression (tekken, gpt-4o, kimi-k2 and the digit groups), the row has the model's own.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from .unicode_classes import class_body, to_re

__all__ = ["PRE_TOKENIZERS", "PreTokenizer", "split_pieces"]

# The start and end of each match of a splitter, in order.
Spans = Iterator[tuple[int, int]]
Splitter = str | Callable[[str], Spans]


@dataclass(frozen=True)
class PreTokenizer:
    """A way to split text into words, and the tokenizer settings that go with it.

    Parameters
    ----------
    splitters : tuple of (str or callable)
        Expressions, or functions that yield spans, applied in sequence.
    ignore_merges : bool
        Whether a word that is a token is taken as it is, without merges.
    add_bos : bool
        Whether to add a beginning-of-sequence token if the file does not say.
    byte_encode : bool
        Whether words are spelled in GPT-2's byte alphabet.
    escape_spaces : bool
        Whether spaces become U+2581 before the text is split.
    no_bos : bool
        Whether the model has no beginning-of-sequence token, even if the file names one.
    nfc : bool
        Whether the text is first normalized to Unicode's form C.
    """

    splitters: tuple[Splitter, ...]
    ignore_merges: bool = False
    add_bos: bool = False
    byte_encode: bool = True
    escape_spaces: bool = False
    no_bos: bool = False
    nfc: bool = False


def split_pieces(text: str, splitters: Iterable[Splitter]) -> list[str]:
    """Return the pieces of a text after each splitter in turn.

    Parameters
    ----------
    text : str
        Any text.
    splitters : iterable of (str or callable)
        As in `PreTokenizer`.

    Returns
    -------
    list of str
        The pieces in order; concatenated, they are `text`.

    Examples
    --------
    >>> split_pieces("I'm 12 years", PRE_TOKENIZERS["starcoder"].splitters)
    ['I', "'m", ' ', '1', '2', ' years']
    """
    pieces = [text] if text else []
    for splitter in splitters:
        spans: Callable[[str], Spans] = (
            functools.partial(_regex_spans, _compile(splitter))
            if isinstance(splitter, str)
            else splitter
        )
        out: list[str] = []
        for piece in pieces:
            end = 0
            for start, stop in spans(piece):
                if start > end:
                    out.append(piece[end:start])
                if stop > start:
                    out.append(piece[start:stop])
                end = stop
            if end < len(piece):
                out.append(piece[end:])
        pieces = out
    return pieces


@functools.cache
def _compile(expression: str) -> re.Pattern[str]:
    return to_re(expression)


def _regex_spans(pattern: re.Pattern[str], text: str) -> Spans:
    return (match.span() for match in pattern.finditer(text))


# ---- Splitters that are functions: as expressions they would take quadratic time. ----


def _blank_tail(text: str) -> Spans:
    r"""Yield the span of ``\s+$``."""
    start = len(text.rstrip(_blanks()))
    if start < len(text):
        yield start, len(text)


@functools.cache
def _blanks() -> str:
    return "".join(re.findall(f"[{class_body('White_Space')}]", "".join(map(chr, range(0x3001)))))


def _lazily_compiled(expression: str) -> Callable[[], re.Pattern[str]]:
    return functools.partial(_compile, expression)


_NUMBER_RUN = _lazily_compiled(r"\p{N}+")
_DECIMAL_RUN = _lazily_compiled(r"\d+")
_WORD_AFTER = _lazily_compiled(r"[\p{L}\p{M}\p{N}\p{Pc}]")


def _groups_from_right(start: int, stop: int) -> Spans:
    """Yield the spans of a group of 1 to 3 digits, then of groups of 3."""
    first = start + ((stop - start) % 3 or 3)
    while start < stop:
        yield start, first
        start, first = first, first + 3


def _afmoe_digits(text: str) -> Spans:
    """Yield the digit groups of AFMoE, counted from the right of each run of numbers."""
    for run in _NUMBER_RUN().finditer(text):
        yield from _groups_from_right(*run.span())


def _tiny_aya_digits(text: str) -> Spans:
    r"""Yield the matches of ``\d{1,3}(?=(?:\d{3})*\b)``: only runs before a word boundary."""
    for run in _DECIMAL_RUN().finditer(text):
        if not _WORD_AFTER().match(text, run.end()):
            yield from _groups_from_right(*run.span())


def _superbpe_borders(text: str) -> Spans:
    r"""Yield the empty matches of ``(?=(\d{3})+(?!\d))``: before each group of 3."""
    for run in _DECIMAL_RUN().finditer(text):
        start, stop = run.span()
        for at in range(start + (stop - start) % 3, stop, 3):
            yield at, at


# ---- Expressions ----

# Hugging Face writes (?i:'s|'t|...), where case folding makes U+017F match s.
_CONTRACTIONS = r"(?:'[sS\u017f]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])"
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)"
_BLANKS = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_SYMBOLS = r" ?[^\s\p{L}\p{N}]+[\r\n]*"
_LETTERS = r"[^\r\n\p{L}\p{N}]?\p{L}+"


def _llama3(
    numbers: str = r"\p{N}{1,3}", letters: str = _LETTERS, symbols: str = _SYMBOLS,
    blanks: str = _BLANKS, contractions: str = _CONTRACTIONS + "|",
) -> str:  # fmt: skip
    return f"{contractions}{letters}|{numbers}|{symbols}|{blanks}"


_UPPER = r"\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}"
_LOWER = r"\p{Ll}\p{Lm}\p{Lo}\p{M}"


def _cased(
    ending: str, numbers: str, symbols: str = r" ?[^\s\p{L}\p{N}]+[\r\n/]*", not_han: str = ""
) -> str:
    """Return the expression of o200k and tekken: words also end between lower and upper case."""
    head = r"[^\r\n\p{L}\p{N}]?"
    upper, lower = f"{not_han}[{_UPPER}]", f"{not_han}[{_LOWER}]"
    if not_han:
        upper, lower = f"(?:{upper})", f"(?:{lower})"
    words = f"{head}{upper}*{lower}+{ending}|{head}{upper}+{lower}*{ending}"
    return f"{words}|{numbers}|{symbols}|{_BLANKS}"


_GPT4O = _cased(_CONTRACTIONS + "?", r"\p{N}{1,3}")
_KIMI_K2 = r"\p{Han}+|" + _cased(
    _CONTRACTIONS + "?", r"\p{N}{1,3}", _SYMBOLS, not_han=r"(?!\p{Han})"
)
_CJK = r"[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+"
_DEEPSEEK3 = (
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"""
    r"| ?[\p{P}\p{S}]+[\r\n]*|" + _BLANKS
)
_DEEPSEEK_LETTERS = (
    r"A-Za-z\u00b5\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u01ba\u01bc-\u01bf\u01c4-\u0293\u0295-"
    r"\u02af\u0370-\u0373\u0376\u0377\u037b-\u037d\u037f\u0386\u0388-\u038a\u038c\u038e-\u03a1"
    r"\u03a3-\u03f5\u03f7-\u0481\u048a-\u052f\u0531-\u0556\u10a0-\u10c5\u13a0-\u13f5\u13f8-"
    r"\u13fd\u1c90-\u1cba\u1cbd-\u1cbf\u1d00-\u1d2b\u1d6b-\u1d77\u1d79-\u1d9a\u1e00-\u1f15"
    r"\u1f18-\u1f1d\u1f20-\u1f45\u1f48-\u1f4d\u1f50-\u1f57\u1f59\u1f5b\u1f5d\u1f5f-\u1f7d"
    r"\u1f80-\u1fb4\u1fb6-\u1fbc\u1fbe\u1fc2-\u1fc4\u1fc6-\u1fcc\u1fd0-\u1fd3\u1fd6-\u1fdb"
    r"\u1fe0-\u1fec\u1ff2-\u1ff4\u1ff6-\u1ffc\u2102\u2107\u210a-\u2113\u2115\u2119-\u211d"
    r"\u2124\u2126\u2128\u212a-\u212d\u212f-\u2134\u2139\u213c-\u213f\u2145-\u2149\u214e\u2183"
    r"\u2184\u2c00-\u2c7b\u2c7e-\u2ce4\u2ceb-\u2cee\u2cf2\u2cf3\ua640-\ua66d\ua680-\ua69b"
    r"\ua722-\ua76f\ua771-\ua787\ua78b-\ua78e\uab70-\uabbf\ufb00-\ufb06\ufb13-\ufb17\uff21-"
    r"\uff3a\uff41-\uff5a\U00010400-\U0001044f\U000104b0-\U000104d3\U000104d8-\U000104fb"
    r"\U00010c80-\U00010cb2\U00010cc0-\U00010cf2\U000118a0-\U000118df\U0001e900-\U0001e943"
)
_HAN_HANGUL = r"[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+"
_BLOOM = r" ?[^(\s|.,!?\u2026\u3002\uff0c\u3001\u0964\u06d4\u060c)]+"
_COUNTED_BLANKS = "|".join(rf"\s{{{2**n}}}(?!\S)" for n in range(9, 1, -1))
_LINES = r"[^\n]+|[\n]+"


def _row(*splitters: Splitter, **flags: bool) -> PreTokenizer:
    return PreTokenizer(splitters, **flags)


_ROW_GPT2 = _row(_GPT2)
_ROW_LLAMA3 = _row(_llama3(), ignore_merges=True, add_bos=True)
_ROW_LLAMA3_PLAIN = _row(_llama3())
_ROW_QWEN2 = _row(_llama3(r"\p{N}"))
_ROW_QWEN2_NFC = _row(_llama3(r"\p{N}"), nfc=True)
_ROW_DIGITS_GPT2 = _row(r"\p{N}", _GPT2)
_ROW_DEEPSEEK3 = _row(r"\p{N}{1,3}", _CJK, _DEEPSEEK3)
_ROW_BLOOM = _row(_BLOOM)
_ROW_GPT4O = _row(_GPT4O)
_ROW_BAILING = _row(
    _llama3(
        r"\p{N}",
        contractions=r"'(?:[sS\u017fdDmMtT]|[lL][lL]|[vV][eE]|[rR][eE])|",
        blanks=r"\s*[\r\n]|\s+(?!\S)|\s+",
    )
)
_ROW_TINY_AYA = _row(_tiny_aya_digits, _GPT4O)
_ROW_GEMMA4 = _row(_LINES, byte_encode=False, escape_spaces=True)

PRE_TOKENIZERS: dict[str, PreTokenizer] = {
    "default": _row(r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", "[0-9][0-9][0-9]"),
    "llama3": _ROW_LLAMA3,
    "llama-v3": _ROW_LLAMA3,
    "llama-bpe": _ROW_LLAMA3,
    "laguna": _row(_LINES, _llama3(r"\p{N}")),
    "falcon3": _ROW_LLAMA3,
    "falcon-h1": _ROW_LLAMA3,
    "pixtral": _ROW_LLAMA3,
    "midm-2.0": _ROW_LLAMA3,
    "lfm2": _ROW_LLAMA3,
    "jina-v5-nano": _ROW_LLAMA3,
    "deepseek-llm": _row(
        "[\r\n]",
        rf"\s?[{_DEEPSEEK_LETTERS}]+",
        r"\s?[!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3000-\u3002]+",
        _blank_tail,
        _HAN_HANGUL,
        r"\p{N}+",
    ),
    "deepseek-coder": _row("[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _HAN_HANGUL, r"\p{N}"),
    "deepseek-v3": _ROW_DEEPSEEK3,
    "youtu": _row(
        r"[\uac00-\ud7a3\u3131-\u318e]+|[\uff01\u2026\u201c\u201d\u2018\u2019\u2014\uff1a\uff1b"
        r"\uff0c\u3001-\u303f\ufe30-\ufe4f]+|[\u3105-\u312f]+|" + _CJK,
        _cased(_CONTRACTIONS + "?", r"\p{N}"),
        ignore_merges=True,
    ),
    "falcon": _row(r"[\p{P}\$\+<=>\^~\|`]+", _GPT2, "[0-9][0-9][0-9]"),
    "mpt": _ROW_GPT2,
    "starcoder": _ROW_DIGITS_GPT2,
    "gpt-2": _ROW_GPT2,
    "phi-2": _ROW_GPT2,
    "jina-es": _ROW_GPT2,
    "jina-de": _ROW_GPT2,
    "gigachat": _ROW_GPT2,
    "jina-v2-es": _ROW_GPT2,
    "jina-v2-de": _ROW_GPT2,
    "a.x-4.0": _ROW_GPT2,
    "mellum": _ROW_GPT2,
    "modern-bert": _ROW_GPT2,
    "mellum2": _ROW_DIGITS_GPT2,
    "jais-2": _row(
        _llama3(blanks=rf"\s*[\r\n]+|{_COUNTED_BLANKS}|\s{{1,2}}(?!\S)|\s{{1}}"),
    ),
    "gemma4": _ROW_GEMMA4,
    "jina-v1-en": _ROW_GPT2,
    "jina-v2-code": _ROW_GPT2,
    "roberta-bpe": _ROW_GPT2,
    "refact": _ROW_DIGITS_GPT2,
    "command-r": _ROW_DIGITS_GPT2,
    "cohere2_moe": _ROW_DIGITS_GPT2,
    "qwen2": _ROW_QWEN2_NFC,
    "deepseek-r1-qwen": _ROW_QWEN2,
    "kormo": _ROW_QWEN2,
    "openpangu": _ROW_QWEN2,
    "f2llmv2": _ROW_QWEN2,
    "qwen35": _row(
        _llama3(r"\p{N}", r"[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+", r" ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*"),
        nfc=True,
    ),
    "stablelm2": _ROW_QWEN2,
    "olmo": _ROW_GPT2,
    "dbrx": _ROW_LLAMA3_PLAIN,
    "smaug-bpe": _ROW_LLAMA3_PLAIN,
    "poro-chat": _ROW_BLOOM,
    "glm4": _row(_llama3(), no_bos=True),
    "chatglm-bpe": _row(_llama3(), no_bos=True),
    "viking": _row(_BLOOM, r"\p{N}"),
    "jais": _ROW_GPT2,
    "tekken": _row(_cased("", r"\p{N}"), ignore_merges=True, add_bos=True),
    "smollm": _ROW_DIGITS_GPT2,
    "codeshell": _ROW_DIGITS_GPT2,
    "bloom": _ROW_BLOOM,
    "gpt3-finnish": _ROW_BLOOM,
    "exaone": _ROW_DIGITS_GPT2,
    "exaone4": _ROW_GPT2,
    "exaone-moe": _row(
        _llama3(
            r"\p{N}",
            r"[^\r\n\p{L}\p{N}]?(?:\p{L}\p{M}*(?: \p{L}\p{M}*)*)+",
            r" ?[^\s\p{L}\p{N}]+[\r\n/]?",
            r"\s*[\r\n]|\s+(?!\S)|\s+",
        )
    ),
    "chameleon": _row(
        "<sentinel:[0-9]+>",
        "(IMGIMG)((A|B|C|D|E|F|G|H|I){1,4})Z",
        "([\t\n]|    |  )",
        r"\p{N}",
        r"[\p{P}!-/:-@\[-`{-~]",
        _GPT2,
        add_bos=True,
    ),
    "minerva-7b": _ROW_DIGITS_GPT2,
    "megrez": _ROW_QWEN2,
    "gpt-4o": _ROW_GPT4O,
    "llama4": _ROW_GPT4O,
    "kanana2": _ROW_GPT4O,
    "tiny_aya": _ROW_TINY_AYA,
    "superbpe": _row(r"\p{N}+", _superbpe_borders),
    "trillion": _ROW_GPT2,
    "granite-docling": _ROW_GPT2,
    "bailingmoe": _ROW_BAILING,
    "bailingmoe2": _ROW_BAILING,
    "llada-moe": _ROW_BAILING,
    "seed-coder": _row(_llama3(r"\p{N}", symbols=r" ?[^\s\p{L}\p{N}\r\n]+")),
    "hunyuan": _ROW_QWEN2,
    "hunyuan-dense": _ROW_DEEPSEEK3,
    "joyai-llm": _ROW_DEEPSEEK3,
    "kimi-k2": _row(_KIMI_K2),
    "grok-2": _ROW_QWEN2,
    "afmoe": _row(
        _afmoe_digits,
        r"[\u4e00-\u9fff\u3400-\u4dbf\u8c48-\ufaff\u3040-\u309f\u30a0-\u30ff\uff65-\uff9f"
        r"\u2f00-\u2fdf\u0e40-\u0e7f\u0e80-\u0eff\u1780-\u17ff\u1000-\u109f\uaa60-\uaa7f\ua9e0"
        r"-\ua9ff\uac00-\ud7af\u1100-\u11ff]+",
        _DEEPSEEK3,
    ),
    "minimax-m2": _ROW_GPT4O,
    "solar-open": _ROW_QWEN2,
    "spark2_5": _row(
        r"\p{N}{1,3}",
        _CJK,
        r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+"""
        r"|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+|[\r\n]|\s+(?!\S)|\s+",
        r"\p{N}",
    ),
    "hy_v4": _ROW_DEEPSEEK3,
    "granite-embed-multi-97m": _row(_GPT4O, ignore_merges=True),
    "granite-embed-multi-311m": _ROW_GEMMA4,
    "ufakzeka": _row(_llama3(r"\p{N}", contractions="")),
    "sarvam-moe": _ROW_GEMMA4,
    "minicpm5": _row(r"\p{N}{1,3}", _llama3(r"\p{N}+"), ignore_merges=True),
    "whitespace": _row(r"\S+", byte_encode=False),
    "talkie": _ROW_GPT4O,
    "cohere2moe": _ROW_TINY_AYA,
}
