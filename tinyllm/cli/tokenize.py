"""Show the tokens of a text."""

from __future__ import annotations

import argparse
import json

from ..display.table import Table
from .common import add_prompt, read_prompt
from .output import show

__all__ = ["EXAMPLE", "add_arguments", "run"]

EXAMPLE = 'example: tinyllm tokenize "Hello world" -m model.gguf'


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    add_prompt(parser)
    parser.add_argument("-m", "--model", default="demo", help="a file with a tokenizer")
    parser.add_argument("--bare", action="store_true", help="add no BOS, EOS or other token")
    parser.add_argument("--ids", action="store_true", help="print the ids only, as JSON")
    parser.add_argument("--explain", action="store_true", help="show each step of the algorithm")


def run(args: argparse.Namespace) -> None:
    """Run the command."""
    from ..tokenizer import load_tokenizer

    text = read_prompt(args)
    tokenizer = load_tokenizer(args.model)
    add_special = False if args.bare else None
    if args.explain:
        show(tokenizer.explain(text, add_special, args.special))
        return
    ids = tokenizer.encode(text, add_special, args.special)
    if args.ids:
        show(json.dumps(ids))
        return
    pieces = tokenizer.pieces(ids)
    show(Table(("id", "piece"), [(i, repr(piece)) for i, piece in zip(ids, pieces, strict=True)]))
