"""`lora`: training a LoRA adapter of a model on the CPU."""

from __future__ import annotations

import fnmatch
import functools
import hashlib
import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..architectures.adapters import matrix_shape, targets
from ..base.numeric import Float32
from ..files.adapter import Adapter
from ..files.gguf_write import write_gguf
from ..loading import load
from ..model import Model
from .checkpoint import read_state
from .data import digest, read_data, read_mask
from .history import History, extended
from .loop import Loop
from .network import Network
from .run import Run
from .settings import LoraSettings

__all__ = ["LoraRun", "lora"]

#: Matrices of blocks that are not changed unless they are named: routers of experts.
_ROUTERS = "ffn_gate_inp"

#: The longest window, if the model does not have a shorter context.
_CONTEXT = 128


class LoraRun(Run):
    """A run of `tinyllm.lora`.

    Attributes
    ----------
    base : Model
        The model that the adapter changes.
    log, path, step, settings, run_id, parent_id, warnings
        As in `Run`; `path` is the adapter's file.

    Examples
    --------
    >>> import tinyllm as tl
    >>> run = tl.lora(tl.load(), "All happy families are alike. " * 20, rank=1, steps=1, context=16)
    >>> run.adapter.tensors["blk.0.attn_q.weight"].rank
    1
    """

    base: Model

    @functools.cached_property
    def adapter(self) -> Adapter:
        """The adapter."""
        return Adapter(self.image)

    @functools.cached_property
    def model(self) -> Model:
        """The model with the adapter."""
        return self.base.with_adapter(self.adapter)


def lora(
    model: Model | str | os.PathLike[str],
    data: Any,
    rank: int = 8,
    alpha: float | None = None,
    targets: str | Sequence[str] | None = None,
    *,
    mask: Any = None,
    steps: int = 200,
    batch: int = 8,
    context: int | None = None,
    micro_batch: int | None = None,
    lr: float | None = None,
    warmup: int | None = None,
    weight_decay: float | None = None,
    seed: int = 0,
    out: str | os.PathLike[str] | None = None,
    resume: str | os.PathLike[str] | None = None,
    validation: float = 0.05,
    evaluate: Callable[[Run], Any] | None = None,
    evaluate_every: int | None = None,
    progress: bool = True,
) -> LoraRun:
    """Train a LoRA adapter of a model, whose own weights stay as they are.

    Hu et al. 2021 (arXiv:2106.09685). The model may be quantized: its gradients use the exact
    values of its weights. A and B are float32, and AdamW changes them, with a warm-up, a cosine
    over the steps, and clipping. The same arguments give the same bits, whatever the number of
    threads, and so does a run that was stopped and resumed.

    Parameters
    ----------
    model : Model, str or os.PathLike
        The model, or the path of its file, in exact mode and without adapters.
    data : str, os.PathLike or iterable of int
        The path of a text file in UTF-8 or of a folder of them, a text (longer than 255
        characters, or with a line break), or ids.
    rank : int
        The rows of A and the columns of B.
    alpha : float, optional
        A change is ``alpha / rank`` times B A. Default: ``2 * rank``.
    targets : str or sequence of str, optional
        The tensors to change: patterns of their names, such as ``"attn_q"``, ``"blk.3.*"``,
        ``"ffn_*"``, ``"output"`` or ``"token_embd"``. Names may be whole, without ``.weight``, or
        without ``blk.N.``, too. Default: every matrix of the blocks, except experts and routers.
    mask : array_like of bool, optional
        Which ids of `data` are learnt: for example those of the answers, and not the questions.
        The others are read, but have no loss. Only for ids.
    steps : int
    batch : int
        Sequences of a step.
    context : int, optional
        Tokens of a sequence. Default: 128, or the context of the model if that is shorter.
    micro_batch : int, optional
        Sequences that run together, a divisor of `batch`. Fewer take less memory. Sums have
        another order then, and so other bits.
    lr : float, optional
        The learning rate. Default: 0.001.
    warmup : int, optional
        Steps until the full learning rate. Default: a tenth of the steps, at most 50.
    weight_decay : float, optional
        Default: 0.
    seed : int
        Of A and of the choice of windows.
    out : str or os.PathLike, optional
        The adapter's file, in llama.cpp's format. It is written ten times during the run and at its
        end. Beside it are the checkpoint (``.training``), and the adapter with the smallest loss of
        the held out part (``.best``).
    resume : str or os.PathLike, optional
        The adapter's file of a run to continue. The model and the data must be the same. `rank`,
        `alpha`, `targets`, `batch` and so on are those of the run; `steps` may be given anew.
    validation : float
        The part of the data at its end that is held out.
    evaluate : callable, optional
        ``evaluate(run)`` is called whenever the loss of the held out part is measured. If it
        returns False, the training stops.
    evaluate_every : int, optional
        Steps between two measurements. Default: a tenth of the run.
    progress : bool
        Whether to show a progress bar.

    Returns
    -------
    LoraRun
        ``run.model`` is the model with the adapter. ``run.adapter``, ``run.log``, ``run.path``.

    Raises
    ------
    ValueError
        If an argument is wrong, a pattern fits no tensor, the data are too short, or model or data
        of a resumed run differ.
    tinyllm.UnsupportedError
        If the gradient of an operation of the model is not implemented. The message names it.
    FileNotFoundError
        If there is no such file.

    Warns
    -----
    RuntimeWarning
        As `train`.

    Notes
    -----
    B is 0 at first, and A is uniform in ±1/sqrt(inputs), as in PEFT; of an embedding it is the
    other way round. If the tokenizer adds BOS to texts, BOS replaces the first token of each
    window.

    Examples
    --------
    >>> import tinyllm as tl
    >>> run = tl.lora(tl.load(), "All happy families are alike. " * 20, steps=2, context=16)
    >>> run.log.loss.shape
    (2,)
    >>> run.save("adapter.gguf")
    >>> len(tl.load(adapters=["adapter.gguf"]).adapters)
    1
    """
    found = read_data(data)
    learnt = read_mask(mask, found)
    base = _checked(model)
    if resume is not None:
        trainer = _Trainer.resumed(base, found, learnt, resume, steps)
        out = resume
    else:
        settings = LoraSettings.of(
            base.config,
            rank=rank,
            alpha=alpha,
            targets=tuple(_chosen(base, targets)),
            steps=steps,
            batch=batch,
            context=min(_CONTEXT, base.core.config["max_context"]) if context is None else context,
            micro_batch=micro_batch,
            lr=lr,
            warmup=warmup,
            weight_decay=weight_decay,
            seed=seed,
            validation=validation,
            base=base.fingerprint,
        )
        trainer = _Trainer(base, found, learnt, settings, _initial(base, settings))
    result = trainer.run(out, evaluate_every, evaluate, progress)
    assert isinstance(result, LoraRun)
    return result


def _checked(model: Any) -> Model:
    base = model if isinstance(model, Model) else load(model)
    base.need_logits()
    if base.mode != "exact":
        raise ValueError(f"model has the mode {base.mode!r}; expected 'exact'")
    if base.adapters:
        raise ValueError(f"model has {len(base.adapters)} adapters; expected a model without")
    return base


class _Trainer(Loop):
    """A run of `lora`."""

    def __init__(
        self,
        base: Model,
        found: Any,
        mask: Any,
        settings: LoraSettings,
        image: bytes,
        history: History = (),
        step: int = 0,
    ) -> None:
        longest = base.core.config["max_context"]
        if settings.context > longest:
            raise ValueError(f"context is {settings.context}; the model has at most {longest}")
        self._base = base
        facts = [settings.to_json(), digest(found, mask), hashlib.sha256(image).hexdigest()]
        history = extended(history, "resume" if history else "lora", step, facts)
        network = Network(image, base.threads, (), base)
        super().__init__(network, found, settings, history, step, mask)

    @staticmethod
    def resumed(base: Model, found: Any, mask: Any, path: Any, steps: int) -> _Trainer:
        """Return a run that continues."""
        state = read_state(path)
        given = state.settings
        if not isinstance(given, LoraSettings):
            raise ValueError(f"{path} is a run of train; expected one of lora")
        if given.base != base.fingerprint:
            raise ValueError("model differs from that of the run to resume; expected the same")
        if digest(found, mask) != state.data:
            raise ValueError("data differs from that of the run to resume; expected the same text")
        settings = LoraSettings(**{**given.__dict__, "steps": steps})
        image = bytes(state.image)
        trainer = _Trainer(base, found, mask, settings, image, state.history, state.step)
        trainer.take_over(state)
        return trainer

    def _new_run(self, out: Path | None) -> LoraRun:
        run = LoraRun(bytes(self.network.image), self._log, self.settings, self._step, out)
        run.base = self._base
        return run


# ---- the first adapter ----


def _chosen(model: Model, patterns: str | Sequence[str] | None) -> list[str]:
    """Return the names of the tensors to change."""
    steps = targets(model.steps)
    if patterns is None:
        return [
            name
            for name, step in steps.items()
            if step.op == "linear" and name.startswith("blk.") and _ROUTERS not in name
        ]
    wanted: set[str] = set()
    if not patterns:
        raise ValueError("targets is empty; expected at least one pattern")
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        if not isinstance(pattern, str):
            raise TypeError(f"targets holds {pattern!r}; expected patterns of names")
        fits = {
            name for name in steps if any(fnmatch.fnmatchcase(n, pattern) for n in _names(name))
        }
        able = {name for name in fits if steps[name].op in ("linear", "embed")}
        if not able:
            kinds = sorted({steps[name].op for name in fits})
            raise ValueError(
                f"targets has {pattern!r}, which fits "
                + (f"only tensors of the op {', '.join(kinds)}" if fits else "no tensor")
                + "; expected patterns of matrices or of the embedding, such as 'attn_q'"
            )
        wanted |= able
    return [name for name in steps if name in wanted]


def _names(tensor: str) -> list[str]:
    """Return the names by which a pattern may mean a tensor."""
    short = tensor.removesuffix(".weight")
    names = [tensor, short]
    if tensor.startswith("blk."):
        names += [name.split(".", 2)[2] for name in names]
    return names


def _initial(model: Model, settings: LoraSettings) -> bytes:
    """Return the file of the adapter before the first step."""
    random = np.random.default_rng(settings.seed)
    steps = targets(model.steps)
    tensors: dict[str, Float32] = {}
    for name in settings.targets:
        *rows, inputs = matrix_shape(name, model.weights)
        outputs, rank = int(np.prod(rows)), settings.rank
        a, b = (rank, inputs), (outputs, rank)
        if steps[name].op == "embed":  # A is the table
            tensors[f"{name}.lora_a"] = np.zeros((outputs, rank), np.float32)
            tensors[f"{name}.lora_b"] = random.standard_normal((inputs, rank), np.float32)
            continue
        bound = inputs**-0.5
        tensors[f"{name}.lora_a"] = random.uniform(-bound, bound, a).astype(np.float32)
        tensors[f"{name}.lora_b"] = np.zeros(b, np.float32)
    keys = {
        "general.type": "adapter",
        "general.architecture": model.config.architecture,
        "general.name": "tinyllm",
        "adapter.type": "lora",
        "adapter.lora.alpha": ("FLOAT32", settings.alpha),
    }
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "adapter.gguf"
        write_gguf(path, keys, tensors)
        return path.read_bytes()
