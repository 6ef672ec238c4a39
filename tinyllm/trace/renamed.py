"""The values of a trace under the names of another library, in its layout."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import NamedTuple

import numpy as np

from .._core import Weight
from ..architectures.plan import ForwardPlan, Step
from ..files.arrays import Array
from .dialects import LIBRARIES, spellings
from .layouts import ROTATED, halves, permuted
from .taps import is_matrix

__all__ = ["renamed"]


class _Value(NamedTuple):
    """A value that gets another name. Without its model, there is no step and no weight."""

    tap: str
    array: Array
    step: Step | None
    weights: Mapping[str, Weight]


def renamed(
    arrays: Mapping[str, Array],
    dialect: str,
    architecture: str,
    known: Collection[str],
    steps: ForwardPlan | None,
    weights: Mapping[str, Weight],
) -> dict[str, Array]:
    """Return values by the names of another library. `Trace.as_` is the public form.

    Parameters
    ----------
    arrays : mapping of str to numpy.ndarray
        Values by our names.
    dialect : str
        ``"hf"``, ``"transformer_lens"`` or ``"llama.cpp"``.
    architecture : str
    known : collection of str
        The taps of the model.
    steps, weights
        Those of the model. None and empty if there is none.

    Returns
    -------
    dict of str to numpy.ndarray

    Raises
    ------
    ValueError
        If the dialect is another.
    """
    library = LIBRARIES.get(dialect) if isinstance(dialect, str) else None
    if library is None or library not in _WRITERS:
        raise ValueError(
            f"dialect is {dialect!r}; expected 'hf', 'transformer_lens' or 'llama.cpp'"
        )
    rotated = library != "llama.cpp" and permuted(architecture)
    found: dict[str, Array] = {}
    for tap, array in arrays.items():
        if rotated and tap.split(".")[-1] in ROTATED:
            array = halves(array)
        value = _Value(tap, array, None if steps is None else steps[tap], weights)
        for name in spellings(tap, known, library):
            if library == "Hugging Face" and _is_gpt(name) != (architecture in _GPTS):
                continue
            written = _WRITERS[library](name, value)
            if written is not None:
                full = _in_model(name) if library == "Hugging Face" else name
                found[f"{full}#2" if full in found else full] = written
                break
    return found


#: Architectures whose modules have GPT-2's names.
_GPTS = ("gpt2", "starcoder")


def _is_gpt(name: str) -> bool:
    return name.startswith(("h.", "wte", "wpe", "ln_f"))


def _in_model(name: str) -> str:
    """Return the name of a module of Hugging Face in the whole model."""
    if name.startswith(("lm_head", "hidden_states[", "attentions[")):
        return name
    return f"transformer.{name}" if _is_gpt(name) else f"model.{name}"


def _hugging_face(name: str, value: _Value) -> Array | None:
    array = value.array
    if name.endswith((".query", ".key")):
        array = array.swapaxes(0, 1)
    elif array.ndim == 3 and not is_matrix(value.tap) and "_norm" not in name:
        array = array.reshape(len(array), -1)
    return array[np.newaxis]


def _transformer_lens(name: str, value: _Value) -> Array | None:
    array = value.array
    if name.endswith("hook_scale"):
        with np.errstate(divide="ignore"):
            return (1 / array)[np.newaxis, ..., np.newaxis]
    if name.endswith("hook_normalized"):
        if value.step is None:
            return None
        weight, bias = (*value.step.weights, None, None)[:2]
        if bias is not None:
            array = array - value.weights[bias].numpy()
        if weight is not None:
            factor = value.weights[weight].numpy()
            if not factor.all():
                return None
            array = array / factor
    return array[np.newaxis]


def _llama_cpp(name: str, value: _Value) -> Array | None:
    word = name.split("-")[0]
    if word == "kqv":
        return value.array.swapaxes(0, 1)
    if word != "kq":
        return value.array
    if value.step is None or value.step.number("cap"):
        return None
    scores = value.array / np.float32(value.step.number("factor"))
    return np.where(np.isfinite(scores), scores, np.float32(0))


_WRITERS: dict[str, Callable[[str, _Value], Array | None]] = {
    "Hugging Face": _hugging_face,
    "TransformerLens": _transformer_lens,
    "llama.cpp": _llama_cpp,
}
