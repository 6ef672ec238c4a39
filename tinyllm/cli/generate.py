"""Continue a prompt."""

from __future__ import annotations

import argparse

from .common import add_model, add_prompt, add_sampling, load_model, read_prompt
from .output import stream

__all__ = ["EXAMPLE", "add_arguments", "run"]

EXAMPLE = 'example: tinyllm generate "ROMEO:" --seed 1'


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    add_prompt(parser)
    add_model(parser)
    add_sampling(parser, max_tokens=128)
    parser.add_argument("--echo", action="store_true", help="print the prompt first")


def run(args: argparse.Namespace) -> None:
    """Run the command."""
    prompt = read_prompt(args)
    model = load_model(args)
    if args.echo:
        stream(prompt)
    pieces = model.stream(
        prompt,
        max_tokens=args.max_tokens,
        temperature=args.temperature,
        top_k=args.top_k,
        top_p=args.top_p,
        seed=args.seed,
        parse_special=args.special,
    )
    for piece in pieces:
        stream(piece)
    stream("\n")
