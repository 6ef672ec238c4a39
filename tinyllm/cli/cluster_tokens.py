"""Show the tokens whose embeddings are nearest to each other."""

from __future__ import annotations

import argparse

from ..display.table import Table
from ..training.compare import cluster_tokens
from ..training.parts import read_parts
from .output import show

__all__ = ["EXAMPLE", "add_arguments", "run"]

EXAMPLE = "example: tinyllm cluster-tokens model.gguf --heads"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument("model", help="a GGUF file")
    parser.add_argument("--count", type=int, default=20, help="pairs (default: 20)")
    parser.add_argument(
        "--heads", action="store_true", help="each part of the embedding, one for each head"
    )


def run(args: argparse.Namespace) -> None:
    """Run the command."""
    columns: list[tuple[str, int | None]] = [("whole", None)]
    if args.heads:
        count = read_parts(args.model).shape["heads"]
        columns += [(f"part {head}", head) for head in range(count)]
    for title, head in columns:
        found = cluster_tokens(args.model, args.count, head=head)
        rows = [(f"{n.cosine:.4f}", *n.ids, *map(repr, n.pieces)) for n in found]
        show(Table((title, "id", "id", "token", "token"), rows))
        show()
