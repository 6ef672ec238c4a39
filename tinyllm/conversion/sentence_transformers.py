"""What sentence-transformers adds to a checkpoint: pooling, and linear layers after it.

``modules.json`` lists the modules in their order; the folder of each has its config and tensors.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import FormatError, UnsupportedError, wrong
from ..files.arrays import StoredArray, parse_json, read_safetensors

__all__ = ["Modules", "read_modules"]

#: Ways of pooling, and llama.cpp's numbers of them.
_POOLING = {
    "pooling_mode_mean_tokens": 1,
    "pooling_mode_cls_token": 2,
    "pooling_mode_lasttoken": 3,
}


class Modules(NamedTuple):
    """The modules after the model.

    Attributes
    ----------
    pooling : int or None
        llama.cpp's number of the pooling.
    dense : list of StoredArray
        The matrices of linear layers, (out, in), in their order.
    """

    pooling: int | None
    dense: list[StoredArray]


def read_modules(folder: Path) -> Modules:
    """Read the modules of a folder.

    Parameters
    ----------
    folder : pathlib.Path

    Returns
    -------
    Modules
        Without pooling and layers if the folder has no ``modules.json``.

    Raises
    ------
    tinyllm.UnsupportedError
        If a module does more than GGUF can say.
    tinyllm.FormatError
        If a file is damaged.
    """
    path = folder / "modules.json"
    if not path.is_file():
        return Modules(None, [])
    modules = parse_json(path.read_bytes(), path.name)
    if not isinstance(modules, list) or not all(isinstance(item, dict) for item in modules):
        raise wrong("modules.json", modules, "a list of objects", shown=f"{modules!r:.80}")
    pooling = None
    dense = []
    for module in modules:
        kind = str(module.get("type", "")).rpartition(".")[2]
        if kind == "Pooling":
            pooling = _pooling(_values(folder, module))
        elif kind == "Dense":
            dense.append(_dense(folder, module))
    return Modules(pooling, dense)


def _inside(folder: Path, module: dict[str, Any]) -> Path:
    name = module.get("path")
    if not isinstance(name, str) or os.path.basename(name) != name:
        raise wrong("path of modules.json", repr(name), "the name of a folder in the same folder")
    return folder / name


def _values(folder: Path, module: dict[str, Any]) -> dict[str, Any]:
    path = _inside(folder, module) / "config.json"
    values = parse_json(path.read_bytes(), str(path.relative_to(folder)))
    if not isinstance(values, dict):
        raise wrong(str(path), values, "an object", shown=f"{values!r:.80}")
    return values


def _pooling(values: dict[str, Any]) -> int:
    names = [name for name, value in values.items() if name.startswith("pooling_mode_") and value]
    if values.get("pooling_mode") is not None and not names:  # a newer spelling
        word = str(values["pooling_mode"])
        names = [f"pooling_mode_{ {'mean': 'mean_tokens', 'cls': 'cls_token'}.get(word, word) }"]
    if len(names) != 1 or names[0] not in _POOLING:
        raise UnsupportedError(
            f"the pooling of the checkpoint is {', '.join(names) or 'none'}; GGUF has "
            f"{', '.join(_POOLING)}"
        )
    return _POOLING[names[0]]


def _dense(folder: Path, module: dict[str, Any]) -> StoredArray:
    activation = str(_values(folder, module).get("activation_function", "Identity"))
    if not activation.endswith("Identity"):
        raise UnsupportedError(
            f"{module.get('path')} has the activation function {activation}; GGUF has none there"
        )
    path = _inside(folder, module) / "model.safetensors"
    tensors, _ = read_safetensors(path)
    if set(tensors) != {"linear.weight"}:
        raise FormatError(
            f"{module.get('path')} has the tensors {', '.join(sorted(tensors))}; expected "
            "linear.weight alone",
            path=str(path),
            field="linear.weight",
        )
    return tensors["linear.weight"]
