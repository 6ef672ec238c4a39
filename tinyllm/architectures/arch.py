"""`Arch`: the properties of an architecture that a model file does not state."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

__all__ = ["Arch"]


@dataclasses.dataclass(frozen=True)
class Arch:
    """The properties of an architecture that a model file does not state.

    Everything else is read from the keys and tensors of the file: sizes, RoPE's base and scaling,
    and whether biases and an output matrix exist.

    Attributes
    ----------
    block : callable
        Builds a block: how its branches join the residual stream. See `blocks`.
    mixer : callable
        Builds the token mixer, such as attention. See `mixers`.
    ffn : callable
        Builds the feed-forward network. See `feed_forward`.
    rope : str
        Which two values of a head are rotated together: ``"pairs"`` (2j and 2j + 1), or
        ``"halves"`` (j and j + n/2).
    biases : tuple of str
        Linear steps that must have a bias. Other linear steps use a bias if the file has one.
    classes : tuple of str
        Class names in Hugging Face checkpoints.
    """

    block: Callable[..., Any]
    mixer: Callable[..., Any]
    ffn: Callable[..., Any]
    rope: str
    biases: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()
