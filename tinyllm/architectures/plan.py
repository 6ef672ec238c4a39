"""The plan of a forward pass: the steps of one model, in order, as data.

The C core runs a plan, and `tinyllm.reference` runs it in float64. It is also the list of all taps
of a model.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, overload

from ..display.table import Table

__all__ = ["FUNCTIONS", "ForwardPlan", "Number", "Step"]

#: The inputs of a plan, which steps read besides the values of earlier steps.
INPUTS = ("tokens", "positions")

#: Functions of one value, which the steps ``act`` and ``unary`` have as a number. The order is that
#: of ``enum tl_function`` in csrc/kernels/kernels.h. The last one is for ``act`` only.
FUNCTIONS = (
    *("identity", "silu", "gelu_tanh", "gelu", "sigmoid", "relu", "relu2", "soft_cap", "clamp"),
    *("scale", "swiglu_oai"),
)

#: The source of a number that its step does not use. Tables leave it out.
UNUSED = "unused"

#: The ops whose steps keep something of a context for later tokens: keys and values, or a state.
_KEEPING = ("cache", "conv", "delta", "scan", "scan_channels", "shift", "wkv")

#: Tensors that no step needs: pattern of the names, and what they are.
HARMLESS = {
    "*.input_scale": "scales of activations for 4-bit hardware",
    "blk.*.attn_rot_embd": "RoPE frequencies of files from 2023, which follow from the base",
    "blk.*.nextn.*": "the draft head that predicts several tokens, which is not supported",
    "blk.*.indexer.*": "the choice of keys in contexts that are longer than those that run",
    "blk.0.time_mix_v[012].weight": "a mixture of the first block's values with themselves",
    "rope_factors_*.weight": "RoPE factors for contexts of another length",
    "dense_[23].*": "projections of an embedding, which `Model.embed` uses",
    "dec.blk.*.cross_attn_rel_b.weight": "biases of old T5 files, which nothing uses",
    "cls.*": "the classifier of a reranker, which `Model.embed` uses",
}


class Number(NamedTuple):
    """A number of a step: its name, its value and its source."""

    name: str
    value: float
    source: str

    def __str__(self) -> str:
        """Return name, value and source."""
        return f"{self.name} {self.value:.6g}" + (f" ({self.source})" if self.source else "")


@dataclasses.dataclass(frozen=True, slots=True)
class Step:
    """One step of a forward pass.

    Attributes
    ----------
    tap : str
        The name of its value, for example ``"blk.3.attn_q"``. A step that stores keys and values
        in the cache has a name, too, but its value cannot be captured or edited.
    op : str
        The operation, a key of `tinyllm.reference.OPS`, or ``"cache"``.
    layer : int
        The block. -1 before the blocks, and the number of blocks after them.
    reads : tuple of str
        The values that it reads: names of earlier steps, and ``"tokens"`` or ``"positions"``.
    weights : tuple of str or None
        Names of tensors. None for an optional tensor that the file does not have.
    numbers : tuple of Number
        The parameters of the operation.
    shape : tuple of int
        The shape of the value without its token axis. For a matrix (H, T, S) it is (H,).
    heads : bool
        Whether the first axis of `shape` counts heads.
    matrix : bool
        Whether the value has shape (H, T, S) instead of (T, ...).
    roles : tuple of str
        The roles of the value, which do not depend on the architecture: see `ForwardPlan.role`.
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
        """The name without its prefix ``blk.N.``."""
        return self.tap.split(".", 2)[2] if self.tap.startswith("blk.") else self.tap

    def number(self, name: str) -> float:
        """Return the value of the number with this name."""
        return next(number.value for number in self.numbers if number.name == name)


class ForwardPlan(Sequence[Step]):
    """Every step of a model's forward pass, in the order of computation.

    A sequence of `Step`. ``steps[name]`` is the step with that name. It prints as a table with the
    source of each number: a key of the file, the row of the architecture, or a rule.

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
        """Return a step by index or name, or a plan with the steps of a slice."""
        if isinstance(key, str):
            if key not in self._numbers:
                raise KeyError(f"no step has the name {key!r}")
            return self._steps[self._numbers[key]]
        if isinstance(key, slice):
            return ForwardPlan(self._steps[key], self.layers)
        return self._steps[key]

    def __len__(self) -> int:
        """Return the number of steps."""
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
        """The steps that keep something of a context, in the order of the core's cache numbers.

        The op ``cache`` stores keys and values of all positions; the others have a state.
        """
        return tuple(step for step in self._steps if step.op in _KEEPING)

    @functools.cached_property
    def recurrent(self) -> bool:
        """Whether a step has a state, which cannot be taken back by some tokens."""
        return any(step.op != "cache" for step in self.caches)

    @functools.cached_property
    def ends_with_stream(self) -> bool:
        """Whether the steps after the blocks read the residual stream and nothing else."""
        last = [step for step in self._steps if step.layer == self.layers]
        inside = {step.tap for step in last}
        reads = {name for step in last for name in step.reads} - inside
        return len(reads) == 1 and len(self[reads.pop()].shape) == 1

    def role(self, role: str, layer: int | None = None) -> str:
        """Return the name of the value with a role. Names differ between architectures.

        Parameters
        ----------
        role : str
            In a block: ``resid_pre``, ``resid_post`` (the residual stream before and after the
            block), ``attn_input`` (the input of the query and key projections), ``queries``,
            ``keys``, ``values`` (as projected), ``attn_scores``, ``attn_probs``, ``attn_mix``
            (probabilities times values, by head), ``attn_project`` (the projection of that),
            ``attn_add`` (what attention adds to the stream), ``ffn_input``, ``ffn_hidden``,
            ``ffn_add``. With experts: ``router``, ``router_probs``, ``expert_ids``,
            ``expert_weights``. Outside the blocks: ``embedding``, ``final_norm_scale``,
            ``final_norm``, ``logits``.
        layer : int, optional
            The block. Leave it out for a role outside the blocks.

        Returns
        -------
        str

        Raises
        ------
        ValueError
            If no value has this role there.

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
        raise ValueError(f"role is {role!r}; expected a role that a value has {where}")

    def has_role(self, role: str, layer: int) -> bool:
        """Return whether a value of a block has a role. Not every block has attention.

        Parameters
        ----------
        role : str
            As in `role`.
        layer : int

        Returns
        -------
        bool

        Examples
        --------
        >>> import tinyllm
        >>> tinyllm.load().steps.has_role("attn_mix", 2)
        True
        """
        return (role, layer) in self._roles

    def roles(self, role: str) -> list[str]:
        """Return the names of all values with a role, from the first block to the last.

        Parameters
        ----------
        role : str
            As in `role`.

        Returns
        -------
        list of str
            May be empty.

        Examples
        --------
        >>> import tinyllm
        >>> tinyllm.load().steps.roles("resid_post")[:2]
        ['blk.0.resid_post', 'blk.1.resid_post']
        """
        return [step.tap for step in self._steps if role in step.roles]

    def projection(self, tap: str) -> Step:
        """Return the step that multiplies with a matrix to compute a value.

        It is the step of the value itself, or ``X.base`` if an adapter changes the matrix of ``X``.

        Parameters
        ----------
        tap : str

        Returns
        -------
        Step

        Examples
        --------
        >>> import tinyllm
        >>> tinyllm.load().steps.projection("blk.0.attn_q").weights[0]
        'blk.0.attn_q.weight'
        """
        base = f"{tap}.base"
        return self[base if base in self._numbers else tap]

    def unused(self, tensors: Iterable[str]) -> list[str]:
        """Return the tensors that no step uses, except those that no step needs (`HARMLESS`).

        Parameters
        ----------
        tensors : iterable of str
            Names of tensors.

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
        """Return the steps in the form that `tinyllm._core.Model` takes.

        Attention reads keys and values from the cache. So a read of keys or values becomes a read
        of the step that stores them.
        """
        numbers = self._numbers
        stored: Mapping[str, int] = {
            name: numbers[cache.tap]
            for cache in self.caches
            if cache.op == "cache"
            for name in cache.reads
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
        """Return a table of the steps: name, op, reads, weights, shape, numbers and their sources.

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
        """Return the table as text."""
        return str(self.table())

    def __repr__(self) -> str:
        """Return the number of steps and blocks."""
        return f"<tinyllm.ForwardPlan: {len(self)} steps, {self.layers} blocks>"

    def _repr_html_(self) -> str:
        return self.table().html(caption=repr(self))
