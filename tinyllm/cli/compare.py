"""Compare the weights of two checkpoints: how far each tensor, head and token has moved."""

from __future__ import annotations

import argparse

from ..display.table import Table
from ..tokenizer import load_tokenizer
from ..training.compare import Movement, compare_checkpoints
from .output import show, show_json

__all__ = ["EXAMPLE", "add_arguments", "run"]

EXAMPLE = "example: tinyllm compare step1000.gguf step2000.gguf"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument("first", help="a model; movements are relative to it")
    parser.add_argument("second", help="a model of the same shape")
    parser.add_argument("--limit", type=int, default=20, help="rows of each table (default: 20)")
    parser.add_argument("--tokens", action="store_true", help="the tokens that have moved least")
    parser.add_argument("--json", action="store_true", help="everything, as JSON")


def run(args: argparse.Namespace) -> None:
    """Run the command."""
    found = compare_checkpoints(args.first, args.second)
    if args.json:
        show_json(found.to_dict())
        return
    if args.limit < 1:
        raise ValueError(f"--limit is {args.limit}; expected at least 1")
    if found.common or found.only_first or found.only_second:
        show(found.history_table())
        if found.equal_steps is not None:
            show(f"the losses of the first {found.equal_steps} steps are equal")
        show()
    table = found.table()
    show(Table(table.columns, table.rows[: args.limit]))
    if len(table.rows) > args.limit:
        show(f"... and {len(table.rows) - args.limit} that have moved more")
    alone = [*found.weights.only_a, *found.weights.only_b, *found.weights.shapes]
    if alone:
        show(f"{len(alone)} tensors have no counterpart, such as {alone[0]}")
    if args.tokens:
        show()
        show(_tokens(found, args.first, args.limit))


def _tokens(found: Movement, path: str, limit: int) -> object:
    """Return a table of the tokens that have moved least, by head."""
    if found.tokens is None:
        return "the vocabularies differ"
    pieces = load_tokenizer(path)
    moved = found.tokens[..., 1]
    order = moved.mean(axis=1).argsort(kind="stable")[:limit].tolist()
    rows = [(i, repr(pieces.pieces(i)[0]), *(f"{value:.4f}" for value in moved[i])) for i in order]
    heads = (f"head {h} moved" for h in range(moved.shape[1]))
    return Table(("id", "token", *heads), rows)
