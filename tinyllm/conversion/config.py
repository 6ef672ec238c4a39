"""The ``config.json`` of a Hugging Face checkpoint, in the spellings of all versions.

transformers 4 wrote ``rope_theta`` and ``rope_scaling``; transformers 5 writes ``rope_parameters``,
with one entry per layer type where layers differ. Multimodal models have the numbers of their
language model under ``text_config``. Old classes have names of their own, such as ``n_embd``.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import FormatError, wrong
from ..files.arrays import parse_json

__all__ = ["CheckpointConfig", "Rope", "read_checkpoint_config"]

#: Names of the object that holds the numbers of the language model of a multimodal model.
_TEXT_CONFIGS = ("text_config", "llm_config", "language_config", "lm_config")

_LOCAL_BASES = ("rope_local_base_freq", "local_rope_theta", "rope_local_theta", "swa_rope_theta")
_BASES = ("global_rope_theta", "rope_theta", "rotary_emb_base")


class Rope(dict[str, Any]):
    """The RoPE parameters of one layer type, as transformers 5 names them.

    Attributes
    ----------
    base : float
        Base of the frequencies.
    type : str
        ``"default"``, ``"linear"``, ``"yarn"``, ``"llama3"``, ``"longrope"`` and so on.
    rotated : float
        The fraction of a head that is rotated.
    """

    base: float
    type: str
    rotated: float


class CheckpointConfig:
    """The values of a ``config.json``, with access that checks them.

    Parameters
    ----------
    values : mapping of str to object
        The JSON object.
    defaults : mapping of str to object, optional
        Values for keys that the file leaves out, because they are the class's defaults.

    Examples
    --------
    >>> from tinyllm.conversion.config import CheckpointConfig
    >>> config = CheckpointConfig({"n_embd": 8, "n_head": 2, "rope_theta": 500.0})
    >>> config.width, config.head_size, config.rope().base
    (8, 4, 500.0)
    """

    def __init__(
        self, values: Mapping[str, Any], defaults: Mapping[str, Any] | None = None
    ) -> None:
        self.file = values
        inner: Mapping[str, Any] = next(
            (values[name] for name in _TEXT_CONFIGS if isinstance(values.get(name), dict)), {}
        )
        self.values: dict[str, Any] = {**(defaults or {}), **values, **inner}

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the model's classes."""
        classes = self.file.get("architectures")
        if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
            raise wrong("architectures of config.json", classes, "a list of class names")
        return tuple(classes)

    def get(self, *names: str, default: Any = None) -> Any:
        """Return the first of these keys that is there and not null."""
        return next((v for n in names if (v := self.values.get(n)) is not None), default)

    def integer(self, *names: str, default: int | None = None) -> int:
        """Return an integer that is not negative. Without a default, the key is required."""
        value = self.get(*names, default=default)
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**31:
            raise self._wrong(names, value, "an integer from 0 to 2**31 - 1")
        return value

    def number(self, *names: str, default: float | None = None) -> float:
        """Return a number. Without a default, the key is required."""
        value = self.get(*names, default=default)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self._wrong(names, value, "a number")
        return float(value)

    def _wrong(self, names: tuple[str, ...], value: Any, expected: str) -> FormatError:
        name = next((n for n in names if self.values.get(n) is not None), names[0])
        if value is None:
            return FormatError(
                f"config.json has no {' or '.join(names)}; expected {expected}",
                field=names[0],
                expected=expected,
            )
        return wrong(f"{name} of config.json", value, expected, shown=f"{value!r:.80}")

    @property
    def layers(self) -> int:
        """Number of blocks."""
        pattern = self.get("hybrid_override_pattern", "layers_block_type")
        if pattern is not None and isinstance(pattern, str | list):  # Nemotron-H
            return len(pattern)
        return self.integer("num_hidden_layers", "n_layer", "n_layers", "num_layers")

    @property
    def width(self) -> int:
        """Size of the residual stream."""
        return self.integer("hidden_size", "n_embd", "d_model", "dim")

    @property
    def heads(self) -> int:
        """Number of query heads."""
        return self._heads(self.integer("num_attention_heads", "n_head", "n_heads"))

    @property
    def kv_heads(self) -> int:
        """Number of kv heads."""
        return self._heads(
            self.integer("num_key_value_heads", "num_kv_heads", "n_head_kv", default=self.heads)
        )

    def _heads(self, count: int) -> int:
        if count == 0:
            raise wrong("num_attention_heads of config.json", count, "a positive number")
        return count

    @property
    def head_size(self) -> int:
        """Size of a head of queries and keys."""
        return self.integer("head_dim", default=self.width // self.heads)

    @property
    def layer_types(self) -> list[str]:
        """The kind of each layer, for example ``"sliding_attention"``. Empty if not stated."""
        types = self.get("layer_types", default=[])
        pattern = self.get("sliding_window_pattern")
        if not types and pattern:  # one layer of each period is global, or a word such as LLLG
            word = pattern if isinstance(pattern, str) else "L" * (int(pattern) - 1) + "G"
            local = [word[i % len(word)] == "L" for i in range(self.layers)]
            types = ["sliding_attention" if here else "full_attention" for here in local]
        if not isinstance(types, list) or (types and len(types) < self.layers):
            raise self._wrong(("layer_types",), types, f"a list of {self.layers} names")
        return [str(kind) for kind in types[: self.layers]]

    def rope(self, kind: str = "full_attention") -> Rope:
        """Return the RoPE parameters of the layers of one type."""
        stored = self.get("rope_parameters", "rope_scaling", default={})
        if not isinstance(stored, dict):
            raise self._wrong(("rope_parameters",), stored, "an object")
        nested = [value for value in stored.values() if isinstance(value, dict)]
        local = self.get(*_LOCAL_BASES)
        if nested:
            rope = Rope(stored.get(kind) or nested[0])
        elif kind == "sliding_attention" and local is not None:
            rope = Rope(rope_theta=local)  # its layers are not scaled
        else:
            rope = Rope(stored)
        base = rope.get("rope_theta", self.get(*_BASES, default=10000.0))
        rotated = rope.get(
            "partial_rotary_factor",
            self.get("partial_rotary_factor", "rotary_pct", "rope_pct", default=1.0),
        )
        rope.type = str(rope.get("rope_type", rope.get("type", "default"))).lower()
        if not isinstance(base, int | float) or not isinstance(rotated, int | float):
            raise self._wrong(("rope_parameters",), stored, "numbers as the base and the fraction")
        rope.base, rope.rotated = float(base), float(rotated)
        return rope


def read_checkpoint_config(folder: str | os.PathLike[str]) -> CheckpointConfig:
    """Read the ``config.json`` of a folder.

    Parameters
    ----------
    folder : str or os.PathLike

    Returns
    -------
    CheckpointConfig

    Raises
    ------
    tinyllm.FormatError
        If it is not a JSON object.
    OSError
        If it cannot be read.
    """
    path = Path(os.fsdecode(folder)) / "config.json"
    try:
        values = parse_json(path.read_bytes(), "config.json")
        if not isinstance(values, dict):
            raise wrong("config.json", values, "an object", shown=f"{values!r:.80}")
    except FormatError as error:
        error.path = str(path)
        raise
    return CheckpointConfig(values)
