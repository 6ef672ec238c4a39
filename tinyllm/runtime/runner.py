"""`Runner`: a model that runs, which is all that generation and analysis need of one."""

from __future__ import annotations

import contextlib
import functools
import re
from collections.abc import Hashable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from .. import _core
from ..architectures.config import Config
from ..architectures.fingerprint import fingerprint
from ..architectures.plan import ForwardPlan
from ..base.checks import index, integer
from ..base.numeric import Float32
from ..base.progress import Progress
from ..files.model_file import ModelFile
from ..tokenizer import Tokenizer
from ..trace.arena import Arena, Layout, Plan
from ..trace.taps import Capture, Tap, all_taps, select
from ..trace.trace import Trace
from .machine import Memory
from .prompt import Rows, is_batch, token_ids

if TYPE_CHECKING:
    from ..trace.edit_program import Program, Sites

__all__ = ["Runner"]


class Runner:
    """A model, ready to run: what `tinyllm.Model` offers to the packages below it.

    Attributes
    ----------
    config, steps, weights, metadata, tokenizer, threads, path, core
        See `tinyllm.Model`.
    """

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
        self.metadata, self.weights, self.path = file
        self.config = config
        self.steps = steps
        self.tokenizer = tokenizer
        self.threads = threads
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
    ) -> tuple[Float32, list[Trace]]:
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
            What to change in each session, as `Program.sites` gives it. Empty: nothing.
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
            from ..trace.edit_program import Dispatcher

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
        return tuple(all_taps(self.steps))

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
            found = self._layouts.get(key) or Layout(taps)
            self._layouts[key] = found
            if given is not None:
                self._layouts[given] = found
        return found

    def _needed(self, edits: Sequence[int], captured: Layout) -> Layout:
        """What an edited call must capture although nobody asked for it: see `_core.Model`."""
        needed = set()
        for number in edits:
            step = self.steps[number]
            if step.op == "scores":
                needed |= {number, number + 1}  # the softmax follows
            elif step.op == "softmax":
                needed |= {number - 1, number}
            elif number == len(self.steps) - 1:
                needed.add(number)
        names = [self.steps[number].tap for number in sorted(needed)]
        return self.layout([name for name in names if name not in captured.places])

    def program(self, edits: Any) -> Program | None:
        """Edits, checked as far as that goes without tokens; None if there are none.

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

    def pieces(self, ids: npt.NDArray[np.int32]) -> list[str]:
        """The text of each token; its number where there is no text."""
        if self.tokenizer is None:
            return [str(int(i)) for i in ids]
        known = len(self.tokenizer)
        return [self.tokenizer.pieces([int(i)])[0] if i < known else f"[{int(i)}]" for i in ids]

    @functools.cached_property
    def fingerprint(self) -> str:
        """Tells models apart: a hash over config and weights."""
        return fingerprint(self.config, self.weights)

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
        count = self.core.config["max_context"] if tokens is None else integer("tokens", tokens)
        cache, workspace = self.core.memory(count, self.threads)
        return Memory(sum(w.nbytes for w in self.weights.values()), cache, workspace, count)

    @functools.cached_property
    def eog_ids(self) -> frozenset[int]:
        """Ids that end a generation; for llama2.c BOS too, which parts the texts it trained on."""
        if self.tokenizer is None:
            return frozenset()
        ids = set(self.tokenizer.eog_ids)
        if self.metadata.get("tinyllm.source") == "llama2.c" and self.tokenizer.bos is not None:
            ids.add(self.tokenizer.bos)
        return frozenset(ids)
