"""`Trace`: the inner values of a run, by name, as NumPy arrays."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, Self

import numpy as np
import numpy.typing as npt

from .._core import Weight
from ..architectures.adapters import merged_matrix
from ..architectures.config import Config
from ..architectures.plan import ForwardPlan
from ..base.checks import index, ranged
from ..base.numeric import Float32, Float64
from ..base.progress import notebook
from ..base.units import size
from ..base.words import dir_without, getattr_of
from ..display.histogram import sample, statistics
from ..display.page import Page, frame, largest_neurons
from ..display.table import Table
from ..display.taps import taps_html
from .arena import Copies, Views, own
from .dialects import hint, table_names, translate
from .taps import ALIASES, Capture, is_matrix, match, unknown

__all__ = ["Context", "Source", "Trace"]


class Source(Protocol):
    """The attributes of a model that traces use. `tinyllm.Model` has them."""

    config: Config
    steps: ForwardPlan
    mode: str

    @property
    def weights(self) -> Mapping[str, Weight]:
        """As in `tinyllm.Model`."""

    @property
    def fingerprint(self) -> str:
        """A hash of config and weights that identifies the model."""

    def pieces(self, ids: npt.NDArray[np.int32]) -> list[str]:
        """Return the text of each token."""

    def page(self, trace: Trace) -> Page:
        """Return the page of a trace, with what takes the weights of the model."""


#: Roles of the residual stream and of its summands, whose norms are shown.
STREAM_ROLES = ("resid_post", "attn_add", "ffn_add")


class Context:
    """The tokens of a whole context, which a trace and its slices share.

    Parameters
    ----------
    ids : numpy.ndarray of int32, shape (S,)
        -1 stands for a token that is not known.
    texts : list of str or callable
        The texts of the tokens, or a function that returns the texts of ids.
    """

    def __init__(
        self,
        ids: npt.NDArray[np.int32],
        texts: list[str] | Callable[[npt.NDArray[np.int32]], list[str]],
    ) -> None:
        self.ids = ids
        self.texts = texts

    def pieces(self, start: int, stop: int) -> list[str]:
        """Return the texts of some of the tokens. Unknown tokens have none."""
        if isinstance(self.texts, list):
            return self.texts[start:stop]
        ids = self.ids[start:stop]
        known = iter(self.texts(ids[ids >= 0]))
        return [next(known) if i >= 0 else "" for i in ids]


class _Cut(Mapping[str, Float32]):
    """The arrays of a slice of the tokens, sliced on access."""

    def __init__(
        self, whole: Mapping[str, Float32], key: slice, context: int | None = None
    ) -> None:
        self._whole = whole
        self._key = key
        self._columns = slice(context)  # of attention matrices

    def __getitem__(self, name: str) -> Float32:
        return self._cut(name, self._whole[name])

    def _cut(self, name: str, array: Float32) -> Float32:
        return array[:, self._key, self._columns] if is_matrix(name) else array[self._key]

    def look(self, name: str) -> Float32:
        """As `tinyllm.trace.arena.Views.look`."""
        return self._cut(name, look(self._whole, name))

    def __iter__(self) -> Iterator[str]:
        return iter(self._whole)

    def __len__(self) -> int:
        return len(self._whole)

    def __contains__(self, name: object) -> bool:
        return name in self._whole

    @property
    def roles(self) -> Mapping[str, Sequence[str]]:
        """As `tinyllm.trace.arena.Views.roles`."""
        return roles_of(self._whole)

    def stack(self, names: Sequence[str]) -> Float32 | None:
        """As `tinyllm.trace.arena.Views.stack`."""
        stack = _stack(self._whole, names)
        if stack is None:
            return None
        if is_matrix(names[0]):
            return stack[:, :, self._key, self._columns]
        return stack[:, self._key]


def roles_of(arrays: Mapping[str, Float32]) -> Mapping[str, Sequence[str]]:
    """Return the roles of the values by name. The mapping is empty if they are unknown."""
    roles: Mapping[str, Sequence[str]] = getattr(arrays, "roles", {})
    return roles


def look(arrays: Mapping[str, Float32], name: str) -> Float32:
    """Return an array for a use that keeps nothing of it. It may share memory with others."""
    return arrays.look(name) if isinstance(arrays, (Views, _Cut)) else arrays[name]


def _stack(arrays: Mapping[str, Float32], names: Sequence[str]) -> Float32 | None:
    return arrays.stack(names) if isinstance(arrays, (Views, _Cut)) else None


class Trace(Mapping[str, Float32]):
    """The inner values of one run: a read-only mapping from tap name to array.

    Arrays are float32 and read-only. They stay valid after the trace and the model are deleted.
    An array of at most 1 MiB has memory of its own. A larger one, and a `stack`, is a view of a
    block that has this value in all layers, and in all prompts of a batch. It keeps the block
    alive. `copy` and `compact` give the values that are kept memory of their own. Traces can be
    pickled; then they have no model, as those from files.

    A slice selects tokens: ``trace[10:20]`` is a trace of tokens 10 to 19. Values are those after
    edits.

    The rows of an array are the tokens of the call. The columns of ``attn_scores`` and
    ``attn_probs`` are the tokens of the whole context: `context` has their ids, and
    `context_pieces` their texts. Row i is column ``positions[i]``.

    Attributes
    ----------
    tokens : numpy.ndarray of int32, shape (T,)
        The token ids of the call.
    pieces : list of str
        The texts of the tokens, or their ids as text if the model has no tokenizer. Bytes that are
        only a part of a character are shown as ``<0xE7>``.
    config : Config
        The config of the model.
    start : int
        Position of the first token in its context.
    context : numpy.ndarray of int32, shape (S,)
        The token ids of the whole context: those before the call, and those of the call. -1
        stands for a token that is not known, as in files of older versions.
    model : Model or None
        The model that ran. None if the trace was read from a file.
    fingerprint : str or None
        `Model.fingerprint` of the model.

    Examples
    --------
    >>> import tinyllm
    >>> t = tinyllm.load().trace("ROMEO:", capture=["blk.0.attn_probs", "output"])
    >>> t["blk.0.attn_probs"].shape == (t.config.layer("heads", 0), len(t.tokens), len(t.tokens))
    True
    >>> list(t)
    ['blk.0.attn_probs', 'output']
    """

    __dir__ = dir_without("alone", "keep_logits", "relabel", "share_context", "source", "start")

    def __init__(
        self,
        config: Config,
        tokens: npt.NDArray[np.int32],
        pieces: list[str],
        arrays: Mapping[str, Float32],
        *,
        start: int = 0,
        model: Source | None = None,
        fingerprint: str | None = None,
        logits: Float32 | None = None,
        context: Context | None = None,
    ) -> None:
        self.config = config
        self.tokens = tokens
        self.pieces = pieces
        self.start = start
        self.model = model
        self._fingerprint = fingerprint
        self._arrays = arrays
        self._logits = logits
        if context is None:  # nothing is known about tokens before the call
            ids = np.concatenate([np.full(start, -1, np.int32), tokens])
            context = Context(ids, [""] * start + pieces)
        self._context = context

    @property
    def context(self) -> npt.NDArray[np.int32]:  # noqa: D102 (see Attributes)
        return self._context.ids

    @property
    def context_pieces(self) -> list[str]:
        """The texts of the tokens of the whole context, ``""`` where they are not known."""
        stop = self.start + len(self.tokens)
        return [
            *self._context.pieces(0, self.start),
            *self.pieces,
            *self._context.pieces(stop, len(self.context)),
        ]

    @property
    def positions(self) -> npt.NDArray[np.int64]:
        """The positions of the tokens in their context, shape (T,)."""
        return np.arange(self.start, self.start + len(self.tokens))

    @property
    def fingerprint(self) -> str | None:  # noqa: D102 (see Attributes)
        return self._fingerprint if self.model is None else self.model.fingerprint

    @property
    def logits(self) -> Float32:
        """The logits that ``logits=`` selected, or all of them if ``output`` was captured.

        Raises
        ------
        AttributeError
            If the run kept no logits.
        """
        if self._logits is not None:
            return self._logits
        if "output" in self._arrays:
            return self._arrays["output"]
        raise AttributeError(
            "this trace has no logits; ask for them with logits='all' or capture 'output'"
        )

    if not TYPE_CHECKING:
        __getattr__ = getattr_of("Trace")

    def keep_logits(self, logits: Float32 | None) -> None:
        """Set `logits`. For the code that ran the model."""
        self._logits = logits

    def relabel(self, tokens: npt.NDArray[np.int32], pieces: list[str]) -> None:
        """Set the tokens of a whole context, and their texts. For the code that ran the model."""
        self.tokens, self.pieces = tokens, pieces
        self._context = Context(tokens, pieces)

    def alone(self, i: int) -> Trace:
        """Return the trace of token i as if no later token had run with it.

        For the code that ran the model.
        """
        found, stop = self._slice(slice(i, i + 1)), self.start + i + 1
        found._arrays = _Cut(self._arrays, slice(i, i + 1), stop)
        found._context = Context(self.context[:stop], self._context.texts)
        return found

    def share_context(self, share: Callable[[npt.NDArray[np.int32]], Any]) -> None:
        """Replace the memory of `context` by equal memory. For the code that ran the model."""
        self._context.ids = share(self._context.ids)

    def __getitem__(self, key: Any) -> Any:
        """Return the array of a tap, or the trace of a slice of tokens."""
        if isinstance(key, slice):
            return self._slice(key)
        if not isinstance(key, str):
            reason = hint(key, self._names()) if isinstance(key, tuple) else ""
            raise TypeError(
                f"key is {key!r}; expected the name of a tap or a slice of tokens"
                + (reason and f"; {reason}")
            )
        try:
            return self._arrays[ALIASES.get(key, key)]
        except KeyError:
            raise KeyError(self._why_not(key)) from None

    def _why_not(self, key: str) -> str:
        """Return the message for a missing tap: the model has none, or it was not captured."""
        names = self._names()
        again = "run again with it in capture=, or with capture='*'"
        if self.model is None:
            again = "the file does not have it"
        if ALIASES.get(key, key) in names:
            return f"{key!r} was not captured; {again}"
        found = [each.ours for each in translate(key, names)]
        if found and "*" not in found[0] and not any(name in self._arrays for name in found):
            return f"{unknown(key, names)}, and was not captured; {again}"
        return unknown(key, self._arrays if self.model is None and not hint(key, names) else names)

    def _names(self) -> list[str]:
        """Return the names of the model's taps. A file does not tell; then those of the table."""
        if self.model is None:
            return [*self._arrays, *table_names(self.config.layers)]
        return [step.tap for step in self.model.steps if step.visible]

    def __iter__(self) -> Iterator[str]:
        """Iterate over the names of the captured taps, in the order of the forward pass."""
        return iter(self._arrays)

    def __len__(self) -> int:
        """Return the number of captured taps."""
        return len(self._arrays)

    def __contains__(self, name: object) -> bool:
        """Return whether a tap was captured."""
        return isinstance(name, str) and ALIASES.get(name, name) in self._arrays

    # Traces compare by identity. A comparison of their arrays would need a tolerance.
    __eq__ = object.__eq__
    __hash__ = object.__hash__

    def _slice(self, key: slice) -> Trace:
        first, _, step = key.indices(len(self.tokens))
        if step != 1:
            raise ValueError(f"the step of the slice is {step}; expected 1")
        return Trace(
            self.config,
            self.tokens[key],
            self.pieces[key],
            _Cut(self._arrays, key),
            start=self.start + first,
            model=self.model,
            fingerprint=self._fingerprint,
            context=self._context,
        )

    @property
    def nbytes(self) -> int:
        """The size of all arrays in bytes."""
        return sum(look(self._arrays, name).nbytes for name in self._arrays)

    def names(self, pattern: Capture = "*") -> list[str]:
        """Return the captured names that match a pattern.

        Parameters
        ----------
        pattern : str, re.Pattern, callable or sequence of them
            As in ``capture=``.

        Returns
        -------
        list of str
            Empty if no name matches.

        Examples
        --------
        >>> import tinyllm
        >>> tinyllm.load().trace("ROMEO:", capture="blk.0.*").names("*resid*")
        ['blk.0.resid_pre', 'blk.0.resid_mid', 'blk.0.resid_post']
        """
        try:
            return match(list(self._arrays), pattern, "pattern")
        except ValueError:
            return []

    def by_role(self, role: str) -> list[str]:
        """Return the captured taps with a role. Their names depend on the architecture.

        Parameters
        ----------
        role : str
            A role of `ForwardPlan.role`, such as ``"attn_add"``, what attention adds to the
            residual stream.

        Returns
        -------
        list of str
            From the first block to the last. May be empty.

        Examples
        --------
        >>> import tinyllm
        >>> tinyllm.load().trace("ROMEO:", capture="blk.0.*").by_role("ffn_input")
        ['blk.0.ffn_norm']
        """
        roles = roles_of(self._arrays)
        return [name for name in self._arrays if role in roles.get(name, ())]

    def stream_norms(self) -> dict[str, tuple[list[int], list[Float64]]]:
        """Return how large the residual stream is, and what each branch adds to it.

        Returns
        -------
        dict of str to (list of int, list of float64 arrays)
            By the family of the tap, ``"resid_post"``: the blocks where it was captured, and for
            each the Euclidean norms, shape (T,).

        Examples
        --------
        >>> import tinyllm
        >>> list(tinyllm.load().trace("ROMEO:").stream_norms())
        ['resid_post', 'attn_output', 'ffn_down']
        """
        norms = {}
        for role in STREAM_ROLES:
            found = self.by_role(role)
            if found:
                rows = [np.linalg.norm(self[name].astype(np.float64), axis=1) for name in found]
                norms[found[0].split(".", 2)[2]] = ([int(n.split(".")[1]) for n in found], rows)
        return norms

    def stack(self, pattern: Capture) -> Float32:
        """Return the arrays of all matching taps as one array, whose first axis is the layer.

        Parameters
        ----------
        pattern : str, re.Pattern, callable or sequence of them
            For example ``"blk.*.resid_post"``.

        Returns
        -------
        numpy.ndarray of float32, shape (layers, T, ...)
            For (H, T, S) arrays, (layers, H, T, S). If the pattern matches one tap in all
            captured layers, this is a view; otherwise it is a copy.

        Raises
        ------
        ValueError
            If no tap matches, or if the shapes differ.

        Examples
        --------
        >>> import tinyllm
        >>> t = tinyllm.load().trace("ROMEO:")
        >>> t.stack("blk.*.resid_post").shape == (t.config.layers, len(t.tokens), t.config.width)
        True
        """
        names = match(list(self._arrays), pattern, "pattern")
        if not names:
            raise ValueError(f"pattern is {pattern!r}; expected one that matches captured taps")
        stack = _stack(self._arrays, names)
        if stack is not None:
            return stack
        arrays = [self._arrays[name] for name in names]
        shapes = sorted({array.shape for array in arrays})
        if len(shapes) > 1:
            raise ValueError(
                f"pattern {pattern!r} matches taps of shapes {shapes}; expected equal shapes"
            )
        stacked = np.stack(arrays)
        stacked.flags.writeable = False
        return stacked

    # ---- memory and processes ----

    def copy(self, names: Capture = "*") -> Trace:
        """Return a trace of some values, with memory of its own.

        The values that are not copied can be freed with the first trace.

        Parameters
        ----------
        names : str, re.Pattern, callable or sequence of them
            Captured taps, as in ``capture=``.

        Returns
        -------
        Trace

        Raises
        ------
        ValueError
            If a name or pattern matches nothing.

        Examples
        --------
        >>> import tinyllm as tl
        >>> kept = [tl.load().trace(text)[-1:].copy("output") for text in ("ROMEO:", "JULIET:")]
        >>> [t["output"].shape == (1, t.config.vocab_size) for t in kept]
        [True, True]
        """
        chosen = list(self._arrays)
        if names != "*":
            chosen = match(chosen, names, "names")
        copied = self.__copy__()
        arrays = {name: own(look(self._arrays, name)) for name in chosen}
        copied._arrays = Copies(arrays, roles_of(self._arrays))
        copied._logits = None if self._logits is None else own(self._logits)
        copied._context = Context(self.context.copy(), self.context_pieces)
        return copied

    def compact(self) -> None:
        """Give the values of this trace memory of their own.

        A slice, or the trace of one prompt of a batch, then keeps no values of the other tokens or
        prompts alive. Arrays that were taken before stay as they were.

        Examples
        --------
        >>> import tinyllm as tl
        >>> t = tl.load().trace(["ROMEO:", "JULIET:"])[0]
        >>> t.compact()
        >>> t["output"].base is None
        True
        """
        compacted = self.copy()
        self._arrays, self._logits = compacted._arrays, compacted._logits
        self._context = compacted._context

    def __copy__(self) -> Self:
        copied = object.__new__(type(self))
        vars(copied).update(vars(self))
        return copied

    def __deepcopy__(self, memo: object) -> Trace:
        copied = self.copy()
        copied.tokens, copied.pieces = self.tokens.copy(), list(self.pieces)
        return copied

    def __reduce__(self) -> tuple[Callable[..., Trace], tuple[dict[str, Any]]]:
        """Pickle the values and labels, without the model."""
        return _unpickled, (
            {
                "config": self.config,
                "tokens": self.tokens,
                "pieces": self.pieces,
                "arrays": {name: look(self._arrays, name) for name in self._arrays},
                "roles": {name: tuple(roles) for name, roles in roles_of(self._arrays).items()},
                "start": self.start,
                "fingerprint": self.fingerprint,
                "logits": self._logits,
                "context": self.context,
                "context_pieces": self.context_pieces,
            },
        )

    # ---- analysis and files ----

    def head_outputs(self, layer: int, *, model: Source | None = None) -> Float32:
        """Return what each head of a layer adds to the residual stream.

        Parameters
        ----------
        layer : int
        model : Model, optional
            The model of a trace that was read from a file.

        Returns
        -------
        numpy.ndarray of float32, shape (T, H, D)
            The sum over H, plus ``attn_output.bias`` if there is one, is the tap ``attn_output``
            up to rounding. Elhage et al. 2021, "A Mathematical Framework for Transformer
            Circuits", section "Attention Heads are Independent and Additive".

        Raises
        ------
        ValueError
            If ``attn_mix`` of the layer was not captured, if the layer has no attention, or if
            the trace has no model.

        Examples
        --------
        >>> import numpy as np, tinyllm
        >>> t = tinyllm.load().trace("ROMEO:")
        >>> parts = t.head_outputs(0).sum(axis=1)
        >>> np.allclose(parts, t["blk.0.attn_output"], atol=1e-4)
        True
        """
        source = self.source(model)
        layer = index("layer", layer, self.config.layers)
        project = source.steps[source.steps.role("attn_project", layer)]
        name = project.reads[0]  # the heads' results, after their gates if they have some
        if name not in self:
            raise ValueError(f"head_outputs needs {name}; capture it")
        mix = self[name].astype(np.float64)
        matrix = merged_matrix(source.steps, project, source.weights)
        heads, size = mix.shape[1:]
        out = np.empty((len(mix), heads, len(matrix)), np.float32)
        for head in range(heads):
            out[:, head] = mix[:, head] @ matrix[:, head * size : (head + 1) * size].T
        return out

    def source(self, model: Source | None = None) -> Source:
        """Return the model of the trace, or `model` if it is given and is the same model.

        Parameters
        ----------
        model : Model, optional
            The model of a trace that was read from a file.

        Returns
        -------
        Model

        Raises
        ------
        ValueError
            If there is no model, or if `model` has another fingerprint than the trace.

        Examples
        --------
        >>> import tinyllm
        >>> model = tinyllm.load()
        >>> model.trace("ROMEO:").source() is model
        True
        """
        if model is None:
            if self.model is None:
                raise ValueError("the trace was read from a file and has no weights; give model=")
            return self.model
        if self.fingerprint not in (None, model.fingerprint):
            raise ValueError(
                f"model has the fingerprint {model.fingerprint}; expected {self.fingerprint}, "
                "that of the model that made the trace"
            )
        return model

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the trace to a file, which `tinyllm.read` reads.

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
        >>> import tinyllm
        >>> t = tinyllm.load().trace("ROMEO:")
        >>> t.save("run.safetensors")
        >>> bool((tinyllm.read("run.safetensors")["output"] == t["output"]).all())
        True
        """
        import json

        from ..architectures.fingerprint import config_values
        from ..files.arrays import write_arrays

        metadata = {
            "format": "tinyllm.trace",
            "version": "1",
            "tokens": json.dumps(self.tokens.tolist()),
            "pieces": json.dumps(self.pieces),
            "start": str(self.start),
            "config": json.dumps(config_values(self.config)),
            "roles": json.dumps(dict(roles_of(self._arrays))),
        }
        if len(self.context) != len(self.tokens):
            metadata["context"] = json.dumps(self.context.tolist())
            metadata["context_pieces"] = json.dumps(self.context_pieces)
        if self.fingerprint is not None:
            metadata["fingerprint"] = self.fingerprint
        arrays = {name: look(self._arrays, name) for name in self._arrays}
        write_arrays(path, arrays, metadata)

    def as_(self, dialect: str) -> dict[str, npt.NDArray[Any]]:
        """Return the values under the names of another library, and in its layout.

        Parameters
        ----------
        dialect : str
            ``"hf"``: modules of Hugging Face; the input of a module ends with ``.in``.
            ``"transformer_lens"``: hooks of `HookedTransformer`. Both have a batch axis of 1, and
            the order of queries and keys that checkpoints of Hugging Face have. ``"llama.cpp"``:
            tensors of its graph. There, queries and keys after RoPE have the name of those before
            it; in the result, the second one ends with ``#2``.

        Returns
        -------
        dict of str to numpy.ndarray
            Values for which the library has no name are left out. `tinyllm.read` reads the result.

        Raises
        ------
        ValueError
            If the dialect is another.

        Examples
        --------
        >>> import tinyllm
        >>> t = tinyllm.load().trace("ROMEO:", capture="blk.0.attn_*")
        >>> list(t.as_("transformer_lens"))[:2]
        ['blocks.0.ln1.hook_scale', 'blocks.0.ln1.hook_normalized']
        >>> t.as_("hf")["model.layers.0.self_attn.q_proj"].shape == (1, len(t.tokens), 256)
        True
        """
        from .renamed import renamed

        architecture, model = self.config.architecture, self.model
        steps = None if model is None else model.steps
        weights = {} if model is None else model.weights
        return renamed(self, dialect, architecture, self._names(), steps, weights)

    def html(self, path: str | os.PathLike[str], *, model: Source | None = None) -> None:
        """Write a self-contained HTML page for browsing layers, heads and tokens.

        The page needs no network. It shows every captured attention matrix, norms of the residual
        stream and the largest neurons. If the trace has its model, it also shows the logit lens
        and the parts of the prediction (`tinyllm.attribution`).

        Parameters
        ----------
        path : str or os.PathLike
            The file to write. An existing file is replaced.
        model : Model, optional
            The model of a trace that was read from a file.

        Raises
        ------
        ValueError
            If there are no tokens, or more than 65,536, or very many attention matrices.
        OSError
            If the file cannot be written.

        Examples
        --------
        >>> import tinyllm
        >>> tinyllm.load().trace("ROMEO:", "*").html("trace.html")
        """
        from ..files.atomic import write_atomically

        text = self._page(model).html().encode()
        write_atomically(path, lambda file: file.write(text))

    def show(self, height: int = 800, *, model: Source | None = None) -> None:
        """Show the page that `html` writes in the output of a notebook's cell.

        Parameters
        ----------
        height : int
            Height in pixels.
        model : Model, optional
            The model of a trace that was read from a file.

        Raises
        ------
        RuntimeError
            If this is not a notebook.
        ValueError
            As for `html`.

        Examples
        --------
        >>> import tinyllm
        >>> tinyllm.load().trace("ROMEO:", "*").show()  # doctest: +SKIP
        """
        ranged("height", height, 1)
        display = notebook()
        if display is None:
            raise RuntimeError("show needs a notebook; html(path) writes the page to a file")
        display.display(display.HTML(frame(self._page(model).html(), height)))

    def _page(self, model: Source | None) -> Page:
        if model is None and self.model is None:
            return self.page()
        return self.source(model).page(self)

    def page(self) -> Page:
        """Return the page that `html` writes, without what takes the model's weights.

        Returns
        -------
        tinyllm.display.page.Page
        """
        attention = {name.split(".")[1]: self[name] for name in self.by_role("attn_probs")}
        return Page(
            f"{self.config.architecture}, {self.config.layers} layers",
            repr(self),
            self.start,
            len(self.tokens),
            self.context.tolist(),
            self.context_pieces,
            attention,
            self.stream_norms(),
            neurons=largest_neurons({name: self[name] for name in self.by_role("ffn_hidden")}),
        )

    # ---- showing ----

    def table(self) -> Table:
        """Return a table of the taps: name, shape, mean, norm, rms, minimum, maximum, size.

        Returns
        -------
        Table
            A table that prints as text and shows as HTML in a notebook. The norm is the square
            root of the sum of all squares. For an array of more than 65,536 values, the other
            numbers are those of an even sample. Values that are not finite are skipped.

        Examples
        --------
        >>> import tinyllm
        >>> print(tinyllm.load().trace("ROMEO:", capture="output").table())  # doctest: +ELLIPSIS
        tap...
        """
        return Table(
            ("tap", "shape", "mean", "norm", "rms", "min", "max", "size"),
            [
                (name, array.shape, mean, _norm(array), *others, size(array.nbytes))
                for name in self._arrays
                for array in [look(self._arrays, name)]
                for mean, *others in [statistics(sample(array))]
            ],
        )

    def __repr__(self) -> str:
        """Return the numbers of tokens, taps and bytes."""
        return f"<tinyllm.Trace: {len(self.tokens)} tokens, {len(self)} taps, {size(self.nbytes)}>"

    def _repr_html_(self) -> str:
        arrays = {name: look(self._arrays, name) for name in self._arrays}
        return taps_html(repr(self), self.start, self.tokens.tolist(), self.pieces, arrays)


def _unpickled(state: dict[str, Any]) -> Trace:
    """Return a trace that was pickled."""
    arrays = state["arrays"]
    for array in arrays.values():
        array.flags.writeable = False
    return Trace(
        state["config"],
        state["tokens"],
        state["pieces"],
        Copies(arrays, state["roles"]),
        start=state["start"],
        fingerprint=state["fingerprint"],
        logits=state["logits"],
        context=Context(state["context"], state["context_pieces"]),
    )


def _norm(array: Float32) -> str:
    finite = array[np.isfinite(array)].astype(np.float64)
    return f"{np.sqrt(np.dot(finite, finite)):.4g}" if finite.size else ""
