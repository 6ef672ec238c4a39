"""The properties of this machine that the core uses, and the memory that a model needs."""

from __future__ import annotations

import platform
from typing import NamedTuple

from .. import _core
from ..base.units import size
from ..display.table import Table

__all__ = ["CPU", "Memory", "cpu"]


class CPU(NamedTuple):
    """The processor, kernels, cores and memory that the core found.

    Attributes
    ----------
    name : str
        Name of the processor from the operating system.
    isa : str
        The kernel set of models that are loaded from now on. It is the fastest one, or the one in
        the environment variable TINYLLM_ISA.
    sets : tuple of str
        All kernel sets that run here, slowest first. In exact mode they give the same bits.
    cores : int
        Number of physical cores that this process may use, given its CPU affinity and control
        groups. It is the default number of threads.
    memory : int
        Bytes of memory that are available to this process. 2**64 - 1 if unknown.

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
    """The memory that a model and a session need, in bytes: the result of `Model.memory`.

    Attributes
    ----------
    weights : int
        The tensors of the file. They are mapped, so the system reads them when they are used,
        shares them between processes, and may release them again.
    cache : int
        Keys and values of a session of `tokens` tokens.
    workspace : int
        Buffers of a session that runs `tokens` tokens as one prompt. Captured values need more.
    tokens : int
        Number of tokens in the session.
    device : int
        What the weights and the session take on the device that the model was loaded for; 0 without
        one. The total does not include it.

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
    device: int = 0

    @property
    def total(self) -> int:
        """The sum of weights, cache and workspace."""
        return self.weights + self.cache + self.workspace

    def _repr_html_(self) -> str:
        rows = [(name, size(value)) for name, value in zip(self._fields, self, strict=True)]
        rows = [*rows[:3], ("total", size(self.total)), *rows[4:]]
        return Table(("what", "size"), rows).html(caption=f"{self.tokens:,} tokens")


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
    """Return the processor, the kernel sets, the cores and the memory of this machine.

    Returns
    -------
    CPU

    Raises
    ------
    UnsupportedError
        If TINYLLM_ISA is an unknown kernel set, or one that does not run here.

    Examples
    --------
    >>> import tinyllm as tl
    >>> tl.cpu().isa in tl.cpu().sets
    True
    """
    sets = tuple(_core.kernel_sets())
    return CPU(_processor(), _core.kernel_set(), sets, _core.cpu_count(), _core.memory_available())
