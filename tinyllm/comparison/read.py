"""`read`: traces from files, and the values of other programs as traces."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ..architectures.config import Config
from ..architectures.plan import Step
from ..base.numeric import Float32
from ..base.warning import warn
from ..errors import FormatError
from ..files.arrays import Array, read_arrays
from ..runtime.prompt import token_ids
from ..trace.arena import Copies
from ..trace.dialects import TABLE
from ..trace.layouts import ROTATED, Shape, fit, masked, pairs, permuted
from ..trace.saved import saved_trace
from ..trace.taps import ALIASES, is_matrix
from ..trace.trace import Trace, roles_of
from .dialects import Dialect, Named, Naming, name_values

if TYPE_CHECKING:
    from ..runtime.runner import Runner

__all__ = ["Dump", "in_order", "read", "read_dump"]

#: Arrays of a dump that hold the ids of the tokens.
_IDS = ("tokens", "input_ids", "token_ids", "ids", "inp_tokens", "hook_tokens")

Values = Sequence[tuple[str, Array]]


class Dump(Trace):
    """The values of another program under our names: a `Trace` whose model did not make them.

    Attributes
    ----------
    dialect : str
        Whose names the dump has.
    theirs : dict of str to str
        The name in the dump of each tap.
    tails : dict of str to numpy.ndarray
        Values of the last tokens only, such as the logits of the last token. The rows are those of
        the last tokens.
    unread : list of str
        Names in the dump that are no tap, or whose array has a wrong shape.
    notes : list of str
        What was assumed where a name or a shape has several meanings.
    exact : bool
        Whether the program is known to compute in float32 throughout.

    Examples
    --------
    >>> import numpy as np, tinyllm as tl
    >>> model = tl.load()
    >>> x = np.zeros((1, 3, model.config.width))
    >>> dump = tl.read({"model.layers.0": x}, tokens=[1, 2, 3], model=model)
    >>> dump.theirs, dump.dialect, dump["blk.0.resid_post"].shape == x.shape[1:]
    ({'blk.0.resid_post': 'model.layers.0'}, 'Hugging Face', True)
    """

    dialect = ""
    exact = False
    theirs: dict[str, str]
    tails: dict[str, Float32]
    unread: list[str]
    notes: list[str]
    _values: Values = ()
    _given: Dialect = None
    _only: Collection[str] | None = None  # the names that `only` kept

    def fitted(self, model: Runner, tokens: Any = None) -> Dump:
        """Return the dump with the names and shapes of a model.

        Parameters
        ----------
        model : Model
        tokens : str, bytes or ids, optional
            The tokens, if the dump does not have them.

        Returns
        -------
        Dump
            This one if it has the model already.

        Raises
        ------
        ValueError
            If the shapes do not fit to the model.

        Examples
        --------
        >>> import numpy as np, tinyllm as tl
        >>> model = tl.load()
        >>> dump = tl.read({"q0": np.zeros((3, model.config.width))})
        >>> dump["blk.0.attn_q"].ndim, dump.fitted(model)["blk.0.attn_q"].ndim
        (2, 3)
        """
        if self.model is model and tokens is None:
            return self
        if tokens is None and (self.tokens >= 0).all():
            tokens = self.tokens
        dump = read_dump(self._values, self._given, tokens, model)
        return dump if self._only is None else dump.only(self._only)

    def only(self, names: Collection[str]) -> Dump:
        """Return the dump with some of its values.

        Parameters
        ----------
        names : collection of str
            Taps. Those that the dump does not have are left out.

        Returns
        -------
        Dump

        Examples
        --------
        >>> import numpy as np, tinyllm as tl
        >>> dump = tl.read({"q0": np.ones((3, 8)), "k0": np.ones((3, 8))})
        >>> list(dump.only(["blk.0.attn_q", "output"]))
        ['blk.0.attn_q']
        """
        kept = self.__copy__()
        kept._only = [name for name in (*self, *self.tails) if name in names]
        kept._arrays = Copies({n: self[n] for n in self if n in names}, roles_of(self._arrays))
        kept.tails = {name: array for name, array in self.tails.items() if name in names}
        kept.theirs = {name: theirs for name, theirs in self.theirs.items() if name in names}
        return kept

    def _why_not(self, key: str) -> str:
        name = ALIASES.get(key, key)
        if name in self.tails:
            rows = len(self.tails[name])
            return f"{key!r} has the rows of the last {rows} tokens only: see tails"
        return f"the dump does not have {key!r}; it has {', '.join(self)}"


def read(
    source: Any, dialect: Dialect = None, tokens: Any = None, *, model: Runner | None = None
) -> Trace:
    """Read a trace, or the values of another program.

    Parameters
    ----------
    source : str, os.PathLike, mapping, or sequence of (str, array)
        A file that `Trace.save` wrote; an ``.npz`` or ``.safetensors`` file of another program; a
        folder of ``.npy`` files; arrays by name, such as a dict, a cache of TransformerLens or an
        output of Hugging Face. PyTorch's tensors are taken as arrays. In a sequence, names may
        repeat.
    dialect : str, mapping of str to str, or callable, optional
        What the names are: ``"transformer_lens"``, ``"hf"``, ``"llama.cpp"``, ``"meta"``,
        ``"llama2.c"``, ``"plain"`` (such as ``layer3_q``) or ``"tinyllm"``. A mapping from their
        names to ours, such as ``{"l{i}.query": "blk.{i}.attn_q"}``, where ``{i}`` is the number of
        the block, or to those of one of the libraries. A function from a name to such a name, or to
        None. Default: guessed.
    tokens : str, bytes or ids, optional
        What the other program ran. Default: an array of the dump named ``tokens`` or ``input_ids``.
    model : Model, optional
        The model that the values belong to. It gives shapes, heads and the order of rows. Without
        it, arrays lose only their batch axis, until `Dump.fitted` or `tinyllm.diff` has a model.

    Returns
    -------
    Trace
        Of a file that `Trace.save` wrote: arrays are read on first use. ``trace.model`` is None,
        so functions that need the weights take ``model=``. A safetensors file is mapped, and must
        not be changed in place while the trace is in use. `Trace.save` is safe, because it
        replaces the file. Of everything else, a `Dump`: `Dump.notes` says what was assumed.

    Raises
    ------
    tinyllm.FormatError
        If the file is damaged. Damage in an array of an ``.npz`` file of tinyllm may be found only
        when the array is used.
    ValueError
        If no array has a known name and a fitting shape, or if `tokens` are another number.
    OSError
        If the file cannot be read.

    Warns
    -----
    UserWarning
        If the dialect could be another, or if arrays have shapes that do not fit.

    Examples
    --------
    >>> import numpy as np, tinyllm as tl
    >>> model = tl.load()
    >>> t = model.trace("ROMEO:")
    >>> t.save("run.safetensors")
    >>> tl.read("run.safetensors")["blk.0.attn_mix"].ndim
    3
    >>> flat = t["blk.0.attn_q"].reshape(len(t.tokens), -1)
    >>> np.savez("engine.npz", layer0_q=flat, logits=t["output"])
    >>> dump = tl.read("engine.npz", tokens="ROMEO:", model=model)
    >>> bool((dump["blk.0.attn_q"] == t["blk.0.attn_q"]).all())
    True
    """
    if isinstance(source, Trace):
        return source.fitted(model, tokens) if model and isinstance(source, Dump) else source
    if isinstance(source, (str, os.PathLike)):
        path = Path(os.fsdecode(source))
        if path.is_dir():
            return read_dump(_folder(path), dialect, tokens, model)
        arrays, metadata = _file(path)
        if metadata.get("format", "").startswith("tinyllm."):
            return saved_trace(arrays, metadata, path)
        values: Values = list(arrays.items())
        if not values:
            raise FormatError(
                "the file has no arrays; expected a trace, or the values of another program",
                path=os.fspath(path),
            )
    else:
        values = _expanded(source)
        if not values:
            raise ValueError("source has no arrays; expected at least one")
    return read_dump(values, dialect, tokens, model)


# ---- files and objects ----


def _file(path: Path) -> tuple[Mapping[str, Array], Mapping[str, str]]:
    if path.suffix == ".npy":
        return {path.stem: _npy(path)}, {}
    arrays, metadata = read_arrays(path)
    if "data.pkl" in {name.split("/")[-1] for name in arrays} or path.suffix in (".pt", ".pth"):
        raise FormatError(
            f"{path}: the file is a pickle of PyTorch, which could run code; expected .npz or "
            ".safetensors, as safetensors.torch.save_file writes",
            path=os.fspath(path),
        )
    return arrays, metadata


def _npy(path: Path) -> Array:
    try:
        array: Array = np.load(path, allow_pickle=False)
    except ValueError as error:
        raise FormatError(f"{path}: not an array: {error}", path=os.fspath(path)) from None
    return array


def _folder(path: Path) -> Values:
    """Return the ``.npy`` files of a folder and its subfolders, in the order of their names."""
    files = sorted(path.rglob("*.npy"), key=lambda file: [*map(_natural, file.parts)])
    if not files:
        raise IsADirectoryError(f"{path} is a folder without .npy files; expected one per value")
    return [(".".join(f.relative_to(path).with_suffix("").parts), _npy(f)) for f in files]


def _natural(text: str) -> list[tuple[int, str]]:
    """Return a key that sorts 2 before 10."""
    digits = "".join(c if c.isdigit() else " " for c in text).split()
    return [(int(d), "") for d in digits] if text.isdigit() else [(0, text)]


def _expanded(source: Any) -> Values:
    """Return the arrays of a mapping or a sequence of pairs. Tuples and stacks become entries."""
    if not isinstance(source, Mapping) and hasattr(source, "items"):
        source = dict(source.items())
    pairs_: Iterable[Any] = source.items() if isinstance(source, Mapping) else source
    if not isinstance(pairs_, Iterable):
        raise TypeError(f"source is {source!r}; expected a path, or arrays by name")
    values: list[tuple[str, Array]] = []
    for pair in pairs_:
        if not isinstance(pair, tuple) or len(pair) != 2 or not isinstance(pair[0], str):
            raise TypeError(f"source holds {pair!r:.80}; expected pairs of a name and an array")
        name, value = pair
        stack = name.split(".")[-1] in ("hidden_states", "attentions")
        if isinstance(value, (tuple, list)) and any(hasattr(v, "shape") for v in value):
            values += [(f"{name}[{i}]", _array(f"{name}[{i}]", v)) for i, v in enumerate(value)]
        elif not isinstance(value, (list, tuple)) and not hasattr(value, "shape"):
            continue  # such as the cache in an output of Hugging Face
        else:
            array = _array(name, value)
            if stack and array.ndim > 2 + name.endswith("attentions") and len(array) > 1:
                values += [(f"{name}[{i}]", part) for i, part in enumerate(array)]
            else:
                values.append((name, array))
    return values


def _array(name: str, value: Any) -> Array:
    if hasattr(value, "detach"):  # a tensor of PyTorch, whose bfloat16 NumPy does not have
        value = value.detach().cpu()
        value = value.float() if value.is_floating_point() else value
        value = value.numpy()
    array = np.asarray(value)
    if array.dtype.kind not in "fiub":
        raise TypeError(f"{name!r} is an array of {array.dtype}; expected numbers")
    return array


# ---- from names to a trace ----


def read_dump(values: Values, dialect: Dialect, tokens: Any, model: Runner | None) -> Dump:
    """Return the values of another program as a trace. `read` is the public form.

    Parameters
    ----------
    values : sequence of (str, numpy.ndarray)
    dialect, tokens, model
        As for `read`.

    Returns
    -------
    Dump
    """
    ids, values = _take_ids(values, tokens, model)
    if model is None:
        naming = name_values(values, dialect)
    else:
        known = {step.tap for step in model.steps if step.visible}
        naming = name_values(values, dialect, known, model.config.layers, model.config.architecture)
    votes = _token_counts(naming, model)
    # logits and the last block often have one row, so more rows win
    count = max(votes, key=lambda n: (votes[n] if n > 1 else 0, n), default=1)
    if ids is None:
        ids = np.full(count, -1, np.int32)
    elif count not in (len(ids), 1) and 2 * votes[len(ids)] < votes[count]:
        raise ValueError(
            f"tokens are {len(ids)} ids, and most arrays have the rows of {count} tokens; expected "
            "the tokens of the dump, with those that its program adds, such as BOS"
        )
    arrays, tails = _arrays(naming, len(ids), model)
    if not arrays and not tails:
        raise ValueError(f"no array of the dump can be read: {'; '.join(naming.notes)}")
    config = model.config if model is not None else _unknown(arrays)
    roles = {} if model is None else {s.tap: s.roles for s in model.steps if s.roles}
    texts = iter([] if model is None else model.pieces(ids[ids >= 0]))
    pieces = [next(texts, "") if i >= 0 else "" for i in ids]
    last = tails.get("output")
    logits = None if last is None else (last[0] if len(last) == 1 else last)
    dump = Dump(config, ids, pieces, Copies(arrays, roles), model=model, logits=logits)
    dump.dialect, dump.unread, dump.notes, dump.tails = (
        *(naming.dialect, naming.unread, naming.notes),
        tails,
    )
    dump.theirs = {ours: naming.found[ours].theirs for ours in (*arrays, *tails)}
    dump._values, dump._given = values, dialect
    return dump


def _take_ids(
    values: Values, tokens: Any, model: Runner | None
) -> tuple[npt.NDArray[np.int32] | None, Values]:
    """Return the tokens, and the arrays without them."""
    kept = [(name, array) for name, array in values if name.split(".")[-1] not in _IDS]
    if tokens is None and len(kept) < len(values):
        array = next(array for name, array in values if name.split(".")[-1] in _IDS)
        tokens = array.reshape(-1).astype(np.int64)
    if tokens is None:
        return None, kept
    tokenizer = None if model is None else model.tokenizer
    return token_ids(tokens, tokenizer, "tokens"), kept


def _token_counts(naming: Naming, model: Runner | None) -> Counter[int]:
    """Return how many arrays have the rows of each number of tokens."""
    votes: Counter[int] = Counter()
    for ours, named in naming.found.items():
        shape = named.array.shape
        while len(shape) > 2 and shape[0] == 1:
            shape = shape[1:]
        if is_matrix(ours):
            votes[shape[-2] if len(shape) > 1 else 1] += 1
        elif model is not None:
            row = model.steps[ours].shape
            size = math.prod(row)
            if len(row) == 2 and len(shape) == 3 and shape[1:] != row:
                votes.update({shape[0], shape[1]})  # heads first, or another number of heads
            else:
                votes[named.array.size // size if named.array.size % size == 0 else 0] += 1
        else:
            votes[shape[0] if len(shape) > 1 else 1] += 1
    del votes[0]
    return votes


def _arrays(
    naming: Naming, tokens: int, model: Runner | None
) -> tuple[dict[str, Float32], dict[str, Float32]]:
    """Return the values in our layout: those of all tokens, and those of the last ones."""
    arrays: dict[str, Float32] = {}
    tails: dict[str, Float32] = {}
    wrong, waiting = [], []
    rotated = model is not None and permuted(model.config.architecture)
    for ours in in_order(naming.found, model):
        named = naming.found[ours]
        step = None if model is None else model.steps[ours]
        try:
            array, note = _fitted(named, step, tokens, model)
            array = np.array(_converted(named, array, step, model), np.float32, order="C")
        except _NeedsModel as error:
            waiting.append(f"{named.theirs!r} ({ours}) {error}")
            naming.unread.append(named.theirs)
            continue
        except ValueError as error:
            wrong.append(f"{named.theirs!r} ({ours}) {error}")
            naming.unread.append(named.theirs)
            continue
        if note:
            naming.notes.append(f"{named.theirs!r} has {note}")
        halves = named.library in ("Hugging Face", "TransformerLens")
        if halves and rotated and ours.split(".")[-1] in ROTATED:
            array = pairs(array)
        array.flags.writeable = False
        rows = array.shape[1] if is_matrix(ours) else len(array)
        (arrays if rows == tokens else tails)[ours] = array
    naming.notes += [*wrong, *waiting]
    if wrong and (arrays or tails):
        more = f", and {len(wrong) - 1} more" if len(wrong) > 1 else ""
        warn(f"an array of the dump was left out: {wrong[0]}{more}")
    return arrays, tails


def _fitted(
    named: Named, step: Step | None, tokens: int, model: Runner | None
) -> tuple[Float32, str]:
    """Return an array in our layout. Without a model, only the batch axis goes."""
    if step is None or model is None:
        return _loose(named, tokens), ""
    queries = 0
    if step.heads and not step.matrix and step.layer < model.config.layers:
        heads = int(model.config.layer("heads", max(step.layer, 0)))
        queries = heads if step.shape and heads > step.shape[0] else 0
    first = {
        "llama.cpp": named.theirs.split("-")[0] == "kqv",
        "Hugging Face": named.theirs.endswith((".query", ".key")),
    }.get(named.library, False)
    return fit(named.array, Shape(step.shape, step.matrix, tokens, tokens, queries, first))


def _loose(named: Named, tokens: int) -> Float32:
    """Return an array without its batch axis, as far as can be told without a model."""
    array = np.asarray(named.array, np.float32)
    if is_matrix(named.ours):
        array = array[0] if array.ndim == 4 and len(array) == 1 else array
        if array.ndim != 3 or array.shape[1] > tokens or array.shape[2] < tokens:
            raise ValueError(f"has shape {named.array.shape}; expected (H, T, S)")
        return array[:, :, :tokens]
    if array.ndim > 1 and array.shape[-1] == 1 and named.ours.endswith("_scale"):
        array = array[..., 0]
    if array.ndim > 1 and len(array) == 1 and (array.shape[1] == tokens or array.ndim == 4):
        array = array[0]
    if array.ndim == 1 and not named.ours.endswith("_scale"):
        array = array[np.newaxis]
    if array.ndim == 3 and len(array) != tokens and array.shape[1] == tokens:
        array = array.swapaxes(0, 1)
    if not 0 < len(array) <= tokens:
        raise ValueError(f"has shape {named.array.shape}; expected {tokens} rows, one per token")
    return array


#: Architectures whose queries llama.cpp scales before it multiplies them with keys.
_SCALED_QUERIES = ("gemma", "phi2", "phi3")


class _NeedsModel(ValueError):
    """A value can be read only with its model."""


def _converted(named: Named, array: Float32, step: Step | None, model: Runner | None) -> Array:
    """Return a value that another library defines differently as we define it."""
    word = named.theirs.split(".")[-1].split("-")[0]
    if named.library == "TransformerLens" and word == "hook_scale":
        with np.errstate(divide="ignore"):
            return 1 / array
    if named.library == "TransformerLens" and word == "hook_normalized":
        if step is None or model is None:
            raise _NeedsModel("needs model=: there it is before the weight of the norm")
        weight, bias = (*step.weights, None, None)[:2]
        array = array * model.weights[weight].numpy() if weight else array
        return array + model.weights[bias].numpy() if bias else array
    if named.library == "llama.cpp" and word == "kq":
        if step is None:
            raise _NeedsModel("needs model=: there it is neither scaled nor masked")
        scaled = model is not None and model.config.architecture.startswith(_SCALED_QUERIES)
        array = array if scaled else array * np.float32(step.number("factor"))
        if cap := step.number("cap"):
            array = np.float32(cap) * np.tanh(array / np.float32(cap))
        return masked(array, step)
    return array


def in_order(found: Iterable[str], model: Runner | None) -> list[str]:
    """Return our names in the order of the forward pass."""
    found = set(found)
    if model is not None:
        return [step.tap for step in model.steps if step.tap in found]
    places = {row.ours: i for i, row in enumerate(TABLE)}

    def place(name: str) -> tuple[int, int]:
        if not name.startswith("blk."):
            at = places.get(name, len(places))
            return (-1 if at < places["blk.{i}.resid_pre"] else 1 << 20), at
        _, number, family = name.split(".", 2)
        return int(number), places.get(f"blk.{{i}}.{family}", 0)

    return sorted(found, key=place)


def _unknown(arrays: Mapping[str, Float32]) -> Config:
    """Return the config of a model of which only some values are known. Unknown sizes are 0."""
    blocks = [int(name.split(".")[1]) for name in arrays if name.startswith("blk.")]

    def last(*families: str) -> int:
        found = (a for n, a in arrays.items() if n.split(".")[-1] in families)
        return next((array.shape[-1] for array in found if array.ndim > 1), 0)

    heads = next((len(array) for name, array in arrays.items() if is_matrix(name)), 0)
    return Config(
        architecture="unknown",
        layers=max(blocks, default=0) + 1,
        width=last("resid_post", "resid_pre", "resid_mid", "token_embd", "output_norm"),
        heads=heads,
        kv_heads=heads,
        head_size=0,
        value_size=0,
        ffn_width=last("ffn_act", "ffn_up", "ffn_gate"),
        vocab_size=last("output"),
        context_length=0,
        norm_epsilon=0.0,
        rope_base=0.0,
        rope_dimension=0,
        rope_scaling=None,
        attention_scale=None,
        tied=False,
    )
