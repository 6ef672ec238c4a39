"""How far training has moved a model: each tensor, each head, each token; and nearest tokens."""

from __future__ import annotations

import dataclasses
import os
import re
from typing import Any

import numpy as np

from ..base.checks import index, ranged
from ..base.numeric import Float32, Float64
from ..display.table import Table
from ..editing.compare import WeightDifference, diff_weights
from ..errors import UnsupportedError
from ..loading import load
from ..runtime.runner import Runner
from ..tokenizer import tokenizer_from_metadata
from .checkpoint import read_state, state_path
from .history import Event, common
from .parts import Parts, read_parts
from .run import Run

__all__ = ["Movement", "Neighbor", "cluster_tokens", "compare_checkpoints"]

#: Matrices of heads: the number and the size of the heads, and whether they lie in the columns.
_OF_HEADS = {
    "attn_q": ("heads", "head_size", False),
    "attn_k": ("kv_heads", "head_size", False),
    "attn_v": ("kv_heads", "value_size", False),
    "attn_output": ("heads", "value_size", True),
}

#: Rows of the embedding that are compared with all others at a time.
_ROWS = 256


@dataclasses.dataclass(frozen=True, repr=False)
class Movement:
    """What differs between two models of one shape: the result of `compare_checkpoints`.

    The movement of a tensor is the norm of the difference divided by that of the first model's.
    The cosine alone would hide that a tensor has only shrunk.

    Attributes
    ----------
    weights : WeightDifference
        The result of `diff_weights`: the cosine and the movement (``relative``) of each tensor.
    heads : dict of str to float64 array, shape (H or K, 2)
        The cosine and the movement of each head, by the name of the tensor: queries, keys, values,
        and the columns of the output projection.
    tokens : float64 array, shape (V, H, 2), or None
        The same of each token's row of the embedding, in as many parts as there are heads. None if
        the vocabularies differ.
    common : tuple of Event
        The runs and changes that both come from.
    only_first, only_second : tuple of Event
        Those after them.
    equal_steps : int or None
        How many first steps have the same loss, if both have a checkpoint.

    Examples
    --------
    >>> import tinyllm as tl
    >>> movement = tl.compare_checkpoints("demo", "demo")
    >>> movement.weights.same, movement.heads["blk.0.attn_q.weight"].tolist()
    (True, [[1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [1.0, 0.0]])
    """

    weights: WeightDifference
    heads: dict[str, Float64]
    tokens: Float64 | None
    common: tuple[Event, ...]
    only_first: tuple[Event, ...]
    only_second: tuple[Event, ...]
    equal_steps: int | None

    def table(self) -> Table:
        """Return a table of the tensors, the one that has moved least first."""
        rows = []
        for tensor in reversed(self.weights.tensors):
            heads = self.heads.get(tensor.name)
            spread = "" if heads is None else " ".join(f"{moved:.3f}" for moved in heads[:, 1])
            rows.append((tensor.name, f"{tensor.cosine:.6f}", f"{tensor.relative:.6f}", spread))
        return Table(("tensor", "cosine", "moved", "by head"), rows)

    def history_table(self) -> Table:
        """Return a table of both histories."""
        parts = (("both", self.common), ("first", self.only_first), ("second", self.only_second))
        rows = [(who, e.made, e.step, e.run) for who, events in parts for e in events]
        return Table(("model", "what", "from step", "run"), rows)

    def to_dict(self) -> dict[str, Any]:
        """Return everything as values that JSON has."""

        def finite(value: Float64) -> Any:
            rounded: Any = np.round(value, 6).astype(object)
            rounded[~np.isfinite(value)] = None
            return rounded.tolist()

        return {
            "history": {
                who: [event._asdict() for event in events]
                for who, events in (
                    ("common", self.common),
                    ("first", self.only_first),
                    ("second", self.only_second),
                )
            },
            "equal_steps": self.equal_steps,
            "weights": self.weights.to_dict(),
            "heads": {name: finite(values) for name, values in self.heads.items()},
            "tokens": None if self.tokens is None else finite(self.tokens),
        }

    def __str__(self) -> str:
        return str(self.table())

    def __repr__(self) -> str:
        tensors = self.weights.tensors
        least = tensors[-1]
        said = f"{least.name} has moved least, by {least.relative:.2%}"
        return f"<tinyllm.Movement: {len(tensors)} tensors; {said}>"

    def _repr_html_(self) -> str:
        return self.table().html(caption=repr(self))


def compare_checkpoints(first: Any, second: Any) -> Movement:
    """Compare the weights of two models of one shape, such as two checkpoints of a run.

    Parameters
    ----------
    first, second : str, os.PathLike, bytes-like, Model or Run
        The movement is relative to the first one.

    Returns
    -------
    Movement

    Raises
    ------
    ValueError
        If they have no tensor in common.

    Examples
    --------
    >>> import tinyllm as tl
    >>> shape = {"layers": 1, "width": 16, "heads": 2, "context": 8, "batch": 2}
    >>> runs = [tl.train("abcd" * 90, **shape, steps=n, progress=False) for n in (5, 10)]
    >>> movement = tl.compare_checkpoints(*runs)
    >>> movement.weights.tensors[0].relative > 0
    True
    >>> movement.tokens.shape  # tokens, heads, (cosine, movement)
    (5, 2, 2)
    """
    a, b = read_parts(first), read_parts(second)
    weights = diff_weights(_model(first), _model(second), progress=False)
    names = [tensor.name for tensor in weights.tensors]
    if not names:
        raise ValueError("first and second have no tensor in common")
    found = {name: _by_heads(a, b, name) for name in a.weights if name in names}
    heads = {name: values for name, values in found.items() if values is not None}
    tokens = None
    key = "tokenizer.ggml.tokens"
    if "token_embd.weight" in names and a.metadata.get(key) == b.metadata.get(key):
        x, y = (_in_heads(parts) for parts in (a, b))
        if x.shape == y.shape:
            tokens = _pair(x.reshape(-1, x.shape[2]), y.reshape(-1, x.shape[2]))
            tokens = tokens.reshape(*x.shape[:2], 2)
    shared = common(a.history, b.history)
    return Movement(
        weights,
        heads,
        tokens,
        a.history[:shared],
        a.history[shared:],
        b.history[shared:],
        _equal_steps(a, b),
    )


def _model(model: Any) -> Any:
    """Return what `diff_weights` takes."""
    if isinstance(model, Run):
        return model.model
    return model if isinstance(model, Runner | str | os.PathLike) else load(model)


def _pair(x: Float32, y: Float32) -> Float64:
    """Return the cosine and the relative movement of each row, shape (rows, 2)."""
    x64, y64 = x.astype(np.float64), y.astype(np.float64)
    nx, ny = np.linalg.norm(x64, axis=1), np.linalg.norm(y64, axis=1)
    difference = np.linalg.norm(y64 - x64, axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        cosine = (x64 * y64).sum(axis=1) / (nx * ny)
        moved = difference / nx
    still = difference == 0  # of zeros, too
    return np.stack([np.where(still, 1.0, cosine), np.where(still, 0.0, moved)], axis=1)


def _by_heads(first: Parts, second: Parts, name: str) -> Float64 | None:
    """Return the cosine and the movement of each head of a matrix, or None if it has none."""
    found = re.fullmatch(r"blk\.\d+\.(\w+)\.weight", name)
    if found is None:
        return None
    c = first.config
    if found[1] == "attn_qkv":  # queries, keys and values below each other
        heads = int(np.max(c.heads)) + 2 * int(np.max(c.kv_heads))
        columns, size = False, c.head_size
    elif found[1] in _OF_HEADS:
        count, width, columns = _OF_HEADS[found[1]]
        heads, size = int(np.max(getattr(c, count))), getattr(c, width)
    else:
        return None
    x, y = first.array(name), second.array(name)
    if columns:
        x, y = x.T, y.T
    if len(x) != heads * size:
        return None
    return _pair(x.reshape(heads, -1), y.reshape(heads, -1))


def _in_heads(parts: Parts) -> Float32:
    """Return the embedding as (V, H, D / H); one part if H does not divide D."""
    table = parts.array("token_embd.weight")
    heads = int(np.max(parts.config.heads))
    return table.reshape(len(table), heads if table.shape[1] % heads == 0 else 1, -1)


def _equal_steps(a: Parts, b: Parts) -> int | None:
    losses = []
    for parts in (a, b):
        if parts.path is None or not state_path(parts.path).is_file():
            return None
        losses.append(read_state(parts.path).log.losses)
    count = 0
    for one, other in zip(*losses, strict=False):
        if one != other:
            break
        count += 1
    return count


@dataclasses.dataclass(frozen=True)
class Neighbor:
    """Two tokens whose embeddings point the same way.

    Attributes
    ----------
    cosine : float
    ids : tuple of int
    pieces : tuple of str
        Their texts, or "" if the model has no tokenizer.
    """

    cosine: float
    ids: tuple[int, int]
    pieces: tuple[str, str]


def cluster_tokens(model: Any, count: int = 20, *, head: int | None = None) -> list[Neighbor]:
    """Find the pairs of tokens whose embeddings are nearest, by cosine.

    Parameters
    ----------
    model : str, os.PathLike, Model or Run
    count : int
        The most pairs.
    head : int, optional
        Of as many equal parts of an embedding as there are heads, look at this one. Default: the
        whole embedding.

    Returns
    -------
    list of Neighbor
        The nearest first. A token whose embedding is zero is in none.

    Raises
    ------
    IndexError
        If there is no such head.

    Examples
    --------
    >>> import tinyllm as tl
    >>> found = tl.cluster_tokens("demo", 3)
    >>> len(found), found[0].cosine >= found[1].cosine
    (3, True)
    """
    parts = read_parts(model)
    ranged("count", count, 1)
    if "token_embd.weight" not in parts.weights:
        raise UnsupportedError("the model has no embedding of tokens")
    if head is None:
        table = parts.array("token_embd.weight")
    else:
        split = _in_heads(parts)
        table = split[:, index("head", head, split.shape[1])]
    norms = np.linalg.norm(table.astype(np.float64), axis=1)
    unit = table / np.where(norms > 0, norms, 1)[:, np.newaxis].astype(np.float32)
    best: list[tuple[float, int, int]] = []
    for first in range(0, len(unit), _ROWS):
        found = unit[first : first + _ROWS] @ unit.T
        rows, columns = np.arange(first, first + len(found)), np.arange(len(unit))
        found[rows[:, np.newaxis] >= columns] = -2  # each pair once
        found[norms[rows] == 0] = -2
        found[:, norms == 0] = -2
        flat = found.reshape(-1)
        top = np.argpartition(flat, -min(count, len(flat)))[-min(count, len(flat)) :]
        best += [
            (float(flat[i]), first + int(i) // len(unit), int(i) % len(unit))
            for i in top
            if flat[i] > -2
        ]
        best = sorted(best, key=lambda pair: (-pair[0], *pair[1:]))[:count]
    names = _pieces(parts, [token for _, a, b in best for token in (a, b)])
    return [
        Neighbor(cosine, (a, b), (names[2 * i], names[2 * i + 1]))
        for i, (cosine, a, b) in enumerate(best)
    ]


def _pieces(parts: Parts, ids: list[int]) -> list[str]:
    tokenizer = tokenizer_from_metadata(parts.metadata)
    return [""] * len(ids) if tokenizer is None else tokenizer.pieces(ids)
