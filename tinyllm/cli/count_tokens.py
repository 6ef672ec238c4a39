"""Count the tokens of a text."""

from __future__ import annotations

import argparse

import numpy as np

from ..display.table import Table
from ..tokenizer import load_tokenizer
from ..training.data import read_data
from ..training.vocabulary import count_tokens
from .output import show

__all__ = ["EXAMPLE", "add_arguments", "run"]

EXAMPLE = "example: tinyllm count-tokens text.txt -m model.gguf"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument("data", help="a text file in UTF-8, or a folder of them")
    parser.add_argument("-m", "--model", default="demo", help="a file with a tokenizer")
    parser.add_argument("--rows", type=int, default=10, help="rows of the table (default: 10)")


def run(args: argparse.Namespace) -> None:
    """Run the command."""
    tokenizer = load_tokenizer(args.model)
    text = str(read_data(args.data))
    counts = count_tokens(args.data, tokenizer)
    total, size = int(counts.sum()), len(text.encode())
    show(f"{total:,} tokens of {size:,} bytes, {size / max(total, 1):.3f} bytes per token")
    show(f"{np.count_nonzero(counts):,} of {len(counts):,} tokens occur")
    order = np.argsort(-counts, kind="stable")[: args.rows].tolist()
    rows = [
        (i, repr(tokenizer.pieces(i)[0]), f"{counts[i]:,}", f"{counts[i] / max(total, 1):.2%}")
        for i in order
    ]
    show(Table(("id", "token", "count", "part"), rows))
