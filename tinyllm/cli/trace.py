"""Show the inner values of a run and the most probable next tokens."""

from __future__ import annotations

import argparse
import os

import numpy as np

from .. import _core
from ..base.checks import ranged
from ..base.numeric import best
from ..base.units import size
from ..display.table import Table
from .common import add_model, add_prompt, load_model, read_prompt
from .output import show

__all__ = ["EXAMPLE", "add_arguments", "run"]

EXAMPLE = 'example: tinyllm trace "ROMEO:" --capture "blk.0.*"'


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    add_prompt(parser)
    add_model(parser)
    parser.add_argument(
        "-c",
        "--capture",
        action="append",
        metavar="PATTERN",
        help='taps to show, for example "blk.*.resid_post"; may be repeated',
    )
    parser.add_argument(
        "--html", metavar="FILE", help="write a page for browsing layers, heads and tokens"
    )
    parser.add_argument(
        "--top", type=int, default=5, help="number of next tokens to show (default: 5)"
    )


def run(args: argparse.Namespace) -> None:
    """Run the command."""
    ranged("--top", args.top, 1)
    prompt = read_prompt(args)
    model = load_model(args)
    capture = args.capture or ("*" if args.html else None)
    run = model.trace(prompt, capture, parse_special=args.special)
    show("tokens: " + " ".join(repr(piece) for piece in run.pieces))
    logits = run["output"][-1] if "output" in run else model.logits(run.tokens)[-1]
    probs = _core.softmax(logits)
    top = best(probs, args.top)
    show()
    show("next token:")
    rows = [
        (int(i), repr(piece), f"{logits[i]:.4f}", f"{probs[i]:.4f}")
        for i, piece in zip(top, model.pieces(top.astype(np.int32)), strict=True)
    ]
    show(Table(("id", "piece", "logit", "probability"), rows))
    show()
    if args.html:
        run.html(args.html)
        show(f"{args.html}: {size(os.path.getsize(args.html))}")
    else:
        show(run.table())
