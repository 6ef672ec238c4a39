"""`train`: training a small language model from scratch on the CPU."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from .. import _core
from ..base.checks import integer
from ..model import Model
from ..tokenizer import Tokenizer
from .checkpoint import read_state
from .data import digest, read_data
from .history import extended, history_key
from .initial import initial_parts
from .loop import Loop
from .network import Network
from .parts import Parts, read_parts, weights_digest
from .run import Run
from .settings import Settings
from .vocabulary import vocabulary

__all__ = ["train"]

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
        another order then, and so other bits. Default: as many as have at most 1024 tokens.
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
        Of all matrices, embeddings and the output too. Default: 0 for Muon, 0.1 for AdamW.
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

    Notes
    -----
    If the tokenizer adds BOS to texts, BOS replaces the first token of each window, because a
    prompt begins with it, too.

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
    return trainer.run(out, evaluate_every, evaluate, progress)


class _Trainer(Loop):
    """A run of `train`."""

    def __init__(
        self, parts: Parts, found: Any, settings: Settings, threads: int, made: str, step: int = 0
    ) -> None:
        weights = parts.arrays()
        tokens = parts.metadata.get("tokenizer.ggml.tokens", ())
        facts = [settings.to_json(), digest(found), tokens, weights_digest(weights)]
        history = extended(parts.history, made, step, facts)
        frozen = _FROZEN.get(settings.positions, ())
        keys = {**parts.keys, **history_key(history)}
        if "general.file_type" in keys:
            keys["general.file_type"] = ("UINT32", 0)  # F32
        network = Network.make(keys, weights, threads, frozen)
        super().__init__(network, found, settings, history, step)

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
        trainer.take_over(state)
        return trainer


def _check_nothing_given(shape: dict[str, Any]) -> None:
    """Raise ValueError if something is given that the model to start from says."""
    defaults = {"positions": "rope", "tied": False, "tokenizer": "char"}
    for name, value in shape.items():
        if value != defaults.get(name):
            raise ValueError(f"{name} is {value!r}; expected nothing, because `start` has its own")
