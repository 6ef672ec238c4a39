"""Show how probable each token of a text is."""

from __future__ import annotations

import argparse

from .common import add_model, add_prompt, load_model, read_prompt
from .output import show

__all__ = ["EXAMPLE", "add_arguments", "run"]

EXAMPLE = 'example: tinyllm score "To be, or not to be"'


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    add_prompt(parser)
    add_model(parser)
    parser.add_argument(
        "--perplexity", action="store_true", help="of a long text, in windows, as in llama.cpp"
    )


def run(args: argparse.Namespace) -> None:
    """Run the command."""
    text = read_prompt(args)
    model = load_model(args)
    if args.perplexity:
        show(model.perplexity(text, parse_special=args.special))
        return
    score = model.score(text, parse_special=args.special)
    show(score.table())
    show()
    show(repr(score))
