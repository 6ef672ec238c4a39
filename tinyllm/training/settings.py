"""What a training run is told: the shape of the model, the steps and the optimizer."""

from __future__ import annotations

import dataclasses
import json
import math
from typing import Any

import numpy as np

from ..architectures.config import Config
from ..base.checks import choice, finite, integer

__all__ = ["LoraSettings", "Settings"]


@dataclasses.dataclass(frozen=True)
class Settings:
    """The arguments of a training run, checked.

    Attributes
    ----------
    layers, width, heads, kv_heads, ffn_width, context : int
        The shape of the model.
    batch, steps : int
        Sequences of a step, and the number of steps.
    micro_batch : int
        Sequences that run together.
    positions : str
        ``"rope"``, ``"learned"`` or ``"none"``.
    optimizer : str
        ``"muon"`` or ``"adamw"``.
    lr : float
        The learning rate of the matrices.
    warmup : int
        Steps until the full learning rate.
    weight_decay : float
        Of matrices.
    clip : float
        The most norm of the gradient of all weights.
    dropout : float
        The probability with which a value is dropped.
    tied : bool
        Whether the embedding is the output matrix too.
    seed : int
    validation : float
        The part of the data that is held out, at its end.
    """

    layers: int
    width: int
    heads: int
    kv_heads: int
    ffn_width: int
    context: int
    batch: int
    steps: int
    micro_batch: int
    positions: str = "rope"
    optimizer: str = "muon"
    lr: float = 0.02
    warmup: int = 0
    weight_decay: float = 0.0
    clip: float = 1.0
    dropout: float = 0.0
    tied: bool = False
    seed: int = 0
    validation: float = 0.05

    @staticmethod
    def make(*, shape_is_known: bool = False, **given: Any) -> Settings:
        """Return settings from the arguments of `train`; None stands for a default.

        Parameters
        ----------
        shape_is_known : bool
            Whether the shape is that of a model, which need not be one that `train` can make.
        **given
            The attributes.

        Returns
        -------
        Settings

        Raises
        ------
        ValueError, TypeError
            If a value is wrong. The message names it.
        """
        given = {name: value for name, value in given.items() if value is not None}
        for name in ("layers", "width", "heads", "context", "batch", "steps"):
            if name not in given:
                raise TypeError(f"{name} is missing; expected a positive integer")
        positions = choice("positions", given.get("positions", "rope"), _POSITIONS)
        optimizer = choice("optimizer", given.get("optimizer", "muon"), tuple(_RATES))
        width, heads = given["width"], given["heads"]
        gated = positions == "rope"
        defaults = {
            "kv_heads": heads,
            "ffn_width": -(-8 * width // 24) * 8 if gated else 4 * width,
            "micro_batch": _micro_batch(given["batch"], given["context"]),
            "lr": _RATES[optimizer],
            "warmup": min(50, given["steps"] // 10),
            "weight_decay": 0.1 if optimizer == "adamw" else 0.0,
        }
        settings = Settings(**{**defaults, **given})
        settings._check()
        if not shape_is_known:
            settings._check_shape()
        return settings

    def _check(self) -> None:
        for name in ("layers", "width", "heads", "kv_heads", "ffn_width", "context", "batch"):
            _positive(name, getattr(self, name))
        _positive("steps", self.steps)
        _positive("micro_batch", self.micro_batch)
        if self.batch % self.micro_batch:
            raise ValueError(
                f"micro_batch is {self.micro_batch}; expected a divisor of batch, {self.batch}"
            )
        if not 0 <= self.validation < 1:
            raise ValueError(f"validation is {self.validation}; expected a part from 0 to below 1")
        if not (self.lr > 0 and math.isfinite(self.lr)):
            raise ValueError(f"lr is {self.lr}; expected a positive number")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout is {self.dropout}; expected a probability below 1")
        if not self.clip > 0:
            raise ValueError(f"clip is {self.clip}; expected a positive number")

    def _check_shape(self) -> None:
        if self.width % self.heads:
            raise ValueError(
                f"width is {self.width} and heads {self.heads}; expected a multiple of heads"
            )
        if self.heads % self.kv_heads:
            raise ValueError(
                f"heads is {self.heads} and kv_heads {self.kv_heads}; expected a multiple"
            )
        if self.positions == "rope" and self.width // self.heads % 2:
            raise ValueError(
                f"a head has {self.width // self.heads} values; RoPE needs an even number"
            )
        if self.positions != "rope" and self.kv_heads != self.heads:
            raise ValueError(
                f"kv_heads is {self.kv_heads} with positions {self.positions!r}; expected "
                f"{self.heads}, because the architecture gpt2 has no grouped heads"
            )

    def factor(self, step: int) -> float:
        """Return what the learning rate is multiplied with in a step, from 0.

        It rises over the warm-up, and then falls as a cosine to nearly 0 at the last step.
        """
        if step < self.warmup:
            return (step + 1) / self.warmup
        done = (step - self.warmup) / max(1, self.steps - self.warmup)
        return 0.5 * (1 + math.cos(math.pi * done))

    def to_json(self) -> str:
        """Return the settings as text."""
        return json.dumps(dataclasses.asdict(self))

    @staticmethod
    def from_json(text: str) -> Settings:
        """Return the settings that `to_json` wrote."""
        values = json.loads(text)
        kind = LoraSettings if "rank" in values else Settings
        return kind(**values)


@dataclasses.dataclass(frozen=True)
class LoraSettings(Settings):
    """The arguments of `lora`, checked. The shape is that of the model.

    Attributes
    ----------
    rank : int
    alpha : float
        A change is multiplied by ``alpha / rank``.
    targets : tuple of str
        The tensors that are changed.
    base : str
        The fingerprint of the model.
    """

    rank: int = 8
    alpha: float = 16.0
    targets: tuple[str, ...] = ()
    base: str = ""

    @staticmethod
    def of(config: Config, **given: Any) -> LoraSettings:
        """Return settings from the arguments of `lora`; None stands for a default.

        Parameters
        ----------
        config : Config
            That of the model.
        **given
            The attributes, without the shape.

        Returns
        -------
        LoraSettings

        Raises
        ------
        ValueError, TypeError
            If a value is wrong. The message names it.
        """
        given = {name: value for name, value in given.items() if value is not None}
        for name in ("rank", "batch", "steps", "context"):
            _positive(name, given[name])
        defaults = {
            "layers": config.layers,
            "width": config.width,
            "heads": _most(config.heads),
            "kv_heads": _most(config.kv_heads),
            "ffn_width": _most(config.ffn_width),
            "micro_batch": given["batch"],
            "optimizer": "adamw",
            "lr": 1e-3,
            "warmup": min(50, given["steps"] // 10),
            "alpha": 2.0 * given["rank"],
        }
        settings = LoraSettings(**{**defaults, **given})
        settings._check()
        finite("alpha", settings.alpha)
        if not settings.alpha > 0:
            raise ValueError(f"alpha is {settings.alpha}; expected a positive number")
        return settings


def _most(value: Any) -> int:
    """Return a number of a config that may differ between blocks: the largest."""
    return int(np.max(value))


_POSITIONS = ("rope", "learned", "none")

#: The learning rate of each optimizer for matrices.
_RATES = {"muon": 0.02, "adamw": 2e-3}


#: Tokens that run together if `micro_batch` is not given. More take more memory, and no less time.
_TOKENS = 1024


def _micro_batch(batch: Any, context: Any) -> Any:
    """Return the default of `micro_batch`: a divisor of `batch` with few enough tokens."""
    if not (isinstance(batch, int) and isinstance(context, int) and batch > 0 and context > 0):
        return batch  # which is refused later, or is an integer of NumPy
    most = max(1, _TOKENS // context)
    return next(n for n in range(min(most, batch), 0, -1) if batch % n == 0)


def _positive(name: str, value: Any) -> None:
    if integer(name, value) < 1:
        raise ValueError(f"{name} is {value}; expected a positive integer")
