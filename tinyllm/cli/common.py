"""Arguments that several commands share: the prompt, the model, and sampling."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..model import Model

__all__ = ["add_model", "add_prompt", "add_sampling", "load_model", "read_prompt"]


def add_prompt(parser: argparse.ArgumentParser) -> None:
    """Add the argument that `read_prompt` reads."""
    parser.add_argument("prompt", nargs="*", help="the prompt; - or no prompt: read standard input")
    parser.add_argument(
        "--special",
        action="store_true",
        help="read texts of special tokens in the prompt, such as <|im_start|>, as these tokens",
    )


def add_model(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that `load_model` reads."""
    parser.add_argument(
        "-m",
        "--model",
        default="demo",
        help="GGUF file, llama2.c checkpoint, hf:owner/repo:Q4_K_M, or ollama:name (default: demo)",
    )
    parser.add_argument("--tokenizer", help="a file whose tokenizer to use")
    parser.add_argument("-t", "--threads", type=int, help="use at most this many threads")


def add_sampling(parser: argparse.ArgumentParser, max_tokens: int) -> None:
    """Add the arguments that say how tokens are drawn, and how many."""
    parser.add_argument(
        "-n",
        "--max-tokens",
        type=int,
        default=max_tokens,
        help=f"the most tokens to draw (default: {max_tokens})",
    )
    parser.add_argument(
        "--temperature", type=float, default=0.8, help="0: always the best token (default: 0.8)"
    )
    parser.add_argument(
        "--top-k", type=int, default=40, help="draw from the k best; 0: from all (default: 40)"
    )
    parser.add_argument(
        "--top-p",
        type=float,
        default=0.95,
        help="draw from the best tokens of this total probability (default: 0.95)",
    )
    parser.add_argument("--seed", type=int, help="the same seed gives the same text")


def read_prompt(args: argparse.Namespace) -> str:
    """Return the prompt from the command line or from standard input."""
    words: list[str] = args.prompt
    if words and words != ["-"]:
        return " ".join(words)
    if sys.stdin is None:
        raise ValueError("no prompt is given, and standard input is closed")
    if not words and sys.stdin.isatty():
        raise ValueError("no prompt is given; expected an argument, or - to read standard input")
    return sys.stdin.read()


def load_model(args: argparse.Namespace) -> Model:
    """Return the model that the arguments name."""
    from ..model import load

    return load(args.model, threads=args.threads, tokenizer=args.tokenizer)
