"""`embed`: vectors of texts, from the final hidden states of a model."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..base.checks import choice
from ..base.numeric import Float64
from ..runtime.prompt import is_batch
from ..runtime.runner import Runner
from .pooling import POOLINGS, pool, pooling_of

__all__ = ["embed"]


def embed(
    model: Runner,
    prompt: Any,
    pooling: str | None = None,
    normalize: bool | None = None,
    parse_special: bool = False,
) -> Any:
    """Return the embedding of a text, or those of several. See `Model.embed`."""
    causal = bool(model.steps.roles("logits"))
    kind = pooling_of(model.metadata, causal) if pooling is None else pooling
    choice("pooling", kind, tuple(POOLINGS))
    if normalize is None:
        normalize = kind not in ("rank", "none")
    tap = model.steps.role("final_norm")
    batch = is_batch(prompt)
    traces = model.trace(prompt, tap, parse_special=parse_special)
    finished = _classified if kind == "rank" else _projected
    vectors = []
    for trace in traces if batch else [traces]:
        vector = finished(model, pool(trace[tap], kind))
        if normalize:
            length = np.sqrt(np.sum(vector * vector, axis=-1, keepdims=True))
            vector = vector / np.where(length > 0, length, 1)
        vectors.append(vector.astype(np.float32))
    if not batch:
        return vectors[0]
    return vectors if kind == "none" else np.stack(vectors)


def _matrix(model: Runner, name: str, x: Float64) -> Float64:
    """Return W x + b for tensors of the model; x without a weight of that name."""
    if f"{name}.weight" not in model.weights:
        return x
    y: Float64 = x @ model.weights[f"{name}.weight"].numpy(dtype=np.float64).T
    bias = model.weights.get(f"{name}.bias")
    return y if bias is None else y + bias.numpy(dtype=np.float64)


def _projected(model: Runner, x: Float64) -> Float64:
    """Return x after the two projections of EmbeddingGemma, if the model has them."""
    return _matrix(model, "dense_3", _matrix(model, "dense_2", x))


def _classified(model: Runner, x: Float64) -> Float64:
    """Return the scores of a reranker: its pooler with tanh, and its classifier."""
    if "cls.weight" in model.weights:
        x = np.tanh(_matrix(model, "cls", x))
    return _matrix(model, "cls.output", x)
