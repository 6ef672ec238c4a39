"""Write a model as a Hugging Face checkpoint."""

from __future__ import annotations

import argparse
import os

from ..base.units import size
from ..exporting.export import export
from .output import show

__all__ = ["EXAMPLE", "add_arguments", "run"]

EXAMPLE = "example: tinyllm export model.gguf checkpoint --dtype BF16"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument("model", help="a GGUF file or llama2.c checkpoint")
    parser.add_argument("folder", help="the folder to write; it must not hold a checkpoint")
    parser.add_argument(
        "--dtype",
        default="auto",
        choices=["auto", "F32", "F16", "BF16"],
        help="type of the tensors (default: auto, as in the file, or F32 if it is quantized)",
    )


def run(args: argparse.Namespace) -> None:
    """Run the command."""
    export(args.model, args.folder, args.dtype)
    with os.scandir(args.folder) as entries:
        total = sum(entry.stat().st_size for entry in entries if entry.is_file())
    show(f"{args.folder}: {size(total)}")
