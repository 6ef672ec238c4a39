"""Make a tokenizer from a text, and write it as a GGUF file without a model."""

from __future__ import annotations

import argparse

from ..training.vocabulary import train_tokenizer
from .output import show
from .shapes import add_vocabulary, vocabulary_of

__all__ = ["EXAMPLE", "add_arguments", "run"]

EXAMPLE = "example: tinyllm train-bpe text.txt tokenizer.gguf --count 1000"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument("data", help="a text file in UTF-8, or a folder of them")
    parser.add_argument("out", help="the GGUF file to write; train --tokenizer takes it")
    parser.add_argument("--count", type=int, default=1000, help="tokens (default: 1000)")
    add_vocabulary(parser)


def run(args: argparse.Namespace) -> None:
    """Run the command."""
    made = train_tokenizer(args.data, f"bpe:{args.count}", out=args.out, **vocabulary_of(args))
    show(f"{args.out}: {len(made):,} tokens")
