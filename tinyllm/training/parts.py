"""The parts of a model file that training and surgery change: keys, tensors, history."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from .._core import Weight
from ..architectures.config import Config
from ..architectures.table import read_model
from ..base.numeric import Float32
from ..files.gguf import Metadata
from ..files.model_file import check_holds_model, open_file
from ..runtime.runner import Runner
from .history import History, read_history
from .run import Run

__all__ = ["Parts", "read_parts", "weights_digest"]


class Parts(NamedTuple):
    """What a model file holds.

    Attributes
    ----------
    path : str or None
        None if it is no file.
    keys : dict of str to object
        The metadata with their types, for `tinyllm.write_gguf`.
    weights : dict of str to Weight or float32 array
    history : tuple of Event
    """

    path: str | None
    keys: dict[str, Any]
    weights: dict[str, Any]
    history: History

    @property
    def metadata(self) -> dict[str, Any]:
        """The metadata without their types."""
        return {key: v[1] if isinstance(v, tuple) else v for key, v in self.keys.items()}

    @property
    def config(self) -> Config:
        """The config of the model."""
        return read_model(self.metadata, self.weights)[0]

    def array(self, name: str) -> Float32:
        """Return the values of a tensor as an array of its own."""
        weight = self.weights[name]
        return np.array(weight.numpy() if isinstance(weight, Weight) else weight)

    def arrays(self) -> dict[str, Float32]:
        """Return the values of all tensors."""
        return {name: self.array(name) for name in self.weights}

    @property
    def shape(self) -> dict[str, Any]:
        """The arguments of `tinyllm.train` that describe the model."""
        c = self.config
        positions = "rope"
        if c.architecture == "gpt2":
            positions = "learned" if self.array("position_embd.weight").any() else "none"
        return {
            "layers": c.layers,
            "width": c.width,
            "heads": int(np.max(c.heads)),
            "kv_heads": int(np.max(c.kv_heads)),
            "ffn_width": int(np.max(c.ffn_width)),
            "context": c.context_length,
            "positions": positions,
            "tied": c.tied,
        }


def read_parts(model: Any) -> Parts:
    """Return the parts of a model.

    Parameters
    ----------
    model : str, os.PathLike, bytes-like, Model or Run
        A path or a name as in `tinyllm.load`, the bytes of a file, or a model.

    Returns
    -------
    Parts

    Raises
    ------
    OSError
        If there is no such file.
    FormatError, UnsupportedError
        If it is no model, or one that tinyllm does not run.
    """
    metadata: Mapping[str, Any]
    weights: Mapping[str, Weight]
    path = None
    if isinstance(model, Run):
        model = model.image
    if isinstance(model, Runner):
        metadata, weights, path = model.metadata, model.weights, model.path
    else:
        file = open_file(model)
        check_holds_model(file)
        metadata, weights = file.metadata, file.weights
        if isinstance(model, str | os.PathLike):
            path = file.path
    typed = metadata.typed() if isinstance(metadata, Metadata) else dict(metadata)
    keys = {key: value for key, value in typed.items() if not key.startswith("split.")}
    return Parts(path, keys, dict(weights), read_history(metadata))


def weights_digest(weights: Mapping[str, Any]) -> str:
    """Return a hash of the names and values of tensors.

    Parameters
    ----------
    weights : mapping of str to float32 array
    """
    found = hashlib.sha256()
    for name, values in weights.items():
        found.update(name.encode())
        found.update(values.tobytes())
    return found.hexdigest()
