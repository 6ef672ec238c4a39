"""Put one more attention head into each block; results stay the same."""

from __future__ import annotations

import argparse

from ..training.surgery import insert_head
from .output import show

__all__ = ["EXAMPLE", "add_arguments", "run"]

EXAMPLE = "example: tinyllm insert-head model.gguf wider.gguf"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument("model", help="the model, and its checkpoint if there is one")
    parser.add_argument("out", help="the GGUF file to write")
    parser.add_argument("--seed", type=int, default=0)


def run(args: argparse.Namespace) -> None:
    """Run the command."""
    config = insert_head(args.model, args.out, seed=args.seed).config
    show(f"{args.out}: {config.heads} heads, {config.kv_heads} of them of keys and values")
