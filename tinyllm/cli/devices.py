"""List the devices of OpenCL, such as GPUs, and test which can run a model."""

from __future__ import annotations

import argparse

from ..base.units import size
from ..display.table import Table
from .output import show

__all__ = ["EXAMPLE", "add_arguments", "run"]

EXAMPLE = "example: tinyllm devices"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command: it has none."""


def run(args: argparse.Namespace) -> None:
    """Run the command."""
    from ..runtime.device import devices

    found = devices()
    if not found:
        show("no devices: there is no OpenCL library, or no driver")
        return
    rows = [(d.id, d.kind, d.name, size(d.memory), d.level or "cannot be used") for d in found]
    show(Table(("device", "kind", "name", "memory", "level"), rows))
    for device in found:
        if device.reason is not None:
            show(f"{device.id}: {device.reason}")
