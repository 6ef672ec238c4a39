"""Show the next token as each layer would predict it: the logit lens."""

from __future__ import annotations

import argparse

from .common import add_model, add_prompt, load_model, read_prompt
from .output import show

__all__ = ["EXAMPLE", "add_arguments", "run"]

EXAMPLE = 'example: tinyllm lens "To be, or not to"'


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    add_prompt(parser)
    add_model(parser)


def run(args: argparse.Namespace) -> None:
    """Run the command."""
    from ..analysis.lens import lens

    prompt = read_prompt(args)
    model = load_model(args)
    trace = model.trace(prompt, "blk.*.resid_post", parse_special=args.special)
    show(lens(trace, 1).table())
