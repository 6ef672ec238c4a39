"""Print the embeddings of texts, or how similar the texts are."""

from __future__ import annotations

import argparse
import json

import numpy as np

from ..display.table import Table
from .common import add_model, load_model
from .output import show

__all__ = ["EXAMPLE", "add_arguments", "run"]

EXAMPLE = 'example: tinyllm embed "My lord" "My lady" --similarity'


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument("text", nargs="+", help="the texts")
    add_model(parser)
    parser.add_argument(
        "--pooling", choices=("mean", "cls", "last", "rank"), help="default: as the file states"
    )
    parser.add_argument(
        "--similarity", action="store_true", help="print the cosines between the texts instead"
    )


def run(args: argparse.Namespace) -> None:
    """Run the command."""
    model = load_model(args)
    vectors = np.atleast_2d(model.embed(args.text, pooling=args.pooling))
    if not args.similarity:
        for vector in vectors:  # a line of JSON for each text
            show(json.dumps([float(f"{value:.8g}") for value in vector]))
        return
    unit = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-30)
    cosines = unit.astype(np.float64) @ unit.astype(np.float64).T
    names = [text if len(text) <= 24 else text[:23] + "…" for text in args.text]
    rows = [(name, *(f"{c:.4f}" for c in row)) for name, row in zip(names, cosines, strict=True)]
    show(Table(("text", *(str(i + 1) for i in range(len(rows)))), rows))
