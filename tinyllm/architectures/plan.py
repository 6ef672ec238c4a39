"""The plan of a forward pass: the steps of one model, in order, as data.

The C core runs a plan, `tinyllm.reference` walks it in float64, and everything that wants to know
which inner values a model has asks it.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, overload

from ..display.table import Table

__all__ = ["ForwardPlan", "Number", "Step"]

#: What steps read besides the values of earlier steps.
INPUTS = ("tokens", "positions")

#: The source of a number that a step has and does not use; it is not shown.
UNUSED = "unused"

#: Tensors that no step uses, and that change nothing.
HARMLESS = {
    "*.input_scale": "scales of activations for 4-bit hardware",
    "blk.*.attn_rot_embd": "RoPE frequencies of files from 2023, which follow from the base",
    "blk.*.nextn.*": "the draft head that predicts several tokens, which does not run here",
}


class Number(NamedTuple):
    """A number of a step: its name, its value, and where it comes from."""

    name: str
    value: float
    source: str

    def __str__(self) -> str:
        """Name, value and source."""
        return f"{self.name} {self.value:.6g}" + (f" ({self.source})" if self.source else "")


@dataclasses.dataclass(frozen=True, slots=True)
class Step:
    """One step of a forward pass.

    Attributes
    ----------
    tap : str
        The name of its value, ``"blk.3.attn_q"``. A step that stores keys and values in a cache
        has a name too, but no value that can be seen.
    op : str
        What it computes; `tinyllm.reference` has a function of that name.
    layer : int
        The block; -1 before the blocks, and the number of blocks after them.
    reads : tuple of str
        Names of earlier steps, and ``"tokens"`` or ``"positions"``.
    weights : tuple of str or None
        Names of tensors; None where the file has none and needs none.
    numbers : tuple of Number
        The op's own numbers.
    shape : tuple of int
        Of the value without its token axis; of a matrix (H, T, S) only (H,).
    heads : bool
        Whether the first axis of `shape` counts heads.
    matrix : bool
        Whether the value is (H, T, S) rather than (T, ...).
    roles : tuple of str
        What the value is for, whatever its name: see `ForwardPlan.role`.
    """

    tap: str
    op: str
    layer: int
    reads: tuple[str, ...]
    weights: tuple[str | None, ...] = ()
    numbers: tuple[Number, ...] = ()
    shape: tuple[int, ...] = ()
    heads: bool = False
    matrix: bool = False
    roles: tuple[str, ...] = ()

    @property
    def visible(self) -> bool:
        """Whether the value can be captured and edited."""
        return self.op != "cache"

    @property
    def family(self) -> str:
        """The name without the number of its block."""
        return self.tap.split(".", 2)[2] if self.tap.startswith("blk.") else self.tap

    def number(self, name: str) -> float:
        """The value of one of the numbers."""
        return next(number.value for number in self.numbers if number.name == name)


class ForwardPlan(Sequence[Step]):
    """Every step of a model's forward pass, in the order of computation.

    A sequence of `Step`; a name in brackets gives the step of that name. It prints as a table
    that says where each number comes from: a key of the file, the row of the architecture, or a
    rule.

    Examples
    --------
    >>> import tinyllm
    >>> steps = tinyllm.load().steps
    >>> steps["blk.0.attn_mix"].reads
    ('blk.0.attn_probs', 'blk.0.attn_v')
    >>> steps.role("ffn_input", 0)
    'blk.0.ffn_norm'
    >>> print(steps[:3])  # doctest: +ELLIPSIS
    step...
    """

    def __init__(self, steps: Iterable[Step], layers: int) -> None:
        self._steps = tuple(steps)
        self.layers = layers

    @overload
    def __getitem__(self, key: int | str) -> Step: ...
    @overload
    def __getitem__(self, key: slice) -> ForwardPlan: ...
    def __getitem__(self, key: int | str | slice) -> Step | ForwardPlan:
        """Give a step by number or name, or the steps of a slice."""
        if isinstance(key, str):
            if key not in self._numbers:
                raise KeyError(f"no step is named {key!r}")
            return self._steps[self._numbers[key]]
        if isinstance(key, slice):
            return ForwardPlan(self._steps[key], self.layers)
        return self._steps[key]

    def __len__(self) -> int:
        """Count the steps."""
        return len(self._steps)

    def __iter__(self) -> Iterator[Step]:
        """Iterate in the order of computation."""
        return iter(self._steps)

    @functools.cached_property
    def _numbers(self) -> dict[str, int]:
        return {step.tap: i for i, step in enumerate(self._steps)}

    @functools.cached_property
    def _roles(self) -> dict[tuple[str, int], str]:
        return {(role, step.layer): step.tap for step in self._steps for role in step.roles}

    @functools.cached_property
    def caches(self) -> tuple[Step, ...]:
        """The steps that store keys and values, in the order in which the core numbers them."""
        return tuple(step for step in self._steps if step.op == "cache")

    def role(self, role: str, layer: int | None = None) -> str:
        """The name of the value that plays a role, which differs between architectures.

        Parameters
        ----------
        role : str
            In a block: ``resid_pre``, ``resid_post`` (the residual stream that enters and
            leaves), ``attn_input`` (what queries and keys are made from), ``queries``, ``keys``,
            ``values`` (as projected), ``attn_scores``, ``attn_probs``, ``attn_mix``
            (probabilities times values, by head), ``attn_project`` (the projection of that),
            ``attn_add`` (what attention adds to the stream), ``ffn_input``, ``ffn_hidden``,
            ``ffn_add``. Outside: ``embedding``, ``final_norm_scale``, ``final_norm``,
            ``logits``.
        layer : int, optional
            The block of a role in a block.

        Returns
        -------
        str

        Raises
        ------
        ValueError
            No value plays that role there.

        Examples
        --------
        >>> import tinyllm
        >>> tinyllm.load().steps.role("attn_add", 2)
        'blk.2.attn_output'
        """
        places = (-1, self.layers) if layer is None else (layer,)
        for place in places:
            if (role, place) in self._roles:
                return self._roles[role, place]
        where = "outside the blocks" if layer is None else f"in block {layer}"
        raise ValueError(f"role is {role!r}; no value plays it {where}")

    def roles(self, role: str) -> list[str]:
        """The names of the values that play a role, from the first block to the last.

        Parameters
        ----------
        role : str
            As for `role`.

        Returns
        -------
        list of str
            Empty if there are none.

        Examples
        --------
        >>> import tinyllm
        >>> tinyllm.load().steps.roles("resid_post")[:2]
        ['blk.0.resid_post', 'blk.1.resid_post']
        """
        return [step.tap for step in self._steps if role in step.roles]

    def unused(self, tensors: Iterable[str]) -> list[str]:
        """The tensors that no step uses, but for those that are known to change nothing.

        Parameters
        ----------
        tensors : iterable of str
            Names.

        Returns
        -------
        list of str

        Examples
        --------
        >>> import tinyllm
        >>> tinyllm.load().steps.unused(["blk.0.attn_q.weight", "blk.0.attn_qq.bias"])
        ['blk.0.attn_qq.bias']
        """
        used = {name for step in self._steps for name in step.weights}
        return [
            name
            for name in tensors
            if name not in used
            and not any(fnmatch.fnmatchcase(name, pattern) for pattern in HARMLESS)
        ]

    def lowered(self) -> list[tuple[str, int, tuple[int, ...], tuple[str | None, ...], Any]]:
        """The steps as `tinyllm._core.Model` takes them.

        Attention reads keys and values from the cache that stores them: a read of the one or the
        other becomes a read of that step.
        """
        numbers = self._numbers
        stored: Mapping[str, int] = {
            name: numbers[cache.tap] for cache in self.caches for name in cache.reads
        }

        def read(step: Step, name: str) -> int:
            if step.op in ("scores", "mix") and name in stored:
                return stored[name]
            return numbers[name]

        return [
            (
                step.op,
                step.layer,
                tuple(read(step, name) for name in step.reads if name not in INPUTS),
                step.weights,
                tuple(float(number.value) for number in step.numbers),
            )
            for step in self._steps
        ]

    def table(self) -> Table:
        """A table of the steps: name, op, reads, weights, shape, numbers and their sources.

        Returns
        -------
        Table

        Examples
        --------
        >>> import tinyllm
        >>> print(tinyllm.load().steps.table())  # doctest: +ELLIPSIS
        step...
        """

        def short(step: Step, name: str | None) -> str:
            return (name or "").removeprefix(f"blk.{step.layer}.")

        def shape(step: Step) -> str:
            if not step.visible:
                return ""
            axes = map(str, step.shape)
            return f"({', '.join((*axes, 'T', 'S') if step.matrix else ('T', *axes))})"

        return Table(
            ("step", "op", "reads", "weights", "shape", "numbers"),
            [
                (
                    step.tap,
                    step.op,
                    " ".join(short(step, name) for name in step.reads),
                    " ".join(short(step, name) for name in step.weights if name),
                    shape(step),
                    ", ".join(str(n) for n in step.numbers if n.source != UNUSED),
                )
                for step in self._steps
            ],
        )

    def __str__(self) -> str:
        """The table as text."""
        return str(self.table())

    def __repr__(self) -> str:
        """Count steps and blocks."""
        return f"<tinyllm.ForwardPlan: {len(self)} steps, {self.layers} blocks>"

    def _repr_html_(self) -> str:
        return self.table().html(caption=repr(self))
