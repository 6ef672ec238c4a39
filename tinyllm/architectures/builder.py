"""`Builder`: builds the steps of a forward pass, one after another."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Container, Mapping, Sequence
from typing import Any

from ..errors import UnsupportedError
from .arch import Arch
from .config import Config
from .plan import UNUSED, Number, Step

__all__ = ["Builder"]

_ROPE_LAYOUTS = {"pairs": 0, "halves": 1}
_ROPE_SCALINGS = {None: 0, "none": 0, "linear": 1, "yarn": 2}

#: Numbers of RoPE scaling: key under ``rope.scaling``, and default (None: the context length).
_SCALING_NUMBERS: dict[str, tuple[str, float | None]] = {
    "factor": ("factor", 1.0),
    "original_context_length": ("original_context_length", None),
    "beta_fast": ("yarn_beta_fast", 32.0),
    "beta_slow": ("yarn_beta_slow", 1.0),
    "ext_factor": ("yarn_ext_factor", 1.0),
    "attn_factor": ("attn_factor", 1.0),
}
_YARN = tuple(_SCALING_NUMBERS)


class Builder:
    """The steps of a model so far, with methods that append to them.

    These methods take and return names of taps. Each number of a step has a source: a key of the
    file, the row of the architecture, or a rule.

    Parameters
    ----------
    config : Config
    arch : Arch
    tensors : container of str
        Names of the file's tensors. They decide which optional parts there are.
    metadata : mapping
        The file's keys, which are the sources of numbers.

    Attributes
    ----------
    steps : list of Step
    layer : int
        The current block. -1 before the blocks, and the number of blocks after them.
    """

    def __init__(
        self, config: Config, arch: Arch, tensors: Container[str], metadata: Mapping[str, Any]
    ) -> None:
        self.config = config
        self.arch = arch
        self.steps: list[Step] = []
        self.layer = -1
        self._tensors = tensors
        self._metadata = metadata
        self._numbers: dict[str, int] = {}

    # ---- names and numbers ----

    def name(self, tap: str) -> str:
        """Return the full name of a tap or tensor of the current block."""
        return f"blk.{self.layer}.{tap}" if 0 <= self.layer < self.config.layers else tap

    def of_layer(self, value: int | Sequence[int]) -> int:
        """Return the value for the current block of a config field that may be per layer."""
        return value[self.layer] if isinstance(value, Sequence) else value

    def number(self, name: str, value: float, key: str | None = None, rule: str = "") -> Number:
        """Return a number whose source is `key` if the file has this key, else `rule`."""
        full = f"{self.config.architecture}.{key}"
        return Number(name, float(value), full if key and full in self._metadata else rule)

    def optional(self, tensor: str) -> str | None:
        """Return the name of a tensor of the current block, or None if the file has none."""
        return self.name(tensor) if self.name(tensor) in self._tensors else None

    # ---- steps ----

    def add_step(self, op: str, tap: str, reads: tuple[str, ...], **more: Any) -> str:
        """Append a step and return its tap."""
        step = Step(self.name(tap), op, self.layer, reads, **more)
        self.steps.append(step)
        self._numbers[step.tap] = len(self.steps) - 1
        return step.tap

    def give_role(self, tap: str, role: str) -> str:
        """Add a role to a value and return its tap."""
        i = self._numbers[tap]
        self.steps[i] = dataclasses.replace(self.steps[i], roles=(*self.steps[i].roles, role))
        return tap

    def shape(self, tap: str) -> tuple[int, ...]:
        """Return the shape of a value without its token axis."""
        return self.steps[self._numbers[tap]].shape

    def embed(self) -> str:
        """Add the look-up of the tokens' embeddings."""
        c = self.config
        return self.add_step(
            "embed",
            "token_embd",
            ("tokens",),
            weights=("token_embd.weight",),
            numbers=(
                self.number("vocabulary", c.vocab_size, rule="rows of token_embd.weight"),
                self.number("width", c.width, "embedding_length"),
            ),
            shape=(c.width,),
            roles=("embedding",),
        )

    def same(self, tap: str, x: str) -> str:
        """Add a second name for a value. The name is also its role."""
        return self.add_step("same", tap, (x,), shape=self.shape(x), roles=(tap,))

    def norm(self, tap: str, x: str, role: str) -> str:
        """Add RMSNorm over the last axis in two steps: the factor 1 / rms, and the norm."""
        *leading, _ = self.shape(x)
        epsilon = self.number(
            "epsilon", self.config.norm_epsilon, "attention.layer_norm_rms_epsilon"
        )
        scale = self.add_step(
            "norm_scale",
            f"{tap}_scale",
            (x,),
            numbers=(epsilon,),
            shape=tuple(leading),
            roles=(f"{role}_scale",),
        )
        return self.add_step(
            "norm",
            tap,
            (x, scale),
            weights=(self.name(f"{tap}.weight"),),
            shape=self.shape(x),
            roles=(role,) if role else (),
        )

    def linear(
        self, tap: str, x: str, size: Number, heads: Number | None = None, role: str = ""
    ) -> str:
        """Add a product with ``tap.weight`` plus ``tap.bias``, of shape (size,) or (heads, size).

        The bias is added if the file has it, or if the architecture demands it.
        """
        bias = self.optional(f"{tap}.bias")
        if tap in self.arch.biases:
            bias = self.name(f"{tap}.bias")
        flat = Number("heads", 0, UNUSED)
        axes = (size,) if heads is None else (heads, size)
        return self.add_step(
            "linear",
            tap,
            (x,),
            weights=(self.name(f"{tap}.weight"), bias),
            numbers=(heads or flat, size),
            shape=tuple(int(axis.value) for axis in axes),
            heads=heads is not None,
            roles=(role,) if role else (),
        )

    def rope(self, tap: str, x: str) -> str:
        """Add the rotation of queries or keys by their positions."""
        return self.add_step(
            "rope",
            tap,
            (x, "positions"),
            weights=("rope_freqs.weight" if "rope_freqs.weight" in self._tensors else None,),
            numbers=self._rope_numbers,
            shape=self.shape(x),
            heads=True,
        )

    @functools.cached_property
    def _rope_numbers(self) -> tuple[Number, ...]:
        c = self.config
        scaling = dict(c.rope_scaling or {})
        kind = scaling.get("type")
        if kind not in _ROPE_SCALINGS:
            raise UnsupportedError(
                f"rope_scaling type is {kind!r}; this version supports none, linear, yarn"
            )
        if kind == "yarn" and scaling.get("ext_factor") == 0:  # as in ggml's rope_yarn
            kind = "linear"
            del scaling["ext_factor"]
        used = {"linear": ("factor",), "yarn": _YARN}.get(kind or "", ())
        numbers = [
            Number("layout", _ROPE_LAYOUTS[self.arch.rope], f"row: {self.arch.rope}"),
            self.number("rotated", c.rope_dimension, "rope.dimension_count", "rule: head size"),
            self.number("base", c.rope_base, "rope.freq_base", "rule"),
            self.number("scaling", _ROPE_SCALINGS[kind], "rope.scaling.type", "rule: none"),
        ]
        for name, (key, default) in _SCALING_NUMBERS.items():
            value = scaling.get(name)
            if value is None:
                value = c.context_length if default is None else default
            number = self.number(name, value, f"rope.scaling.{key}", "rule")
            if name not in used and not (name == "attn_factor" and value != default):
                number = number._replace(source=UNUSED)
            numbers.append(number)
        return tuple(numbers)

    def cache(self, keys: str, values: str) -> None:
        """Add the step that stores keys and values in the cache for later tokens."""
        self.add_step("cache", "cache", (keys, values))

    def attend(self, queries: str, keys: str, values: str) -> str:
        """Add attention in three steps: scores, probabilities, and the weighted sum of values."""
        heads, size = self.shape(queries)
        own = self.config.attention_scale
        scale = own or 1 / math.sqrt(size)
        scores = self.add_step(
            "scores",
            "attn_scores",
            (queries, keys),
            numbers=(self.number("factor", scale, "attention.scale", "rule: 1/sqrt(head size)"),),
            shape=(heads,),
            heads=True,
            matrix=True,
            roles=("attn_scores",),
        )
        probs = self.add_step(
            "softmax",
            "attn_probs",
            (scores,),
            shape=(heads,),
            heads=True,
            matrix=True,
            roles=("attn_probs",),
        )
        return self.add_step(
            "mix",
            "attn_mix",
            (probs, values),
            shape=(heads, self.shape(values)[1]),
            heads=True,
            roles=("attn_mix",),
        )

    def add(self, tap: str, x: str, y: str, role: str = "") -> str:
        """Add the sum of two values."""
        return self.add_step("add", tap, (x, y), shape=self.shape(x), roles=(role,) if role else ())

    def act(self, tap: str, gate: str, up: str) -> str:
        """Add the gated activation silu(gate) * up."""
        silu = Number("function", 0, "row: silu")
        return self.add_step(
            "act", tap, (gate, up), numbers=(silu,), shape=self.shape(gate), roles=("ffn_hidden",)
        )

    def output(self, x: str) -> str:
        """Add the logits. Without ``output.weight`` in the file, the matrix is the embedding."""
        tied = self.optional("output.weight") is None
        size = self.number("size", self.config.vocab_size, rule="rows of token_embd.weight")
        return self.add_step(
            "linear",
            "output",
            (x,),
            weights=(
                "token_embd.weight" if tied else "output.weight",
                None if tied else self.optional("output.bias"),
            ),
            numbers=(Number("heads", 0, UNUSED), size),
            shape=(self.config.vocab_size,),
            roles=("logits",),
        )
