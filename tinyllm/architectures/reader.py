"""`Reader`: typed access to the keys of a model file."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from ..errors import FormatError

__all__ = ["LONGEST", "MOST_VALUES", "Reader"]

#: The core's limits: the largest size of a vector, and the longest context.
MOST_VALUES, LONGEST = 1 << 24, 1 << 30


class Reader:
    """Typed access to the keys ``<architecture>.<name>``. Errors name the key."""

    def __init__(self, metadata: Mapping[str, Any], architecture: str) -> None:
        self.metadata = metadata
        self.architecture = architecture
        self.prefix = architecture + "."
        self.used: set[str] = set()

    def full(self, name: str) -> str:
        """Return the whole name of a key. Those of xIELU have no prefix."""
        return name if name.startswith("xielu.") else self.prefix + name

    def _get(self, name: str, kind: str, convert: Callable[[Any], Any], default: Any) -> Any:
        key = self.full(name)
        self.used.add(name)
        if key not in self.metadata:
            if default is not ...:
                return default
            raise FormatError(f"{key} is missing; expected {kind}", field=key, expected=kind)
        value = self.metadata[key]
        result = convert(value)
        if result is None:
            raise FormatError(
                f"{key} is {value!r:.80}; expected {kind}", field=key, value=value, expected=kind
            )
        return result

    def integer(
        self, name: str, default: Any = ..., most: int = MOST_VALUES, least: int = 1
    ) -> Any:
        """Return an integer from `least` to `most`."""

        def convert(value: Any) -> int | None:
            return _integer(value, least, most)

        kind = f"a positive integer up to {most}" if least == 1 else f"an integer from 0 to {most}"
        return self._get(name, kind, convert, default)

    def number(self, name: str, default: Any = ...) -> Any:
        """Return a finite number as a float."""
        return self._get(name, "a finite number", _finite, default)

    def integers(self, name: str, default: Any = ...) -> Any:
        """Return a tuple of integers from 0."""

        def convert(value: Any) -> Any:
            if not isinstance(value, (np.ndarray, list, tuple)):
                return None
            values = tuple(_integer(v, 0) for v in value)
            return None if None in values else values

        return self._get(name, "integers from 0", convert, default)

    def numbers(self, name: str, layers: int, default: Any = ..., finite: bool = True) -> Any:
        """Return a tuple of one number per layer; one number stands for all of them."""

        def convert(value: Any) -> Any:
            if not isinstance(value, (np.ndarray, list, tuple)):
                value = [value] * layers
            values = tuple(_finite(v) if finite else _number(v) for v in value)
            return None if len(values) != layers or None in values else values

        return self._get(name, f"a number, or {layers} of them, one per layer", convert, default)

    def flag(self, name: str, default: Any = ...) -> Any:
        """Return a bool."""

        def convert(value: Any) -> bool | None:
            return bool(value) if isinstance(value, (bool, np.bool_)) else None

        return self._get(name, "true or false", convert, default)

    def text(self, name: str, default: Any = ...) -> Any:
        """Return a str."""
        return self._get(name, "text", lambda v: v if isinstance(v, str) else None, default)

    def per_layer(self, name: str, layers: int, default: Any = ..., least: int = 1) -> Any:
        """Return one integer, or a tuple with one per layer if they differ."""

        def convert(value: Any) -> Any:
            if not isinstance(value, (np.ndarray, list, tuple)):
                return _integer(value, least)
            values = tuple(_integer(v, least) for v in value)
            if len(values) != layers or None in values:
                return None
            return values[0] if len(set(values)) == 1 else values

        kind = "a positive integer" if least == 1 else "an integer from 0"
        kind = f"{kind} up to {MOST_VALUES}, or {layers} of them, one per layer"
        return self._get(name, kind, convert, default)

    def flags(self, name: str, layers: int, default: Any = ...) -> Any:
        """Return a tuple of one bool per layer."""

        def convert(value: Any) -> Any:
            if not isinstance(value, (np.ndarray, list, tuple)) or len(value) != layers:
                return None
            return tuple(bool(v) for v in value)

        return self._get(name, f"{layers} of true or false, one per layer", convert, default)


def _integer(value: Any, least: int, most: int = MOST_VALUES) -> int | None:
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, (int, np.integer)):
        return None
    return int(value) if least <= value <= most else None


def _number(value: Any) -> float | None:
    if isinstance(value, (bool, np.bool_)) or not isinstance(
        value, (int, float, np.integer, np.floating)
    ):
        return None
    return None if math.isnan(value) else float(value)


def _finite(value: Any) -> float | None:
    number = _number(value)
    return number if number is not None and math.isfinite(number) else None
