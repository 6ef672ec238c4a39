"""`Arch`: what a file leaves unsaid about its architecture."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

__all__ = ["Arch"]


@dataclasses.dataclass(frozen=True)
class Arch:
    """What a file leaves unsaid about its architecture.

    Everything that keys and tensors of a file say is read from them: sizes, RoPE's base and
    scaling, whether biases and an output matrix exist.

    Attributes
    ----------
    block : callable
        The builder of a block: how its branches join the residual stream. See `blocks`.
    mixer : callable
        The builder of what lets tokens see each other. See `mixers`.
    ffn : callable
        The builder of the feed-forward network. See `feed_forward`.
    rope : str
        Which values of a head turn together: ``"pairs"`` (2j, 2j + 1), or ``"halves"`` (j and
        j + n/2).
    biases : tuple of str
        The steps that must have a bias; those of all others are used where the file has them.
    classes : tuple of str
        The class names of Hugging Face's checkpoints.
    """

    block: Callable[..., Any]
    mixer: Callable[..., Any]
    ffn: Callable[..., Any]
    rope: str
    biases: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()
