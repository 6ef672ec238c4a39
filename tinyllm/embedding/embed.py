"""`embed`: vectors of texts, from the final hidden states of a model."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from .. import _core
from ..base.checks import choice, ranged
from ..base.numeric import Float32, Float64
from ..base.progress import Progress
from ..runtime.prompt import is_batch, token_ids
from ..runtime.runner import Runner
from ..trace.arena import Arena
from .pooling import POOLINGS, pool, pooling_of

__all__ = ["embed"]

#: Tokens that run together: enough to use each unpacked weight often, and few enough that the
#: values of a layer stay in the caches of the processor.
_TOGETHER = 256


def embed(
    model: Runner,
    prompt: Any,
    pooling: str | None = None,
    normalize: bool | None = None,
    batch: int | None = None,
    parse_special: bool = False,
) -> Any:
    """Return the embedding of a text, or those of several. See `Model.embed`."""
    causal = bool(model.steps.roles("logits"))
    kind = pooling_of(model.metadata, causal) if pooling is None else pooling
    choice("pooling", kind, tuple(POOLINGS))
    together = None if batch is None else ranged("batch", batch, 1)
    if normalize is None:
        normalize = kind not in ("rank", "none")
    many = is_batch(prompt)
    texts = list(prompt) if many else [prompt]
    if not texts:
        raise ValueError("the prompt is an empty batch; expected at least one text")
    tokens = []
    for i, text in enumerate(texts):
        name = f"prompt {i}" if len(texts) > 1 else "the prompt"
        ids = token_ids(text, model.tokenizer, name, parse_special)
        tokens.append(_shortened(model, ids, name) if isinstance(text, str | bytes) else ids)
    finished = _classified if kind == "rank" else _projected
    vectors: list[Any] = [None] * len(texts)
    for i, states in _states(model, tokens, together):
        vector = finished(model, pool(states, kind))
        if normalize:
            length = np.sqrt(np.sum(vector * vector, axis=-1, keepdims=True))
            vector = vector / np.where(length > 0, length, 1)
        vectors[i] = vector.astype(np.float32)
    if not many:
        return vectors[0]
    return vectors if kind == "none" else np.stack(vectors)


def _shortened(model: Runner, ids: npt.NDArray[np.int32], name: str) -> npt.NDArray[np.int32]:
    """Return the beginning of a text that is longer than the context, with the token that ends it.

    sentence-transformers does the same, and says nothing.
    """
    limit = model.core.config["max_context"]
    if len(ids) <= limit or model.tokenizer is None:
        return ids
    warnings.warn(
        f"{name} has {len(ids):,} tokens; the embedding is that of its first {limit:,}, as many as "
        "the model takes",
        stacklevel=4,
    )
    ended = model.tokenizer.encode("")[-1:] == ids[-1:].tolist()  # [SEP] in BERT
    return np.append(ids[: limit - ended], ids[len(ids) - ended :])


def _groups(tokens: Sequence[npt.NDArray[np.int32]], batch: int | None) -> Iterator[list[int]]:
    """Yield the numbers of the texts that run together, the longest texts first."""
    group: list[int] = []
    total = 0
    for i in sorted(range(len(tokens)), key=lambda i: -len(tokens[i])):
        full = total + len(tokens[i]) > _TOGETHER if batch is None else len(group) == batch
        if group and full:
            yield group
            group, total = [], 0
        group.append(i)
        total += len(tokens[i])
    yield group


def _states(
    model: Runner, tokens: Sequence[npt.NDArray[np.int32]], batch: int | None
) -> Iterator[tuple[int, Float32]]:
    """Yield the number of each text and its final hidden states (T, D), in any order."""
    tap = model.steps.role("final_norm")
    layout = model.layout(tap)
    sessions: list[_core.Session] = []
    count = sum(map(len, tokens))
    with Progress(count, f"embedding {len(tokens)} texts", len(tokens) > 1) as bar:
        for group in _groups(tokens, batch):
            while len(sessions) < len(group):
                sessions.append(_core.Session(model.core))
            together = [tokens[i] for i in group]
            lengths = [len(ids) for ids in together]
            arena = Arena(layout, lengths, lengths)
            used = sessions[: len(group)]  # their memory serves all groups
            model.run(used, together, [], arena=arena)
            for place, (i, session) in enumerate(zip(group, used, strict=True)):
                session.rewind(0)
                yield i, arena.views(place).look(tap)
            bar.add(sum(lengths))


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
