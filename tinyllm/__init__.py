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

    from .analysis import attention_entropy as attention_entropy
    from .analysis import attribution as attribution
    from .analysis import induction_scores as induction_scores
    from .analysis import lens as lens
    from .analysis import ov_circuit as ov_circuit
    from .analysis import qk_circuit as qk_circuit
    from .arena import Plan as Plan
    from .config import Config as Config
    from .edits import Edit as Edit
    from .edits import add as add
    from .edits import apply as apply
    from .edits import mean as mean
    from .edits import patch as patch
    from .edits import scale as scale
    from .edits import set as set
    from .edits import zero as zero
    from .errors import Error as Error
    from .errors import FormatError as FormatError
    from .errors import UnsupportedError as UnsupportedError
    from .generation import Generation as Generation
    from .gguf import GGUF as GGUF
    from .gguf import Weight as Weight
    from .gguf_write import TensorSource as TensorSource
    from .gguf_write import write_gguf as write_gguf
    from .grammar import Grammar as Grammar
    from .machine import CPU as CPU
    from .machine import Memory as Memory
    from .machine import cpu as cpu
    from .model import Model as Model
    from .model import load as load
    from .sampling import Sampler as Sampler
    from .scoring import kl as kl
    from .session import Session as Session
    from .storage import read as read
    from .sweep import patch_sweep as patch_sweep
    from .tokenizer import StreamDecoder as StreamDecoder
    from .tokenizer import Tokenizer as Tokenizer
    from .tokenizer import load_tokenizer as load_tokenizer
    from .trace import Trace as Trace

__version__ = "0.1.0"

#: Public names, and where each lives: imported when first used, so that `import tinyllm` is quick.
_HOMES = {
    "CPU": "machine",
    "Config": "config",
    "Edit": "edits",
    "Error": "errors",
    "FormatError": "errors",
    "GGUF": "gguf",
    "Generation": "generation",
    "Grammar": "grammar",
    "Memory": "machine",
    "Model": "model",
    "Plan": "arena",
    "Sampler": "sampling",
    "Session": "session",
    "StreamDecoder": "tokenizer",
    "TensorSource": "gguf_write",
    "Tokenizer": "tokenizer",
    "Trace": "trace",
    "UnsupportedError": "errors",
    "Weight": "gguf",
    "add": "edits",
    "apply": "edits",
    "attention_entropy": "analysis",
    "attribution": "analysis",
    "cpu": "machine",
    "induction_scores": "analysis",
    "kl": "scoring",
    "lens": "analysis",
    "load": "model",
    "load_tokenizer": "tokenizer",
    "mean": "edits",
    "ov_circuit": "analysis",
    "patch": "edits",
    "patch_sweep": "sweep",
    "qk_circuit": "analysis",
    "read": "storage",
    "scale": "edits",
    "set": "edits",
    "write_gguf": "gguf_write",
    "zero": "edits",
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
