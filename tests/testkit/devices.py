"""The devices of OpenCL on this machine; PoCL is one that runs on the CPU (pocl-opencl-icd)."""

import functools

from tinyllm import UnsupportedError, _core


@functools.cache
def listed():
    """What OpenCL lists; nothing where it is not installed."""
    try:
        return _core.device_list()
    except UnsupportedError:
        return []
