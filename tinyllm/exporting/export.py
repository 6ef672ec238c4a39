"""`export`: a model becomes a Hugging Face checkpoint."""

from __future__ import annotations

import json
import math
import os
import warnings
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..architectures.plan import ForwardPlan
from ..architectures.table import read_model
from ..base.progress import Progress
from ..conversion.config import CheckpointConfig
from ..conversion.encode import encode
from ..conversion.huggingface import find_family, read_contents
from ..errors import UnsupportedError
from ..files.arrays import Array, ArraySource, StoredArray, write_safetensors
from ..files.atomic import write_atomically
from ..files.model_file import ModelFile, check_holds_model, open_file
from ..runtime.runner import Runner
from .row import ABSENT, Source
from .table import find_row
from .tensors import Exported, exported
from .tokenizers import tokenizer_files

__all__ = ["export"]

_DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}

#: What a file is called that says what a folder holds. It is written last.
_CONFIG = "config.json"


def export(
    model: Runner | str | os.PathLike[str],
    folder: str | os.PathLike[str],
    dtype: str = "auto",
    *,
    max_shard_bytes: int = 5_000_000_000,
    progress: bool = True,
) -> None:
    """Write a model as a Hugging Face checkpoint, which transformers loads.

    It is the way back of `tinyllm.convert`: the same rows say the names and the layouts. The folder
    gets ``config.json``, the tensors as safetensors, ``tokenizer.json``, ``tokenizer_config.json``
    with the chat template, and ``generation_config.json``. Quantized weights are dequantized.
    Before anything is written, the new config and shapes are converted back, and the plan of the
    result is compared with that of the model: a checkpoint that would compute something else is
    refused. Tensors are written one after the other, and ``config.json`` last.

    Parameters
    ----------
    model : Model or str or os.PathLike
        A model or its file.
    folder : str or os.PathLike
        The folder. It is made if it does not exist. It must not hold a checkpoint.
    dtype : str
        ``"F32"``, ``"F16"`` or ``"BF16"``. ``"auto"``: the type of most matrices if it is one of
        these, else F32. With ``"auto"``, a vector that the type would round stays F32.
    max_shard_bytes : int
        The most bytes of tensors in a file. A larger tensor has a file of its own.
    progress : bool
        Whether to show a progress bar if it takes long.

    Raises
    ------
    tinyllm.UnsupportedError
        If the table has no row for the architecture, if a tensor has no place in the checkpoint,
        if its config cannot say what the model computes, or if ``tokenizer.json`` cannot say what
        its tokenizer does. The message names what is missing.
    ValueError
        If `dtype` is unknown, or a value does not fit float16.
    FileExistsError
        If the folder holds a checkpoint.
    tinyllm.FormatError
        If the file is damaged.
    OSError
        If a file cannot be read or written.

    Examples
    --------
    >>> import json, pathlib
    >>> import tinyllm as tl
    >>> tl.export("demo", "shakespeare")
    >>> json.loads(pathlib.Path("shakespeare/config.json").read_text())["architectures"]
    ['LlamaForCausalLM']
    >>> tl.convert("shakespeare", "again.gguf", "Q8_0")
    >>> tl.load("again.gguf").generate("ROMEO:", max_tokens=5, temperature=0).text == (
    ...     tl.load("demo").generate("ROMEO:", max_tokens=5, temperature=0).text
    ... )
    True
    """
    if dtype != "auto" and dtype not in _DTYPES:
        raise ValueError(f"dtype is {dtype!r}; expected auto, {', '.join(_DTYPES)}")
    path = Path(os.fsdecode(folder))
    if (path / _CONFIG).exists():
        raise FileExistsError(f"{path} holds a checkpoint already; expected a new folder")
    file = _open(model)
    config, tensors = _contents(file)
    files, tokenizer = tokenizer_files(file.metadata)
    chosen = _main_type(tensors) if dtype == "auto" else dtype
    config["dtype"] = config["torch_dtype"] = _DTYPES[chosen]
    if tokenizer is not None:
        files["generation_config.json"] = _generation(config, sorted(tokenizer.eog_ids))
    path.mkdir(parents=True, exist_ok=True)
    total = sum(float(math.prod(tensor.shape)) for tensor in tensors.values())
    with Progress(total, f"exporting {path.name}", progress) as bar:
        sources = {
            name: _source(name, tensor, _stored(tensor, chosen, dtype == "auto"), bar)
            for name, tensor in tensors.items()
        }
        _write_tensors(path, sources, max_shard_bytes)
    for name, values in {**files, _CONFIG: config}.items():
        _write_json(path / name, values)


def _open(model: Runner | str | os.PathLike[str]) -> ModelFile:
    if isinstance(model, Runner):
        return ModelFile(model.metadata, model.weights, model.path)
    file = open_file(model)
    check_holds_model(file)
    return file


def _contents(file: ModelFile) -> tuple[dict[str, Any], dict[str, Exported]]:
    """Return the config and the tensors of the checkpoint, checked by converting them back."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model, plan = read_model(file.metadata, file.weights)
    source = Source(file.metadata, file.weights, model, plan)
    row = find_row(source)
    values = {**source.common(), **row.values(source)}
    given = {key: value for key, value in values.items() if value is not ABSENT}
    config: dict[str, Any] = {
        "architectures": [row.cls],
        "model_type": row.model_type,
        **given,
    }
    _, family = find_family(CheckpointConfig(config))
    read = CheckpointConfig(config, family.defaults)
    tensors = exported(file.weights, family, row, read, model.layers)
    stored = {
        name: StoredArray("F32", tensor.shape, memoryview(b"")) for name, tensor in tensors.items()
    }
    back = read_contents(CheckpointConfig(config), stored)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        _, again = read_model(back.metadata, back.tensors)
    _check_same(plan, again, row.cls)
    for key, tensor in back.tensors.items():
        if key in file.weights and tensor.shape != file.weights[key].shape:
            raise UnsupportedError(
                f"{key} has the shape {file.weights[key].shape}; {row.cls} makes {tensor.shape} "
                "of it"
            )
    return config, tensors


def _check_same(plan: ForwardPlan, again: ForwardPlan, cls: str) -> None:
    """Raise if a plan has other steps or numbers than that of the model."""
    for mine, theirs in zip(plan, again, strict=False):
        for name, a, b in (
            ("operation", mine.op, theirs.op),
            ("name", mine.tap, theirs.tap),
            ("tensors", mine.weights, theirs.weights),
            ("shape", mine.shape, theirs.shape),
        ):
            if a != b:
                raise UnsupportedError(
                    f"{cls} of Hugging Face would compute something else: the {name} of "
                    f"{mine.tap} would be {b!r} instead of {a!r}"
                )
        for one, two in zip(mine.numbers, theirs.numbers, strict=True):
            if not math.isclose(one.value, two.value, rel_tol=1e-5, abs_tol=1e-12):
                raise UnsupportedError(
                    f"{cls} of Hugging Face would compute something else: {one.name} of "
                    f"{mine.tap} would be {two.value:.6g} instead of {one.value:.6g}"
                )
    if len(plan) != len(again):
        raise UnsupportedError(
            f"{cls} of Hugging Face would have {len(again)} steps instead of {len(plan)}"
        )


# ---- types ----


def _main_type(tensors: Mapping[str, Exported]) -> str:
    """Return the type of most values of matrices, or F32 if they are quantized."""
    sizes: Counter[str] = Counter()
    for tensor in tensors.values():
        if len(tensor.shape) > 1:
            sizes[tensor.types[0]] += math.prod(tensor.shape)
    kind = max(sizes, key=lambda key: sizes[key], default="F32")
    return kind if kind in _DTYPES else "F32"


def _stored(tensor: Exported, dtype: str, careful: bool) -> str:
    if not careful or dtype == "F32" or all(kind == dtype for kind in tensor.types):
        return dtype
    if math.prod(tensor.shape) > 1 << 20:
        return "F32"
    values = np.ascontiguousarray(tensor.read(), np.float32)
    exact = np.array_equal(_decoded(encode("", values, dtype), dtype), values.reshape(-1))
    return dtype if exact else "F32"


def _decoded(data: Array, dtype: str) -> Array:
    if dtype == "F16":
        return data.view("<f2").astype(np.float32)
    return (data.view("<u2").astype(np.uint32) << 16).view(np.float32)


def _source(name: str, tensor: Exported, dtype: str, bar: Progress) -> ArraySource:
    def read() -> Array:
        data = encode(name, tensor.read(), dtype)
        bar.add(float(math.prod(tensor.shape)))
        return data

    return ArraySource(dtype, tensor.shape, read)


# ---- files ----


def _write_tensors(folder: Path, sources: Mapping[str, ArraySource], most: int) -> None:
    groups: list[dict[str, ArraySource]] = [{}]
    held = 0
    for name, source in sources.items():
        if groups[-1] and held + source.nbytes > most:
            groups.append({})
            held = 0
        groups[-1][name] = source
        held += source.nbytes
    if len(groups) == 1:
        write_safetensors(folder / "model.safetensors", groups[0], {"format": "pt"})
        return
    places: dict[str, str] = {}
    for i, group in enumerate(groups, start=1):
        name = f"model-{i:05}-of-{len(groups):05}.safetensors"
        write_safetensors(folder / name, group, {"format": "pt"})
        places.update(dict.fromkeys(group, name))
    total = sum(source.nbytes for source in sources.values())
    index = {"metadata": {"total_size": total}, "weight_map": places}
    _write_json(folder / "model.safetensors.index.json", index)


def _write_json(path: Path, values: Mapping[str, Any]) -> None:
    text = json.dumps(values, ensure_ascii=False, indent=2) + "\n"
    data = text.encode("utf-8", "surrogateescape")
    write: Callable[[Any], object] = lambda file: file.write(data)  # noqa: E731
    write_atomically(path, write)


def _generation(config: Mapping[str, Any], ends: list[int]) -> dict[str, Any]:
    names = ("bos_token_id", "pad_token_id")
    values: dict[str, Any] = {name: config[name] for name in names if name in config}
    if ends:
        values["eos_token_id"] = ends if len(ends) > 1 else ends[0]
    return values
