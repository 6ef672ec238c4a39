"""The forward pass in NumPy float64, written to be read: what the C core is held against.

A model is an ordered table of steps (`LLAMA`). Each row names the tap it writes, the pure
function that computes it, and the earlier taps and the weights that the function reads; the
forward pass walks the table, and each step can be run alone on inputs from anywhere. A tap is
named after the weight whose step it ends: ``blk.3.attn_q`` is the output of the step that uses
``blk.3.attn_q.weight``.

Shapes: T tokens in this call, S tokens in context, H heads, K key/value heads, Dh head size,
Dv value size, D width, F feed-forward width, V vocabulary size. Weights are (out, in).

Sources: the Llama block is that of Touvron et al. 2023 (arXiv:2302.13971); tensor names and the
interleaved storage of q and k follow the GGUF specification and llama.cpp; each function names
the paper of its formula.

Examples
--------
>>> import numpy as np
>>> from types import SimpleNamespace
>>> from tinyllm import reference
>>> config = SimpleNamespace(
...     architecture="llama", layers=1, heads=2, kv_heads=1, norm_epsilon=1e-5,
...     rope_base=10000.0, rope_scaling=None, rope_dimension=4, context_length=16,
... )
>>> random = np.random.default_rng(0)
>>> shapes = {
...     "token_embd.weight": (10, 8), "output_norm.weight": (8,),
...     "blk.0.attn_norm.weight": (8,), "blk.0.attn_q.weight": (8, 8),
...     "blk.0.attn_k.weight": (4, 8), "blk.0.attn_v.weight": (4, 8),
...     "blk.0.attn_output.weight": (8, 8), "blk.0.ffn_norm.weight": (8,),
...     "blk.0.ffn_gate.weight": (12, 8), "blk.0.ffn_up.weight": (12, 8),
...     "blk.0.ffn_down.weight": (8, 12),
... }
>>> weights = {name: random.normal(size=shape) for name, shape in shapes.items()}
>>> taps = reference.forward(config, weights, [3, 1, 4])
>>> taps["output"].shape
(3, 10)
>>> step = reference.step(config, "blk.0.attn_probs")
>>> step.reads
('blk.0.attn_scores',)
>>> np.array_equal(step.run(weights, taps), taps["blk.0.attn_probs"])
True
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tinyllm.errors import UnsupportedError

__all__ = ["ARCHITECTURES", "LLAMA", "Config", "Layer", "Row", "Step", "forward", "step", "steps"]

Array = NDArray[np.float64]


# --- what a step may know besides its inputs ---------------------------------------------------


class Config(Protocol):
    """The hyperparameters that the steps read; ``model.config`` has them.

    Two more are read where they exist: ``attention_scale`` (float or None, in place of
    1 / sqrt(Dh)) and, in `rope_scaling`, the keys ``type`` ("linear" or "yarn"), ``factor``,
    ``original_context_length``, ``attn_factor``, ``beta_fast``, ``beta_slow`` and ``ext_factor``.
    `heads` and `kv_heads` are one number, or one per layer.
    """

    @property
    def architecture(self) -> str: ...  # noqa: D102
    @property
    def layers(self) -> int: ...  # noqa: D102
    @property
    def heads(self) -> int | Sequence[int]: ...  # noqa: D102
    @property
    def kv_heads(self) -> int | Sequence[int]: ...  # noqa: D102
    @property
    def context_length(self) -> int: ...  # noqa: D102
    @property
    def norm_epsilon(self) -> float: ...  # noqa: D102
    @property
    def rope_base(self) -> float: ...  # noqa: D102
    @property
    def rope_dimension(self) -> int: ...  # noqa: D102
    @property
    def rope_scaling(self) -> Mapping[str, Any] | None: ...  # noqa: D102


@dataclass(frozen=True)
class Layer:
    """One layer's view of the hyperparameters.

    Parameters
    ----------
    config : Config
        The model's hyperparameters.
    index : int
        The layer; the number of layers for the steps after the last block.
    """

    config: Config
    index: int

    @property
    def heads(self) -> int:
        """The number of query heads, H."""
        return _of_layer(self.config.heads, self.index)

    @property
    def kv_heads(self) -> int:
        """The number of key and value heads, K."""
        return _of_layer(self.config.kv_heads, self.index)

    @property
    def norm_epsilon(self) -> float:
        """The float32 that the file stores."""
        return _as_stored(self.config.norm_epsilon)

    def attention_scale(self, head_size: int) -> float:
        """Return the factor on q k: 1 / sqrt(Dh) unless the model sets its own."""
        own = getattr(self.config, "attention_scale", None)
        return _as_stored(own) if own else 1 / math.sqrt(head_size)


def _of_layer(value: int | Sequence[int], index: int) -> int:
    return value[index] if isinstance(value, Sequence) else value


def _as_stored(value: float) -> float:
    # GGUF stores these numbers as float32: 1e-5 in a file is 9.99999974737875e-06.
    return float(np.float32(value))


# --- the functions, one per kind of step -------------------------------------------------------


def look_up(layer: Layer, tokens: NDArray[np.int64], table: Array) -> Array:
    """Return the rows of the embedding table. (T,), (V, D) -> (T, D)."""
    rows: Array = table[tokens]
    return rows


def same(layer: Layer, x: Array) -> Array:
    """Return the input: the residual stream enters a block as it left the one before."""
    return x


def add(layer: Layer, x: Array, y: Array) -> Array:
    """Return x + y: a branch joins the residual stream. (T, D), (T, D) -> (T, D)."""
    return x + y


def rms_scale(layer: Layer, x: Array) -> Array:
    """Return 1 / sqrt(mean(x^2) + epsilon), RMSNorm's factor. (T, D) -> (T,).

    Zhang & Sennrich 2019, "Root Mean Square Layer Normalization", equation 4.
    """
    scale: Array = 1 / np.sqrt(np.mean(x * x, axis=-1) + layer.norm_epsilon)
    return scale


def scale_and_weigh(layer: Layer, x: Array, scale: Array, weight: Array) -> Array:
    """Return x * scale * weight: the other half of RMSNorm. (T, D), (T,), (D,) -> (T, D)."""
    return x * scale[:, np.newaxis] * weight


def linear(layer: Layer, x: Array, weight: Array, bias: Array | None = None) -> Array:
    """Return x W^T + b. (T, in), (out, in), (out,) -> (T, out)."""
    y = x @ weight.T
    return y if bias is None else y + bias


def query_heads(layer: Layer, x: Array, weight: Array, bias: Array | None = None) -> Array:
    """Return the projection cut into query heads. (T, D) -> (T, H, Dh)."""
    return linear(layer, x, weight, bias).reshape(len(x), layer.heads, -1)


def key_value_heads(layer: Layer, x: Array, weight: Array, bias: Array | None = None) -> Array:
    """Return the projection cut into key or value heads. (T, D) -> (T, K, Dh or Dv)."""
    return linear(layer, x, weight, bias).reshape(len(x), layer.kv_heads, -1)


def rotate(
    layer: Layer, x: Array, positions: NDArray[np.int64], factors: Array | None = None
) -> Array:
    """Return x with each pair (2j, 2j + 1) turned by position * frequency_j. (T, H, Dh) -> same.

    With angle a: (x0, x1) -> (x0 cos a - x1 sin a, x0 sin a + x1 cos a); dimensions from
    ``rope_dimension`` on pass through. Su et al. 2021, "RoFormer", equation 34.
    """
    frequencies, magnitude = rope_frequencies(layer.config, factors)
    angles = positions[:, np.newaxis, np.newaxis] * frequencies  # (T, 1, pairs), for all heads
    cos, sin = magnitude * np.cos(angles), magnitude * np.sin(angles)
    pairs = 2 * len(frequencies)
    y = x.copy()
    y[..., 0:pairs:2] = x[..., 0:pairs:2] * cos - x[..., 1:pairs:2] * sin
    y[..., 1:pairs:2] = x[..., 0:pairs:2] * sin + x[..., 1:pairs:2] * cos
    return y


def rope_frequencies(config: Config, factors: Array | None = None) -> tuple[Array, float]:
    """Return the angle per position of each pair, and the factor on cos and sin.

    Parameters
    ----------
    config : Config
        ``rope_base``, ``rope_dimension`` (n) and ``rope_scaling`` are read.
    factors : (n / 2,) float64 array, optional
        Divisors of the frequencies: ``rope_freqs.weight``, how Llama 3.1 stretches its context.

    Returns
    -------
    frequencies : (n / 2,) float64 array
        base^(-2j / n) / factors[j], then scaled. "linear" (Chen et al. 2023, "Position
        Interpolation") divides all by the scaling factor s. "yarn" (Peng et al. 2023, "YaRN",
        section 3.2) divides those that turn less than beta_slow times within the original
        context, keeps those that turn more than beta_fast times, and blends in between,
        linearly over j, as the authors' code and ggml's ``rope_yarn`` do (the paper's text
        blends linearly over the number of turns).
    magnitude : float
        1, for "yarn" 1 + 0.1 ln s (the paper's equation 22); times ``attn_factor``. As in ggml,
        an ``ext_factor`` other than 1 weakens what "yarn" keeps, and 0 makes it "linear".
    """
    n = config.rope_dimension
    base = _as_stored(config.rope_base)
    pair = np.arange(n // 2)
    frequencies = base ** (-2 * pair / n)
    if factors is not None:
        frequencies = frequencies / factors
    scaling = config.rope_scaling
    if not scaling or scaling.get("type") in (None, "none"):
        return frequencies, 1.0
    s = _as_stored(scaling.get("factor") or 1.0)
    magnitude = _as_stored(scaling.get("attn_factor") or 1.0)
    if scaling["type"] not in ("linear", "yarn"):
        raise UnsupportedError(f"rope_scaling type {scaling['type']!r}: expected linear or yarn")
    extrapolation = scaling.get("ext_factor")
    extrapolation = 1.0 if extrapolation is None else _as_stored(extrapolation)
    if scaling["type"] == "linear" or extrapolation == 0:
        return frequencies / s, magnitude

    context = scaling.get("original_context_length") or config.context_length

    def pair_that_turns(times: float) -> float:
        return n * math.log(context / (times * 2 * math.pi)) / (2 * math.log(base))

    first = max(0, math.floor(pair_that_turns(scaling.get("beta_fast") or 32.0)))
    last = min(n - 1, math.ceil(pair_that_turns(scaling.get("beta_slow") or 1.0)))
    kept = 1 - np.clip((pair - first) / max(0.001, last - first), 0, 1)
    kept = kept * extrapolation
    magnitude *= 1 + 0.1 * math.log(s)
    return frequencies * (kept + (1 - kept) / s), magnitude


def masked_scores(layer: Layer, q: Array, k: Array) -> Array:
    """Return q k * scale, -inf where a query must not look. (T, H, Dh), (S, K, Dh) -> (H, T, S).

    The queries are the last T of the S tokens, and a token sees itself and those before. Each
    key head serves H / K neighbouring query heads. Vaswani et al. 2017, "Attention Is All You
    Need", equation 1; Ainslie et al. 2023, "GQA".
    """
    (t, heads, head_size), s = q.shape, len(k)
    k = np.repeat(k, heads // layer.kv_heads, axis=1)
    scores = q.transpose(1, 0, 2) @ k.transpose(1, 2, 0) * layer.attention_scale(head_size)
    visible = np.arange(s) <= np.arange(s - t, s)[:, np.newaxis]
    return np.where(visible, scores, -np.inf)


def softmax(layer: Layer, scores: Array) -> Array:
    """Return exp(score) / sum of exp(scores), over the last axis. (H, T, S) -> (H, T, S)."""
    e: Array = np.exp(scores - scores.max(axis=-1, keepdims=True))
    probs: Array = e / e.sum(axis=-1, keepdims=True)
    return probs


def mix_values(layer: Layer, probs: Array, v: Array) -> Array:
    """Return each head's mean of the values. (H, T, S), (S, K, Dv) -> (T, H, Dv)."""
    v = np.repeat(v, len(probs) // layer.kv_heads, axis=1)
    return (probs @ v.transpose(1, 0, 2)).transpose(1, 0, 2)


def join_heads(layer: Layer, mix: Array, weight: Array, bias: Array | None = None) -> Array:
    """Return the output projection of all heads side by side. (T, H, Dv) -> (T, D)."""
    return linear(layer, mix.reshape(len(mix), -1), weight, bias)


def swiglu(layer: Layer, gate: Array, up: Array) -> Array:
    """Return silu(gate) * up, where silu(x) = x / (1 + exp(-x)). (T, F), (T, F) -> (T, F).

    Shazeer 2020, "GLU Variants Improve Transformer", equation 6.
    """
    act: Array = gate / (1 + np.exp(-gate)) * up
    return act


# --- the table ---------------------------------------------------------------------------------


class Row(NamedTuple):
    """One step of a table, for every layer at once.

    In names, ``blk.N`` is the row's own block and ``blk.P.resid_post`` the residual stream that
    comes in: it leaves the block before, or the embedding. A weight with ``?`` may be missing;
    ``a|b`` is a where it exists, else b.
    """

    tap: str
    compute: Callable[..., Array]
    reads: tuple[str, ...]
    weights: tuple[str, ...] = ()


LLAMA: tuple[Row, ...] = (
    Row("token_embd", look_up, ("tokens",), ("token_embd.weight",)),
    # attention
    Row("blk.N.resid_pre", same, ("blk.P.resid_post",)),
    Row("blk.N.attn_norm_scale", rms_scale, ("blk.N.resid_pre",)),
    Row(
        "blk.N.attn_norm",
        scale_and_weigh,
        ("blk.N.resid_pre", "blk.N.attn_norm_scale"),
        ("blk.N.attn_norm.weight",),
    ),
    Row(
        "blk.N.attn_q",
        query_heads,
        ("blk.N.attn_norm",),
        ("blk.N.attn_q.weight", "blk.N.attn_q.bias?"),
    ),
    Row(
        "blk.N.attn_k",
        key_value_heads,
        ("blk.N.attn_norm",),
        ("blk.N.attn_k.weight", "blk.N.attn_k.bias?"),
    ),
    Row(
        "blk.N.attn_v",
        key_value_heads,
        ("blk.N.attn_norm",),
        ("blk.N.attn_v.weight", "blk.N.attn_v.bias?"),
    ),
    Row("blk.N.attn_q_rope", rotate, ("blk.N.attn_q", "positions"), ("rope_freqs.weight?",)),
    Row("blk.N.attn_k_rope", rotate, ("blk.N.attn_k", "positions"), ("rope_freqs.weight?",)),
    Row("blk.N.attn_scores", masked_scores, ("blk.N.attn_q_rope", "blk.N.attn_k_rope")),
    Row("blk.N.attn_probs", softmax, ("blk.N.attn_scores",)),
    Row("blk.N.attn_mix", mix_values, ("blk.N.attn_probs", "blk.N.attn_v")),
    Row(
        "blk.N.attn_output",
        join_heads,
        ("blk.N.attn_mix",),
        ("blk.N.attn_output.weight", "blk.N.attn_output.bias?"),
    ),
    Row("blk.N.resid_mid", add, ("blk.N.resid_pre", "blk.N.attn_output")),
    # feed-forward network
    Row("blk.N.ffn_norm_scale", rms_scale, ("blk.N.resid_mid",)),
    Row(
        "blk.N.ffn_norm",
        scale_and_weigh,
        ("blk.N.resid_mid", "blk.N.ffn_norm_scale"),
        ("blk.N.ffn_norm.weight",),
    ),
    Row(
        "blk.N.ffn_gate",
        linear,
        ("blk.N.ffn_norm",),
        ("blk.N.ffn_gate.weight", "blk.N.ffn_gate.bias?"),
    ),
    Row(
        "blk.N.ffn_up",
        linear,
        ("blk.N.ffn_norm",),
        ("blk.N.ffn_up.weight", "blk.N.ffn_up.bias?"),
    ),
    Row("blk.N.ffn_act", swiglu, ("blk.N.ffn_gate", "blk.N.ffn_up")),
    Row(
        "blk.N.ffn_down",
        linear,
        ("blk.N.ffn_act",),
        ("blk.N.ffn_down.weight", "blk.N.ffn_down.bias?"),
    ),
    Row("blk.N.resid_post", add, ("blk.N.resid_mid", "blk.N.ffn_down")),
    # output
    Row("output_norm_scale", rms_scale, ("blk.P.resid_post",)),
    Row(
        "output_norm",
        scale_and_weigh,
        ("blk.P.resid_post", "output_norm_scale"),
        ("output_norm.weight",),
    ),
    Row("output", linear, ("output_norm",), ("output.weight|token_embd.weight",)),
)

ARCHITECTURES: dict[str, tuple[Row, ...]] = {"llama": LLAMA}
"""The table of each architecture, by the file's ``general.architecture``."""


# --- walking it --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Step:
    """A row of the table in its layer, ready to run.

    Attributes
    ----------
    tap : str
        The name of what the step writes.
    reads : tuple of str
        The taps it reads, in the order of the function's arguments; ``tokens`` and
        ``positions`` are (T,) integer arrays.
    weights : tuple of str
        The weights it reads after them; ``?`` and ``|`` as in `Row`.
    compute : callable
        The function: the layer, then the taps, then the weights.
    layer : Layer
        What the function may know besides.
    """

    tap: str
    reads: tuple[str, ...]
    weights: tuple[str, ...]
    compute: Callable[..., Array]
    layer: Layer

    def run(self, weights: Mapping[str, Any], taps: Mapping[str, ArrayLike]) -> Array:
        """Compute this step alone.

        Parameters
        ----------
        weights : mapping
            Tensor name -> array, or an object with ``numpy(dtype=...)`` such as `Weight`.
        taps : mapping
            Tap name -> array, with at least the names in `reads`. Where `reads` has
            ``tokens`` or ``positions``, they are integers; all others become float64.

        Returns
        -------
        float64 array
            The tap.

        Raises
        ------
        ValueError
            A tap or a weight is missing, or shapes do not fit.
        """
        inputs = [_input(taps, name) for name in self.reads]
        parameters = [_weight(weights, name) for name in self.weights]
        try:
            # exp(-x) may overflow to inf, and x / inf is the right limit.
            with np.errstate(over="ignore"):
                return self.compute(self.layer, *inputs, *parameters)
        except (ValueError, IndexError) as error:
            shapes = [None if a is None else a.shape for a in (*inputs, *parameters)]
            error.add_note(f"in step {self.tap} of {self.reads + self.weights}: shapes {shapes}")
            raise


_INTEGERS = ("tokens", "positions")


def _input(taps: Mapping[str, ArrayLike], name: str) -> NDArray[Any]:
    if name not in taps:
        raise ValueError(f"taps: {name!r} is missing")
    return np.asarray(taps[name], dtype=np.int64 if name in _INTEGERS else np.float64)


def _weight(weights: Mapping[str, Any], names: str) -> Array | None:
    """Return the first of the names that exists, in float64; None if all may be missing."""
    for name in names.rstrip("?").split("|"):
        if name in weights:
            weight = weights[name]
            if hasattr(weight, "numpy"):
                weight = weight.numpy(dtype=np.float64)
            return np.asarray(weight, dtype=np.float64)
    if names.endswith("?"):
        return None
    raise ValueError(f"weights: {names!r} is missing")


def steps(config: Config) -> list[Step]:
    """Return every step of a model, in the order of the forward pass.

    Parameters
    ----------
    config : Config
        The model's hyperparameters.

    Returns
    -------
    list of Step
        One per tap.

    Raises
    ------
    UnsupportedError
        There is no table for the architecture.

    Examples
    --------
    >>> from types import SimpleNamespace
    >>> config = SimpleNamespace(architecture="llama", layers=2)
    >>> [step.tap for step in steps(config)][:3]
    ['token_embd', 'blk.0.resid_pre', 'blk.0.attn_norm_scale']
    """
    if config.architecture not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)
        raise UnsupportedError(f"architecture {config.architecture!r}: expected one of {known}")
    table = ARCHITECTURES[config.architecture]
    in_block = [i for i, row in enumerate(table) if row.tap.startswith("blk.N.")]
    before, block, after = (
        table[: in_block[0]],
        table[in_block[0] : in_block[-1] + 1],
        table[in_block[-1] + 1 :],
    )
    return [
        *(_place(row, config, 0) for row in before),
        *(_place(row, config, index) for index in range(config.layers) for row in block),
        *(_place(row, config, config.layers) for row in after),
    ]


def _place(row: Row, config: Config, index: int) -> Step:
    """Put a row into its layer: names with the layer's number, and the layer's settings."""
    incoming = f"blk.{index - 1}.resid_post" if index > 0 else "token_embd"

    def place(name: str) -> str:
        return name.replace("blk.P.resid_post", incoming).replace("blk.N.", f"blk.{index}.")

    return Step(
        tap=place(row.tap),
        reads=tuple(place(name) for name in row.reads),
        weights=tuple(place(name) for name in row.weights),
        compute=row.compute,
        layer=Layer(config, index),
    )


def step(config: Config, name: str) -> Step:
    """Return the step that writes one tap.

    Parameters
    ----------
    config : Config
        The model's hyperparameters.
    name : str
        The tap, such as ``"blk.3.attn_q"``.

    Returns
    -------
    Step
        Its ``run(weights, taps)`` computes the tap from given inputs.

    Raises
    ------
    ValueError
        The model has no such tap.
    UnsupportedError
        There is no table for the architecture.

    Examples
    --------
    >>> from types import SimpleNamespace
    >>> step(SimpleNamespace(architecture="llama", layers=2), "blk.1.resid_pre").reads
    ('blk.0.resid_post',)
    """
    for candidate in steps(config):
        if candidate.tap == name:
            return candidate
    raise ValueError(f"name: no tap {name!r} in {config.architecture} of {config.layers} layers")


def forward(
    config: Config,
    weights: Mapping[str, Any],
    tokens: ArrayLike,
    positions: ArrayLike | None = None,
) -> dict[str, Array]:
    """Run the model and return every inner value.

    Parameters
    ----------
    config : Config
        The model's hyperparameters.
    weights : mapping
        Tensor name -> array, or an object with ``numpy(dtype=...)`` such as `Weight`, whose
        exact value is used. One step's weights at a time are held in float64.
    tokens : (T,) array_like of int
        The token ids.
    positions : (T,) array_like of int, optional
        The positions that RoPE uses; 0, 1, 2 ... by default. They do not change the mask: each
        token sees itself and the tokens before it in `tokens`.

    Returns
    -------
    dict of str to float64 array
        Tap name -> value, in the order of computation, from ``token_embd`` (T, D) to
        ``output`` (T, V), the logits.

    Raises
    ------
    TypeError
        Tokens or positions are no integers.
    ValueError
        They are not one-dimensional, or not of one length; a weight is missing.
    IndexError
        A token id is negative or above the vocabulary.
    UnsupportedError
        There is no table for the architecture, or no formula for the RoPE scaling.

    Examples
    --------
    The module's docstring has one.
    """
    tokens = _integers("tokens", tokens)
    positions = np.arange(len(tokens)) if positions is None else _integers("positions", positions)
    if positions.shape != tokens.shape:
        raise ValueError(f"positions: {len(positions)} numbers for {len(tokens)} tokens")
    if tokens.min() < 0:
        raise IndexError(f"tokens: id {tokens.min()} is negative")
    inputs = {"tokens": tokens, "positions": positions}
    taps: dict[str, Array] = {}
    for each in steps(config):
        taps[each.tap] = each.run(weights, {**inputs, **taps})
    return taps


def _integers(name: str, values: ArrayLike) -> NDArray[np.int64]:
    array = np.asarray(values)
    if array.ndim != 1 or array.size == 0:
        raise ValueError(f"{name}: shape {array.shape}: expected one dimension, not empty")
    if not np.issubdtype(array.dtype, np.integer):
        raise TypeError(f"{name}: {array.dtype}: expected integers")
    return array.astype(np.int64)
