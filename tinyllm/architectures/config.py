"""`Config`: the numbers that define a model, read from GGUF metadata and checked."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np

from ..errors import FormatError, UnsupportedError, wrong
from .keys import check_keys

__all__ = ["Config", "read_config"]

#: The core's limits: the largest size of a vector, and the longest context.
_MOST_VALUES, _LONGEST = 1 << 24, 1 << 30


@dataclasses.dataclass(frozen=True)
class Config:
    """The numbers that define a model.

    A value that differs between layers is a tuple with one entry per layer.

    Attributes
    ----------
    architecture : str
        ``general.architecture`` of the file, for example ``"llama"``.
    layers : int
        Number of blocks.
    width : int
        Size D of the residual stream.
    heads, kv_heads : int or tuple of int
        Number of query heads H, and of kv heads K (fewer than H in grouped-query attention).
    head_size, value_size : int
        Size of one head of queries and keys, and of values.
    ffn_width : int or tuple of int
        Inner width F of the feed-forward network.
    vocab_size : int
        Number of tokens V, which are the rows of the embedding.
    context_length : int
        The longest context that the model was trained for.
    norm_epsilon : float
        Added to the mean square in RMSNorm.
    rope_base : float
        Base of the rotary frequencies.
    rope_dimension : int
        Number of values of each head that are rotated.
    rope_scaling : mapping or None
        ``type`` (``"linear"`` or ``"yarn"``), ``factor`` and, for YaRN,
        ``original_context_length``, ``beta_fast``, ``beta_slow``, ``ext_factor``,
        ``attn_factor``.
    attention_scale : float or None
        Factor of the attention scores. None: ``1 / sqrt(head_size)``.
    tied : bool
        Whether the embedding is also the output matrix.

    Examples
    --------
    >>> import tinyllm
    >>> tinyllm.load().config.architecture
    'llama'
    """

    architecture: str
    layers: int
    width: int
    heads: int | tuple[int, ...]
    kv_heads: int | tuple[int, ...]
    head_size: int
    value_size: int
    ffn_width: int | tuple[int, ...]
    vocab_size: int
    context_length: int
    norm_epsilon: float
    rope_base: float
    rope_dimension: int
    rope_scaling: Mapping[str, Any] | None
    attention_scale: float | None
    tied: bool

    def __reduce__(self) -> tuple[Callable[..., Config], tuple[dict[str, Any]]]:
        """Pickle the RoPE scaling as a dict, because a read-only mapping cannot be pickled."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        scaling = self.rope_scaling
        return _remade, ({**values, "rope_scaling": None if scaling is None else dict(scaling)},)

    def layer(self, name: str, index: int) -> int:
        """Return the value of a field in one layer.

        Parameters
        ----------
        name : str
            ``"heads"``, ``"kv_heads"`` or ``"ffn_width"``.
        index : int
            The layer.

        Returns
        -------
        int

        Examples
        --------
        >>> import tinyllm
        >>> config = tinyllm.load().config
        >>> config.layer("heads", 0) == config.heads
        True
        """
        value = getattr(self, name)
        return int(value[index] if isinstance(value, tuple) else value)


def _remade(values: dict[str, Any]) -> Config:
    scaling = values["rope_scaling"]
    read_only = None if scaling is None else MappingProxyType(scaling)
    return Config(**{**values, "rope_scaling": read_only})


class _Reader:
    """Typed access to the keys ``<architecture>.<name>``. Errors name the key."""

    def __init__(self, metadata: Mapping[str, Any], architecture: str) -> None:
        self.metadata = metadata
        self.prefix = architecture + "."
        self.used: set[str] = set()

    def _get(self, name: str, kind: str, convert: Callable[[Any], Any], default: Any) -> Any:
        key = self.prefix + name
        self.used.add(name)
        if key not in self.metadata:
            if default is not ...:
                return default
            raise FormatError(f"{key} is missing; expected {kind}", field=key, expected=kind)
        value = self.metadata[key]
        result = convert(value)
        if result is None:
            raise FormatError(
                f"{key} is {value!r:.80}; expected {kind}", field=key, value=value, expected=kind
            )
        return result

    def integer(self, name: str, default: Any = ..., most: int = _MOST_VALUES) -> Any:
        def convert(value: Any) -> int | None:
            return _positive_integer(value, most)

        return self._get(name, f"a positive integer up to {most}", convert, default)

    def number(self, name: str, default: Any = ...) -> Any:
        return self._get(name, "a finite number", _finite, default)

    def text(self, name: str, default: Any = ...) -> Any:
        return self._get(name, "text", lambda v: v if isinstance(v, str) else None, default)

    def per_layer(self, name: str, layers: int, default: Any = ...) -> Any:
        """Return one integer, or a tuple with one per layer if they differ."""

        def convert(value: Any) -> Any:
            if not isinstance(value, (np.ndarray, list, tuple)):
                return _positive_integer(value)
            values = tuple(_positive_integer(v) for v in value)
            if len(values) != layers or None in values:
                return None
            return values[0] if len(set(values)) == 1 else values

        kind = f"a positive integer up to {_MOST_VALUES}, or {layers} of them, one per layer"
        return self._get(name, kind, convert, default)


def _positive_integer(value: Any, most: int = _MOST_VALUES) -> int | None:
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, (int, np.integer)):
        return None
    return int(value) if 0 < value <= most else None


def _finite(value: Any) -> float | None:
    if isinstance(value, (bool, np.bool_)) or not isinstance(
        value, (int, float, np.integer, np.floating)
    ):
        return None
    return float(value) if math.isfinite(value) else None


def _rope_scaling(read: _Reader, context_length: int) -> Mapping[str, Any] | None:
    """Return the RoPE scaling, read as in llama.cpp (llama-model.cpp, load_hparams)."""
    kind = read.text("rope.scaling.type", "linear")
    factor = read.number("rope.scaling.factor", read.number("rope.scale_linear", 0.0))
    attn_factor = read.number(
        "rope.scaling.attn_factor", read.number("rope.scaling.yarn_attn_factor", 1.0)
    )
    if not attn_factor > 0:
        raise wrong(read.prefix + "rope.scaling.attn_factor", attn_factor, "a positive number")
    if factor < 0:
        raise wrong(read.prefix + "rope.scaling.factor", factor, "a positive number")
    if kind == "none" or (kind == "linear" and factor in (0.0, 1.0)):
        if attn_factor == 1.0:
            return None
        return MappingProxyType({"type": "linear", "factor": 1.0, "attn_factor": attn_factor})
    if kind == "linear":
        return MappingProxyType({"type": kind, "factor": factor, "attn_factor": attn_factor})
    if kind != "yarn":
        raise UnsupportedError(
            f"{read.prefix}rope.scaling.type is {kind!r}; this version supports none, linear, yarn"
        )
    yarn = {
        "beta_fast": read.number("rope.scaling.yarn_beta_fast", 32.0),
        "beta_slow": read.number("rope.scaling.yarn_beta_slow", 1.0),
        "ext_factor": read.number("rope.scaling.yarn_ext_factor", 1.0),
    }
    for name, value in yarn.items():
        if value < 0 or (value == 0 and name != "ext_factor"):
            raise wrong(f"{read.prefix}rope.scaling.yarn_{name}", value, "a positive number")
    return MappingProxyType(
        {
            "type": kind,
            "factor": factor or 1.0,
            "original_context_length": read.integer(
                "rope.scaling.original_context_length", context_length, _LONGEST
            ),
            **yarn,
            "attn_factor": attn_factor,
        }
    )


def read_config(metadata: Mapping[str, Any], tensors: Mapping[str, Any]) -> Config:
    """Return the config of a model, read from its GGUF metadata and tensors.

    Parameters
    ----------
    metadata : mapping
        GGUF keys and values, such as ``tinyllm.GGUF(path).metadata``. ``general.architecture``
        must be supported: see `tinyllm.architectures.table.find`.
    tensors : mapping of str to Weight
        Tell what the metadata does not state: the size of the vocabulary, and whether there is
        an output matrix.

    Returns
    -------
    Config

    Raises
    ------
    tinyllm.FormatError
        If a key is missing or has an invalid value. ``.field`` names it.
    tinyllm.UnsupportedError
        If the model needs a feature that this version does not support.

    Notes
    -----
    Keys and defaults are those of the GGUF specification (ggml, docs/gguf.md) and of llama.cpp's
    loader.

    Examples
    --------
    >>> import tinyllm
    >>> from tinyllm.architectures.config import read_config
    >>> model = tinyllm.load()
    >>> read_config(model.metadata, model.weights) == model.config
    True
    """
    architecture: str = metadata["general.architecture"]
    read = _Reader(metadata, architecture)
    layers = read.integer("block_count", most=2**31)
    if layers > len(tensors):  # checked before anything is allocated per layer
        raise wrong(
            read.prefix + "block_count",
            layers,
            f"at most {len(tensors)}, the number of tensors in the file",
        )
    width = read.integer("embedding_length")
    heads = read.per_layer("attention.head_count", layers)
    context_length = read.integer("context_length", most=_LONGEST)

    head_size = read.integer("attention.key_length", None)
    if head_size is None:
        if isinstance(heads, tuple) or width % heads != 0:
            raise wrong(
                read.prefix + "attention.head_count",
                heads,
                f"a divisor of the width, {width}, or a value of {read.prefix}attention.key_length",
            )
        head_size = width // heads
    epsilon = read.number("attention.layer_norm_rms_epsilon")
    if not 0 <= epsilon < 1:
        raise wrong(
            read.prefix + "attention.layer_norm_rms_epsilon", epsilon, "at least 0 and less than 1"
        )
    base = read.number("rope.freq_base", 10000.0)
    if not base > 0:
        raise wrong(read.prefix + "rope.freq_base", base, "a positive number")
    rotated = read.integer("rope.dimension_count", head_size)
    if rotated % 2 or rotated > head_size:
        raise wrong(
            read.prefix + "rope.dimension_count", rotated, f"an even number up to {head_size}"
        )

    embedding = tensors.get("token_embd.weight")
    if embedding is None or len(embedding.shape) != 2:
        raise FormatError(
            "tensor 'token_embd.weight' is missing or not two-dimensional",
            field="token_embd.weight",
            expected="a matrix (vocab_size, width)",
        )
    vocab_size = int(embedding.shape[0])
    tokens = metadata.get("tokenizer.ggml.tokens")
    if tokens is not None and len(tokens) > vocab_size:
        raise wrong(
            "tokenizer.ggml.tokens",
            f"{len(tokens)} tokens",
            f"at most {vocab_size}, the rows of token_embd.weight",
        )
    kv_heads = read.per_layer("attention.head_count_kv", layers, heads)
    for layer in range(layers):
        pair = [value[layer] if isinstance(value, tuple) else value for value in (heads, kv_heads)]
        if pair[0] % pair[1]:
            raise wrong(
                read.prefix + "attention.head_count",
                pair[0],
                f"a multiple of the {pair[1]} kv heads of block {layer}",
            )
    scale = read.number("attention.scale", None)
    if scale is not None and not scale > 0:
        raise wrong(read.prefix + "attention.scale", scale, "a positive number")
    config = Config(
        architecture=architecture,
        layers=layers,
        width=width,
        heads=heads,
        kv_heads=kv_heads,
        head_size=head_size,
        value_size=read.integer("attention.value_length", head_size),
        ffn_width=read.per_layer("feed_forward_length", layers),
        vocab_size=vocab_size,
        context_length=context_length,
        norm_epsilon=epsilon,
        rope_base=base,
        rope_dimension=rotated,
        rope_scaling=_rope_scaling(read, context_length),
        attention_scale=scale,
        tied="output.weight" not in tensors,
    )
    check_keys(metadata, architecture, read.used, context_length)
    return config
