"""Tools for testing another engine: small random models, and an assertion that compares values.

For pytest, both are fixtures, too: ``tiny_model`` and ``assert_same``.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .assertions import assert_same
    from .models import random_model

__all__ = ["assert_same", "random_model"]

#: Imported on first use, because pytest loads this package for every run of tests.
_HOMES = {"assert_same": "assertions", "random_model": "models"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)


def __dir__() -> list[str]:
    return __all__
