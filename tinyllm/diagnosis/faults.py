"""The catalogue of mistakes, complete: importing this module enters all of them.

They come from the diaries and bug reports of people who wrote an engine.
"""

from __future__ import annotations

from . import attention, blocks, misread, texts
from .catalogue import CATALOGUE, Candidate, Fault, candidates

__all__ = ["CATALOGUE", "SOURCES", "Candidate", "Fault", "candidates"]

#: Where the mistakes are defined.
SOURCES = (attention, blocks, misread, texts)
