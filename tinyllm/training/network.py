"""A model whose weights change: a GGUF file in memory, and the two passes over it."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .. import _core
from ..base.numeric import Float32, Float64
from ..files.gguf_write import write_gguf
from ..loading import load
from ..model import Model
from ..runtime.backward import values_needed
from ..trace.arena import Arena
from .dropout import Dropout, dropped_steps

__all__ = ["Network"]

#: A batch: ids of shape (sequences, tokens).
Ids = npt.NDArray[np.int32]


class Network:
    """The weights of a model as arrays that can be changed, and their gradients.

    The weights lie in the bytes of a GGUF file. So a checkpoint is a copy of these bytes.

    Parameters
    ----------
    image : bytes-like
        A GGUF file whose tensors are F32: a model, or an adapter of `base`.
    threads : int
    frozen : collection of str
        Tensors without gradients.
    base : Model, optional
        The model that the adapter changes. Its own weights stay as they are.

    Attributes
    ----------
    image : bytearray
        The file.
    weights, gradients : dict of str to float32 array
    flat : float32 array
        The memory of all gradients.
    """

    def __init__(
        self, image: Any, threads: int, frozen: Sequence[str] = (), base: Model | None = None
    ) -> None:
        self.image = bytearray(image)
        # the core copies memory that can be written, so it gets a read-only view of it
        view = memoryview(self.image).toreadonly()
        self.model = load(view, threads=threads) if base is None else base.with_adapter(view)
        if base is not None:
            frozen = tuple(base.weights)
        self.threads = threads
        memory = np.frombuffer(self.image, np.uint8)
        start = memory.__array_interface__["data"][0]
        self.weights: dict[str, Float32] = {}
        for name, weight in self.model.weights.items():
            if name in frozen:
                continue
            if weight.type != "F32":
                raise ValueError(f"tensor {name!r} has type {weight.type}; expected F32")
            at = weight.raw.__array_interface__["data"][0] - start
            if not 0 <= at <= len(memory) - weight.nbytes:
                raise RuntimeError(f"tensor {name!r} does not lie in the file")
            count = weight.nbytes // 4
            self.weights[name] = np.frombuffer(self.image, np.float32, count, at).reshape(
                weight.shape
            )
        sizes = [array.size for array in self.weights.values()]
        ends = np.cumsum([0, *sizes])
        self.flat = np.zeros(int(ends[-1]), np.float32)
        self.gradients = {
            name: self.flat[a:b].reshape(self.weights[name].shape)
            for name, a, b in zip(self.weights, ends[:-1], ends[1:], strict=True)
        }
        self._lowered = self.model.steps.lowered()
        # vectors are copied into the core's plan, so it is made anew after each change of one
        self._copied = any(array.ndim == 1 for array in self.weights.values())
        self._slots = tuple(self._weight_slots())
        self._dropped = dropped_steps(self.model.steps)
        needed = values_needed(self.model.steps, (), weights=self.weights)
        self._last = self.model.steps[-1].tap
        self._layout = self.model.layout([*needed, self._last])
        self._logits = self.model.layout([self._last])
        self._arenas: dict[tuple[int, int, bool], Arena] = {}

    @classmethod
    def make(
        cls,
        keys: Mapping[str, Any],
        weights: Mapping[str, Float32],
        threads: int,
        frozen: Sequence[str] = (),
    ) -> Network:
        """Return the network of a new file.

        Parameters
        ----------
        keys : mapping
            The metadata.
        weights : mapping of str to float32 array
        threads, frozen
            As for the class.

        Returns
        -------
        Network
        """
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.gguf"
            write_gguf(path, keys, weights)
            return cls(path.read_bytes(), threads, frozen)

    def _weight_slots(self) -> list[tuple[int, int, Float32]]:
        """Return where the derivatives of each weight of each step are added."""
        slots = []
        for number, step in enumerate(self.model.steps):
            for i, name in enumerate(step.weights):
                if name not in self.gradients:
                    continue
                array = self.gradients[name]
                if step.op == "linear" and step.number("rows"):  # some rows of a fused matrix
                    first = int(step.number("first"))
                    size = int(max(step.number("heads"), 1) * step.number("size"))
                    array = array[first : first + size]
                slots.append((number, i, array))
        return slots

    @property
    def parameters(self) -> int:
        """The number of weights that are trained."""
        return self.flat.size

    def bytes_of(self, sequences: int, tokens: int) -> int:
        """Return the bytes of the captured values of a batch."""
        return self._layout.nbytes([tokens] * sequences, [tokens] * sequences)

    def _forward(
        self, ids: Ids, train: bool, dropout: Dropout | None = None
    ) -> tuple[Arena, Float32]:
        """Run a batch; the result has the logits, of shape (tokens of all sequences, V)."""
        count, n = ids.shape
        key = (count, n, train)
        if key not in self._arenas:
            layout = self._layout if train else self._logits
            self._arenas[key] = Arena(layout, [n] * count, [n] * count)
        arena = self._arenas[key]
        self._core = core = self._new_core() if self._copied else self.model.core
        sessions = tuple(_core.Session(core) for _ in range(count))
        core.forward(
            sessions,
            tuple(ids),
            [],
            threads=self.threads,
            captures=tuple(arena.captures),
            edits=() if dropout is None else self._dropped,
            edit=dropout,
        )
        number = len(self.model.steps) - 1
        block = next(block for steps, _, block in arena.captures if number in steps)
        return arena, block.reshape(count * n, -1)

    def _new_core(self) -> _core.Model:
        return _core.Model(
            self._lowered,
            self.model.weights.values(),
            layers=self.model.config.layers,
            max_context=self.model.core.config["max_context"],
        )

    def losses(self, ids: Ids, targets: Ids) -> Float64:
        """Return the loss of each token, in nats.

        Parameters
        ----------
        ids, targets : int32 arrays, shape (sequences, tokens)

        Returns
        -------
        float64 array, shape (sequences, tokens)
        """
        _, logits = self._forward(ids, train=False)
        found = _core.cross_entropy(logits, targets.reshape(-1), threads=self.threads)
        return found.reshape(ids.shape)

    def add_gradients(
        self, ids: Ids, targets: Ids, scale: float, dropout: Dropout | None = None
    ) -> float:
        """Add the gradients of the summed loss, times `scale`, and return the summed loss.

        Parameters
        ----------
        ids, targets : int32 arrays, shape (sequences, tokens)
            A target below 0 is masked.
        scale : float
        dropout : Dropout, optional

        Returns
        -------
        float
        """
        arena, logits = self._forward(ids, True, dropout)
        seed = _core.empty(logits.shape)
        losses = _core.cross_entropy(
            logits, targets.reshape(-1), seed, scale=scale, threads=self.threads
        )
        self._core.backward(
            tuple(ids),
            tuple(arena.captures),
            (((len(self.model.steps) - 1,), -1, seed),),
            (),
            weights=self._slots,
            edits=() if dropout is None else self._dropped,
            edit=dropout,
            threads=self.threads,
        )
        return _core.sum(losses)
