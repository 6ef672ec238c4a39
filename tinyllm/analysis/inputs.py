"""Checks of the arguments of analysis functions: model, layer, head, token, taps, weights."""

from __future__ import annotations

from typing import Any

from ..base.checks import index, integer, ranged
from ..base.numeric import Float64
from ..runtime.runner import Runner
from ..trace.trace import Trace

__all__ = ["head_index", "layer_index", "model_of", "need_taps", "token_id", "weight_values"]


def model_of(trace: Trace, model: Runner | None) -> Runner:
    """Return the model of a trace, or `model` if it is given and is the same model."""
    found = trace.source(model)
    assert isinstance(found, Runner)
    return found


def layer_index(model: Runner, layer: Any) -> int:
    """Return the number of a layer, from 0. Negative values count from the end."""
    return index("layer", layer, model.config.layers)


def head_index(model: Runner, layer: int, head: Any) -> int:
    """Return the number of a head of a layer, from 0. Negative values count from the end."""
    return index("head", head, model.config.layer("heads", layer))


def weight_values(model: Runner, name: str | None, rows: Any = None) -> Float64:
    """Return a weight of a step, or some of its rows, in float64."""
    assert name is not None
    values: Float64 = model.weights[name].numpy(rows, dtype="float64")
    return values


def token_id(model: Runner, token: Any, name: str = "token") -> int:
    """Return the id of a token that is given as an id or as its text."""
    if isinstance(token, (str, bytes)):
        if model.tokenizer is None:
            raise ValueError(f"{name} is text, and the model has no tokenizer; expected an id")
        try:
            return model.tokenizer.id(token)
        except KeyError as error:
            raise ValueError(f"{name}: {error.args[0]}") from None
    integer(name, token, "a token id or its text")
    return ranged(name, token, 0, model.config.vocab_size - 1)


def need_taps(trace: Trace, needed: list[str], what: str) -> None:
    """Check that a trace has the taps that a function needs."""
    missing = [name for name in needed if name not in trace]
    if missing:
        shown = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
        raise ValueError(f"{what} needs {shown}; capture it")
