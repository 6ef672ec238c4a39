"""`cpu`: what this machine is, as far as the core cares."""

from __future__ import annotations

import os
import platform
from typing import NamedTuple

from . import _core
from .errors import UnsupportedError
from .html import Table

__all__ = ["CPU", "cpu"]


class CPU(NamedTuple):
    """What the core found.

    Attributes
    ----------
    name : str
        As the operating system calls the processor.
    isa : str
        The set of kernels that models loaded now will run on: the best one, or what the
        environment variable TINYLLM_ISA names.
    sets : tuple of str
        All sets of kernels that run here, slowest first; in exact mode they give the same bits.
    cores : int
        Physical cores that this process may keep busy (affinity and control groups respected),
        which is what ``threads=None`` means.
    memory : int
        Bytes that this process may still take; 2**64 - 1 if unknown.
    """

    name: str
    isa: str
    sets: tuple[str, ...]
    cores: int
    memory: int

    def _repr_html_(self) -> str:
        return Table(("what", "value"), list(zip(self._fields, self, strict=True))).html()


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as lines:
            for line in lines:
                if line.startswith("model name"):
                    return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def cpu() -> CPU:
    """What runs here: the processor, the instruction sets, the cores and the memory.

    Returns
    -------
    CPU

    Raises
    ------
    UnsupportedError
        TINYLLM_ISA names a set that is unknown or not available.

    Examples
    --------
    >>> import tinyllm as tl
    >>> tl.cpu().isa in tl.cpu().sets
    True
    """
    sets = tuple(_core.kernel_sets())
    isa = os.environ.get("TINYLLM_ISA") or sets[-1]
    if isa not in sets:
        raise UnsupportedError(
            f"TINYLLM_ISA is {isa!r}, which is unknown or not available on this CPU; "
            f"these are: {', '.join(sets)}"
        )
    return CPU(_processor(), isa, sets, _core.cpu_count(), _core.memory_available())
