"""PEFT's LoRA adapters as adapter files of llama.cpp.

A module of the checkpoint has A and B in the layout of its own weight: y = W x + factor * B A x.
Where the weight of the model changes its layout in GGUF, so does the adapter: the rows of B are
reordered or cut as those of W, and the columns of A as its columns.
"""

from __future__ import annotations

import functools
import math
import os
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ..base.numeric import Float32
from ..errors import FormatError, UnsupportedError, wrong
from ..files.arrays import StoredArray, parse_json, read_safetensors
from ..files.gguf_write import TensorSource, write_gguf
from .config import CheckpointConfig, read_checkpoint_config
from .encode import encode
from .family import Family
from .huggingface import Place, find_family, place_of
from .layouts import Change

__all__ = ["CONFIG", "convert_adapter"]

CONFIG = "adapter_config.json"

#: llama.cpp's number of a file of each type.
_FILE_TYPES = {"F32": 0, "F16": 1, "Q8_0": 7, "BF16": 32}

#: Settings of PEFT that an adapter file has no place for, and what they mean.
_REFUSED = {
    "use_dora": "DoRA, which also scales the columns of each matrix by its norm",
    "use_qalora": "QALoRA, which averages groups of inputs",
    "use_bdlora": "block-diagonal LoRA",
    "kasa_config": "KaSA, which changes the model's own weights",
    "velora_config": "VeLoRA",
    "arrow_config": "Arrow, which chooses among several adapters for each token",
    "monteclora_config": "MonteCLoRA",
    "lora_bias": "biases of B",
    "modules_to_save": "whole modules (modules_to_save), which replace those of the model",
    "trainable_token_indices": "embeddings of single tokens (trainable_token_indices)",
    "target_parameters": "changes of parameters that no module has alone (target_parameters)",
    "layer_replication": "layers that are used several times (layer_replication)",
    "alora_invocation_tokens": "an activated LoRA, which acts from certain tokens on",
}

#: Ways to begin that change the weights of the model, too.
_CHANGED_MODELS = ("pissa", "olora", "corda", "loftq", "lora_ga")

_ADVICE = "merge it into the model with PEFT's merge_and_unload(), and convert that model"

_KINDS = {
    ".lora_A.weight": ("a", False),
    ".lora_B.weight": ("b", False),
    ".lora_embedding_A": ("a", True),
    ".lora_embedding_B": ("b", True),
}


class _Module(NamedTuple):
    """A and B of a module of the checkpoint."""

    name: str
    a: StoredArray
    b: StoredArray
    embedding: bool

    @property
    def rank(self) -> int:
        return self.a.shape[0]


class _Piece(NamedTuple):
    """What of a module goes into a tensor of GGUF."""

    module: _Module
    place: Place
    change: Change | None
    factor: float


def convert_adapter(
    folder: str | os.PathLike[str],
    out: str | os.PathLike[str],
    dtype: str = "auto",
    base: str | os.PathLike[str] | None = None,
) -> None:
    """Write a PEFT adapter as an adapter file: see `tinyllm.convert`.

    Parameters
    ----------
    folder : str or os.PathLike
        Holds ``adapter_config.json`` and ``adapter_model.safetensors``.
    out : str or os.PathLike
    dtype : str
        The type of A and B. ``"auto"``: as they are.
    base : str or os.PathLike, optional
        The folder of the model's checkpoint, of which ``config.json`` is read. Default: the path
        in the adapter's config.
    """
    path = Path(os.fsdecode(folder))
    settings = _settings(path)
    config, name, family = _base(settings, base)
    modules = _modules(path, settings)
    groups = _groups(modules, settings, config, family)
    alpha = _alpha([piece for group in groups.values() for piece in group])
    tensors: dict[str, TensorSource] = {}
    for target, group in groups.items():
        for suffix, values in zip((".lora_a", ".lora_b"), _pair(target, group, config, alpha),
                                  strict=True):  # fmt: skip
            full = target + suffix
            kind = _type(group, values, dtype)
            tensors[full] = TensorSource(
                values.shape, kind, functools.partial(encode, full, values, kind)
            )
    kinds = Counter(source.type for source in tensors.values())
    metadata = {
        "general.architecture": name,
        "general.type": "adapter",
        "general.name": path.resolve().name,
        "adapter.type": "lora",
        "adapter.lora.alpha": ("FLOAT32", alpha),
        "general.file_type": _FILE_TYPES[kinds.most_common(1)[0][0]],
        "general.quantization_version": 2,
    }
    write_gguf(out, metadata, tensors)


# ---- the files ----


def _settings(path: Path) -> dict[str, Any]:
    values = parse_json((path / CONFIG).read_bytes(), CONFIG)
    if not isinstance(values, dict):
        raise wrong(CONFIG, values, "an object", shown=f"{values!r:.80}", path=str(path))
    kind = values.get("peft_type")
    if kind != "LORA":
        raise UnsupportedError(
            f"{path} is an adapter of the type {kind}; this version converts LORA"
        )
    for setting, what in _REFUSED.items():
        if values.get(setting):
            raise UnsupportedError(f"the adapter has {what}; GGUF has no place for it. {_ADVICE}")
    if values.get("bias", "none") != "none":
        raise UnsupportedError(
            f"the adapter changes biases (bias is {values['bias']!r}); GGUF has no place for them. "
            f"{_ADVICE}"
        )
    begin = values.get("init_lora_weights")
    if isinstance(begin, str) and begin.startswith(_CHANGED_MODELS):
        raise UnsupportedError(
            f"init_lora_weights is {begin!r}, which changes the model's own weights too. Save the "
            "adapter with path_initial_model_for_weight_conversion"
        )
    return values


def _base(
    settings: Mapping[str, Any], base: str | os.PathLike[str] | None
) -> tuple[CheckpointConfig, str, Family]:
    """Return the config of the model, its architecture, and how that is converted."""
    where = settings.get("base_model_name_or_path") if base is None else os.fsdecode(base)
    if not isinstance(where, str) or not os.path.isfile(os.path.join(where, "config.json")):
        raise FileNotFoundError(
            f"the adapter belongs to the model {where!r}, which is no folder with a config.json; "
            "expected base=, the folder of that model"
        )
    found = read_checkpoint_config(where)
    name, family = find_family(found)
    return CheckpointConfig(found.file, family.defaults), name, family


def _modules(path: Path, settings: Mapping[str, Any]) -> list[_Module]:
    file = path / "adapter_model.safetensors"
    if not file.is_file() and (path / "adapter_model.bin").is_file():
        raise UnsupportedError(
            f"{path} has its tensors in adapter_model.bin, a format that can run any code when it "
            "is read. Load and save it with PEFT, which gives safetensors"
        )
    arrays, _ = read_safetensors(file)
    found: dict[str, dict[str, tuple[StoredArray, bool]]] = {}
    other = []
    for name, array in arrays.items():
        if name.endswith(".base_layer.weight"):
            continue  # the model's own embedding, which PEFT may save beside its change
        suffix = next((suffix for suffix in _KINDS if name.endswith(suffix)), None)
        if suffix is None:
            other.append(name)
            continue
        stem = name.removesuffix(suffix).removeprefix("base_model.model.")
        part, embedding = _KINDS[suffix]
        found.setdefault(stem, {})[part] = array, embedding
    if other:
        raise UnsupportedError(
            f"the adapter has {len(other)} tensors that are neither A nor B, such as {other[0]}; "
            f"GGUF has no place for them. {_ADVICE}"
        )
    modules = []
    for stem, parts in found.items():
        for part in ("a", "b"):
            if part not in parts:
                raise FormatError(
                    f"{stem} has no lora_{part.upper()}", path=str(file), field=stem,
                    expected="both lora_A and lora_B",
                )  # fmt: skip
        module = _Module(stem, parts["a"][0], parts["b"][0], parts["a"][1])
        a, b = module.a.shape, module.b.shape
        if len(a) != 2 or len(b) != 2 or b[1] != a[0]:
            raise FormatError(
                f"{stem}: lora_A has shape {a} and lora_B {b}; expected (rank, inputs) and "
                "(outputs, rank)",
                path=str(file),
                field=stem,
            )
        modules.append(module)
    if not modules:
        raise wrong("tensors", 0, "at least one lora_A and lora_B", path=str(file))
    return modules


# ---- names and factors ----


def _groups(
    modules: list[_Module],
    settings: Mapping[str, Any],
    config: CheckpointConfig,
    family: Family,
) -> dict[str, list[_Piece]]:
    """Return what each tensor of GGUF is made of. Experts have several modules each."""
    groups: dict[str, list[_Piece]] = {}
    for module in modules:
        place = place_of(f"{module.name}.weight", config, family)
        if place is None or not place.targets:
            raise UnsupportedError(
                f"the adapter changes {module.name}, which the architecture does not have here"
            )
        factor = _factor(module, settings)
        for target in place.targets:
            piece = _Piece(module, place, target.change, factor)
            groups.setdefault(place.block + target.name, []).append(piece)
    return groups


def _factor(module: _Module, settings: Mapping[str, Any]) -> float:
    """Return what PEFT multiplies B A by: alpha / r, or alpha / sqrt(r) in rank-stabilized LoRA.

    Kalajdzievski 2023 (arXiv:2312.03732).
    """
    alpha = settings.get("lora_alpha", 8)
    for pattern, value in (settings.get("alpha_pattern") or {}).items():
        # the first that fits, as in peft.utils.other.get_pattern_key
        if re.match(rf"(.*\.)?({pattern})$", module.name):
            alpha = value
            break
    if isinstance(alpha, bool) or not isinstance(alpha, (int, float)):
        raise wrong("lora_alpha", alpha, "a number", shown=repr(alpha))
    rank = module.rank
    return float(alpha / math.sqrt(rank) if settings.get("use_rslora") else alpha / rank)


def _alpha(pieces: list[_Piece]) -> float:
    """Return the one alpha of the file: that of most modules. B of the others is scaled."""
    counts = Counter(float(np.float32(piece.factor * piece.module.rank)) for piece in pieces)
    found = next((alpha for alpha, _ in counts.most_common() if alpha), 0.0)
    if found == 0:
        raise wrong("lora_alpha", 0, "a number that is not 0")
    return found


# ---- layouts ----


def _pair(
    target: str, group: list[_Piece], config: CheckpointConfig, alpha: float
) -> tuple[Float32, Float32]:
    """Return A and B of a tensor of GGUF."""
    if not target.endswith(".weight"):
        raise UnsupportedError(f"the adapter changes {target}, which is no matrix")
    group = sorted(group, key=lambda piece: piece.place.numbers)
    pairs = [_one(piece, config, alpha) for piece in group]
    numbers = [piece.place.numbers for piece in group]
    if not numbers[0]:
        if len(group) > 1:
            raise wrong(target, f"changed by {len(group)} modules", "one")
        return pairs[0]
    shapes = {(a.shape, b.shape) for a, b in pairs}
    if numbers != [(i,) for i in range(len(group))] or len(shapes) > 1:
        raise UnsupportedError(
            f"the adapter changes some experts of {target} and not others, or with several ranks; "
            "an adapter file has one rank for all of them"
        )
    return np.stack([a for a, _ in pairs]), np.stack([b for _, b in pairs])


def _one(piece: _Piece, config: CheckpointConfig, alpha: float) -> tuple[Float32, Float32]:
    module = piece.module
    a, b = (array.read().astype(np.float32) for array in (module.a, module.b))
    scale = piece.factor * module.rank / alpha
    if float(np.float32(scale)) != 1.0:
        b = (b.astype(np.float64) * scale).astype(np.float32)
    if module.embedding:  # PEFT looks up columns of A; llama.cpp has them as rows
        if piece.change is not None:
            raise _no_layout(module)
        return np.ascontiguousarray(a.T), b
    if piece.change is not None:
        outputs, inputs, factor = _selection(piece.change, len(b), a.shape[1], config, module)
        a, b = a[:, inputs], b[outputs] * np.float32(factor)
    return np.ascontiguousarray(a), np.ascontiguousarray(b)


Indices = npt.NDArray[np.int64]


def _selection(
    change: Change, outputs: int, inputs: int, config: CheckpointConfig, module: _Module
) -> tuple[Indices, Indices, float]:
    """Return which outputs and inputs of a matrix a change of layout takes, and its factor.

    The change is applied to matrices that hold the number of the row, and that of the column, and
    what these tell is tried on random numbers. A matrix of a checkpoint may be stored as (inputs,
    outputs).
    """
    random = np.random.default_rng(0)
    trial = random.integers(-99, 99, (outputs, inputs)).astype(np.float32)
    probes = [*np.indices((outputs, inputs)).astype(np.float32), np.ones_like(trial), trial]
    for stored in (probes, [x.T for x in probes]):
        try:
            by_row, by_column, ones, tried = (
                change.apply(np.array(x, order="C"), config) for x in stored
            )
        except (FormatError, ValueError, IndexError):
            continue
        factor = float(ones[0, 0]) if ones.ndim == 2 else 0.0
        if factor == 0:
            continue
        rows, columns = (by_row[:, 0] / factor, by_column[0] / factor)
        if not (_are_indices(rows, outputs) and _are_indices(columns, inputs)):
            continue
        chosen = rows.astype(np.int64), columns.astype(np.int64)
        if np.array_equal(factor * trial[np.ix_(*chosen)], tried):
            return *chosen, factor
    raise _no_layout(module)


def _are_indices(values: npt.NDArray[np.floating[Any]], end: int) -> bool:
    return bool(((values >= 0) & (values < end) & (values == np.floor(values))).all())


def _no_layout(module: _Module) -> UnsupportedError:
    return UnsupportedError(
        f"the adapter changes {module.name}, whose layout changes in GGUF in a way that no A and B "
        f"can follow. {_ADVICE}"
    )


def _type(group: list[_Piece], values: Float32, dtype: str) -> str:
    """Return the type in which A or B is written."""
    if dtype == "Q8_0":
        return "F16" if values.shape[-1] % 32 else dtype
    if dtype != "auto":
        return dtype
    stored = {array.dtype for piece in group for array in (piece.module.a, piece.module.b)}
    kind = stored.pop() if len(stored) == 1 else "F32"
    same = kind in ("F16", "BF16") and np.array_equal(_rounded(values, kind), values)
    return kind if same else "F32"


def _rounded(values: Float32, kind: str) -> Float32:
    if kind == "F16":
        return values.astype(np.float16).astype(np.float32)
    return (values.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)
