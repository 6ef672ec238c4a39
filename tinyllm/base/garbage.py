"""A pause of Python's garbage collector, for work that makes many objects and drops few."""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["no_collection"]

_lock = threading.Lock()
_pauses = 0
_was_enabled = False


@contextmanager
def no_collection() -> Iterator[None]:
    """Stop the collector, which belongs to the process, until the last of these blocks ends.

    Objects that nothing refers to are freed all the same, unless they refer to each other.
    """
    global _pauses, _was_enabled
    with _lock:
        if _pauses == 0:
            _was_enabled = gc.isenabled()
            gc.disable()
        _pauses += 1
    try:
        yield
    finally:
        with _lock:
            _pauses -= 1
            if _pauses == 0 and _was_enabled:
                gc.enable()
