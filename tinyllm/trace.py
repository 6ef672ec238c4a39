"""Traces: the inner values of a run, by name, as NumPy arrays.

The names and shapes are one vocabulary for every architecture: the tap ``X`` is the output of
the step that uses the weight ``X.weight``, and steps without a weight have plain names.
"""

from __future__ import annotations

import dataclasses
import difflib
import fnmatch
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from . import _core
from .config import Config
from .html import Table

__all__ = ["Capture", "Plan", "Trace", "tap_names", "tap_shape"]

Floats: TypeAlias = npt.NDArray[np.float32]

#: What ``capture=`` takes.
Capture: TypeAlias = (
    str | re.Pattern[str] | Callable[[str], object] | Sequence["str | re.Pattern[str]"] | None
)

_TAPS = {
    name: (i, per_layer, matrix, axes)
    for i, (name, per_layer, matrix, axes) in enumerate(_core.TAPS)
}
_ALIASES = {"logits": "output"}

#: Not captured unless asked for: they grow with the square of the context.
_LARGE = ("attn_scores", "attn_probs")


@dataclasses.dataclass(frozen=True, slots=True)
class Tap:
    """One tap of one layer: where the core knows it by."""

    name: str
    family: str
    index: int
    layer: int
    matrix: bool
    axes: str


def all_taps(config: Config) -> list[Tap]:
    """Every tap of a model, in the order in which the values come to be."""

    def make(family: str, layer: int) -> Tap:
        index, per_layer, matrix, axes = _TAPS[family]
        name = f"blk.{layer}.{family}" if per_layer else family
        return Tap(name, family, index, layer, matrix, axes)

    per_layer = [family for family, row in _TAPS.items() if row[1]]
    last = [family for family, row in _TAPS.items() if not row[1] and row[0] > 0]
    taps = [make("token_embd", 0)]
    taps += [make(family, layer) for layer in range(config.layers) for family in per_layer]
    return taps + [make(family, 0) for family in last]


def tap_names(config: Config) -> list[str]:
    """Every tap name of a model, in the order in which the values come to be.

    Parameters
    ----------
    config : Config

    Returns
    -------
    list of str

    Examples
    --------
    >>> import tinyllm
    >>> from tinyllm.trace import tap_names
    >>> tap_names(tinyllm.load().config)[:2]
    ['token_embd', 'blk.0.resid_pre']
    """
    return [tap.name for tap in all_taps(config)]


def _shape(config: Config, tap: Tap, tokens: int, context: int) -> tuple[int, ...]:
    sizes = {
        "D": config.width,
        "H": config.layer("heads", tap.layer),
        "K": config.layer("kv_heads", tap.layer),
        "d": config.head_size,
        "v": config.value_size,
        "F": config.layer("ffn_width", tap.layer),
        "V": config.vocab_size,
        "S": context,
    }
    axes = [sizes[axis] for axis in tap.axes]
    return (axes[0], tokens, axes[1]) if tap.matrix else (tokens, *axes)


def tap_shape(
    config: Config, name: str, tokens: int, context: int | None = None
) -> tuple[int, ...]:
    """The shape of a tap.

    Parameters
    ----------
    config : Config
    name : str
        A full name, for example ``"blk.0.attn_q"``.
    tokens : int
        Tokens T of the call.
    context : int, optional
        Tokens S in the context once the call is done; `tokens` if not given.

    Returns
    -------
    tuple of int

    Raises
    ------
    ValueError
        There is no such tap.

    Examples
    --------
    >>> import tinyllm
    >>> from tinyllm.trace import tap_shape
    >>> config = tinyllm.load().config
    >>> tap_shape(config, "blk.0.attn_probs", 5) == (config.heads, 5, 5)
    True
    """
    (tap,) = select(all_taps(config), name)
    return _shape(config, tap, tokens, tokens if context is None else context)


def _unknown(pattern: str, names: Sequence[str]) -> ValueError:
    near = difflib.get_close_matches(pattern, names, n=3, cutoff=0.5)
    hint = "; the nearest are " + ", ".join(map(repr, near)) if near else ""
    return ValueError(f"no tap is named {pattern!r}{hint}")


def select(taps: Sequence[Tap], capture: Capture) -> list[Tap]:
    """The taps that a ``capture=`` argument asks for, in their order; see `tinyllm.Model.trace`."""
    names = [tap.name for tap in taps]
    if capture is None:
        return [tap for tap in taps if tap.family not in _LARGE]
    if callable(capture):
        return [tap for tap in taps if capture(tap.name)]
    patterns = [capture] if isinstance(capture, (str, re.Pattern)) else list(capture)
    wanted: set[str] = set()
    for pattern in patterns:
        if isinstance(pattern, re.Pattern):
            found = [name for name in names if pattern.search(name)]
        elif isinstance(pattern, str):
            pattern = _ALIASES.get(pattern, pattern)
            if any(c in pattern for c in "*?["):
                found = [name for name in names if fnmatch.fnmatchcase(name, pattern)]
            else:
                found = [pattern] if pattern in names else []
        else:
            raise TypeError(f"capture must hold names and patterns, not {pattern!r}")
        if not found:
            raise _unknown(getattr(pattern, "pattern", pattern), names)
        wanted.update(found)
    return [tap for tap in taps if tap.name in wanted]


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a capture would take, before anything runs.

    Attributes
    ----------
    shapes : dict of str to tuple of int
        The shape of every captured tap.
    nbytes : int
        Bytes of all of them together (float32).
    """

    shapes: dict[str, tuple[int, ...]]
    nbytes: int

    def __repr__(self) -> str:
        """Name the number of taps and their size."""
        return f"<tinyllm.Plan: {len(self.shapes)} taps, {self.nbytes:,} bytes>"


class Arena:
    """The arrays of one call: one block per tap family, which the kernels write to."""

    def __init__(
        self, config: Config, taps: Sequence[Tap], lengths: Sequence[int], contexts: Sequence[int]
    ) -> None:
        self.taps = list(taps)
        self.lengths = list(lengths)
        self.contexts = list(contexts)
        self.config = config
        self.blocks: dict[tuple[str, int], Floats] = {}  # (family, piece): (layers, T, ...)
        self.layers: dict[str, list[int]] = {}
        self.captures: list[tuple[int, int, int, Floats]] = []
        for tap in self.taps:
            self.layers.setdefault(tap.family, []).append(tap.layer)

    def plan(self) -> Plan:
        """Shapes and bytes of one trace per piece; refused if they do not fit into memory."""
        shapes: dict[str, tuple[int, ...]] = {}
        size = 0
        for tap in self.taps:
            for length, context in zip(self.lengths, self.contexts, strict=True):
                shapes[tap.name] = _shape(self.config, tap, length, context)
                size += 4 * int(np.prod(shapes[tap.name], dtype=np.int64))
        return Plan(shapes, size)

    def allocate(self) -> None:
        """Take the memory."""
        size = self.plan().nbytes
        available = _core.memory_available()
        if 0 < available < size:
            raise MemoryError(
                f"the capture takes {size:,} bytes and {available:,} are available; "
                "capture less, or fewer tokens at a time"
            )
        total = sum(self.lengths)
        pieces = range(len(self.lengths))
        for tap in self.taps:
            layers = self.layers[tap.family]
            at = layers.index(tap.layer)
            for piece in pieces if tap.matrix else (-1,):
                length = self.lengths[piece] if tap.matrix else total
                context = self.contexts[piece] if tap.matrix else total
                shape = _shape(self.config, tap, length, context)
                key = (tap.family, piece)
                uniform = all(
                    _shape(self.config, dataclasses.replace(tap, layer=other), length, context)
                    == shape
                    for other in layers
                )
                if not uniform:  # layers of different sizes lie apart
                    key, at = (tap.name, piece), 0
                if key not in self.blocks:
                    count = len(layers) if uniform else 1
                    self.blocks[key] = np.empty((count, *shape), np.float32)
                self.captures.append((tap.index, tap.layer, piece, self.blocks[key][at]))

    def arrays(self, piece: int) -> tuple[dict[str, Floats], dict[str, Floats]]:
        """The read-only arrays of one piece, by name; and the stacks of whole families."""
        start = sum(self.lengths[:piece])
        rows = slice(start, start + self.lengths[piece])
        stacks: dict[str, Floats] = {}
        arrays: dict[str, Floats] = {}
        for (key, owner), block in self.blocks.items():
            if owner in (-1, piece):
                block.flags.writeable = False
                stacks[key] = block if owner >= 0 else block[:, rows]
        for tap in self.taps:
            if tap.name in stacks:
                arrays[tap.name] = stacks[tap.name][0]
            else:
                arrays[tap.name] = stacks[tap.family][self.layers[tap.family].index(tap.layer)]
        return arrays, {family: stack for family, stack in stacks.items() if family in _TAPS}


class Trace(Mapping[str, Floats]):
    """The inner values of one run: a read-only mapping from tap name to array.

    Arrays are float32, read-only, and stay valid when the trace and the model are gone. A slice
    selects tokens: ``trace[10:20]`` is a trace of tokens 10 to 19.

    Attributes
    ----------
    tokens : numpy.ndarray of int32, shape (T,)
        The token ids of the call.
    pieces : list of str
        Their texts; of ids when the model has no tokenizer.
    config : Config
        The model's.
    start : int
        Position of the first token in its context.

    Examples
    --------
    >>> import tinyllm
    >>> t = tinyllm.load().trace("ROMEO:", capture=["blk.0.attn_probs", "output"])
    >>> t["blk.0.attn_probs"].shape == (t.config.heads, len(t.tokens), len(t.tokens))
    True
    >>> list(t)
    ['blk.0.attn_probs', 'output']
    """

    def __init__(
        self,
        config: Config,
        tokens: npt.NDArray[np.int32],
        pieces: list[str],
        arrays: Mapping[str, Floats],
        stacks: Mapping[str, Floats] | None = None,
        start: int = 0,
    ) -> None:
        self.config = config
        self.tokens = tokens
        self.pieces = pieces
        self.start = start
        self._arrays = dict(arrays)
        self._stacks = dict(stacks or {})

    def __getitem__(self, key: Any) -> Any:
        """Give the array of a tap, or the trace of a slice of tokens."""
        if isinstance(key, slice):
            return self._tokens(key)
        if not isinstance(key, str):
            raise TypeError(f"a trace is indexed by tap names and slices of tokens, not {key!r}")
        try:
            return self._arrays[_ALIASES.get(key, key)]
        except KeyError:
            raise KeyError(str(_unknown(key, list(self._arrays)))) from None

    def __iter__(self) -> Iterator[str]:
        """Iterate over the names, in the order in which the values came to be."""
        return iter(self._arrays)

    def __len__(self) -> int:
        """Count the captured taps."""
        return len(self._arrays)

    def _tokens(self, key: slice) -> Trace:
        first, _, step = key.indices(len(self.tokens))
        if step != 1:
            raise ValueError(f"a slice of tokens has step 1, not {step}")

        def cut(name: str, array: Floats, stacked: bool) -> Floats:
            matrix = _TAPS[name.split(".")[-1]][2]
            return array[(slice(None),) * (stacked + matrix) + (key,)]

        return Trace(
            self.config,
            self.tokens[key],
            self.pieces[key],
            {name: cut(name, array, False) for name, array in self._arrays.items()},
            {name: cut(name, array, True) for name, array in self._stacks.items()},
            self.start + first,
        )

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays together."""
        return sum(array.nbytes for array in self._arrays.values())

    def names(self, pattern: Capture = "*") -> list[str]:
        """The captured names that match a pattern.

        Parameters
        ----------
        pattern : str, re.Pattern, callable or sequence of them
            As for ``capture=``.

        Returns
        -------
        list of str
            Empty if there is none.

        Examples
        --------
        >>> import tinyllm
        >>> tinyllm.load().trace("ROMEO:", capture="blk.0.*").names("*resid*")
        ['blk.0.resid_pre', 'blk.0.resid_mid', 'blk.0.resid_post']
        """
        taps = [tap for tap in all_taps(self.config) if tap.name in self._arrays]
        try:
            return [tap.name for tap in select(taps, pattern)]
        except ValueError:
            return []

    def stack(self, pattern: Capture) -> Floats:
        """The arrays of all matching taps as one, the first axis being the layer.

        Parameters
        ----------
        pattern : str, re.Pattern, callable or sequence of them
            For example ``"blk.*.resid_post"``.

        Returns
        -------
        numpy.ndarray of float32, shape (layers, T, ...)
            A view without a copy when it is one tap of all captured layers.

        Raises
        ------
        ValueError
            Nothing matches, or the shapes differ.

        Examples
        --------
        >>> import tinyllm
        >>> t = tinyllm.load().trace("ROMEO:")
        >>> t.stack("blk.*.resid_post").shape == (t.config.layers, len(t.tokens), t.config.width)
        True
        """
        names = self.names(pattern)
        if not names:
            raise _unknown(str(pattern), list(self._arrays))
        families = {name.split(".")[-1] for name in names}
        if len(families) == 1:
            (family,) = families
            stack = self._stacks.get(family)
            if stack is not None and len(stack) == len(names):
                return stack
        shapes = {self._arrays[name].shape for name in names}
        if len(shapes) > 1:
            raise ValueError(f"{pattern!r} matches taps of different shapes: {sorted(shapes)}")
        stacked = np.stack([self._arrays[name] for name in names])
        stacked.flags.writeable = False
        return stacked

    def _rows(self) -> Iterable[tuple[object, ...]]:
        for name, array in self._arrays.items():
            finite = array[np.isfinite(array)]
            yield (
                name,
                str(array.shape),
                f"{finite.mean():.4g}" if finite.size else "",
                f"{np.sqrt(np.mean(np.square(finite, dtype=np.float64))):.4g}"
                if finite.size
                else "",
                f"{array.nbytes:,}",
            )

    def table(self) -> Table:
        """A table of the taps: name, shape, mean, root mean square, bytes.

        Returns
        -------
        Table
            Prints as text, shows as HTML in a notebook.

        Examples
        --------
        >>> import tinyllm
        >>> print(tinyllm.load().trace("ROMEO:", capture="output").table())  # doctest: +ELLIPSIS
        tap...
        """
        return Table(("tap", "shape", "mean", "rms", "bytes"), list(self._rows()))

    def __repr__(self) -> str:
        """Summarize: tokens, taps, bytes."""
        return (
            f"<tinyllm.Trace: {len(self.tokens)} tokens, {len(self)} taps, {self.nbytes:,} bytes>"
        )

    def _repr_html_(self) -> str:
        return self.table().html(caption=repr(self))
