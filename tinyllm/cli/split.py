"""Write a model as several smaller files."""

from __future__ import annotations

import argparse
import os
import re

from ..base.units import size
from ..editing.shards import split_gguf
from .output import show

__all__ = ["EXAMPLE", "add_arguments", "run"]

EXAMPLE = "example: tinyllm split model.gguf model --max-size 2G"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument("file", help="the GGUF file")
    parser.add_argument("stem", help="the files become STEM-00001-of-00003.gguf and so on")
    parser.add_argument(
        "--max-size",
        type=_bytes,
        metavar="N",
        help="the most bytes of tensors in a file, for example 300M or 2G (default: 2G)",
    )
    parser.add_argument("--max-tensors", type=int, metavar="N", help="the most tensors in a file")


def run(args: argparse.Namespace) -> None:
    """Run the command."""
    paths = split_gguf(args.file, args.stem, max_bytes=args.max_size, max_tensors=args.max_tensors)
    for path in paths:
        show(f"{path}: {size(os.path.getsize(path))}")


def _bytes(text: str) -> int:
    match = re.fullmatch(r"(\d+)([kMG]?)", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size such as 2000000, 300M or 2G")
    return int(match[1]) * {"": 1, "k": 1000, "M": 1000**2, "G": 1000**3}[match[2]]
