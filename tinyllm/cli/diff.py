"""Compare the values of another program with a model's, tap by tap."""

from __future__ import annotations

import argparse

from ..comparison.diff import diff
from ..comparison.read import read
from ..runtime.prompt import token_ids
from .common import add_model, load_model, read_prompt
from .output import show

__all__ = ["EXAMPLE", "add_arguments", "run"]

EXAMPLE = 'example: tinyllm diff -m model.gguf engine.npz "The cat" (exit status 1 if they part)'


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument(
        "dump",
        help="the values of the other program: .npz, .safetensors, or a folder of .npy files",
    )
    parser.add_argument(
        "prompt", nargs="*", help="what it ran; not needed if the dump has an array named tokens"
    )
    parser.add_argument(
        "--special",
        action="store_true",
        help="read texts of special tokens in the prompt, such as <|im_start|>, as these tokens",
    )
    add_model(parser)
    parser.add_argument(
        "--dialect",
        help="whose names they are: transformer_lens, hf, llama.cpp, llama2.c, plain, tinyllm "
        "(default: guessed)",
    )
    parser.add_argument(
        "--tolerance", type=float, help="the largest relative error that counts as equal"
    )
    parser.add_argument("--all", action="store_true", help="show all taps")


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    model = load_model(args)
    tokens = None
    if args.prompt:
        tokens = token_ids(read_prompt(args), model.tokenizer, parse_special=args.special)
    dump = read(args.dump, args.dialect, tokens, model=model)
    found = diff(model, dump, args.tolerance)
    show(found)
    if args.all:
        show()
        show(found.table)
    return 0 if found.same else 1
