"""`train`: training a small language model from scratch on the CPU."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from .. import _core
from ..base.checks import integer
from ..base.progress import Progress
from ..base.warning import warn
from ..model import Model
from ..tokenizer import Tokenizer
from .checkpoint import State, read_state, write_model, write_state
from .data import Data, digest, read_data, unigram_entropy
from .dropout import Dropout
from .guards import Guards
from .history import extended, history_key
from .initial import initial_parts
from .network import Network
from .optimizer import Optimizer
from .parts import Parts, read_parts, weights_digest
from .run import Log, Run
from .settings import Settings
from .vocabulary import vocabulary

__all__ = ["train"]

#: Of how many parts of a run each ends with a measurement and a checkpoint.
_PARTS = 10

#: Tensors that are not trained, by `positions`.
_FROZEN = {"none": ("position_embd.weight",)}


def train(
    data: Any,
    *,
    layers: int | None = None,
    width: int | None = None,
    heads: int | None = None,
    kv_heads: int | None = None,
    ffn_width: int | None = None,
    context: int | None = None,
    batch: int | None = None,
    steps: int | None = None,
    micro_batch: int | None = None,
    tokenizer: str | os.PathLike[str] | Tokenizer = "char",
    positions: str = "rope",
    optimizer: str = "muon",
    lr: float | None = None,
    warmup: int | None = None,
    weight_decay: float | None = None,
    dropout: float = 0.0,
    tied: bool = False,
    seed: int = 0,
    out: str | os.PathLike[str] | None = None,
    start: str | os.PathLike[str] | Model | Run | None = None,
    resume: str | os.PathLike[str] | None = None,
    validation: float = 0.05,
    evaluate: Callable[[Run], Any] | None = None,
    evaluate_every: int | None = None,
    threads: int | None = None,
    progress: bool = True,
) -> Run:
    """Train a small language model from scratch.

    The model is a llama with RoPE, or a gpt2 with learned positions or without any. Muon or AdamW,
    with a warm-up and a cosine over the steps, and clipping. Everything is float32. The same
    arguments give the same bits, whatever the number of threads, and so does a run that was
    stopped and resumed.

    Parameters
    ----------
    data : str, os.PathLike or iterable of int
        The path of a text file in UTF-8 or of a folder of them, a text (longer than 255
        characters, or with a line break), or ids.
    layers, width, heads, kv_heads, ffn_width : int
        The shape. `kv_heads` defaults to `heads`, and `ffn_width` to 8/3 of the width for RoPE,
        where the network is gated, and else to 4 times the width.
    context : int
        Tokens of a sequence. The model can read no more than that.
    batch : int
        Sequences of a step.
    steps : int
    micro_batch : int, optional
        Sequences that run together, a divisor of `batch`. Fewer take less memory. Sums have
        another order then, and so other bits.
    tokenizer : str, os.PathLike or Tokenizer
        ``"char"``, ``"byte"``, ``"bpe:1000"`` (with the number of tokens), one of
        `train_tokenizer` or of a model, or the path of a file with one. Not used for ids, unless
        it is a Tokenizer.
    positions : str
        ``"rope"``, ``"learned"`` or ``"none"``.
    optimizer : str
        ``"muon"``: Muon for the matrices of the blocks, AdamW for everything else. ``"adamw"``.
    lr : float, optional
        The learning rate of the matrices. Default: 0.02 for Muon, 0.002 for AdamW.
    warmup : int, optional
        Steps until the full learning rate. Default: a tenth of the steps, at most 50.
    weight_decay : float, optional
        Of the matrices of the blocks. Default: 0 for Muon, 0.1 for AdamW.
    dropout : float
        The probability with which a value of the embedding, and of what a block adds to the
        residual stream, is set to zero in training. Measurements drop nothing.
    tied : bool
        Whether the embedding is the output matrix too.
    seed : int
        Of the first weights and of the choice of windows.
    out : str or os.PathLike, optional
        The model's file, written ten times during the run and at its end. Beside it are the
        checkpoint (``.training``), and the model with the smallest loss of the held out part
        (``.best``).
    start : str, os.PathLike, Model or Run, optional
        A model whose weights are the first ones. It has the shape and the tokenizer, so these must
        not be given, except for a shorter `context`. The optimizer begins anew.
    resume : str or os.PathLike, optional
        The model's file of a run to continue. The data must be the same. The shape is that of the
        run; `steps` may be given anew.
    validation : float
        The part of the data at its end that is held out.
    evaluate : callable, optional
        ``evaluate(run)`` is called whenever the loss of the held out part is measured. If it
        returns False, the training stops.
    evaluate_every : int, optional
        Steps between two measurements. Default: a tenth of the run.
    threads : int, optional
        Default: as for `load`.
    progress : bool
        Whether to show a progress bar.

    Returns
    -------
    Run
        ``run.model``, ``run.log`` and ``run.path``.

    Raises
    ------
    ValueError
        If an argument is wrong, the data are too short, or those of a resumed run differ.
    FileNotFoundError
        If there is no such file.
    TypeError
        If an argument is missing.

    Warns
    -----
    RuntimeWarning
        If the loss sits on the unigram entropy of the data, a matrix does not move, or the loss
        jumps.

    Examples
    --------
    >>> import tinyllm as tl
    >>> run = tl.train("abcd" * 90, layers=1, width=16, heads=2, context=8, batch=4, steps=5)
    >>> run.log.loss.shape
    (5,)
    >>> run.model.logits("abc").shape
    (3, 5)
    """
    count = _core.cpu_count() if threads is None else integer("threads", threads)
    if start is not None and resume is not None:
        raise ValueError("both start and resume are given; expected one")
    found = read_data(data)
    if resume is not None:
        trainer = _Trainer.resumed(found, resume, steps, count)
        out = resume
    else:
        shape: dict[str, Any] = {
            "layers": layers,
            "width": width,
            "heads": heads,
            "kv_heads": kv_heads,
            "ffn_width": ffn_width,
            "positions": positions,
            "tied": tied,
        }
        told: dict[str, Any] = {
            "batch": batch,
            "steps": steps,
            "micro_batch": micro_batch,
            "optimizer": optimizer,
            "lr": lr,
            "warmup": warmup,
            "weight_decay": weight_decay,
            "dropout": dropout,
            "seed": seed,
            "validation": validation,
        }
        if start is None:
            settings = Settings.make(**shape, **told, context=context)
            trainer = _Trainer.new(found, tokenizer, settings, count)
        else:
            _check_nothing_given({**shape, "tokenizer": tokenizer})
            trainer = _Trainer.started(found, start, context, told, count)
    every = max(1, trainer.settings.steps // _PARTS)
    if evaluate_every is not None:
        every = max(1, integer("evaluate_every", evaluate_every))
    return trainer.run(None if out is None else Path(out), every, evaluate, progress)


class _Trainer:
    """A run while it runs."""

    def __init__(
        self, parts: Parts, found: Any, settings: Settings, threads: int, made: str, step: int = 0
    ) -> None:
        self._digest = digest(found)
        weights = parts.arrays()
        tokens = parts.metadata.get("tokenizer.ggml.tokens", ())
        facts = [settings.to_json(), self._digest, tokens, weights_digest(weights)]
        self.history = extended(parts.history, made, step, facts)
        frozen = _FROZEN.get(settings.positions, ())
        keys = {**parts.keys, **history_key(self.history)}
        if "general.file_type" in keys:
            keys["general.file_type"] = ("UINT32", 0)  # F32
        self.network = network = Network.make(keys, weights, threads, frozen)
        self.settings = settings
        self._data = data = _encoded(found, network, settings)
        self._optimizer = Optimizer(network, settings)
        self._log = Log()
        self._step = step
        self._guards = Guards(unigram_entropy(data.train), network.weights)

    @staticmethod
    def new(found: Any, tokenizer: Any, settings: Settings, threads: int) -> _Trainer:
        """Return a new run."""
        text = isinstance(found, str)
        keys = {}
        if text or isinstance(tokenizer, Tokenizer):
            keys = vocabulary(tokenizer, found if text else "")
        size = len(keys["tokenizer.ggml.tokens"]) if keys else int(found.max()) + 1
        return _Trainer(initial_parts(settings, keys, size), found, settings, threads, "train")

    @staticmethod
    def started(
        found: Any, start: Any, context: int | None, told: dict[str, Any], threads: int
    ) -> _Trainer:
        """Return a new run that begins with the weights of a model."""
        parts = read_parts(start)
        longest = parts.config.context_length
        if context is not None and integer("context", context) > longest:
            raise ValueError(
                f"context is {context}; expected at most {longest}, that of the model to start "
                "from (init_with makes it longer)"
            )
        shape = {**parts.shape, "context": context or longest}
        settings = Settings.make(shape_is_known=True, **shape, **told)
        return _Trainer(parts, found, settings, threads, "train")

    @staticmethod
    def resumed(found: Any, path: Any, steps: int | None, threads: int) -> _Trainer:
        """Return a run that continues."""
        state = read_state(path)
        settings = state.settings
        if steps is not None:
            settings = Settings(**{**settings.__dict__, "steps": steps})
        if digest(found) != state.data:
            raise ValueError("data differs from that of the run to resume; expected the same text")
        parts = read_parts(bytes(state.image))._replace(history=state.history)
        trainer = _Trainer(parts, found, settings, threads, "resume", state.step)
        trainer._optimizer.first[:] = state.first
        trainer._optimizer.second[:] = state.second
        trainer._log = state.log
        return trainer

    def run(
        self,
        out: Path | None,
        every: int,
        evaluate: Callable[[Run], Any] | None,
        progress: bool,
    ) -> Run:
        """Run all steps that are left."""
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
                if out is not None and loss is not None and loss < best:
                    best = loss
                    write_model(f"{out}.best", self.network.image)
                if evaluate is not None:
                    going = evaluate(self._result(out)) is not False
                if out is not None:
                    self._save(out)
        return self._result(out)

    def _one_step(self) -> None:
        settings, network = self.settings, self.network
        ids, targets = self._data.batch(self._step, settings.batch)
        network.flat[:] = 0
        total = 0.0
        for first in range(0, settings.batch, settings.micro_batch):
            part = slice(first, first + settings.micro_batch)
            dropout = None
            if settings.dropout > 0:
                row = first * settings.context
                dropout = Dropout(settings.dropout, settings.seed, self._step, row, network.threads)
            total += network.add_gradients(ids[part], targets[part], 1 / ids.size, dropout)
        norm = self._optimizer.step(self._step)
        self._log.losses.append(total / ids.size)
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
        loss = float(np.sum(losses)) / windows[0].size
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
        run = Run(bytes(self.network.image), self._log, self.settings, self._step, out)
        run.history = self.history
        run.warnings = list(self._guards.warnings)
        return run


def _check_nothing_given(shape: dict[str, Any]) -> None:
    """Raise ValueError if something is given that the model to start from says."""
    defaults = {"positions": "rope", "tied": False, "tokenizer": "char"}
    for name, value in shape.items():
        if value != defaults.get(name):
            raise ValueError(f"{name} is {value!r}; expected nothing, because `start` has its own")


def _encoded(found: Any, network: Network, settings: Settings) -> Data:
    ids = found
    if isinstance(found, str):
        tokenizer = network.model.tokenizer
        if tokenizer is None:
            raise ValueError("data is a text, and the model has no tokenizer; expected ids")
        ids = np.array(tokenizer.encode(found, add_special=False), np.int32)
    size = network.model.config.vocab_size
    if int(ids.max()) >= size:
        raise ValueError(f"data has the id {ids.max()}; the model has {size} tokens")
    return Data(ids, settings.context, settings.validation, settings.seed)
