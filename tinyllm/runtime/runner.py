"""`Runner`: the part of a model that generation and analysis use."""

from __future__ import annotations

import contextlib
import functools
import re
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, NoReturn, Self

import numpy as np
import numpy.typing as npt

from .. import _core
from ..architectures.adapters import adapted
from ..architectures.config import Config
from ..architectures.plan import ForwardPlan
from ..architectures.table import find
from ..base.checks import finite, index, integer
from ..base.numeric import Float32
from ..base.progress import Progress
from ..base.words import dir_without
from ..files.adapter import Adapter
from ..files.model_file import ModelFile
from ..tokenizer import Tokenizer
from ..trace.arena import Arena, Layout, Plan
from ..trace.taps import Capture, Taps, all_taps, select
from ..trace.trace import Context, Trace
from .machine import Memory
from .prompt import Rows, is_batch, token_ids
from .weights import Weights

if TYPE_CHECKING:
    from ..display.page import Page
    from ..trace.edit_program import Program, Sites

__all__ = ["Runner"]


def _is_per_prompt(edits: Any) -> bool:
    """Return whether edits are a list of lists, one for each prompt of a batch."""
    return (
        isinstance(edits, (list, tuple))
        and len(edits) > 0
        and all(isinstance(each, (list, tuple)) for each in edits)
    )


class Runner:
    """The base class of `tinyllm.Model`, which lower packages use to run a model.

    Attributes
    ----------
    config, steps, weights, metadata, tokenizer, threads, mode, cache, path, adapters, core
        See `tinyllm.Model`.
    device, device_layers
        The same.
    """

    mode = "exact"
    device: _core.Device | None = None
    device_layers: int | None = None
    adapters: tuple[tuple[Adapter, float], ...] = ()
    _base: Self | None = None  # the model without adapters
    __dir__ = dir_without(
        *("core", "layout", "need_logits", "page", "program", "run", "trace_ids", "with_adapters")
    )

    def __init__(
        self,
        core: _core.Model,
        file: ModelFile,
        config: Config,
        steps: ForwardPlan,
        tokenizer: Tokenizer | None,
        threads: int,
    ) -> None:
        self.core = core
        self.metadata, self.path = file.metadata, file.path
        self.config = config
        self.weights = Weights(file.weights, config.architecture, config.head_size)
        self.steps = steps
        self.tokenizer = tokenizer
        self.threads = threads
        self._layouts: dict[Hashable, Layout] = {}

    def __reduce__(self) -> NoReturn:
        where = "the bytes of its file" if self.path is None else f"its path, {self.path!r},"
        if self.adapters:
            where += " and the paths and scales of its adapters,"
        raise TypeError(
            "a Model cannot be pickled, because its weights belong to this process; send "
            f"{where} and call tl.load there. Processes that load a file share its memory"
        )

    def __copy__(self) -> Self:
        return self  # immutable

    def __deepcopy__(self, memo: object) -> Self:
        return self

    def with_adapter(self, adapter: Any, scale: float = 1.0) -> Self:
        """Return this model with a LoRA adapter. The two share their weights.

        The products with the adapter's matrices are steps of their own, whose values are taps: see
        ``docs/adapters.md``. Sessions of one model cannot be used with the other.

        Parameters
        ----------
        adapter : Adapter, str, os.PathLike or bytes-like
            An adapter, or the path or contents of its file.
        scale : float
            What the adapter's change is multiplied by, besides its own ``alpha / rank``.

        Returns
        -------
        Model
            With the adapters of this model, and this one after them.

        Raises
        ------
        tinyllm.FormatError
            If the file is no adapter, or the adapter belongs to another model. The message names a
            tensor and both shapes.
        tinyllm.UnsupportedError
            If it changes a tensor that no adapter can change here, or is of another kind.
        ValueError, TypeError
            If `scale` is not a finite number.
        OSError
            If the file cannot be read.

        Examples
        --------
        >>> import numpy as np
        >>> import tinyllm as tl
        >>> keys = {"general.type": "adapter", "general.architecture": "llama"}
        >>> keys |= {"adapter.type": "lora", "adapter.lora.alpha": 8.0}
        >>> name = "blk.0.attn_output.weight"
        >>> change = {f"{name}.lora_a": np.ones((2, 256), np.float32)}
        >>> change |= {f"{name}.lora_b": np.ones((256, 2), np.float32)}
        >>> tl.write_gguf("adapter.gguf", keys, change)
        >>> model = tl.load().with_adapter("adapter.gguf", 0.5)
        >>> trace = model.trace("ROMEO:", "blk.0.attn_output.*")
        >>> list(trace)[1:]
        ['blk.0.attn_output.lora_a', 'blk.0.attn_output.lora_b', 'blk.0.attn_output.lora']
        """
        return self.with_adapters([(adapter, scale)])

    def with_adapters(self, adapters: Iterable[tuple[Any, float]]) -> Self:
        """Return this model with several adapters: `with_adapter` for each of them.

        Parameters
        ----------
        adapters : iterable of (adapter, float)

        Returns
        -------
        Model
        """
        base = self._base or self
        found = [
            (given if isinstance(given, Adapter) else Adapter(given), finite("scale", scale))
            for given, scale in adapters
        ]
        every = (*self.adapters, *found)
        steps, weights = adapted(base.steps, base.config.architecture, base.weights, every)
        tensors = {**base.weights, **weights}
        core = _core.Model(
            steps.lowered(),
            tensors.values(),
            layers=base.config.layers,
            max_context=base.core.config["max_context"],
            fast=base.mode == "fast",
            cache=base.cache,
            device=base.device,
            device_layers=base.device_layers,
        )
        file = ModelFile(base.metadata, tensors, base.path)
        model = type(self)(core, file, base.config, steps, base.tokenizer, base.threads)
        model.mode, model.adapters, model._base = base.mode, every, base
        model.device, model.device_layers = base.device, base.device_layers
        return model

    @property
    def cache(self) -> str:
        """How sessions store keys and values: ``"f32"``, ``"f16"`` or ``"q8"``, as in `load`."""
        return self.core.cache

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
        *,
        watch: Callable[[], object] | None = None,
        arena: Arena | None = None,
    ) -> tuple[Float32, list[Trace]]:
        """Run tokens in several sessions together. `session` and `trace` are the simpler forms.

        Parameters
        ----------
        sessions : sequence of tinyllm._core.Session
        tokens : sequence of int32 arrays
            The tokens of each session.
        rows : sequence of int
            The rows whose logits are returned, in ascending order. Rows count over all sessions.
        layout : Layout, optional
            The taps to capture: see `layout`.
        edits : sequence of Sites
            The changes in each session, from `Program.sites`. Empty: no edits.
        first_layer, resid : int and array_like of float32, shape (T, D), optional
            Start at this layer with this residual stream, instead of the embedding.
        watch : callable, optional
            Called now and then during a long run, which ends if it raises.
        arena : Arena, optional
            Memory for `layout`, which the caller has made.

        Returns
        -------
        logits : numpy.ndarray of float32, shape (len(rows), V)
        traces : list of Trace
            One per session. Empty without `layout`.
        """
        lengths = [len(ids) for ids in tokens]
        starts = [len(session) for session in sessions]
        contexts = [a + b for a, b in zip(starts, lengths, strict=True)]
        if arena is None:
            arena = Arena(layout or self.layout([]), lengths, contexts)
        captures = arena.captures
        dispatch = None
        if any(edits):
            from ..trace.edit_program import Dispatcher

            dispatch = Dispatcher(edits, lengths)
            needed = self._needed(dispatch.edits, arena.layout)
            captures = captures + Arena(needed, lengths, contexts).captures
        with Progress(1.0, f"running {sum(lengths)} tokens", sum(lengths) > 1) as bar:

            def progress(done: float) -> None:
                if watch is not None:
                    watch()
                bar.to(done)

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
                progress=progress if bar.shown or watch is not None else None,
            )
        if layout is None:
            return logits, []
        return logits, [
            Trace(
                self.config,
                ids,
                self.pieces(ids),
                arena.views(i),
                start=starts[i],
                model=self,
                context=Context(session.tokens if starts[i] else ids, self.pieces),
            )
            for i, (ids, session) in enumerate(zip(tokens, sessions, strict=True))
        ]

    @functools.cached_property
    def taps(self) -> Taps:
        """Every tap of the model, in the order of the forward pass. It is shown as a table."""
        return Taps(all_taps(self.steps))

    def layout(self, capture: Capture) -> Layout:
        """Return the layout of a capture in memory. Layouts are cached.

        Parameters
        ----------
        capture : str, re.Pattern, callable, or sequence of str and re.Pattern, optional
            As for `trace`.

        Returns
        -------
        Layout
        """
        # The cache has each layout under the names of its taps, and under the argument as given.
        # A function has no key of its own, because its results may change.
        given: Hashable = None
        found = None
        if capture is None or isinstance(capture, (str, re.Pattern)):
            given = ("one", capture)
        elif isinstance(capture, (list, tuple)):
            given = ("several", *capture)
        with contextlib.suppress(TypeError):  # not hashable: `select` raises a better error
            found = self._layouts.get(given)
        if found is None:
            taps = select(self.taps, capture)
            key = ("several", *(tap.name for tap in taps))
            if len(self._layouts) > 64:
                self._layouts.clear()
            found = self._layouts.get(key) or Layout(taps)
            self._layouts[key] = found
            if given is not None:
                self._layouts[given] = found
        return found

    def _needed(self, edits: Sequence[int], captured: Layout) -> Layout:
        """Return the taps that the core must capture for these edits: see `_core.Model`."""
        needed = set()
        for number in edits:
            step = self.steps[number]
            if step.op == "scores":
                needed |= {number, number + 1}  # the core requires that softmax follows
            elif step.op == "softmax":
                needed |= {number - 1, number}
            elif number == len(self.steps) - 1:
                needed.add(number)
        names = [self.steps[number].tap for number in sorted(needed)]
        return self.layout([name for name in names if name not in captured.places])

    def program(self, edits: Any) -> Program | None:
        """Return edits, checked as far as possible without tokens, or None if there are none.

        Parameters
        ----------
        edits : Edit or sequence of Edit

        Returns
        -------
        tinyllm.trace.edit_program.Program or None
        """
        if isinstance(edits, (tuple, list)) and not edits:
            return None
        from ..trace.edit_program import Program

        return Program(self.taps, edits, self.core.config["max_context"])

    def page(self, trace: Trace) -> Page:
        """Return the page of a trace, for `Trace.html`. `Model` adds what takes analysis.

        Parameters
        ----------
        trace : Trace

        Returns
        -------
        tinyllm.display.page.Page
        """
        return trace.page()

    def pieces(self, ids: npt.NDArray[np.int32]) -> list[str]:
        """Return the text of each token, or its id as text if it has none.

        Bytes that are only a part of a character become ``<0xE7>`` and the like.
        """
        if self.tokenizer is None or not self.tokenizer.has_text:
            return [str(int(i)) for i in ids]
        known = len(self.tokenizer)
        text = self.tokenizer.pieces
        return [text([int(i)], "tinyllm.hex")[0] if i < known else f"[{int(i)}]" for i in ids]

    @functools.cached_property
    def fingerprint(self) -> str:
        """A hash of config, weights and adapters that identifies the model."""
        from ..architectures.fingerprint import fingerprint

        scales = [number for one, scale in self.adapters for number in (one.alpha, scale)]
        return fingerprint(self.config, self.weights, scales)

    def need_logits(self) -> None:
        """Raise ValueError if the model is an encoder, which has hidden states but no logits."""
        if not self.steps.roles("logits"):
            if find(self.config.architecture).decoder is not None:
                raise ValueError(
                    f"the architecture {self.config.architecture} is an encoder and a decoder, and "
                    "the model alone is the encoder, which has no logits; model.decoder(source) "
                    "gives the decoder for one source, and generate(source) runs both"
                )
            raise ValueError(
                f"the architecture {self.config.architecture} is an encoder: it has no logits, and "
                "nothing can be appended, because each token sees the later ones; use trace, "
                "hidden_states or embed"
            )

    def logits(self, prompt: Any, *, edits: Any = (), parse_special: bool = False) -> Any:
        """Return the logits after every token of a prompt.

        Parameters
        ----------
        prompt : str, bytes, ids, or a list of them
            The special tokens that the file specifies, such as BOS, are added to text. A list is
            a batch, as in `trace`.
        edits : Edit or sequence of Edit
            As for `trace`.
        parse_special : bool
            As for `trace`.

        Returns
        -------
        numpy.ndarray of float32, shape (T, V), or a list of them for a batch
            Row i has the scores of the token that follows token i.

        Raises
        ------
        ValueError
            If there are no tokens, an id is outside the vocabulary, or the tokens do not fit into
            the context.

        Examples
        --------
        >>> import tinyllm as tl
        >>> model = tl.load()
        >>> model.logits([1, 2, 3]).shape == (3, model.config.vocab_size)
        True
        """
        traces = self.trace(prompt, [], edits=edits, logits="all", parse_special=parse_special)
        return [trace.logits for trace in traces] if is_batch(prompt) else traces.logits

    def trace(
        self,
        prompt: Any,
        capture: Capture = None,
        *,
        edits: Any = (),
        logits: Any = None,
        parse_special: bool = False,
    ) -> Any:
        """Run a prompt and return its inner values.

        Parameters
        ----------
        prompt : str, bytes, ids, or a list of them
            A list of ints or a 1-D array is one prompt. A list of texts, lists or arrays, or a
            2-D array, is a batch. Prompts of a batch may differ in length. They run together
            without padding, and each has the same bits as if it ran alone.
        capture : str, re.Pattern, callable, or sequence of str and re.Pattern, optional
            The taps to capture: names (``"blk.0.attn_q"``), patterns (``"blk.*.resid_post"``,
            ``"*"``), regular expressions (as in ``re.search``), or a function of the name.
            Default: all taps except ``attn_scores`` and ``attn_probs``, whose size grows with the
            square of the context.
        edits : Edit or sequence of Edit
            Changes of inner values, applied in this order: see `tinyllm.trace.edits`. In a batch,
            they apply to each prompt; a list of lists has the edits of each prompt.
        logits : str or sequence of int, optional
            The logits in `Trace.logits`: ``"all"`` -> (T, V), ``"last"`` -> (V,), a list of n
            token indices -> (n, V). Default: the tap ``output``, if it is captured.
        parse_special : bool
            Whether the text of a special token in a prompt, such as ``"<|im_start|>"``, becomes
            that token. Use False for text from users. A text with such a token then causes a
            warning, once for each tokenizer.

        Returns
        -------
        Trace, or list of Trace for a batch

        Raises
        ------
        ValueError
            If no tap has a name (the message has the nearest names), a prompt cannot run, or an
            edit does not fit. Nothing has run then.
        IndexError
            If a token or head of an edit, or an index of `logits`, is out of range.
        MemoryError
            If the captured values do not fit into memory. The message has their size.

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
            token_ids(
                p,
                self.tokenizer,
                f"prompt {i}" if len(prompts) > 1 else "the prompt",
                parse_special,
            )
            for i, p in enumerate(prompts)
        ]
        program: Program | list[Program | None] | None = None
        if is_batch(prompt) and _is_per_prompt(edits):
            if len(edits) != len(prompts):
                raise ValueError(
                    f"edits has {len(edits)} lists and the batch {len(prompts)} prompts; expected "
                    "equal numbers"
                )
            program = [self.program(each) for each in edits]
        else:
            program = self.program(edits)
        traces = self.trace_ids(tokens, layout, program, logits)
        return traces if is_batch(prompt) else traces[0]

    def trace_ids(
        self,
        tokens: Sequence[npt.NDArray[np.int32]],
        layout: Layout,
        program: Program | Sequence[Program | None] | None = None,
        logits: Any = None,
        first_layer: int = 0,
        resid: npt.ArrayLike | None = None,
    ) -> list[Trace]:
        """Run new contexts together. `trace` and `run_from` are the simpler forms.

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
        if logits is not None:
            self.need_logits()
        wanted = [Rows(logits, len(ids)) for ids in tokens]
        rows: list[int] = []
        total = 0
        for ids, want in zip(tokens, wanted, strict=True):
            rows += [] if "output" in layout.places else [total + row for row in want.rows]
            total += len(ids)
        programs = program if isinstance(program, Sequence) else [program] * len(tokens)
        edits = [
            each.sites(0, len(ids), True) if each is not None else {}
            for each, ids in zip(programs, tokens, strict=True)
        ]
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

    def hidden_states(
        self, prompt: Any, *, normed: bool = False, edits: Any = (), parse_special: bool = False
    ) -> Any:
        """Return the residual stream before each block and after the last one.

        Parameters
        ----------
        prompt : str, bytes, ids, or a list of them
        normed : bool
            Whether the last entry has passed the final norm, as in Hugging Face's
            ``output_hidden_states``. By default it has not.
        edits : Edit or sequence of Edit
            As for `trace`.
        parse_special : bool
            As for `trace`.

        Returns
        -------
        numpy.ndarray of float32, shape (layers + 1, T, D), or a list of them for a batch
            Entry i is the input of block i, and the last entry is the output of the last block.

        Examples
        --------
        >>> import tinyllm as tl
        >>> model = tl.load()
        >>> len(model.hidden_states("ROMEO:")) == model.config.layers + 1
        True
        """
        last = f"blk.{self.config.layers - 1}.resid_post"
        if normed:
            last = next(iter(self.steps.roles("final_norm")), last)
        taps = ["blk.*.resid_pre", last]
        traces = self.trace(prompt, taps, edits=edits, parse_special=parse_special)
        batch = is_batch(prompt)
        states = [
            np.concatenate([trace.stack("blk.*.resid_pre"), trace[last][np.newaxis]])
            for trace in (traces if batch else [traces])
        ]
        return states if batch else states[0]

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
        """Run the blocks from `layer` on, starting from a residual stream instead of tokens.

        Parameters
        ----------
        layer : int
            The first block to run. The number of layers runs only the final norm and the output.
        resid : array_like of float32, shape (T, D)
            The input of that block. ``trace[f"blk.{layer}.resid_pre"]`` reproduces the rest of
            the traced run, bit for bit.
        capture, edits, logits
            As for `trace`. Only taps from `layer` on can be captured and edited.
        tokens : ids, optional
            Labels of the rows of the trace. No value depends on them.

        Returns
        -------
        Trace
            Without `tokens`, its ids are -1 and its pieces are positions.

        Raises
        ------
        ValueError
            If `resid` has another shape, or if a tap comes before `layer`.
        IndexError
            If `layer` is out of range.

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
        layer = index("layer", layer, layers, last=layers)
        stream = np.ascontiguousarray(resid, np.float32)
        if stream.ndim != 2 or stream.shape[1] != width or not len(stream):
            raise ValueError(f"resid has shape {stream.shape}; expected (tokens, {width})")
        labels = None if tokens is None else token_ids(tokens, self.tokenizer, "tokens")
        if labels is not None and len(labels) != len(stream):
            raise ValueError(f"tokens has {len(labels)} ids; expected {len(stream)}, as in resid")
        running = [tap for tap in self.taps if tap.layer >= layer]
        layout = self.layout([tap.name for tap in select(running, capture)])
        program = self.program(edits)
        for tap in program.taps.values() if program is not None else ():
            if tap.layer < layer:
                raise ValueError(f"an edit has tap {tap.name!r}; expected layer {layer} or later")
        ids = np.zeros(len(stream), np.int32)
        (trace,) = self.trace_ids([ids], layout, program, logits, layer, stream)
        if labels is None:
            unknown = np.full(len(stream), -1, np.int32)
            trace.relabel(unknown, [str(i) for i in range(len(stream))])
        else:
            trace.relabel(labels, self.pieces(labels))
        return trace

    def plan(self, prompt: Any, capture: Capture = None, *, parse_special: bool = False) -> Plan:
        """Return the shapes and bytes that `trace` would capture, without running the model.

        Parameters
        ----------
        prompt, capture, parse_special
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
        lengths = [len(token_ids(p, self.tokenizer, parse_special=parse_special)) for p in prompts]
        return self.layout(capture).plan(lengths)

    def memory(self, tokens: int | None = None) -> Memory:
        """Return the memory that the model and one session need, without running the model.

        Parameters
        ----------
        tokens : int, optional
            Length of the session. Default: the longest context that the model was loaded with.

        Returns
        -------
        Memory
            Sizes in bytes.

        Raises
        ------
        ValueError
            If `tokens` is less than 1 or more than the longest context.

        Examples
        --------
        >>> import tinyllm as tl
        >>> model = tl.load()
        >>> model.memory(256).cache < model.memory().cache
        True
        """
        count = self.core.config["max_context"] if tokens is None else integer("tokens", tokens)
        cache, workspace = self.core.memory(count, self.threads)
        weights = sum(weight.nbytes for weight in self.weights.values())
        return Memory(weights, cache, workspace, count, self.core.device_memory(count))

    @functools.cached_property
    def eog_ids(self) -> frozenset[int]:
        """Ids that end a generation.

        They include BOS for llama2.c models, because it separates the texts of their training data.
        """
        if self.tokenizer is None:
            return frozenset()
        ids = set(self.tokenizer.eog_ids)
        if self.metadata.get("tinyllm.source") == "llama2.c" and self.tokenizer.bos is not None:
            ids.add(self.tokenizer.bos)
        return frozenset(ids)
