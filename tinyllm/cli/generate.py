"""Continue a prompt."""

from __future__ import annotations

import argparse

from .common import add_draft, add_model, add_prompt, load_draft, load_model, read_prompt
from .output import show_json, stream
from .sampling import add_sampling, sampling_options

__all__ = ["EXAMPLE", "add_arguments", "run"]

EXAMPLE = 'example: tinyllm generate "ROMEO:" --seed 1'


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    add_prompt(parser)
    add_model(parser)
    parser.add_argument("--echo", action="store_true", help="print the prompt first")
    parser.add_argument(
        "--on-full",
        choices=("stop", "shift"),
        default="stop",
        help="when the context is full: end, or drop the oldest tokens (default: stop)",
    )
    parser.add_argument(
        "--json", action="store_true", help="print the whole result as JSON instead of the text"
    )
    parser.add_argument(
        "--logprobs", type=int, metavar="K", help="with --json: log-probabilities, and the K best"
    )
    add_draft(parser)
    add_sampling(parser, max_tokens=128)


def run(args: argparse.Namespace) -> None:
    """Run the command."""
    prompt = read_prompt(args)
    if args.logprobs is not None and not args.json:
        raise ValueError("--logprobs is given without --json, which shows them")
    options = {
        **sampling_options(args),
        "context": args.on_full,
        "parse_special": args.special,
        "logprobs": args.logprobs,
        "draft": load_draft(args),
    }
    model = load_model(args)
    if args.json:
        show_json(model.generate(prompt, **options).to_dict())
        return
    if args.echo:
        stream(prompt)
    for piece in model.stream(prompt, **options):
        stream(piece)
    stream("\n")
