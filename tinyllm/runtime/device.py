"""The devices of OpenCL, such as GPUs: which there are, and the one that `tl.load` takes."""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path
from typing import Any, NamedTuple

from .. import _core
from ..base.units import size
from ..display.table import Table
from ..errors import Error, UnsupportedError

__all__ = ["Device", "choose", "devices"]


class Device(NamedTuple):
    """A device that OpenCL lists, and whether a model can run on it: an item of `devices`.

    Attributes
    ----------
    name : str
        What its driver calls it.
    id : str
        Its name for `load`, such as ``"opencl:0"``.
    kind : str
        ``"gpu"``, or ``"cpu"`` for a driver that runs on the CPU, such as PoCL.
    memory : int
        Bytes of its memory.
    level : str or None
        What it computes natively: ``"native"`` (float64 and float32), ``"division"`` (the same, but
        for float32 division), ``"float32"`` (not float64) or ``"integers"`` (nothing). The rest is
        done in integers; the bits are the same. None if it cannot be used.
    reason : str or None
        Why it cannot be used.
    driver : str
        The version of its driver.

    Examples
    --------
    >>> import tinyllm as tl
    >>> all(device.level or device.reason for device in tl.devices())
    True
    """

    name: str
    id: str
    kind: str
    memory: int
    level: str | None
    reason: str | None
    driver: str

    def _repr_html_(self) -> str:
        rows = [(n, size(v) if n == "memory" else v) for n, v in self._asdict().items()]
        return Table(("what", "value"), rows).html()


_opened: dict[int, _core.Device] = {}
_lock = threading.Lock()


def _cache() -> str | None:
    """Return the folder of compiled programs, or None if it cannot be made."""
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA", "")
    else:
        base = os.environ.get("XDG_CACHE_HOME", "")
    try:
        folder = (Path(base) if base else Path.home() / ".cache") / "tinyllm" / "kernels"
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):  # read-only, or there is no home
        return None
    return str(folder)


def _open(index: int) -> _core.Device:
    """Return the open device of that number. It is opened once, and anew after it was lost."""
    with _lock:
        if index not in _opened or _opened[index].lost:
            _opened[index] = _core.Device(index, cache=_cache())
        return _opened[index]


def _list() -> list[dict[str, Any]]:
    """Return what OpenCL lists; without a library, nothing."""
    try:
        return _core.device_list()
    except UnsupportedError:
        return []


def devices() -> list[Device]:
    """List the devices of OpenCL, such as GPUs, and test which give the bits of the CPU.

    The test runs each operation of the arithmetic and small matmuls on the device. The first one on
    a device takes seconds, because its programs are compiled. They are kept in the folder
    ``tinyllm/kernels`` of the user's cache.

    Returns
    -------
    list of Device
        Empty if there is no OpenCL library or no driver.

    Raises
    ------
    DeviceError
        If the OpenCL library fails.

    Examples
    --------
    >>> import tinyllm as tl
    >>> [device.name for device in tl.devices() if device.kind == "gpu"]  # doctest: +SKIP
    ['NVIDIA H200']
    """
    found = []
    for index, facts in enumerate(_list()):
        level = reason = None
        try:
            level = _open(index).level
        except (Error, MemoryError) as error:
            reason = str(error)
        kind = "gpu" if facts["gpu"] else "cpu"
        found.append(
            Device(
                facts["name"],
                f"opencl:{index}",
                kind,
                facts["memory"],
                level,
                reason,
                facts["driver"],
            )
        )
    return found


def choose(name: str) -> _core.Device | None:
    """Return the device that an argument of `load` names; None is the CPU.

    Parameters
    ----------
    name : str
        ``"cpu"``, ``"gpu"``, ``"auto"``, ``"opencl:0"``, or a part of the name of a device.

    Returns
    -------
    _core.Device or None

    Raises
    ------
    ValueError
        If no device has that name.
    UnsupportedError
        If there is no OpenCL library or no GPU, or the device does not give the bits of the CPU.
    DeviceError
        If a call of OpenCL fails.

    Examples
    --------
    >>> from tinyllm.runtime.device import choose
    >>> choose("cpu") is None
    True
    """
    if name == "cpu":
        return None
    if name == "auto":
        for index, facts in enumerate(_list()):
            if facts["gpu"]:
                try:
                    return _open(index)
                except (Error, MemoryError):
                    continue
        return None
    listed = _core.device_list()
    names = ", ".join(f"opencl:{i} ({facts['name']})" for i, facts in enumerate(listed)) or "none"
    if name == "gpu":
        failed: Exception | None = None
        for index, facts in enumerate(listed):
            if facts["gpu"]:
                try:
                    return _open(index)
                except (Error, MemoryError) as error:
                    failed = failed or error
        if failed is not None:
            raise failed
        raise UnsupportedError(f"device is 'gpu', and there is no GPU; OpenCL lists: {names}")
    for index, facts in enumerate(listed):
        if name == f"opencl:{index}" or (name and name.lower() in facts["name"].lower()):
            return _open(index)
    raise ValueError(
        f"device is {name!r}; expected 'cpu', 'gpu', 'auto', or a device of OpenCL: {names}"
    )
