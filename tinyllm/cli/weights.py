"""Show one tensor: statistics and the first values."""

from __future__ import annotations

import argparse
import difflib

import numpy as np

from ..base.units import size
from ..display.table import Table
from ..files.model_file import open_file
from .output import show

__all__ = ["EXAMPLE", "add_arguments", "run"]

EXAMPLE = "example: tinyllm weights model.gguf blk.0.attn_q.weight"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument(
        "file", help="GGUF file, llama2.c checkpoint, hf:owner/repo, ollama:name, or demo"
    )
    parser.add_argument("tensor", help="the name of a tensor, as tinyllm info lists it")


def run(args: argparse.Namespace) -> None:
    """Run the command."""
    tensors = open_file(args.file).weights
    if args.tensor not in tensors:
        near = difflib.get_close_matches(args.tensor, list(tensors), n=3, cutoff=0.4)
        hint = f"; the nearest are {', '.join(near)}" if near else ""
        raise ValueError(f"{args.file} has no tensor {args.tensor!r}{hint}")
    weight = tensors[args.tensor]
    values = weight.numpy()
    finite = values[np.isfinite(values)]
    rows: list[tuple[str, object]] = [
        ("type", weight.type),
        ("shape", str(weight.shape)),
        ("size", size(weight.nbytes)),
        ("values", f"{values.size:,}"),
    ]
    if finite.size:
        rows += [
            ("min", f"{finite.min():.6g}"),
            ("max", f"{finite.max():.6g}"),
            ("mean", f"{finite.mean(dtype=np.float64):.6g}"),
            ("std", f"{finite.std(dtype=np.float64):.6g}"),
            ("norm", f"{np.linalg.norm(finite.astype(np.float64)):.6g}"),
        ]
    if finite.size < values.size:
        rows.append(("not finite", f"{values.size - finite.size:,}"))
    show(Table(("what", "value"), rows))
    show()
    with np.printoptions(precision=5, suppress=True, threshold=64, edgeitems=4, linewidth=100):
        show(values)
