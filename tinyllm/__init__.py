"""Open a GGUF language model, run it on the CPU, and read every number inside as NumPy.

Start with `load`:

>>> import tinyllm as tl
>>> model = tl.load()
>>> trace = model.trace("ROMEO:")
>>> trace["blk.0.resid_post"].shape == (len(trace.tokens), model.config.width)
True
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import tinyllm.plot as plot  # noqa: F401

    from .analysis.lens import attention_entropy as attention_entropy
    from .analysis.lens import attribution as attribution
    from .analysis.lens import induction_scores as induction_scores
    from .analysis.lens import lens as lens
    from .analysis.lens import ov_circuit as ov_circuit
    from .analysis.lens import qk_circuit as qk_circuit
    from .analysis.sweep import patch_sweep as patch_sweep
    from .architectures.config import Config as Config
    from .errors import Error as Error
    from .errors import FormatError as FormatError
    from .errors import UnsupportedError as UnsupportedError
    from .evaluation.scoring import kl as kl
    from .files.gguf import GGUF as GGUF
    from .files.gguf import Weight as Weight
    from .files.gguf_write import TensorSource as TensorSource
    from .files.gguf_write import write_gguf as write_gguf
    from .generation.stepper import Generation as Generation
    from .grammar.grammar import Grammar as Grammar
    from .model import Model as Model
    from .model import load as load
    from .runtime.machine import CPU as CPU
    from .runtime.machine import Memory as Memory
    from .runtime.machine import cpu as cpu
    from .runtime.session import Session as Session
    from .sampling.sampler import Sampler as Sampler
    from .tokenizer import StreamDecoder as StreamDecoder
    from .tokenizer import Tokenizer as Tokenizer
    from .tokenizer import load_tokenizer as load_tokenizer
    from .trace.arena import Plan as Plan
    from .trace.edits import Edit as Edit
    from .trace.edits import add as add
    from .trace.edits import apply as apply
    from .trace.edits import mean as mean
    from .trace.edits import patch as patch
    from .trace.edits import scale as scale
    from .trace.edits import set as set
    from .trace.edits import zero as zero
    from .trace.saved import read as read
    from .trace.trace import Trace as Trace

__version__ = "0.1.0"

#: Public names, and where each lives: imported when first used, so that `import tinyllm` is quick.
_HOMES = {
    "CPU": "runtime.machine",
    "Config": "architectures.config",
    "Edit": "trace.edits",
    "Error": "errors",
    "FormatError": "errors",
    "GGUF": "files.gguf",
    "Generation": "generation.stepper",
    "Grammar": "grammar.grammar",
    "Memory": "runtime.machine",
    "Model": "model",
    "Plan": "trace.arena",
    "Sampler": "sampling.sampler",
    "Session": "runtime.session",
    "StreamDecoder": "tokenizer",
    "TensorSource": "files.gguf_write",
    "Tokenizer": "tokenizer",
    "Trace": "trace.trace",
    "UnsupportedError": "errors",
    "Weight": "files.gguf",
    "add": "trace.edits",
    "apply": "trace.edits",
    "attention_entropy": "analysis.lens",
    "attribution": "analysis.lens",
    "cpu": "runtime.machine",
    "induction_scores": "analysis.lens",
    "kl": "evaluation.scoring",
    "lens": "analysis.lens",
    "load": "model",
    "load_tokenizer": "tokenizer",
    "mean": "trace.edits",
    "ov_circuit": "analysis.lens",
    "patch": "trace.edits",
    "patch_sweep": "analysis.sweep",
    "qk_circuit": "analysis.lens",
    "read": "trace.saved",
    "scale": "trace.edits",
    "set": "trace.edits",
    "write_gguf": "files.gguf_write",
    "zero": "trace.edits",
}

__all__ = [*_HOMES, "__version__"]


#: Modules that are used by name, ``tl.plot.attention``.
_MODULES = ("plot",)


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
