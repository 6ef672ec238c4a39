"""Hugging Face `tokenizers` built from GGUF metadata, like the models' own tokenizer.json."""

from typing import Any

import tokenizers as hf
from tokenizers import AddedToken, Regex, decoders, models, normalizers
from tokenizers import pre_tokenizers as pre

LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
O200K = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
DEEPSEEK_V3 = (
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"""
    r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def split(expression: str) -> Any:
    return pre.Split(Regex(expression), "isolated")


def byte_level(use_regex: bool) -> Any:
    return pre.ByteLevel(add_prefix_space=False, use_regex=use_regex)


# the pre-tokenizers of each model's tokenizer.json
PRE = {
    "gpt-2": lambda: [byte_level(True)],
    "starcoder": lambda: [pre.Digits(individual_digits=True), byte_level(True)],
    "falcon": lambda: [
        pre.Punctuation("contiguous"),
        byte_level(True),
        pre.Digits(individual_digits=False),
        split("[0-9][0-9][0-9]"),
    ],
    "llama-bpe": lambda: [split(LLAMA3), byte_level(False)],
    "qwen2": lambda: [split(LLAMA3.replace("{1,3}", "")), byte_level(False)],
    "deepseek-coder": lambda: [
        split("[\r\n]"),
        split(r"\s?\p{L}+"),
        split(r"\s?\p{P}+"),
        split("[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+"),
        pre.Digits(individual_digits=True),
        byte_level(False),
    ],
    "deepseek-v3": lambda: [
        split(r"\p{N}{1,3}"),
        split("[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+"),
        split(DEEPSEEK_V3),
        byte_level(False),
    ],
    "tekken": lambda: [split(TEKKEN), byte_level(False)],
    "gpt-4o": lambda: [split(O200K), byte_level(False)],
}
NFC = ("qwen2",)


def build(metadata: dict[str, Any], pre_name: str | None = None, specials: bool = False) -> Any:
    """Return a `tokenizers.Tokenizer` for a GGUF vocabulary; no special token is added."""
    get = lambda key, default=None: metadata.get(f"tokenizer.ggml.{key}", default)  # noqa: E731
    tokens = get("tokens")
    types = [int(t) for t in get("token_type")]
    kind = get("model")
    vocab = dict(zip(reversed(tokens), range(len(tokens) - 1, -1, -1), strict=True))
    if kind == "gpt2":
        name = pre_name or get("pre")
        merges = [tuple(m.split(" ")) for m in get("merges")]
        merges = [m for m in merges if m[0] in vocab and m[1] in vocab and "".join(m) in vocab]
        t = hf.Tokenizer(models.BPE(vocab, merges, ignore_merges=name in ("llama-bpe", "tekken")))
        t.pre_tokenizer = pre.Sequence(PRE[name]())
        t.decoder = decoders.ByteLevel()
        if name in NFC:
            t.normalizer = normalizers.NFC()
    elif kind == "llama":
        t = hf.Tokenizer(
            models.BPE(vocab, spm_merges(tokens, get("scores"), types, vocab),
                       unk_token=tokens[0], fuse_unk=True, byte_fallback=True)
        )  # fmt: skip
        t.normalizer = normalizers.Sequence(
            [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
        )
    elif kind == "bert":
        pieces = {}
        for token, i in vocab.items():
            if token.startswith("▁"):
                pieces[token[1:]] = i
            else:
                pieces[token if types[i] != 1 or token in "[]" else "##" + token] = i
        t = hf.Tokenizer(models.WordPiece(pieces, unk_token="[UNK]", max_input_chars_per_word=100))
        t.normalizer = normalizers.BertNormalizer()
        t.pre_tokenizer = pre.BertPreTokenizer()
    elif kind == "t5":
        scores = [(token, float(s)) for token, s in zip(tokens, get("scores"), strict=True)]
        t = hf.Tokenizer(models.Unigram(scores, int(get("unknown_token_id"))))
        charsmap = bytes(int(x) & 255 for x in get("precompiled_charsmap"))
        # as transformers' SpmConverter makes it
        t.normalizer = normalizers.Sequence(
            [
                normalizers.Precompiled(charsmap),
                normalizers.Strip(left=False, right=True),
                normalizers.Replace(Regex(" {2,}"), "▁"),
            ]
        )
        t.pre_tokenizer = pre.Metaspace(replacement="▁", prepend_scheme="always")
    else:
        raise NotImplementedError(kind)
    if specials:
        for i, token in enumerate(tokens):
            if types[i] in (2, 3, 4):
                t.add_special_tokens([AddedToken(token, normalized=False)])
    return t


def spm_merges(tokens: list[str], scores: Any, types: list[int], vocab: dict[str, int]) -> list:
    """Return merges in the order of the scores of what they make, as transformers makes them."""
    merges = []
    for i, token in enumerate(tokens):
        if types[i] in (2, 3, 6):
            continue
        for at in range(1, len(token)):
            left, right = token[:at], token[at:]
            if left in vocab and right in vocab:
                merges.append((-float(scores[i]), vocab[left], vocab[right], left, right))
    return [(left, right) for *_, left, right in sorted(merges)]
