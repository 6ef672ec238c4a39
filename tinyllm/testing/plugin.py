"""The plugin for pytest, which finds it by its entry point. Fixtures import what they need."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from ..model import Model

__all__ = ["assert_same", "tiny_model"]


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Model]:
    """Make small random models: ``tiny_model("qwen3", layers=2)``.

    The arguments are those of `tinyllm.testing.random_model`. ``.path`` of the model is its file.
    The same arguments give the same model during a test run.
    """
    made: dict[str, Model] = {}

    def make(architecture: str = "llama", layers: int | None = None, **options: Any) -> Model:
        from .models import random_model

        key = repr((architecture, layers, sorted(options.items())))
        if key not in made:
            path = tmp_path_factory.mktemp("tinyllm") / f"{architecture}.gguf"
            made[key] = random_model(architecture, layers, path=path, **options)
        return made[key]

    return make


@pytest.fixture(scope="session")
def assert_same() -> Callable[..., None]:
    """Return `tinyllm.testing.assert_same`."""
    from .assertions import assert_same as function

    return function
