"""Hugging Face checkpoints as the keys and tensors of a GGUF file.

The names, layouts and keys are those that llama.cpp's ``convert_hf_to_gguf.py`` writes. What each
architecture needs is a row in `table`. Vision and audio towers and blocks that predict further
tokens (multi-token prediction) are left out.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ..base.numeric import Float32
from ..errors import FormatError, UnsupportedError, wrong
from ..files.arrays import StoredArray, parse_json, read_safetensors
from .config import CheckpointConfig, read_checkpoint_config
from .family import Family, Target, To
from .keys import common_keys, rope_factors
from .layouts import Change
from .quantized import Mxfp4, Stored, joined
from .sentence_transformers import read_modules
from .table import FAMILIES
from .tokenizers import has_vocabulary, read_vocabulary

__all__ = [
    "Checkpoint",
    "Converted",
    "Place",
    "find_family",
    "open_checkpoint",
    "place_of",
    "read_checkpoint",
    "read_contents",
]

#: Prefixes of the language model's tensors.
_PREFIXES = (
    "model.language_model.model.",
    "language_model.model.",
    "model.language_model.",
    "model.text_model.",
    "language_model.",
    "model.",
    "transformer.",
    "gpt_neox.",
    "backbone.",
    "bert.",
    "roberta.",
)
_BLOCK = re.compile(r"(?:encoder\.)?(?:layers?|h|blocks?)\.(\d+)\.(.+)")

#: Tensors that are no part of a language model, and buffers that are computed.
_OTHER_PARTS = re.compile(
    r"(?:model\.)?(?:visual|vision_\w+|vision|vit|vpm|audio_\w+|multi_modal_projector|mm_projector"
    r"|multimodal_projector|embed_vision|embed_audio|image_newline|mtp)\b"
    r"|.*rotary_emb\.(?:inv_freq|cos_cached|sin_cached)$"
)


class Converted(NamedTuple):
    """A GGUF tensor of a checkpoint.

    Attributes
    ----------
    shape : tuple of int
    stored : str
        The dtype in the checkpoint, for example ``"BF16"``.
    read : callable
        Reads the tensor and returns it as a float32 array in GGUF's layout.
    release : callable
        Tells the system that the memory of mapped files is not needed for now.
    packed : callable or None
        Reads the tensor and returns the bytes that it has in GGUF, if `stored` is ``"MXFP4"``.
    """

    shape: tuple[int, ...]
    stored: str
    read: Callable[[], Float32]
    release: Callable[[], None] = lambda: None
    packed: Callable[[], npt.NDArray[np.uint8]] | None = None


class Checkpoint(NamedTuple):
    """A Hugging Face checkpoint, ready to be written as GGUF.

    Attributes
    ----------
    metadata : dict of str to object
        GGUF keys.
    tensors : dict of str to Converted
        By GGUF name.
    """

    metadata: dict[str, Any]
    tensors: dict[str, Converted]


class _Arrays(Mapping[str, Float32]):
    """The tensors as arrays. Each is read on use."""

    def __init__(self, tensors: Mapping[str, Converted]) -> None:
        self._tensors = tensors

    def __getitem__(self, name: str) -> Float32:
        return self._tensors[name].read()

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def __contains__(self, name: object) -> bool:
        return name in self._tensors


def read_checkpoint(
    folder: str | os.PathLike[str],
) -> tuple[dict[str, Any], Mapping[str, Float32]]:
    """Read a Hugging Face checkpoint as the contents of a GGUF file without a vocabulary.

    Parameters
    ----------
    folder : str or os.PathLike
        Holds ``config.json`` and ``model.safetensors``, whole or in shards.

    Returns
    -------
    metadata : dict of str to object
        GGUF keys.
    tensors : mapping of str to numpy.ndarray
        By GGUF name, float32. Each access reads the tensor.

    Raises
    ------
    tinyllm.UnsupportedError
        If the architecture is unknown, if the checkpoint has tensors that it does not know, or if
        the tensors are not in the safetensors format.
    tinyllm.FormatError
        If the config or a file is damaged, or a tensor is missing.
    OSError
        If a file cannot be read.

    Examples
    --------
    >>> from tinyllm.conversion.huggingface import read_checkpoint
    >>> read_checkpoint("nowhere")
    Traceback (most recent call last):
    FileNotFoundError: [Errno 2] No such file or directory: 'nowhere/config.json'
    """
    checkpoint = open_checkpoint(folder)
    return checkpoint.metadata, _Arrays(checkpoint.tensors)


def open_checkpoint(folder: str | os.PathLike[str], vocab: bool = False) -> Checkpoint:
    """Open a Hugging Face checkpoint. Only the headers of its tensors' files are read.

    Parameters
    ----------
    folder : str or os.PathLike
        As for `read_checkpoint`, with the same errors.
    vocab : bool
        Whether to read the tokenizer, if the folder has one.

    Returns
    -------
    Checkpoint
    """
    path = Path(os.fsdecode(folder))
    found = read_checkpoint_config(path)
    name, family = find_family(found)
    config = CheckpointConfig(found.file, family.defaults)
    stored = joined(_stored(path), config)
    keys = _keys(config, family, stored)
    modules = read_modules(path)
    if modules.pooling is not None:
        keys["pooling_type"] = modules.pooling
    dense = _dense(modules.dense, name, family)
    for prefix, tensor in dense.items():
        keys[f"{prefix}_feat_out"], keys[f"{prefix}_feat_in"] = tensor.shape
    metadata = {
        "general.architecture": name,
        "general.type": "model",
        "general.name": path.resolve().name,
        **_full(name, keys),
        **(read_vocabulary(path, config, name) if vocab and has_vocabulary(path) else {}),
    }
    tensors = _all_tensors(stored, config, family)
    tensors.update((f"{prefix}.weight", tensor) for prefix, tensor in dense.items())
    return Checkpoint(metadata, tensors)


def read_contents(config: CheckpointConfig, stored: Mapping[str, Stored]) -> Checkpoint:
    """Return what a config and tensors become: the keys of the model, without a vocabulary.

    Parameters
    ----------
    config : CheckpointConfig
    stored : mapping of str to StoredArray
        The tensors by their names in the checkpoint. They are not read.

    Returns
    -------
    Checkpoint

    Raises
    ------
    tinyllm.UnsupportedError, tinyllm.FormatError
        As `open_checkpoint`.
    """
    name, family = find_family(config)
    config = CheckpointConfig(config.file, family.defaults)
    keys = _full(name, _keys(config, family, stored))
    metadata = {"general.architecture": name, **keys}
    return Checkpoint(metadata, _all_tensors(stored, config, family))


def _keys(config: CheckpointConfig, family: Family, stored: Mapping[str, Stored]) -> dict[str, Any]:
    keys = common_keys(config, family.rope) if family.common else {}
    for more in family.keys:
        keys.update(more(config))
    if family.tensor_keys is not None:
        keys.update(family.tensor_keys(config, _by_layer(stored)))
    return keys


def _full(name: str, keys: Mapping[str, Any]) -> dict[str, Any]:
    """Return keys with the prefix of the architecture, without those that are None."""
    whole = ("tokenizer.", "xielu.")
    return {
        key if key.startswith(whole) else f"{name}.{key}": value
        for key, value in keys.items()
        if value is not None
    }


def _all_tensors(
    stored: Mapping[str, Stored], config: CheckpointConfig, family: Family
) -> dict[str, Converted]:
    tensors = {name: _computed(array) for name, array in _factors(config, family).items()}
    tensors.update(_tensors(stored, config, family))
    return tensors


def _by_layer(stored: Mapping[str, Stored]) -> dict[tuple[int, str], Stored]:
    split = ((*_split(source), array) for source, array in stored.items())
    return {(layer, name): array for layer, name, array in split if layer is not None}


def _dense(layers: list[StoredArray], name: str, family: Family) -> dict[str, Converted]:
    """Return the linear layers after the pooling: GGUF has two of them, 2 and 3."""
    if len(layers) > (2 if family.dense else 0):
        raise UnsupportedError(
            f"the checkpoint has {len(layers)} linear layers after its pooling; GGUF's {name} has "
            f"{'at most two' if family.dense else 'none'}"
        )
    return {
        f"dense_{i}": _unchanged(array, f"dense_{i}") for i, array in enumerate(layers, start=2)
    }


# ---- the files ----


def _stored(folder: Path) -> dict[str, StoredArray]:
    """Return the tensors of all files of a checkpoint."""
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        names = _shards(index)
    elif (folder / "model.safetensors").is_file():
        names = ["model.safetensors"]
    else:
        names = sorted(path.name for path in folder.glob("model*.safetensors"))
    if not names:
        raise _without_safetensors(folder)
    tensors: dict[str, StoredArray] = {}
    for name in names:
        arrays, _ = read_safetensors(folder / name)
        twice = sorted(tensors.keys() & arrays.keys())
        if twice:
            raise wrong(f"tensor {twice[0]}", "in two files", "every tensor once", path=str(folder))
        tensors.update(arrays)
    return tensors


def _shards(index: Path) -> list[str]:
    values = parse_json(index.read_bytes(), index.name)
    files = values.get("weight_map") if isinstance(values, dict) else None
    if not isinstance(files, dict) or not all(isinstance(name, str) for name in files.values()):
        raise wrong("weight_map", files, "an object of file names", shown=f"{files!r:.80}")
    names = sorted(set(files.values()))
    for name in names:
        if os.path.basename(name) != name:
            raise wrong("weight_map", repr(name), "names of files in the same folder")
    missing = [name for name in names if not (index.parent / name).is_file()]
    if missing:
        raise FormatError(
            f"files of the checkpoint are missing: {', '.join(missing)}",
            path=str(index.parent),
            field="weight_map",
        )
    return names


def _without_safetensors(folder: Path) -> Exception:
    if any(folder.glob("pytorch_model*.bin")):
        return UnsupportedError(
            f"{folder} has its tensors in pytorch_model.bin, a format that can run any code when "
            "it is read. Save it as safetensors first, with transformers: "
            f"AutoModelForCausalLM.from_pretrained({str(folder)!r}).save_pretrained('NEW_FOLDER')"
        )
    return UnsupportedError(
        f"{folder} has no model.safetensors; expected a folder with config.json and the tensors "
        "in the safetensors format"
    )


# ---- the architecture ----


def find_family(config: CheckpointConfig) -> tuple[str, Family]:
    """Return the architecture of a checkpoint, and its row."""
    classes = config.classes
    for name, family in FAMILIES.items():
        if set(classes) & set(family.classes) and (family.when is None or family.when(config)):
            return name, family
    raise UnsupportedError(
        f"the checkpoint has the class {', '.join(classes) or 'of no name'}; this version converts "
        f"{', '.join(FAMILIES)}"
    )


def _factors(config: CheckpointConfig, family: Family) -> dict[str, Float32]:
    return rope_factors(config) if family.rope else {}


def _computed(array: Float32) -> Converted:
    return Converted(array.shape, "F32", lambda: array)


def _unchanged(array: StoredArray, source: str) -> Converted:
    part = _Part(source, (), None)
    return Converted(array.shape, array.dtype, lambda: _read(part, array, None))


# ---- the tensors ----


class _Part(NamedTuple):
    """A tensor of the checkpoint that becomes a tensor of GGUF, or one of those in its stack."""

    source: str
    numbers: tuple[int, ...]  # of the expert; empty for a tensor of its own
    change: Change | None


def _tensors(
    stored: Mapping[str, Stored], config: CheckpointConfig, family: Family
) -> dict[str, Converted]:
    parts: dict[str, list[_Part]] = {}
    unknown: dict[str, int] = {}
    for source in stored:
        place = place_of(source, config, family)
        if place is None:
            continue
        if not place.targets:
            shown = f"layers.N.{place.pattern}" if place.block else place.pattern
            unknown[shown] = unknown.get(shown, 0) + 1
        for target in place.targets:
            part = _Part(source, place.numbers, target.change)
            parts.setdefault(place.block + target.name, []).append(part)
    if unknown:
        lines = [f"{name} ({count}x)" if count > 1 else name for name, count in unknown.items()]
        raise UnsupportedError(
            f"the checkpoint has tensors that its architecture does not have here: "
            f"{', '.join(lines)}{_quantization(config)}"
        )
    if config.get("tie_word_embeddings"):
        parts.pop("output.weight", None)
    for name in family.dropped(config) if family.dropped else ():
        parts.pop(name, None)
    _check_layers(parts, config.layers)
    return {name: _converted(name, group, stored, config) for name, group in parts.items()}


class Place(NamedTuple):
    """What a tensor of a checkpoint becomes.

    Attributes
    ----------
    block : str
        What the names of its targets begin with, such as ``blk.0.``, or nothing.
    pattern : str
        Its name in the block, with ``*`` for numbers.
    numbers : tuple of int
        The numbers for ``*``, such as that of an expert.
    targets : tuple of To
        Empty: the architecture has no such tensor.
    """

    block: str
    pattern: str
    numbers: tuple[int, ...]
    targets: tuple[To, ...]


def place_of(source: str, config: CheckpointConfig, family: Family) -> Place | None:
    """Return what a tensor of a checkpoint becomes.

    Parameters
    ----------
    source : str
        Its name in the checkpoint.
    config : CheckpointConfig
    family : Family

    Returns
    -------
    Place or None
        None if the tensor is left out.
    """
    if _OTHER_PARTS.match(source):
        return None
    if family.locate is None:
        layer, name = _split(source)
        if layer is not None and layer >= config.layers:
            return None  # multi-token prediction
        block = "" if layer is None else f"blk.{layer}."
    else:
        block, name = family.locate(source)
    pattern, numbers = _numbered(name)
    if any(
        pattern.startswith(name) if name.endswith(".") else pattern == name
        for name in family.skipped
    ):
        return None
    names = {**family.names, **(family.more_names(config) if family.more_names else {})}
    return Place(block, pattern, numbers, _targets(pattern, names))


def _quantization(config: CheckpointConfig) -> str:
    """Return what an error says of the checkpoint's quantization."""
    value = config.get("quantization_config")
    method = value.get("quant_method") if isinstance(value, dict) else None
    if method is None:
        return ""
    return (
        f". It is quantized with {method}; MXFP4 and FP8 are converted. Of other kinds, convert "
        "the checkpoint before its quantization"
    )


def _split(source: str) -> tuple[int | None, str]:
    """Return the layer of a tensor, if it has one, and its name without prefixes."""
    prefix = next((prefix for prefix in _PREFIXES if source.startswith(prefix)), "")
    name = source.removeprefix(prefix)
    # TensorFlow's names of a norm's weight and bias
    name = name.replace("LayerNorm.gamma", "LayerNorm.weight")
    name = name.replace("LayerNorm.beta", "LayerNorm.bias")
    match = _BLOCK.fullmatch(name)
    return (int(match[1]), match[2]) if match else (None, name)


def _numbered(name: str) -> tuple[str, tuple[int, ...]]:
    """Return a name with ``*`` for each number between dots, and the numbers."""
    words = name.split(".")
    numbers = tuple(int(word) for word in words if word.isdecimal())
    return ".".join("*" if word.isdecimal() else word for word in words), numbers


def _targets(pattern: str, names: Mapping[str, Target]) -> tuple[To, ...]:
    """Return what a tensor becomes: its name stands in the row, with its suffix or without."""
    target, suffix = names.get(pattern), ""
    if target is None:
        stem, _, suffix = pattern.rpartition(".")
        target = names.get(stem) if suffix in ("weight", "bias") else None
        suffix = f".{suffix}"
    if target is None:
        return ()
    if isinstance(target, str):
        target = To(target)
    group = (target,) if isinstance(target, To) else target
    return tuple(To(to.name + suffix, to.change) for to in group)


def _check_layers(parts: Mapping[str, Any], layers: int) -> None:
    found = (re.match(r"(?:enc\.)?blk\.(\d+)\.", name) for name in parts)
    there = {int(match[1]) for match in found if match}
    missing = sorted(set(range(layers)) - there)
    if missing:
        raise FormatError(
            f"the checkpoint has no tensors of layer {missing[0]}; expected {layers} layers",
            field=f"layer {missing[0]}",
        )


def _converted(
    name: str, parts: list[_Part], stored: Mapping[str, Stored], config: CheckpointConfig
) -> Converted:
    parts = sorted(parts, key=lambda part: part.numbers)
    stack = bool(parts[0].numbers)
    numbers = [part.numbers for part in parts]
    if numbers != ([(i,) for i in range(len(parts))] if stack else [()]):
        shown = ", ".join(part.source for part in parts[:3])
        raise FormatError(
            f"{name} would be made of {len(parts)} tensors: {shown} and so on; expected "
            + ("the numbers from 0 on, each once" if stack else "one"),
            field=name,
        )
    shapes = {_shape(part, stored[part.source], config) for part in parts}
    if len(shapes) > 1:
        raise wrong(f"the tensors of {name}", f"of shapes {shapes}", "of one shape")
    shape = shapes.pop()
    kinds = {stored[part.source].dtype for part in parts}

    def read() -> Float32:
        if not stack:
            return _read(parts[0], stored[parts[0].source], config)
        result = np.empty((len(parts), *shape), np.float32)
        for i, part in enumerate(parts):
            result[i] = _read(part, stored[part.source], config)
        return result

    full = (len(parts), *shape) if stack else shape

    def release() -> None:
        for part in parts:
            stored[part.source].forget()

    packed = None
    first = stored[parts[0].source]
    if isinstance(first, Mxfp4) and not stack:
        packed = _packer(first, parts[0].change, config)
        if packed is None:
            kinds.add("F32")
    return Converted(full, kinds.pop() if len(kinds) == 1 else "F32", read, release, packed)


def _packer(
    array: Mxfp4, change: Change | None, config: CheckpointConfig
) -> Callable[[], npt.NDArray[np.uint8]] | None:
    """Return a function that changes the layout of blocks: the row has to swap the axes back."""
    if change is None:
        return None
    apply = change.apply
    return lambda: np.ascontiguousarray(apply(array.packed(), config))


def _shape(part: _Part, array: Stored, config: CheckpointConfig) -> tuple[int, ...]:
    if part.change is None:
        return array.shape
    try:
        return part.change.shape(array.shape, config)
    except (FormatError, IndexError) as error:
        raise wrong(part.source, f"of shape {array.shape}", str(error)) from None


def _read(part: _Part, stored: Stored, config: CheckpointConfig | None) -> Float32:
    array = stored.read()
    if array.dtype.kind != "f":
        raise wrong(f"dtype of {part.source}", array.dtype, "a floating-point number")
    array = array.astype(np.float32, copy=False)
    if part.change is not None and config is not None:
        array = np.ascontiguousarray(part.change.apply(array, config))
        expected = _shape(part, stored, config)
        if array.shape != expected:
            raise wrong(part.source, f"of shape {array.shape} when changed", f"{expected}")
    result: Float32 = array
    return result
