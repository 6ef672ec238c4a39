"""Train a small model from scratch on a text."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import Any

from ..training.estimate import estimate
from ..training.run import Run
from ..training.trainer import train
from .output import complain, show
from .shapes import add_shape, shape_of

__all__ = ["EXAMPLE", "add_arguments", "reporter", "run"]

EXAMPLE = "example: tinyllm train shakespeare.txt model.gguf --size small --steps 1000"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument("data", help="a text file in UTF-8, or a folder of them")
    parser.add_argument("out", help="the GGUF file to write")
    add_shape(parser)
    parser.add_argument("--steps", type=int, help="default: 1000")
    parser.add_argument("--micro-batch", type=int, help="sequences that run together")
    parser.add_argument(
        "--tokenizer", help="char, byte, bpe:1000, or a file with a tokenizer (default: char)"
    )
    parser.add_argument("--optimizer", default="muon", choices=["muon", "adamw"])
    parser.add_argument("--lr", type=float, help="learning rate of the matrices")
    parser.add_argument("--dropout", type=float, default=0.0, help="probability (default: 0)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--validation", type=float, default=0.05, help="part that is held out")
    parser.add_argument(
        "--start", metavar="FILE", help="a model whose weights are the first ones; it has the shape"
    )
    parser.add_argument("--resume", action="store_true", help="continue the run of OUT")
    parser.add_argument("--threads", type=int)
    parser.add_argument(
        "--safetensors", action="store_true", help="write OUT.safetensors at the end, too"
    )
    parser.add_argument("--sample", metavar="TEXT", help="show how the model continues this text")


def reporter(sample: str | None) -> Callable[[Run], None]:
    """Return a function that prints how far a run is, and how the model continues a text."""

    def report(result: Run) -> None:
        loss = f"loss {result.log.losses[-1]:.4f}"
        if result.log.validation:
            loss += f", held out {result.log.validation[-1][1]:.4f}"
        seconds = max(result.log.times[-1], 1e-9)
        settings = result.settings
        rate = result.step * settings.batch * settings.context / seconds
        left = seconds / result.step * (settings.steps - result.step)
        complain(
            f"step {result.step} of {settings.steps}: {loss}; {rate:,.0f} tokens/s, "
            f"{left:.0f} s left"
        )
        if sample:
            found = result.model.generate(sample, max_tokens=64, seed=0)
            complain(f"  {sample + found.text!r}")

    return report


def run(args: argparse.Namespace) -> None:
    """Run the command."""
    report = reporter(args.sample)
    if args.resume:
        result = train(
            args.data,
            resume=args.out,
            steps=args.steps,
            evaluate=report,
            threads=args.threads,
            progress=sys.stderr.isatty(),
        )
    else:
        chosen = {
            "steps": args.steps or 1000,
            "micro_batch": args.micro_batch,
            "optimizer": args.optimizer,
            "lr": args.lr,
            "dropout": args.dropout,
            "seed": args.seed,
            "validation": args.validation,
        }
        if args.start is not None:
            chosen |= _without_shape(args)
        else:
            chosen |= {**shape_of(args), "tokenizer": args.tokenizer or "char"}
            complain(estimate(args.data, threads=args.threads, **chosen))
        result = train(
            args.data,
            out=args.out,
            start=args.start,
            evaluate=report,
            threads=args.threads,
            progress=sys.stderr.isatty(),
            **chosen,
        )
    if args.safetensors:
        result.save(f"{args.out}.safetensors")
    show(f"{args.out}: {result.step} steps, loss {result.log.losses[-1]:.4f}")


def _without_shape(args: argparse.Namespace) -> dict[str, Any]:
    """Return the batch and the context; another size is an error, because --start has it."""
    given = ("size", "layers", "width", "heads", "kv_heads", "ffn_width", "positions", "tokenizer")
    for name in (*given, "tied"):
        if getattr(args, name) not in (None, False):
            raise ValueError(f"--{name.replace('_', '-')} is given, but --start has its own")
    batch = shape_of(args)["batch"]
    return {"batch": batch, "context": args.context}
