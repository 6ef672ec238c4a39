"""Compare the tensors of two files."""

from __future__ import annotations

import argparse

from ..editing.compare import diff_weights
from .output import show, show_json

__all__ = ["EXAMPLE", "add_arguments", "run"]

EXAMPLE = "example: tinyllm diff-weights model.gguf small.gguf (exit status 1 if they differ)"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument("a", help="a GGUF file or llama2.c checkpoint")
    parser.add_argument("b", help="the file to compare with")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    found = diff_weights(args.a, args.b)
    if args.json:
        show_json(found.to_dict())
    else:
        show(found)
    return 0 if found.same else 1
