"""Hugging Face as a peer: forward hooks on its modules."""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from ..comparison.read import Dump, read_dump
from ..files.arrays import Array
from ..files.paths import first_bytes
from ..loading import load
from ..model import Model
from ..runtime.prompt import token_ids
from ..trace.dialects import table_names, translate
from ..trace.taps import Capture, match, select

__all__ = ["hugging_face"]

_LIBRARY = "Hugging Face"


def hugging_face(
    model: Any,
    ids: Any,
    capture: Capture = "*",
    *,
    dtype: str = "float32",
    like: Model | None = None,
) -> Dump:
    """Run a model with Hugging Face's transformers and return its inner values.

    Parameters
    ----------
    model : str, os.PathLike, Model or torch.nn.Module
        A GGUF file, or a model that was loaded from one: its weights are dequantized and put into
        the Hugging Face class, as far as transformers reads the architecture from GGUF. Or the
        folder of a checkpoint, or a model of transformers.
    ids : str, bytes or ids
        The tokens. Text needs a model of tinyllm, whose tokenizer encodes it.
    capture : str, re.Pattern, callable, or sequence of them
        Taps, as in `Model.trace`. Those that are no input or output of a module are left out.
    dtype : str
        The dtype of PyTorch in which a file is loaded, such as ``"bfloat16"``.
    like : Model, optional
        The same model in tinyllm, which gives names and shapes. Default: the GGUF file.

    Returns
    -------
    Dump

    Raises
    ------
    ImportError
        If torch or transformers is not installed, or gguf, which transformers needs for GGUF.
    ValueError
        If transformers does not read the architecture.

    Examples
    --------
    >>> import tinyllm as tl
    >>> model = tl.load()
    >>> t = tl.peers.hugging_face(model, "ROMEO:", "blk.*.resid_post")  # doctest: +SKIP
    >>> print(tl.diff(model.trace("ROMEO:"), t))  # doctest: +SKIP
    """
    try:
        torch: Any = importlib.import_module("torch")
        transformers: Any = importlib.import_module("transformers")
    except ImportError as error:
        raise ImportError(
            "tinyllm.peers.hugging_face needs torch and transformers: pip install torch "
            "transformers",
            name=error.name,
        ) from error
    if not isinstance(model, torch.nn.Module):
        path = model.path if isinstance(model, Model) else model
        if path is None:
            raise ValueError("model was loaded from bytes; expected a model from a file")
        if like is None and not Path(path).is_dir() and first_bytes(path)[:4] == b"GGUF":
            like = model if isinstance(model, Model) else load(path)
        model = _load(torch, transformers, Path(path), getattr(torch, dtype))
    tokens = token_ids(ids, None if like is None else like.tokenizer, "ids")
    if like is None:
        known = table_names(int(model.config.num_hidden_layers))
        wanted = set(match(sorted(known), capture, "capture") if capture is not None else known)
    else:
        known = {tap.name for tap in like.taps}
        wanted = {tap.name for tap in select(like.taps, capture)}
    values: list[tuple[str, Array]] = []
    with _eager(model), _hooked(torch, model, known, wanted, values), torch.no_grad():
        model.eval()(torch.tensor([tokens.tolist()], device=model.device), use_cache=False)
    found = read_dump(values, "hf", tokens, like).only(wanted)
    found.exact = model.dtype == torch.float32
    return found


def _load(torch: Any, transformers: Any, path: Path, dtype: Any) -> Any:
    """Return a model of transformers with the weights of a file, dequantized."""
    options: dict[str, Any] = {"dtype": dtype, "attn_implementation": "eager"}
    folder = path
    if not path.is_dir():
        folder, options["gguf_file"] = path.parent, path.name
        options["dtype"] = torch.float32
        if hasattr(transformers, "GgufConfig"):  # without it, weights may stay quantized
            options["quantization_config"] = transformers.GgufConfig(dequantize=True)
    progress = transformers.utils.logging
    shown = progress.is_progress_bar_enabled()
    progress.disable_progress_bar()
    try:
        found = transformers.AutoModelForCausalLM.from_pretrained(os.fspath(folder), **options)
    finally:
        if shown:
            progress.enable_progress_bar()
    if options["dtype"] != dtype:
        kept = {name: buffer.clone() for name, buffer in found.named_buffers()}
        found.to(dtype)
        for name, buffer in found.named_buffers():  # the frequencies of RoPE stay float32
            buffer.data = kept[name]
    return found


@contextlib.contextmanager
def _eager(model: Any) -> Iterator[None]:
    """Let attention compute its probabilities, which other implementations do not have."""
    before = model.config._attn_implementation
    if before == "eager":
        yield
        return
    model.set_attn_implementation("eager")
    try:
        yield
    finally:
        model.set_attn_implementation(before)


@contextlib.contextmanager
def _hooked(
    torch: Any,
    model: Any,
    known: Collection[str],
    wanted: set[str],
    values: list[tuple[str, Array]],
) -> Iterator[None]:
    """Append each wanted input and output of a module to `values` while the model runs."""

    def keep(name: str, value: Any) -> None:
        if torch.is_tensor(value) and (
            {each.ours for each in translate(name, known, _LIBRARY)}.intersection(wanted)
        ):
            values.append((name, value.detach().float().cpu().numpy().copy()))

    def watch(name: str) -> Any:
        def hook(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            keep(f"{name}.in", args[0] if args else kwargs.get("hidden_states"))
            outputs = output if isinstance(output, tuple) else (output,)
            keep(name, outputs[0])
            for i, more in enumerate(outputs[1:], 1):
                keep(f"{name}.output.{i}", more)

        return hook

    names = {module: name for name, module in model.named_modules()}
    handles = [
        module.register_forward_hook(watch(name), with_kwargs=True)
        for module, name in names.items()
    ]
    homes: set[Any] = {sys.modules[type(module).__module__] for module in names}
    with contextlib.ExitStack() as stack:
        for handle in handles:
            stack.callback(handle.remove)
        for home in homes:
            if (attend := getattr(home, "eager_attention_forward", None)) is not None:
                stack.callback(setattr, home, "eager_attention_forward", attend)
                home.eager_attention_forward = _watched(attend, names, keep)
        yield


def _watched(attend: Any, names: dict[Any, str], keep: Any) -> Any:
    """Return the attention function with a hook on its queries and keys."""

    def attention(module: Any, query: Any, key: Any, *args: Any, **kwargs: Any) -> Any:
        name = names.get(module)
        if name is not None:
            keep(f"{name}.attention.query", query)
            keep(f"{name}.attention.key", key)
        return attend(module, query, key, *args, **kwargs)

    return attention
