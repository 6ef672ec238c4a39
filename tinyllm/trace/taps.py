"""Taps: the vocabulary of inner values, and choosing among them by name and pattern.

One vocabulary for every architecture: the tap ``X`` is the output of the step that uses the
weight ``X.weight``, and steps without a weight have plain names.
"""

from __future__ import annotations

import dataclasses
import difflib
import fnmatch
import re
from collections.abc import Callable, Iterable, Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from .. import _core
from ..architectures.config import Config

__all__ = ["Capture", "Floats", "Tap", "all_taps", "match", "select", "tap_names", "tap_shape"]

Floats: TypeAlias = npt.NDArray[np.float32]

#: What ``capture=`` takes.
Capture: TypeAlias = (
    str | re.Pattern[str] | Callable[[str], object] | Sequence["str | re.Pattern[str]"] | None
)

#: Other names of a tap.
ALIASES = {"logits": "output"}

#: Not captured unless asked for: they grow with the square of the context.
_LARGE = ("attn_scores", "attn_probs")

_TAPS = {
    name: (i, per_layer, matrix, axes)
    for i, (name, per_layer, matrix, axes) in enumerate(_core.TAPS)
}


@dataclasses.dataclass(frozen=True, slots=True)
class Tap:
    """One tap of one layer.

    Attributes
    ----------
    name, family : str
        ``"blk.3.attn_q"`` and ``"attn_q"``.
    index, layer : int
        Where the core knows it by; taps that belong to no layer are in layer 0.
    matrix : bool
        Whether the axes are (H, T, S) rather than (T, ...).
    axes : str
        The letters of the axes but T, see `tap_shape`.
    """

    name: str
    family: str
    index: int
    layer: int
    matrix: bool
    axes: str

    @property
    def head_axis(self) -> int | None:
        """The axis of the heads, or None."""
        if self.matrix:
            return 0
        return 1 if self.axes[:1] in ("H", "K") else None

    def shape(self, config: Config, tokens: int, context: int) -> tuple[int, ...]:
        """The shape for so many tokens in the call, and in the context."""
        sizes = {
            "D": config.width,
            "H": config.layer("heads", self.layer),
            "K": config.layer("kv_heads", self.layer),
            "d": config.head_size,
            "v": config.value_size,
            "F": config.layer("ffn_width", self.layer),
            "V": config.vocab_size,
            "S": context,
        }
        axes = [sizes[axis] for axis in self.axes]
        return (axes[0], tokens, axes[1]) if self.matrix else (tokens, *axes)


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


def tap_of(config: Config, name: str) -> Tap | None:
    """The tap of a name, without making all of them; None if there is none."""
    family = name.rpartition(".")[2]
    row = _TAPS.get(family)
    if row is None:
        return None
    number = re.fullmatch(r"blk\.(0|[1-9][0-9]{0,8})\.[a-z_]+", name)
    layer = int(number[1]) if number else 0
    if row[1] != bool(number) or layer >= config.layers or (not number and name != family):
        return None
    return Tap(name, family, row[0], layer, row[2], row[3])


def runs_from(tap: Tap, layer: int) -> bool:
    """Whether a tap is made when a run starts at a layer instead of at the tokens."""
    per_layer = _TAPS[tap.family][1]
    return tap.layer >= layer if per_layer else tap.index > 0


def is_matrix(name: str) -> bool:
    """Whether a tap's axes are (H, T, S): its tokens are on the second axis."""
    row = _TAPS.get(name.rpartition(".")[2])
    return row is not None and row[2]


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
    >>> from tinyllm.trace.taps import tap_names
    >>> tap_names(tinyllm.load().config)[:2]
    ['token_embd', 'blk.0.resid_pre']
    """
    return [tap.name for tap in all_taps(config)]


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
    >>> from tinyllm.trace.taps import tap_shape
    >>> config = tinyllm.load().config
    >>> tap_shape(config, "blk.0.attn_probs", 5) == (config.layer("heads", 0), 5, 5)
    True
    """
    (tap,) = select(all_taps(config), name)
    return tap.shape(config, tokens, tokens if context is None else context)


def unknown(pattern: object, names: Iterable[str]) -> str:
    """Say that there is no such name, and which are the nearest."""
    names = list(names)
    near = difflib.get_close_matches(str(pattern), names, n=3, cutoff=0.5)
    if not near and names:
        near = names[:3] + (["..."] if len(names) > 3 else [])
        return f"no tap is named {pattern!r}; there are {', '.join(near)}"
    return f"no tap is named {pattern!r}" + (
        f"; the nearest are {', '.join(map(repr, near))}" if near else ""
    )


def match(names: Sequence[str], capture: Capture, argument: str = "capture") -> list[str]:
    """The names that a ``capture=`` argument asks for, in their order.

    Parameters
    ----------
    names : sequence of str
    capture : str, re.Pattern, callable or sequence of str and re.Pattern
        Names, patterns with ``*``, ``?`` and ``[]``, regular expressions (searched), or a
        function of the name.
    argument : str
        What errors call it.

    Returns
    -------
    list of str

    Raises
    ------
    ValueError
        A name or pattern fits nothing; the nearest names are given.
    TypeError
        It is none of these.

    Examples
    --------
    >>> from tinyllm.trace.taps import match
    >>> match(["blk.0.attn_q", "blk.1.attn_q", "output"], "blk.*")
    ['blk.0.attn_q', 'blk.1.attn_q']
    """
    if callable(capture):
        return [name for name in names if capture(name)]
    wanted: set[str] = set()
    known = frozenset(names)
    try:
        patterns = [capture] if isinstance(capture, (str, re.Pattern)) else list(capture or ())
    except TypeError:
        patterns = [capture]  # type: ignore[list-item]
    for pattern in patterns:
        if isinstance(pattern, re.Pattern):
            found = [name for name in names if pattern.search(name)]
        elif isinstance(pattern, str):
            pattern = ALIASES.get(pattern, pattern)
            if any(c in pattern for c in "*?["):
                found = [name for name in names if fnmatch.fnmatchcase(name, pattern)]
            else:
                found = [pattern] if pattern in known else []
        else:
            raise TypeError(
                f"{argument} holds {pattern!r}; expected names, patterns or a function of the name"
            )
        if not found:
            raise ValueError(unknown(getattr(pattern, "pattern", pattern), names))
        wanted.update(found)
    return [name for name in names if name in wanted]


def select(taps: Sequence[Tap], capture: Capture, argument: str = "capture") -> list[Tap]:
    """The taps that a ``capture=`` argument asks for; None: all but the attention matrices."""
    if capture is None:
        return [tap for tap in taps if tap.family not in _LARGE]
    wanted = set(match([tap.name for tap in taps], capture, argument))
    return [tap for tap in taps if tap.name in wanted]
