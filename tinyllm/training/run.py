"""`Run`: a model that was trained, and the record of its training."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..base.numeric import Float64
from ..files.arrays import write_arrays
from ..files.atomic import write_atomically
from ..loading import load
from ..model import Model
from .history import History

if TYPE_CHECKING:
    from .settings import Settings

__all__ = ["Log", "Run"]


class Log:
    """The record of a training run.

    Attributes
    ----------
    losses, norms, times : list of float
        Of each step: the loss in nats per token, the norm of the gradient before clipping, and the
        seconds since the run began.
    validation : list of (int, float)
        Steps, and the loss of the held out part after them.
    """

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.norms: list[float] = []
        self.times: list[float] = []
        self.validation: list[tuple[int, float]] = []

    @property
    def loss(self) -> Float64:
        """The loss of each step, shape (steps,)."""
        return np.array(self.losses)

    @property
    def norm(self) -> Float64:
        """The norm of the gradient of each step before clipping, shape (steps,)."""
        return np.array(self.norms)

    @property
    def seconds(self) -> Float64:
        """The seconds from the begin of the run to the end of each step, shape (steps,)."""
        return np.array(self.times)

    @property
    def validation_loss(self) -> Float64:
        """The loss of the held out part, shape (measurements, 2): steps done, and the loss."""
        return np.array(self.validation, np.float64).reshape(-1, 2)


class Run:
    """A training run: the result of `tinyllm.train`.

    Attributes
    ----------
    log : Log
        The losses by step, as arrays.
    path : pathlib.Path or None
        The model's file, if `out` was given.
    step : int
        The number of steps done.
    settings : Settings
        The shape of the model and everything else that the run was told.
    history : tuple of Event
        The runs and changes that the model comes from: their names, what they were, and the step at
        which each began. The last one is this run.
    warnings : list of str
        What looked wrong in training.

    Examples
    --------
    >>> import tinyllm as tl
    >>> run = tl.train("abcd" * 90, layers=1, width=8, heads=2, context=8, batch=2, steps=4)
    >>> run.step, run.path
    (4, None)
    """

    def __init__(
        self, image: bytes, log: Log, settings: Settings, step: int, path: Path | None
    ) -> None:
        self.image = image
        self.log = log
        self.settings = settings
        self.step = step
        self.path = path
        self.history: History = ()
        self.warnings: list[str] = []

    @property
    def run_id(self) -> str:
        """The name of this run. The same run has the same name each time."""
        return self.history[-1].run

    @property
    def parent_id(self) -> str:
        """The name of the run that it continues, or ""."""
        return self.history[-2].run if len(self.history) > 1 else ""

    @functools.cached_property
    def model(self) -> Model:
        """The model: it traces, edits and generates, as any other."""
        return load(self.image)

    def save(self, path: str | Path) -> None:
        """Write the model as a GGUF file, or its weights as a safetensors file.

        Parameters
        ----------
        path : str or Path
            If it ends in ``.safetensors``: the arrays, under the names of GGUF. The text
            ``settings`` in the file's metadata has the shape.
        """
        if Path(path).suffix == ".safetensors":
            arrays = {name: weight.numpy() for name, weight in self.model.weights.items()}
            write_arrays(path, arrays, {"format": "np", "settings": self.settings.to_json()})
        else:
            write_atomically(path, lambda file: file.write(self.image))

    def __repr__(self) -> str:
        """Return the steps and the last loss."""
        loss = f"{self.log.losses[-1]:.4f}" if self.log.losses else "none"
        return f"<tinyllm.Run: {self.step} of {self.settings.steps} steps, loss {loss}>"
