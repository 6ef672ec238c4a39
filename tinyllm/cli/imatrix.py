"""Measure how much each input of the weights matters, for quantize."""

from __future__ import annotations

import argparse

from ..quantization.imatrix import imatrix
from .common import add_model, load_model
from .output import show

__all__ = ["EXAMPLE", "add_arguments", "run"]

EXAMPLE = "example: tinyllm imatrix -m qwen3.gguf calibration.txt qwen3.imatrix.gguf"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument("text", help="a UTF-8 file with typical text, some thousand tokens or more")
    parser.add_argument("out", help="the file to write; with the ending .dat, in the older format")
    add_model(parser)
    parser.add_argument(
        "-c", "--window", type=int, default=512, help="tokens of a window (default: 512)"
    )


def run(args: argparse.Namespace) -> None:
    """Run the command."""
    with open(args.text, encoding="utf-8") as file:
        text = file.read()
    found = imatrix(load_model(args), text, window=args.window)
    found.datasets = [args.text]
    found.save(args.out)
    show(f"{args.out}: {found!r}")
