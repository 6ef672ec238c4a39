"""`load`: from a file to a model."""

from __future__ import annotations

import os
from typing import Any, TypedDict, Unpack

from . import _core
from .architectures.table import read_model
from .base.checks import choice, ranged
from .base.warning import warn
from .base.words import check_keywords
from .errors import Error, FormatError, UnsupportedError
from .files.adapter import Adapter
from .files.model_file import check_holds_model, open_file
from .model import Model
from .runtime.device import choose
from .tokenizer import Tokenizer, load_tokenizer, tokenizer_from_metadata
from .tokenizer.registry import unknown_tokenizer

__all__ = ["load"]


class _NoOther(TypedDict):
    """No further arguments: type checkers refuse what the function refuses."""


def load(
    path: str | os.PathLike[str] | bytes | bytearray | memoryview = "demo",
    *,
    mode: str = "exact",
    cache: str = "f32",
    threads: int | None = None,
    tokenizer: str | os.PathLike[str] | Tokenizer | None = None,
    mmap: bool = True,
    max_context: int | None = None,
    strict: bool = True,
    device: str | None = None,
    device_layers: int | None = None,
    adapters: Any = (),
    **unknown: Unpack[_NoOther],
) -> Model:
    """Open a model file and return the model.

    Parameters
    ----------
    path : str, os.PathLike or bytes-like
        The path or contents of a GGUF file or a llama2.c checkpoint. For a GGUF model that is
        split into several files, the path of the first. ``"demo"`` is the small model that ships
        in the package. ``"hf:owner/repo"``, ``"hf:owner/repo/file.gguf"`` and
        ``"hf:owner/repo:Q4_K_M"`` are files on Hugging Face (``docs/sources.md``), and
        ``"ollama:name:tag"`` is a model in Ollama's store. A file with such a name is ``"./demo"``.
    mode : str
        ``"exact"``: weights have their exact values, and activations are not rounded. The bits of
        a result do not depend on the number of threads, the way a prompt is split into calls, the
        captured taps, or the CPU. ``"fast"``: activations are rounded before each matmul with
        quantized weights, as in llama.cpp, but less coarsely. On CPUs with dot products of
        bfloat16, those before BF16 weights are rounded to bfloat16. On one CPU, the bits do not
        depend on the number of threads.
    cache : str
        How keys and values are stored: ``"f32"``, as they are; ``"f16"``, rounded to float16, in
        half of the memory; ``"q8"``, rounded as in the type Q8_0, in 27 % of it. Rounding changes
        results by a little (``docs/performance.md``). What `mode` promises about bits holds with
        each of them. A device can have ``"f32"`` only.
    threads : int, optional
        Largest number of threads. Default: the number of physical cores that this process may
        use.
    tokenizer : str, os.PathLike or Tokenizer, optional
        A tokenizer that replaces the file's own. A path leads to a GGUF file, or to a
        ``tokenizer.bin`` of llama2.c. If the file's own is of an unknown kind, the model runs on
        token ids, and the tokenizer raises when it is used.
    mmap : bool
        If False, the file is read into memory instead of mapped.
    max_context : int, optional
        The longest context. Default: the context length in the file. A longer one causes a
        warning, because the model was not trained on such positions.
    strict : bool
        If True, a file with tensors that the architecture does not use is an error. If False, such
        a file causes a warning, and results may be wrong.
    adapters : sequence of (path or (path, float))
        LoRA adapters, as files in llama.cpp's GGUF format or as `Adapter`, with their scales. The
        scale without one is 1. ``Model.with_adapter`` adds one to a model that is loaded.

    device : str, optional
        Where the model runs: ``"cpu"``; ``"gpu"``, the first GPU that gives the bits of the CPU;
        ``"auto"``, that GPU if there is one, else the CPU; or a device of `devices`, by its id or a
        part of its name. Default: the environment variable TINYLLM_DEVICE, else ``"cpu"``. The
        results are the same, bit for bit (``docs/gpu.md``).
    device_layers : int, optional
        With less memory than the model needs: so many blocks, from the first one on, run on the
        device, and the rest of the model on the CPU. Default: all that has a kernel there.

    Returns
    -------
    Model

    Raises
    ------
    OSError
        If the file cannot be opened or downloaded.
    tinyllm.FormatError
        If the file is malformed, its parts do not fit together, or it holds no model.
    tinyllm.UnsupportedError
        If the file is valid, but this version does not support the model. If there is no such
        device, or it does not give the bits of the CPU.
    tinyllm.DeviceError
        If the device fails.
    MemoryError
        If the device has no memory for the weights. The message has the sizes.
    TypeError
        If an argument is `unknown`. The message knows the words of other libraries.

    Examples
    --------
    >>> import tinyllm as tl
    >>> model = tl.load()
    >>> model.config.architecture
    'llama'
    >>> tl.load(n_ctx=512)
    Traceback (most recent call last):
    TypeError: load() has no argument n_ctx; here it is max_context=
    """
    check_keywords("load", unknown, _LOAD_ARGUMENTS)
    choice("mode", mode, ("exact", "fast"))
    choice("cache", cache, ("f32", "f16", "q8"))
    if device_layers is not None:
        ranged("device_layers", device_layers, 0)
    chosen = choose(device or os.environ.get("TINYLLM_DEVICE") or "cpu")
    if threads is not None:
        ranged("threads", threads, 1, 256)
    if max_context is not None:
        ranged("max_context", max_context, 1)
    file = open_file(path, mmap)
    tok: Tokenizer | None
    try:
        check_holds_model(file)
        config, steps = read_model(file.metadata, file.weights, strict, max_context)
        if max_context is not None and max_context > config.context_length:
            warn(
                f"max_context is {max_context}, and the model was made for a context of "
                f"{config.context_length} tokens; results beyond it may be useless"
            )
        if tokenizer is not None:
            tok = tokenizer if isinstance(tokenizer, Tokenizer) else load_tokenizer(tokenizer)
            if len(tok) > config.vocab_size:
                raise FormatError(
                    f"the tokenizer has {len(tok)} tokens; expected at most {config.vocab_size}, "
                    "the size of the model's vocabulary",
                    field="tokenizer",
                    value=len(tok),
                    expected=f"at most {config.vocab_size}",
                )
        else:
            try:
                tok = tokenizer_from_metadata(file.metadata)
            except UnsupportedError as error:
                tok = unknown_tokenizer(file.metadata, str(error))
        core = _core.Model(
            steps.lowered(),
            file.weights.values(),
            layers=config.layers,
            max_context=max_context or config.context_length,
            fast=mode == "fast",
            cache=cache,
            device=chosen,
            device_layers=device_layers,
        )
    except Error as error:
        if error.path is None:
            error.path = file.path
        raise
    model = Model(core, file, config, steps, tok, threads or _core.cpu_count())
    model.mode = mode
    model.device, model.device_layers = chosen, device_layers
    pairs = _scaled(adapters)
    return model.with_adapters(pairs) if pairs else model


def _scaled(adapters: Any) -> list[tuple[Any, float]]:
    """Return adapters with their scales."""
    if isinstance(adapters, _ADAPTER):
        return [(adapters, 1.0)]
    pairs = []
    for i, given in enumerate(adapters):
        pair = given if isinstance(given, (tuple, list)) else (given, 1.0)
        if len(pair) != 2 or not isinstance(pair[0], _ADAPTER):
            raise TypeError(
                f"adapters[{i}] is {given!r:.80}; expected a path, or a path and a scale"
            )
        pairs.append((pair[0], pair[1]))
    return pairs


#: What stands for one adapter.
_ADAPTER = (str, os.PathLike, bytes, bytearray, memoryview, Adapter)


_LOAD_ARGUMENTS = (
    *("path", "mode", "cache", "threads", "tokenizer", "mmap", "max_context", "strict", "adapters"),
)
