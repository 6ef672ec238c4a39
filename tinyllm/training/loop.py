"""The steps of a training run, with measurements and checkpoints in between."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ..base.checks import integer
from ..base.progress import Progress
from ..base.warning import warn
from .checkpoint import State, write_model, write_state
from .data import Data, digest, unigram_entropy
from .dropout import Dropout
from .guards import Guards
from .history import History
from .network import Network
from .optimizer import Optimizer
from .run import Log, Run
from .settings import Settings

__all__ = ["Loop"]

#: Of how many parts of a run each ends with a measurement and a checkpoint.
_PARTS = 10


class Loop:
    """A run while it runs.

    Parameters
    ----------
    network : Network
    found : str or int32 array
        What `read_data` returned.
    settings : Settings
    history : tuple of Event
        The runs that it comes from, the last of which is this one.
    step : int
        The steps that are done.
    mask : bool array, optional
        As for `Data`.
    """

    def __init__(
        self,
        network: Network,
        found: Any,
        settings: Settings,
        history: History,
        step: int = 0,
        mask: Any = None,
    ) -> None:
        self.network = network
        self.settings = settings
        self.history = history
        self._digest = digest(found, mask)
        self._data = data = _encoded(found, network, settings, mask)
        self._optimizer = Optimizer(network, settings)
        self._log = Log()
        self._step = step
        self._guards = Guards(unigram_entropy(data.learnt), network.weights)

    def take_over(self, state: State) -> None:
        """Take the moments of the optimizer and the log of a run that stopped."""
        self._optimizer.first[:] = state.first
        self._optimizer.second[:] = state.second
        self._log = state.log

    def run(
        self,
        out: str | os.PathLike[str] | None,
        evaluate_every: int | None,
        evaluate: Callable[[Run], Any] | None,
        progress: bool,
    ) -> Run:
        """Run all steps that are left.

        Parameters
        ----------
        out, evaluate_every, evaluate, progress
            As for `tinyllm.train`.

        Returns
        -------
        Run
        """
        path = None if out is None else Path(out)
        every = max(1, self.settings.steps // _PARTS)
        if evaluate_every is not None:
            every = max(1, integer("evaluate_every", evaluate_every))
        began = time.monotonic() - (self._log.times[-1] if self._log.times else 0.0)
        best = min((loss for _, loss in self._log.validation), default=float("inf"))
        going = True
        with Progress(self.settings.steps, "training", progress) as bar:
            bar.to(self._step)
            while going and self._step < self.settings.steps:
                self._one_step()
                self._log.times.append(time.monotonic() - began)
                self._look()
                bar.to(self._step)
                last = self._step == self.settings.steps
                if not (last or self._step % every == 0):
                    continue
                loss = self._measure()
                if path is not None and loss is not None and loss < best:
                    best = loss
                    write_model(f"{path}.best", self.network.image)
                if evaluate is not None:
                    answer = evaluate(self._result(path))
                    going = not (isinstance(answer, bool | np.bool_) and not answer)
                if path is not None:
                    self._save(path)
        return self._result(path)

    def _one_step(self) -> None:
        settings, network = self.settings, self.network
        ids, targets = self._data.batch(self._step, settings.batch)
        network.flat[:] = 0
        total, count = 0.0, max(1, int((targets >= 0).sum()))
        for first in range(0, settings.batch, settings.micro_batch):
            part = slice(first, first + settings.micro_batch)
            dropout = None
            if settings.dropout > 0:
                row = first * settings.context
                dropout = Dropout(settings.dropout, settings.seed, self._step, row, network.threads)
            total += network.add_gradients(ids[part], targets[part], 1 / count, dropout)
        norm = self._optimizer.step(self._step)
        self._log.losses.append(total / count)
        self._log.norms.append(norm)
        self._step += 1

    def _look(self) -> None:
        known = len(self._guards.warnings)
        self._guards.look(self._log.losses, self.network.weights)
        for text in self._guards.warnings[known:]:
            warn(text, RuntimeWarning)

    def _measure(self) -> float | None:
        windows = self._data.validation()
        if windows is None:
            return None
        losses = [
            self.network.losses(windows[0][i : i + 8], windows[1][i : i + 8]).sum()
            for i in range(0, len(windows[0]), 8)
        ]
        loss = float(np.sum(losses)) / max(1, int((windows[1] >= 0).sum()))
        self._log.validation.append((self._step, loss))
        return loss

    def _save(self, out: Path) -> None:
        state = State(
            self.settings,
            self._step,
            self.network.image,
            self._optimizer.first,
            self._optimizer.second,
            self._log,
            self._digest,
            self.history,
        )
        write_state(out, state)
        write_model(out, self.network.image)

    def _result(self, out: Path | None) -> Run:
        run = self._new_run(out)
        run.history = self.history
        run.warnings = list(self._guards.warnings)
        return run

    def _new_run(self, out: Path | None) -> Run:
        return Run(bytes(self.network.image), self._log, self.settings, self._step, out)


def _encoded(found: Any, network: Network, settings: Settings, mask: Any) -> Data:
    ids, tokenizer = found, network.model.tokenizer
    if isinstance(found, str):
        if tokenizer is None:
            raise ValueError("data is a text, and the model has no tokenizer; expected ids")
        ids = np.array(tokenizer.encode(found, add_special=False), np.int32)
    size = network.model.config.vocab_size
    if int(ids.max()) >= size:
        raise ValueError(f"data has the id {ids.max()}; the model has {size} tokens")
    # a prompt begins with BOS then, so a window does, too
    first = tokenizer.bos if tokenizer is not None and tokenizer.add_bos else None
    return Data(ids, settings.context, settings.validation, settings.seed, first, mask)
