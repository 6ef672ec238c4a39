"""Arguments that several commands share: the prompt and the model."""

from __future__ import annotations

import argparse
import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..generation.drafts import Draft
    from ..model import Model

__all__ = [
    "adapter_and_scale",
    "add_draft",
    "add_model",
    "add_prompt",
    "load_draft",
    "load_model",
    "read_prompt",
]


def add_prompt(parser: argparse.ArgumentParser) -> None:
    """Add the argument that `read_prompt` reads."""
    parser.add_argument("prompt", nargs="*", help="the prompt; - or no prompt: read standard input")
    parser.add_argument(
        "-f", "--file", metavar="FILE", help="a file with the prompt, in place of the argument"
    )
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
    parser.add_argument(
        "--mode",
        choices=("exact", "fast"),
        default="exact",
        help="fast: round activations to eight bits (default: exact)",
    )
    parser.add_argument(
        "--cache",
        choices=("f32", "f16", "q8"),
        default="f32",
        help="how to store keys and values; f16, q8: rounded, with less memory (default: f32)",
    )
    parser.add_argument(
        "--context", type=int, metavar="TOKENS", help="the longest context (default: the model's)"
    )
    parser.add_argument(
        "--adapter",
        action="append",
        default=[],
        metavar="FILE[:SCALE]",
        help="a LoRA adapter, with its scale (default: 1); may be given several times",
    )


def adapter_and_scale(text: str) -> tuple[str, float]:
    """Return the path and the scale that FILE[:SCALE] names. A file may have such a name itself."""
    path, colon, scale = text.rpartition(":")
    if not colon or os.path.exists(text):
        return text, 1.0
    try:
        return path, float(scale)
    except ValueError:
        return text, 1.0


def add_draft(parser: argparse.ArgumentParser) -> None:
    """Add the argument that `load_draft` reads."""
    parser.add_argument(
        "--draft",
        metavar="lookup|FILE",
        help="guess tokens, which changes nothing but the speed: from repetitions (lookup), or "
        "with a smaller model of the same vocabulary",
    )


def load_draft(args: argparse.Namespace) -> Draft:
    """Return where guesses come from: see `Model.generate`."""
    if args.draft is None:
        return None
    if args.draft == "lookup":
        return "lookup"
    from ..loading import load

    return load(args.draft, mode=args.mode, threads=args.threads, max_context=args.context)


def read_prompt(args: argparse.Namespace) -> str:
    """Return the prompt from the command line or from standard input."""
    words: list[str] = args.prompt
    if args.file is not None:
        if words:
            raise ValueError("both a prompt and --file are given; expected one")
        with open(args.file, encoding="utf-8", errors="surrogateescape") as file:
            return file.read()
    if words and words != ["-"]:
        return " ".join(words)
    if sys.stdin is None:
        raise ValueError("no prompt is given, and standard input is closed")
    if not words and sys.stdin.isatty():
        raise ValueError("no prompt is given; expected an argument, or - to read standard input")
    return sys.stdin.read()


def load_model(args: argparse.Namespace) -> Model:
    """Return the model that the arguments name."""
    from ..loading import load

    return load(
        args.model,
        mode=args.mode,
        cache=args.cache,
        threads=args.threads,
        tokenizer=args.tokenizer,
        max_context=args.context,
        adapters=[adapter_and_scale(text) for text in args.adapter],
    )
