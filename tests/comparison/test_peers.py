"""What the peers say where another engine is not installed. tests/live compares the numbers."""

import importlib

import pytest

import tinyllm as tl


@pytest.mark.parametrize(
    ("peer", "missing", "command"),
    [
        (tl.peers.llama_cpp, "llama_cpp", "pip install llama-cpp-python"),
        (tl.peers.hugging_face, "torch", "pip install torch transformers"),
        (tl.peers.hugging_face, "transformers", "pip install torch transformers"),
    ],
)
def test_a_missing_package_is_named(peer, missing, command, monkeypatch):
    real = importlib.import_module

    def without(name, *arguments):
        if name == missing:
            raise ImportError(f"No module named {name!r}", name=name)
        return object() if name == "torch" else real(name, *arguments)

    monkeypatch.setattr(importlib, "import_module", without)
    with pytest.raises(ImportError, match=command) as caught:
        peer("demo", [1, 2, 3])
    assert caught.value.name == missing
