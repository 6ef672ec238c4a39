"""The first weights of a model, and the keys that describe it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ..base.numeric import Float32
from .parts import Parts
from .settings import Settings

__all__ = ["DEVIATION", "initial_parts"]

#: The standard deviation of embeddings and of the output.
DEVIATION = 0.02

#: The base of RoPE for contexts up to this length, and for longer ones.
_SHORT, _BASES = 512, (500.0, 10000.0)

_EPSILON = 1e-5


def initial_parts(settings: Settings, vocabulary: Mapping[str, Any], vocab_size: int) -> Parts:
    """Return a new model.

    Parameters
    ----------
    settings : Settings
    vocabulary : mapping
        The keys of its tokenizer; none, if it has no tokenizer.
    vocab_size : int

    Returns
    -------
    Parts
    """
    keys = _keys(settings, vocabulary)
    return Parts(None, keys, dict(_weights(settings, vocab_size)), ())


def _keys(settings: Settings, vocabulary: Mapping[str, Any]) -> dict[str, Any]:
    """Return the metadata of a new model.

    Parameters
    ----------
    settings : Settings
    vocabulary : mapping
        The keys of its tokenizer.

    Returns
    -------
    dict of str to object
        For `tinyllm.write_gguf`.
    """
    s = settings
    arch = "llama" if s.positions == "rope" else "gpt2"
    size = len(vocabulary["tokenizer.ggml.tokens"]) if vocabulary else 0
    keys: dict[str, Any] = {
        "general.architecture": arch,
        "general.name": "tinyllm",
        f"{arch}.block_count": s.layers,
        f"{arch}.context_length": s.context,
        f"{arch}.embedding_length": s.width,
        f"{arch}.feed_forward_length": s.ffn_width,
        f"{arch}.attention.head_count": s.heads,
        f"{arch}.attention.head_count_kv": s.kv_heads,
    }
    if arch == "llama":
        keys[f"{arch}.attention.layer_norm_rms_epsilon"] = _EPSILON
        keys[f"{arch}.rope.dimension_count"] = s.width // s.heads
        keys[f"{arch}.rope.freq_base"] = _BASES[s.context > _SHORT]
    else:
        keys[f"{arch}.attention.layer_norm_epsilon"] = _EPSILON
    if size:
        keys[f"{arch}.vocab_size"] = size
    return {**keys, **vocabulary}


def _weights(settings: Settings, vocab_size: int) -> dict[str, Float32]:
    """Return random weights by the names of GGUF.

    Matrices are normal with a standard deviation of 1 / sqrt(inputs). Those that write to the
    residual stream are divided by sqrt(2 layers), as in GPT-2 (Radford et al. 2019, section 2.3).
    Embeddings and the output have 0.02, gains are 1 and biases 0. An embedding that is the output,
    too, has 1 / sqrt(width): with 0.02 the blocks drown the token in the residual stream, and the
    first hundreds of steps learn little.

    Parameters
    ----------
    settings : Settings
    vocab_size : int

    Returns
    -------
    dict of str to float32 array
    """
    s = settings
    random = np.random.default_rng(s.seed)
    weights: dict[str, Float32] = {}

    def normal(name: str, rows: int, cols: int, deviation: float) -> None:
        values = random.standard_normal((rows, cols), dtype=np.float32)
        weights[name] = values * np.float32(deviation)

    def matrix(name: str, rows: int, cols: int, branch: bool = False) -> None:
        normal(f"{name}.weight", rows, cols, cols**-0.5 * ((2 * s.layers) ** -0.5 if branch else 1))
        if s.positions != "rope":
            weights[f"{name}.bias"] = np.zeros(rows, np.float32)

    def norm(name: str) -> None:
        weights[f"{name}.weight"] = np.ones(s.width, np.float32)
        if s.positions != "rope":
            weights[f"{name}.bias"] = np.zeros(s.width, np.float32)

    normal("token_embd.weight", vocab_size, s.width, s.width**-0.5 if s.tied else DEVIATION)
    if s.positions == "learned":
        normal("position_embd.weight", s.context, s.width, DEVIATION)
    elif s.positions == "none":
        weights["position_embd.weight"] = np.zeros((s.context, s.width), np.float32)
    kv_width = s.width // s.heads * s.kv_heads
    for i in range(s.layers):
        block = f"blk.{i}."
        norm(block + "attn_norm")
        if s.positions == "rope":
            matrix(block + "attn_q", s.width, s.width)
            matrix(block + "attn_k", kv_width, s.width)
            matrix(block + "attn_v", kv_width, s.width)
        else:
            matrix(block + "attn_qkv", 3 * s.width, s.width)
        matrix(block + "attn_output", s.width, s.width, branch=True)
        norm(block + "ffn_norm")
        if s.positions == "rope":
            matrix(block + "ffn_gate", s.ffn_width, s.width)
        matrix(block + "ffn_up", s.ffn_width, s.width)
        matrix(block + "ffn_down", s.width, s.ffn_width, branch=True)
    norm("output_norm")
    if not s.tied:
        normal("output.weight", vocab_size, s.width, DEVIATION)
    return weights
