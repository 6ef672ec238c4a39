"""`Config`: the numbers that define a model, read from GGUF metadata and checked."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from ..base.words import getattr_of
from ..errors import FormatError, UnsupportedError, wrong
from .arch import Arch
from .reader import LONGEST, Reader

__all__ = ["Config", "read_config"]


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

    if not TYPE_CHECKING:
        __getattr__ = getattr_of("Config")

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


def _rope_scaling(read: Reader, context_length: int, arch: Arch) -> Mapping[str, Any] | None:
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
    if kind == "longrope":  # its factors are tensors
        kind, factor = "linear", 1.0
    if kind == "none" or (kind == "linear" and factor in (0.0, 1.0)):
        if attn_factor == 1.0:
            return None
        return MappingProxyType({"type": "linear", "factor": 1.0, "attn_factor": attn_factor})
    if kind == "linear":
        return MappingProxyType({"type": kind, "factor": factor, "attn_factor": attn_factor})
    if kind != "yarn":
        raise UnsupportedError(
            f"{read.prefix}rope.scaling.type is {kind!r}; this version supports none, linear, "
            "longrope, yarn"
        )
    multiplier = read.number("rope.scaling.yarn_log_multiplier", 0.0)
    if arch.latent and multiplier:  # then the magnitude is one of the scores
        multiplier = 1.0
    if multiplier < 0:
        raise wrong(read.prefix + "rope.scaling.yarn_log_multiplier", multiplier, "at least 0")
    if multiplier and factor > 1:  # mscale_all_dim of Hugging Face
        attn_factor /= 1 + 0.1 * multiplier * math.log(factor)
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
                "rope.scaling.original_context_length", context_length, LONGEST
            ),
            **yarn,
            "attn_factor": attn_factor,
        }
    )


def read_config(read: Reader, tensors: Mapping[str, Any], arch: Arch) -> Config:
    """Return the config of a model, read from its GGUF metadata and tensors.

    Parameters
    ----------
    read : Reader
        Reads the keys of the file.
    tensors : mapping of str to Weight
        Tell what the metadata does not state: the size of the vocabulary, and whether there is
        an output matrix.
    arch : Arch
        The row of the architecture.

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
    >>> from tinyllm.architectures.reader import Reader
    >>> from tinyllm.architectures.table import find
    >>> model = tinyllm.load()
    >>> read = Reader(model.metadata, "llama")
    >>> read_config(read, model.weights, find("llama")) == model.config
    True
    """
    block_count = "block_count"
    if read.prefix + arch.layers in read.metadata:
        block_count = arch.layers
    layers = read.integer(block_count, most=2**31)
    if layers > len(tensors):  # checked before anything is allocated per layer
        raise wrong(
            read.prefix + block_count,
            layers,
            f"at most {len(tensors)}, the number of tensors in the file",
        )
    blocks = layers
    layers -= read.integer("nextn_predict_layers", 0, least=0)  # draft heads do not run
    if layers < 1:
        raise wrong(read.prefix + "nextn_predict_layers", blocks - layers, f"at most {blocks - 1}")

    def per_layer(name: str, default: Any = ..., least: int = 1) -> Any:
        """Return a value for the blocks that run, of a key that covers all blocks."""
        value = read.per_layer(name, blocks, default, least)
        if not isinstance(value, tuple):
            return value
        return value[0] if len(set(value[:layers])) == 1 else value[:layers]

    width = read.integer("embedding_length")
    least = 0 if arch.zeros else 1
    heads = per_layer("attention.head_count", least=least)
    context_length = read.integer("context_length", most=LONGEST)

    head_size = read.integer("attention.key_length", None)
    if head_size is None:
        counts = set(heads if isinstance(heads, tuple) else [heads]) - {0}
        if not counts:  # no block has attention
            head_size = 0
        elif len(counts) > 1 or width % min(counts) != 0:
            raise wrong(
                read.prefix + "attention.head_count",
                heads,
                f"a divisor of the width, {width}, or a value of {read.prefix}attention.key_length",
            )
        else:
            head_size = width // counts.pop()
    epsilon = read.number(arch.epsilon_key)
    if not 0 <= epsilon < 1:
        raise wrong(read.prefix + arch.epsilon_key, epsilon, "at least 0 and less than 1")
    base = read.number("rope.freq_base", 10000.0)
    if not base > 0:
        raise wrong(read.prefix + "rope.freq_base", base, "a positive number")
    rotated = read.integer("rope.dimension_count", head_size)
    if arch.rope != "none" and (rotated % 2 or rotated > head_size):
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
    tokens = read.metadata.get("tokenizer.ggml.tokens")
    if isinstance(tokens, list) and len(tokens) > vocab_size:  # the tokenizer checks the rest
        raise wrong(
            "tokenizer.ggml.tokens",
            f"{len(tokens)} tokens",
            f"at most {vocab_size}, the rows of token_embd.weight",
        )
    kv_heads = per_layer("attention.head_count_kv", heads, least)
    for layer in range(layers):
        pair = [value[layer] if isinstance(value, tuple) else value for value in (heads, kv_heads)]
        if pair[1] and pair[0] % pair[1]:
            raise wrong(
                read.prefix + "attention.head_count",
                pair[0],
                f"a multiple of the {pair[1]} kv heads of block {layer}",
            )
    scale = read.number("attention.scale", None)
    if scale is not None and not scale > 0:
        raise wrong(read.prefix + "attention.scale", scale, "a positive number")
    experts = read.prefix + "expert_count" in read.metadata  # with a width of their own
    return Config(
        architecture=read.architecture,
        layers=layers,
        width=width,
        heads=heads,
        kv_heads=kv_heads,
        head_size=head_size,
        value_size=read.integer("attention.value_length", head_size),
        ffn_width=per_layer("feed_forward_length", 0 if experts else ..., least),
        vocab_size=vocab_size,
        context_length=context_length,
        norm_epsilon=epsilon,
        rope_base=base,
        rope_dimension=rotated,
        rope_scaling=_rope_scaling(read, context_length, arch),
        attention_scale=scale,
        tied="output.weight" not in tensors,
    )
