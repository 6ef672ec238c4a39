"""Write a model with smaller weights."""

from __future__ import annotations

import argparse
import os

from ..quantization.mixes import MIXES
from ..quantization.quantize import quantize
from .output import show

__all__ = ["EXAMPLE", "add_arguments", "run"]

EXAMPLE = "example: tinyllm quantize qwen3.gguf small.gguf Q4_K_M --imatrix qwen3.imatrix.gguf"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument("model", help="the file: best with F32, F16 or BF16 weights")
    parser.add_argument("out", help="the GGUF file to write")
    parser.add_argument(
        "type", nargs="?", default="Q4_K_M", help=f"{', '.join(MIXES)} (default: Q4_K_M)"
    )
    parser.add_argument("--imatrix", help="an importance matrix: see tinyllm imatrix")
    parser.add_argument(
        "--tensor-type",
        action="append",
        default=[],
        metavar="PATTERN=TYPE",
        help="the type of tensors, for example 'blk.*.ffn_down.weight=Q6_K'; may be repeated",
    )


def run(args: argparse.Namespace) -> None:
    """Run the command."""
    types = {}
    for given in args.tensor_type:
        pattern, equals, kind = given.rpartition("=")
        if not equals or not pattern:
            raise ValueError(f"--tensor-type is {given!r}; expected PATTERN=TYPE")
        types[pattern] = kind
    quantize(args.model, args.out, args.type, imatrix=args.imatrix, types=types)
    show(f"{args.out}: {os.path.getsize(args.out):,} bytes")
