"""`quantize`: a model becomes a smaller GGUF file."""

from __future__ import annotations

import dataclasses
import fnmatch
import math
import os
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from .. import _core
from .._core import Weight
from ..base.numeric import Float32
from ..base.progress import Progress
from ..base.warning import warn
from ..evaluation.scoring import kl
from ..files.gguf import Metadata
from ..files.gguf_write import TensorSource, write_gguf
from ..files.model_file import ModelFile, open_file
from ..loading import load
from ..runtime.runner import Runner
from .imatrix import Imatrix, read_imatrix
from .mixes import ALIASES, COARSE, MIXES, choose_types
from .packing import CHUNK, pack
from .target import TypeChoice, choose_for_size, split_text

__all__ = ["quantize"]

#: Types of files to quantize from. The errors of Q8_0 are far below those of smaller types.
_FULL = ("F32", "F16", "BF16", "F64", "Q8_0")

#: Matrices that an importance matrix lacks: the importance of their columns is not measured.
_WITHOUT_IMATRIX = ("token_embd.weight", "per_layer_token_embd.weight", "output.weight")


def quantize(
    model: Runner | str | os.PathLike[str],
    out: str | os.PathLike[str],
    type: str = "Q4_K_M",
    *,
    imatrix: Imatrix | str | os.PathLike[str] | None = None,
    types: Mapping[str, str] | None = None,
    target_bits: float | str | None = None,
    text: Any = None,
    progress: bool = True,
) -> TypeChoice | None:
    """Write a model as a GGUF file with smaller weights.

    Each tensor gets the type that llama.cpp gives it in the mix. The scales of the blocks are
    searched for the smallest squared error, weighted by the importance matrix if there is one. The
    bytes of the file do not depend on the machine or on the number of threads. Tensors are written
    one after the other, and `out` appears when it is complete.

    Parameters
    ----------
    model : Model or str or os.PathLike
        A model or its file: GGUF, in shards or not, or a llama2.c checkpoint. It should have F32,
        F16 or BF16 weights: quantizing quantized weights adds their errors, and causes a warning.
    out : str or os.PathLike
        The GGUF file. An existing file is replaced.
    type : str
        F32, F16, BF16, Q8_0, Q6_K, Q5_K_M, Q5_K_S, Q4_K_M, Q4_K_S, Q3_K_L, Q3_K_M, Q3_K_S, Q2_K,
        Q2_K_S, Q5_1, Q5_0, Q4_1, Q4_0, IQ4_NL, IQ4_XS, MXFP4_MOE, TQ1_0, TQ2_0, Q2_0, Q1_0,
        IQ3_M, IQ3_S, IQ3_XS, IQ3_XXS, IQ2_M, IQ2_S, IQ2_XS, IQ2_XXS, IQ1_M or IQ1_S. Q5_K, Q4_K
        and Q3_K are short for the mix with _M. Norms, biases and small matrices stay as they are.
    imatrix : Imatrix or str or os.PathLike, optional
        The importance of the inputs of each matrix: see `tinyllm.imatrix`. Q2_K_S, IQ3_XS, IQ3_XXS
        and the mixes IQ2 and IQ1 cannot be written without one.
    types : mapping of str to str, optional
        Tensor types by patterns of names, for example ``{"blk.*.ffn_down.weight": "Q6_K"}``. The
        first pattern that fits a name wins over the mix. A type whose blocks do not fit the rows
        of a tensor is replaced, as in llama.cpp.
    target_bits : float or str, optional
        Bits per weight of the quantized matrices. Instead of the rules of the mix `type`, each
        matrix gets the type that makes the KL divergence from the model small for this size. It is
        estimated with the gradients of a forward and a backward pass over `text`. A mix, such as
        ``"Q4_K_M"``, stands for the size that its types have.
    text : str, bytes or ids, optional
        For `target_bits`: typical text of some thousand tokens. The first 1024 of its tokens are
        measured, but not the last quarter, on which the file is compared with the model.
    progress : bool
        Whether to show a progress bar if it takes long.

    Returns
    -------
    TypeChoice or None
        With `target_bits`, what was chosen and why. It prints as a table.

    Raises
    ------
    ValueError
        If a type is unknown, if no tensor fits a pattern, if the importance matrix is missing for
        a type that needs one or does not fit the model, if a weight is not finite or too large for
        its type, if `target_bits` is less than the smallest types have, if `text` is missing for it
        or too short, or if the model has no logits for it.
    tinyllm.UnsupportedError
        If the weights have a type that tinyllm cannot read. With `target_bits`: if the gradient of
        an operation is not implemented.
    tinyllm.FormatError
        If a file is damaged.
    OSError
        If a file cannot be read or written.

    Examples
    --------
    >>> import tinyllm as tl
    >>> tl.quantize("demo", "small.gguf", "Q4_K_M")
    >>> tl.load("small.gguf").weights["blk.0.attn_q.weight"].type
    'Q4_K'
    """
    if target_bits is not None:
        return _within(model, out, target_bits, text, imatrix, types, progress)
    if text is not None:
        raise ValueError("text is given without target_bits; expected both or none")
    _write(model, out, _mix(type), imatrix, types, progress)
    return None


def _within(
    model: Runner | str | os.PathLike[str],
    out: str | os.PathLike[str],
    target: float | str,
    text: Any,
    imatrix: Imatrix | str | os.PathLike[str] | None,
    types: Mapping[str, str] | None,
    progress: bool,
) -> TypeChoice:
    """Choose types for a size, write the file, and compare it with the model."""
    if text is None:
        raise ValueError("text is missing; target_bits needs typical text to measure on")
    full = model if isinstance(model, Runner) else load(model)
    importance = read_imatrix(imatrix) if isinstance(imatrix, str | os.PathLike) else imatrix
    _check_types(types or {}, full.weights)
    ids, held_out = split_text(full, text)
    chosen = choose_for_size(full, ids, target, imatrix=importance, types=types, progress=progress)
    bits: dict[str, int] = {}
    for tensor in chosen.tensors:
        bits[tensor.type] = bits.get(tensor.type, 0) + tensor.nbytes
    mixes = {MIXES[mix].type: mix for mix in reversed(MIXES)} | ALIASES
    # The type with most bytes names the file, as the type of a mix does.
    largest = max(bits, key=lambda kind: (kind in mixes, bits[kind]))
    mix = mixes.get(largest, "F16")
    _write(full, out, mix, imatrix, chosen.types, progress, coarse=True)
    small = load(out, threads=full.threads)
    return dataclasses.replace(chosen, measured=kl(full, small, held_out))


def _write(
    model: Runner | str | os.PathLike[str],
    out: str | os.PathLike[str],
    mix: str,
    imatrix: Imatrix | str | os.PathLike[str] | None,
    types: Mapping[str, str] | None,
    progress: bool,
    coarse: bool = False,
) -> None:
    """Write a model with the types of a mix and of patterns; `coarse`: of any number of bits."""
    file = _file(model)
    importance = read_imatrix(imatrix) if isinstance(imatrix, str | os.PathLike) else imatrix
    tensors = {name: (weight.shape, weight.type) for name, weight in file.weights.items()}
    _check_types(types or {}, tensors)
    chosen = choose_types(file.metadata, tensors, mix, imatrix=importance is not None, types=types)
    weights = _importance(importance, file.weights, chosen)
    if not coarse:
        _check_coarse(mix, file.weights, chosen, weights)
    _warn_quantized(file.weights, chosen)
    metadata = _metadata(file.metadata, mix, importance, imatrix)
    total = float(sum(math.prod(shape) for shape, _ in tensors.values()))
    with Progress(total, f"quantizing {os.path.basename(os.fsdecode(out))}", progress) as bar:
        write_gguf(
            out,
            metadata,
            {
                name: weight
                if weight.type == (kind := chosen[name])
                else TensorSource(weight.shape, kind, _packer(weight, kind, weights[name], bar))
                for name, weight in file.weights.items()
            },
        )


def _mix(name: str) -> str:
    known = name.upper() if isinstance(name, str) else ""
    known = ALIASES.get(known, known)
    if known not in MIXES:
        raise ValueError(f"type is {name!r}; expected one of {', '.join(MIXES)}")
    return known


def _file(model: Runner | str | os.PathLike[str]) -> ModelFile:
    if isinstance(model, Runner):
        if model.adapters:
            raise ValueError(
                f"model has {len(model.adapters)} adapters, which are not part of its file; "
                "expected a model without"
            )
        return ModelFile(model.metadata, model.weights, model.path)
    return open_file(model)


def _check_types(types: Mapping[str, str], tensors: Mapping[str, Any]) -> None:
    writable = _core.writable_types()
    for pattern, kind in types.items():
        if kind not in writable:
            raise ValueError(
                f"types[{pattern!r}] is {kind!r}; expected one of {', '.join(writable)}"
            )
        if not any(fnmatch.fnmatchcase(name, pattern) for name in tensors):
            raise ValueError(f"types: no tensor has a name like {pattern!r}")


def _check_coarse(
    mix: str,
    weights: Mapping[str, Weight],
    chosen: Mapping[str, str],
    importance: Mapping[str, Float32 | None],
) -> None:
    """Refuse types that are too coarse for a matrix whose importance is not known."""
    coarse = (*COARSE, "Q2_K") if mix == "Q2_K_S" else COARSE
    for name, weight in weights.items():
        kind = chosen[name]
        if kind not in coarse or weight.type == kind or importance[name] is not None:
            continue
        if name not in _WITHOUT_IMATRIX:
            raise ValueError(
                f"{name} would be {kind} in type {mix!r}, which needs an imatrix; expected one "
                "with this matrix, or a larger type"
            )


def _warn_quantized(weights: Mapping[str, Weight], chosen: Mapping[str, str]) -> None:
    lossy = [
        name
        for name, weight in weights.items()
        if weight.type not in _FULL and weight.type != chosen[name]
    ]
    if lossy:
        warn(
            f"{len(lossy)} tensors are quantized already, {lossy[0]} as {weights[lossy[0]].type}: "
            "their errors add up; quantize a file with F32, F16 or BF16 weights"
        )


def _metadata(
    metadata: Mapping[str, Any], mix: str, importance: Imatrix | None, given: object
) -> dict[str, Any]:
    """Return the metadata of the new file: llama.cpp writes the same keys."""
    typed = metadata.typed() if isinstance(metadata, Metadata) else dict(metadata)
    result = {key: value for key, value in typed.items() if not key.startswith("split.")}
    result["general.quantization_version"] = ("UINT32", 2)
    result["general.file_type"] = ("UINT32", MIXES[mix].file_type)
    if importance is not None:
        if isinstance(given, str | os.PathLike):
            result["quantize.imatrix.file"] = os.path.basename(os.fsdecode(given))
        if importance.datasets:
            result["quantize.imatrix.dataset"] = importance.datasets[-1]
        result["quantize.imatrix.entries_count"] = ("UINT32", len(importance.sums))
        result["quantize.imatrix.chunks_count"] = ("UINT32", importance.chunks)
    return result


def _importance(
    imatrix: Imatrix | None, weights: Mapping[str, Weight], chosen: Mapping[str, str]
) -> dict[str, Float32 | None]:
    """Return the importance of the columns of each tensor, (matrices, columns), or None."""
    result: dict[str, Float32 | None] = dict.fromkeys(weights)
    if imatrix is None:
        return result
    for name, weight in weights.items():
        if name in imatrix.sums and weight.type != chosen[name]:
            matrices = math.prod(weight.shape[:-2])
            result[name] = imatrix.importance(name, matrices, weight.shape[-1])
    if not any(name in imatrix.sums for name in weights):
        raise ValueError(
            f"imatrix has no tensor of this model; its first is {next(iter(imatrix.sums), None)!r}"
        )
    return result


def _packer(
    weight: Weight, kind: str, importance: Float32 | None, bar: Progress
) -> Callable[[], npt.NDArray[np.uint8]]:
    """Return a function that quantizes a tensor a few rows at a time."""
    columns = weight.shape[-1]
    matrices = math.prod(weight.shape[:-2])
    rows = math.prod(weight.shape[:-1]) // max(matrices, 1)
    step = max(CHUNK // max(columns, 1), 1)

    def packed() -> npt.NDArray[np.uint8]:
        flat = Weight(weight.name, (matrices * rows, columns), weight.type, weight.raw.reshape(-1))
        _, items, size, _ = _core.tensor_types()[kind]
        row_bytes = columns // items * size
        result = np.empty((matrices * rows, row_bytes), np.uint8)
        for matrix in range(matrices):
            important = None if importance is None else importance[matrix]
            for start in range(matrix * rows, (matrix + 1) * rows, step):
                end = min(start + step, (matrix + 1) * rows)
                values = flat.numpy(slice(start, end))
                result[start:end] = pack(weight.name, kind, values, important, start).reshape(
                    -1, row_bytes
                )
                weight.forget()  # a large file would fill the memory
                bar.add(values.size)
        weight.check()
        return result

    return packed
