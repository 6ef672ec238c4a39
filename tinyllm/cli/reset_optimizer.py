"""Let the optimizer of a training run begin anew."""

from __future__ import annotations

import argparse

from ..training.checkpoint import state_path
from ..training.surgery import reset_optimizer
from .output import show

__all__ = ["EXAMPLE", "add_arguments", "run"]

EXAMPLE = "example: tinyllm reset-optimizer model.gguf"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument("model", help="the model of the run; its checkpoint is changed")


def run(args: argparse.Namespace) -> None:
    """Run the command."""
    reset_optimizer(args.model)
    show(f"{state_path(args.model)}: the moments are zero")
