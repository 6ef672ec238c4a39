"""Put one more block into a model; its results stay the same."""

from __future__ import annotations

import argparse

from ..training.surgery import insert_layer
from .output import show

__all__ = ["EXAMPLE", "add_arguments", "run"]

EXAMPLE = "example: tinyllm insert-layer model.gguf deeper.gguf --at 3"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument("model", help="the model, and its checkpoint if there is one")
    parser.add_argument("out", help="the GGUF file to write")
    parser.add_argument("--at", type=int, help="the number of the new block (default: the last)")
    parser.add_argument("--seed", type=int, default=0)


def run(args: argparse.Namespace) -> None:
    """Run the command."""
    model = insert_layer(args.model, args.out, args.at, seed=args.seed)
    show(f"{args.out}: {model.config.layers} layers")
