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
    parser.add_argument(
        "--target-bits",
        metavar="BITS",
        help="bits per weight, or the mix whose size the file has: each matrix gets the type that "
        "changes the predictions on --text least for this size",
    )
    parser.add_argument("--text", metavar="FILE", help="typical UTF-8 text for --target-bits")


def run(args: argparse.Namespace) -> None:
    """Run the command."""
    types = {}
    for given in args.tensor_type:
        pattern, equals, kind = given.rpartition("=")
        if not equals or not pattern:
            raise ValueError(f"--tensor-type is {given!r}; expected PATTERN=TYPE")
        types[pattern] = kind
    text = None
    if args.text is not None:
        with open(args.text, encoding="utf-8") as file:
            text = file.read()
    found = quantize(
        args.model,
        args.out,
        args.type,
        imatrix=args.imatrix,
        types=types,
        target_bits=_bits(args.target_bits),
        text=text,
    )
    if found is not None:
        show(str(found))
    show(f"{args.out}: {os.path.getsize(args.out):,} bytes")


def _bits(given: str | None) -> float | str | None:
    """Return a number as such; anything else is the name of a mix."""
    try:
        return None if given is None else float(given)
    except ValueError:
        return given
