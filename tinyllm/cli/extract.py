"""Write a model that has some blocks of another."""

from __future__ import annotations

import argparse
import os
import re

from ..base.units import size
from ..editing.layers import extract_layers
from .output import show

__all__ = ["EXAMPLE", "add_arguments", "run"]

EXAMPLE = "example: tinyllm extract model.gguf small.gguf 0-5 8"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument("file", help="the GGUF file")
    parser.add_argument("out", help="the GGUF file to write")
    parser.add_argument("layers", nargs="+", help="numbers of blocks, or ranges such as 0-5")
    parser.add_argument(
        "--force", action="store_true", help="write even if a block computes something else there"
    )


def run(args: argparse.Namespace) -> None:
    """Run the command."""
    layers: list[int] = []
    for given in args.layers:
        match = re.fullmatch(r"(\d+)(?:-(\d+))?", given)
        if match is None or (match[2] and int(match[2]) < int(match[1])):
            raise ValueError(f"layers has {given!r}; expected a number or a range such as 0-5")
        layers += range(int(match[1]), int(match[2] or match[1]) + 1)
    extract_layers(args.file, args.out, layers, force=args.force)
    show(f"{args.out}: {size(os.path.getsize(args.out))}")
