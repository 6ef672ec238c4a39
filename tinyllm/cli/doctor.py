"""Name the mistakes that explain the values of another engine."""

from __future__ import annotations

import argparse

from .common import add_model, add_prompt, load_model, read_prompt
from .output import show

__all__ = ["EXAMPLE", "add_arguments", "run"]

EXAMPLE = 'example: tinyllm doctor -m model.gguf engine.npz "The cat sat on"'


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument(
        "dump",
        help=".npz or .safetensors file, or folder of .npy files; - says what to dump, and goes "
        "with --generated",
    )
    add_prompt(parser)
    add_model(parser)
    parser.add_argument(
        "--generated",
        metavar="IDS",
        help="ids that the engine generated after the prompt, always the most likely one: 5,17,3",
    )


def run(args: argparse.Namespace) -> int:
    """Run the command; the status is 1 if something is wrong."""
    from ..comparison.read import read
    from ..diagnosis.doctor import doctor

    model = load_model(args)
    if args.dump == "-" and args.generated is None:
        show(doctor(model, {}))
        return 0
    if args.dump != "-" and args.generated is not None:
        raise ValueError(f"dump is {args.dump!r}; expected - with --generated")
    values = {"generated": _ids(args.generated)} if args.generated else read(args.dump, model=model)
    tokens = read_prompt(args) if args.prompt or args.generated else None
    result = doctor(model, values, tokens, parse_special=args.special)
    show(result)
    return 0 if result.ok else 1


def _ids(text: str) -> list[int]:
    try:
        return [int(part) for part in text.replace(",", " ").split()]
    except ValueError:
        raise ValueError(
            f"--generated is {text!r}; expected numbers with commas between them"
        ) from None
