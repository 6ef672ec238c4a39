"""What the checkpoints of each architecture need: one row each.

The rows say what llama.cpp's converter does (github.com/ggml-org/llama.cpp, conversion/): the keys
beyond the common ones, the names of tensors, and which of them change their layout.
"""

from __future__ import annotations

from .dense import DENSE
from .encoders import ENCODERS
from .experts import EXPERT_MODELS
from .family import Family
from .hybrid import HYBRID
from .latent import LATENT
from .recurrent import RECURRENT
from .t5 import T5

__all__ = ["FAMILIES"]

#: The rows, by ``general.architecture``.
FAMILIES: dict[str, Family] = {
    **DENSE,
    **EXPERT_MODELS,
    **LATENT,
    **HYBRID,
    **RECURRENT,
    **ENCODERS,
    **T5,
}
