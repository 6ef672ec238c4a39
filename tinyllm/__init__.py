"""Open a GGUF language model, run it on the CPU, and read its inner values as NumPy arrays.

Start with `load`:

>>> import tinyllm as tl
>>> model = tl.load()
>>> trace = model.trace("ROMEO:")
>>> trace["blk.0.resid_post"].shape == (len(trace.tokens), model.config.width)
True
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

#: Public names and their modules. They are imported on first use, so that `import tinyllm` is fast.
#: `__init__.pyi` has the same names for type checkers.
_HOMES = {
    "CPU": "runtime.machine",
    "Config": "architectures.config",
    "Edit": "trace.edits",
    "Error": "errors",
    "FormatError": "errors",
    "GGUF": "files.gguf",
    "Generation": "generation.result",
    "GenerationStream": "generation.stream",
    "Grammar": "grammar.grammar",
    "Imatrix": "quantization.imatrix",
    "Memory": "runtime.machine",
    "Model": "model",
    "Plan": "trace.arena",
    "Sampler": "sampling.sampler",
    "Session": "runtime.session",
    "StreamDecoder": "tokenizer.stream",
    "TensorSource": "files.gguf_write",
    "Tokenizer": "tokenizer.base",
    "Trace": "trace.trace",
    "UnsupportedError": "errors",
    "Weight": "files.gguf",
    "add": "trace.edits",
    "apply": "trace.edits",
    "attention_entropy": "analysis.heads",
    "attribution": "analysis.attribution",
    "compare_quantizations": "quantization.compare",
    "convert": "conversion.convert",
    "cpu": "runtime.machine",
    "imatrix": "quantization.imatrix",
    "induction_scores": "analysis.heads",
    "kl": "evaluation.scoring",
    "lens": "analysis.lens",
    "load": "model",
    "load_tokenizer": "tokenizer.registry",
    "mean": "trace.edits",
    "ov_circuit": "analysis.circuits",
    "patch": "trace.edits",
    "patch_sweep": "analysis.sweep",
    "qk_circuit": "analysis.circuits",
    "quantize": "quantization.quantize",
    "read": "trace.saved",
    "scale": "trace.edits",
    "set": "trace.edits",
    "write_gguf": "files.gguf_write",
    "zero": "trace.edits",
}

__all__ = [*_HOMES, "__version__"]


#: Public modules, as in ``tl.plot.attention``. They are also imported on first use.
_MODULES = ("chat", "errors", "grammar", "plot", "reference", "tokenizer")


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f".{name}", __name__)
    if name in _HOMES:
        value = getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
