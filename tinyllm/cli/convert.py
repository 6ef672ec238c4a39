"""Write a Hugging Face checkpoint, a PEFT adapter or a llama2.c checkpoint as a GGUF file."""

from __future__ import annotations

import argparse
import os

from ..base.units import size
from ..conversion.convert import DTYPES, convert
from .output import show

__all__ = ["EXAMPLE", "add_arguments", "run"]

EXAMPLE = "example: tinyllm convert Qwen3-0.6B qwen3.gguf --dtype Q8_0"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument("source", help="a folder with config.json and model.safetensors, or a file")
    parser.add_argument("out", help="the GGUF file to write")
    parser.add_argument(
        "--dtype",
        default="auto",
        choices=["auto", *DTYPES],
        help="type of matrices (default: auto, as in the checkpoint)",
    )
    parser.add_argument(
        "--base", metavar="FOLDER", help="of an adapter: the folder of the model's checkpoint"
    )
    parser.add_argument("--no-vocab", action="store_true", help="leave out the tokenizer")


def run(args: argparse.Namespace) -> None:
    """Run the command."""
    convert(args.source, args.out, args.dtype, vocab=not args.no_vocab, base=args.base)
    show(f"{args.out}: {size(os.path.getsize(args.out))}")
