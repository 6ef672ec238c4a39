"""Whether a model file loads: read before a changed copy of it is written."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Mapping
from typing import Any

from .. import _core
from .._core import Weight
from ..architectures.plan import ForwardPlan
from ..architectures.table import read_model
from ..errors import Error, UnsupportedError
from ..files.gguf import Metadata
from ..files.model_file import ModelFile, check_holds_model
from ..tokenizer.registry import tokenizer_from_metadata

__all__ = ["check_change", "plain", "read_plan", "typed"]


def typed(file: ModelFile) -> dict[str, Any]:
    """Return the metadata of a file with their types, without the keys of a split file.

    Parameters
    ----------
    file : ModelFile

    Returns
    -------
    dict of str to object
        For `tinyllm.write_gguf`.
    """
    metadata = file.metadata
    keys = metadata.typed() if isinstance(metadata, Metadata) else dict(metadata)
    return {key: value for key, value in keys.items() if not key.startswith("split.")}


def plain(value: Any) -> Any:
    """Return a value for `tinyllm.write_gguf` without its type."""
    explicit = isinstance(value, tuple) and len(value) == 2 and isinstance(value[0], str)
    return value[1] if explicit else value


def read_plan(metadata: Mapping[str, Any], tensors: Mapping[str, Weight]) -> ForwardPlan:
    """Return the plan of a model, and raise if `tinyllm.load` would.

    Parameters
    ----------
    metadata : mapping of str to object
        Values, with or without types.
    tensors : mapping of str to Weight
        By the names that they will have.

    Returns
    -------
    ForwardPlan

    Raises
    ------
    tinyllm.FormatError, tinyllm.UnsupportedError
        As `tinyllm.load`. An unknown tokenizer is no error there.
    """
    values = {key: plain(value) for key, value in metadata.items()}
    named = {
        name: weight if weight.name == name else _renamed(name, weight)
        for name, weight in tensors.items()
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        check_holds_model(ModelFile(values, named, None))
        config, steps = read_model(values, named)
        with contextlib.suppress(UnsupportedError):
            tokenizer_from_metadata(values)
        _core.Model(
            steps.lowered(),
            named.values(),
            layers=config.layers,
            max_context=config.context_length,
        )
    return steps


def _renamed(name: str, weight: Weight) -> Weight:
    return Weight(name, weight.shape, weight.type, weight.raw.reshape(-1))


def check_change(
    file: ModelFile, metadata: Mapping[str, Any], tensors: Mapping[str, Weight]
) -> None:
    """Raise if a file loads, and its changed copy would not.

    Parameters
    ----------
    file : ModelFile
    metadata : mapping of str to object
        Of the copy.
    tensors : mapping of str to Weight
        Of the copy.

    Raises
    ------
    ValueError
        With the reason why the copy would not load.
    """
    try:
        read_plan(file.metadata, file.weights)
    except (Error, ValueError, KeyError):
        return  # such as an adapter or an importance matrix
    try:
        read_plan(metadata, tensors)
    except (Error, ValueError, TypeError, KeyError) as error:
        raise ValueError(
            f"the changed file would not load: {error}; force=True writes it anyway"
        ) from None
