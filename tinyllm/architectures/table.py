"""The supported architectures, one row each, and the plan of a model file.

A row describes what llama.cpp computes for the architecture of that name (llama.cpp, src/models).
Rows were checked against the Hugging Face classes.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Collection, Mapping
from typing import Any

from ..errors import FormatError, UnsupportedError
from .arch import Arch
from .blocks import model, serial
from .builder import Builder
from .config import Config, read_config
from .feed_forward import gated
from .mixers import attention
from .plan import ForwardPlan

__all__ = ["ARCHITECTURES", "find", "make_plan", "read_model"]

LLAMA = Arch(
    block=serial,
    mixer=attention,
    ffn=gated,
    rope="pairs",
    classes=("LlamaForCausalLM", "MistralForCausalLM"),
)

#: The rows, by ``general.architecture``.
ARCHITECTURES: dict[str, Arch] = {
    "llama": LLAMA,
    "qwen2": dataclasses.replace(
        LLAMA,
        rope="halves",
        biases=("attn_q", "attn_k", "attn_v"),
        classes=("Qwen2ForCausalLM",),
    ),
}


def find(architecture: Any) -> Arch:
    """Return the row of an architecture.

    Parameters
    ----------
    architecture : str
        ``general.architecture`` of a file.

    Returns
    -------
    Arch

    Raises
    ------
    tinyllm.FormatError
        If it is not a str.
    tinyllm.UnsupportedError
        If the architecture is not supported.

    Examples
    --------
    >>> from tinyllm.architectures.table import find
    >>> find("qwen2").rope
    'halves'
    """
    if not isinstance(architecture, str):
        raise FormatError(
            f"general.architecture is {architecture!r}; expected the name of an architecture",
            field="general.architecture",
            value=architecture,
            expected="the name of an architecture",
        )
    if architecture not in ARCHITECTURES:
        raise UnsupportedError(
            f"general.architecture is {architecture!r}; this version supports "
            f"{', '.join(ARCHITECTURES)}. The file's metadata, weights and tokenizer can be read "
            "with tinyllm.GGUF and tinyllm.load_tokenizer"
        )
    return ARCHITECTURES[architecture]


def make_plan(
    config: Any, tensors: Collection[str] = (), metadata: Mapping[str, Any] | None = None
) -> ForwardPlan:
    """Return the plan of a model's forward pass.

    Parameters
    ----------
    config : Config
    tensors : collection of str
        Names of the file's tensors. They decide which optional parts there are: biases and an
        output matrix.
    metadata : mapping, optional
        The file's keys, so that the plan can name the source of each number.

    Returns
    -------
    ForwardPlan

    Raises
    ------
    tinyllm.UnsupportedError
        If the architecture or its RoPE scaling is not supported.

    Examples
    --------
    >>> import tinyllm
    >>> from tinyllm.architectures.table import make_plan
    >>> model = tinyllm.load()
    >>> len(make_plan(model.config, model.weights)) == len(model.steps)
    True
    """
    builder = Builder(config, find(config.architecture), tensors, metadata or {})
    model(builder)
    return ForwardPlan(builder.steps, config.layers)


def read_model(
    metadata: Mapping[str, Any], tensors: Mapping[str, Any], strict: bool = True
) -> tuple[Config, ForwardPlan]:
    """Return the config and the plan of a model file.

    Parameters
    ----------
    metadata : mapping
        GGUF keys and values, such as ``tinyllm.GGUF(path).metadata``.
    tensors : mapping of str to Weight
    strict : bool
        If True, a tensor that no step uses is an error. If False, it causes a warning.

    Returns
    -------
    config : Config
    plan : ForwardPlan

    Raises
    ------
    tinyllm.FormatError
        If a key is missing or has an invalid value. ``.field`` names it.
    tinyllm.UnsupportedError
        If the architecture is not supported, or if the file has tensors that no step uses.

    Examples
    --------
    >>> import tinyllm
    >>> from tinyllm.architectures.table import read_model
    >>> model = tinyllm.load()
    >>> read_model(model.metadata, model.weights)[0] == model.config
    True
    """
    find(metadata.get("general.architecture"))
    config = read_config(metadata, tensors)
    plan = make_plan(config, tensors, metadata)
    unused = plan.unused(tensors)
    if unused:
        shown = ", ".join(unused[:5]) + (f" and {len(unused) - 5} more" if len(unused) > 5 else "")
        message = (
            f"the architecture {config.architecture} does not use the tensors {shown}. The file "
            "probably belongs to another architecture, and results without these tensors would "
            "be wrong"
        )
        if strict:
            raise UnsupportedError(f"{message}; strict=False loads the file anyway")
        warnings.warn(message, stacklevel=3)
    return config, plan
