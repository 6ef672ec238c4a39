"""`Adapter`: a LoRA adapter in llama.cpp's GGUF format."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from .. import _core
from .._core import Weight
from ..base.units import size
from ..display.table import Table
from ..errors import FormatError, UnsupportedError, wrong
from .gguf import GGUF

__all__ = ["Adapter", "LowRank", "is_adapter"]

_SUFFIXES = (".lora_a", ".lora_b")


class LowRank(NamedTuple):
    """The change of one tensor: W becomes W + factor * B A.

    Attributes
    ----------
    a : Weight
        Shape (rank, inputs). For experts (experts, rank, inputs). For a table of embeddings
        (rows of the table, rank).
    b : Weight
        Shape (outputs, rank). For experts (experts, outputs, rank). For a table of embeddings
        (width, rank).
    """

    a: Weight
    b: Weight

    @property
    def rank(self) -> int:
        """The columns of B."""
        return self.b.shape[-1]


class Adapter:
    """A LoRA adapter: low-rank changes of some tensors of a model.

    Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models" (arXiv:2106.09685). The
    format is that of llama.cpp, which its ``convert_lora_to_gguf.py`` and `tinyllm.convert` write
    from the folder of a PEFT adapter.

    Parameters
    ----------
    source : str, os.PathLike or bytes-like
        The path or contents of the file. It is read into memory.

    Attributes
    ----------
    metadata : mapping
        The keys and values of the file.
    architecture : str
        The architecture of the models that it changes.
    alpha : float
        The number ``adapter.lora.alpha``. A change is multiplied by ``alpha / rank``. 0 stands for
        no such factor.
    tensors : mapping of str to LowRank
        The changes by the names of the tensors that are changed, in file order.
    path : str or None
        None if the file was given as bytes.

    Raises
    ------
    tinyllm.FormatError
        If the file is no adapter, or is damaged. The message names the tensor or the key.
    tinyllm.UnsupportedError
        If it is an adapter of another kind.
    OSError
        If the file cannot be read.

    Examples
    --------
    >>> import numpy as np
    >>> import tinyllm as tl
    >>> keys = {"general.type": "adapter", "general.architecture": "llama", "adapter.type": "lora"}
    >>> keys["adapter.lora.alpha"] = 4.0
    >>> a, b = np.ones((2, 256), np.float32), np.zeros((256, 2), np.float32)
    >>> name = "blk.0.attn_q.weight"
    >>> tl.write_gguf("adapter.gguf", keys, {f"{name}.lora_a": a, f"{name}.lora_b": b})
    >>> adapter = tl.Adapter("adapter.gguf")
    >>> adapter.tensors["blk.0.attn_q.weight"].rank, adapter.factor("blk.0.attn_q.weight")
    (2, 2.0)
    """

    def __init__(self, source: Any) -> None:
        self.path = os.fsdecode(source) if isinstance(source, str | os.PathLike) else None
        try:
            file = GGUF(source, mmap=False)
            self.metadata: Mapping[str, Any] = file.metadata
            self._check_kind(file.tensors)
            self.architecture = _text(file.metadata, "general.architecture")
            self.alpha = _alpha(file.metadata)
            self.tensors: Mapping[str, LowRank] = MappingProxyType(_pairs(file.tensors))
        except (FormatError, UnsupportedError) as error:
            error.path = error.path or self.path
            raise

    def _check_kind(self, tensors: Mapping[str, Weight]) -> None:
        kind = self.metadata.get("general.type")
        if kind != "adapter":
            raise wrong("general.type", kind, "'adapter'", shown=repr(kind))
        kind = self.metadata.get("adapter.type")
        if kind != "lora":
            raise UnsupportedError(f"adapter.type is {kind!r}; this version supports 'lora'")
        if "adapter.alora.invocation_tokens" in self.metadata:
            raise UnsupportedError(
                "the adapter is an activated LoRA, which begins to act at certain tokens; this "
                "version supports adapters that act on all tokens"
            )
        if not tensors:
            raise wrong("tensors", 0, "at least one pair of lora_a and lora_b")

    def factor(self, name: str, scale: float = 1.0) -> float:
        """Return what B A is multiplied by.

        Parameters
        ----------
        name : str
            The name of a tensor that the adapter changes.
        scale : float
            The user's own factor.

        Returns
        -------
        float
            ``scale * alpha / rank``, or `scale` if alpha is 0.
        """
        return scale * self.alpha / self.tensors[name].rank if self.alpha else scale

    @property
    def nbytes(self) -> int:
        """The size of all tensors in bytes."""
        return sum(weight.nbytes for pair in self.tensors.values() for weight in pair)

    def table(self) -> Table:
        """Return a table with one row per changed tensor: name, rank, types and shapes.

        Returns
        -------
        Table
        """
        return Table(
            ("tensor", "rank", "factor", "type", "A", "B"),
            [
                (name, pair.rank, f"{self.factor(name):.6g}", pair.a.type, pair.a.shape,
                 pair.b.shape)
                for name, pair in self.tensors.items()
            ],
        )  # fmt: skip

    def __str__(self) -> str:
        """Return the table as text."""
        return str(self.table())

    def __repr__(self) -> str:
        """Return the number of changed tensors, the ranks and alpha."""
        ranks = sorted({pair.rank for pair in self.tensors.values()})
        shown = str(ranks[0]) if len(ranks) == 1 else f"{ranks[0]} to {ranks[-1]}"
        where = "" if self.path is None else f", {self.path}"
        return (
            f"<tinyllm.Adapter: {self.architecture}, {len(self.tensors)} tensors of rank {shown}, "
            f"alpha {self.alpha:g}, {size(self.nbytes)}{where}>"
        )

    def _repr_html_(self) -> str:
        return self.table().html(caption=repr(self))


def is_adapter(metadata: Mapping[str, Any]) -> bool:
    """Return whether the keys of a GGUF file are those of a LoRA adapter."""
    return metadata.get("general.type") == "adapter" and metadata.get("adapter.type") == "lora"


def _text(metadata: Mapping[str, Any], key: str) -> str:
    value = metadata.get(key)
    if not isinstance(value, str):
        raise wrong(key, value, "a text", shown=repr(value))
    return value


def _alpha(metadata: Mapping[str, Any]) -> float:
    key = "adapter.lora.alpha"
    value = metadata.get(key, 0.0)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise wrong(key, value, "a finite number", shown=repr(value))
    return float(value)


def _pairs(tensors: Mapping[str, Weight]) -> dict[str, LowRank]:
    found: dict[str, dict[str, Weight]] = {}
    for name, weight in tensors.items():
        stem, suffix = name[:-7], name[-7:]
        if suffix not in _SUFFIXES or not stem:
            raise wrong(
                f"tensor {name!r}", "in an adapter", "only names that end with .lora_a or .lora_b"
            )
        found.setdefault(stem, {})[suffix] = _matrix(weight)
    pairs = {}
    for stem, parts in found.items():
        for suffix in _SUFFIXES:
            if suffix not in parts:
                raise wrong(f"tensor '{stem}{suffix}'", "missing", "both lora_a and lora_b")
        pairs[stem] = LowRank(parts[".lora_a"], parts[".lora_b"])
    return pairs


def _matrix(weight: Weight) -> Weight:
    """Return a weight with at least two axes: llama.cpp's writer leaves out leading axes of one."""
    if len(weight.shape) == 1:
        return _core.Weight(weight.name, (1, *weight.shape), weight.type, weight.raw)
    if len(weight.shape) not in (2, 3) or 0 in weight.shape:
        raise wrong(f"tensor {weight.name!r}", f"of shape {weight.shape}", "two or three axes")
    return weight
