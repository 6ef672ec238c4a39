"""`load` and `Model`: the pleasant face of the core."""

from __future__ import annotations

import contextlib
import functools
import os
import re
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt

from . import _core
from .architectures.config import Config, read_config
from .base.progress import Progress
from .display.table import Table, weights_table
from .errors import FormatError
from .generation.request import TextMethods
from .runtime.machine import Memory
from .runtime.session import Rows, Session
from .tokenizer import Tokenizer, load_tokenizer, tokenizer_from_metadata
from .trace.arena import Arena, Layout, Plan
from .trace.taps import Capture, Floats, Tap, all_taps, runs_from, select
from .trace.trace import Trace

if TYPE_CHECKING:
    from .trace.edits import Program, Sites

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
    if mode not in ("exact", "fast"):
        raise ValueError(f"mode is {mode!r}; expected 'exact' or 'fast'")
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
        core = _core.Model(
            config.core(max_context or config.context_length, mode == "fast"), weights.values()
        )
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


class Model(TextMethods):
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
        self._layouts: dict[Hashable, Layout] = {}

    # ---- running ----

    def run(
        self,
        sessions: Sequence[_core.Session],
        tokens: Sequence[npt.NDArray[np.int32]],
        rows: Sequence[int] | npt.NDArray[np.int64],
        layout: Layout | None = None,
        edits: Sequence[Sites] = (),
        first_layer: int = 0,
        resid: npt.ArrayLike | None = None,
    ) -> tuple[Floats, list[Trace]]:
        """Run tokens in several sessions together; `session` and `trace` are friendlier.

        Parameters
        ----------
        sessions : sequence of tinyllm._core.Session
        tokens : sequence of int32 arrays
            The tokens of each session.
        rows : sequence of int
            Rising row numbers, over all sessions, whose logits are wanted.
        layout : Layout, optional
            What to capture: see `layout`.
        edits : sequence of Sites
            What to change in each session: see `tinyllm.trace.edits.Program`. Empty: nothing.
        first_layer, resid : int and array_like of float32, shape (T, D), optional
            Start at this layer from this residual stream instead of the embedding.

        Returns
        -------
        logits : numpy.ndarray of float32, shape (len(rows), V)
        traces : list of Trace
            One per session; empty without `layout`.
        """
        lengths = [len(ids) for ids in tokens]
        starts = [len(session) for session in sessions]
        contexts = [a + b for a, b in zip(starts, lengths, strict=True)]
        arena = Arena(layout or self.layout([]), lengths, contexts)
        captures = arena.captures
        dispatch = None
        if any(edits):
            from .trace.edits import Dispatcher

            dispatch = Dispatcher(edits, lengths)
            needed = self._needed(dispatch.edits, arena.layout)
            captures = captures + Arena(needed, lengths, contexts).captures
        with Progress(1.0, f"running {sum(lengths)} tokens", sum(lengths) > 1) as bar:
            logits = self.core.forward(
                tuple(sessions),
                tuple(tokens),
                np.asarray(rows, np.int64),
                threads=self.threads,
                captures=tuple(captures),
                edits=() if dispatch is None else dispatch.edits,
                edit=dispatch,
                first_layer=first_layer,
                resid=None if resid is None else np.ascontiguousarray(resid, np.float32),
                progress=bar.to if bar.shown else None,
            )
        if layout is None:
            return logits, []
        return logits, [
            Trace(self.config, ids, self.pieces(ids), arena.views(i), start=starts[i], model=self)
            for i, ids in enumerate(tokens)
        ]

    @functools.cached_property
    def taps(self) -> tuple[Tap, ...]:
        """Every tap of the model, in the order in which the values come to be."""
        return tuple(all_taps(self.config))

    def layout(self, capture: Capture) -> Layout:
        """How a capture lies in memory; the same object for the same taps.

        Parameters
        ----------
        capture : str, re.Pattern, callable, or sequence of str and re.Pattern, optional
            As for `trace`.

        Returns
        -------
        Layout
        """
        # what was asked for before needs no search; a function may say something else each time
        given: Hashable = None
        found = None
        if capture is None or isinstance(capture, (str, re.Pattern)):
            given = ("one", capture)
        elif isinstance(capture, (list, tuple)):
            given = ("several", *capture)
        with contextlib.suppress(TypeError):  # not hashable: `select` says what is wrong
            found = self._layouts.get(given)
        if found is None:
            taps = select(self.taps, capture)
            key = ("several", *(tap.name for tap in taps))
            if len(self._layouts) > 64:
                self._layouts.clear()
            found = self._layouts.get(key) or Layout(self.config, taps)
            self._layouts[key] = found
            if given is not None:
                self._layouts[given] = found
        return found

    def _needed(self, edits: Sequence[tuple[int, int]], captured: Layout) -> Layout:
        """What an edited call must capture although nobody asked for it: see `_core.Model`."""
        places = {(tap.index, tap.layer): tap for tap in self.taps}
        names = set()
        for place in edits:
            tap = places[place]
            if tap.matrix:
                names |= {f"blk.{tap.layer}.attn_scores", f"blk.{tap.layer}.attn_probs"}
            elif tap.family == "output":
                names.add(tap.name)
        return self.layout([name for name in sorted(names) if name not in captured.places])

    def program(self, edits: Any) -> Program | None:
        """Edits, checked as far as that goes without tokens; None if there are none.

        Parameters
        ----------
        edits : Edit or sequence of Edit

        Returns
        -------
        tinyllm.trace.edits.Program or None
        """
        if isinstance(edits, (tuple, list)) and not edits:
            return None
        from .trace.edits import Program

        return Program(self.config, self.taps, edits, self.core.config["max_context"])

    def pieces(self, ids: npt.NDArray[np.int32]) -> list[str]:
        """The text of each token; its number where there is no text."""
        if self.tokenizer is None:
            return [str(int(i)) for i in ids]
        known = len(self.tokenizer)
        return [self.tokenizer.pieces([int(i)])[0] if i < known else f"[{int(i)}]" for i in ids]

    @functools.cached_property
    def fingerprint(self) -> str:
        """Tells models apart: a hash over config and weights."""
        from .trace.saved import fingerprint

        return fingerprint(self.config, self.weights)

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

    def logits(self, prompt: Any, *, edits: Any = ()) -> Any:
        """The logits after every token of a prompt.

        Parameters
        ----------
        prompt : str, bytes, ids, or a list of them
            Text gets the special tokens that the file asks for. Batches as in `trace`.
        edits : Edit or sequence of Edit
            As for `trace`.

        Returns
        -------
        numpy.ndarray of float32, shape (T, V), or a list of them for a batch
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
        traces = self.trace(prompt, [], edits=edits, logits="all")
        return [trace.logits for trace in traces] if is_batch(prompt) else traces.logits

    def trace(
        self, prompt: Any, capture: Capture = None, *, edits: Any = (), logits: Any = None
    ) -> Any:
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
        edits : Edit or sequence of Edit
            Changes on the way, in this order: see `tinyllm.trace.edits`. In a batch they apply to
            each prompt.
        logits : str or sequence of int, optional
            What `Trace.logits` holds: ``"all"`` -> (T, V), ``"last"`` -> (V,), indices into the
            tokens -> (len, V). None: what ``output`` holds, if that is captured.

        Returns
        -------
        Trace, or list of Trace for a batch

        Raises
        ------
        ValueError
            An unknown name (the nearest are named), a prompt that cannot run, or an edit that
            does not fit; nothing has run then.
        IndexError
            A token or head of an edit, or an index of `logits`, that is not there.
        MemoryError
            The capture does not fit; says how large it is.

        Examples
        --------
        >>> import tinyllm as tl
        >>> trace = tl.load().trace("ROMEO:", capture=["blk.*.resid_post", "output"])
        >>> trace["blk.0.resid_post"].shape == (len(trace.tokens), trace.config.width)
        True
        """
        layout = self.layout(capture)
        prompts = list(prompt) if is_batch(prompt) else [prompt]
        tokens = [
            token_ids(p, self.tokenizer, f"prompt {i}" if len(prompts) > 1 else "the prompt")
            for i, p in enumerate(prompts)
        ]
        traces = self.trace_ids(tokens, layout, self.program(edits), logits)
        return traces if is_batch(prompt) else traces[0]

    def trace_ids(
        self,
        tokens: Sequence[npt.NDArray[np.int32]],
        layout: Layout,
        program: Program | None = None,
        logits: Any = None,
        first_layer: int = 0,
        resid: npt.ArrayLike | None = None,
    ) -> list[Trace]:
        """Run fresh contexts together; `trace` and `run_from` are friendlier.

        Parameters
        ----------
        tokens : sequence of int32 arrays
        layout, program, logits
            See `layout`, `program` and `trace`.
        first_layer, resid
            As for `run`.

        Returns
        -------
        list of Trace
        """
        wanted = [Rows(logits, len(ids)) for ids in tokens]
        rows: list[int] = []
        total = 0
        for ids, want in zip(tokens, wanted, strict=True):
            rows += [] if "output" in layout.places else [total + row for row in want.rows]
            total += len(ids)
        edits = []
        if program is not None:
            edits = [program.sites(0, len(ids), True) for ids in tokens]
        sessions = [_core.Session(self.core) for _ in tokens]
        values, traces = self.run(sessions, tokens, rows, layout, edits, first_layer, resid)
        if logits is not None:
            at = 0
            for trace, want in zip(traces, wanted, strict=True):
                if "output" in layout.places:
                    trace.keep_logits(want.take(trace["output"][want.rows]))
                else:
                    trace.keep_logits(want.take(values[at : at + len(want.rows)]))
                    at += len(want.rows)
        return traces

    def run_from(
        self,
        layer: int,
        resid: npt.ArrayLike,
        capture: Capture = "output",
        *,
        edits: Any = (),
        logits: Any = None,
        tokens: Any = None,
    ) -> Trace:
        """Run the blocks from one on, from a residual stream instead of from tokens.

        Parameters
        ----------
        layer : int
            The first block to run; the number of layers runs only the final norm and the output.
        resid : array_like of float32, shape (T, D)
            What enters that block: ``trace[f"blk.{layer}.resid_pre"]`` gives the rest of that
            run, bit for bit.
        capture, edits, logits
            As for `trace`, of the taps that run.
        tokens : ids, optional
            To label the rows of the trace; no value depends on them.

        Returns
        -------
        Trace
            Without `tokens`, its ids are -1 and its pieces are positions.

        Raises
        ------
        ValueError
            `resid` has another shape, or a tap does not run.
        IndexError
            There is no such layer.

        Examples
        --------
        >>> import tinyllm as tl
        >>> model = tl.load()
        >>> t = model.trace("ROMEO:")
        >>> again = model.run_from(1, t["blk.1.resid_pre"])
        >>> bool((again["output"] == t["output"]).all())
        True
        """
        layers, width = self.config.layers, self.config.width
        layer = _integer("layer", layer)
        if not -layers <= layer <= layers:
            raise IndexError(f"layer is {layer}; expected 0 to {layers}")
        layer += layers if layer < 0 else 0
        stream = np.ascontiguousarray(resid, np.float32)
        if stream.ndim != 2 or stream.shape[1] != width or not len(stream):
            raise ValueError(f"resid has shape {stream.shape}; expected (tokens, {width})")
        labels = None if tokens is None else token_ids(tokens, self.tokenizer, "tokens")
        if labels is not None and len(labels) != len(stream):
            raise ValueError(f"tokens has {len(labels)} ids; expected {len(stream)}, as in resid")
        running = [tap for tap in self.taps if runs_from(tap, layer)]
        layout = self.layout([tap.name for tap in select(running, capture)])
        program = self.program(edits)
        for tap in program.taps.values() if program is not None else ():
            if not runs_from(tap, layer):
                raise ValueError(f"the tap {tap.name!r} of an edit does not run from layer {layer}")
        ids = np.zeros(len(stream), np.int32)
        (trace,) = self.trace_ids([ids], layout, program, logits, layer, stream)
        trace.tokens = np.full(len(stream), -1, np.int32) if labels is None else labels
        trace.pieces = (
            [str(i) for i in range(len(stream))] if labels is None else self.pieces(labels)
        )
        return trace

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
        return self.layout(capture).plan(lengths)

    def memory(self, tokens: int | None = None) -> Memory:
        """What the model and one session take, without running anything.

        Parameters
        ----------
        tokens : int, optional
            Length of the session; None: the longest that the model is loaded for.

        Returns
        -------
        Memory
            Sizes in bytes.

        Raises
        ------
        ValueError
            The context does not hold so many tokens, or none are asked for.

        Examples
        --------
        >>> import tinyllm as tl
        >>> model = tl.load()
        >>> model.memory(256).cache < model.memory().cache
        True
        """
        count = self.core.config["max_context"] if tokens is None else _integer("tokens", tokens)
        cache, workspace = self.core.memory(count, self.threads)
        return Memory(sum(w.nbytes for w in self.weights.values()), cache, workspace, count)

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
        weights, caption = weights_table(self.weights.values())
        return (
            f"{self.table().html(caption=repr(self))}"
            f"<details><summary>{len(self.weights)} weights</summary>{weights.html(caption)}"
            "</details>"
        )
