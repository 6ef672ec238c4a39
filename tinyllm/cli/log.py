"""Show the losses of a training run."""

from __future__ import annotations

import argparse
import json

import numpy as np

from ..display.table import Table
from ..training.checkpoint import read_state
from .output import show

__all__ = ["EXAMPLE", "add_arguments", "run"]

EXAMPLE = "example: tinyllm log model.gguf --rows 20"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument("model", help="the GGUF file that tinyllm train has written")
    parser.add_argument("--rows", type=int, default=10, help="rows of the table (default: 10)")
    parser.add_argument("--json", action="store_true", help="every step, as JSON")


def run(args: argparse.Namespace) -> None:
    """Run the command."""
    state = read_state(args.model)
    log, done = state.log, state.step
    if args.json:
        show(
            json.dumps(
                {
                    "history": [event._asdict() for event in state.history],
                    "step": done,
                    "settings": json.loads(state.settings.to_json()),
                    "loss": log.losses,
                    "norm": log.norms,
                    "seconds": log.times,
                    "validation": log.validation,
                }
            )
        )
        return
    if args.rows < 1:
        raise ValueError(f"--rows is {args.rows}; expected at least 1")
    held_out = dict(log.validation)
    ends = np.unique(np.linspace(0, done, min(args.rows, done) + 1).astype(int))
    rows: list[tuple[object, ...]] = []
    for first, last in zip(ends[:-1].tolist(), ends[1:].tolist(), strict=True):
        measured = [held_out[step] for step in range(first + 1, last + 1) if step in held_out]
        rows.append(
            (
                last,
                f"{np.mean(log.losses[first:last]):.4f}",
                f"{measured[-1]:.4f}" if measured else "",
                f"{log.times[last - 1]:.1f}",
            )
        )
    show(str(Table(("step", "mean loss", "held out", "seconds"), rows)))
