"""`load` and `Model`: the pleasant face of the core."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from . import _core
from .architectures.config import read_config
from .base.checks import choice, ranged
from .display.table import Table, weights_table
from .errors import FormatError
from .generation.request import TextMethods
from .runtime.prompt import is_batch
from .runtime.runner import Runner
from .runtime.session import Session
from .tokenizer import Tokenizer, load_tokenizer, tokenizer_from_metadata

__all__ = ["DEMO", "Model", "load"]

#: The model that ships in the package.
DEMO = Path(__file__).with_name("data") / "demo.gguf"


def load(
    path: str | os.PathLike[str] | bytes | bytearray | memoryview = "demo",
    *,
    mode: str = "exact",
    threads: int | None = None,
    tokenizer: str | os.PathLike[str] | Tokenizer | None = None,
    mmap: bool = True,
    max_context: int | None = None,
) -> Model:
    """Open a model, ready to run.

    Parameters
    ----------
    path : str, os.PathLike or bytes-like
        A GGUF file (the first of its shards if it is split), a llama2.c checkpoint, or the bytes
        of one. ``"demo"`` is the small model that ships in the package; a file of that name is
        ``"./demo"``.
    mode : str
        ``"exact"``: weights at their exact value, activations not rounded; the same bits
        whatever the number of threads, the split of the prompt, what is captured, and the CPU.
        ``"fast"``: activations are rounded before each matmul with quantized weights, as
        llama.cpp does, but finer; the same bits on one CPU whatever the number of threads.
    threads : int, optional
        At most this many threads; None takes the physical cores that this process may use.
    tokenizer : str, os.PathLike or Tokenizer, optional
        Use this one instead of the file's own: a GGUF file, or llama2.c's ``tokenizer.bin``.
    mmap : bool
        False reads the file into memory instead of mapping it.
    max_context : int, optional
        Longest context, instead of the file's own.

    Returns
    -------
    Model

    Raises
    ------
    OSError
        The file cannot be opened.
    tinyllm.FormatError
        The file is malformed, or its parts do not fit together.
    tinyllm.UnsupportedError
        The file is right, but this version does not run such a model.

    Examples
    --------
    >>> import tinyllm as tl
    >>> model = tl.load()
    >>> model.config.architecture
    'llama'
    """
    choice("mode", mode, ("exact", "fast"))
    if threads is not None:
        ranged("threads", threads, 1, 256)
    if max_context is not None:
        ranged("max_context", max_context, 1)
    source: Any = DEMO if isinstance(path, str) and path == "demo" else path
    metadata, weights = open_file(source, mmap)
    config = read_config(metadata, weights)
    if tokenizer is None:
        tok = tokenizer_from_metadata(metadata)
    else:
        tok = tokenizer if isinstance(tokenizer, Tokenizer) else load_tokenizer(tokenizer)
        if len(tok) > config.vocab_size:
            raise FormatError(
                f"the tokenizer has {len(tok)} tokens; expected at most {config.vocab_size}, "
                "the model's",
                field="tokenizer",
                value=len(tok),
                expected=f"at most {config.vocab_size}",
            )
    try:
        core = _core.Model(
            config.core(max_context or config.context_length, mode == "fast"), weights.values()
        )
    except FormatError as error:
        error.path = _path_text(source)
        raise
    return Model(
        core, config, weights, metadata, tok, threads or _core.cpu_count(), _path_text(source)
    )


def _path_text(source: Any) -> str | None:
    return None if isinstance(source, (bytes, bytearray, memoryview)) else os.fspath(source)


def open_file(
    source: Any, mmap: bool = True
) -> tuple[Mapping[str, Any], Mapping[str, _core.Weight]]:
    """Open a GGUF file or a llama2.c checkpoint, told apart by the magic.

    Parameters
    ----------
    source : str, os.PathLike or bytes-like
        ``"demo"`` is the model that ships in the package.
    mmap : bool
        False reads the file into memory.

    Returns
    -------
    metadata : mapping
        GGUF keys.
    weights : mapping of str to Weight
    """
    if isinstance(source, str) and source == "demo":
        source = DEMO
    if isinstance(source, (bytes, bytearray, memoryview)):
        magic = bytes(source[:4])
    else:
        with open(source, "rb") as file:
            magic = file.read(4)
    if magic[:4] != b"GGUF" and _is_llama2c(source, magic):
        from .files.llama2c import read_llama2c

        metadata, weights = read_llama2c(source, mmap=mmap)
        return {**metadata, "tinyllm.source": "llama2.c"}, weights
    from .files.gguf import GGUF

    file_ = GGUF(source, mmap=mmap)
    return file_.metadata, file_.tensors


def _is_llama2c(source: Any, magic: bytes) -> bool:
    """Whether a file that is no GGUF looks like a llama2.c checkpoint rather than a broken GGUF."""
    named = not isinstance(source, (bytes, bytearray, memoryview)) and str(
        os.fspath(source)
    ).endswith(".bin")
    return named or magic == b"24ka" or (len(magic) == 4 and 0 < magic[0] and magic[2:] == b"\0\0")


class Model(Runner, TextMethods):
    """A model, ready to run. Made by `load`.

    Immutable and safe to share between threads; each call makes its own session.

    Attributes
    ----------
    config : Config
        The numbers that define the model.
    weights : mapping of str to Weight
        Every tensor of the file by name, in the file's order.
    metadata : mapping
        The file's metadata.
    tokenizer : Tokenizer or None
        None when the file has none; token ids still work.
    threads : int
        At most this many threads are used.
    core : tinyllm._core.Model
        The model in C.

    Examples
    --------
    >>> import tinyllm as tl
    >>> model = tl.load()
    >>> model.logits("ROMEO:").shape[1] == model.config.vocab_size
    True
    """

    def session(self, path: str | os.PathLike[str] | None = None) -> Session:
        """Start a context, empty or as `Session.save` left it.

        Parameters
        ----------
        path : str or os.PathLike, optional
            A file that `Session.save` wrote.

        Returns
        -------
        Session

        Raises
        ------
        tinyllm.FormatError
            The file is no session of this model, or is damaged.
        OSError
            It cannot be read.

        Examples
        --------
        >>> import tinyllm as tl
        >>> session = tl.load().session()
        >>> session.eval([1, 2, 3]).shape == (tl.load().config.vocab_size,)
        True
        """
        session = Session(self)
        if path is not None:
            from .trace.saved import load_session

            load_session(session, path)
        return session

    def hidden_states(self, prompt: Any, *, edits: Any = ()) -> Any:
        """The residual stream between the blocks.

        Parameters
        ----------
        prompt : str, bytes, ids, or a list of them
        edits : Edit or sequence of Edit
            As for `trace`.

        Returns
        -------
        numpy.ndarray of float32, shape (layers + 1, T, D), or a list of them for a batch
            Entry i enters block i; the last one leaves the last block and is not normalized
            (Hugging Face's last hidden state is: that is the tap ``output_norm``).

        Examples
        --------
        >>> import tinyllm as tl
        >>> model = tl.load()
        >>> len(model.hidden_states("ROMEO:")) == model.config.layers + 1
        True
        """
        last = f"blk.{self.config.layers - 1}.resid_post"
        traces = self.trace(prompt, ["blk.*.resid_pre", last], edits=edits)
        batch = is_batch(prompt)
        states = [
            np.concatenate([trace.stack("blk.*.resid_pre"), trace[last][np.newaxis]])
            for trace in (traces if batch else [traces])
        ]
        return states if batch else states[0]

    # ---- showing ----

    def table(self) -> Table:
        """A table of what the model is.

        Returns
        -------
        Table

        Examples
        --------
        >>> import tinyllm as tl
        >>> print(tl.load().table())  # doctest: +ELLIPSIS
        what...
        """
        config = self.config
        types: dict[str, int] = {}
        parameters = 0
        for weight in self.weights.values():
            types[weight.type] = types.get(weight.type, 0) + weight.nbytes
            parameters += int(np.prod(weight.shape, dtype=np.int64))
        rows = [
            ("name", self.metadata.get("general.name", self.path or "")),
            ("architecture", config.architecture),
            ("parameters", f"{parameters:,}"),
            ("weights", ", ".join(f"{name} {size:,} bytes" for name, size in types.items())),
            ("layers, width", f"{config.layers} x {config.width}"),
            ("heads, kv heads", f"{config.heads}, {config.kv_heads} of {config.head_size}"),
            ("feed-forward width", config.ffn_width),
            ("context length", config.context_length),
            ("tokenizer", repr(self.tokenizer) if self.tokenizer else "none"),
        ]
        return Table(("what", "value"), rows)

    def __repr__(self) -> str:
        """Name architecture, size and file."""
        c = self.config
        return (
            f"<tinyllm.Model: {c.architecture}, {c.layers} layers of width {c.width}, "
            f"vocabulary {c.vocab_size}, {len(self.weights)} weights"
            + (f", {self.path}>" if self.path else ">")
        )

    def _repr_html_(self) -> str:
        weights, caption = weights_table(self.weights.values())
        return (
            f"{self.table().html(caption=repr(self))}"
            f"<details><summary>{len(self.weights)} weights</summary>{weights.html(caption)}"
            "</details>"
        )
