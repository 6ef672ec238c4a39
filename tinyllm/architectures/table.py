"""The architectures that run: one row each, and how a file becomes a plan.

Rows say what llama.cpp's graphs of the same name compute (llama.cpp, src/models), checked against
Hugging Face's classes.
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

#: By the name in ``general.architecture``.
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
    """The row of an architecture.

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
        It is not a text.
    tinyllm.UnsupportedError
        There is no such row.

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
            expected="text",
        )
    if architecture not in ARCHITECTURES:
        raise UnsupportedError(
            f"general.architecture is {architecture!r}; this version runs "
            f"{', '.join(ARCHITECTURES)}. The file's metadata, weights and tokenizer can be read "
            "with tinyllm.GGUF and tinyllm.load_tokenizer"
        )
    return ARCHITECTURES[architecture]


def make_plan(
    config: Any, tensors: Collection[str] = (), metadata: Mapping[str, Any] | None = None
) -> ForwardPlan:
    """The steps of a model.

    Parameters
    ----------
    config : Config
    tensors : collection of str
        Names of the file's tensors, which decide what is optional: biases, an output matrix.
    metadata : mapping, optional
        The file's keys, so that the plan can say which of them a number comes from.

    Returns
    -------
    ForwardPlan

    Raises
    ------
    tinyllm.UnsupportedError
        The architecture does not run here.

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
    """The config and the plan of a file.

    Parameters
    ----------
    metadata : mapping
        GGUF keys, as ``tinyllm.GGUF(path).metadata`` gives them.
    tensors : mapping of str to Weight
    strict : bool
        Whether a tensor that no step uses is an error; if not, it is a warning.

    Returns
    -------
    config : Config
    plan : ForwardPlan

    Raises
    ------
    tinyllm.FormatError
        A key is missing or makes no sense; ``.field`` names it.
    tinyllm.UnsupportedError
        The architecture does not run here, or the file has tensors that no step uses.

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
            f"no step of the architecture {config.architecture} uses the tensors {shown}: "
            "the file is of another model than it says, and leaving them out would give other "
            "results"
        )
        if strict:
            raise UnsupportedError(f"{message}; strict=False loads it all the same")
        warnings.warn(message, stacklevel=3)
    return config, plan
