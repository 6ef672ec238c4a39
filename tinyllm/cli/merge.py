"""Write a model that is split into several files as one."""

from __future__ import annotations

import argparse
import os

from ..base.units import size
from ..editing.shards import merge_gguf
from .output import show

__all__ = ["EXAMPLE", "add_arguments", "run"]

EXAMPLE = "example: tinyllm merge model-00001-of-00003.gguf model.gguf"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument("file", help="the first of the files; the others are beside it")
    parser.add_argument("out", help="the GGUF file to write")


def run(args: argparse.Namespace) -> None:
    """Run the command."""
    merge_gguf(args.file, args.out)
    show(f"{args.out}: {size(os.path.getsize(args.out))}")
