"""Open a GGUF language model, run it on the CPU, and read its inner values as NumPy arrays.

Start with `load`:

>>> import tinyllm as tl
>>> model = tl.load()
>>> trace = model.trace("ROMEO:")
>>> trace["blk.0.resid_post"].shape == (len(trace.tokens), model.config.width)
True
"""

from __future__ import annotations

import builtins
import importlib
from typing import Any

__version__ = "0.1.0"

#: Public names and their modules. They are imported on first use, so that `import tinyllm` is fast.
#: `__init__.pyi` has the same names for type checkers.
_HOMES = {
    "Adapter": "files.adapter",
    "CPU": "runtime.machine",
    "Chunk": "evaluation.chunks",
    "Config": "architectures.config",
    "Device": "runtime.device",
    "DeviceError": "errors",
    "Diagnosis": "diagnosis.report",
    "Diff": "comparison.diff",
    "Difference": "comparison.diff",
    "Dump": "comparison.read",
    "Edit": "trace.edits",
    "Error": "errors",
    "FormatError": "errors",
    "GGUF": "files.gguf",
    "Generation": "generation.result",
    "GenerationStream": "generation.stream",
    "Gradients": "analysis.gradients",
    "Grammar": "grammar.grammar",
    "Imatrix": "quantization.imatrix",
    "Memory": "runtime.machine",
    "Model": "model",
    "Movement": "training.compare",
    "Plan": "trace.arena",
    "Run": "training.run",
    "Sampler": "sampling.sampler",
    "Scalar": "analysis.scalars",
    "Session": "runtime.session",
    "StreamDecoder": "tokenizer.stream",
    "TensorSource": "files.gguf_write",
    "Tokenizer": "tokenizer.base",
    "Trace": "trace.trace",
    "TypeChoice": "quantization.target",
    "UnsupportedError": "errors",
    "Weight": "files.gguf",
    "ablation_sweep": "analysis.sweep",
    "add": "trace.edits",
    "apply": "trace.edits",
    "attention_entropy": "analysis.heads",
    "attribution": "analysis.attribution",
    "attribution_patching": "analysis.gradients",
    "cluster_tokens": "training.compare",
    "collect": "analysis.collect",
    "compare_checkpoints": "training.compare",
    "compare_quantizations": "quantization.compare",
    "convert": "conversion.convert",
    "count_tokens": "training.vocabulary",
    "cpu": "runtime.machine",
    "devices": "runtime.device",
    "diff": "comparison.diff",
    "diff_weights": "editing.compare",
    "doctor": "diagnosis.doctor",
    "edit": "editing.edit",
    "export": "exporting.export",
    "extract_layers": "editing.layers",
    "imatrix": "quantization.imatrix",
    "induction_scores": "analysis.heads",
    "init_model": "training.surgery",
    "init_with": "training.surgery",
    "insert_head": "training.surgery",
    "insert_layer": "training.surgery",
    "integrated_gradients": "analysis.gradients",
    "kl": "evaluation.scoring",
    "lens": "analysis.lens",
    "load": "loading",
    "load_tokenizer": "tokenizer.registry",
    "logit": "analysis.scalars",
    "logprob": "analysis.scalars",
    "lora": "training.lora",
    "mean": "trace.edits",
    "merge_adapter": "training.merge",
    "merge_gguf": "editing.shards",
    "nll": "analysis.scalars",
    "ov_circuit": "analysis.circuits",
    "patch": "trace.edits",
    "patch_sweep": "analysis.sweep",
    "path_patching": "analysis.paths",
    "qk_circuit": "analysis.circuits",
    "quantize": "quantization.quantize",
    "read": "comparison.read",
    "reset_optimizer": "training.surgery",
    "saliency": "analysis.gradients",
    "scale": "trace.edits",
    "score_chunks": "evaluation.chunks",
    "set": "trace.edits",
    "split_gguf": "editing.shards",
    "sweep": "analysis.sweep",
    "tap_value": "analysis.scalars",
    "train": "training.trainer",
    "train_tokenizer": "training.vocabulary",
    "write_gguf": "files.gguf_write",
    "zero": "trace.edits",
}

#: Names that ``from tinyllm import *`` gives: all public ones but those that would hide a builtin.
__all__ = [name for name in (*_HOMES, "__version__") if not hasattr(builtins, name)]

#: Public modules, as in ``tl.plot.attention``. They are also imported on first use.
_MODULES = ("chat", "errors", "grammar", "peers", "plot", "reference", "testing", "tokenizer")


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f".{name}", __name__)
    if name in _HOMES:
        value = getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
        globals()[name] = value
        return value
    # private names are asked for by tools, and need no help
    if name.startswith("_"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    raise importlib.import_module(".base.words", __name__).no_attribute(
        "tinyllm", name, [*_HOMES, *_MODULES]
    )


def __dir__() -> list[str]:
    return sorted([*_HOMES, *_MODULES, "__version__"])
