"""What this machine is, as far as the core cares, and what a model takes of its memory."""

from __future__ import annotations

import platform
from typing import NamedTuple

from .. import _core
from ..display.table import Table

__all__ = ["CPU", "Memory", "cpu"]


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

    Examples
    --------
    >>> import tinyllm as tl
    >>> tl.cpu().cores >= 1
    True
    """

    name: str
    isa: str
    sets: tuple[str, ...]
    cores: int
    memory: int

    def _repr_html_(self) -> str:
        return Table(("what", "value"), list(zip(self._fields, self, strict=True))).html()


class Memory(NamedTuple):
    """What a model takes, in bytes: `Model.memory`.

    Attributes
    ----------
    weights : int
        The file's tensors. They are mapped, not copied: the system reads what is used, shares it
        between processes, and may drop it again.
    cache : int
        Keys and values of a session of `tokens` tokens.
    workspace : int
        Buffers of a session that ran them as one prompt; captured values come on top.
    tokens : int

    Examples
    --------
    >>> import tinyllm as tl
    >>> memory = tl.load().memory(100)
    >>> memory.total == memory.weights + memory.cache + memory.workspace
    True
    """

    weights: int
    cache: int
    workspace: int
    tokens: int

    @property
    def total(self) -> int:
        """Bytes of all three."""
        return self.weights + self.cache + self.workspace

    def _repr_html_(self) -> str:
        rows = [(name, f"{size:,}") for name, size in zip(self._fields, self, strict=True)]
        return Table(("what", "bytes"), [*rows[:3], ("total", f"{self.total:,}")]).html(
            caption=f"{self.tokens:,} tokens"
        )


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
    return CPU(_processor(), _core.kernel_set(), sets, _core.cpu_count(), _core.memory_available())
