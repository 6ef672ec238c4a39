"""Write a model that is split into several files, or that has adapters, as one file."""

from __future__ import annotations

import argparse
import os
import sys

from ..base.units import size
from ..editing.shards import merge_gguf
from .common import adapter_and_scale
from .output import show

__all__ = ["EXAMPLE", "add_arguments", "run"]

EXAMPLE = "example: tinyllm merge model-00001-of-00003.gguf model.gguf"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument(
        "file", help="the model, or the first of its files; the others are beside it"
    )
    parser.add_argument("out", help="the GGUF file to write")
    parser.add_argument(
        "--adapter",
        action="append",
        default=[],
        metavar="FILE[:SCALE]",
        help="a LoRA adapter to merge into the weights; may be given several times",
    )
    parser.add_argument("--type", help="the type of the tensors that adapters change")


def run(args: argparse.Namespace) -> None:
    """Run the command."""
    if args.adapter:
        from ..training.merge import merge_adapter

        pairs = [adapter_and_scale(text) for text in args.adapter]
        merge_adapter(args.file, pairs, args.out, type=args.type, progress=sys.stderr.isatty())
    elif args.type is not None:
        raise ValueError("--type is given without --adapter; expected both or none")
    else:
        merge_gguf(args.file, args.out)
    show(f"{args.out}: {size(os.path.getsize(args.out))}")
