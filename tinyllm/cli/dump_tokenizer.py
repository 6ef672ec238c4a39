"""List the tokens of a tokenizer."""

from __future__ import annotations

import argparse

from ..display.table import Table
from ..tokenizer import load_tokenizer
from .output import show, show_json

__all__ = ["EXAMPLE", "add_arguments", "run"]

EXAMPLE = "example: tinyllm dump-tokenizer model.gguf --json"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument("model", nargs="?", default="demo", help="a file with a tokenizer")
    parser.add_argument("--json", action="store_true", help="a line of JSON for each token")


def run(args: argparse.Namespace) -> None:
    """Run the command."""
    tokenizer = load_tokenizer(args.model)
    rows = [
        (i, tokenizer.token_type(i).name.lower(), piece)
        for i, piece in enumerate(tokenizer.pieces(range(len(tokenizer))))
    ]
    if args.json:
        for i, kind, piece in rows:
            show_json({"id": i, "type": kind, "text": piece, "stored": tokenizer.vocab[i]})
        return
    show(repr(tokenizer))
    show(Table(("id", "type", "text"), [(i, kind, repr(piece)) for i, kind, piece in rows]))
