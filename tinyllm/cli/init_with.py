"""Make a model with the blocks of another one, and a new vocabulary or context."""

from __future__ import annotations

import argparse

from ..training.surgery import init_with
from .output import show

__all__ = ["EXAMPLE", "add_arguments", "run"]

EXAMPLE = "example: tinyllm init-with old.gguf new.gguf text.txt --tokenizer bpe:1000"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument("model", help="the model whose blocks are taken")
    parser.add_argument("out", help="the GGUF file to write")
    parser.add_argument("data", nargs="?", help="the text that the vocabulary is made from")
    parser.add_argument("--tokenizer", help="char, byte, bpe:1000, or a file (default: as before)")
    parser.add_argument("--context", type=int, help="the new longest context")
    parser.add_argument("--seed", type=int, default=0)


def run(args: argparse.Namespace) -> None:
    """Run the command."""
    model = init_with(
        args.model,
        args.out,
        args.data,
        tokenizer=args.tokenizer,
        context=args.context,
        seed=args.seed,
    )
    show(f"{args.out}: {model.config.vocab_size:,} tokens, context {model.config.context_length}")
