"""`decoder`: the decoder of a model such as T5, for one source."""

from __future__ import annotations

from typing import Any, TypeVar

import numpy as np

from .. import _core
from ..architectures.decoders import made, source
from ..architectures.table import find, read_halves
from ..errors import UnsupportedError
from ..files.model_file import ModelFile
from .runner import Runner

__all__ = ["decoder", "has_decoder", "start_token"]

M = TypeVar("M", bound=Runner)


def has_decoder(model: Runner) -> bool:
    """Return whether a model is an encoder that has a decoder."""
    row = find(model.config.architecture)
    return row.decoder is not None and source(0)[0] not in model.weights


def start_token(model: Runner) -> int:
    """Return the token with which the texts of a decoder begin."""
    key = f"{model.config.architecture}.decoder_start_token_id"
    return int(model.metadata.get(key, 0))


def decoder(model: M, prompt: Any, edits: Any, parse_special: bool) -> M:
    """Return the decoder of a model for one source. See `Model.decoder`."""
    if not has_decoder(model):
        raise ValueError(
            f"the architecture {model.config.architecture} has no decoder that reads a source; "
            "expected one of an encoder and a decoder, such as t5"
        )
    if model.adapters:
        raise UnsupportedError(
            "the model has LoRA adapters, which this version does not take into a decoder; make "
            "the decoder of a model without them, and give it an adapter of the decoder's tensors "
            "with with_adapter"
        )
    taps = [step.tap for step in model.steps if step.tap.startswith("dec.")]
    trace = model.trace(prompt, taps, edits=edits, parse_special=parse_special)
    weights: dict[str, Any] = dict(model.weights)
    for layer in range(len(taps) // 2):
        keys, values = (trace[tap] for tap in made(layer))
        arrays = keys.transpose(1, 0, 2), values.transpose(1, 2, 0)
        for name, array in zip(source(layer), arrays, strict=True):
            weights[name] = _core.Weight(name, array.shape, "F32", np.ascontiguousarray(array))
    longest = model.core.config["max_context"]
    config, steps = read_halves(model.metadata, weights, longest)[-1]
    core = _core.Model(
        steps.lowered(),
        weights.values(),
        layers=config.layers,
        max_context=longest,
        fast=model.mode == "fast",
        cache=model.cache,
    )
    file = ModelFile(model.metadata, weights, model.path)
    tokenizer = model.tokenizer
    if tokenizer is not None and tokenizer.has_text:
        tokenizer = tokenizer.starting_with(start_token(model))
    half = type(model)(core, file, config, steps, tokenizer, model.threads)
    half.mode = model.mode
    return half
