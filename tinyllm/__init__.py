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
    from .config import Config as Config
    from .errors import Error as Error
    from .errors import FormatError as FormatError
    from .errors import UnsupportedError as UnsupportedError
    from .generation import Generation as Generation
    from .gguf import GGUF as GGUF
    from .gguf import Weight as Weight
    from .gguf_write import TensorSource as TensorSource
    from .gguf_write import write_gguf as write_gguf
    from .model import Model as Model
    from .model import load as load
    from .sampling import Sampler as Sampler
    from .session import Session as Session
    from .tokenizer import StreamDecoder as StreamDecoder
    from .tokenizer import Tokenizer as Tokenizer
    from .tokenizer import load_tokenizer as load_tokenizer
    from .trace import Plan as Plan
    from .trace import Trace as Trace

__version__ = "0.1.0"

#: Public names, and where each lives: imported when first used, so that `import tinyllm` is quick.
_HOMES = {
    "Config": "config",
    "Error": "errors",
    "FormatError": "errors",
    "GGUF": "gguf",
    "Generation": "generation",
    "Model": "model",
    "Plan": "trace",
    "Sampler": "sampling",
    "Session": "session",
    "StreamDecoder": "tokenizer",
    "TensorSource": "gguf_write",
    "Tokenizer": "tokenizer",
    "Trace": "trace",
    "UnsupportedError": "errors",
    "Weight": "gguf",
    "load": "model",
    "load_tokenizer": "tokenizer",
    "write_gguf": "gguf_write",
}

__all__ = [*_HOMES, "__version__"]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        value = getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
