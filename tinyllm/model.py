"""`load` and `Model`: the pleasant face of the core."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from . import _core
from .config import Config, read_config
from .errors import FormatError
from .generation import Generation, Stepper
from .html import Table
from .session import Session
from .tokenizer import Tokenizer, load_tokenizer, tokenizer_from_metadata
from .trace import Arena, Capture, Floats, Plan, Tap, Trace, all_taps, select

__all__ = ["DEMO", "Model", "Prompt", "load"]

#: Text, or token ids.
Prompt: TypeAlias = str | bytes | Sequence[int] | npt.NDArray[np.integer[Any]]

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
    if mode != "exact":
        raise ValueError(f"mode is {mode!r}; expected 'exact'")
    if threads is not None and not 1 <= _integer("threads", threads) <= 256:
        raise ValueError(f"threads is {threads}; expected 1 to 256")
    if max_context is not None and _integer("max_context", max_context) < 1:
        raise ValueError(f"max_context is {max_context}; expected at least 1")
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
        core = _core.Model(config.core(max_context or config.context_length), weights.values())
    except FormatError as error:
        error.path = _path_text(source)
        raise
    return Model(core, config, weights, metadata, tok, threads or _core.cpu_count(), source)


def _path_text(source: Any) -> str | None:
    return None if isinstance(source, (bytes, bytearray, memoryview)) else os.fspath(source)


def _integer(name: str, value: Any) -> int:
    if isinstance(value, (bool, np.bool_)) or not hasattr(value, "__index__"):
        raise TypeError(f"{name} is {value!r}; expected an integer")
    return int(value)


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
        from .llama2c import read_llama2c

        metadata, weights = read_llama2c(source, mmap=mmap)
        return {**metadata, "tinyllm.source": "llama2.c"}, weights
    from .gguf import GGUF

    file_ = GGUF(source, mmap=mmap)
    return file_.metadata, file_.tensors


def _is_llama2c(source: Any, magic: bytes) -> bool:
    """Whether a file that is no GGUF looks like a llama2.c checkpoint rather than a broken GGUF."""
    named = not isinstance(source, (bytes, bytearray, memoryview)) and str(
        os.fspath(source)
    ).endswith(".bin")
    return named or magic == b"24ka" or (len(magic) == 4 and 0 < magic[0] and magic[2:] == b"\0\0")


def token_ids(prompt: Any, tokenizer: Tokenizer | None, name: str = "the prompt") -> Any:
    """Turn text or ids into a one-dimensional int32 array with at least one token."""
    if isinstance(prompt, (str, bytes)):
        if tokenizer is None:
            raise ValueError(
                f"{name} is text, and the model's file has no tokenizer; give token ids, or "
                "load with tokenizer="
            )
        ids = np.asarray(tokenizer.encode(prompt), np.int32)
        if ids.size == 0:
            raise ValueError(f"{name} is {prompt!r}, which gives no tokens to run")
        return ids
    ids = np.asarray(prompt)
    if ids.size == 0:
        raise ValueError(f"{name} holds no tokens to run")
    if ids.ndim != 1 or not np.issubdtype(ids.dtype, np.integer):
        raise TypeError(
            f"{name} must be text or a sequence of integer token ids, "
            f"not {ids.ndim}-dimensional {ids.dtype}"
        )
    limits = np.iinfo(np.int32)
    if ids.min() < limits.min or ids.max() > limits.max:
        raise ValueError(f"{name} holds a token id outside the vocabulary")
    return np.ascontiguousarray(ids, np.int32)


def is_batch(prompt: Any) -> bool:
    """Whether a prompt is several: a list of texts or of ids, or a 2-D array."""
    if isinstance(prompt, np.ndarray):
        return prompt.ndim == 2
    return isinstance(prompt, (list, tuple)) and any(
        isinstance(item, (str, bytes, list, tuple, np.ndarray)) for item in prompt
    )


class Model:
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

    def __init__(
        self,
        core: _core.Model,
        config: Config,
        weights: Mapping[str, _core.Weight],
        metadata: Mapping[str, Any],
        tokenizer: Tokenizer | None,
        threads: int,
        source: Any,
    ) -> None:
        self.core = core
        self.config = config
        self.weights = weights
        self.metadata = metadata
        self.tokenizer = tokenizer
        self.threads = threads
        self.path = _path_text(source)

    # ---- running ----

    def run(
        self,
        sessions: Sequence[_core.Session],
        tokens: Sequence[npt.NDArray[np.int32]],
        rows: Sequence[int] | npt.NDArray[np.int64],
        taps: Sequence[Tap] = (),
    ) -> tuple[Floats, list[Trace]]:
        """Run tokens in several sessions together; `session` and `trace` are friendlier.

        Parameters
        ----------
        sessions : sequence of tinyllm._core.Session
        tokens : sequence of int32 arrays
            The tokens of each session.
        rows : sequence of int
            Rising row numbers, over all sessions, whose logits are wanted.
        taps : sequence of Tap
            What to capture.

        Returns
        -------
        logits : numpy.ndarray of float32, shape (len(rows), V)
        traces : list of Trace
            One per session.
        """
        starts = [len(session) for session in sessions]
        lengths = [len(ids) for ids in tokens]
        contexts = [a + b for a, b in zip(starts, lengths, strict=True)]
        arena = Arena(self.config, taps, lengths, contexts)
        if taps:
            arena.allocate()
        logits = self.core.forward(
            tuple(sessions),
            tuple(tokens),
            np.asarray(rows, np.int64),
            threads=self.threads,
            captures=tuple(arena.captures),
        )
        traces = []
        for i, ids in enumerate(tokens if taps else ()):
            arrays, stacks = arena.arrays(i)
            traces.append(Trace(self.config, ids, self.pieces(ids), arrays, stacks, starts[i]))
        return logits, traces

    def pieces(self, ids: npt.NDArray[np.int32]) -> list[str]:
        """The text of each token; its number where there is no text."""
        if self.tokenizer is None:
            return [str(int(i)) for i in ids]
        known = len(self.tokenizer)
        return [self.tokenizer.pieces([int(i)])[0] if i < known else f"[{int(i)}]" for i in ids]

    def session(self) -> Session:
        """Start an empty context.

        Returns
        -------
        Session

        Examples
        --------
        >>> import tinyllm as tl
        >>> session = tl.load().session()
        >>> session.eval([1, 2, 3]).shape == (tl.load().config.vocab_size,)
        True
        """
        return Session(self)

    def logits(self, prompt: Prompt) -> Floats:
        """The logits after every token of a prompt.

        Parameters
        ----------
        prompt : str, bytes or ids
            Text gets the special tokens that the file asks for.

        Returns
        -------
        numpy.ndarray of float32, shape (T, V)
            Row i holds the scores of the token that follows token i.

        Raises
        ------
        ValueError
            No tokens, an id outside the vocabulary, or more tokens than the context holds.

        Examples
        --------
        >>> import tinyllm as tl
        >>> model = tl.load()
        >>> model.logits([1, 2, 3]).shape == (3, model.config.vocab_size)
        True
        """
        ids = token_ids(prompt, self.tokenizer)
        return self.run([_core.Session(self.core)], [ids], np.arange(len(ids)))[0]

    def trace(self, prompt: Any, capture: Capture = None) -> Any:
        """Run a prompt and keep its inner values.

        Parameters
        ----------
        prompt : str, bytes, ids, or a list of them
            A list of ints or a 1-D array is one prompt. A list of texts, lists or arrays, or a
            2-D array, is a batch: ragged, run together, never padded, and bit-equal to each one
            alone.
        capture : str, re.Pattern, callable, or sequence of str and re.Pattern, optional
            Names (``"blk.0.attn_q"``), patterns (``"blk.*.resid_post"``, ``"*"``), regular
            expressions (searched), or a function of the name. None: everything but
            ``attn_scores`` and ``attn_probs``, which grow with the square of the context.

        Returns
        -------
        Trace, or list of Trace for a batch

        Raises
        ------
        ValueError
            An unknown name (the nearest are named), or a prompt that cannot run.
        MemoryError
            The capture does not fit; says how large it is.

        Examples
        --------
        >>> import tinyllm as tl
        >>> trace = tl.load().trace("ROMEO:", capture=["blk.*.resid_post", "output"])
        >>> trace["blk.0.resid_post"].shape == (len(trace.tokens), trace.config.width)
        True
        """
        taps = select(all_taps(self.config), capture)
        prompts = list(prompt) if is_batch(prompt) else [prompt]
        tokens = [
            token_ids(p, self.tokenizer, f"prompt {i}" if len(prompts) > 1 else "the prompt")
            for i, p in enumerate(prompts)
        ]
        if taps:
            sessions = [_core.Session(self.core) for _ in tokens]
            traces = self.run(sessions, tokens, [], taps)[1]
        else:
            traces = [Trace(self.config, ids, self.pieces(ids), {}) for ids in tokens]
        return traces if is_batch(prompt) else traces[0]

    def plan(self, prompt: Any, capture: Capture = None) -> Plan:
        """What `trace` would keep: shapes and bytes, without running anything.

        Parameters
        ----------
        prompt, capture
            As for `trace`.

        Returns
        -------
        Plan

        Examples
        --------
        >>> import tinyllm as tl
        >>> tl.load().plan([1, 2, 3], "output").shapes["output"][0]
        3
        """
        prompts = list(prompt) if is_batch(prompt) else [prompt]
        lengths = [len(token_ids(p, self.tokenizer)) for p in prompts]
        return Arena(self.config, select(all_taps(self.config), capture), lengths, lengths).plan()

    def hidden_states(self, prompt: Prompt) -> Floats:
        """The residual stream between the blocks.

        Parameters
        ----------
        prompt : str, bytes or ids

        Returns
        -------
        numpy.ndarray of float32, shape (layers + 1, T, D)
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
        trace = self.trace(prompt, ["blk.*.resid_pre", last])
        return np.concatenate([trace.stack("blk.*.resid_pre"), trace[last][np.newaxis]])

    # ---- generating ----

    def generate(
        self,
        prompt: Prompt,
        max_tokens: int | None = None,
        temperature: float = 0.8,
        top_k: int = 40,
        top_p: float = 0.95,
        seed: int | None = None,
    ) -> Generation:
        """Continue a prompt.

        Parameters
        ----------
        prompt : str, bytes or ids
        max_tokens : int, optional
            Stop after this many new tokens; None goes on until the model ends its text or the
            context is full.
        temperature : float
            0 takes the most likely token each time.
        top_k, top_p : int, float
            Draw among the `top_k` most likely tokens (0: all), and of these among the fewest
            whose probabilities reach `top_p`.
        seed : int, optional
            The same seed gives the same text on every machine and with any number of threads.
            None draws one; it is in the result.

        Returns
        -------
        Generation

        Raises
        ------
        ValueError
            The prompt cannot run, or an argument is out of range.

        Examples
        --------
        >>> import tinyllm as tl
        >>> model = tl.load()
        >>> g = model.generate("ROMEO:", max_tokens=5, seed=1)
        >>> len(g.ids), g.stop_reason
        (5, 'length')
        >>> g.text == model.generate("ROMEO:", max_tokens=5, seed=1).text
        True
        """
        stepper = self._stepper(prompt, max_tokens, temperature, top_k, top_p, seed)
        for _ in stepper:
            pass
        return stepper.result()

    def stream(
        self,
        prompt: Prompt,
        max_tokens: int | None = None,
        temperature: float = 0.8,
        top_k: int = 40,
        top_p: float = 0.95,
        seed: int | None = None,
    ) -> Iterator[str]:
        """Continue a prompt, piece by piece.

        Parameters
        ----------
        prompt, max_tokens, temperature, top_k, top_p, seed
            As for `generate`. The model needs a tokenizer.

        Yields
        ------
        str
            Text as it comes; never a part of a character. Joined, it is `Generation.text`.

        Examples
        --------
        >>> import tinyllm as tl
        >>> model = tl.load()
        >>> "".join(model.stream("ROMEO:", 5, seed=1)) == model.generate("ROMEO:", 5, seed=1).text
        True
        """
        if self.tokenizer is None:
            raise ValueError("stream() gives text, and the model's file has no tokenizer")
        return iter(self._stepper(prompt, max_tokens, temperature, top_k, top_p, seed))

    def _stepper(
        self,
        prompt: Prompt,
        max_tokens: int | None,
        temperature: float,
        top_k: int,
        top_p: float,
        seed: int | None,
    ) -> Stepper:
        from .sampling import Sampler

        if max_tokens is not None and _integer("max_tokens", max_tokens) < 0:
            raise ValueError(f"max_tokens is {max_tokens}; expected 0 or more, or None")
        ids = token_ids(prompt, self.tokenizer)
        sampler = Sampler(temperature=temperature, top_k=top_k, top_p=top_p, seed=seed)
        return Stepper(self, ids, sampler, max_tokens)

    @functools.cached_property
    def eog_ids(self) -> frozenset[int]:
        """Ids that end a generation; for llama2.c BOS too, which parts the texts it trained on."""
        if self.tokenizer is None:
            return frozenset()
        ids = set(self.tokenizer.eog_ids)
        if self.metadata.get("tinyllm.source") == "llama2.c" and self.tokenizer.bos is not None:
            ids.add(self.tokenizer.bos)
        return frozenset(ids)

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
        return self.table().html(caption=repr(self))
