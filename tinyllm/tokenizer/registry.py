"""Choose the tokenizer of a file: one row per `tokenizer.ggml.model`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from ..errors import FormatError, UnsupportedError, wrong
from ..files.gguf import GGUF
from ..files.kinds import model_start
from ..files.model_file import DEMO
from ..files.paths import regular_file
from ..files.sources import locate
from .base import Tokenizer
from .bpe import BpeTokenizer, Gemma4Tokenizer
from .rwkv import RwkvTokenizer
from .spm import SpmTokenizer
from .ugm import UgmTokenizer
from .unknown import UnknownTokenizer
from .wpm import WpmTokenizer

__all__ = ["TOKENIZERS", "load_tokenizer", "tokenizer_from_metadata", "unknown_tokenizer"]

#: ``tokenizer.ggml.model`` -> class; None: the file has no tokenizer.
TOKENIZERS: dict[str, type[Tokenizer] | None] = {
    "llama": SpmTokenizer,
    "gpt2": BpeTokenizer,
    "gemma4": Gemma4Tokenizer,
    "bert": WpmTokenizer,
    "t5": UgmTokenizer,
    "rwkv": RwkvTokenizer,
    "no_vocab": None,
    "none": None,
}

_MODEL = "tokenizer.ggml.model"


def tokenizer_from_metadata(metadata: Mapping[str, Any]) -> Tokenizer | None:
    """Return the tokenizer that a file's metadata describes.

    Parameters
    ----------
    metadata : Mapping
        Key -> Python value, NumPy array or list, as in ``tl.GGUF(path).metadata``.

    Returns
    -------
    Tokenizer or None
        None if the file has no tokenizer: `tokenizer.ggml.model` is missing, ``"no_vocab"`` or
        ``"none"``.

    Raises
    ------
    UnsupportedError
        If the kind of tokenizer is unknown; the message names it.
    FormatError
        If the vocabulary is malformed.

    Examples
    --------
    >>> tokenizer_from_metadata({}) is None
    True
    """
    model = metadata.get(_MODEL)
    if model is None:
        return None
    if not isinstance(model, str):
        raise wrong(_MODEL, model, "a string", shown=repr(model))
    if model not in TOKENIZERS:
        raise UnsupportedError(
            f"{_MODEL} is {model!r}; expected one of {', '.join(sorted(TOKENIZERS))}"
        )
    kind = TOKENIZERS[model]
    return None if kind is None else kind(metadata)


def unknown_tokenizer(metadata: Mapping[str, Any], reason: str) -> UnknownTokenizer:
    """Return what stands for a tokenizer of an unknown kind, so that its model runs on ids.

    Parameters
    ----------
    metadata : Mapping
    reason : str
        What is missing; the message of the error from `tokenizer_from_metadata`.

    Returns
    -------
    UnknownTokenizer

    Raises
    ------
    FormatError
        If the vocabulary is malformed.

    Examples
    --------
    >>> from tinyllm.tokenizer.registry import unknown_tokenizer
    >>> unknown_tokenizer({"tokenizer.ggml.tokens": ["a"]}, "the kind is unknown")
    <tinyllm.Tokenizer: unknown, 1 tokens>
    """
    prefix = "tokenizer.ggml."
    if f"{prefix}tokens" not in metadata:  # its vocabulary lies elsewhere
        metadata = {key: metadata[key] for key in metadata if not key.startswith(prefix)}
        metadata[f"{prefix}tokens"] = ["<unknown>"]
    return UnknownTokenizer(metadata, reason)


def load_tokenizer(path: str | os.PathLike[str]) -> Tokenizer:
    """Return the tokenizer of a file.

    Parameters
    ----------
    path : str or os.PathLike
        A GGUF file, or a ``tokenizer.bin`` of llama2.c. It may be named as in :func:`load`.

    Returns
    -------
    Tokenizer

    Raises
    ------
    OSError
        If the file cannot be read.
    FormatError
        If the file is malformed, or a GGUF file without a tokenizer.
    UnsupportedError
        If the kind of tokenizer is unknown.

    Examples
    --------
    >>> import tinyllm as tl
    >>> tl.load_tokenizer("/no/such/file")
    Traceback (most recent call last):
    FileNotFoundError: [Errno 2] No such file or directory: '/no/such/file'
    >>> len(tl.load_tokenizer("demo"))
    1024
    """
    path = DEMO if isinstance(path, str) and path == "demo" else locate(path)
    if not isinstance(path, str | os.PathLike):
        path = regular_file(path)
    _, start = model_start(path)
    try:
        if start[:4] == b"GGUF":
            found = tokenizer_from_metadata(GGUF(path).metadata)
        else:
            from ..files.llama2c import read_tokenizer_bin

            found = tokenizer_from_metadata(read_tokenizer_bin(path))
    except (FormatError, UnsupportedError) as error:
        error.path = os.fsdecode(path)
        raise
    if found is None:
        raise FormatError(
            f"the file has no tokenizer; expected {_MODEL} to name one",
            path=os.fspath(path),
            field=_MODEL,
        )
    return found
