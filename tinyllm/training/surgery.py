"""Models made from others: a new vocabulary, one more block, one more head, a new optimizer.

An inserted block or head changes no logit, because what it adds to the residual stream is zero at
first (Chen et al. 2016, "Net2Net", arXiv:1511.05641, and Bachlechner et al. 2021, "ReZero",
arXiv:2003.04887, have the idea). The optimizer's moments of everything else are kept.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from .._core import Weight
from ..base.checks import index, integer, ranged
from ..base.numeric import Float32
from ..errors import UnsupportedError
from ..files.gguf_write import write_gguf
from ..loading import load
from ..model import Model
from ..tokenizer import Tokenizer
from .checkpoint import State, read_state, state_path, write_state
from .data import read_data
from .history import extended, history_key
from .initial import DEVIATION, initial_parts
from .parts import Parts, read_parts
from .settings import Settings
from .vocabulary import vocabulary

__all__ = ["init_model", "init_with", "insert_head", "insert_layer", "reset_optimizer"]

#: Architectures whose blocks write to the residual stream through these two matrices alone, and
#: are all of the same kind.
_PLAIN = ("llama", "qwen2", "qwen3", "gemma", "gpt2")
_BRANCHES = ("attn_output", "ffn_down")

_BLOCK = re.compile(r"blk\.(\d+)\.(.+)")

Path = str | os.PathLike[str]


def init_model(
    out: Path,
    data: Any = None,
    *,
    layers: int,
    width: int,
    heads: int,
    kv_heads: int | None = None,
    ffn_width: int | None = None,
    context: int,
    tokenizer: str | Path | Tokenizer = "char",
    vocab_size: int | None = None,
    positions: str = "rope",
    tied: bool = False,
    seed: int = 0,
) -> Model:
    """Write a new model with random weights: that with which `train` begins.

    Parameters
    ----------
    out : str or os.PathLike
        The GGUF file to write.
    data : str, os.PathLike or iterable of int, optional
        What the vocabulary is made from, as in `train`. ``"byte"`` and a Tokenizer need none.
    layers, width, heads, kv_heads, ffn_width, context, positions, tied, seed
        As in `train`.
    tokenizer : str, os.PathLike or Tokenizer
        As in `train`.
    vocab_size : int, optional
        For a model of ids, without data and without a tokenizer.

    Returns
    -------
    Model

    Raises
    ------
    ValueError
        If an argument is wrong, or there is nothing to make the vocabulary from.

    Examples
    --------
    >>> import tinyllm as tl
    >>> model = tl.init_model(
    ...     "new.gguf", tokenizer="byte", layers=1, width=16, heads=2, context=8
    ... )
    >>> model.logits("hi").shape
    (2, 257)
    >>> run = tl.train("abcd" * 90, start="new.gguf", batch=2, steps=3, progress=False)
    >>> [event.made for event in run.history]
    ['init', 'train']
    """
    settings = Settings.make(
        layers=layers,
        width=width,
        heads=heads,
        kv_heads=kv_heads,
        ffn_width=ffn_width,
        context=context,
        positions=positions,
        tied=tied,
        seed=seed,
        batch=1,
        steps=1,
    )
    if vocab_size is not None:
        keys: dict[str, Any] = {}
        size = ranged("vocab_size", vocab_size, 1)
    else:
        keys = _vocabulary(tokenizer, data)
        size = len(keys["tokenizer.ggml.tokens"])
    parts = initial_parts(settings, keys, size)
    return _write(out, parts, "init", [settings.to_json(), parts.metadata.get(_TOKENS, size)])


def init_with(
    model: Any,
    out: Path,
    data: Any = None,
    *,
    tokenizer: str | Path | Tokenizer | None = None,
    context: int | None = None,
    seed: int = 0,
) -> Model:
    """Write a model with the blocks of another one, and another vocabulary or context.

    Tokens that both vocabularies have keep their rows of the embedding and of the output. Other
    rows are random.

    Parameters
    ----------
    model : str, os.PathLike, Model or Run
        The model whose blocks are taken.
    out : str or os.PathLike
        The GGUF file to write.
    data : str, os.PathLike, optional
        What the new vocabulary is made from, as in `train`.
    tokenizer : str, os.PathLike or Tokenizer, optional
        The new vocabulary, as in `train`. Default: the vocabulary stays.
    context : int, optional
        The new longest context. A longer table of learned positions gets random rows.
    seed : int

    Returns
    -------
    Model

    Raises
    ------
    ValueError
        If an argument is wrong, or there is nothing to make the vocabulary from.

    Examples
    --------
    >>> import tinyllm as tl
    >>> tl.init_with("demo", "other.gguf", tokenizer="byte", context=64).config.vocab_size
    257
    """
    parts = read_parts(model)
    arch = parts.metadata["general.architecture"]
    keys, weights = dict(parts.keys), dict(parts.weights)
    random = np.random.default_rng(integer("seed", seed))
    if tokenizer is not None:
        old = parts.metadata.get(_TOKENS, ())
        keys = {key: v for key, v in keys.items() if not key.startswith("tokenizer.")}
        keys |= _vocabulary(tokenizer, data)
        new = keys[_TOKENS]
        if f"{arch}.vocab_size" in keys:
            keys[f"{arch}.vocab_size"] = len(new)
        known = {text: i for i, text in enumerate(old)}
        both = [(i, known[text]) for i, text in enumerate(new) if text in known]
        to, source = np.array(both, np.int64).reshape(-1, 2).T
        for name in ("token_embd.weight", "output.weight"):
            if name in weights:
                rows = parts.array(name)
                weights[name] = _normal(random, (len(new), rows.shape[1]), DEVIATION)
                weights[name][to] = rows[source]
    if context is not None:
        keys[f"{arch}.context_length"] = ranged("context", context, 1)
        if "position_embd.weight" in weights:
            rows = parts.array("position_embd.weight")
            deviation = DEVIATION if rows.any() else 0.0
            table = _normal(random, (context, rows.shape[1]), deviation)
            table[: len(rows)] = rows[:context]
            weights["position_embd.weight"] = table
    made = parts._replace(keys=keys, weights=weights)
    return _write(out, made, "init-with", [made.metadata.get(_TOKENS), context, seed])


def insert_layer(model: Any, out: Path, at: int | None = None, *, seed: int = 0) -> Model:
    """Write a model with one more block, whose logits have the same bits.

    The two matrices of the new block that write to the residual stream are zero, and the others
    random. Training changes all of them. If `model` is a file of a training run, the checkpoint is
    written too, so the run can be resumed: moments of the other blocks are kept.

    Parameters
    ----------
    model : str, os.PathLike, Model or Run
        A llama, qwen2, qwen3, gemma or gpt2.
    out : str or os.PathLike
        The GGUF file to write. It may be the same one.
    at : int, optional
        The number that the new block has. Default: it becomes the last one.
    seed : int

    Returns
    -------
    Model

    Raises
    ------
    IndexError
        If there is no such place.
    UnsupportedError
        If the model has another architecture, or mixtures of experts.

    Examples
    --------
    >>> import tinyllm as tl
    >>> deeper = tl.insert_layer("demo", "deeper.gguf", at=1)
    >>> deeper.config.layers - tl.load("demo").config.layers
    1
    >>> bool((deeper.logits("ROMEO:") == tl.load("demo").logits("ROMEO:")).all())
    True
    """
    parts = read_parts(model)
    layers = parts.config.layers
    where = layers if at is None else index("at", at, layers, layers)
    arch = _plain_architecture(parts)
    random = np.random.default_rng(integer("seed", seed))
    pattern = f"blk.{min(where, layers - 1)}."
    names: dict[str, str | None] = {}  # of the new model, and where each tensor comes from
    weights: dict[str, Any] = {}
    last = [name for name in parts.weights if name.startswith(f"blk.{layers - 1}.")][-1]
    for name, weight in parts.weights.items():
        if name.startswith(pattern) and where < layers:
            _new_block(parts, pattern, where, random, weights, names)
            pattern = "done"
        found = _BLOCK.fullmatch(name)
        to = name
        if found is not None and int(found[1]) >= where:
            to = f"blk.{int(found[1]) + 1}.{found[2]}"
        weights[to], names[to] = weight, name
        if where == layers and name == last:
            _new_block(parts, pattern, where, random, weights, names)
    keys = {**parts.keys, f"{arch}.block_count": layers + 1}
    made = parts._replace(keys=keys, weights=weights)
    return _write(
        out,
        made,
        "insert-layer",
        [where, seed],
        lambda moments: {
            name: np.zeros(weight.shape, np.float32) if source is None else moments[source]
            for (name, source), weight in zip(names.items(), weights.values(), strict=True)
            if source is None or source in moments
        },
        {"layers": layers + 1},
    )


def _new_block(
    parts: Parts,
    pattern: str,
    where: int,
    random: np.random.Generator,
    weights: dict[str, Any],
    names: dict[str, str | None],
) -> None:
    """Add the tensors of a new block, which has the shape of the block `pattern`."""
    for name in [name for name in parts.weights if name.startswith(pattern)]:
        tail = name[len(pattern) :]
        shape = parts.weights[name].shape
        to = f"blk.{where}.{tail}"
        names[to] = None
        if tail.split(".")[0] in _BRANCHES or tail.endswith(".bias"):
            weights[to] = np.zeros(shape, np.float32)
        elif len(shape) == 1:
            weights[to] = np.ones(shape, np.float32)
        else:
            weights[to] = _normal(random, shape, shape[-1] ** -0.5)


def insert_head(model: Any, out: Path, *, seed: int = 0) -> Model:
    """Write a model with one more attention head in each block, whose logits have the same bits.

    The columns of the output projection that read the new head are zero. If several heads share
    keys and values, one more such group is added. Moments of a training run are kept as in
    `insert_layer`.

    Parameters
    ----------
    model : str, os.PathLike, Model or Run
        A llama, qwen2 or qwen3 with F32, F16 or BF16 matrices of attention. In a gpt2 the number of
        heads times their size is the width, so it cannot have more.
    out : str or os.PathLike
        The GGUF file to write. It may be the same one.
    seed : int

    Returns
    -------
    Model

    Raises
    ------
    UnsupportedError
        If the model has another architecture, or quantized matrices of attention.

    Examples
    --------
    >>> import tinyllm as tl
    >>> run = tl.train("abcd" * 90, layers=1, width=16, heads=2, context=8, batch=2, steps=3)
    >>> wider = tl.insert_head(run, "wider.gguf")
    >>> wider.config.heads, bool((wider.logits("ab") == run.model.logits("ab")).all())
    (3, True)
    """
    parts = read_parts(model)
    arch = _plain_architecture(parts)
    c = parts.config
    if arch in ("gpt2", "gemma"):
        raise UnsupportedError(
            f"the architecture is {arch!r}; expected llama, qwen2 or qwen3, where the number of "
            "heads does not depend on the width"
        )
    heads, groups = int(np.max(c.heads)), int(np.max(c.kv_heads))
    more = heads // groups
    random = np.random.default_rng(integer("seed", seed))
    added = {
        "attn_q": more * c.head_size,
        "attn_k": c.head_size,
        "attn_v": c.value_size,
        "attn_output": more * c.value_size,
    }

    def grown(name: str, old: Float32, new: Callable[[Sequence[int]], Float32]) -> Float32:
        found = _BLOCK.fullmatch(name)
        count = added.get(found[2].split(".")[0], 0) if found is not None else 0
        if count and ".attn_output." in name:
            zeros = np.zeros((len(old), count), np.float32)
            return old if old.ndim == 1 else np.concatenate([old, zeros], axis=1)
        if count:
            return np.concatenate([old, new((count, *old.shape[1:]))])
        return old

    def rows(shape: Sequence[int]) -> Float32:
        return _normal(random, shape, shape[-1] ** -0.5 if len(shape) == 2 else 0.0)

    weights: dict[str, Any] = {}
    for name, weight in parts.weights.items():
        found = _BLOCK.fullmatch(name)
        weights[name] = weight
        if found is not None and found[2].split(".")[0] in added:
            if isinstance(weight, Weight) and weight.type not in ("F32", "F16", "BF16"):
                raise UnsupportedError(f"{name} has type {weight.type}; expected F32, F16 or BF16")
            weights[name] = grown(name, parts.array(name), rows)
    keys = {
        **parts.keys,
        f"{arch}.attention.head_count": heads + more,
        f"{arch}.attention.head_count_kv": groups + 1,
        f"{arch}.attention.key_length": c.head_size,
        f"{arch}.attention.value_length": c.value_size,
        f"{arch}.rope.dimension_count": c.rope_dimension,
    }
    made = parts._replace(keys=keys, weights=weights)
    return _write(
        out,
        made,
        "insert-head",
        [seed],
        lambda moments: {
            name: grown(name, moment, lambda shape: np.zeros(shape, np.float32))
            for name, moment in moments.items()
        },
        {"heads": heads + more, "kv_heads": groups + 1},
    )


def reset_optimizer(path: Path) -> None:
    """Set the moments of the checkpoint of a training run to zero.

    Parameters
    ----------
    path : str or os.PathLike
        The model's file.

    Raises
    ------
    FileNotFoundError
        If it has no checkpoint.

    Examples
    --------
    >>> import tinyllm as tl
    >>> shape = {"layers": 1, "width": 8, "heads": 2, "context": 8, "batch": 2}
    >>> run = tl.train("abcd" * 90, **shape, steps=3, out="m.gguf", progress=False)
    >>> tl.reset_optimizer("m.gguf")
    >>> run = tl.train("abcd" * 90, resume="m.gguf", steps=5, progress=False)
    >>> [event.made for event in run.history]
    ['train', 'reset-optimizer', 'resume']
    """
    state = read_state(path)
    history = extended(state.history, "reset-optimizer", state.step, [])
    zeros = np.zeros_like(state.first)
    write_state(path, state._replace(first=zeros, second=zeros, history=history))


# ---- what they share ----

_TOKENS = "tokenizer.ggml.tokens"


def _plain_architecture(parts: Parts) -> str:
    arch = str(parts.metadata["general.architecture"])
    experts = any("_exps" in name for name in parts.weights)
    if arch not in _PLAIN or experts:
        raise UnsupportedError(
            f"the architecture is {arch!r}{' with experts' if experts else ''}; expected one of "
            f"{', '.join(_PLAIN)} without experts"
        )
    return arch


def _vocabulary(tokenizer: Any, data: Any) -> dict[str, Any]:
    text = "" if data is None else read_data(data)
    if not isinstance(text, str):
        raise ValueError("data are ids; expected a text, from which a vocabulary is made")
    if not text and isinstance(tokenizer, str) and (tokenizer == "char" or ":" in tokenizer):
        raise ValueError(f"tokenizer is {tokenizer!r}, and there are no data to make it from")
    return vocabulary(tokenizer, text)


def _normal(random: np.random.Generator, shape: Sequence[int], deviation: float) -> Float32:
    return random.standard_normal(tuple(shape), dtype=np.float32) * np.float32(deviation)


def _write(
    out: Path,
    parts: Parts,
    made: str,
    facts: Sequence[object],
    moments: Callable[[dict[str, Float32]], dict[str, Float32]] | None = None,
    shape: Mapping[str, int] | None = None,
) -> Model:
    """Write a model, and its checkpoint if the old one has one and `moments` maps its moments."""
    state = None
    if moments is not None and parts.path is not None and state_path(parts.path).is_file():
        state = read_state(parts.path)
    history = extended(parts.history, made, 0 if state is None else state.step, facts)
    write_gguf(out, {**parts.keys, **history_key(history)}, parts.weights)
    if state is not None and moments is not None:
        _write_state(out, state, history, moments, shape or {})
    return load(out)


def _write_state(
    out: Path,
    state: State,
    history: Any,
    moments: Callable[[dict[str, Float32]], dict[str, Float32]],
    shape: Mapping[str, int],
) -> None:
    """Write the checkpoint of a model that was made from that of a run."""
    old = read_parts(bytes(state.image))
    frozen = ("position_embd.weight",) if state.settings.positions == "none" else ()
    trained = {name: w.shape for name, w in old.weights.items() if name not in frozen}
    new = read_parts(out)

    def moved(flat: Float32) -> Float32:
        parts, end = {}, 0
        for name, size in trained.items():
            start, end = end, end + int(np.prod(size))
            parts[name] = flat[start:end].reshape(size)
        found = moments(parts)
        order = [name for name in new.weights if name in found]
        return np.concatenate([found[name].reshape(-1) for name in order])

    with open(out, "rb") as file:
        image = np.frombuffer(file.read(), np.int8)
    settings = Settings(**{**state.settings.__dict__, **shape})
    write_state(
        out,
        state._replace(
            settings=settings,
            image=image,
            first=moved(state.first),
            second=moved(state.second),
            history=history,
        ),
    )
