"""Checkpoints: one file with everything that a run needs to continue, bit for bit."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..base.numeric import Float32
from ..errors import FormatError
from ..files.atomic import write_atomically
from ..files.gguf import GGUF
from ..files.gguf_write import write_gguf
from .history import History, history_key, read_history
from .run import Log
from .settings import Settings

__all__ = ["State", "read_state", "state_path", "write_model", "write_state"]

#: ``general.type`` of the file.
_TYPE = "training"


class State(NamedTuple):
    """Everything that a run needs to continue.

    Attributes
    ----------
    settings : Settings
    step : int
        The number of steps done.
    image : int8 array
        The model, a GGUF file.
    first, second : float32 arrays
        The moments of the optimizer.
    log : Log
    data : str
        The hash of the data.
    history : tuple of Event
        The runs that it comes from, the last of which is this one.
    """

    settings: Settings
    step: int
    image: Any
    first: Float32
    second: Float32
    log: Log
    data: str
    history: History


def state_path(path: str | os.PathLike[str]) -> Path:
    """Return the path of the checkpoint that belongs to a model."""
    return Path(f"{os.fspath(path)}.training")


def write_model(path: str | os.PathLike[str], image: Any) -> None:
    """Write a model; until it is complete, an existing file stays as it is."""
    write_atomically(path, lambda file: file.write(image))


def write_state(path: str | os.PathLike[str], state: State) -> None:
    """Write a checkpoint; until it is complete, an existing one stays as it is.

    Parameters
    ----------
    path : str or os.PathLike
        The path of the model.
    state : State
    """
    keys = {
        "general.type": _TYPE,
        "training.settings": state.settings.to_json(),
        "training.step": ("UINT64", state.step),
        "training.data": state.data,
        **history_key(state.history),
        "training.validation": json.dumps(state.log.validation),
    }
    tensors: dict[str, Any] = {
        "model": np.frombuffer(state.image, np.int8),
        "optimizer.first_moments": state.first,
        "optimizer.second_moments": state.second,
        "log.loss": np.asarray(state.log.losses, np.float64),
        "log.seconds": np.asarray(state.log.times, np.float64),
        "log.norm": np.asarray(state.log.norms, np.float64),
    }
    write_gguf(state_path(path), keys, tensors)


def read_state(path: str | os.PathLike[str]) -> State:
    """Read the checkpoint of a model.

    Parameters
    ----------
    path : str or os.PathLike
        The path of the model.

    Returns
    -------
    State

    Raises
    ------
    FileNotFoundError
        If there is none.
    FormatError
        If the file is something else.
    """
    where = state_path(path)
    if not where.is_file():
        raise FileNotFoundError(f"{path} cannot be resumed, because {where} is missing")
    file = GGUF(where, mmap=False)
    keys, tensors = file.metadata, file.tensors
    if keys.get("general.type") != _TYPE:
        raise FormatError(f"{where} is no checkpoint of a training run")
    log = Log()
    log.losses = tensors["log.loss"].numpy(dtype=np.float64).tolist()
    log.times = tensors["log.seconds"].numpy(dtype=np.float64).tolist()
    log.norms = tensors["log.norm"].numpy(dtype=np.float64).tolist()
    log.validation = [
        (int(step), float(loss)) for step, loss in json.loads(keys["training.validation"])
    ]
    return State(
        Settings.from_json(keys["training.settings"]),
        int(keys["training.step"]),
        tensors["model"].raw,
        np.array(tensors["optimizer.first_moments"].numpy()),
        np.array(tensors["optimizer.second_moments"].numpy()),
        log,
        str(keys["training.data"]),
        read_history(keys),
    )
