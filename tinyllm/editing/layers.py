"""`extract_layers`: a model made of some blocks of another."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from typing import Any

from .._core import Weight
from ..architectures.plan import Step
from ..errors import Error
from ..files.gguf_write import write_gguf
from ..files.model_file import open_file
from .check import plain, read_plan, typed

__all__ = ["extract_layers"]

_BLOCK = re.compile(r"(.*\bblk\.)(\d+)(\..*)", re.DOTALL)

#: Arrays that are no values of layers, whatever their length.
_OTHER_ARRAYS = ("rope.dimension_sections", "classifier.output_labels")

#: Keys that have no meaning without experts.
_EXPERTS = ("expert_", "leading_dense_block_count", "interleave_moe_layer_step")


def extract_layers(
    path: str | os.PathLike[str],
    out: str | os.PathLike[str],
    layers: Iterable[int],
    *,
    force: bool = False,
) -> None:
    """Write a model that has some blocks of another, in a given order.

    Embedding, last norm and output are those of the model. Blocks are numbered anew, arrays in the
    metadata with a value for each block are cut, and draft blocks, which predict further tokens,
    are left out. Tensors are copied byte for byte.

    Parameters
    ----------
    path : str or os.PathLike
        A GGUF file of a model.
    out : str or os.PathLike
        The GGUF file to write. An existing file is replaced.
    layers : iterable of int
        Numbers of blocks, for example ``range(6)``. A block may occur twice.
    force : bool
        Whether to write the file even if a block computes something else at its new place, or if
        the new model does not load.

    Raises
    ------
    IndexError
        If the model does not have a layer.
    ValueError
        If there are no layers, or if a block would compute something else at its new place. So it
        is where the architecture decides by the number of a block, for example which ones have a
        sliding window.
    tinyllm.FormatError, tinyllm.UnsupportedError
        If the file is damaged, or holds no model that tinyllm knows.
    OSError
        If a file cannot be read or written.

    Examples
    --------
    >>> import numpy as np, tinyllm as tl
    >>> tl.extract_layers("demo", "two.gguf", range(2))
    >>> ids = [1, 2, 3]
    >>> two, four = (tl.load(path).trace(ids) for path in ("two.gguf", "demo"))
    >>> bool(np.array_equal(two["blk.1.resid_post"], four["blk.1.resid_post"]))
    True
    """
    file = open_file(path)
    plan = read_plan(file.metadata, file.weights)
    chosen = [int(layer) for layer in layers]
    for layer in chosen:
        if not 0 <= layer < plan.layers:
            raise IndexError(f"layer {layer} is out of range for {plan.layers} layers")
    if not chosen:
        raise ValueError("layers is empty; expected numbers of blocks")
    tensors = _tensors(file.weights.values(), chosen)
    experts = any("_exps." in name for name in tensors)
    metadata = _metadata(typed(file), chosen, experts)
    if not force:
        try:
            new = read_plan(metadata, tensors)
        except (Error, ValueError) as error:
            raise ValueError(
                f"the model of layers {_shown(chosen)} would not load: {error}; force=True writes "
                "it anyway"
            ) from None
        _check_same(list(plan), list(new), chosen)
    write_gguf(out, metadata, tensors)


def _shown(layers: Sequence[int]) -> str:
    return ", ".join(map(str, layers[:8])) + (", ..." if len(layers) > 8 else "")


def _metadata(metadata: dict[str, Any], layers: list[int], experts: bool) -> dict[str, Any]:
    prefix = f"{plain(metadata['general.architecture'])}."
    count = int(plain(metadata[f"{prefix}block_count"]))
    result: dict[str, Any] = {}
    for key, value in metadata.items():
        name = key.removeprefix(prefix)
        kind, data = value if isinstance(value, tuple) else (None, value)
        new = data
        if name == "block_count":
            new = len(layers)
        elif name == "nextn_predict_layers":
            new = 0
        elif name.startswith(_EXPERTS) and not experts:
            continue
        elif name == "leading_dense_block_count":
            new = sum(layer < data for layer in layers)
        elif (
            key.startswith((prefix, "xielu."))
            and name not in _OTHER_ARRAYS
            and hasattr(data, "__len__")
            and not isinstance(data, str)
            and len(data) == count
        ):
            new = [data[layer] for layer in layers]
        result[key] = new if kind is None else (kind, new)
    return result


def _tensors(weights: Iterable[Weight], layers: list[int]) -> dict[str, Weight]:
    result: dict[str, Weight] = {}
    blocks: dict[int, list[tuple[str, str, Weight]]] = {}
    for weight in weights:
        match = _BLOCK.fullmatch(weight.name)
        if match is None:
            result[weight.name] = weight
        else:
            blocks.setdefault(int(match[2]), []).append((match[1], match[3], weight))
    for new, old in enumerate(layers):
        for before, after, weight in blocks.get(old, []):
            result[f"{before}{new}{after}"] = weight
    return result


def _check_same(old: list[Step], new: list[Step], layers: list[int]) -> None:
    """Raise if a block has other steps or numbers at its new place."""
    for place, layer in enumerate(layers):
        before = [_content(step, None) for step in old if step.layer == layer]
        after = [_content(step, layers) for step in new if step.layer == place]
        if before != after:
            steps = {tap for tap, *_ in set(before) ^ set(after)}
            raise ValueError(
                f"layer {layer} would compute something else as layer {place}: "
                f"{', '.join(sorted(steps)[:3])} differs there; choose other layers, or force=True"
            )


def _content(step: Step, layers: list[int] | None) -> tuple[Any, ...]:
    """Return what a step computes, without the numbers of its block and of the one before it."""
    numbers = tuple((number.name, number.value) for number in step.numbers)
    weights = tuple(_relative(name, step.layer, layers) for name in step.weights)
    reads = tuple(_relative(name, step.layer, layers) for name in step.reads)
    if "resid_pre" in step.tap or any(name in ("", "before") for name in reads):
        reads = ()  # the stream comes from another block now
    tap = _relative(step.tap, step.layer, layers)
    return (tap, step.op, numbers, weights, reads, step.shape, step.heads, step.matrix)


def _relative(name: str | None, layer: int, layers: list[int] | None) -> str:
    match = _BLOCK.fullmatch(name or "")
    if match is None:
        return name or ""
    number = int(match[2])
    if number == layer:
        return match[3]
    if number == layer - 1:
        return "before"
    return f"{layers[number] if layers is not None else number}{match[3]}"
