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


def some_steps(model, flags):
    """The core of a model, of which only the steps with a flag may run on the device."""
    return _core.Model(
        model.steps.lowered(),
        model.weights.values(),
        layers=model.config.layers,
        max_context=model.core.config["max_context"],
        device=model.device,
        device_steps=bytes(flags),
    )
