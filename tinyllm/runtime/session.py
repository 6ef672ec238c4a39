"""`Session`: one context, to which tokens are appended step by step."""

from __future__ import annotations

import math
import os
import re
import weakref
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NoReturn, overload

import numpy as np
import numpy.typing as npt

from .. import _core
from ..architectures.plan import Step
from ..base.checks import ranged
from ..base.numeric import Float32, best, log_softmax
from ..base.units import size
from ..base.words import dir_without
from ..display.histogram import sample, spark, statistics
from ..display.table import Markup, Table, escape
from ..errors import FormatError
from ..trace.taps import Capture
from ..trace.trace import Trace
from .prompt import Prompt, Rows, token_ids
from .runner import Runner

if TYPE_CHECKING:
    from ..files.arrays import Array
    from ..trace.edits import Edit

__all__ = ["Session"]


class Session:
    """One context of a model: its tokens, their keys and values, and the states they led to.

    Only one thread at a time can use a session. A second thread gets a RuntimeError. A call that
    raises any exception, including KeyboardInterrupt, leaves the session unchanged.

    Attributes
    ----------
    model : Model
    logits : numpy.ndarray of float32 or None
        The logits of the last `eval`.

    Examples
    --------
    >>> import tinyllm as tl
    >>> session = tl.load().session()
    >>> _ = session.eval("ROMEO:")
    >>> session.rewind(1)
    >>> len(session) == len(session.tokens)
    True
    """

    __dir__ = dir_without("accept", "core", "expect", "keep", "lend", "ran", "share")

    def __init__(self, model: Runner, core: _core.Session | None = None) -> None:
        model.need_logits()
        self.model = model
        self._core = _core.Session(model.core) if core is None else core
        self._draft: int | None = None  # from this position on the core has tokens of a draft
        self._logits: tuple[int, Float32 | None] = (0, None)
        self._edits: list[tuple[object, ...]] = []  # that each token ran under
        self._shown = np.empty(0, np.int32)  # the tokens that traces hold; memory behind is free
        self._generation: Callable[[], Generator[Any, Any, Any] | None] = lambda: None

    @property
    def core(self) -> _core.Session:
        """The session of the core. Tokens of a draft are removed from it first."""
        if self._draft is not None:
            if len(self._core) > self._draft:
                self._core.rewind(self._draft)
            self._draft = None
        return self._core

    def expect(self, length: int) -> _core.Session:
        """Return the core for a call after which tokens from `length` on are a draft.

        They do not belong to the session until `accept` takes them over. However a generation
        ends, those that were not taken over do not count.
        """
        core = self.core
        self._draft = length
        return core

    def accept(self) -> bool:
        """Take over the first token of a draft; return False if the core does not have it now."""
        if self._draft is None or self._draft >= len(self._core):
            return False
        self._draft += 1
        self.ran(1)
        return True

    @property
    def tokens(self) -> list[int]:
        """The token ids in the context, as a new list."""
        ids: list[int] = self._core.tokens[: len(self)].tolist()
        return ids

    @property
    def logits(self) -> Float32 | None:
        """The logits of the last `eval`; None if tokens were added or forgotten since."""
        at, logits = self._logits
        return logits if at == len(self) else None

    def share(self, ids: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
        """Return an array equal to `ids` that shares memory with those of earlier calls.

        Traces of successive calls hold the tokens of their contexts. Each alone would have a copy
        of the beginning.
        """
        shown, n = self._shown, min(len(self._shown), len(ids))
        if not np.array_equal(shown[:n], ids[:n]):
            n = 0
        elif n == len(ids):
            return shown[:n]
        memory: Any = shown.base
        if n < len(shown) or memory is None or len(memory) < len(ids):
            memory, n = np.empty(2 * len(ids), np.int32), 0
        memory[n : len(ids)] = ids[n:]
        self._shown = memory[: len(ids)]
        self._shown.flags.writeable = False
        return self._shown

    def _ran_under(self) -> list[tuple[object, ...]]:
        """The edits that each token ran under.

        The core alone decides which tokens there are. If an interrupt kept a call from noting
        its edits, they are unknown, which is unlike any others.
        """
        n = len(self)
        del self._edits[n:]
        self._edits += [("unknown",)] * (n - len(self._edits))
        return self._edits

    @overload
    def eval(
        self,
        tokens: Any,
        logits: Any = "last",
        *,
        capture: None = None,
        edits: Any = (),
        parse_special: bool = False,
    ) -> Float32 | None: ...
    @overload
    def eval(
        self,
        tokens: Any,
        logits: Any = "last",
        *,
        capture: str | re.Pattern[str] | Callable[[str], object] | Sequence[str | re.Pattern[str]],
        edits: Any = (),
        parse_special: bool = False,
    ) -> Trace: ...
    def eval(
        self,
        tokens: Any,
        logits: Any = "last",
        *,
        capture: Capture = None,
        edits: Any = (),
        parse_special: bool = False,
    ) -> Float32 | Trace | None:
        """Append tokens to the context and run them.

        Parameters
        ----------
        tokens : str, bytes or ids
            At least one token. Special tokens that the file specifies, such as BOS, are added to
            text at the start of a context, and not to later text.
        logits : str or sequence of int
            The logits to return: ``"last"`` -> (V,), ``"all"`` -> (T, V), a list of n indices
            into these tokens (negative ones count from the end) -> (n, V), ``"none"`` -> None.
        capture : str, re.Pattern, callable, or sequence of str and re.Pattern, optional
            The taps to capture, as in `Model.trace`. Default: none.
        edits : Edit or sequence of Edit
            Changes of inner values: see `tinyllm.trace.edits`. Edited keys and values stay edited
            in the cache.
        parse_special : bool
            As for `Model.trace`.

        Returns
        -------
        numpy.ndarray of float32, or None
            The logits, which are also kept in `logits`. A row has the scores of the token that
            follows its token.
        Trace
            With `capture`, the trace of these tokens instead. `Trace.start` is the position of
            the first, and `Trace.logits` has the logits.

        Raises
        ------
        ValueError
            If there are no tokens, an id is outside the vocabulary, the context is full, or a tap
            is unknown.
        IndexError
            If an index of `logits` is out of range.
        RuntimeError
            If another thread is using the session.

        Examples
        --------
        >>> import tinyllm as tl
        >>> session = tl.load().session()
        >>> session.eval([1, 2, 3], logits="all").shape[0]
        3
        >>> session.eval([4, 5], capture="blk.0.attn_probs")["blk.0.attn_probs"].shape[1:]
        (2, 5)
        """
        self._check_free()
        model = self.model
        add_special = False if len(self) else None
        ids = token_ids(tokens, model.tokenizer, "tokens", parse_special, add_special)
        wanted = Rows(logits, len(ids))
        layout = None if capture is None else model.layout(capture)
        program = model.program(edits)
        sites = []
        if program is not None:
            sites = [program.sites(len(self), len(ids), False)]
        ran_under = self._ran_under()
        values, traces = model.run([self.core], [ids], wanted.rows, layout, sites)
        ran_under += [() if program is None else program.edits] * len(ids)
        taken = wanted.take(values)
        self._logits = len(self), taken
        if not traces:
            return taken
        traces[0].share_context(self.share)
        if taken is not None:
            traces[0].keep_logits(taken)
        return traces[0]

    def prompt(
        self, prompt: Prompt, logits: Any = "last", *, edits: Any = (), parse_special: bool = False
    ) -> Float32 | None:
        """Make the context that of a prompt, and run only what it does not have yet.

        The tokens that context and prompt have in common at the beginning stay, unless they ran
        under other edits. Those after them are removed. The results have the bits of a new session.

        Parameters
        ----------
        prompt : str, bytes or ids
            The whole context. The special tokens that the file specifies, such as BOS, are added
            to text.
        logits, edits, parse_special
            As for `eval`. `logits` counts the tokens that run, of which the last of the prompt is
            always one.

        Returns
        -------
        numpy.ndarray of float32, or None
            As from `eval`.

        Raises
        ------
        ValueError, IndexError, RuntimeError
            As from `eval`.

        Examples
        --------
        >>> import tinyllm as tl
        >>> session = tl.load().session()
        >>> _ = session.prompt([1, 2, 3, 4, 5])
        >>> session.prompt([1, 2, 3, 9, 8], logits="all").shape[0]
        2
        """
        self._check_free()
        ids = token_ids(prompt, self.model.tokenizer, "the prompt", parse_special)
        program = self.model.program(edits)
        self._forget(0)  # what is left of a draft
        fork = self.fork()  # if anything fails, the session stays as it is
        kept = fork.keep(ids.tolist(), () if program is None else program.edits)
        values: Float32 | None = fork.eval(ids[kept:], logits, edits=edits)
        # the tokens go after what belongs to them, as in `_forget`
        self._edits, self._logits = [], (-1, None)
        self._core = fork._core
        self._edits, self._logits = fork._edits, fork._logits
        return values

    def states(self) -> dict[str, Float32]:
        """Return copies of the states after the last token, of the blocks that have some.

        Returns
        -------
        dict of str to float32 array
            By the step that a state belongs to, with ``.state`` behind its name. Its shape follows
            from the op: short convolution (taps - 1, channels), the oldest token first; delta net
            (Hv, Dk, Dv); Mamba-2 (H, N, P); Mamba-1 (N, channels). Empty if no block has a state,
            or if the session has no tokens.

        Examples
        --------
        >>> import tinyllm as tl
        >>> session = tl.load().session()
        >>> session.states()  # attention keeps keys and values instead
        {}
        """
        found: dict[str, Float32] = {}
        if len(self) == 0:
            return found
        for number, shapes in enumerate(_caches(self.model, len(self))):
            for name, array in zip(shapes, self.core.cache(number), strict=True):
                if name.endswith(".state"):
                    found[name] = np.array(array, np.float32)
        return found

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the context with its keys, values and states to a file.

        `Model.session` reads it. Of a recurrent model, only the states after the last token are
        stored: a rewind of the session that is read runs all tokens before it again. Keys and
        values are float16 with ``cache="f16"``, and float32 otherwise; they lose nothing.

        Parameters
        ----------
        path : str or os.PathLike
            A name that ends in ``.safetensors`` or ``.npz``. An existing file is replaced when the
            new one is complete.

        Raises
        ------
        ValueError
            If `path` has another ending.
        OSError
            If the file cannot be written.

        Examples
        --------
        >>> import tinyllm as tl
        >>> model = tl.load()
        >>> session = model.session()
        >>> _ = session.eval("ROMEO:")
        >>> session.save("context.safetensors")
        >>> model.session("context.safetensors").tokens == session.tokens
        True
        """
        import json

        from ..files.arrays import write_arrays

        arrays: dict[str, Array] = {}
        for number, names in enumerate(_caches(self.model, len(self))):
            for name, array in zip(names, self.core.cache(number), strict=True):
                arrays[name] = array.astype(_stored_type(self.model, name))
        if self.logits is not None:
            arrays["logits"] = self.logits
        metadata = {
            "format": "tinyllm.session",
            "version": "1",
            "tokens": json.dumps(self.tokens),
            "fingerprint": self.model.fingerprint,
            "cache": self.model.cache,
        }
        edited = [i for i, edits in enumerate(self._ran_under()) if edits]
        if edited:
            metadata["edited_from"] = str(edited[0])
        write_arrays(path, arrays, metadata)

    @classmethod
    def load(cls, model: Runner, path: str | os.PathLike[str]) -> Session:
        """Return a session from a file that `save` wrote. `Model.session` is the public form.

        Parameters
        ----------
        model : Model
            The model of the session.
        path : str or os.PathLike

        Returns
        -------
        Session

        Raises
        ------
        tinyllm.FormatError
            If the file is not a session of this model, or is damaged.
        OSError
            If the file cannot be read.

        Examples
        --------
        >>> import tinyllm as tl
        >>> model = tl.load()
        >>> session = model.session()
        >>> _ = session.eval("ROMEO:")
        >>> session.save("context.npz")
        >>> tl.Session.load(model, "context.npz").tokens == session.tokens
        True
        """
        from ..files.arrays import bad_field, check_format, read_arrays, read_token_ids

        arrays, metadata = read_arrays(path)
        session, config = cls(model), model.config
        try:
            check_format(metadata, "tinyllm.session")
            if metadata.get("fingerprint") != model.fingerprint:
                raise bad_field(
                    "fingerprint",
                    metadata.get("fingerprint"),
                    f"{model.fingerprint!r}: the session belongs to another model",
                )
            cache = metadata.get("cache", "f32")
            if cache != model.cache:
                raise bad_field(
                    "cache",
                    cache,
                    f"{model.cache!r}, as in the model; load the model with cache={cache!r:.20}",
                )
            tokens = read_token_ids(metadata)
            n, limit = len(tokens), model.core.config["max_context"]
            if n > limit:
                raise bad_field("tokens", f"{n} ids", f"at most {limit}, the context length")
            if (tokens < 0).any() or (tokens >= config.vocab_size).any():
                raise bad_field("tokens", tokens.tolist(), f"ids below {config.vocab_size}")
            layers = _cached(model, arrays, n)
            logits = arrays.get("logits")
            if logits is not None and (
                logits.dtype != np.float32
                or logits.ndim not in (1, 2)
                or logits.shape[-1] != config.vocab_size
            ):
                raise bad_field(
                    "logits",
                    f"{logits.dtype} {logits.shape}",
                    f"float32, (..., {config.vocab_size})",
                )
            if n:
                session.core.fill(tokens, layers)
            session._edits = _saved_edits(metadata.get("edited_from"), n)
            session._logits = n, None if logits is None else np.array(logits)
        except FormatError as error:
            error.path = os.fsdecode(path)
            raise
        return session

    def ran(self, tokens: int, edits: Sequence[Edit] = ()) -> None:
        """Note that the last tokens ran in `core` under these edits: for generation."""
        del self._edits[len(self) - tokens :]
        self._ran_under()[len(self) - tokens :] = [tuple(edits)] * tokens

    def lend(self, generation: weakref.ref[Generator[Any, Any, Any]]) -> None:
        """Reserve the session for a generator. Until the generator ends nobody else may change it.

        There is nothing to give back, which an interrupt could prevent.

        Parameters
        ----------
        generation : weakref.ref
            A reference to the generator.

        Raises
        ------
        RuntimeError
            If it is reserved for another one.
        """
        self._check_free()
        self._generation = generation

    def _check_free(self) -> None:
        generation = self._generation()
        frame = getattr(generation, "gi_frame", None)  # None after its end, however it ended
        if frame is not None:
            raise RuntimeError(
                "the session belongs to a generation that has not ended; finish it, call its "
                "close(), or use session.fork()"
            )

    def keep(self, ids: Sequence[int], edits: Sequence[Edit] = ()) -> int:
        """Keep only the tokens that the context shares with the beginning of `ids`.

        A token that ran under other edits is not shared: its keys and values differ.

        The last token of `ids` is never kept, so that it can run again for its logits. A model
        with a recurrent state may keep fewer tokens than are shared: see `rewind`.

        Parameters
        ----------
        ids : sequence of int

        Returns
        -------
        int
            The number n of tokens that were kept. ``ids[n:]`` must still run.

        Examples
        --------
        >>> import tinyllm as tl
        >>> session = tl.load().session()
        >>> _ = session.eval([1, 2, 3, 4])
        >>> session.keep([1, 2, 5]), session.tokens
        (2, [1, 2])
        """
        n = 0
        wanted = tuple(edits)
        for mine, ran_under, theirs in zip(self.tokens, self._ran_under(), ids[:-1], strict=False):
            if mine != theirs or ran_under != wanted:
                break
            n += 1
        return self._forget(len(self) - n)

    def rewind(self, n: int) -> None:
        """Remove the last `n` tokens from the context.

        A recurrent state, such as that of a gated delta net, cannot be taken back by some tokens.
        So the session keeps a copy of its states at the last multiple of 256 tokens. A rewind goes
        back to it, or to the beginning if that copy is too late, and runs the tokens up to the
        wanted length again. The results have the same bits.

        Parameters
        ----------
        n : int
            0 to ``len(self)``.

        Raises
        ------
        ValueError
            If `n` is out of range, or if tokens that ran with edits would have to run again.

        Examples
        --------
        >>> import tinyllm as tl
        >>> session = tl.load().session()
        >>> _ = session.eval([1, 2, 3])
        >>> session.rewind(2)
        >>> session.tokens
        [1]
        """
        self._check_free()
        n = ranged("n", n, 0, len(self), "the tokens so far")
        if self.model.steps.recurrent and 0 < n < len(self):
            self._go_back(len(self) - n)
        else:
            self._forget(n)

    def _forget(self, n: int) -> int:
        """Remove at least `n` tokens, and return how many are left."""
        if n:
            self._logits = -1, None
        # The edits go before the tokens: if an interrupt comes between, they are unknown, and the
        # tokens that come next do not inherit them.
        edits, self._edits = self._edits, []
        kept = self.core.rewind(len(self) - n)
        self._edits = edits[:kept]
        return kept

    def _go_back(self, length: int) -> None:
        """Keep `length` tokens. Those after the states that are known run again."""
        core = self.core.fork()  # if anything fails, the session stays as it is
        kept = core.rewind(length)
        again = self.core.tokens[kept:length]
        if any(self._ran_under()[kept:length]):
            raise ValueError(
                f"n is {len(self) - length}; the tokens {kept} to {length - 1} would have to run "
                "again, and some of them ran with edits. Expected a number that leaves no such "
                f"tokens, for example {len(self) - kept}"
            )
        if len(again):
            self.model.run([core], [again], [])
        self._logits = -1, None
        del self._edits[length:]  # before the tokens, as in `_forget`
        self._core = core

    def reset(self) -> None:
        """Remove all tokens from the context.

        Examples
        --------
        >>> import tinyllm as tl
        >>> session = tl.load().session()
        >>> _ = session.eval([1, 2, 3])
        >>> session.reset()
        >>> len(session)
        0
        """
        self.rewind(len(self))

    def fork(self) -> Session:
        """Return a second session with the same context.

        Returns
        -------
        Session
            It shares memory with this session until one of them gets more tokens.

        Examples
        --------
        >>> import tinyllm as tl
        >>> session = tl.load().session()
        >>> _ = session.eval([1, 2, 3])
        >>> session.fork().tokens
        [1, 2, 3]
        """
        core = self._core.fork()
        if len(core) > len(self):  # the rest is the draft of a generation, which goes on
            core.rewind(len(self))
        fork = Session(self.model, core)
        fork._edits = list(self._ran_under())
        fork._logits = self._logits
        return fork

    def __copy__(self) -> Session:
        return self.fork()

    def __deepcopy__(self, memo: object) -> Session:
        return self.fork()

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "a Session cannot be pickled, because its model belongs to this process; "
            "Session.save writes it to a file, which Model.session reads"
        )

    def __len__(self) -> int:
        """Return the number of tokens in the context."""
        length = len(self._core)
        return length if self._draft is None else min(length, self._draft)

    def table(self) -> Table:
        """Return a table of the context: tokens, text, memory, and the most likely next tokens.

        Returns
        -------
        Table

        Examples
        --------
        >>> import tinyllm as tl
        >>> session = tl.load().session()
        >>> _ = session.eval("ROMEO:")
        >>> print(session.table())  # doctest: +ELLIPSIS
        what...
        """
        config, n = self.model.config, len(self)
        limit = self.model.core.config["max_context"]
        kinds: dict[str, dict[tuple[int, ...], int]] = {}  # how many arrays have each shape
        for cache in _caches(self.model, n):
            for name, shape in cache.items():
                shapes = kinds.setdefault(name.rsplit(".", 1)[1], {})
                shapes[shape] = shapes.get(shape, 0) + 1
        text = self._text(self.tokens[-64:])
        rows: list[tuple[str, str]] = [
            ("tokens", f"{n:,} of {limit:,}"),
            ("text", f"...{text}" if n > 64 else text),
            ("kv cache", self._memory()),
        ]
        for kind, shapes in kinds.items():
            each = [f"{shape} in {count} layers" for shape, count in shapes.items()]
            rows.append((kind, ", ".join(each)))
        if self.logits is not None and self.logits.size:
            values = sample(self.logits.reshape(-1, config.vocab_size)[-1], config.vocab_size)
            names = ("mean", "rms", "min", "max")
            numbers = map(" ".join, zip(names, statistics(values), strict=True))
            told = ", ".join(numbers) if values.size else "no finite values"
            plain = f"{self.logits.shape}, of the last: {told}"
            shown = Markup(f"{escape(plain)} {spark(values)}")
            shown.plain = plain
            rows += [("logits", shown), ("next", self._likely())]
        return Table(("what", "value"), rows)

    def _text(self, ids: Sequence[int]) -> str:
        tokenizer = self.model.tokenizer
        if tokenizer is None or not tokenizer.has_text or max(ids, default=0) >= len(tokenizer):
            return "".join(self._pieces(ids))
        return b"".join(tokenizer.pieces_bytes(ids)).decode(errors="replace")

    def _pieces(self, ids: Sequence[int]) -> list[str]:
        return self.model.pieces(np.asarray(ids, np.int32))

    def _likely(self, count: int = 5) -> str:
        """Return the most likely next tokens and their probabilities, as text."""
        assert self.logits is not None
        logprobs = log_softmax(self.logits.reshape(-1, self.model.config.vocab_size)[-1])
        ids = best(logprobs, count).tolist()
        return ", ".join(
            f"{piece!r} {100 * np.exp(logprobs[i]):.1f} %"
            for i, piece in zip(ids, self._pieces(ids), strict=True)
        )

    def __repr__(self) -> str:
        """Return the number of tokens and the memory of the cache."""
        return f"<tinyllm.Session: {len(self)} tokens, kv cache {self._memory()}>"

    def _memory(self) -> str:
        """Return the memory of the cache, with its type if that is not float32."""
        cache = self.model.cache
        return size(self._core.nbytes) + ("" if cache == "f32" else f" ({cache})")

    def _repr_html_(self) -> str:
        return self.table().html(caption=repr(self))


def _saved_edits(start: str | None, n: int) -> list[tuple[object, ...]]:
    """Edits of a saved session: a file only tells from which token on they were in effect."""
    from ..files.arrays import bad_field

    if start is None:
        return [()] * n
    if not (start.isascii() and start.isdigit() and len(start) < 12 and int(start) < n):
        raise bad_field("edited_from", start, f"the number of one of the {n} tokens")
    return [()] * int(start) + [("edits of a saved session",)] * (n - int(start))


def _caches(model: Runner, n: int) -> list[dict[str, tuple[int, ...]]]:
    """Return the names and shapes of the arrays that each cache holds for `n` tokens."""
    caches: list[dict[str, tuple[int, ...]]] = []
    for step in model.steps.caches:
        reads = [model.steps[read].shape for read in step.reads]
        if step.op == "cache":
            block = f"blk.{step.layer}"
            caches.append({f"{block}.keys": (n, *reads[0]), f"{block}.values": (n, *reads[1])})
        else:
            caches.append({f"{step.tap}.state": _state_shape(step, reads)})
    return caches


def _state_shape(step: Step, reads: list[tuple[int, ...]]) -> tuple[int, ...]:
    """Return the shape of the state of a step, from the shapes of what it reads."""
    if step.op == "conv":
        return int(step.number("taps")) - 1, math.prod(step.shape)
    if step.op == "shift":
        return reads[0]
    if step.op == "scan_channels":
        return reads[2][-1], *step.shape
    heads, size = step.shape
    return heads, reads[2 if step.op == "scan" else 1][-1], size


def _stored_type(model: Runner, name: str) -> np.dtype[Any]:
    """Return the type of an array in a file. It holds what the cache holds, exactly."""
    half = model.cache == "f16" and not name.endswith(".state")
    return np.dtype(np.float16 if half else np.float32)


def _cached(model: Runner, arrays: Mapping[str, Array], n: int) -> list[tuple[Float32, ...]]:
    """Return the arrays of each cache for `n` tokens, checked, from a file."""
    from ..files.arrays import bad_field

    caches = []
    for shapes in _caches(model, n):
        found = []
        for name, shape in shapes.items():
            if name not in arrays:
                raise bad_field(name, "missing", "an array")
            array = arrays[name]
            stored = _stored_type(model, name)
            if array.shape != shape or array.dtype != stored:
                raise bad_field(name, f"{array.dtype} {array.shape}", f"{stored} {shape}")
            found.append(array.astype(np.float32))
        caches.append(tuple(found))
    return caches
