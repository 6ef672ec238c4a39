"""Make a new model with random weights, which train --start then trains."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from ..training.surgery import init_model
from .output import complain, show
from .shapes import add_shape, shape_of

__all__ = ["EXAMPLE", "add_arguments", "run"]

EXAMPLE = "example: tinyllm init new.gguf text.txt --layers 6 --width 96"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument("out", help="the GGUF file to write")
    parser.add_argument("data", nargs="?", help="the text that the vocabulary is made from")
    add_shape(parser, batch=False)
    parser.add_argument(
        "--tokenizer", default="char", help="char, byte, bpe:1000, or a file with a tokenizer"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--interactive", action="store_true", help="ask for each size")


def run(args: argparse.Namespace) -> None:
    """Run the command."""
    chosen: dict[str, Any] = {**shape_of(args), "tokenizer": args.tokenizer, "seed": args.seed}
    if args.interactive:
        chosen |= {name: _ask(name, chosen[name]) for name in _ASKED}
    model = init_model(args.out, args.data, **chosen)
    count = sum(weight.numpy().size for weight in model.weights.values())
    show(
        f"{args.out}: {model.config.layers} layers of width {model.config.width}, "
        f"{model.config.vocab_size:,} tokens, {count:,} weights"
    )


#: What is asked for, in this order.
_ASKED = ("layers", "width", "heads", "context", "positions", "tokenizer", "seed")


def _ask(name: str, default: Any) -> Any:
    """Ask for a value; an empty answer is the default."""
    kind = type(default)
    while True:
        complain(f"{name} [{default}]:")
        answer = sys.stdin.readline()
        if not answer.strip():
            return default
        try:
            return kind(answer.strip())
        except ValueError:
            complain(f"{answer.strip()!r} is no {kind.__name__}")
