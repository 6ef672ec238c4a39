"""`Builder`: builds the steps of a forward pass, one after another."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Container, Sequence
from typing import Any

import numpy as np

from ..errors import UnsupportedError, wrong
from .arch import Arch
from .config import Config
from .plan import FUNCTIONS, UNUSED, Number, Step
from .reader import LONGEST, Reader

__all__ = ["Builder"]

_ROPE_LAYOUTS = {"pairs": 0, "halves": 1}
_ROPE_SCALINGS = {None: 0, "none": 0, "linear": 1, "yarn": 2}
_MASKS = {"causal": 0, "window": 1, "chunk": 2, "symmetric": 3, "none": 4}

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
    keys : Reader
        Reads the file's keys, which are the sources of numbers.
    max_context : int
        The longest context that the model is loaded for. 0: that of the config.

    Attributes
    ----------
    steps : list of Step
    layer : int
        The current block. -1 before the blocks, and the number of blocks after them.
    """

    def __init__(
        self,
        config: Config,
        arch: Arch,
        tensors: Container[str],
        keys: Reader,
        max_context: int = 0,
    ) -> None:
        self.config = config
        self.arch = arch
        self.max_context = max_context or config.context_length
        self.keys = keys
        self.steps: list[Step] = []
        self.layer = -1
        self._tensors = tensors
        self._numbers: dict[str, int] = {}
        self._ropes: dict[bool, tuple[Number, ...]] = {}

    # ---- names and numbers ----

    def name(self, tap: str) -> str:
        """Return the full name of a tap of the current block."""
        return f"blk.{self.layer}.{tap}" if 0 <= self.layer < self.config.layers else tap

    def tensor(self, name: str) -> str:
        """Return the full name of a tensor of the current block."""
        inside = 0 <= self.layer < self.config.layers
        return f"{self.arch.blocks}.{self.layer}.{name}" if inside else name

    def of_layer(self, value: int | Sequence[int]) -> int:
        """Return the value for the current block of a config field that may be per layer."""
        return value[self.layer] if isinstance(value, Sequence) else value

    def number(self, name: str, value: float, key: str | None = None, rule: str = "") -> Number:
        """Return a number whose source is `key` if the file has this key, else `rule`."""
        full = self.keys.full(key) if key else ""
        return Number(name, float(value), full if full in self.keys.metadata else rule)

    def key(self, name: str, key: str, default: float, rule: str = "row") -> Number:
        """Return a number that a key of the file states, or the default."""
        return self.number(name, self.keys.number(key, default), key, rule if default else "")

    def optional(self, tensor: str) -> str | None:
        """Return the name of a tensor of the current block, or None if the file has none."""
        return self.tensor(tensor) if self.tensor(tensor) in self._tensors else None

    def has(self, part: str) -> bool:
        """Whether the model has a part: demanded by the row, or allowed and in the file."""
        there = self.optional(f"{part}.weight") is not None
        return part in self.arch.required or (there and part in self.arch.optional)

    # ---- steps ----

    @property
    def width(self) -> Number:
        """The width of the residual stream, as the size of a value."""
        return self.number("size", self.config.width, "embedding_length")

    def add_step(
        self, op: str, tap: str, reads: tuple[str, ...], *, role: str = "", **more: Any
    ) -> str:
        """Append a step and return its tap. "" is no role."""
        if role:
            more["roles"] = (role,)
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

    def embedding(self) -> str:
        """Add the look-up of the tokens' embeddings, and what the model does to them."""
        x = self.embed("token_embd", self.config.vocab_size)
        default, rule = self._scales[0], "row"
        if self.arch.embed_scale == "sqrt_width":
            default, rule = math.sqrt(self.config.width), "rule: sqrt(width)"
        factor = self.key("parameter", "embedding_scale", default, rule)
        if factor.value not in (0.0, 1.0):
            x = self.unary("embd_scaled", "scale", x, factor)
        if self.has("position_embd"):
            positions = self.embed("position_embd", self.config.context_length, index=1)
            x = self.add("embd", x, positions)
        return self.give_role(x, "embedding")

    @functools.cached_property
    def _scales(self) -> tuple[float, float, float]:
        """Factors of the embedding, the branches and the logits, if the file states none."""
        return self.arch.scales(self.config) if self.arch.scales else (1.0, 1.0, 1.0)

    def rows(self, tensor: str, default: int = 1, axis: int = 0) -> int:
        """Return the length of an axis of ``tensor.weight``; `default` if that is not known."""
        tensors: Any = self._tensors
        try:
            return int(tensors[f"{tensor}.weight"].shape[axis])
        except (TypeError, KeyError, AttributeError):
            return default

    def embed(self, tap: str, rows: int, index: int = 0, width: int = 0) -> str:
        """Add a row of ``tap.weight`` for each token, of the model's width or another one.

        `index` 0: the token's own row, 1: that of its position, 2: the first row.
        """
        chosen = ("row of the token", "row of the position", "the first row")[index]
        return self.add_step(
            "embed",
            tap,
            ("positions" if index == 1 else "tokens",),
            weights=(f"{tap}.weight",),
            numbers=(
                self.number("vocabulary", rows, rule=f"rows of {tap}.weight"),
                Number("width", width, "rule")
                if width
                else self.number("width", self.config.width, "embedding_length"),
                Number("index", index, UNUSED if index == 0 else chosen),
            ),
            shape=(width or self.config.width,),
        )

    def same(self, tap: str, x: str) -> str:
        """Add a second name for a value. The name is also its role."""
        return self.add_step("same", tap, (x,), shape=self.shape(x), role=tap)

    def cut(self, tap: str, x: str, axis: int, first: int, size: int, role: str = "") -> str:
        """Add a part of an axis of a value. Axis 0 is the first one after T."""
        shape = list(self.shape(x))
        shape[axis] = size
        return self.add_step(
            "slice",
            tap,
            (x,),
            numbers=(
                Number("axis", axis, ""),
                Number("first", first, ""),
                Number("size", size, ""),
            ),
            shape=tuple(shape),
            heads=self.step(x).heads,
            role=role,
        )

    def heads(self, tap: str, x: str, heads: int, size: int, named: bool = False) -> str:
        """Add the same values in the shape (heads, size), or (size,) for 0 heads.

        `named`: the first axis counts heads, and not other things.
        """
        return self.add_step(
            "shape",
            tap,
            (x,),
            numbers=(Number("heads", heads, ""), Number("size", size, "")),
            shape=(heads, size) if heads else (size,),
            heads=named,
        )

    def scaled(self, tap: str, x: str, factor: float, rule: str) -> str:
        """Add a value times a number."""
        return self.unary(tap, "scale", x, Number("parameter", factor, rule))

    def weighted(self, tap: str, x: str, tensor: str, role: str = "", each: bool = False) -> str:
        """Add a value times a tensor, of one value or of as many as the last axis."""
        name = self.tensor(tensor if tensor.endswith(".scale") else f"{tensor}.weight")
        size = self.shape(x)[-1] if each or tensor.endswith(".scale") else 1
        return self.add_step(
            "scale",
            tap,
            (x,),
            weights=(name,),
            numbers=(Number("size", size, ""),),
            shape=self.shape(x),
            heads=self.step(x).heads,
            role=role,
        )

    def combine(self, tap: str, x: str, coefficients: str) -> str:
        """Add weighted sums of vectors. (n, D), m times n values -> (m, D)."""
        n, size = self.shape(x)
        count = math.prod(self.shape(coefficients)) // n
        return self.add_step("combine", tap, (x, coefficients), shape=(count, size))

    def add_shared(self, tap: str, x: str, y: str) -> str:
        """Add the sum of each vector with one vector. (n, D), (D,) -> (n, D)."""
        return self.add_step("add_shared", tap, (x, y), shape=self.shape(x))

    def concat(self, tap: str, x: str, y: str) -> str:
        """Add y behind x in each head; a y of one head is shared by all heads."""
        heads, size = self.shape(x)
        return self.add_step(
            "concat", tap, (x, y), shape=(heads, size + self.shape(y)[1]), heads=self.step(x).heads
        )

    def softplus(self, tap: str, x: str, bias: str | None = None) -> str:
        """Add log(1 + exp(x + bias))."""
        return self.add_step(
            "softplus", tap, (x,), weights=(bias,), shape=self.shape(x), heads=self.step(x).heads
        )

    def exp(self, tap: str, x: str, factor: Number) -> str:
        """Add exp(factor x)."""
        return self.add_step(
            "exp",
            tap,
            (x,),
            numbers=(factor._replace(name="factor"),),
            shape=self.shape(x),
            heads=self.step(x).heads,
        )

    def head_linear(
        self,
        tap: str,
        x: str,
        size: Number,
        part: tuple[int, int] = (0, 0),
        weight: str = "",
        role: str = "",
    ) -> str:
        """Add a product of each head with a matrix of its own. (H, n) -> (H, size).

        The tensor `weight`, by default ``tap.weight``, has the shape (H, size, n). `part` names
        the first row and how many rows a head has in all, if these are not all.
        """
        heads = self.shape(x)[0]
        return self.add_step(
            "head_linear",
            tap,
            (x,),
            weights=(weight or self.tensor(f"{tap}.weight"), None, self.optional(f"{tap}.scale")),
            numbers=(
                size,
                Number("first", part[0], UNUSED),
                Number("rows", part[1] or size.value, UNUSED),
            ),
            shape=(heads, int(size.value)),
            heads=True,
            role=role,
        )

    def step(self, tap: str) -> Step:
        """Return the step that computes a value."""
        return self.steps[self._numbers[tap]]

    def norm(
        self,
        tap: str,
        x: str,
        role: str = "",
        *,
        kind: str = "",
        covers: int = 1,
        weights: bool | str = True,
        epsilon: Number | None = None,
    ) -> str:
        """Add RMSNorm or LayerNorm in two or three steps: statistics, and the norm.

        Parameters
        ----------
        tap : str
            The name of the norm; ``tap.weight`` is its weight.
        x : str
        role : str
        kind : str
            ``"rms"``, ``"layer"``, ``"row"`` (RMSNorm over all axes of x), or ``"unit"`` (the
            division by the L2 norm). Default: that of the architecture.
        covers : int
            How many of the last axes the weight covers, for RMSNorm and LayerNorm.
        weights : bool or str
            Whether this norm has weights, if norms of the architecture have; or their tensor.
        epsilon : Number, optional
            Default: that of the file; 1e-6 for ``"unit"``.
        """
        kind = kind or self.arch.norm
        shape = self.shape(x)
        if kind == "unit":
            epsilon = epsilon or Number("epsilon", 1e-6, "row")
        epsilon = epsilon or self.number("epsilon", self.config.norm_epsilon, self.arch.epsilon_key)
        weight: str | None = None
        if isinstance(weights, str):
            weight = weights
        elif self.arch.norm_weights and weights:
            weight = self.optional(tap) or self.tensor(f"{tap}.weight")
        axes = Number("axes", 0 if covers == 1 else covers, UNUSED if covers == 1 else "row")
        more: dict[str, Any] = {
            "numbers": (axes,),
            "shape": shape,
            "heads": self.step(x).heads,
            "role": role,
        }
        if kind == "layer":
            mean = self.add_step(
                "norm_mean", f"{tap}_mean", (x,), shape=shape[:-1], role=role and f"{role}_mean"
            )
            scale = self.add_step(
                "layer_scale",
                f"{tap}_scale",
                (x, mean),
                numbers=(epsilon,),
                shape=shape[:-1],
                role=role and f"{role}_scale",
            )
            bias = self.optional(f"{tap}.bias")
            bias = self.tensor(f"{tap}.bias") if tap in self.arch.biases else bias
            reads = (x, mean, scale)
            return self.add_step("layer_norm", tap, reads, weights=(weight, bias), **more)
        over = len(shape) if kind == "row" else 1
        scale = self.add_step(
            "norm_scale",
            f"{tap}_scale",
            (x,),
            numbers=(
                epsilon,
                Number("kind", int(kind == "unit"), "row: L2" if kind == "unit" else UNUSED),
                Number("axes", over, UNUSED if over == 1 else "row"),
            ),
            shape=shape[:-over],
            heads=self.step(x).heads and over == 1,
            role=role and f"{role}_scale",
        )
        return self.add_step("norm", tap, (x, scale), weights=(weight,), **more)

    def head_norm(self, tap: str, x: str) -> str:
        """Add the norm of queries or keys, if the file has one or the architecture demands it."""
        if self.arch.qk_norm == "plain":
            # no key tells it: the Llama 4 with 128 experts has no such norms
            without = self.keys.integer("expert_count", 0, least=0) == 128
            return x if without else self.norm(tap, x, weights=False)
        if not self.has(tap):
            return x
        if self.arch.qk_norm == "layer":
            heads, size = self.shape(x)
            y = self.norm(tap, self.heads(f"{tap}_input", x, 0, heads * size), kind="layer")
            return self.heads(f"{tap}_heads", y, heads, size, named=True)
        kind = {"head": "rms", "row": "row", "heads": "layer"}[self.arch.qk_norm]
        return self.norm(tap, x, kind=kind, covers=2 if self.arch.qk_norm == "heads" else 1)

    def linear(
        self,
        tap: str,
        x: str,
        size: Number,
        heads: Number | None = None,
        role: str = "",
        part: tuple[str, int, int] | None = None,
        scaled: bool = True,
        bias: str = "",
    ) -> str:
        """Add a product with ``tap.weight`` plus ``tap.bias``, of shape (size,) or (heads, size).

        The bias is added if the file has it, or if the architecture demands it. A factor
        ``tap.scale`` is used if the file has it, unless `scaled` is False. `part` names another
        tensor: its name without ``.weight``, the first row, and how many rows it has in all. `bias`
        names the tensor of a bias that must be there.
        """
        stem, first, rows = part or (tap, 0, 0)
        added = self.optional(f"{tap}.bias") or self.optional(f"{stem}.bias")
        if added is None and tap in self.arch.biases:
            added = self.tensor(f"{stem}.bias")
        flat = Number("heads", 0, UNUSED)
        axes = (size,) if heads is None else (heads, size)
        source = f"part of {stem}.weight" if part else UNUSED
        return self.add_step(
            "linear",
            tap,
            (x,),
            weights=(
                self.tensor(f"{stem}.weight"),
                self.tensor(bias) if bias else added,
                self.optional(f"{stem}.scale") if scaled else None,
            ),
            numbers=(
                heads or flat,
                size,
                Number("first", first, source),
                Number("rows", rows, source),
            ),
            shape=tuple(int(axis.value) for axis in axes),
            heads=heads is not None,
            role=role,
        )

    # ---- positions ----

    @property
    def windowed(self) -> bool:
        """Whether some blocks see only a window."""
        return self._windows[0] > 0

    @property
    def local(self) -> bool:
        """Whether the current block sees only a window."""
        return self.is_local(self.layer)

    def is_local(self, layer: int) -> bool:
        """Whether a block sees only a window."""
        return self._windows[0] > 0 and self._windows[1][layer]

    def head_sizes(self) -> tuple[Number, Number]:
        """Return the sizes of a head of queries and keys, and of values, in the current block."""
        c, key = self.config, "attention.key_length"
        value_key, rules = "attention.value_length", ("rule: width / heads", "rule: as keys")
        if self.local and self.keys.integer(f"{key}_swa", 0, least=0):
            size = self.keys.integer(f"{key}_swa")
            value_size = self.keys.integer(f"{value_key}_swa", size)
            key, value_key = f"{key}_swa", f"{value_key}_swa"
        else:
            size, value_size = c.head_size, c.value_size
        return (
            self.number("size", size, key, rules[0]),
            self.number("size", value_size, value_key, rules[1]),
        )

    @property
    def _window_key(self) -> str:
        return "attention.chunk_size" if self.arch.window.chunked else "attention.sliding_window"

    @functools.cached_property
    def _windows(self) -> tuple[int, tuple[bool, ...]]:
        """The size of a window (0: none), and which blocks are local."""
        layers, row = self.config.layers, self.arch.window
        key = self._window_key
        size = self.keys.integer(key, row.size, most=LONGEST, least=0)
        pattern = f"{key}_pattern"
        if isinstance(self.keys.metadata.get(self.keys.prefix + pattern), (int, np.integer)):
            every = self.keys.integer(pattern, least=0)
        elif self.keys.prefix + pattern in self.keys.metadata:
            return size, self.keys.flags(pattern, layers)
        else:
            every = row.every
        whole = 0 if row.first else every - 1
        return size, tuple(every == 0 or layer % every != whole for layer in range(layers))

    def mask(self) -> tuple[Number, Number]:
        """Return the numbers of the mask and the window of the current block."""
        causal = self.keys.flag("attention.causal", self.arch.causal)
        size = self._windows[0] if self.local else 0
        kind = ("causal" if causal else "none", "window" if causal else "symmetric")[size > 0]
        if size and self.arch.window.chunked:
            kind = "chunk"
        if kind == "causal":
            return Number("mask", 0, UNUSED), Number("window", 0, UNUSED)
        window = self.number("window", size, self._window_key, "row")
        return Number("mask", _MASKS[kind], kind), window if size else window._replace(
            source=UNUSED
        )

    def rope(self, tap: str, x: str) -> str:
        """Add the rotation of queries or keys by their positions."""
        return self.add_step(
            "rope",
            tap,
            (x, "positions"),
            weights=(self._rope_factors if self.arch.window.scaled or not self.local else None,),
            numbers=self._rope_numbers(self.local),
            shape=self.shape(x),
            heads=True,
        )

    @functools.cached_property
    def _rope_factors(self) -> str | None:
        """The tensor that divides the frequencies. There may be one for long contexts."""
        original = (self.config.rope_scaling or {}).get("original_context_length")
        if original is None:
            original = self.keys.integer(
                "rope.scaling.original_context_length", self.config.context_length, most=LONGEST
            )
        length = "long" if self.max_context > original else "short"
        names = (f"rope_factors_{length}.weight", "rope_freqs.weight")
        return next((name for name in names if name in self._tensors), None)

    def _rope_numbers(self, local: bool) -> tuple[Number, ...]:
        if local not in self._ropes:
            self._ropes[local] = self._new_rope_numbers(local)
        return self._ropes[local]

    def _new_rope_numbers(self, local: bool) -> tuple[Number, ...]:
        c = self.config
        scaling = dict(c.rope_scaling or {})
        base = self.number("base", c.rope_base, "rope.freq_base", "rule")
        swa = "rope.freq_base_swa"
        if local and (self.arch.window.base or self.keys.number(swa, None) is not None):
            base = self.key("base", swa, self.arch.window.base)
        if local and not self.arch.window.scaled:
            scaling = {}
        rotated = self.number(
            "rotated", c.rope_dimension, "rope.dimension_count", "rule: head size"
        )
        if local and self.keys.integer("rope.dimension_count_swa", 0, least=0):
            key = "rope.dimension_count_swa"
            rotated = self.number("rotated", self.keys.integer(key), key)
        if not local and self.arch.window.rotated != 1.0:
            rotated = rotated._replace(value=rotated.value * self.arch.window.rotated)
        kind = scaling.get("type")
        if kind not in _ROPE_SCALINGS:
            raise UnsupportedError(
                f"rope_scaling type is {kind!r}; this version supports none, linear, yarn"
            )
        if kind == "yarn" and scaling.get("ext_factor") == 0:  # as in ggml's rope_yarn
            kind = "linear"
            del scaling["ext_factor"]
        self._check_sections()
        used = {"linear": ("factor",), "yarn": _YARN}.get(kind or "", ())
        numbers = [
            Number("layout", _ROPE_LAYOUTS[self.arch.rope], f"row: {self.arch.rope}"),
            rotated,
            base,
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
        source = "row" if kind == "yarn" and not self.arch.rounded else UNUSED
        return (*numbers, Number("rounded", self.arch.rounded, source))

    def _check_sections(self) -> None:
        """Check that a text has the same rotation with the sections of M-RoPE as without.

        The positions of a text are equal in the first three sections (Wang et al. 2024, Qwen2-VL,
        arXiv:2409.12191).
        """
        name = "rope.dimension_sections"
        sections = self.keys.integers(name, None)
        pairs = self.config.rope_dimension // 2
        if sections and any(sections) and sum(sections[:3]) != pairs:
            raise wrong(
                f"{self.keys.prefix}{name}", sections, f"numbers of which three add up to {pairs}"
            )

    def temper(self, tap: str, x: str) -> str:
        """Add the factor of queries that grows with the position, if the file states one."""
        row = self.arch.temperature
        slope = self.key("slope", "attention.temperature_scale", row[0])
        if not slope.value:
            return x
        original = (self.config.rope_scaling or {}).get("original_context_length", 0)
        rule = "row" if row[1] else "rule: as YaRN"
        length = self.key("length", "attention.temperature_length", row[1] or original, rule)
        if not length.value > 0:
            raise wrong(
                f"{self.keys.prefix}attention.temperature_length", length.value, "a positive number"
            )
        offset = self.key("offset", "attention.temperature_offset", row[2])
        return self.add_step(
            "temper",
            tap,
            (x, "positions"),
            numbers=(slope, length, offset),
            shape=self.shape(x),
            heads=self.step(x).heads,
        )

    # ---- attention ----

    def cache(self, keys: str, values: str) -> None:
        """Add the step that stores keys and values in the cache for later tokens."""
        self.add_step("cache", "cache", (keys, values))

    def attend(self, queries: str, keys: str, values: str) -> str:
        """Add attention in three steps: scores, probabilities, and the weighted sum of values."""
        heads, size = self.shape(queries)
        scale, rule = 1 / math.sqrt(size), "rule: 1/sqrt(head size)"
        if self.arch.scale is not None:
            scale, rule = self.arch.scale(self), "row"
        cap = self.key("cap", "attn_logit_softcapping", self.arch.caps[0])
        biases, buckets = self._buckets()
        scores = self.add_step(
            "scores",
            "attn_scores",
            (queries, keys),
            weights=(biases,),
            numbers=(
                self.number(
                    "factor", self.config.attention_scale or scale, "attention.scale", rule
                ),
                *self.mask(),
                cap if cap.value else cap._replace(source=UNUSED),
                self._alibi(),
                buckets,
            ),
            shape=(heads,),
            heads=True,
            matrix=True,
            role="attn_scores",
        )
        probs = self.add_step(
            "softmax",
            "attn_probs",
            (scores,),
            weights=(self.tensor("attn_sinks.weight") if self.has("attn_sinks") else None,),
            shape=(heads,),
            heads=True,
            matrix=True,
            role="attn_probs",
        )
        return self.add_step(
            "mix",
            "attn_mix",
            (probs, values),
            shape=(heads, self.shape(values)[1]),
            heads=True,
            role="attn_mix",
        )

    def _buckets(self) -> tuple[str | None, Number]:
        """Return the biases of distances of keys, and in how many buckets these are.

        Blocks without biases of their own have those of the first block.
        """
        key = "attention.relative_buckets_count"
        if not self.arch.buckets:
            return None, Number("buckets", 0, UNUSED)
        own = self.optional("attn_rel_b.weight") or f"{self.arch.blocks}.0.attn_rel_b.weight"
        return own, self.number("buckets", self.keys.integer(key), key)

    def _alibi(self) -> Number:
        """Return the largest bias of ALiBi, which the distance of a key has; 0 for none."""
        if self.arch.alibi is None:
            return Number("alibi", 0, UNUSED)
        bias = self.key("alibi", "attention.max_alibi_bias", self.arch.alibi(self))
        if not 0 <= bias.value <= 1e6:
            key = f"{self.keys.prefix}attention.max_alibi_bias"
            raise wrong(key, bias.value, "a number from 0 to 1e6")
        return bias if bias.value else bias._replace(source=UNUSED)

    def add(self, tap: str, x: str, y: str, role: str = "") -> str:
        """Add the sum of two values."""
        return self.add_step("add", tap, (x, y), shape=self.shape(x), role=role)

    def residual(self, branch: str, x: str) -> str:
        """Add the factor of a branch, if the file states one."""
        factor = self.key("parameter", "residual_scale", self._scales[1])
        if factor.value in (0.0, 1.0):
            return x
        return self.unary(f"{branch}_scaled", "scale", x, factor)

    def unary(
        self, tap: str, function: str, x: str, parameter: Number | None = None, role: str = ""
    ) -> str:
        """Add a function of each value, one of `FUNCTIONS`."""
        return self.add_step(
            "unary",
            tap,
            (x,),
            numbers=(
                Number("function", FUNCTIONS.index(function), function),
                (parameter or Number("parameter", 0, UNUSED))._replace(name="parameter"),
            ),
            shape=self.shape(x),
            heads=self.step(x).heads,
            role=role,
        )

    def act(
        self, tap: str, gate: str, up: str, role: str = "ffn_hidden", function: str = ""
    ) -> str:
        """Add the gated activation f(gate) * up. Default: that of the architecture."""
        function = function or self.arch.act
        oai = function == "swiglu_oai"
        return self.add_step(
            "act",
            tap,
            (gate, up),
            numbers=(
                Number("function", FUNCTIONS.index(function), f"row: {function}"),
                Number("alpha", 1.702 if oai else 0, "row" if oai else UNUSED),
                Number("limit", 7 if oai else 0, "row" if oai else UNUSED),
            ),
            shape=self.shape(up),
            heads=self.step(up).heads,
            role=role,
        )

    def gate_by(self, tap: str, function: str, gate: str, x: str) -> str:
        """Add x times a function of a gate, whose axes are those of x or the first ones."""
        if function == "softplus":
            gate = self.softplus(f"{self.step(gate).family}_softplus", gate)
            function = "identity"
        return self.act(tap, gate, x, role="", function=function)

    def clamped_act(self, tap: str, gate: str, up: str, key: str, role: str = "") -> str:
        """Add the gated activation; `key` may bound its two factors, with a number per block.

        silu is never below -0.28, so its bound on both sides is one from above.
        """
        blocks = self.keys.integer("block_count", self.config.layers)
        limit = self.keys.numbers(key, blocks, (0.0,) * blocks)[self.layer]
        if not limit > 0:
            return self.act(tap, gate, up, role=role)
        number = self.number("parameter", limit, key)
        gate = self.unary(f"{self.step(gate).family}_act", self.arch.act, gate)
        gate = self.unary(f"{self.step(gate).family}_clamp", "clamp", gate, number)
        up = self.unary(f"{self.step(up).family}_clamp", "clamp", up, number)
        return self.act(tap, gate, up, role=role, function="identity")

    def output(self, x: str) -> str:
        """Add the logits. Without ``output.weight`` in the file, the matrix is the embedding.

        The logits are ``output`` in every model. If they have a factor or a cap, the values before
        are ``output_unscaled`` and ``output_uncapped``.
        """
        tied = self.optional("output.weight") is None
        factor = self.key("parameter", "logit_scale", self._scales[2])
        cap = self.key("parameter", "final_logit_softcapping", self.arch.caps[1])
        scaled = factor.value not in (0.0, 1.0)
        capped = "output_uncapped" if cap.value else "output"
        x = self.add_step(
            "linear",
            "output_unscaled" if scaled else capped,
            (x,),
            weights=(
                "token_embd.weight" if tied else "output.weight",
                None if tied else self.optional("output.bias"),
                self.optional("token_embd.scale" if tied else "output.scale"),
            ),
            numbers=(
                Number("heads", 0, UNUSED),
                self.number("size", self.config.vocab_size, rule="rows of token_embd.weight"),
                Number("first", 0, UNUSED),
                Number("rows", 0, UNUSED),
            ),
            shape=(self.config.vocab_size,),
        )
        if scaled and self.arch.logit_scale == "over":
            factor = factor._replace(value=1 / factor.value)
        if scaled:
            x = self.unary(capped, "scale", x, factor)
        if cap.value:
            x = self.unary("output", "soft_cap", x, cap)
        return self.give_role(x, "logits")
