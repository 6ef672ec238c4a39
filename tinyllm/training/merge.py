"""`merge_adapter`: a model whose weights include the changes of LoRA adapters."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from .. import _core
from .._core import Weight
from ..architectures.adapters import targets
from ..base.numeric import Float32, Float64
from ..base.progress import Progress
from ..files.adapter import LowRank
from ..files.gguf_write import TensorSource, write_gguf
from ..loading import load
from ..quantization.packing import pack
from .parts import read_parts

__all__ = ["merge_adapter"]

_OUTPUT, _EMBEDDING = "output.weight", "token_embd.weight"

#: Types that a changed tensor keeps. Quantizing it again would hide small changes.
_KEPT = ("F32", "F16", "BF16")

#: One change of a tensor: its matrices, and what their product is multiplied by.
_Change = tuple[LowRank, float]


def merge_adapter(
    path: str | os.PathLike[str],
    adapters: Any,
    out: str | os.PathLike[str],
    *,
    type: str | None = None,
    progress: bool = True,
) -> None:
    """Write a model with its LoRA adapters merged into the weights: W + factor * B A.

    Hu et al. 2021, section 4.1 (arXiv:2106.09685). The sum is computed in float64. The other
    tensors are copied, so a quantized model has changed tensors of a larger type afterwards:
    `quantize` makes them smaller. `out` appears when it is complete.

    Parameters
    ----------
    path : str or os.PathLike
        A model, as for `load`.
    adapters : str, os.PathLike or sequence
        An adapter's file, or what `load` takes: several, with their scales.
    out : str or os.PathLike
        The GGUF file to write. An existing file is replaced.
    type : str, optional
        The type of the changed tensors: ``"F32"``, ``"F16"``, ``"BF16"`` or a quantized one.
        Default: F32, F16 and BF16 stay, and others become F16.
    progress : bool
        Whether to show a progress bar if it takes long.

    Raises
    ------
    ValueError
        If there is no adapter, the type is unknown, or a value is too large for it.
    tinyllm.FormatError
        If an adapter belongs to another model, or a file is damaged.
    OSError
        If a file cannot be read or written.

    Examples
    --------
    >>> import tinyllm as tl
    >>> run = tl.lora(tl.load(), "All happy families are alike. " * 20, steps=1, context=16)
    >>> run.save("adapter.gguf")
    >>> tl.merge_adapter("demo", "adapter.gguf", "merged.gguf")
    >>> tl.load("merged.gguf").weights["blk.0.attn_q.weight"].type
    'F16'
    """
    given = [adapters] if isinstance(adapters, str | os.PathLike) else adapters
    model = load(path, adapters=given)  # checks that they fit
    if not model.adapters:
        raise ValueError("adapters is empty; expected at least one")
    if type is not None and (type not in (known := _core.tensor_types()) or not known[type][3]):
        raise ValueError(f"type is {type!r}; expected a type that can be written, such as 'F16'")
    tables = {name for name, step in targets(load(path).steps).items() if step.op == "embed"}
    changes: dict[str, list[_Change]] = {}
    for adapter, scale in model.adapters:
        for name, pair in adapter.tensors.items():
            changes.setdefault(name, []).append((pair, adapter.factor(name, scale)))
    parts = read_parts(path)
    tensors: dict[str, Any] = dict(parts.weights)
    if _OUTPUT not in tensors and {_OUTPUT, _EMBEDDING} & changes.keys():  # they change apart
        tensors[_OUTPUT] = tensors[_EMBEDDING]
    total = float(sum(math.prod(tensors[name].shape) for name in changes))
    with Progress(total, f"merging {os.path.basename(os.fsdecode(out))}", progress) as bar:
        for name, pairs in changes.items():
            weight = tensors[name]
            kind = type or (weight.type if weight.type in _KEPT else "F16")
            source = _merged(name, weight, pairs, kind, name in tables, bar)
            tensors[name] = TensorSource(weight.shape, kind, source)
        write_gguf(out, parts.keys, tensors)


def _merged(
    name: str, weight: Weight, pairs: list[_Change], kind: str, table: bool, bar: Progress
) -> Callable[[], npt.NDArray[np.uint8]]:
    """Return a function that computes the blocks of a changed tensor."""

    def packed() -> npt.NDArray[np.uint8]:
        values: Float64 = weight.numpy(dtype="float64")
        for pair, factor in pairs:
            a, b = pair.a.numpy(dtype="float64"), pair.b.numpy(dtype="float64")
            values = values + factor * (a @ b.T if table else b @ a)
        rows: Float32 = values.astype(np.float32).reshape(-1, weight.shape[-1])
        bar.add(rows.size)
        return pack(name, kind, rows, None, 0)

    return packed
