"""Taps: the names of inner values, and their selection by name and pattern.

The tap ``X`` is the output of the step that uses the weight ``X.weight``. Steps without a weight
have names of their own, which are the same in every architecture.
"""

from __future__ import annotations

import dataclasses
import difflib
import fnmatch
import re
from collections.abc import Callable, Iterable, Sequence
from typing import TypeAlias

from ..architectures.plan import ForwardPlan, Step
from ..display.families import Member, families, layers_text
from ..display.table import Table
from .dialects import hint, translate

__all__ = [
    "ALIASES",
    "Capture",
    "Tap",
    "Taps",
    "all_taps",
    "is_matrix",
    "match",
    "select",
    "unknown",
]

#: The type of the argument ``capture=``.
Capture: TypeAlias = (
    str | re.Pattern[str] | Callable[[str], object] | Sequence["str | re.Pattern[str]"] | None
)

#: Other names of taps.
ALIASES = {"logits": "output"}


@dataclasses.dataclass(frozen=True, slots=True)
class Tap:
    """One value that can be captured and edited: the output of one step of a plan.

    Attributes
    ----------
    name, family : str
        For example ``"blk.3.attn_q"`` and ``"attn_q"``.
    index : int
        The number of its step in the plan and in the core.
    layer : int
        The block. -1 before the blocks, and the number of blocks after them.
    matrix : bool
        Whether the axes are (H, T, S) instead of (T, ...).
    row : tuple of int
        The sizes of the axes except T and S.
    heads : bool
        Whether one of the axes counts heads.
    roles : tuple of str
        The roles of the value: see `ForwardPlan.role`.
    mask : tuple of int
        Of an attention matrix: the kind of its mask, and the size of the window. See
        `tinyllm.reference.ops.visible_keys`.
    choices : int
        If the values are ids of experts: how many experts there are. Otherwise 0.
    """

    name: str
    family: str
    index: int
    layer: int
    matrix: bool
    row: tuple[int, ...]
    heads: bool
    roles: tuple[str, ...]
    mask: tuple[int, int] = (0, 0)
    choices: int = 0

    @property
    def index_axis(self) -> int | None:
        """The axis of neurons or dimensions: the last one, if it is neither of tokens nor heads."""
        last = len(self.row)  # behind the axis of tokens
        return None if self.matrix or last in (0, self.head_axis) else last

    @property
    def head_axis(self) -> int | None:
        """The axis of the heads, or None."""
        return (0 if self.matrix else 1) if self.heads else None

    def shape(self, tokens: int, context: int) -> tuple[int, ...]:
        """Return the shape for the given number of tokens in the call and in the context."""
        return (*self.row, tokens, context) if self.matrix else (tokens, *self.row)


class Taps(tuple[Tap, ...]):
    """The taps of a model: a tuple, which is shown as a table.

    Examples
    --------
    >>> import tinyllm
    >>> taps = tinyllm.load().taps
    >>> taps[0].name
    'token_embd'
    >>> print(taps.table().rows[3])
    ('blk.*.attn_norm', '0-3', '(T, 256)', 'attn_input')
    """

    __slots__ = ()

    def table(self) -> Table:
        """Return a table with one row for the taps of all blocks that have one name and shape.

        Returns
        -------
        Table
            T stands for the tokens of the call, S for those of the context.
        """

        def shape(tap: Tap) -> str:
            axes = map(str, tap.row)
            return f"({', '.join((*axes, 'T', 'S') if tap.matrix else ('T', *axes))})"

        members = [Member(tap.name, (shape(tap), tap.roles), 0, None) for tap in self]
        return Table(
            ("tap", "layers", "shape", "roles"),
            [
                (family.pattern, layers_text(family.layers), axes, ", ".join(roles))
                for family in families(members)
                for axes, roles in [family.members[0].kind]
            ],
        )

    def __repr__(self) -> str:
        """Return the table as text."""
        return str(self.table())

    def _repr_html_(self) -> str:
        return self.table().html(caption=f"{len(self)} taps")


def all_taps(plan: ForwardPlan) -> list[Tap]:
    """Return every tap of a model, in the order of the forward pass.

    Parameters
    ----------
    plan : ForwardPlan
        ``model.steps``.

    Returns
    -------
    list of Tap

    Examples
    --------
    >>> import tinyllm
    >>> from tinyllm.trace.taps import all_taps
    >>> [tap.name for tap in all_taps(tinyllm.load().steps)][:2]
    ['token_embd', 'blk.0.resid_pre']
    """
    return [
        Tap(
            *(step.tap, step.family, i, step.layer, step.matrix, step.shape, step.heads),
            step.roles,
            _mask(plan, step) if step.matrix else (0, 0),
            plan[step.reads[0]].shape[0] if step.op == "route_ids" else 0,
        )
        for i, step in enumerate(plan)
        if step.visible
    ]


def _mask(plan: ForwardPlan, step: Step) -> tuple[int, int]:
    """Return the mask of an attention matrix, which its step `scores` states."""
    scores = step if step.op == "scores" else plan[step.reads[0]]
    return int(scores.number("mask")), int(scores.number("window"))


def is_matrix(name: str) -> bool:
    """Return whether a tap is an attention matrix (H, T, S), with its tokens on axis 1."""
    return name.endswith((".attn_scores", ".attn_probs"))


def unknown(pattern: object, names: Iterable[str]) -> str:
    """Return the message for a name or pattern that fits no tap, with ours or the nearest."""
    names = list(names)
    start = f"no tap matches {pattern!r}"
    if reason := hint(pattern, names):
        return f"{start}; {reason}"
    module = str(pattern).removesuffix(".weight").removesuffix(".bias")
    if module != pattern and (module in names or translate(module, names)):
        return f"{start}; it is a weight, as model.weights has them" + (
            f". The tap is {module!r}" if module in names else f"; {hint(module, names)}"
        )
    near = difflib.get_close_matches(str(pattern), names, n=3, cutoff=0.5)
    if not near and names:
        near = names[:3] + (["..."] if len(names) > 3 else [])
        return f"{start}; the taps are {', '.join(near)}"
    return start + (f"; the nearest are {', '.join(map(repr, near))}" if near else "")


def match(names: Sequence[str], capture: Capture, argument: str = "capture") -> list[str]:
    """Return the names that a ``capture=`` argument selects, in the order of `names`.

    Parameters
    ----------
    names : sequence of str
    capture : str, re.Pattern, callable or sequence of str and re.Pattern
        Names, patterns with ``*``, ``?`` and ``[]``, regular expressions (as in ``re.search``),
        or a function of the name.
    argument : str
        Name of the argument in messages.

    Returns
    -------
    list of str

    Raises
    ------
    ValueError
        If a name or pattern matches nothing. The message has the nearest names.
    TypeError
        If `capture` has another type.

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
        given = () if capture is None else capture
        patterns = [given] if isinstance(given, (str, re.Pattern)) else list(given)
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
    """Return the taps that ``capture=`` selects. None selects all but the attention matrices."""
    if capture is None:
        return [tap for tap in taps if not tap.matrix]
    wanted = set(match([tap.name for tap in taps], capture, argument))
    return [tap for tap in taps if tap.name in wanted]
